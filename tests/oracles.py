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


# Published schedules of 30 steps: γ = 60 and γ = 30.
EARLY_60 = """999 893 884 875 865 854 842 829 816 801 785 768 749 729 708 684 659 632 602 571 536 499 459 416 370 319
265 206 143 74"""
LATE_60 = """999 926 857 794 735 681 630 584 541 501 464 429 398 368 341 316 292 271 251 232 215 199 184 171 158 146 135
125 116 107"""
EARLY_30 = """999 965 961 956 950 944 937 930 921 911 901 888 875 859 842 823 801 777 749 719 684 646 602 554 499 438
370 293 206 109"""
LATE_30 = """999 891 794 707 630 562 501 446 398 354 316 281 251 223 199 177 158 141 125 112 99 89 79 70 63 56 50 44 39
35"""
