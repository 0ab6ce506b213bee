"""The check by attacks: small changes of the sample, searched for, that move the map or the picture."""

import functools

import numpy as np

from ...attributors.masks import GridMasks
from ...evaluation.attacks import Attack, Differentiable, MaximumBall, attacks, contrast_map, gradient_map
from ...evaluation.metrics import Metric
from ...recording.steps import Step
from ...targets import Closeness
from ..pictures import MethodMaps, RecordedPicture
from .registry import Measured, check

_SOURCE = "Ghorbani, Abid, Zou 2019, with the denoiser in the classifier's place"
MOST_MASKS = 32
"""The gradient goes through a prediction for every mask."""


@check(
    "attacks",
    at="middle",
    usual=False,
    measures=[
        Metric(
            "attack, map",
            "map under attack",
            "attacks",
            low=-1,
            high=1,
            higher_is_better=True,
            source=_SOURCE,
            text="Rank agreement with itself after a searched-for change of x_t by 5 % that keeps the final picture.",
        ),
        Metric(
            "attack, random",
            "map under a random change",
            "attacks",
            low=-1,
            high=1,
            higher_is_better=True,
            source=_SOURCE,
            text="The same after a change as large, not searched for.",
        ),
        Metric(
            "attack, picture",
            "picture under attack",
            "attacks",
            low=0,
            high=1,
            higher_is_better=False,
            source=_SOURCE,
            chance=0.0,
            text="Root mean square change of the final picture, in units of its spread, that a search finds while the "
            "map stays. LOWER is better: a change that the map does not show should not change the picture.",
        ),
    ],
)
def check_attacks(picture: RecordedPicture, maps: MethodMaps, steps: list[int]) -> Measured:
    """Attack the two kinds of map that are differentiable functions of the sample; nothing for the other methods."""
    step = picture.trace[steps[0]]
    saliency = _differentiable(step, maps.method, picture.settings.num_masks)
    if saliency is None:
        return {}
    final = functools.partial(picture.trace.continued, step.index)
    search = Attack(MaximumBall(0.05), iterations=20, seed=picture.subject.seed)
    result = attacks(step, saliency, final, search).expand_dims(step=steps)
    return {
        "attack, map": result.map_agreement.sel(attack="move the map"),
        "attack, random": result.map_agreement.sel(attack="random"),
        "attack, picture": result.picture_change.sel(attack="move the picture"),
    }


def _differentiable(step: Step, method: str, num_masks: int) -> Differentiable | None:
    """Return the method's map as a function of the sample; None if it is not one."""
    if method == "df-rise-contrast":
        return contrast_map(step, Closeness(), _few_masks(step, num_masks))
    return gradient_map(step) if method == "gradient" else None


def _few_masks(step: Step, num_masks: int) -> np.ndarray:
    count = min(num_masks, MOST_MASKS)
    return np.concatenate(list(GridMasks().stream(step.layout.shape, 0, count, count)))
