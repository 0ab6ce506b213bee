"""The one table of measures: each name with its title, range, direction, chance level and source.

A metric is a pure function first, and `metric` enters it into `METRICS`. A number that a check computes, such as the
agreement of two seeds, has no function of its own: `add` enters its facts alone. Facts travel with the numbers, as
attributes of their variable (`with_facts`).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import xarray as xr

from ..errors import InputError, did_you_mean

Function = TypeVar("Function", bound=Callable[..., float])

AGREES_WITH_MODEL = "Does the model do what the map says?"

QUESTIONS = {
    "localisation": "Does the map point at the objects?",
    "games": AGREES_WITH_MODEL,
    "infidelity": AGREES_WITH_MODEL,
    "resampling": AGREES_WITH_MODEL,
    "stability": "Is the map the same again?",
    "sanity": "Does the map depend on what it explains?",
    "attacks": "Can the map be moved without the picture, or the picture without the map?",
    "order": "Does coarse structure come before fine structure?",
}
"""The question of each group of measures. All functions of a group take the same arguments."""


@dataclass(frozen=True)
class Metric:
    """The facts about one measure.

    `low` and `high` are the ends of its scale. `higher_is_better` is None where neither direction is better.
    `chance` is its value for a map that shows nothing, None where that depends on the picture. `function` computes it;
    None for a measure of a check. Raises `InputError` for an empty scale.
    """

    name: str
    title: str
    group: str
    low: float
    high: float
    higher_is_better: bool | None
    source: str
    chance: float | None = None
    text: str = ""
    function: Callable[..., float] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise InputError(
                f'The measure "{self.name}" has a scale from {self.low:g} to {self.high:g}. Give a low end below the '
                "high end."
            )

    def __call__(self, *args: Any, **kwargs: Any) -> float:
        """Compute the metric; raises `InputError` for a measure that only a check computes."""
        if self.function is None:
            raise InputError(
                f'The measure "{self.name}" has no function of its own: a check of the group "{self.group}" computes '
                "it. Run that check."
            )
        return self.function(*args, **kwargs)

    @property
    def question(self) -> str:
        """The question that this measure answers, with the others of its group."""
        return QUESTIONS[self.group]

    @property
    def facts(self) -> dict[str, Any]:
        """The attributes of a variable with values of this measure, all plain values."""
        return {
            "metric": self.name,
            "title": self.title,
            "group": self.group,
            "question": self.question,
            "range": (self.low, self.high),
            "higher_is_better": self.higher_is_better,
            "chance": self.chance,
            "source": self.source,
            "text": self.text,
        }


METRICS: dict[str, Metric] = {}
"""Every measure by its name. Modules of `denoscope.evaluation` fill it when they are imported."""


def add(measure: Metric) -> Metric:
    """Enter a measure into `METRICS` and return it.

    Raises `InputError` for a group without a question, and where the name is there already with other facts: one name
    has one meaning.
    """
    if measure.group not in QUESTIONS:
        raise InputError(
            f'The measure "{measure.name}" is in the group "{measure.group}", which has no question. '
            f"{did_you_mean(measure.group, QUESTIONS)}"
        )
    if METRICS.get(measure.name, measure) != measure:
        raise InputError(f'The measure "{measure.name}" is there already with other facts. Give it another name.')
    METRICS[measure.name] = measure
    return measure


def metric(
    name: str,
    title: str,
    group: str,
    low: float,
    high: float,
    higher_is_better: bool | None,
    source: str,
    chance: float | None = None,
    text: str = "",
) -> Callable[[Function], Function]:
    """Return a decorator that enters a function of one number into `METRICS` and leaves the function as it is.

    The arguments are the fields of `Metric`.
    """

    def enter(function: Function) -> Function:
        add(Metric(name, title, group, low, high, higher_is_better, source, chance, text, function))
        return function

    return enter


def metric_named(name: str) -> Metric:
    """Return the facts about a measure; raises `InputError` for an unknown name, with the nearest known one."""
    if name not in METRICS:
        raise InputError(f'There is no measure "{name}". {did_you_mean(name, METRICS)}')
    return METRICS[name]


def metrics_of(group: str) -> dict[str, Metric]:
    """Return the metrics of a group that have a function, such as those of "localisation", by their names.

    Raises `InputError` for a group that has none, with the nearest one that has.
    """
    groups: dict[str, dict[str, Metric]] = {}
    for name, measure in METRICS.items():
        if measure.function is not None:
            groups.setdefault(measure.group, {})[name] = measure
    if group not in groups:
        raise InputError(f'There are no metrics of the group "{group}". {did_you_mean(group, groups)}')
    return groups[group]


def with_facts(values: xr.DataArray, name: str) -> xr.DataArray:
    """Return values of a measure with its facts as attributes; raises `InputError` for an unknown measure."""
    return values.assign_attrs(metric_named(name).facts)


MAP_DIMS = ("frame", "y", "x")
"""The dims of a map; those of a picture have no frames."""


def map_dims(saliency: xr.DataArray) -> tuple[str, ...]:
    """Return the dims of an array that are those of a map: (y, x), or (frame, y, x) for a clip."""
    return tuple(name for name in MAP_DIMS if name in saliency.dims)


def over_maps(function: Callable[..., float], *maps: xr.DataArray | np.ndarray, name: str) -> xr.DataArray:
    """Apply a function of whole maps ([frame,] y, x) at every place of the other dims: dims of `maps` without these.

    The values carry the facts of the metric `name`.
    """
    core_dims = [map_dims(each) if isinstance(each, xr.DataArray) else () for each in maps]
    values = xr.apply_ufunc(function, *maps, input_core_dims=core_dims, vectorize=True, keep_attrs=False)
    return with_facts(values, name)


def without_gaps(saliency: Any) -> np.ndarray:
    """Return a map (h, w) or (frames, h, w) as float64; raises `InputError` for other dims, NaN or infinite values."""
    values = np.asarray(saliency, dtype=np.float64)
    if values.ndim not in (2, 3):
        raise InputError(
            f"A map has the dims (h, w), or (frames, h, w) of a clip, and this has shape {values.shape}. Give one map "
            "at a time."
        )
    if gaps := int((~np.isfinite(values)).sum()):
        raise InputError(
            f"The map has NaN or infinite values at {gaps} of its {values.size} positions, so they cannot be compared. "
            "Use more masks where some position was never kept, or fill the gaps: saliency.fillna(...)."
        )
    return values
