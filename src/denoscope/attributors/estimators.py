"""From masks and their scores to a map: what DF-RISE sums up, and how reliable the sums are.

Sources: Park, Ju, Lee 2024 (the plain sum); Petsiuk, Das, Saenko 2018 (RISE); Efron and Morris 1975 (shrinkage by the
measured signal, "Data analysis using Stein's estimator"); Spearman and Brown 1910 (reliability from two halves).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import stats

from ..recording.traces import Step
from ..vision.similarity import blurred

ONE, S = 0, 1
WINDOW, SIGMA = 15, 1.5
"""The window of structural similarity."""


@dataclass(frozen=True, eq=False)
class Surrogates:
    """Two quantities that say, without a call of the denoiser, much of how alike a masked prediction will be.

    Both are linear in the mask M, so their means are known exactly whether a position is kept or not. Around each
    position, K being the window of structural similarity and p the probability of keeping:

    - the share of the sample's energy kept, Σ K x² (M − p) / Σ K x²;
    - the share of its covariance with the prediction e kept, Σ K (e − μ_e) x (M − p) / (σ_e √Σ K x²).

    The second is a mean over channels. `own` (2, h, w) is what the position itself adds to each, for M − p = 1.
    """

    sample: np.ndarray
    prediction: np.ndarray
    keep: float

    @classmethod
    def of(cls, step: Step, keep: float) -> "Surrogates":
        """Of a step's own sample and noise prediction."""
        prediction = step.level.noise(step.sample, step.model_output)
        return cls(_array(step.sample), _array(prediction), keep)

    @property
    def energy(self) -> np.ndarray:
        return (self.sample**2).mean(axis=0)

    @property
    def mean(self) -> np.ndarray:
        return _blurred(self.prediction)

    @property
    def scale(self) -> np.ndarray:
        variance = _blurred(self.prediction**2) - self.mean**2
        return np.sqrt((variance * _blurred(self.sample**2)).clip(min=1e-24))

    @property
    def own(self) -> np.ndarray:
        centre = float(_blurred(np.ones((1, 1)))[0, 0])
        covariance = ((self.prediction - self.mean) * self.sample / self.scale).mean(axis=0)
        return centre * np.stack([self.energy / _blurred(self.energy).clip(min=1e-12), covariance])

    def __call__(self, masks: np.ndarray) -> np.ndarray:
        """Both of masks (n, h, w), as (2, n, h, w)."""
        change = masks.astype(np.float64) - self.keep
        energy = _blurred(self.energy * change) / _blurred(self.energy).clip(min=1e-12)
        samples = self.sample * change[:, None]
        covariance = (_blurred(self.prediction * samples) - self.mean * _blurred(samples)) / self.scale
        return np.stack([energy, covariance.mean(axis=1)])


def _array(samples: torch.Tensor) -> np.ndarray:
    return samples[0].detach().cpu().double().numpy()


def _blurred(values: np.ndarray) -> np.ndarray:
    return blurred(torch.from_numpy(values), WINDOW, SIGMA).numpy()


@dataclass(frozen=True, eq=False)
class MaskMoments:
    """Σ_n M_n^a u_n v_n at every position, for a in 0, 1, 2 and u, v in 1, s, g…: `sums` (3, v, v, h, w).

    s is the score and g are surrogates, if there are any, with their `own` part and the probability of keeping; `count`
    is the number of masks. All estimators and their standard errors are functions of these, so memory does not grow
    with the masks.
    """

    sums: np.ndarray
    count: int = 0
    own: np.ndarray | None = None
    keep: float | None = None

    @classmethod
    def zero(cls, height: int, width: int, surrogates: Surrogates | None = None) -> "MaskMoments":
        if surrogates is None:
            return cls(np.zeros((3, 2, 2, height, width)))
        return cls(np.zeros((3, 4, 4, height, width)), 0, surrogates.own, surrogates.keep)

    def with_masks(self, masks: np.ndarray, scores: np.ndarray, surrogates: np.ndarray | None = None) -> "MaskMoments":
        """Add masks (n, h, w), their scores (n,) or (n, h, w), and the surrogates' values (k, n, h, w)."""
        m, s = masks.astype(np.float64), scores.astype(np.float64)
        s = np.broadcast_to(s.reshape(len(m), *(s.shape[1:] or (1, 1))), m.shape)
        values = np.stack([np.ones_like(m), s, *([] if surrogates is None else surrogates)])
        added = np.stack([np.einsum("nyx,unyx,vnyx->uvyx", m**a, values, values) for a in range(3)])
        return replace(self, sums=self.sums + added, count=self.count + len(m))

    def __add__(self, other: "MaskMoments") -> "MaskMoments":
        return replace(self, sums=self.sums + other.sums, count=self.count + other.count)


Estimate = tuple[np.ndarray, np.ndarray]
"""A map and its standard error per position."""
Estimator = Callable[[MaskMoments], Estimate]


def plain_sum(moments: MaskMoments) -> Estimate:
    """S = Σ M s, as published: no normalisation, so it mostly counts how often a position was kept."""
    n, (_, kept, square) = moments.count, moments.sums
    variance = np.maximum(square[S, S] - kept[ONE, S] ** 2 / n, 0)
    return kept[ONE, S], np.sqrt(variance * n / max(n - 1, 1))


def classic(moments: MaskMoments) -> Estimate:
    """RISE's S = 1/(N p) Σ s M with p = ΣM/N taken over the whole map (Petsiuk et al. 2018, equation 6)."""
    total, error = plain_sum(moments)
    kept = moments.sums[1, ONE, ONE].mean()
    return total / kept, error / kept


def kept_ratio(moments: MaskMoments) -> Estimate:
    """Σ M s / Σ M: the mean score while a position is kept; the sum's limit without its noise. NaN if never kept."""
    _, kept, square = moments.sums
    mean = _divided(kept[ONE, S], kept[ONE, ONE])
    return mean, _divided(np.sqrt(_about(square, mean, mean).clip(min=0)), kept[ONE, ONE])


def kept_mean(moments: MaskMoments) -> Estimate:
    """The same limit from fewer masks: E[s | M = 1] by a regression, where there are surrogates; else `kept_ratio`.

    s = c + Σ β g + u (M − p) + rest, at every position: masks that remove a position count as well, and what the
    surrogates g say beforehand is not left to chance. β is common to all positions. u, what keeping the position does
    beyond its own part of g, is drawn towards its mean over positions as far as its spread is noise, which it is ever
    less with more masks: the limit stays. The estimate is c + (1 − p)(Σ β g_own + u).
    """
    if moments.own is None or moments.keep is None:
        return kept_ratio(moments)
    n, (every, kept, square) = moments.count, moments.sums
    mean, share = every[ONE] / n, kept[ONE, ONE] / n
    spread = every - n * mean[:, None] * mean
    tilt = kept[ONE] - n * share * mean  # Σ (M − its mean) v
    width = square[ONE, ONE] - n * share**2  # Σ (M − its mean)²
    slopes = np.linalg.pinv(spread[2:, 2:].sum(axis=(2, 3))) @ spread[2:, S].sum(axis=(1, 2))
    rest = np.array([0, 1, *-slopes])  # what is left of a score, as a combination of 1, s, g
    left = np.tensordot(rest, tilt, 1)
    effect = np.divide(left, width, out=np.zeros_like(left), where=width > 0)
    squares = np.einsum("u,v,uvyx->yx", rest, rest, spread) - effect * left
    variance = squares.clip(min=0) / max(n - 2, 1)
    drawn, doubt = _shrunk(effect, _divided(variance, width))
    estimate = np.tensordot(rest, mean, 1) + (1 - share) * drawn
    estimate += (1 - moments.keep) * np.tensordot(slopes, moments.own, 1)
    return estimate, np.sqrt(variance / n + (1 - moments.keep) ** 2 * doubt)


def _shrunk(values: np.ndarray, variances: np.ndarray) -> tuple[np.ndarray, float]:
    """Values drawn towards their mean as far as their spread is noise, and the variance that is left of each."""
    noise, around = float(np.nanmean(variances)), values - values.mean()
    signal = max(float((around**2).mean()) - noise, 0.0)
    trust = signal / (signal + noise) if signal > 0 else 0.0
    return values.mean() + trust * around, trust * noise


def keep_contrast(moments: MaskMoments) -> Estimate:
    """Σ M s / Σ M − Σ (1−M) s / Σ (1−M): what keeping a position adds to the score, against masking it."""
    every, kept, square = moments.sums
    lost = every - kept
    a, b = _divided(kept[ONE, S], kept[ONE, ONE]), _divided(lost[ONE, S], lost[ONE, ONE])
    of_kept = _about(square, a, a) / kept[ONE, ONE] ** 2
    of_lost = _about(lost - kept + square, b, b) / lost[ONE, ONE] ** 2
    of_both = _about(kept - square, a, b) / (kept[ONE, ONE] * lost[ONE, ONE])
    return a - b, np.sqrt(np.maximum(of_kept + of_lost - 2 * of_both, 0))


MEANS: set[Estimator] = {classic, kept_ratio, kept_mean, keep_contrast}
"""Estimators that do not grow with the number of masks."""


def _about(weighted: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Σ w (s − a)(s − b)."""
    return np.asarray(weighted[S, S] - (a + b) * weighted[ONE, S] + a * b * weighted[ONE, ONE])


def _divided(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b, NaN where a position was never kept (or never masked)."""
    return np.divide(a, b, out=np.full(np.broadcast(a, b).shape, np.nan), where=b > 0)


def reliability(first: np.ndarray, second: np.ndarray) -> float:
    """Rank correlation r of two half-maps, stepped up by Spearman–Brown, 2r / (1 + r), or r itself if it is negative.

    −1 to 1; NaN if either is flat or has gaps.
    """
    if np.ptp(first) == 0 or np.ptp(second) == 0 or not np.isfinite(first + second).all():
        return float("nan")
    r = float(stats.spearmanr(first.ravel(), second.ravel()).statistic)
    return 2 * r / (1 + r) if r > 0 else r


BLOCKS = 8
"""Blocks of masks from which on their spread is a standard error."""


@dataclass(frozen=True, eq=False)
class Tally:
    """What has been seen of the masks: the moments of two halves, and the spread of single blocks' maps.

    Masks of one block balance each other, so their errors cancel: whole blocks go to either half in turn, or the halves
    would disagree more than independent ones. What does not fill two blocks is shared out by pairs.
    """

    zero: MaskMoments
    halves: tuple[MaskMoments, MaskMoments]
    block: int
    total: int
    maps: tuple[np.ndarray, np.ndarray]
    blocks: int = 0

    @classmethod
    def empty(cls, zero: MaskMoments, block: int, total: int) -> "Tally":
        nothing = np.zeros(zero.sums.shape[-2:])
        return cls(zero, (zero, zero), block, total, (nothing, nothing))

    @property
    def used(self) -> int:
        return self.halves[0].count + self.halves[1].count

    def with_masks(
        self, masks: np.ndarray, scores: np.ndarray, surrogates: np.ndarray | None, estimator: Estimator
    ) -> "Tally":
        """Add a portion that begins with a block."""

        def added(moments: MaskMoments, chosen: np.ndarray | slice) -> MaskMoments:
            known = None if surrogates is None else surrogates[:, chosen]
            return moments.with_masks(masks[chosen], scores[chosen], known)

        place = self.used + np.arange(len(masks))
        whole = self.total // (2 * self.block) * 2 * self.block
        side = np.where(place < whole, place // self.block, place // 2) % 2
        a, b = (added(half, side == i) for i, half in enumerate(self.halves))
        total, squares = self.maps
        starts = range(0, len(masks) - self.block + 1, self.block) if self.block > 2 else ()
        for start in starts:
            estimate, _ = estimator(added(self.zero, slice(start, start + self.block)))
            total, squares = total + estimate, squares + estimate**2
        return replace(self, halves=(a, b), maps=(total, squares), blocks=self.blocks + len(starts))

    def estimate(self, estimator: Estimator) -> Estimate:
        """The map of all masks; its error is the spread of blocks where there are enough, else the estimator's own."""
        saliency, error = estimator(self.halves[0] + self.halves[1])
        enough = estimator in MEANS and self.blocks >= BLOCKS
        return saliency, self.error_between_blocks() if enough else error

    def reliability(self, estimator: Estimator) -> float:
        """`reliability` of the halves; NaN where they are not independent, or of fewer than two masks each."""
        if self.used < max(4, 2 * self.block if self.block > 2 else 4):
            return float("nan")
        return reliability(*(estimator(half)[0] for half in self.halves))

    def error_between_blocks(self) -> np.ndarray:
        """√(variance of a block's map · block / masks), for an estimator that is a mean over masks."""
        total, squares = self.maps
        variance = np.maximum(squares - total**2 / self.blocks, 0) / (self.blocks - 1)
        return np.sqrt(variance * self.block / self.used)
