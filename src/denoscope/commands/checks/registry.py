"""The registry of checks: `@check(...)` makes a function a check, with all facts about its measures.

The names of the checks, the usual ones, the checks that a model allows, the measures and the leaderboard follow from
it. A new check is one module of this folder, imported in its `__init__`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import xarray as xr

from ...errors import InputError
from ...evaluation.metrics import QUESTIONS, Metric, add, metric_named
from ...report.leaderboard import MeasureFacts
from ..pictures import MethodMaps, RecordedPicture

Need = Literal["masks", "encoder"]

REASONS_TO_SKIP: dict[Need, str] = {
    "masks": "the places of the objects are not known without --masks FOLDER",
    "encoder": "the distances of pictures are measured by a vision model, --encoder",
}
"""Why a check is skipped if what it needs is not there."""

Measured = Mapping[str, xr.DataArray]
"""By the name of a measure, its values at the steps that were checked (step,)."""

CheckFunction = Callable[[RecordedPicture, MethodMaps, list[int]], Measured]
"""Measures a method's maps of a picture at these steps; without the measures that do not apply to the method."""

Derivation = Callable[[xr.DataArray], Measured]
"""Further measures from the scores of all methods, (measure, scene, attributor, step)."""


@dataclass(frozen=True)
class Check:
    """A check of a method's maps: its measures, and the steps it looks at. Its name is the group of its measures.

    The `short` measures stand in the terminal's table. `needs` has to be given for other models than the bundled one.
    Checks that are not `usual` run only when they are named. `derive` computes further measures from the scores of all
    pictures and methods.
    """

    name: str
    function: CheckFunction
    measures: tuple[Metric, ...]
    short: tuple[str, ...] = ()
    at: Literal["every step", "middle"] = "every step"
    needs: Need | None = None
    usual: bool = True
    derive: Derivation | None = None

    def scores(self, picture: RecordedPicture, maps: MethodMaps) -> Measured:
        """Measure a method's maps at the steps of this check."""
        settings = picture.settings
        steps = [settings.middle] if self.at == "middle" else list(settings.steps_shown)
        return self.function(picture, maps, steps)

    def refuse_unknown(self, names: Sequence[str]) -> None:
        """Raise `InputError` for a measure that this check does not declare, and so has no facts of."""
        declared = [measure.name for measure in self.measures]
        for name in names:
            if name not in declared:
                raise InputError(
                    f'The check "{self.name}" gave the measure "{name}", which it does not declare. Its measures are: '
                    f"{', '.join(declared)}. Add a Metric to its @check(...)."
                )

    def facts(self) -> dict[str, MeasureFacts]:
        """Return what the leaderboard says of each measure."""
        facts = {}
        for measure in self.measures:
            facts[measure.name] = MeasureFacts(
                title=measure.title,
                question=measure.question,
                low=measure.low,
                high=measure.high,
                higher_is_better=measure.higher_is_better,
                chance=measure.chance,
                text=measure.text,
                short=measure.name in self.short,
            )
        return facts


CHECKS: dict[str, Check] = {}
"""The checks by their names, in the order in which they run."""


def check(
    name: str,
    *,
    measures: Sequence[Metric | str],
    question: str | None = None,
    short: Sequence[str] = (),
    at: Literal["every step", "middle"] = "every step",
    needs: Need | None = None,
    usual: bool = True,
    derive: Derivation | None = None,
) -> Callable[[CheckFunction], CheckFunction]:
    """Return a decorator that registers a function as a check; the fields are those of `Check`.

    `measures` are facts of new measures, or names of measures of `denoscope.evaluation`. A check that is none of the
    groups of `evaluation.metrics.QUESTIONS` gives its `question`. Raises `InputError` for a check or a measure whose
    name is taken, and for the name of a measure that is not there.
    """
    if question is not None:
        QUESTIONS.setdefault(name, question)

    def enter(function: CheckFunction) -> CheckFunction:
        if name in CHECKS:
            raise InputError(f'There is a check "{name}" already. Give it another name.')
        facts = tuple(metric_named(each) if isinstance(each, str) else add(each) for each in measures)
        CHECKS[name] = Check(name, function, facts, tuple(short), at, needs, usual, derive)
        return function

    return enter


def usual_checks() -> tuple[str, ...]:
    """Return the names of the checks that run when none are named."""
    return tuple(check.name for check in CHECKS.values() if check.usual)


def measure_facts() -> dict[str, MeasureFacts]:
    """Return the facts of every measure there is, in the order of the leaderboard."""
    facts: dict[str, MeasureFacts] = {}
    for each in CHECKS.values():
        facts |= each.facts()
    return facts
