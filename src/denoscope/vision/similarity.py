"""The terms of structural similarity (Wang et al. 2004), as pure functions of local moments."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch

C1, C2 = 0.01**2, 0.03**2
C3 = C2 / 2
"""The constants that keep the terms finite, for values in [0, 1]."""


@dataclass(frozen=True, eq=False)
class LocalMoments:
    """Gaussian-weighted local mean and standard deviation of maps (n, channels, h, w)."""

    values: torch.Tensor
    mean: torch.Tensor
    variance: torch.Tensor

    @classmethod
    def of(cls, values: torch.Tensor, window: int = 15, sigma: float = 1.5) -> "LocalMoments":
        """Return the moments in a window of `window` × `window`, zero padded; variances are clamped at 0."""
        mean = blurred(values, window, sigma)
        variance = (blurred(values * values, window, sigma) - mean * mean).clamp(min=0)
        return cls(values, mean, variance)


def blurred(values: torch.Tensor, window: int, sigma: float) -> torch.Tensor:
    """Filter maps (..., h, w) by a Gaussian with zero padding, as two matrix products: K_h x K_wᵀ."""
    height, width = values.shape[-2:]
    rows = _band_matrix(height, window, sigma, values.dtype, values.device)
    columns = rows if height == width else _band_matrix(width, window, sigma, values.dtype, values.device)
    return rows @ values @ columns.mT


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # a later call may need gradients
def _band_matrix(size: int, window: int, sigma: float, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return the filter along one axis; it is copied to a device once, and not at every call."""
    offset = torch.arange(size, dtype=torch.float64)[:, None] - torch.arange(size)
    reach = torch.arange(window, dtype=torch.float64) - window // 2
    total = torch.exp(-(reach**2) / (2 * sigma**2)).sum()
    matrix = torch.exp(-(offset**2) / (2 * sigma**2)) / total * (offset.abs() <= window // 2)
    return matrix.to(device, dtype)


def covariance(a: LocalMoments, b: LocalMoments, window: int = 15, sigma: float = 1.5) -> torch.Tensor:
    """Return the local covariance σ_ab, (n, channels, h, w)."""
    return blurred(a.values * b.values, window, sigma) - a.mean * b.mean


def structure(a: LocalMoments, b: LocalMoments, numerator: float = 1.0) -> torch.Tensor:
    """Return s = (σ_ab + C3) / (σ_a σ_b + C3); the published code has 2 σ_ab, `numerator=2`."""
    return (numerator * covariance(a, b) + C3) / ((a.variance * b.variance).sqrt() + C3)


def contrast(a: LocalMoments, b: LocalMoments) -> torch.Tensor:
    """Return c = (2 σ_a σ_b + C2) / (σ_a² + σ_b² + C2)."""
    return (2 * (a.variance * b.variance).sqrt() + C2) / (a.variance + b.variance + C2)


def luminance(a: LocalMoments, b: LocalMoments) -> torch.Tensor:
    """Return l = (2 μ_a μ_b + C1) / (μ_a² + μ_b² + C1)."""
    return (2 * a.mean * b.mean + C1) / (a.mean**2 + b.mean**2 + C1)


def full_ssim(a: LocalMoments, b: LocalMoments) -> torch.Tensor:
    """Return SSIM = l · c · s."""
    return luminance(a, b) * contrast(a, b) * structure(a, b)


def cosine(a: LocalMoments, b: LocalMoments) -> torch.Tensor:
    """Return the cosine of the channel vectors at each position, (n, 1, h, w)."""
    return torch.nn.functional.cosine_similarity(a.values, b.values, dim=1)[:, None]


SIMILARITIES: dict[str, Callable[[LocalMoments, LocalMoments], torch.Tensor]] = {
    "structure": structure,
    "contrast": contrast,
    "luminance": luminance,
    "ssim": full_ssim,
    "cosine": cosine,
}
"""Similarities by name, from local moments of two maps to values at each position."""
