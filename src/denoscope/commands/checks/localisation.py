"""The check of places: maps against the true masks of the objects."""

from ...evaluation.localisation import localisation
from ..pictures import MethodMaps, RecordedPicture
from .registry import POINT, Measure, Measured, check


@check(
    "localisation",
    question=POINT,
    needs="masks",
    measures=[
        Measure.of_metric("auroc", "AUROC", "Against the objects’ true places; 0.5 is chance.", chance=0.5, short=True),
        Measure.of_metric("average_precision", "average precision", "Chance is the objects’ share."),
        Measure.of_metric("best_iou", "IoU, best threshold"),
        Measure.of_metric("iou", "IoU, the mask’s area"),
        Measure.of_metric("pointing", "pointing game", "Is the map’s maximum on an object?"),
        Measure.of_metric("spearman", "rank correlation with the mask", chance=0.0),
        Measure.of_metric("mass_inside", "share of the positive part inside"),
    ],
)
def check_localisation(picture: RecordedPicture, maps: MethodMaps, steps: list[int]) -> Measured:
    """Compare the maps with the mask; nothing for a picture without a mask."""
    mask = picture.mask_for(maps)
    if mask is None:
        return {}
    scores = localisation(maps.saliency, mask)
    return {str(name): values for name, values in scores.items()}
