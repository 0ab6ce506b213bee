"""Can a map be moved without the picture, or the picture without the map? A search for small changes of x_t.

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
from ..recording.steps import Step
from ..targets import Target
from .metrics import MAP_DIMS, with_facts
from .stability import agreement

Differentiable = Callable[[torch.Tensor], torch.Tensor]
"""A function from samples, of the pipeline's own shape, to maps (n, [frames,] h, w), or to pictures (n, c, ...)."""


# The size of a change.


class Ball(ABC):
    """Changes δ of a sample, of its shape, that are small enough; `radius` is in its standard deviations."""

    radius: float

    @abstractmethod
    def steepest(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return the change of length 1 along which a function with this gradient rises most."""

    @abstractmethod
    def project(self, delta: torch.Tensor, radius: float) -> torch.Tensor:
        """Return the nearest change of a length of at most `radius`."""


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
    """L2: the root mean square of the change is at most `radius`, whatever the sample's size."""

    radius: float = 0.05

    def steepest(self, gradient: torch.Tensor) -> torch.Tensor:
        return gradient / gradient.square().mean().sqrt().clamp(min=torch.finfo(gradient.dtype).tiny)

    def project(self, delta: torch.Tensor, radius: float) -> torch.Tensor:
        length = delta.square().mean().sqrt()
        return delta * (radius / length) if length > radius else delta


# Maps that can be differentiated.


def gradient_map(step: Step, target: Target | None = None) -> Differentiable:
    """Return a function from samples to |∂y/∂x|² summed over channels, (n, [frames,] h, w).

    y is a scalar target; None is the sum of the clean prediction.
    """

    def maps(samples: torch.Tensor) -> torch.Tensor:
        x = samples if samples.requires_grad else samples.detach().requires_grad_()
        with torch.enable_grad():
            y = step.predict_original(x) if target is None else target.at(step)(step.as_maps(x))
            (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return step.as_maps(gradient).square().sum(dim=1)

    return maps


def contrast_map(step: Step, target: Target, masks: np.ndarray) -> Differentiable:
    """Return DF-RISE's contrast form with fixed masks (n, *map): Σ M s / Σ M − Σ (1 − M) s / Σ (1 − M).

    Masked places are filled with the sample's mean. A masked prediction is compared with the sample's own, so the map
    is a differentiable function of the sample where the target is: `Closeness()` is. Raises `InputError` where all
    masks keep, or all mask, the same position.
    """
    keep = torch.from_numpy(np.asarray(masks, np.float32)).to(step.sample)
    weights = keep / keep.sum(dim=0) - (1 - keep) / (1 - keep).sum(dim=0)
    if not weights.isfinite().all():
        raise InputError(
            f"Some position is kept, or masked, by all of the {len(masks)} masks, so nothing can be compared there. "
            "Give more masks, such as 32 of GridMasks."
        )

    def of_one(sample: torch.Tensor) -> torch.Tensor:
        x = step.as_maps(sample)
        fill = x.mean(dim=tuple(range(2, x.ndim)), keepdim=True)
        scores = target.at(step.with_sample(sample))(x * keep[:, None] + fill * (1 - keep[:, None]))
        return (weights * scores.reshape(-1, *[1] * (keep.ndim - 1))).sum(dim=0)

    def maps(samples: torch.Tensor) -> torch.Tensor:
        return torch.stack([of_one(sample) for sample in torch.split(samples, len(step.sample))])

    return maps


@contextmanager
def _differentiable_twice() -> Iterator[None]:
    """Compute attention in torch's plain way while open: its fast ways have no second derivative."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        yield


# The attack.


@dataclass(frozen=True)
class Attack:
    """The settings of a search for a change: in a `ball`, with so many `iterations`, from a small random start.

    The function to keep may change by `tolerance` of its own spread, as its root mean square. The returned change keeps
    to that; it is zero where the search met no other. Raises `InputError` for values that are not above 0.
    """

    ball: Ball = field(default_factory=MaximumBall)
    iterations: int = 40
    tolerance: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.ball.radius > 0 or self.iterations < 1 or not self.tolerance > 0:
            raise InputError(
                f"The attack has radius {self.ball.radius}, {self.iterations} iterations and tolerance "
                f"{self.tolerance}. All three must be above 0; 0.05, 40 and 0.05 are usual."
            )

    def __call__(
        self, sample: torch.Tensor, moves: Differentiable, keeps: Differentiable, advance: Advance | None = None
    ) -> torch.Tensor:
        """Return the change δ of a sample, of its shape, that moves `moves` furthest and keeps `keeps`.

        Each iteration raises the change of `moves`. While `keeps` has changed by more than `tolerance`, it lowers the
        change of `keeps` instead. Steps shorten linearly to nothing; together they reach across the ball. Raises
        `NumericsError` for a gradient that is not finite.
        """
        radius = self.ball.radius * float(sample.std())
        change_to_raise, change_to_limit = Change.of(moves, sample), Change.of(keeps, sample)
        delta, best, furthest = self.start(sample, radius), torch.zeros_like(sample), 0.0
        for i in range(self.iterations + 1):
            x = (sample + delta).detach().requires_grad_()
            with torch.enable_grad(), _differentiable_twice():
                goal, limit = change_to_raise(x), change_to_limit(x)
                allowed = float(limit.detach()) <= self.tolerance**2
                (gradient,) = torch.autograd.grad(goal if allowed else -limit, x)
            if not gradient.isfinite().all():
                raise NumericsError(_no_gradient(i, "function to move" if allowed else "function to keep"))
            if allowed and float(goal.detach()) > furthest:
                best, furthest = delta, float(goal.detach())
            length = 4 * radius / self.iterations * (1 - i / self.iterations)
            delta = self.ball.project(delta + length * self.ball.steepest(gradient), radius)
            if advance is not None:
                advance(1)
        return best

    def start(self, sample: torch.Tensor, radius: float) -> torch.Tensor:
        """Return a small random change. At no change at all, every gradient would be 0."""
        return self.random(sample, radius) / 20

    def random(self, sample: torch.Tensor, radius: float) -> torch.Tensor:
        """Return a random change on the edge of the ball, beside which an attack is judged."""
        noise = np.random.default_rng(self.seed).standard_normal(sample.shape, dtype=np.float32)
        return self.ball.project(radius * self.ball.steepest(torch.from_numpy(noise).to(sample)), radius)


def _no_gradient(iteration: int, function: str) -> str:
    return (
        f"The attack's gradient has NaN or infinite values in iteration {iteration}: the {function} cannot be "
        "differentiated there. Similarities have roots of variances; take Closeness() as the map's target."
    )


@dataclass(frozen=True, eq=False)
class Change:
    """The relative change ‖v(x) − v(x₀)‖² / ‖v(x₀) − its mean‖² of a function v of samples.

    0 is unchanged, 1 is as far as v varies over the picture.
    """

    function: Differentiable
    before: torch.Tensor
    spread: torch.Tensor

    @classmethod
    def of(cls, function: Differentiable, sample: torch.Tensor) -> "Change":
        """Measure the function of the unchanged sample; raises `InputError` where that is flat."""
        with _differentiable_twice():
            before = function(sample).detach()
        spread = (before - before.mean()).square().sum()
        if not float(spread) > 0:
            raise InputError(
                "The map or picture of the sample is the same everywhere, so its change has no measure. Give a map, or "
                "a picture, that has some structure at this step."
            )
        return cls(function, before, spread)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return (self.function(x) - self.before).square().sum() / self.spread

    def root(self, x: torch.Tensor) -> float:
        """Return the root of the change, as a number."""
        root: float = float(self(x).detach()) ** 0.5
        return root


def attacks(
    step: Step,
    saliency: Differentiable,
    picture: Differentiable | None = None,
    attack: Attack | None = None,
    *,
    advance: Advance | None = None,
) -> xr.Dataset:
    """Measure how far changes of x_t move a map with the picture kept, and the picture with the map kept.

    >>> result = attacks(trace[15], contrast_map(trace[15], Closeness(), masks))     # doctest: +SKIP
    >>> result.map_agreement.sel(attack="move the map").item()                       # doctest: +SKIP
    0.41

    `picture` makes the picture from samples: None is the step's clean prediction;
    `lambda samples: trace.continued(15, samples)` is the final one. Along `attack`: "move the map", "move the picture"
    and "random", a change as large without a search. Variables: `map_change` and `picture_change`, root mean squares in
    units of the unchanged one's spread; `map_agreement`, the rank correlation with the unchanged map; `change_rms` and
    `change_maximum` of x_t in its standard deviations; `saliency` (attack, [frame,] y, x). Raises `InputError` for a
    flat map or picture.
    """
    search, sample = attack or Attack(), step.sample.detach()
    picture_of: Differentiable = picture or step.predict_original
    deltas = {
        "move the map": search(sample, saliency, picture_of, advance),
        "move the picture": search(sample, picture_of, saliency, advance),
        "random": search.random(sample, search.ball.radius * float(sample.std())),
    }
    rows = [_measured(sample, delta, saliency, picture_of) for delta in deltas.values()]
    result = xr.concat(rows, "attack").assign_coords({"attack": list(deltas)})
    return result.assign(map_agreement=with_facts(result.map_agreement, "agreement"))


def _measured(
    sample: torch.Tensor, delta: torch.Tensor, saliency: Differentiable, picture_of: Differentiable
) -> xr.Dataset:
    """Return the variables of `attacks` for one change of the sample."""
    map_change, picture_change = Change.of(saliency, sample), Change.of(picture_of, sample)
    x = sample + delta
    with _differentiable_twice():
        changed_map = _array(saliency(x))
        changes = {"map_change": map_change.root(x), "picture_change": picture_change.root(x)}
    relative = delta / sample.std()
    sizes = {"change_rms": float(relative.square().mean().sqrt()), "change_maximum": float(relative.abs().max())}
    figures = {"map_agreement": agreement(_array(map_change.before), changed_map), **changes, **sizes}
    return xr.Dataset({**figures, "saliency": (MAP_DIMS[-changed_map.ndim :], changed_map)})


def _array(maps: torch.Tensor) -> np.ndarray:
    """Return the first map as float64."""
    return maps[0].detach().double().cpu().numpy()
