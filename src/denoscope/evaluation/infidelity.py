"""Infidelity: does a map predict how much the target changes when the sample is changed?

Source: Yeh, Hsieh, Suggala, Inouye, Ravikumar 2019, "On the (in)fidelity and sensitivity of explanations".
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr

from ..attributors.base import Advance, choose
from ..errors import InputError
from ..recording.batches import call_portions
from ..recording.steps import Step
from ..recording.traces import Trace
from ..targets import Target
from .games import coordinates_of
from .metrics import metric, with_facts, without_gaps


@metric("infidelity", "infidelity", "infidelity", 0, float("inf"), False, "Yeh et al. 2019, definition 2.1")
def infidelity(predicted: np.ndarray, measured: np.ndarray) -> float:
    """Return E[(Iᵀφ − (f(x) − f(x − I)))²] of a map's predictions, Iᵀφ (n,), and the measured changes, (n,)."""
    return float(np.mean((np.asarray(predicted) - np.asarray(measured)) ** 2))


@metric(
    "relative_infidelity",
    "relative infidelity",
    "infidelity",
    0,
    1,
    False,
    "Yeh et al. 2019, with the optimal scale",
    text="The same without taking the area into account. LOWER is better; any map of one sign predicts what the area "
    "does.",
)
def relative_infidelity(predicted: np.ndarray, measured: np.ndarray) -> float:
    """Return the infidelity of β φ over E[(f(x) − f(x − I))²], β the `optimal_scale`: 0 predicts all of it, 1 nothing.

    NaN where nothing changes. A map that points the wrong way has 1, not the figure of its opposite. A constant map is
    well below 1 where taking more away changes more; `infidelity_beyond_area` takes that out.
    """
    predicted, measured = np.asarray(predicted), np.asarray(measured)
    changed = float(np.mean(measured**2))
    if changed == 0:
        return float("nan")
    return infidelity(optimal_scale(predicted, measured) * predicted, measured) / changed


@metric(
    "infidelity_beyond_area",
    "infidelity beyond the area",
    "infidelity",
    0,
    1,
    False,
    "Yeh et al. 2019, without the predictions of a constant map",
    chance=1.0,
    text="A square is taken away, and the clean prediction changes. This is the share of the change that the map does "
    "not predict, after the square’s area is taken into account. LOWER is better; 1 is a constant map.",
)
def infidelity_beyond_area(predicted: np.ndarray, measured: np.ndarray, area: np.ndarray) -> float:
    """Return the `relative_infidelity` of the rest of both, once a constant map's predictions `area` are taken out.

    By least squares on the area (n,), Iᵀ1. 0: the map predicts all that the area does not. 1: it predicts no more than
    a constant map of any value. NaN where the area predicts all.
    """
    return relative_infidelity(_without(area, predicted), _without(area, measured))


def _without(area: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the residual of values after least squares on the area, with rounding set to 0."""
    area, values = np.asarray(area, dtype=np.float64), np.asarray(values, dtype=np.float64)
    residual = values - area * (area @ values) / (area @ area)
    return np.where(np.abs(residual) > 1e-12 * np.abs(values).max(), residual, 0.0)


def optimal_scale(predicted: np.ndarray, measured: np.ndarray) -> float:
    """Return the β ≥ 0 that minimises E[(β Iᵀφ − (f(x) − f(x − I)))²]: E[Iᵀφ Δ] / E[(Iᵀφ)²], where that is positive."""
    square = float(np.mean(predicted**2))
    return max(float(np.mean(predicted * measured)) / square, 0.0) if square > 0 else 0.0


class Perturbation(ABC):
    """A change I that is taken off a sample, and the weights with which Iᵀφ sums a map φ."""

    @abstractmethod
    def draw(self, sample: torch.Tensor, count: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Return I (n, channels, *map) for a sample (1, channels, *map), and weights (n, channels or 1, *map).

        A map is (h, w), or (frames, h, w).
        """


@dataclass(frozen=True)
class Squares(Perturbation):
    """A square at a random place is taken away, I = M (x − fill). A map's value is the cost of taking a position away.

    For maps of contributions: Integrated Gradients, occlusion, RISE. Sides are drawn evenly from 1 position to
    `largest` of the shorter side; `fill` stands in their place. In a clip it is taken from a random stretch of frames.
    Raises `InputError` for a `largest` beyond 0 to 1.
    """

    largest: float = 0.5
    fill: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.largest <= 1:
            raise InputError(f"largest is {self.largest}. Squares reach from 0 to 1 of the shorter side; 0.5 is usual.")

    def draw(self, sample: torch.Tensor, count: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        height, width = sample.shape[-2:]
        masks = np.zeros((count, 1, *sample.shape[2:]), np.float32)
        for mask in masks[:, 0]:
            side = rng.integers(1, max(1, round(self.largest * min(height, width))) + 1)
            top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
            frames = [_stretch(number, rng) for number in mask.shape[:-2]]
            mask[(*frames, slice(top, top + side), slice(left, left + side))] = 1
        weights = torch.from_numpy(masks).to(sample)
        return weights * (sample - self.fill), weights


def _stretch(frames: int, rng: np.random.Generator) -> slice:
    """Return a random stretch of frames, of a length from 1 to all."""
    length = rng.integers(1, frames + 1)
    first = rng.integers(frames - length + 1)
    return slice(first, first + length)


@dataclass(frozen=True)
class GaussianNoise(Perturbation):
    """Noise of standard deviation `sd`. A map's value is the rate at which the target changes with the sample.

    For maps of sensitivity, (channels, *map): a gradient. A map alone counts as the same for each channel.
    """

    sd: float = 0.1

    def draw(self, sample: torch.Tensor, count: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        noise = rng.standard_normal((count, *sample.shape[1:]), dtype=np.float32)
        moved = self.sd * torch.from_numpy(noise).to(sample)
        return moved, moved


@dataclass(frozen=True, eq=False)
class Probe:
    """The measured changes of a step's target under perturbations: one probe serves every method's map.

    `weights` (n, channels or 1, [frames,] h, w) sum a map to its predictions; `measured` (n,) is f(x) − f(x − I).
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
        """Measure the target's change under `count` perturbations; None is `Squares()`.

        Raises `InputError` for a target that is a map, or fewer than 2 perturbations.
        """
        if count < 2:
            raise InputError(f"count is {count}. Give at least 2 perturbations to measure infidelity; 256 are usual.")
        score, rng = target.at(step), np.random.default_rng([seed, step.index])
        sample = step.as_maps(step.sample)
        taken, weights = (perturbation or Squares()).draw(sample, count, rng)
        before, changes = _number(score(sample)), []
        portions = call_portions(sample, batch_size, "infidelity")
        for part, scores in portions.over(count, lambda part: _number(score(sample - taken[part])), sample.device):
            changes.append(before - scores)
            if advance is not None:
                advance(part.stop - part.start)
        return cls(weights.double().cpu().numpy(), torch.cat(changes).double().cpu().numpy())

    def predicted(self, attribution: np.ndarray) -> np.ndarray:
        """Return Iᵀφ (n,) of a map φ, (*map) or (channels, *map); raises `InputError` off the sample's grid."""
        phi = np.asarray(attribution, dtype=np.float64)
        channels = [phi] if phi.ndim == self.weights.ndim - 2 else list(phi)
        phi = np.stack([without_gaps(channel) for channel in channels])
        if phi.shape[1:] != self.weights.shape[2:]:
            have, wanted = (" × ".join(map(str, shape)) for shape in (phi.shape[1:], self.weights.shape[2:]))
            raise InputError(
                f"The map is {have} and the sample {wanted}. Give the map on the sample's grid, as methods make it."
            )
        return np.asarray((self.weights * phi).sum(axis=tuple(range(1, self.weights.ndim))))

    def infidelity(self, attribution: np.ndarray) -> dict[str, float]:
        """Return `infidelity`, `relative_infidelity`, `infidelity_beyond_area` and the optimal `scale` of a map."""
        predicted, area = self.predicted(attribution), self.predicted(self._constant)
        return {
            "infidelity": infidelity(predicted, self.measured),
            "relative_infidelity": relative_infidelity(predicted, self.measured),
            "infidelity_beyond_area": infidelity_beyond_area(predicted, self.measured, area),
            "scale": optimal_scale(predicted, self.measured),
        }

    @property
    def _constant(self) -> np.ndarray:
        return np.ones(self.weights.shape[2:])


def _number(scores: torch.Tensor) -> torch.Tensor:
    """Return the scores (n,); raises `InputError` for a map for each sample."""
    if scores.ndim != 1:
        raise InputError(
            f"The target gives {tuple(scores.shape)}, a map for each sample, and infidelity is of one number. "
            "Choose a scalar target, such as Similarity(space='clean', scalar=True) or Closeness()."
        )
    return scores


def infidelities(
    trace: Trace, saliency: xr.DataArray, target: Target, perturbation: Perturbation | None = None, **options: Any
) -> xr.Dataset:
    """Compute `Probe.infidelity` of every step's map, (step, [frame,] y, x): variables with dims (step,).

    `options` are those of `Probe.of`.
    """
    steps, rows = steps_of(trace, saliency), []
    for step in steps:
        probe = Probe.of(step, target, perturbation, **options)
        rows.append(probe.infidelity(saliency.sel(step=step.index).values))
    coords = coordinates_of(steps)
    columns = {name: xr.DataArray([row[name] for row in rows], coords, ("step",)) for name in rows[0]}
    scale = columns.pop("scale")
    return xr.Dataset({name: with_facts(values, name) for name, values in columns.items()}).assign(scale=scale)


def steps_of(trace: Trace, saliency: xr.DataArray) -> list[Step]:
    """Return the steps that maps (step, [frame,] y, x) explain; raises `InputError` for maps with other dims."""
    dims = ("step", *trace[0].layout.dims)
    if set(saliency.dims) != set(dims):
        raise InputError(f"The maps have dims {saliency.dims}. Give one map a step: dims ({', '.join(dims)}).")
    return choose(trace, saliency.step.values.tolist())
