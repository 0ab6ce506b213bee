"""The check by other noise: the final picture after the noise of the map's highest places is drawn again."""

from ...evaluation.resampling import Distance, Resampling, WithinMask, resampling, root_mean_square
from ..pictures import MethodMaps, RecordedPicture
from .registry import CHANGE, Measure, Measured, check


@check(
    "resampling",
    question=CHANGE,
    measures=[
        Measure.of_metric(
            "advantage",
            "resampling, whole picture",
            "Does the picture change more when the map’s highest places get other noise than when others do?",
            name="resampling, picture",
            chance=0.0,
        ),
        Measure.of_metric(
            "advantage",
            "resampling, on the object",
            "The same, inside the mask.",
            name="resampling, object",
            chance=0.0,
            short=True,
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
