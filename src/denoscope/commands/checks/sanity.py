"""The sanity check: the map when the weights of the denoiser are random, and under another prompt."""

import numpy as np
import xarray as xr

from ...criteria import FAILED, PASSED, UNSURE
from ...evaluation.metrics import Metric
from ...evaluation.sanity import has_fallen, prompt_randomisation, stages_of, weight_randomisation
from ...recording.traces import Trace
from ..pictures import MethodMaps, RecordedPicture, trace_of
from .registry import Measured, check

_SOURCE = "Adebayo et al. 2018"


def agreement_above_chance(scores: xr.DataArray) -> Measured:
    """Return the agreement, of either sign, above the random level when all weights are random."""
    remaining = abs(scores.sel(measure="weights, all", drop=True)) - scores.sel(measure="chance", drop=True)
    return {"weights, above chance": remaining}


def verdicts(scores: xr.Dataset) -> dict[str, str]:
    """Return whether each method passes: its own map is gone when all weights are random (`evaluation.has_fallen`).

    A method that was checked in fewer than two scenes is not decided. Empty if the check was not made.
    """
    if "weights, all" not in scores["measure"].values:
        return {}
    words = {True: PASSED, False: FAILED, None: UNSURE}
    decided = {}
    for name in scores["attributor"].values.tolist():
        of_method = scores["score"].sel(attributor=name)
        agreement = of_method.sel(measure="weights, all").mean("step", skipna=True).values
        level = of_method.sel(measure="chance").mean("step", skipna=True).values
        enough = np.isfinite(agreement - level).sum() >= 2
        decided[name] = words[has_fallen(agreement, level) if enough else None]
    return decided


def other_trace(picture: RecordedPicture) -> Trace:
    """Record the run of the picture's other prompt."""
    return trace_of(picture.settings, picture.subject.other, picture.subject.seed)


@check(
    "sanity",
    at="middle",
    derive=agreement_above_chance,
    short=["weights, above chance"],
    measures=[
        Metric(
            "weights, above chance",
            "left when all weights are random",
            "sanity",
            low=-0.5,
            high=1,
            higher_is_better=False,
            source=_SOURCE,
            chance=0.0,
            text="Rank agreement with the map’s own, of either sign, above the random level: LOWER is better. The "
            "check is passed where the whole interval is below 0.1, and failed where it is above 0 and reaches beyond "
            "that.",
        ),
        Metric(
            "weights, output",
            "random last layer",
            "sanity",
            low=-1,
            high=1,
            higher_is_better=None,
            source=_SOURCE,
            text="Rank agreement with the map’s own.",
        ),
        Metric(
            "weights, half",
            "half of the weights random",
            "sanity",
            low=-1,
            high=1,
            higher_is_better=None,
            source=_SOURCE,
        ),
        Metric(
            "weights, all",
            "all weights random",
            "sanity",
            low=-1,
            high=1,
            higher_is_better=None,
            source=_SOURCE,
            chance=0.0,
            text="Should fall to the random level.",
        ),
        Metric(
            "chance",
            "random level",
            "sanity",
            low=0,
            high=1,
            higher_is_better=None,
            source=_SOURCE,
            text="Agreement of the two maps by chance, of either sign: the mean over all shifts of one of them.",
        ),
        Metric(
            "another prompt",
            "another prompt",
            "sanity",
            low=-1,
            high=1,
            higher_is_better=None,
            source=_SOURCE,
            text="Rank agreement under another prompt.",
        ),
    ],
)
def check_sanity(picture: RecordedPicture, maps: MethodMaps, steps: list[int]) -> Measured:
    """Randomise the last layer, half of the weights and all of them; change the prompt of a method without words."""
    trace, attributor, saliency = picture.trace, maps.attributor, maps.saliency
    stages = list(stages_of(trace, steps[0]))
    chosen = list(dict.fromkeys([stages[0], stages[len(stages) // 2], stages[-1]]))
    random = weight_randomisation(attributor, trace, steps, stages=chosen, seed=picture.subject.seed, own=saliency)
    values = {}
    for part, stage in zip(("output", "half", "all"), chosen, strict=False):
        values[f"weights, {part}"] = random.agreement.sel(stage=stage)
    values["chance"] = random.random_level.sel(stage=stages[-1])
    if maps.needs != "words":
        other = picture.shared(other_trace)
        values["another prompt"] = prompt_randomisation(attributor, trace, other, steps, own=saliency).agreement
    return values
