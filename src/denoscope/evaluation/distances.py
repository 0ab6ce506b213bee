"""Distances of pictures: by their pixels, by their structure, and by the features of an image encoder."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
import xarray as xr

from ..vision.encoders import Features
from ..vision.similarity import LocalMoments, full_ssim

REACH = 7
"""Pixels at the border where the 15 × 15 window of the SSIM would reach beyond the picture."""


def distances(pictures: Mapping[str, np.ndarray], encoder: Features | None = None) -> xr.Dataset:
    """Compare every pair of pictures (h, w, 3) uint8, by their names: dims (a, b).

    Variables: `mse` of values in [0, 1]; `ssim`, 1 for equal pictures; and with an encoder `features`, one minus the
    cosine of the two pictures' features, 0 to 2. Pictures of different sizes have only the last; the others are NaN.
    """
    names, batches = list(pictures), [_batch(picture) for picture in pictures.values()]
    measures = {"mse": _matrix(mean_squared, batches), "ssim": _matrix(ssim, batches)}
    if encoder is not None:
        with torch.no_grad():
            features = torch.cat([torch.nn.functional.normalize(encoder(picture), dim=-1) for picture in batches])
        measures["features"] = (1 - features @ features.T).clamp(min=0).double().cpu().numpy()
    return xr.Dataset({name: (("a", "b"), values) for name, values in measures.items()}, {"a": names, "b": names})


def _batch(picture: np.ndarray) -> torch.Tensor:
    """Convert (h, w, 3) uint8 to (1, 3, h, w) in [0, 1]."""
    return torch.from_numpy(np.array(picture)).movedim(-1, 0)[None].double() / 255


def _matrix(measure: Callable[[torch.Tensor, torch.Tensor], float], pictures: list[torch.Tensor]) -> np.ndarray:
    """Return the measure of every pair, (n, n); NaN for pictures of different sizes."""
    rows = []
    for a in pictures:
        rows.append([measure(a, b) if a.shape == b.shape else np.nan for b in pictures])
    return np.array(rows)


def mean_squared(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the mean of (a − b)² over everything."""
    return float((a - b).square().mean())


def ssim(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the mean structural similarity of pictures (1, 3, h, w) in [0, 1], away from the border.

    Source: Wang et al. 2004.
    """
    whole = full_ssim(LocalMoments.of(a), LocalMoments.of(b))
    inside = whole[..., REACH:-REACH, REACH:-REACH]
    return float((inside if inside.numel() else whole).mean())
