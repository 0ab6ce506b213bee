"""The contrast of coarse masks by a regression of their scores on what they keep.

Sources: Hoerl and Kennard 1970 (ridge regression); MacKay 1992, "Bayesian interpolation" (how far to shrink, by the
evidence); Loève 1948 (principal components of a random field); Petsiuk, Das, Saenko 2018 (the masks).
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

import numpy as np
import torch

from .beside import each_of
from .masks import Masks

SHARE = 0.999
"""The share of the masks' variance that the modes hold; the rest is estimated without a regression."""
MOST = 192
"""The largest number of modes; a clip of many frames would have more."""
LEADING = 16
"""The number of modes whose products stand in the regression."""
PAIRWISE = (0.0, 0.2, 1.0)
"""Variances of the pairwise part of a score, in units of the linear part, of which the evidence chooses."""
LEVELS = (1.0, 30.0)
"""Variances of the first mode, how much is kept in all, in units of its own, of which the evidence chooses."""
STRENGTHS = np.geomspace(1e-3, 1e5, 60)
"""Variances of the linear part, in units of the noise, of which the evidence chooses."""


@dataclass(frozen=True, eq=False)
class Modes:
    """The principal components of random masks: M = p + Σ_k a_k ψ_k + rest, with ψ of mean 0, variance 1, uncorrelated.

    `amplitudes` are a (k, *map), the largest first, and p is the probability of keeping, `keep`. The contrast of a
    score, (E[M s] / E[M]) − E[(1 − M) s] / E[1 − M] = Cov(M, s) / (p (1 − p)), is then Σ_k a_k E[ψ_k s] / (p (1 − p))
    and the little that the rest adds, whatever function of the mask the score is. `rest` (*map) is the rest's variance.
    """

    amplitudes: np.ndarray
    rest: np.ndarray
    keep: float

    @classmethod
    def of(cls, masks: Masks, shape: tuple[int, ...]) -> "Modes | None":
        """Return the modes of a source of masks; None if it does not know its covariance."""
        law = masks.law(shape)
        if law is None:
            return None
        parts = [np.linalg.eigh(matrix) for matrix in law.covariances]
        variances = np.clip(_outer([values for values, _ in parts]), 0, None)
        order = np.argsort(-variances.ravel(), kind="stable")
        held = np.cumsum(variances.ravel()[order]) / variances.sum()
        chosen = order[: min(MOST, int(np.searchsorted(held, SHARE)) + 1)]
        places = zip(*np.unravel_index(chosen, variances.shape), strict=True)
        amplitudes = np.stack(
            [
                math.sqrt(variances[place])
                * _outer([vectors[:, k] for (_, vectors), k in zip(parts, place, strict=True)])
                for place in places
            ]
        )
        whole = _outer([np.diag(matrix) for matrix in law.covariances])
        return cls(amplitudes, np.clip(whole - (amplitudes**2).sum(axis=0), 0, None), law.keep)

    @cached_property
    def weights(self) -> np.ndarray:
        """Return each mode's share of the variance that the modes hold, (k,)."""
        variances = (self.amplitudes.reshape(len(self.amplitudes), -1) ** 2).sum(axis=1)
        weights: np.ndarray = variances / variances.sum()
        return weights

    @cached_property
    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the modes of each product; of masks that are not their complements' equals there are none."""
        leading = min(LEADING, len(self.amplitudes)) if self.keep == 0.5 else 0
        return np.triu_indices(leading)

    @cached_property
    def pair_weights(self) -> np.ndarray:
        """Return the prior variance of each product's coefficient, (pairs,): (Σ w ψ ψ′)² has them."""
        a, b = self.pairs
        weights: np.ndarray = self.weights[a] * self.weights[b] * np.where(a == b, 1, 2)
        return weights

    def __call__(self, masks: np.ndarray) -> np.ndarray:
        """Return 1, ψ and the products ψ_a ψ_b of masks (n, *map), as (n, columns)."""
        flat = self.amplitudes.reshape(len(self.amplitudes), -1)
        change = masks.reshape(len(masks), -1).astype(np.float64) - self.keep
        psi = product_of(change, flat.T) / (flat**2).sum(axis=1)
        a, b = self.pairs
        return np.concatenate([np.ones((len(masks), 1)), psi, psi[:, a] * psi[:, b]], axis=1)


def product_of(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return a matrix product by torch: NumPy's threads would wait for torch's, and torch's for them."""
    product: np.ndarray = (torch.from_numpy(a) @ torch.from_numpy(b)).numpy()
    return product


def _outer(factors: list[np.ndarray]) -> np.ndarray:
    """Return the outer product of vectors, one axis each."""
    outer = np.ones(())
    for factor in factors:
        outer = np.multiply.outer(outer, factor)
    return outer


@dataclass(frozen=True, eq=False)
class ModeSums:
    """Σ_n z zᵀ over masks, with z = (1, ψ, products, s): enough for the regression, whatever the number of masks."""

    modes: Modes
    gram: np.ndarray

    @classmethod
    def zero(cls, modes: Modes) -> "ModeSums":
        columns = 2 + len(modes.amplitudes) + len(modes.pairs[0])
        return cls(modes, np.zeros((columns, columns)))

    def with_masks(self, masks: np.ndarray, scores: np.ndarray) -> "ModeSums":
        """Return the sums with masks (n, *map) and one score each (n,) added."""
        z = np.column_stack([self.modes(masks), scores])
        return replace(self, gram=self.gram + product_of(z.T, z))

    def __add__(self, other: "ModeSums") -> "ModeSums":
        return replace(self, gram=self.gram + other.gram)


@dataclass(frozen=True)
class Effects:
    """The coefficients θ (k,) of the modes, their covariance (k, k), and plain means of ψ s in their place."""

    coefficients: np.ndarray
    covariance: np.ndarray
    plain: np.ndarray


def effects(sums: ModeSums) -> Effects:
    """Return s = c + Σ θ ψ + Σ φ ψ_a ψ_b + noise by its posterior mean, with variances chosen by the evidence.

    θ_k ~ N(0, τ² w_k): as if each position counted on its own, so no smoothness is assumed beyond the masks'.
    The first mode, how much is kept in all, may have a larger variance.
    φ_ab ~ N(0, q τ² w_a w_b) takes pairs of places out of the noise. The products are uncorrelated with the masks, and
    the prior fades with more masks, so θ tends to E[ψ s] for any score.
    """
    modes, n = sums.modes, sums.gram[0, 0]
    k = len(modes.amplitudes)
    mean = sums.gram[0] / n
    spread = (sums.gram - n * np.outer(mean, mean))[1:, 1:]
    G, b, square = spread[:-1, :-1], spread[:-1, -1], spread[-1, -1]
    if square <= 1e-12 * sums.gram[-1, -1]:
        return Effects(np.zeros(k), np.zeros((k, k)), np.zeros(k))
    pairwise = PAIRWISE if len(modes.pairs[0]) else PAIRWISE[:1]
    priors = [_prior(modes, *choice) for choice in product(pairwise, LEVELS)]
    fits = each_of(lambda prior: _fit(G, b, square, n - 1, prior), priors)
    best = max(fits, key=lambda fit: fit.evidence)
    return Effects(best.coefficients[:k], best.covariance[:k, :k], b[:k] / n)


def _prior(modes: Modes, pairwise: float, level: float) -> np.ndarray:
    """Return the prior variances of θ and φ, in units of τ²."""
    linear = modes.weights.copy()
    linear[0] *= level
    return np.concatenate([linear, pairwise * modes.pair_weights])


@dataclass(frozen=True)
class _Fit:
    evidence: float
    coefficients: np.ndarray
    root: np.ndarray

    @property
    def covariance(self) -> np.ndarray:
        return product_of(self.root, self.root.T)


def _fit(G: np.ndarray, b: np.ndarray, square: float, n: float, prior: np.ndarray) -> _Fit:
    """Return the posterior under the prior variances, times the strength of the greatest evidence.

    With y = X θ + noise: G = XᵀX, b = Xᵀy, square = yᵀy.
    """
    scale = np.sqrt(prior)
    w, V = (part.numpy() for part in torch.linalg.eigh(torch.from_numpy(scale[:, None] * G * scale)))
    w, along = w.clip(0), (V.T @ (scale * b)) ** 2
    shrunk = STRENGTHS[:, None] / (1 + STRENGTHS[:, None] * w)
    noise = (square - (shrunk * along).sum(axis=1)).clip(min=1e-12 * square) / n
    evidence = -0.5 * np.log1p(STRENGTHS[:, None] * w).sum(axis=1) - 0.5 * n * np.log(noise)
    i = int(evidence.argmax())
    B = scale[:, None] * V
    return _Fit(float(evidence[i]), B @ (shrunk[i] * (V.T @ (scale * b))), B * np.sqrt(noise[i] * shrunk[i]))
