"""The check by infidelity: the change that a map predicts against the change of the clean prediction."""

import xarray as xr

from ...evaluation.infidelity import Probe
from ...targets import Closeness
from ..pictures import MethodMaps, RecordedPicture
from .registry import CHANGE, Measure, Measured, check

MEASURES = [
    Measure.of_metric(
        "infidelity_beyond_area",
        "infidelity beyond the area",
        "A square is taken away, and the clean prediction changes. This is the share of the change that the map does "
        "not predict, after the square’s area is taken into account. LOWER is better; 1 is a constant map.",
        chance=1.0,
    ),
    Measure.of_metric(
        "relative_infidelity",
        "relative infidelity",
        "The same without taking the area into account. LOWER is better; any map of one sign predicts what the area "
        "does.",
    ),
]


def probes_of(picture: RecordedPicture) -> dict[int, Probe]:
    """Return the perturbed samples of each step, which the maps of all methods are compared with."""
    trace = picture.trace
    return {step: Probe.of(trace[step], Closeness(), count=128) for step in picture.settings.steps_shown}


@check("infidelity", question=CHANGE, measures=MEASURES)
def check_infidelity(picture: RecordedPicture, maps: MethodMaps, steps: list[int]) -> Measured:
    """Measure both infidelities at each step."""
    probes = picture.shared(probes_of)
    rows = [probes[step].infidelity(maps.saliency.sel(step=step).values) for step in steps]
    values = {}
    for measure in MEASURES:
        values[measure.name] = xr.DataArray([row[measure.name] for row in rows], {"step": steps}, ("step",))
    return values
