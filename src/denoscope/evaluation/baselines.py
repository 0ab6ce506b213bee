"""Rankings that know nothing of what the denoiser does, beside which a method's numbers mean something."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import xarray as xr

from ..attributors.base import choose
from ..traces import Step, Trace
from .faithfulness import coordinates_of
from .localisation import centre_prior


def random_ranking(trace: Trace, steps: Sequence[int] | None = None, seed: int = 0) -> xr.DataArray:
    """Positions in random order, another one at every step: (step, y, x) on the sample's grid.

    A step's order follows from `seed` and the step alone, whatever other steps are asked for.
    """
    return _each(trace, steps, lambda step: np.random.default_rng([seed, step.index]).random(_grid(step)))


def centre_ranking(trace: Trace, steps: Sequence[int] | None = None) -> xr.DataArray:
    """`centre_prior` at every step: (step, y, x) on the sample's grid."""
    return _each(trace, steps, lambda step: centre_prior(*_grid(step)))


def sample_magnitude(trace: Trace, steps: Sequence[int] | None = None) -> xr.DataArray:
    """|x_t|, the length of the sample's channels at each position: (step, y, x)."""
    return _each(trace, steps, _magnitude)


def _magnitude(step: Step) -> np.ndarray:
    return torch.linalg.vector_norm(step.sample[0].double(), dim=0).cpu().numpy()


def _grid(step: Step) -> tuple[int, int]:
    return step.sample.shape[-2], step.sample.shape[-1]


def _each(trace: Trace, steps: Sequence[int] | None, map_of: Callable[[Step], np.ndarray]) -> xr.DataArray:
    chosen: list[Step] = choose(trace, steps)
    maps = np.stack([map_of(step) for step in chosen])
    return xr.DataArray(maps, coordinates_of(chosen), ("step", "y", "x"), name="saliency")


BASELINES: dict[str, Callable[[Trace, Sequence[int] | None], xr.DataArray]] = {
    "random": random_ranking,
    "centre prior": centre_ranking,
    "|x_t|": sample_magnitude,
}
"""By the names that tables have for them."""
