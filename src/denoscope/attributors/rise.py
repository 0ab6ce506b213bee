"""DF-RISE: which regions the denoiser depends on at a step, by masking the sample.

Sources: Park, Ju, Lee 2024 (arXiv 2402.10404), DF-RISE; Petsiuk, Das, Saenko 2018, RISE.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from scipy import stats

from ..errors import InputError, did_you_mean
from ..targets import Score, Similarity, Target, blurred
from ..traces import Step
from .base import Advance, Attributor, options_of, register
from .masks import BalancedMasks, GridMasks, Masks, PixelMasks

ONE, S, SS, D, SD, DD = range(6)


@dataclass(frozen=True, eq=False)
class MaskMoments:
    """Σ_n M_n^a v_n at every position, for a in 0, 1, 2 and v in 1, s, s², d, s d, d²: `sums` (3, 6, h, w).

    s is the score, d a control variate whose mean is zero whether a position is kept or not; `count` is the number of
    masks. All estimators and their standard errors are functions of these, so memory does not grow with the masks.
    """

    sums: np.ndarray
    count: int = 0

    @classmethod
    def zero(cls, height: int, width: int) -> "MaskMoments":
        return cls(np.zeros((3, 6, height, width)))

    def with_masks(self, masks: np.ndarray, scores: np.ndarray, control: np.ndarray | None = None) -> "MaskMoments":
        """Add masks (n, h, w), their scores (n,) or (n, h, w), and a control variate (n, h, w), if there is one."""
        m = masks.astype(np.float64)
        s = scores.astype(np.float64).reshape(len(m), *(scores.shape[1:] or (1, 1)))
        d = np.zeros((1, 1, 1)) if control is None else control
        values = (np.ones((1, 1, 1)), s, s * s, d, s * d, d * d)
        added = np.stack([[(power * value).sum(0) for value in values] for power in (np.ones_like(m), m, m * m)])
        return MaskMoments(self.sums + added, self.count + len(m))

    def __add__(self, other: "MaskMoments") -> "MaskMoments":
        return MaskMoments(self.sums + other.sums, self.count + other.count)


Estimate = tuple[np.ndarray, np.ndarray]
"""A map and its standard error per position."""


def plain_sum(moments: MaskMoments) -> Estimate:
    """S = Σ M s, as published: no normalisation, so it mostly counts how often a position was kept."""
    n, t = moments.count, moments.sums
    variance = np.maximum(t[2, SS] - t[1, S] ** 2 / n, 0)
    return t[1, S], np.sqrt(variance * n / max(n - 1, 1))


def classic(moments: MaskMoments) -> Estimate:
    """RISE's S = 1/(N p) Σ s M with p = ΣM/N taken over the whole map (Petsiuk et al. 2018, equation 6)."""
    total, error = plain_sum(moments)
    kept = moments.sums[1, ONE].mean()
    return total / kept, error / kept


def kept_mean(moments: MaskMoments) -> Estimate:
    """Σ M s / Σ M − β Σ M d / Σ M: the mean score while a position is kept; the sum's limit, without its noise.

    β is the regression of s on the control variate d over all positions; d has mean zero while a position is kept,
    so the limit does not change.
    """
    kept, squares = moments.sums[1], moments.sums[2]
    s, d = _divided(kept[S], kept[ONE]), _divided(kept[D], kept[ONE])
    beta = _slope(np.nansum(_spread(kept, SD, s, d)), np.nansum(_spread(kept, DD, d, d)))
    error = _spread(squares, SS, s, s) - 2 * beta * _spread(squares, SD, s, d) + beta**2 * _spread(squares, DD, d, d)
    return s - beta * d, _divided(np.sqrt(np.maximum(error, 0)), kept[ONE])


def keep_contrast(moments: MaskMoments) -> Estimate:
    """Σ M s / Σ M − Σ (1−M) s / Σ (1−M): what keeping a position adds to the score, against masking it."""
    all_, kept, square = moments.sums
    lost = all_ - kept
    a, b = _divided(kept[S], kept[ONE]), _divided(lost[S], lost[ONE])
    of_kept = _spread(square, SS, a, a) / kept[ONE] ** 2
    of_lost = _spread(lost - kept + square, SS, b, b) / lost[ONE] ** 2
    of_both = _spread(kept - square, SS, a, b) / (kept[ONE] * lost[ONE])
    return a - b, np.sqrt(np.maximum(of_kept + of_lost - 2 * of_both, 0))


def _spread(weighted: np.ndarray, product: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Σ w (u − a)(v − b), where `product` says which of the six is u v."""
    u, v = {SS: (S, S), SD: (S, D), DD: (D, D)}[product]
    return weighted[product] - a * weighted[v] - b * weighted[u] + a * b * weighted[ONE]


def _slope(covariance: float, variance: float) -> float:
    return covariance / variance if variance > 0 else 0.0


def _divided(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b, NaN where a position was never kept (or never masked)."""
    return np.divide(a, b, out=np.full(np.broadcast(a, b).shape, np.nan), where=b > 0)


def kept_energy(sample: torch.Tensor, masks: torch.Tensor, keep: float) -> torch.Tensor:
    """How much more of the sample's energy around each position a mask keeps than masks do on average, (n, h, w).

    d_ij = Σ_kl≠ij K_ij−kl x²_kl (M_kl − p) / Σ_kl K_ij−kl x²_kl, K the window of structural similarity. Its mean is
    zero whatever M_ij is, where positions are masked independently. Much of the similarity's variation is this: a
    prediction resembles the whole one where the mask has left what it depends on.
    """
    energy = sample.square().mean(dim=1).double()
    change = energy * (masks.double() - keep)
    own = blurred(torch.ones(1, 1, dtype=torch.float64), 15, 1.5)
    return (blurred(change, 15, 1.5) - own * change) / blurred(energy, 15, 1.5).clamp(min=1e-12)


def reliability(first: np.ndarray, second: np.ndarray) -> float:
    """Rank correlation r of two half-maps, stepped up by Spearman–Brown, 2r / (1 + r), or r itself if it is negative.

    −1 to 1; NaN if either is flat or has gaps.
    """
    if np.ptp(first) == 0 or np.ptp(second) == 0 or not np.isfinite(first + second).all():
        return float("nan")
    r = float(stats.spearmanr(first.ravel(), second.ravel()).statistic)
    return 2 * r / (1 + r) if r > 0 else r


@dataclass(frozen=True)
class Variant:
    """What a DF-RISE variant asks, of which masks, and how it sums up."""

    target: Target
    masks: Masks
    estimate: Callable[[MaskMoments], Estimate]
    signed: bool
    reading: str


VARIANTS = {
    "paper": Variant(
        Similarity(),
        BalancedMasks(),
        kept_mean,
        False,
        "High where the noise prediction keeps its structure although half of the sample is masked: where the denoiser "
        "does not depend on detail. On flat scenes that is the background, so the object is where the map is LOW. "
        "Values are mean structural similarities, about -1 to 1; compare positions, not steps.",
    ),
    "reference": Variant(
        Similarity(next_sample=True, numerator=2.0),
        PixelMasks(),
        plain_sum,
        False,
        "The published code's map: a plain sum of the similarity between the masked prediction and the next sample. "
        "It mostly shows how often a position happened to be kept, so at 500 masks it is largely noise. "
        "It is here to compare with published figures; read the contrast map for what the denoiser depends on.",
    ),
    "contrast": Variant(
        Similarity(space="clean", scalar=True),
        GridMasks(),
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
    "contrast" (RISE proper: coarse masks, one score, keeping against masking). `target`, `masks` and `estimator`
    replace the variant's own. `until` stops early, once the split-half reliability of the map reaches it; that is
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
    estimator: Callable[[MaskMoments], Estimate] | None = None
    until: float | None = None
    seed: int = 0
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise InputError(f'DF-RISE has no variant "{self.variant}". {did_you_mean(self.variant, VARIANTS)}')
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
        """The same with the variant's target, masks and estimator filled in."""
        own = VARIANTS[self.variant]
        return replace(
            self,
            target=self.target or own.target,
            masks=self.masks or own.masks,
            estimator=self.estimator or own.estimate,
        )

    def options(self) -> dict[str, Any]:
        return options_of(self.complete())

    @torch.no_grad()
    def explain(self, step: Step, advance: Advance) -> Mapping[str, np.ndarray | float]:
        own = self.complete()
        assert own.target is not None and own.masks is not None and own.estimator is not None
        height, width = step.sample.shape[-2:]
        score, portion = own.target.at(step), max(PORTION, 2 * own.masks.block)
        found = Tally.empty(height, width, own.masks.block, self.num_masks)
        for masks in own.masks.stream(height, width, self.seed, self.num_masks, portion):
            scores = np.concatenate([_scored(score, step, chunk, advance) for chunk in self._chunks(step, masks)])
            found = found.with_masks(masks, scores, own._control(step, masks), own.estimator)
            if self.until is not None and found.reliability(own.estimator) >= self.until:
                advance(self.num_masks - found.used)
                break
        saliency, error = own.estimator(found.halves[0] + found.halves[1])
        return {
            "saliency": saliency,
            "standard_error": found.error_between_blocks() if own.estimator in MEANS and found.enough else error,
            "reliability": found.reliability(own.estimator),
            "masks_used": found.used,
        }

    def _control(self, step: Step, masks: np.ndarray) -> np.ndarray:
        """The control variate, zero for masks whose positions depend on each other."""
        assert self.masks is not None
        if self.masks.independent is None:
            return np.zeros((len(masks), 1, 1))
        return kept_energy(step.sample.cpu(), torch.from_numpy(masks), self.masks.independent).numpy()

    def _chunks(self, step: Step, masks: np.ndarray) -> list[np.ndarray]:
        """As many masks a call as there is room for: 16,384 positions at once on a CPU and 131,072 elsewhere."""
        positions = step.sample.shape[-2] * step.sample.shape[-1]
        room = 2**14 if step.sample.device.type == "cpu" else 2**17
        size = self.batch_size or int(np.clip(room // positions, 1, 64))
        return np.split(masks, range(size, len(masks), size))


PORTION = 64
"""Masks between two looks at the reliability; with blocks, at least two of them."""
MEANS = {classic, kept_mean, keep_contrast}
"""Estimators that do not grow with the number of masks."""
BLOCKS = 8
"""Blocks of masks from which on their spread is a standard error."""


@dataclass(frozen=True, eq=False)
class Tally:
    """What has been seen of the masks: the moments of two halves, and the spread of single blocks' maps.

    Masks of one block balance each other, so their errors cancel: whole blocks go to either half in turn, or the halves
    would disagree more than independent ones. What does not fill two blocks is shared out by pairs.
    """

    halves: tuple[MaskMoments, MaskMoments]
    block: int
    total: int
    maps: tuple[np.ndarray, np.ndarray]
    blocks: int = 0

    @classmethod
    def empty(cls, height: int, width: int, block: int, total: int) -> "Tally":
        zero = MaskMoments.zero(height, width)
        return cls((zero, zero), block, total, (np.zeros((height, width)), np.zeros((height, width))))

    @property
    def used(self) -> int:
        return self.halves[0].count + self.halves[1].count

    def with_masks(
        self, masks: np.ndarray, scores: np.ndarray, control: np.ndarray, estimator: Callable[[MaskMoments], Estimate]
    ) -> "Tally":
        """Add a portion that begins with a block."""
        place = self.used + np.arange(len(masks))
        whole = self.total // (2 * self.block) * 2 * self.block
        side = np.where(place < whole, place // self.block, place // 2) % 2
        a, b = (
            half.with_masks(masks[side == i], scores[side == i], control[side == i])
            for i, half in enumerate(self.halves)
        )
        total, squares = self.maps
        starts = range(0, len(masks) - self.block + 1, self.block) if self.block > 2 else ()
        for own in (slice(start, start + self.block) for start in starts):
            zero = MaskMoments.zero(*masks.shape[1:])
            estimate, _ = estimator(zero.with_masks(masks[own], scores[own], control[own]))
            total, squares = total + estimate, squares + estimate**2
        return replace(self, halves=(a, b), maps=(total, squares), blocks=self.blocks + len(starts))

    def reliability(self, estimator: Callable[[MaskMoments], Estimate]) -> float:
        """`reliability` of the halves; NaN where they are not independent, or of fewer than two masks each."""
        if self.used < max(4, 2 * self.block if self.block > 2 else 4):
            return float("nan")
        return reliability(*(estimator(half)[0] for half in self.halves))

    @property
    def enough(self) -> bool:
        """Whether there are blocks enough for their spread to mean something."""
        return self.blocks >= BLOCKS

    def error_between_blocks(self) -> np.ndarray:
        """√(variance of a block's map · block / masks), for an estimator that is a mean over masks."""
        total, squares = self.maps
        variance = np.maximum(squares - total**2 / self.blocks, 0) / (self.blocks - 1)
        return np.sqrt(variance * self.block / self.used)


def _scored(score: Score, step: Step, masks: np.ndarray, advance: Advance) -> np.ndarray:
    mask = torch.from_numpy(masks).to(step.sample)
    scores = score(step.sample * mask[:, None]).cpu().double().numpy()
    advance(len(masks))
    return scores


register("df-rise-contrast")(partial(DFRise, variant="contrast"))
register("df-rise-reference")(partial(DFRise, variant="reference"))
