"""The integral of Integrated Gradients, with more points until it adds up."""

from typing import NamedTuple

import numpy as np
import torch

from ..targets import Score

POINTS = (5, 11, 23, 47, 95, 191)
"""The numbers of points that are tried; each rule has all points of the rule before it."""


class Integral(NamedTuple):
    """Attributions (n, channels, ...), the convergence delta (n,), and the points that were used (n,), by sample."""

    attributions: torch.Tensor
    delta: torch.Tensor
    points: torch.Tensor


def fejer(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return places in [0, 1], falling, and weights of Fejér's second rule, exact for polynomials below `number`.

    The rule with 2 n + 1 points has the points of the rule with n in every second place, so that it costs n + 1 more.
    Source: Waldvogel 2006, "Fast construction of the Fejér and Clenshaw–Curtis quadrature rules".

    >>> places, weights = fejer(3)
    >>> places.round(3).tolist(), weights.round(3).tolist()
    ([0.854, 0.5, 0.146], [0.333, 0.333, 0.333])
    """
    angles = np.arange(1, number + 1) * np.pi / (number + 1)
    odd = np.arange(1, number + 1, 2)
    weights = 2 * np.sin(angles) / (number + 1) * (np.sin(angles[:, None] * odd) / odd).sum(axis=1)
    return (np.cos(angles) + 1) / 2, weights


def integrated(score: Score, samples: torch.Tensor, baselines: float | torch.Tensor, tolerance: float) -> Integral:
    """Integrate gradients from the baselines to samples (n, channels, ...), with as many points as each sample needs.

    A sample is finished when its attributions add up to the change of the score but for `tolerance` of that change, and
    when their map differs from that of half as many points by at most `tolerance` of its summed magnitude. The first
    alone can hold by chance. Otherwise it ends with the most points.
    """
    start = torch.zeros_like(samples) + baselines
    with torch.no_grad():
        change = score(samples) - score(start)
    attributions, delta = torch.zeros_like(samples), torch.zeros_like(change)
    points, left = torch.zeros(len(samples), dtype=torch.long), torch.arange(len(samples))
    gradients: list[torch.Tensor] = []
    for number in POINTS:
        gradients = _gradients(score, samples[left], start[left], number, gradients)
        _, weights = fejer(number)
        mean = sum(float(weight) * gradient for weight, gradient in zip(weights, gradients, strict=True))
        parts = (samples[left] - start[left]) * mean
        missing = parts.flatten(1).sum(dim=1) - change[left]
        moved = (parts - attributions[left]).sum(dim=1).abs().flatten(1).sum(dim=1)
        magnitude = parts.sum(dim=1).abs().flatten(1).sum(dim=1)
        attributions[left], delta[left], points[left] = parts, missing, number
        unfinished = (missing.abs() > tolerance * change[left].abs()) | (moved > tolerance * magnitude)
        unfinished = (unfinished | (number == POINTS[0])).cpu()
        left, gradients = left[unfinished], [gradient[unfinished] for gradient in gradients]
        if not len(left):
            break
    return Integral(attributions, delta, points)


def _gradients(
    score: Score, samples: torch.Tensor, start: torch.Tensor, number: int, earlier: list[torch.Tensor]
) -> list[torch.Tensor]:
    """Return the gradients at all places of a rule, each like the samples, with those of the rule before it."""
    places, _ = fejer(number)
    further = places[::2] if earlier else places
    path = [start + float(place) * (samples - start) for place in further]
    inputs = torch.cat(path).requires_grad_()
    with torch.enable_grad():
        (gradients,) = torch.autograd.grad(score(inputs).sum(), inputs)
    computed = list(torch.split(gradients, len(samples)))
    if not earlier:
        return computed
    together = [torch.empty(0)] * number
    together[::2], together[1::2] = computed, earlier
    return together
