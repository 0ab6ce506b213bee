"""Does the model do what a map says of it? By changing the sample and looking.

Sources: Yeh, Hsieh, Suggala, Inouye, Ravikumar 2019, "On the (in)fidelity and sensitivity of explanations"; resampling
the noise of a region is an intervention of our own."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr

from ..attributors.base import Advance, choose
from ..errors import InputError
from ..recording.traces import Step, Trace
from ..targets import Target
from .games import coordinates_of
from .metrics import metric, with_facts, without_gaps

# Infidelity: does the map foretell by how much the target changes?


@metric("infidelity", "infidelity", (0, float("inf")), False, "Yeh et al. 2019, definition 2.1")
def infidelity(foretold: np.ndarray, measured: np.ndarray) -> float:
    """E[(Iᵀφ − (f(x) − f(x − I)))²] of what a map foretells, Iᵀφ (n,), and what is measured, (n,)."""
    return float(np.mean((np.asarray(foretold) - np.asarray(measured)) ** 2))


@metric("relative_infidelity", "infidelity", (0, 1), False, "Yeh et al. 2019, with the optimal scale")
def relative_infidelity(foretold: np.ndarray, measured: np.ndarray) -> float:
    """Infidelity of β φ over E[(f(x) − f(x − I))²], β the `optimal_scale`: 0 foretells all of it, 1 nothing.

    NaN where nothing changes. A map that points the wrong way has 1, not the figure of its opposite. A map that is the
    same everywhere is well below 1 where taking more away changes more; `infidelity_beyond_area` takes that out.
    """
    foretold, measured = np.asarray(foretold), np.asarray(measured)
    changed = float(np.mean(measured**2))
    if changed == 0:
        return float("nan")
    return infidelity(optimal_scale(foretold, measured) * foretold, measured) / changed


@metric("infidelity_beyond_area", "infidelity", (0, 1), False, "Yeh et al. 2019, without what a constant map foretells")
def infidelity_beyond_area(foretold: np.ndarray, measured: np.ndarray, area: np.ndarray) -> float:
    """`relative_infidelity` of what is left of both once what a constant map foretells, `area`, is taken out.

    By least squares on the area (n,), Iᵀ1. 0: the map foretells all that the area does not; 1: it foretells nothing
    more than a constant one, whatever that one's value. NaN where the area says all.
    """
    return relative_infidelity(_without(area, foretold), _without(area, measured))


def _without(area: np.ndarray, values: np.ndarray) -> np.ndarray:
    """What least squares on the area leaves of values, rounding cleared away."""
    area, values = np.asarray(area, dtype=np.float64), np.asarray(values, dtype=np.float64)
    left = values - area * (area @ values) / (area @ area)
    return np.where(np.abs(left) > 1e-12 * np.abs(values).max(), left, 0.0)


def optimal_scale(foretold: np.ndarray, measured: np.ndarray) -> float:
    """β ≥ 0 that minimises E[(β Iᵀφ − (f(x) − f(x − I)))²]: E[Iᵀφ Δ] / E[(Iᵀφ)²], where that is positive."""
    square = float(np.mean(foretold**2))
    return max(float(np.mean(foretold * measured)) / square, 0.0) if square > 0 else 0.0


class Perturbation(ABC):
    """What is taken off a sample, I, and how much of each position that is: what Iᵀφ sums φ with."""

    @abstractmethod
    def draw(self, sample: torch.Tensor, count: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """I (n, channels, h, w) for a sample (1, channels, h, w), and weights (n, channels or 1, h, w)."""


@dataclass(frozen=True)
class Squares(Perturbation):
    """A square at a random place is taken away, I = M (x − fill); a map's value is what taking a position away costs.

    For maps of contributions: Integrated Gradients, occlusion, RISE. Sides are drawn evenly from 1 position to
    `largest` of the shorter side; `fill` is what stands in their place.
    """

    largest: float = 0.5
    fill: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.largest <= 1:
            raise InputError(f"largest is {self.largest}. Squares reach from 0 to 1 of the shorter side; 0.5 is usual.")

    def draw(self, sample: torch.Tensor, count: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        height, width = sample.shape[-2:]
        masks = np.zeros((count, 1, height, width), np.float32)
        for mask in masks[:, 0]:
            side = rng.integers(1, max(1, round(self.largest * min(height, width))) + 1)
            top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
            mask[top : top + side, left : left + side] = 1
        weights = torch.from_numpy(masks).to(sample)
        return weights * (sample - self.fill), weights


@dataclass(frozen=True)
class GaussianNoise(Perturbation):
    """Noise of standard deviation `sd`; a map's value is the rate at which the target changes with the sample.

    For maps of sensitivity, (channels, h, w): a gradient. One of (h, w) is taken to be the same for each channel.
    """

    sd: float = 0.1

    def draw(self, sample: torch.Tensor, count: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        noise = rng.standard_normal((count, *sample.shape[1:]), dtype=np.float32)
        moved = self.sd * torch.from_numpy(noise).to(sample)
        return moved, moved


@dataclass(frozen=True, eq=False)
class Probe:
    """What a target of a step was measured to do under perturbations: one probe serves every method's map.

    `weights` (n, channels or 1, h, w) is what a map's prediction is summed with, `measured` (n,) is f(x) − f(x − I).
    """

    weights: np.ndarray
    measured: np.ndarray

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        step: Step,
        target: Target,
        perturbation: Perturbation | None = None,
        *,
        count: int = 256,
        seed: int = 0,
        batch_size: int = 16,
        advance: Advance | None = None,
    ) -> "Probe":
        """Measure the target's change under `count` perturbations, `Squares` unless given.

        Raises `InputError` for a target that is a map, or fewer than 2 perturbations.
        """
        if count < 2:
            raise InputError(f"An infidelity of {count} perturbations was asked for. At least 2; 256 are usual.")
        score, rng = target.at(step), np.random.default_rng([seed, step.index])
        taken, weights = (perturbation or Squares()).draw(step.sample, count, rng)
        before, changes = _number(score(step.sample)), []
        for portion in taken.split(batch_size):
            changes.append(before - _number(score(step.sample - portion)))
            if advance is not None:
                advance(len(portion))
        return cls(weights.double().cpu().numpy(), torch.cat(changes).double().cpu().numpy())

    def foretold(self, attribution: np.ndarray) -> np.ndarray:
        """Iᵀφ (n,) of a map φ, (h, w) or (channels, h, w) on the sample's grid."""
        phi = np.asarray(attribution, dtype=np.float64)
        phi = without_gaps(phi)[None] if phi.ndim == 2 else np.stack([without_gaps(channel) for channel in phi])
        if phi.shape[1:] != self.weights.shape[2:]:
            raise InputError(
                f"The map is {phi.shape[1]} × {phi.shape[2]} and the sample {self.weights.shape[2]} × "
                f"{self.weights.shape[3]}. Give the map on the sample's grid, as methods make it."
            )
        return (self.weights * phi).sum(axis=(1, 2, 3))

    def infidelity(self, attribution: np.ndarray) -> dict[str, float]:
        """`infidelity`, `relative_infidelity`, `infidelity_beyond_area` and the optimal `scale` of a map."""
        foretold = self.foretold(attribution)
        return {
            "infidelity": infidelity(foretold, self.measured),
            "relative_infidelity": relative_infidelity(foretold, self.measured),
            "infidelity_beyond_area": infidelity_beyond_area(foretold, self.measured, self.foretold(self._constant)),
            "scale": optimal_scale(foretold, self.measured),
        }

    @property
    def _constant(self) -> np.ndarray:
        return np.ones(self.weights.shape[2:])


def _number(scores: torch.Tensor) -> torch.Tensor:
    if scores.ndim != 1:
        raise InputError(
            f"The target gives {tuple(scores.shape)}, a map for each sample, and infidelity is of one number. "
            "Choose a scalar target, such as Similarity(space='clean', scalar=True) or Closeness()."
        )
    return scores


def infidelities(
    trace: Trace, saliency: xr.DataArray, target: Target, perturbation: Perturbation | None = None, **options: Any
) -> xr.Dataset:
    """`Probe.infidelity` of every step's map, (step, y, x): variables with dims (step,). Options are `Probe.of`'s."""
    steps, found = steps_of(trace, saliency), []
    for step in steps:
        found.append(Probe.of(step, target, perturbation, **options).infidelity(saliency.sel(step=step.index).values))
    coords = coordinates_of(steps)
    columns = {name: xr.DataArray([row[name] for row in found], coords, ("step",)) for name in found[0]}
    return xr.Dataset({n: v if n == "scale" else with_facts(v, n) for n, v in columns.items()})


def steps_of(trace: Trace, saliency: xr.DataArray) -> list[Step]:
    """The steps that maps (step, y, x) are of."""
    if set(saliency.dims) != {"step", "y", "x"}:
        raise InputError(f"The maps have dims {saliency.dims}. Give one map a step: dims (step, y, x).")
    return choose(trace, saliency.step.values.tolist())
