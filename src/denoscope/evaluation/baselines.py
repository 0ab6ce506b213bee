"""Simple maps without a method, beside which a method's numbers are read.

Each is a function from a step to a map ([frames,] h, w) on the sample's grid; `Baseline` makes it a method like any
other.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
import xarray as xr

from ..attributors.base import Advance, Attributor, StepResult
from ..recording.steps import Step
from ..recording.traces import Trace
from ..targets import Score, trace_step
from ..vision.clips import averaged_to
from ..vision.frames import Frame
from .localisation import centre_prior
from .stages import edge_map

MapOf = Callable[[Step], np.ndarray]

Ranking = TypeVar("Ranking", bound=MapOf)

BASELINES: dict[str, MapOf] = {}


def baseline(name: str) -> Callable[[Ranking], Ranking]:
    """Return a decorator that enters a function from a step to a map into `BASELINES`, under its name in tables."""

    def enter(map_of: Ranking) -> Ranking:
        BASELINES[name] = map_of
        return map_of

    return enter


@dataclass(frozen=True)
class Baseline(Attributor):
    """A baseline as a method: `Baseline(BASELINES["|x_t|"])(trace, steps)` is a dataset with `saliency`."""

    map_of: MapOf

    reading = "A map that asks nothing of any method: what a method's map has to be better than."

    @property
    def title(self) -> str:  # type: ignore[override]
        names = [name for name, function in BASELINES.items() if function is self.map_of]
        return f"Baseline: {names[0] if names else getattr(self.map_of, '__name__', 'its own')}"

    def explain(self, step: Step | Frame, advance: Advance) -> StepResult:
        saliency = self.map_of(trace_step(step))
        advance(1)
        return {"saliency": saliency}


@baseline("random")
def random_map(step: Step, seed: int = 0) -> np.ndarray:
    """Return random values, which follow from `seed` and the step's index alone."""
    return np.random.default_rng([seed, step.index]).random(step.layout.shape)


@baseline("constant")
def constant_map(step: Step) -> np.ndarray:
    """Return a map that is the same everywhere; a metric's value of it is that metric's chance level."""
    return np.zeros(step.layout.shape)


@baseline("centre prior")
def centre_map(step: Step) -> np.ndarray:
    """Return a map that is high in the middle, where things tend to be: the same in every frame."""
    return np.broadcast_to(centre_prior(*step.grid), step.layout.shape)


@baseline("|x_t|")
def magnitude_map(step: Step) -> np.ndarray:
    """Return the length of the sample's channels at each position."""
    return _length(step.as_maps(step.sample))


@baseline("gradient")
def gradient_magnitude(step: Step, score: Score | None = None) -> np.ndarray:
    """Return |∂y/∂x_t|, the length over channels, of a score y (n,) of samples; None is the clean prediction's sum.

    Source: Simonyan, Vedaldi, Zisserman 2014.
    """
    with torch.enable_grad():
        x = step.as_maps(step.sample).detach().clone().requires_grad_()
        y = step.predict_original(step.as_samples(x)) if score is None else score(x)
        (gradient,) = torch.autograd.grad(y.sum(), x)
    return _length(gradient)


@baseline("edges")
@torch.no_grad()
def clean_edges(step: Step) -> np.ndarray:
    """Return the `edge_map` of the clean prediction's picture, averaged down to the sample's grid."""
    return _on_sample_grid([edge_map(picture) for picture in _pictures(step)], step)


@baseline("clean colours")
@torch.no_grad()
def clean_colours(step: Step) -> np.ndarray:
    """Return how far the clean prediction's colours are from their median, the colour of a plain background."""
    return _on_sample_grid([_colourfulness(picture) for picture in _pictures(step)], step)


def _colourfulness(picture: np.ndarray) -> np.ndarray:
    """Return the distance of a picture's colours (height, width, 3) from their median, (height, width)."""
    return np.asarray(np.abs(picture - np.median(picture, axis=(0, 1))).sum(axis=-1))


# Baselines of several steps of a trace, as an array.


def random_ranking(trace: Trace, steps: Sequence[int] | None = None, seed: int = 0) -> xr.DataArray:
    """Return `random_map` at every step: (step, [frame,] y, x)."""
    return _maps(partial(random_map, seed=seed), trace, steps)


def centre_ranking(trace: Trace, steps: Sequence[int] | None = None) -> xr.DataArray:
    """Return `centre_prior` at every step: (step, [frame,] y, x) on the sample's grid."""
    return _maps(centre_map, trace, steps)


def sample_magnitude(trace: Trace, steps: Sequence[int] | None = None) -> xr.DataArray:
    """Return |x_t|, the length of the sample's channels at each position: (step, [frame,] y, x)."""
    return _maps(magnitude_map, trace, steps)


def _maps(map_of: MapOf, trace: Trace, steps: Sequence[int] | None) -> xr.DataArray:
    saliency: xr.DataArray = Baseline(map_of)(trace, steps).saliency
    return saliency


def _length(values: torch.Tensor) -> np.ndarray:
    """Return the length of the channels of (1, channels, [frames,] h, w), as ([frames,] h, w)."""
    return np.asarray(torch.linalg.vector_norm(values[0].detach().double(), dim=0).cpu().numpy())


def _pictures(step: Step) -> np.ndarray:
    """Return the clean prediction's picture, or its frames: (pictures, height, width, 3) in [0, 1]."""
    clean = step.clean()[0].movedim(0, -1).double().cpu().numpy()
    frames = clean if clean.ndim == 4 else clean[None]
    return np.broadcast_to(frames, (*frames.shape[:3], 3))


def _on_sample_grid(values: Sequence[np.ndarray], step: Step) -> np.ndarray:
    """Average the values (height, width) of a picture, or of each frame, down to the sample's grid."""
    maps = torch.from_numpy(np.ascontiguousarray(values if step.layout.frames is not None else values[0]))
    return np.asarray(averaged_to(maps[None], step.layout.shape)[0].numpy())
