"""DF-RISE: which regions the denoiser depends on at a step, by masking the sample.

Sources: Park, Ju, Lee 2024 (arXiv 2402.10404), DF-RISE; Petsiuk, Das, Saenko 2018, RISE.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch

from ..errors import InputError, did_you_mean
from ..recording.batches import samples_at_once
from ..recording.traces import Step
from ..targets import Score, Similarity, Target
from .base import Advance, Attributor, options_of, register
from .estimators import Estimator, MaskMoments, Surrogates, Tally, keep_contrast, kept_mean, plain_sum
from .masks import BalancedMasks, GridMasks, Masks, PixelMasks

FillName = Literal["zero", "mean"]
FILLS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "zero": torch.zeros_like,
    "mean": lambda sample: sample.mean(dim=(-2, -1), keepdim=True).expand_as(sample),
}
"""What stands where a mask removes: nothing, as published, or each channel's mean. The means are what the sample says
of the whole picture (the colour of a background is among them), and masking places with zero takes part of that too."""


@dataclass(frozen=True)
class Variant:
    """What a DF-RISE variant asks, of which masks, what fills the masked, and how it sums up."""

    target: Target
    masks: Masks
    fill: FillName
    estimate: Estimator
    signed: bool
    reading: str


VARIANTS = {
    "paper": Variant(
        Similarity(),
        BalancedMasks(),
        "zero",
        kept_mean,
        False,
        "High where the noise prediction keeps its structure although half of the sample is masked: where the denoiser "
        "does not depend on detail. On flat scenes that is the background, so the object is where the map is LOW. "
        "Values are mean structural similarities, about -1 to 1; compare positions, not steps.",
    ),
    "reference": Variant(
        Similarity(next_sample=True, numerator=2.0),
        PixelMasks(),
        "zero",
        plain_sum,
        False,
        "The published code's map: a plain sum of the similarity between the masked prediction and the next sample. "
        "It mostly shows how often a position happened to be kept, so at 500 masks it is largely noise. "
        "It is here to compare with published figures; read the contrast map for what the denoiser depends on.",
    ),
    "contrast": Variant(
        Similarity(space="clean", scalar=True),
        GridMasks(),
        "mean",
        keep_contrast,
        True,
        "High where keeping a region makes the predicted clean picture stay as it was, and masking it changes it: what "
        "this step depends on. Zero means that the region makes no difference, negative that masking it helps. "
        "Values are differences of mean structural similarity; the standard error says which of them are noise.",
    ),
}

VariantName = Literal["paper", "reference", "contrast"]


@register("df-rise")
@dataclass(frozen=True)
class DFRise(Attributor):
    """Mask the sample at random, compare the predictions, and see which positions matter.

    >>> maps = DFRise(num_masks=500, variant="contrast")(trace, steps=[2, 8, 16])   # doctest: +SKIP
    >>> maps.saliency.dims                                                          # doctest: +SKIP
    ('step', 'y', 'x')

    `variant` is "paper" (E[s | kept], the published definition), "reference" (the published code's arithmetic) or
    "contrast" (RISE proper: coarse masks, one score, keeping against masking). `target`, `masks`, `fill` and
    `estimator` replace the variant's own; `fill` says what stands at masked positions: "zero", or the "mean" of each
    channel of the sample. `until` stops early, once the split-half reliability of the map reaches it; that is
    looked at every 64 masks. `seed` is the masks' own stream; the same masks serve every step. `batch_size` changes
    speed and memory only.

    Variables: `saliency`, `standard_error` (step, y, x); `reliability`, `masks_used` (step). The standard error is the
    spread between blocks of masks that balance each other once there are 8 of them (256 masks of the contrast form),
    and before that, or without such blocks, that of independent masks: for balanced ones an upper bound. `reliability`
    is NaN where there are too few masks for two independent halves. Raises `InputError` for options out of range.
    """

    num_masks: int = 500
    variant: VariantName = "paper"
    target: Target | None = None
    masks: Masks | None = None
    fill: FillName | None = None
    estimator: Estimator | None = None
    until: float | None = None
    seed: int = 0
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise InputError(f'DF-RISE has no variant "{self.variant}". {did_you_mean(self.variant, VARIANTS)}')
        if self.fill is not None and self.fill not in FILLS:
            raise InputError(f'Masked positions cannot be filled with "{self.fill}". {did_you_mean(self.fill, FILLS)}')
        if not isinstance(self.num_masks, int) or self.num_masks < 4:
            raise InputError(
                f"num_masks is {self.num_masks!r}. A map and its reliability need at least 4 masks; 500 are usual."
            )
        if self.batch_size is not None and self.batch_size < 1:
            raise InputError(f"batch_size is {self.batch_size}. It must be at least 1; leave it out to have it chosen.")
        if self.until is not None and not 0 < self.until < 1:
            raise InputError(f"until is {self.until}. A reliability to stop at lies between 0 and 1, such as 0.95.")

    @property
    def title(self) -> str:  # type: ignore[override]
        return f"DF-RISE, {self.variant}"

    @property
    def reading(self) -> str:  # type: ignore[override]
        return VARIANTS[self.variant].reading

    @property
    def signed(self) -> bool:  # type: ignore[override]
        return VARIANTS[self.variant].signed

    def work(self, step: Step) -> int:
        return self.num_masks

    def complete(self) -> "DFRise":
        """The same with what the variant chooses: target, masks, fill and estimator."""
        own = VARIANTS[self.variant]
        return replace(
            self,
            target=self.target or own.target,
            masks=self.masks or own.masks,
            fill=self.fill or own.fill,
            estimator=self.estimator or own.estimate,
        )

    def options(self) -> dict[str, Any]:
        return options_of(self.complete())

    @torch.no_grad()
    def explain(self, step: Step, advance: Advance) -> Mapping[str, np.ndarray | float]:
        own = self.complete()
        assert own.target is not None and own.masks is not None and own.estimator is not None and own.fill is not None
        height, width = step.sample.shape[-2:]
        score, portion = own.target.at(step), max(PORTION, 2 * own.masks.block)
        fill = FILLS[own.fill](step.sample)
        known = None if own.masks.independent is None else Surrogates.of(step, own.masks.independent)
        found = Tally.empty(MaskMoments.zero(height, width, known), own.masks.block, self.num_masks)
        for masks in own.masks.stream(height, width, self.seed, self.num_masks, portion):
            scores = np.concatenate([_scored(score, step, fill, chunk, advance) for chunk in self._chunks(step, masks)])
            found = found.with_masks(masks, scores, None if known is None else known(masks), own.estimator)
            if self.until is not None and found.reliability(own.estimator) >= self.until:
                advance(self.num_masks - found.used)
                break
        saliency, error = found.estimate(own.estimator)
        return {
            "saliency": saliency,
            "standard_error": error,
            "reliability": found.reliability(own.estimator),
            "masks_used": found.used,
        }

    def _chunks(self, step: Step, masks: np.ndarray) -> list[np.ndarray]:
        """Split masks (n, h, w) into chunks that fit at once."""
        size = self.batch_size or samples_at_once(step.sample)
        return np.split(masks, range(size, len(masks), size))


PORTION = 64
"""Masks between two looks at the reliability; with blocks, at least two of them."""


def _scored(score: Score, step: Step, fill: torch.Tensor, masks: np.ndarray, advance: Advance) -> np.ndarray:
    kept = torch.from_numpy(masks).to(step.sample)[:, None]
    scores = score(step.sample * kept + fill * (1 - kept)).cpu().double().numpy()
    advance(len(masks))
    return scores


register("df-rise-contrast")(partial(DFRise, variant="contrast"))
register("df-rise-reference")(partial(DFRise, variant="reference"))
