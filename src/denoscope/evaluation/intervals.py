"""Means with bootstrap intervals over scenes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from ..errors import InputError


@dataclass(frozen=True)
class Interval:
    """A mean over scenes with its interval; prints as `0.91 [0.88, 0.93]`."""

    mean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"


def bootstrap(values: Sequence[float] | np.ndarray, level: float = 0.95, seed: int = 0) -> Interval:
    """The mean of one value per scene, with its percentile bootstrap interval (10,000 resamples of the scenes).

    Raises `InputError` for fewer than 2 finite values.
    """
    finite = np.asarray(values, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    if len(finite) < 2:
        raise InputError(
            f"An interval over scenes needs at least 2 finite values; there are {len(finite)}. Add scenes."
        )
    if np.ptp(finite) == 0:
        return Interval(float(finite[0]), float(finite[0]), float(finite[0]), len(finite))
    result = stats.bootstrap(
        (finite,),
        np.mean,
        confidence_level=level,
        n_resamples=10_000,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = result.confidence_interval
    return Interval(float(finite.mean()), float(low), float(high), len(finite))
