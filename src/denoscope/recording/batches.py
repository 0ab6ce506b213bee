"""The number of samples that go through a network at once."""

import math

import numpy as np
import torch

POSITIONS_ON_CPU, POSITIONS_ELSEWHERE = 2**14, 2**17
"""Positions of all samples together: 16,384 on a CPU and 131,072 on other devices."""
MOST_SAMPLES = 64
"""Samples, however small they are."""


def samples_at_once(
    sample: torch.Tensor,
    *,
    on_cpu: int = POSITIONS_ON_CPU,
    elsewhere: int = POSITIONS_ELSEWHERE,
    most: int = MOST_SAMPLES,
) -> int:
    """Return how many samples like this one, (n, channels, [frames,] h, w), to compute at once on its device.

    1 to `most`. `on_cpu` and `elsewhere` are the positions [frames ·] h · w that may be in memory together.

    >>> samples_at_once(torch.zeros(1, 4, 16, 16)), samples_at_once(torch.zeros(1, 4, 128, 128))
    (64, 1)
    """
    positions = math.prod(sample.shape[2:])
    limit = on_cpu if sample.device.type == "cpu" else elsewhere
    return int(np.clip(limit // positions, 1, most))
