"""Slow re-implementations that fast code is held against."""

import numpy as np

from denoscope.vision.similarity import C1, C2, C3


def slow_terms(a, b, window=15, sigma=1.5, numerator=1.0):
    """luminance, contrast and structure of two maps (h, w), window by window, zeros outside."""
    reach = np.arange(window) - window // 2
    line = np.exp(-(reach**2) / (2 * sigma**2))
    weights = np.outer(line, line) / line.sum() ** 2
    half, out = window // 2, np.zeros((3, *a.shape))
    a, b = (np.pad(v.astype(np.float64), half) for v in (a, b))
    for i, j in np.ndindex(out.shape[1:]):
        x, y = a[i : i + window, j : j + window], b[i : i + window, j : j + window]
        mx, my = (weights * x).sum(), (weights * y).sum()
        vx, vy = max((weights * x * x).sum() - mx**2, 0), max((weights * y * y).sum() - my**2, 0)
        cov = (weights * x * y).sum() - mx * my
        out[0, i, j] = (2 * mx * my + C1) / (mx**2 + my**2 + C1)
        out[1, i, j] = (2 * np.sqrt(vx * vy) + C2) / (vx + vy + C2)
        out[2, i, j] = (numerator * cov + C3) / (np.sqrt(vx * vy) + C3)
    return out
