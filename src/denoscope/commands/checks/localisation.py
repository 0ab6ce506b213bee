"""The check of places: maps against the true masks of the objects."""

from ...evaluation.localisation import localisation
from ..pictures import MethodMaps, RecordedPicture
from .registry import Measured, check


@check(
    "localisation",
    needs="masks",
    measures=["auroc", "average_precision", "best_iou", "iou", "pointing", "spearman", "mass_inside"],
    short=["auroc"],
)
def check_localisation(picture: RecordedPicture, maps: MethodMaps, steps: list[int]) -> Measured:
    """Compare the maps with the mask; nothing for a picture without a mask."""
    mask = picture.mask_for(maps)
    if mask is None:
        return {}
    scores = localisation(maps.saliency, mask)
    return {str(name): values for name, values in scores.items()}
