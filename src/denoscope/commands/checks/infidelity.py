"""The check by infidelity: the change that a map predicts against the change of the clean prediction."""

import xarray as xr

from ...evaluation.infidelity import Probe
from ...targets import Closeness
from ..pictures import MethodMaps, RecordedPicture
from .registry import Measured, check

MEASURES = ["infidelity_beyond_area", "relative_infidelity"]


def probes_of(picture: RecordedPicture) -> dict[int, Probe]:
    """Return the perturbed samples of each step, which the maps of all methods are compared with."""
    trace = picture.trace
    return {step: Probe.of(trace[step], Closeness(), count=128) for step in picture.settings.steps_shown}


@check("infidelity", measures=MEASURES)
def check_infidelity(picture: RecordedPicture, maps: MethodMaps, steps: list[int]) -> Measured:
    """Measure both infidelities at each step."""
    probes = picture.shared(probes_of)
    rows = [probes[step].infidelity(maps.saliency.sel(step=step).values) for step in steps]
    values = {}
    for measure in MEASURES:
        values[measure] = xr.DataArray([row[measure] for row in rows], {"step": steps}, ("step",))
    return values
