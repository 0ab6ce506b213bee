"""What each row of a denoiser's outputs counts in a step's prediction, and which half of guidance that makes it.

Guidance is u + w (c − u): with w above 1 the prompt's row counts w, and the negative prompt's counts 1 − w, less than
nothing. The factors are fitted to what the scheduler was passed.
"""

from collections.abc import Sequence

import torch

from .hooks.mixing import Mixture
from .hooks.replay import Part

CLEAR = 1e-3
"""The least part of all rows' counts by which a row is above or below nothing."""

Counts = list[tuple[float, ...]]
"""For each call, what each batch of its output's rows counts; all together are 1."""


def counted(outputs: Sequence[torch.Tensor], sample: torch.Tensor, prediction: torch.Tensor) -> Counts | None:
    """Return what the calls' outputs count in a prediction; None if it is no sum of them."""
    batches: list[torch.Tensor] = []
    numbers: list[int] = []
    for output in outputs:
        parts = Part.candidates(output.shape, prediction.shape)
        if not parts:
            return None
        own = torch.split(parts[0].of(output), len(prediction))
        batches += own
        numbers.append(len(own))
    mixture = Mixture.fitted(batches, sample, prediction) if batches else None
    whole = 0.0 if mixture is None else sum(mixture.shares)
    if mixture is None or abs(whole) <= CLEAR * max(map(abs, mixture.shares)):
        return None
    shares = iter([share / whole for share in mixture.shares])
    return [tuple(next(shares) for _ in range(number)) for number in numbers]


def of_the_other_half(counts: Counts, conditional: bool) -> list[frozenset[int]]:
    """Return the batches of rows of each call that belong to the other half of guidance for sure.

    The others may belong to the half that is asked for. None does for sure where not both halves are there.
    """
    side = 1 if conditional else -1
    largest = max(abs(count) for call in counts for count in call)
    for_sure = [[side * count < -CLEAR * largest for count in call] for call in counts]
    others = [[side * count > CLEAR * largest for count in call] for call in counts]
    if not any(map(any, for_sure)) or not any(map(any, others)):
        return [frozenset() for _ in counts]
    return [frozenset(place for place, sure in enumerate(call) if sure) for call in for_sure]
