"""DF-RISE: which regions the denoiser depends on at a step, by masking the sample.

Sources: Park, Ju, Lee 2024 (arXiv 2402.10404), DF-RISE; Petsiuk, Das, Saenko 2018, RISE.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from ..errors import InputError, did_you_mean
from ..recording.batches import Portions, call_portions
from ..recording.steps import Step
from ..targets import Score, Similarity, Target, trace_step
from ..vision.frames import Frame
from .base import Advance, Attributor, StepResult, form_of, register
from .beside import ahead
from .estimators import Estimator, MaskMoments, Surrogates, Tally, kept_mean, plain_sum, regressed_contrast
from .masks import BalancedMasks, GridMasks, Masks, PixelMasks
from .regression import Modes

FillName = Literal["zero", "mean"]
FILLS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "zero": torch.zeros_like,
    "mean": lambda sample: sample.mean(dim=tuple(range(2, sample.ndim)), keepdim=True).expand_as(sample),
}
"""The values at masked positions: zero, as published, or each channel's mean over all positions.

The means are what the sample says of the whole picture, the colour of a background among it. Masking with zero takes
part of that away too.
"""

CONTRAST_MASKS, PUBLISHED_MASKS = 256, 500
"""Masks a step. With 256 the regression of the contrast form is as close to its limit as two means are with 1,024."""

CLEAN_STRUCTURE = Similarity(space="clean", scalar=True)
COARSE = GridMasks()

CONTRAST_READING = (
    "High where keeping a region makes the predicted clean picture stay as it was, and masking it changes it: what "
    "this step depends on. Zero means that the region makes no difference, negative that masking it helps. "
    "Values are differences of mean structural similarity; the standard error says which of them are noise."
)
_PAPER_READING = (
    "High where the noise prediction keeps its structure although half of the sample is masked: where the denoiser "
    "does not depend on detail. On flat scenes that is the background, so the object is where the map is LOW. "
    "Values are mean structural similarities, about -1 to 1; compare positions, not steps."
)
_REFERENCE_READING = (
    "The published code's map: a plain sum of the similarity between the masked prediction and the next sample. "
    "It mostly shows how often a position happened to be kept, so at 500 masks it is largely noise. "
    "It is here to compare with published figures; read the contrast map for what the denoiser depends on."
)


@dataclass(frozen=True)
class DFRise(Attributor):
    """Mask the sample at random, compare the predictions, and see which positions matter.

    >>> maps = DFRise(num_masks=256)(trace, steps=[2, 8, 16])   # doctest: +SKIP
    >>> maps.saliency.dims                                      # doctest: +SKIP
    ('step', 'y', 'x')

    The masks of a clip are drawn over its frames too.

    Three forms, each with all fields filled: `DFRise.contrast()`, which `DFRise()` is too (RISE proper: coarse masks,
    one score, keeping against masking), `DFRise.paper()` (E[s | kept], the published definition) and
    `DFRise.reference()` (the published code's arithmetic). `dataclasses.replace` changes a field of a form.

    `target` scores the predictions. `fill` is the value at masked positions: "zero", or the "mean" of each channel of
    the sample. `until` stops early, once the split-half reliability of the map reaches it, which is looked at every 64
    masks. `seed` is the masks' own stream; the same masks serve every step. `batch_size` changes speed and memory only.

    The contrast form's map is E[s | kept] − E[s | masked], estimated by a regression of the scores on what the coarse
    masks keep (`regressed_contrast`); `estimator=keep_contrast` takes the two means themselves, which needs three to
    four times the masks.

    Variables: `saliency`, `standard_error` (step, [frame,] y, x); `reliability`, `masks_used` (step). The standard
    error of a regression is its own. That of means is the spread between blocks of masks that balance each other once
    there are 8 of them (256 coarse masks of a picture), and before that, or without such blocks, that of independent
    masks: for balanced ones an upper bound. `reliability` is NaN where there are too few masks for two independent
    halves. Raises `InputError` for options out of range.
    """

    num_masks: int = CONTRAST_MASKS
    _: KW_ONLY
    target: Target = CLEAN_STRUCTURE
    masks: Masks = COARSE
    fill: FillName = "mean"
    estimator: Estimator = regressed_contrast
    until: float | None = None
    seed: int = 0
    batch_size: int | None = None
    title: str = "DF-RISE, contrast"
    reading: str = field(default=CONTRAST_READING, repr=False)
    signed: bool = True

    def __post_init__(self) -> None:
        if self.fill not in FILLS:
            raise InputError(f'Masked positions cannot be filled with "{self.fill}". {did_you_mean(self.fill, FILLS)}')
        if not isinstance(self.num_masks, int) or self.num_masks < 4:
            raise InputError(
                f"num_masks is {self.num_masks!r}. A map needs at least 4 masks, and its reliability more, 64 in the "
                f"contrast form; {CONTRAST_MASKS} are usual there, {PUBLISHED_MASKS} in the other forms."
            )
        if self.batch_size is not None and self.batch_size < 1:
            raise InputError(f"batch_size is {self.batch_size}. It must be at least 1; leave it out to have it chosen.")
        if self.until is not None and not 0 < self.until < 1:
            raise InputError(f"until is {self.until}. A reliability to stop at lies between 0 and 1, such as 0.95.")

    @classmethod
    def contrast(
        cls, num_masks: int = CONTRAST_MASKS, until: float | None = None, seed: int = 0, batch_size: int | None = None
    ) -> "DFRise":
        """Return RISE proper: coarse masks, one score for the clean prediction, keeping against masking."""
        return cls(num_masks, until=until, seed=seed, batch_size=batch_size)

    @classmethod
    def paper(
        cls, num_masks: int = PUBLISHED_MASKS, until: float | None = None, seed: int = 0, batch_size: int | None = None
    ) -> "DFRise":
        """Return the published definition: E[s | kept] with s the local similarity of the noise prediction."""
        return cls(
            num_masks,
            target=Similarity(),
            masks=BalancedMasks(),
            fill="zero",
            estimator=kept_mean,
            until=until,
            seed=seed,
            batch_size=batch_size,
            title="DF-RISE, paper",
            reading=_PAPER_READING,
            signed=False,
        )

    @classmethod
    def reference(
        cls, num_masks: int = PUBLISHED_MASKS, until: float | None = None, seed: int = 0, batch_size: int | None = None
    ) -> "DFRise":
        """Return the published code's arithmetic: a plain sum of the similarity with the next sample."""
        return cls(
            num_masks,
            target=Similarity(next_sample=True, numerator=2.0),
            masks=PixelMasks(),
            fill="zero",
            estimator=plain_sum,
            until=until,
            seed=seed,
            batch_size=batch_size,
            title="DF-RISE, reference",
            reading=_REFERENCE_READING,
            signed=False,
        )

    def options(self) -> dict[str, Any]:
        return {**super().options(), "form": form_of(self.title)}

    def work(self, step: Step | Frame) -> int:
        return self.num_masks

    @torch.no_grad()
    def explain(self, step: Step | Frame, advance: Advance) -> StepResult:
        step = trace_step(step)
        sample, shape = step.as_maps(step.sample), step.layout.shape
        score, block = self.target.at(step), self.masks.block(shape)
        fill, portion = FILLS[self.fill](sample), max(PORTION, 2 * block)
        surrogates = None if self.masks.independent is None else Surrogates.of(step, self.masks.independent)
        portions = call_portions(sample, self.batch_size)
        modes = Modes.of(self.masks, shape) if self.estimator is regressed_contrast else None
        tally = Tally.empty(MaskMoments.zero(shape, surrogates, modes), block, self.num_masks)

        masked = self.masks.stream(shape, self.seed, self.num_masks, portion)
        drawn = ahead((masks, None if surrogates is None else surrogates(masks)) for masks in masked)
        with ThreadPoolExecutor(1) as beside, closing(drawn):  # sums are added up while the next masks are scored
            sums = beside.submit(lambda: tally)
            for masks, values in drawn:
                scores = _scored(score, sample, fill, masks, portions, advance)
                sums = beside.submit(sums.result().with_masks, masks, scores, values, self.estimator)
                if self.until is not None and sums.result().reliability(self.estimator) >= self.until:
                    advance(self.num_masks - sums.result().used)
                    break
            tally = sums.result()
        saliency, error = tally.estimate(self.estimator)
        return {
            "saliency": saliency,
            "standard_error": error,
            "reliability": tally.reliability(self.estimator),
            "masks_used": tally.used,
        }


PORTION = 64
"""Masks between two looks at the reliability; with blocks, at least two of them."""


def _scored(
    score: Score, sample: torch.Tensor, fill: torch.Tensor, masks: np.ndarray, portions: Portions, advance: Advance
) -> np.ndarray:
    """Return the scores of the sample under masks (n, [frames,] h, w), as float64; they leave the device together."""
    M, scores = torch.from_numpy(masks).to(sample)[:, None], []

    def masked(part: slice) -> torch.Tensor:
        return score(sample * M[part] + fill * (1 - M[part]))

    for part, values in portions.over(len(masks), masked, sample.device):
        scores.append(values)
        advance(part.stop - part.start)
    return torch.cat(scores).cpu().double().numpy()


register("df-rise-contrast")(DFRise.contrast)
register("df-rise")(DFRise.paper)
register("df-rise-reference")(DFRise.reference)
