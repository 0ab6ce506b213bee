"""From masks and their scores to a map: the sums of DF-RISE, and their reliability.

Sources: Park, Ju, Lee 2024 (the plain sum); Petsiuk, Das, Saenko 2018 (RISE); Efron and Morris 1975 (shrinkage by the
measured signal, "Data analysis using Stein's estimator"); Spearman and Brown 1910 (reliability from two halves).
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from ..recording.steps import Step
from ..vision.similarity import blurred
from .regression import Modes, ModeSums, effects

ONE, S = 0, 1
WINDOW, SIGMA = 15, 1.5
"""The window of structural similarity."""


@dataclass(frozen=True, eq=False)
class Surrogates:
    """Two quantities that predict, without a call of the denoiser, much of the similarity of a masked prediction.

    Both are linear in the mask M, so their means are known exactly whether a position is kept or not. Around each
    position, K being the window of structural similarity and p the probability of keeping:

    - the share of the sample's energy kept, Σ K x² (M − p) / Σ K x²;
    - the share of its covariance with the prediction e kept, Σ K (e − μ_e) x (M − p) / (σ_e √Σ K x²).

    The second is a mean over channels. `itself` (2, *map) is the position's contribution to each, for M − p = 1. Maps
    are (h, w), or (frames, h, w), where each frame has windows of its own.
    """

    sample: np.ndarray
    prediction: np.ndarray
    keep: float

    @classmethod
    def of(cls, step: Step, keep: float) -> "Surrogates":
        """Return the surrogates of a step's own sample and noise prediction."""
        sample, output = step.as_maps(step.sample), step.as_maps(step.model_output)
        return cls(_array(sample), _array(step.level.noise(sample, output)), keep)

    @property
    def energy(self) -> np.ndarray:
        energy: np.ndarray = (self.sample**2).mean(axis=0)
        return energy

    @property
    def mean(self) -> np.ndarray:
        return _blurred(self.prediction)

    @property
    def scale(self) -> np.ndarray:
        variance = _blurred(self.prediction**2) - self.mean**2
        scale: np.ndarray = np.sqrt((variance * _blurred(self.sample**2)).clip(min=1e-24))
        return scale

    @property
    def itself(self) -> np.ndarray:
        centre = float(_blurred(np.ones((1, 1)))[0, 0])
        covariance = ((self.prediction - self.mean) * self.sample / self.scale).mean(axis=0)
        return centre * np.stack([self.energy / _blurred(self.energy).clip(min=1e-12), covariance])

    def __call__(self, masks: np.ndarray) -> np.ndarray:
        """Return both quantities of masks (n, *map), as (2, n, *map)."""
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
    """Σ_n M_n^a u_n v_n at every position, for a in 0, 1, 2 and u, v in 1, s, g…: `sums` (3, v, v, *map).

    s is the score and g are surrogates, if there are any, with the position's own part `itself` and the probability of
    keeping; `count` is the number of masks. A map is (h, w), or (frames, h, w). `regression` has the sums over coarse
    masks with one score each. All estimators and their standard errors are functions of these, so memory does not grow
    with the masks.
    """

    sums: np.ndarray
    count: int = 0
    itself: np.ndarray | None = None
    keep: float | None = None
    regression: ModeSums | None = None

    @classmethod
    def zero(
        cls, shape: tuple[int, ...], surrogates: Surrogates | None = None, modes: Modes | None = None
    ) -> "MaskMoments":
        if surrogates is None:
            return cls(np.zeros((3, 2, 2, *shape)), regression=None if modes is None else ModeSums.zero(modes))
        return cls(np.zeros((3, 4, 4, *shape)), 0, surrogates.itself, surrogates.keep)

    def with_masks(self, masks: np.ndarray, scores: np.ndarray, surrogates: np.ndarray | None = None) -> "MaskMoments":
        """Return the sums with masks (n, *map), their scores (n,) or (n, *map), and surrogates (k, n, *map) added."""
        m, s = masks.astype(np.float64), scores.astype(np.float64)
        regression = self.regression.with_masks(m, s) if self.regression is not None and s.ndim == 1 else None
        s = np.broadcast_to(s.reshape(len(m), *(s.shape[1:] or (1,) * (m.ndim - 1))), m.shape)
        columns = [np.ones_like(m), s]
        if surrogates is not None:
            columns += list(surrogates)
        values = np.stack(columns)
        added = np.stack([np.einsum("n...,un...,vn...->uv...", m**a, values, values) for a in range(3)])
        return replace(self, sums=self.sums + added, count=self.count + len(m), regression=regression)

    def __add__(self, other: "MaskMoments") -> "MaskMoments":
        regression = None
        if self.regression is not None and other.regression is not None:
            regression = self.regression + other.regression
        return replace(self, sums=self.sums + other.sums, count=self.count + other.count, regression=regression)


Estimate = tuple[np.ndarray, np.ndarray]
"""A map and its standard error per position."""
Estimator = Callable[[MaskMoments], Estimate]


def plain_sum(moments: MaskMoments) -> Estimate:
    """Return S = Σ M s, as published: no normalisation, so it mostly counts how often a position was kept."""
    n, (_, m1, m2) = moments.count, moments.sums
    variance = np.maximum(m2[S, S] - m1[ONE, S] ** 2 / n, 0)
    return m1[ONE, S], np.sqrt(variance * n / max(n - 1, 1))


def classic(moments: MaskMoments) -> Estimate:
    """Return RISE's S = 1/(N p) Σ s M with p = ΣM/N over the whole map (Petsiuk et al. 2018, equation 6)."""
    total, error = plain_sum(moments)
    kept_masks = moments.sums[1, ONE, ONE].mean()
    return total / kept_masks, error / kept_masks


def kept_ratio(moments: MaskMoments) -> Estimate:
    """Return Σ M s / Σ M, the mean score while a position is kept: the sum without its noise. NaN if never kept."""
    _, m1, m2 = moments.sums
    mean = _divided(m1[ONE, S], m1[ONE, ONE])
    return mean, _divided(np.sqrt(_about(m2, mean, mean).clip(min=0)), m1[ONE, ONE])


def kept_mean(moments: MaskMoments) -> Estimate:
    """Return E[s | M = 1] from fewer masks by a regression; without surrogates, `kept_ratio`.

    s = c + Σ β g + u (M − p) + rest, at every position: masks that remove a position count as well, and the part of
    the score that the surrogates predict is not left to chance. β is common to all positions. u is the effect of
    keeping the position beyond its own part of g. It is drawn towards its mean over positions as far as its spread is
    noise. With more masks that is less and less, so the limit stays. The estimate is c + (1 − p)(Σ β g_itself + u).
    """
    if moments.itself is None or moments.keep is None:
        return kept_ratio(moments)
    n, (m0, m1, m2) = moments.count, moments.sums
    mean, share = m0[ONE] / n, m1[ONE, ONE] / n
    spread = m0 - n * mean[:, None] * mean
    tilt = m1[ONE] - n * share * mean  # Σ (M − its mean) v
    width = m2[ONE, ONE] - n * share**2  # Σ (M − its mean)²
    places = tuple(range(2, spread.ndim))
    slopes = np.linalg.pinv(spread[2:, 2:].sum(axis=places)) @ spread[2:, S : S + 1].sum(axis=places)[:, 0]
    rest = np.array([0, 1, *-slopes])  # the rest of a score, as a combination of 1, s, g
    left = np.tensordot(rest, tilt, 1)
    effect = np.divide(left, width, out=np.zeros_like(left), where=width > 0)
    squares = np.einsum("u,v,uv...->...", rest, rest, spread) - effect * left
    variance = squares.clip(min=0) / max(n - 2, 1)
    shrunk, variance_left = _shrunk(effect, _divided(variance, width))
    estimate = np.tensordot(rest, mean, 1) + (1 - share) * shrunk
    estimate += (1 - moments.keep) * np.tensordot(slopes, moments.itself, 1)
    return estimate, np.sqrt(variance / n + (1 - moments.keep) ** 2 * variance_left)


def _shrunk(values: np.ndarray, variances: np.ndarray) -> tuple[np.ndarray, float]:
    """Return values drawn towards their mean as far as their spread is noise, and the variance left of each."""
    noise, around = float(np.nanmean(variances)), values - values.mean()
    signal = max(float((around**2).mean()) - noise, 0.0)
    trust = signal / (signal + noise) if signal > 0 else 0.0
    return values.mean() + trust * around, trust * noise


def keep_contrast(moments: MaskMoments) -> Estimate:
    """Return Σ M s / Σ M − Σ (1−M) s / Σ (1−M): the score while a position is kept, less that while it is masked."""
    m0, m1, m2 = moments.sums
    lost = m0 - m1
    a, b = _divided(m1[ONE, S], m1[ONE, ONE]), _divided(lost[ONE, S], lost[ONE, ONE])
    of_kept = _about(m2, a, a) / m1[ONE, ONE] ** 2
    of_lost = _about(lost - m1 + m2, b, b) / lost[ONE, ONE] ** 2
    of_both = _about(m1 - m2, a, b) / (m1[ONE, ONE] * lost[ONE, ONE])
    return a - b, np.sqrt(np.maximum(of_kept + of_lost - 2 * of_both, 0))


def regressed_contrast(moments: MaskMoments) -> Estimate:
    """Return the limit of `keep_contrast` from fewer masks by a regression; without one, `keep_contrast`.

    Cov(M, s) / (p (1 − p)) with M = p + Σ a ψ + rest: the modes' part by `effects`, the rest's by its plain mean. The
    standard error is the posterior's, and that of independent masks for the rest.
    """
    sums, n = moments.regression, moments.count
    if sums is None:
        return keep_contrast(moments)
    modes, fit, (m0, m1, _) = sums.modes, effects(sums), moments.sums
    amplitudes = modes.amplitudes
    mean, variance = m0[ONE, S] / n, (m0[S, S] - m0[ONE, S] ** 2 / n).clip(min=0) / max(n - 1, 1)
    rest = (m1[ONE, S] - mean * m1[ONE, ONE]) / n - np.tensordot(fit.plain, amplitudes, 1)
    saliency = np.tensordot(fit.coefficients, amplitudes, 1) + rest
    squares = (amplitudes * np.tensordot(fit.covariance, amplitudes, 1)).sum(axis=0)
    squares += modes.rest * variance / n
    spread = modes.keep * (1 - modes.keep)
    return saliency / spread, np.sqrt(squares.clip(min=0)) / spread


MEANS: set[Estimator] = {classic, kept_ratio, kept_mean, keep_contrast}
"""Estimators that do not grow with the number of masks."""


def _about(weighted: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return Σ w (s − a)(s − b)."""
    return np.asarray(weighted[S, S] - (a + b) * weighted[ONE, S] + a * b * weighted[ONE, ONE])


def _divided(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return a / b, NaN where a position was never kept (or never masked)."""
    quotient: np.ndarray = np.divide(a, b, out=np.full(np.broadcast(a, b).shape, np.nan), where=b > 0)
    return quotient


def reliability(first: np.ndarray, second: np.ndarray) -> float:
    """Return the rank correlation r of two half-maps, stepped up by Spearman–Brown: 2r / (1 + r), or r if negative.

    −1 to 1; NaN if either is flat or has gaps.
    """
    if np.ptp(first) == 0 or np.ptp(second) == 0 or not np.isfinite(first + second).all():
        return float("nan")
    from scipy import stats  # half of the start of a run, and not needed before

    r = float(stats.spearmanr(first.ravel(), second.ravel()).statistic)
    return 2 * r / (1 + r) if r > 0 else r


BLOCKS = 8
"""The number of blocks of masks from which on their spread is a standard error."""


@dataclass(frozen=True, eq=False)
class Tally:
    """The sums of the masks so far: the moments of two halves, and the spread of single blocks' maps.

    Masks of one block balance each other, so their errors cancel: whole blocks go to either half in turn, or the halves
    would disagree more than independent ones. Masks that do not fill two blocks are shared out by pairs.
    """

    zero: MaskMoments
    halves: tuple[MaskMoments, MaskMoments]
    block: int
    total: int
    maps: tuple[np.ndarray, np.ndarray]
    blocks: int = 0
    estimates: dict[Estimator, Estimate] = field(default_factory=dict)

    @classmethod
    def empty(cls, zero: MaskMoments, block: int, total: int) -> "Tally":
        nothing = np.zeros(zero.sums.shape[3:])
        return cls(zero, (zero, zero), block, total, (nothing, nothing))

    @property
    def used(self) -> int:
        return self.halves[0].count + self.halves[1].count

    def with_masks(
        self, masks: np.ndarray, scores: np.ndarray, surrogates: np.ndarray | None, estimator: Estimator
    ) -> "Tally":
        """Return the tally with a portion of masks added that begins with a block."""

        def added(moments: MaskMoments, chosen: np.ndarray | slice) -> MaskMoments:
            values = None if surrogates is None else surrogates[:, chosen]
            return moments.with_masks(masks[chosen], scores[chosen], values)

        place = self.used + np.arange(len(masks))
        whole = self.total // (2 * self.block) * 2 * self.block
        side = np.where(place < whole, place // self.block, place // 2) % 2
        a, b = (added(half, side == i) for i, half in enumerate(self.halves))
        total, squares = self.maps
        are_means = estimator in MEANS and self.block > 2
        starts = range(0, len(masks) - self.block + 1, self.block) if are_means else ()
        for start in starts:
            estimate, _ = estimator(added(self.zero, slice(start, start + self.block)))
            total, squares = total + estimate, squares + estimate**2
        return replace(self, halves=(a, b), maps=(total, squares), blocks=self.blocks + len(starts), estimates={})

    def estimate(self, estimator: Estimator) -> Estimate:
        """Return the map of all masks; its error is the spread of blocks if there are enough, else the estimator's."""
        saliency, error = self._whole(estimator)
        enough = estimator in MEANS and self.blocks >= BLOCKS
        return saliency, self.error_between_blocks() if enough else error

    def _whole(self, estimator: Estimator) -> Estimate:
        """Return the estimate of all masks, computed once."""
        if estimator not in self.estimates:
            self.estimates[estimator] = estimator(self.halves[0] + self.halves[1])
        return self.estimates[estimator]

    def reliability(self, estimator: Estimator) -> float:
        """Return the `reliability` of the halves; NaN if they are not independent, or of fewer than two masks each.

        A regression draws both halves towards the same flat map, so they may agree in what neither has measured. Its
        reliability is at most the share of the map's variance over positions that its standard error leaves.
        """
        enough = max(4, 2 * self.block) if self.block > 2 else 4
        if self.used < enough:
            return float("nan")
        between_halves = reliability(*(estimator(half)[0] for half in self.halves))
        if estimator is not regressed_contrast or self.zero.regression is None:
            return between_halves
        saliency, error = self._whole(estimator)
        variance = float(saliency.var())
        measured = max(1 - float((error**2).mean()) / variance, -1.0) if variance > 0 else float("nan")
        return min(between_halves, measured)

    def error_between_blocks(self) -> np.ndarray:
        """Return √(variance of a block's map · block / masks), for an estimator that is a mean over masks."""
        total, squares = self.maps
        variance = np.maximum(squares - total**2 / self.blocks, 0) / (self.blocks - 1)
        error: np.ndarray = np.sqrt(variance * self.block / self.used)
        return error
