"""The check by other noise: the final picture after the noise of the map's highest places is drawn again."""

from ...evaluation.metrics import Metric
from ...evaluation.resampling import Distance, Resampling, WithinMask, resampling, root_mean_square
from ..pictures import MethodMaps, RecordedPicture
from .registry import Measured, check

_SOURCE = "an intervention of Denoscope's own"


@check(
    "resampling",
    short=["resampling, object"],
    measures=[
        Metric(
            "resampling, picture",
            "resampling, whole picture",
            "resampling",
            low=-1,
            high=1,
            higher_is_better=True,
            source=_SOURCE,
            chance=0.0,
            text="Does the picture change more when the map’s highest places get other noise than when others do?",
        ),
        Metric(
            "resampling, object",
            "resampling, on the object",
            "resampling",
            low=-1,
            high=1,
            higher_is_better=True,
            source=_SOURCE,
            chance=0.0,
            text="The same, inside the mask.",
        ),
    ],
)
def check_resampling(picture: RecordedPicture, maps: MethodMaps, steps: list[int]) -> Measured:
    """Draw one other noise; the seed is the picture's, as the intervals are over pictures."""
    distances: dict[str, Distance] = {"resampling, picture": root_mean_square}
    mask = picture.mask_for(maps)
    if mask is not None:
        distances["resampling, object"] = WithinMask(mask)
    noise = Resampling(draws=1, seed=picture.subject.seed)
    advantage = resampling(picture.trace, maps.saliency, distances, noise).advantage
    return {name: advantage.sel(distance=name) for name in distances}
