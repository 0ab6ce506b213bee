"""Metrics and their facts: each is a pure function first, and a row of `METRICS` says how its values are to be read."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import xarray as xr

from ..errors import InputError, did_you_mean

Function = TypeVar("Function", bound=Callable[..., float])


@dataclass(frozen=True)
class Metric:
    """What is known of a metric: the range of its values, whether higher is better, and who defined it.

    `question` is what it answers: all metrics of one question are called with the same things.
    """

    name: str
    function: Callable[..., float]
    question: str
    range: tuple[float, float]
    higher_is_better: bool
    source: str

    def __call__(self, *args: Any, **kwargs: Any) -> float:
        return self.function(*args, **kwargs)

    @property
    def facts(self) -> dict[str, Any]:
        """What a variable with values of this metric has as attributes."""
        known = {"range": self.range, "higher_is_better": self.higher_is_better, "source": self.source}
        return {"metric": self.name, "question": self.question, **known}


METRICS: dict[str, Metric] = {}


def metric(
    name: str, question: str, range: tuple[float, float], higher_is_better: bool, source: str
) -> Callable[[Function], Function]:
    """Decorator: make a function that returns one number known as a metric; the function stays as it is."""

    def enter(function: Function) -> Function:
        METRICS[name] = Metric(name, function, question, range, higher_is_better, source)
        return function

    return enter


def metrics_of(question: str) -> dict[str, Metric]:
    """The metrics that answer a question, such as "localisation".

    Raises `InputError` for a question that no metric answers, with the nearest that one does.
    """
    found = {name: known for name, known in METRICS.items() if known.question == question}
    if not found:
        asked = dict.fromkeys(known.question for known in METRICS.values())
        raise InputError(f'No metric answers the question "{question}". {did_you_mean(question, asked)}')
    return found


def with_facts(values: xr.DataArray, name: str) -> xr.DataArray:
    """Values of a metric with its facts as attributes."""
    return values.assign_attrs(METRICS[name].facts)


def over_maps(function: Callable[..., float], *maps: xr.DataArray | np.ndarray, name: str) -> xr.DataArray:
    """A function of whole maps at every place of the other dims, with the facts of a metric: dims without y and x."""
    core = [["y", "x"] if isinstance(m, xr.DataArray) else [] for m in maps]
    found = xr.apply_ufunc(function, *maps, input_core_dims=core, vectorize=True, keep_attrs=False)
    return with_facts(found, name)


def without_gaps(saliency: Any) -> np.ndarray:
    """A map (h, w) as float64; raises `InputError` where it has NaN or infinite values, or other dims."""
    values = np.asarray(saliency, dtype=np.float64)
    if values.ndim != 2:
        raise InputError(f"A map has two dims, (h, w), and this has shape {values.shape}. Give one map at a time.")
    if gaps := int((~np.isfinite(values)).sum()):
        raise InputError(
            f"The map has NaN or infinite values at {gaps} of its {values.size} positions, so they cannot be compared. "
            "Use more masks where some position was never kept, or fill the gaps: saliency.fillna(...)."
        )
    return values
