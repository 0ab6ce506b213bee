"""The check of stability: the map again, under other masks, a little noise, and at the step before."""

import dataclasses
from dataclasses import replace

import xarray as xr

from ...evaluation.metrics import Metric, metric_named
from ...evaluation.stability import neighbour_agreement, noise_agreement, seed_agreement
from ..pictures import MethodMaps, RecordedPicture
from .registry import Measured, check


def _agreement(name: str, title: str, text: str) -> Metric:
    """Return a rank agreement of maps under a name of its own, with the scale and source of `agreement`."""
    return replace(metric_named("agreement"), name=name, title=title, text=text, function=None)


@check(
    "stability",
    at="middle",
    short=["noise agreement"],
    measures=[
        _agreement("seed agreement", "other random masks", "Rank agreement under another seed."),
        _agreement("noise agreement", "a little noise", "Rank agreement with 2 % of noise added."),
        _agreement("neighbour agreement", "the step before", "Rank agreement with that step’s map."),
    ],
)
def check_stability(picture: RecordedPicture, maps: MethodMaps, steps: list[int]) -> Measured:
    """Measure the agreement with the map made again; the seed's only of a method that draws at random."""
    trace, attributor, step = picture.trace, maps.attributor, steps[0]
    noise = noise_agreement(attributor, trace, steps, draws=1, seed=picture.subject.seed, own=maps.saliency)
    agreements = {"noise agreement": noise.mean("draw")}
    if step > 0:
        before = attributor(trace, [step - 1]).saliency
        both = xr.concat([before, maps.saliency.sel(step=steps)], "step")
        agreements["neighbour agreement"] = neighbour_agreement(both)
    options = {field.name for field in dataclasses.fields(attributor)}  # type: ignore[arg-type]
    if "seed" in options:
        agreements["seed agreement"] = seed_agreement(attributor, trace, steps, seeds=(0, 1)).mean("pair")
    return agreements
