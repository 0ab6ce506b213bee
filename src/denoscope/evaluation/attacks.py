"""Can a map be moved without the picture, or the picture without the map? By small, searched-for changes of x_t.

Sources: Ghorbani, Abid, Zou 2019, "Interpretation of neural networks is fragile" (maps as the goal of an attack);
Madry et al. 2018 (projected gradient); Polyak 1967 (steps switch between the goal and a violated constraint).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
import xarray as xr

from ..attributors.base import Advance
from ..errors import InputError, NumericsError
from ..recording.traces import Step
from ..targets import Target
from .metrics import with_facts
from .stability import agreement

Differentiable = Callable[[torch.Tensor], torch.Tensor]
"""From samples (n, channels, h, w) to what is watched of each: maps (n, h, w), or pictures (n, c, height, width)."""


# How far a sample may be moved.


class Ball(ABC):
    """Changes δ of a sample, (1, channels, h, w), that are small enough; `radius` is in its standard deviations."""

    radius: float

    @abstractmethod
    def steepest(self, gradient: torch.Tensor) -> torch.Tensor:
        """The change of length 1 along which a function with this gradient rises most."""

    @abstractmethod
    def project(self, delta: torch.Tensor, radius: float) -> torch.Tensor:
        """The nearest change of a length of at most `radius`."""


@dataclass(frozen=True)
class MaximumBall(Ball):
    """L∞: no value changes by more than `radius`."""

    radius: float = 0.05

    def steepest(self, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.sign()

    def project(self, delta: torch.Tensor, radius: float) -> torch.Tensor:
        return delta.clamp(-radius, radius)


@dataclass(frozen=True)
class EuclideanBall(Ball):
    """L2: the root mean square of the change is at most `radius`, so that it means the same at every size."""

    radius: float = 0.05

    def steepest(self, gradient: torch.Tensor) -> torch.Tensor:
        return gradient / gradient.square().mean().sqrt().clamp(min=torch.finfo(gradient.dtype).tiny)

    def project(self, delta: torch.Tensor, radius: float) -> torch.Tensor:
        length = delta.square().mean().sqrt()
        return delta * (radius / length) if length > radius else delta


# Maps that can be differentiated.


def gradient_map(step: Step, target: Target | None = None) -> Differentiable:
    """|∂y/∂x|² summed over channels, of a scalar target y, or of the sum of the clean prediction."""

    def of(samples: torch.Tensor) -> torch.Tensor:
        x = samples if samples.requires_grad else samples.detach().requires_grad_()
        with torch.enable_grad():
            y = step.predict_original(x) if target is None else target.at(step)(x)
            (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return gradient.square().sum(dim=1)

    return of


def contrast_map(step: Step, target: Target, masks: np.ndarray) -> Differentiable:
    """DF-RISE's contrast form with fixed masks (n, h, w): Σ M s / Σ M − Σ (1 − M) s / Σ (1 − M).

    Masked places are filled with the sample's mean. What a masked prediction is compared with is the sample's own, so
    the map is a differentiable function of the sample where the target is: `Closeness()` is.
    """
    kept = torch.from_numpy(np.asarray(masks, np.float32)).to(step.sample)
    weights = kept / kept.sum(dim=0) - (1 - kept) / (1 - kept).sum(dim=0)
    if not weights.isfinite().all():
        raise InputError(
            f"Some position is kept, or masked, by all of the {len(masks)} masks, so nothing can be compared there. "
            "Give more masks, such as 32 of GridMasks."
        )

    def of_one(x: torch.Tensor) -> torch.Tensor:
        fill = x.mean(dim=(-2, -1), keepdim=True)
        scores = target.at(step.with_sample(x))(x * kept[:, None] + fill * (1 - kept[:, None]))
        return (weights * scores[:, None, None]).sum(dim=0)

    return lambda samples: torch.stack([of_one(x[None]) for x in samples])


@contextmanager
def _differentiable_twice() -> Iterator[None]:
    """While open, attention is computed in torch's plain way: its fast ways have no second derivative."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        yield


# The attack.


@dataclass(frozen=True)
class Attack:
    """How a change is searched for: in a `ball`, in so many `iterations`, from a small random start.

    What is to be kept may change by `tolerance` of its own spread, as its root mean square; the change that is returned
    keeps to that, and is none at all where no other was found.
    """

    ball: Ball = field(default_factory=MaximumBall)
    iterations: int = 40
    tolerance: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.ball.radius > 0 or self.iterations < 1 or not self.tolerance > 0:
            raise InputError(
                f"An attack of radius {self.ball.radius}, {self.iterations} iterations and tolerance {self.tolerance} "
                "cannot be tried. All three must be above 0; 0.05, 40 and 0.05 are usual."
            )

    def __call__(
        self, sample: torch.Tensor, moves: Differentiable, keeps: Differentiable, advance: Advance | None = None
    ) -> torch.Tensor:
        """The change δ of a sample (1, channels, h, w) that moves the one furthest and keeps the other.

        In each step what is moved rises, or, while what is kept has changed by more than `tolerance`, that falls.
        Steps shorten linearly to nothing and reach across the ball together.
        """
        radius = self.ball.radius * float(sample.std())
        moved, kept = Change.of(moves, sample), Change.of(keeps, sample)
        delta, best, furthest = self.start(sample, radius), torch.zeros_like(sample), 0.0
        for i in range(self.iterations + 1):
            x = (sample + delta).detach().requires_grad_()
            with torch.enable_grad(), _differentiable_twice():
                goal, limit = moved(x), kept(x)
                allowed = float(limit.detach()) <= self.tolerance**2
                (gradient,) = torch.autograd.grad(goal if allowed else -limit, x)
            if not gradient.isfinite().all():
                raise NumericsError(_no_gradient(i, "what is moved" if allowed else "what is kept"))
            if allowed and float(goal.detach()) > furthest:
                best, furthest = delta, float(goal.detach())
            length = 4 * radius / self.iterations * (1 - i / self.iterations)
            delta = self.ball.project(delta + length * self.ball.steepest(gradient), radius)
            if advance is not None:
                advance(1)
        return best

    def start(self, sample: torch.Tensor, radius: float) -> torch.Tensor:
        """A random change, small: at none at all, nothing has changed and every gradient is 0."""
        return self.random(sample, radius) / 20

    def random(self, sample: torch.Tensor, radius: float) -> torch.Tensor:
        """A random change on the edge of the ball: what an attack has to be better than."""
        noise = np.random.default_rng(self.seed).standard_normal(sample.shape, dtype=np.float32)
        return self.ball.project(radius * self.ball.steepest(torch.from_numpy(noise).to(sample)), radius)


def _no_gradient(iteration: int, what: str) -> str:
    return (
        f"The attack's gradient has NaN or infinite values in iteration {iteration}: {what} cannot be differentiated "
        "there. Similarities have roots of variances; take Closeness() as the map's target."
    )


@dataclass(frozen=True, eq=False)
class Change:
    """‖v(x) − v(x₀)‖² / ‖v(x₀) − its mean‖² of what is watched, v: 0 is unchanged, 1 is as far as it varies itself."""

    watched: Differentiable
    before: torch.Tensor
    spread: torch.Tensor

    @classmethod
    def of(cls, watched: Differentiable, sample: torch.Tensor) -> "Change":
        """From what is watched of the unchanged sample; raises `InputError` where that is flat."""
        with _differentiable_twice():
            before = watched(sample).detach()
        spread = (before - before.mean()).square().sum()
        if not float(spread) > 0:
            raise InputError(
                "What is watched of the sample is the same everywhere, so a change of it has no measure. Give a map, "
                "or a picture, that has some structure at this step."
            )
        return cls(watched, before, spread)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return (self.watched(x) - self.before).square().sum() / self.spread

    def root(self, x: torch.Tensor) -> float:
        """Its root, as a number."""
        return float(self(x).detach()) ** 0.5


def attacks(
    step: Step,
    saliency: Differentiable,
    picture: Differentiable | None = None,
    attack: Attack | None = None,
    *,
    advance: Advance | None = None,
) -> xr.Dataset:
    """How far a map can be moved with the picture kept, and the picture with the map kept, by changing a step's x_t.

    >>> found = attacks(trace[15], contrast_map(trace[15], Closeness(), masks))      # doctest: +SKIP
    >>> found.map_agreement.sel(attack="move the map").item()                        # doctest: +SKIP
    0.41

    `picture` is what counts as the picture: the step's clean prediction, or
    `lambda samples: trace.continued(15, samples)` for the final one. Along `attack`: "move the map", "move the picture"
    and "random", a change as large that was not searched for. Variables: `map_change` and `picture_change`, root mean
    square in units of the unchanged one's spread; `map_agreement`, the rank correlation with the unchanged map;
    `change_rms` and `change_maximum` of x_t in its standard deviations; `saliency` (attack, y, x).
    """
    own, sample = attack or Attack(), step.sample.detach()
    seen: Differentiable = picture or step.predict_original
    deltas = {
        "move the map": own(sample, saliency, seen, advance),
        "move the picture": own(sample, seen, saliency, advance),
        "random": own.random(sample, own.ball.radius * float(sample.std())),
    }
    rows = [_measured(sample, delta, saliency, seen) for delta in deltas.values()]
    coords = {"attack": list(deltas)}
    found = xr.concat(rows, "attack").assign_coords(coords)
    return found.assign(map_agreement=with_facts(found.map_agreement, "agreement"))


def _measured(sample: torch.Tensor, delta: torch.Tensor, saliency: Differentiable, seen: Differentiable) -> xr.Dataset:
    maps, pictures = Change.of(saliency, sample), Change.of(seen, sample)
    x = sample + delta
    with _differentiable_twice():
        map_ = _array(saliency(x))
        changes = {"map_change": maps.root(x), "picture_change": pictures.root(x)}
    relative = delta / sample.std()
    sizes = {"change_rms": float(relative.square().mean().sqrt()), "change_maximum": float(relative.abs().max())}
    figures = {"map_agreement": agreement(_array(maps.before), map_), **changes, **sizes}
    return xr.Dataset({**figures, "saliency": (("y", "x"), map_)})


def _array(maps: torch.Tensor) -> np.ndarray:
    return maps[0].detach().double().cpu().numpy()
