"""Which similarity should DF-RISE compare predictions by? The ablation of Park, Ju, Lee 2024, figure 5."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import xarray as xr

from ..attributors.base import Advance, choose
from ..attributors.estimators import Estimator, MaskMoments, Surrogates, kept_mean, kept_ratio
from ..attributors.masks import BalancedMasks
from ..errors import InputError
from ..recording.traces import Step, Trace
from ..targets import FeatureCloseness, PredictionTarget, Similarity
from ..vision.encoders import Features
from ..vision.similarity import SIMILARITIES
from .games import batch_for, coordinates_of

PUBLISHED = "structure and cosine best, contrast worst"
"""What the paper finds."""


def similarities(encoder: Features) -> dict[str, PredictionTarget]:
    """The six of figure 5: structure, contrast, luminance, their product, cosine, and features of decoded pictures."""
    return {**{name: Similarity(name) for name in SIMILARITIES}, "features": FeatureCloseness(encoder)}


def ablation(
    trace: Trace,
    targets: Mapping[str, PredictionTarget],
    steps: Sequence[int] | None = None,
    *,
    num_masks: int = 500,
    seed: int = 0,
    batch_size: int | None = None,
    advance: Advance | None = None,
) -> xr.Dataset:
    """DF-RISE's paper map under each of several similarities, from one set of masks and one set of predictions.

    >>> maps = ablation(trace, similarities(load_encoder()), steps=[6, 15, 24])          # doctest: +SKIP
    >>> scores = {name: games(trace, maps.sel(similarity=name), load_encoder())          # doctest: +SKIP
    ...           for name in maps.similarity.values}

    The same as `DFRise(num_masks, target=target, seed=seed)` for each target, at the price of one of them. A map of
    scores is summed up as in the paper's variant; one number a mask, such as a feature distance, as in RISE:
    Σ M s / Σ M (`kept_ratio`). `saliency` and `standard_error` have dims (similarity, step, y, x).
    """
    if not targets or num_masks < 4:
        raise InputError(
            f"An ablation of {len(targets)} similarities with {num_masks} masks was asked for. Give at least one "
            "similarity, such as evaluation.similarities(encoder), and at least 4 masks; 500 are usual."
        )
    chosen: list[Step] = choose(trace, steps)
    told = advance or (lambda done: None)
    found = [_explained(step, targets, num_masks, seed, batch_size, told) for step in chosen]
    values = np.stack(found, axis=2)
    dims, coords = ("similarity", "step", "y", "x"), {"similarity": list(targets), **coordinates_of(chosen)}
    attrs = {"title": "DF-RISE under several similarities", "published": PUBLISHED, "num_masks": num_masks}
    variables = {"saliency": (dims, values[0]), "standard_error": (dims, values[1])}
    return xr.Dataset(variables, coords, {**attrs, "seed": seed})


@torch.no_grad()
def _explained(
    step: Step,
    targets: Mapping[str, PredictionTarget],
    num_masks: int,
    seed: int,
    batch_size: int | None,
    advance: Advance,
) -> np.ndarray:
    """Maps and standard errors of a step, (2, targets, h, w)."""
    height, width = step.sample.shape[-2:]
    judges = [target.of(step) for target in targets.values()]
    known = Surrogates.of(step, 0.5)
    moments = [MaskMoments.zero(height, width, known)] * len(judges)
    scalar = [False] * len(judges)
    for masks in BalancedMasks().stream(height, width, seed, num_masks, batch_size or batch_for(step)):
        samples = step.sample * torch.from_numpy(masks).to(step.sample)[:, None]
        outputs, surrogates = step.predict(samples), known(masks)
        scores = [judge(samples, outputs).double().cpu().numpy() for judge in judges]
        scalar = [score.ndim == 1 for score in scores]
        moments = [m.with_masks(masks, score, surrogates) for m, score in zip(moments, scores, strict=True)]
        advance(len(masks))
    estimates = [_estimator(one)(m) for m, one in zip(moments, scalar, strict=True)]
    return np.stack(estimates, axis=1)


def _estimator(scalar: bool) -> Estimator:
    return kept_ratio if scalar else kept_mean
