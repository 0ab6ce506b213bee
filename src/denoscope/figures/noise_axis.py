"""The axis of noise levels that several variants share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from .theme import readable


@dataclass(frozen=True, eq=False)
class Axis:
    """The noise levels of all variants, noisiest first, and their places on a chart, linear in log-SNR."""

    levels: np.ndarray
    timesteps: np.ndarray

    @classmethod
    def of(cls, sequences: Sequence[xr.Dataset]) -> "Axis":
        """Return the axis with every step's level once; levels that differ by less than a thousandth are equal."""
        levels = np.concatenate([pictures["log_snr"].values for pictures in sequences]).astype(float)
        timesteps = np.concatenate([pictures["timestep"].values for pictures in sequences])
        _, chosen = np.unique(np.round(levels, 3), return_index=True)
        return cls(levels[chosen], timesteps[chosen])

    @property
    def ends(self) -> tuple[float, float]:
        """The lowest and highest finite level, half a unit around a single one."""
        finite = self.levels[np.isfinite(self.levels)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
        return (low, high) if high > low else (low - 0.5, high + 0.5)

    def across(self, log_snr: float) -> float:
        """Return the place of a level in per cent of a chart's width; infinite levels are at its ends."""
        low, high = self.ends
        return 100 * ((min(max(log_snr, low), high) - low) / (high - low))

    def places(self, pictures: xr.Dataset) -> list[int]:
        """Return for each level the place of the last step of a run that is no less noisy, or of its first step."""
        falling = np.maximum.accumulate(pictures["log_snr"].values)
        places = np.searchsorted(falling, self.levels + 1e-3, side="right") - 1
        return [int(place) for place in np.clip(places, 0, None)]

    def ticks(self) -> list[tuple[float, str]]:
        """Return (place in per cent, text) of about nine whole levels."""
        low, high = self.ends
        values = np.arange(math.ceil(low), math.floor(high) + 1)
        return [(self.across(value), readable(value)) for value in values[:: max(1, math.ceil(len(values) / 9))]]
