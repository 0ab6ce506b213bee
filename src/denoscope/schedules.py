"""Which time steps: uniform, early, late, a band (Park, Ju, Lee 2024; arXiv 2402.10404).

Pure functions from a number of steps to a descending list of time steps, plus `resolve`, which reads
what a user typed. Large time steps are noise, so "early" spends the steps near T and "late" near 0.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from .errors import ScheduleError, did_you_mean

SHIFT = 60.0


def early(l: int, gamma: float = SHIFT, T: int = 1000) -> list[int]:  # noqa: E741
    """s_i = T − int(δ^(i+γ)), i = 1..l, δ^(l+γ) = T; T − 1 is put in front and the last (0) dropped.

    >>> early(30)[:3], early(30)[-1]
    ([999, 893, 884], 74)
    """
    return _valid([T - 1, *(T - s for s in _powers(l, gamma, T))][:-1], T)


def late(l: int, gamma: float = SHIFT, T: int = 1000) -> list[int]:  # noqa: E741
    """s_i = int(δ^(i+γ)), i = 1..l, δ^(l+γ) = T, sorted descending, the first T → T − 1.

    >>> late(30)[:3], late(30)[-1]
    ([999, 926, 857], 107)
    """
    return _valid([min(s, T - 1) for s in reversed(_powers(l, gamma, T))], T)


def uniform(l: int, T: int = 1000) -> list[int]:  # noqa: E741
    """l evenly spaced steps from T − 1 down, the last one T / l − 1 (diffusers' "trailing" spacing)."""
    return _valid([round(T - i * T / l) - 1 for i in range(l)], T)


def band(start: int, width: int = 50, inside: int = 25, outside: int = 6, T: int = 1000) -> list[int]:
    """`outside` uniform steps and `inside` steps in the window [start, start + width]."""
    window = [round(start + i * width / (inside - 1)) for i in range(inside)]
    return _valid(sorted({*uniform(outside, T), *(min(s, T - 1) for s in window)}, reverse=True), T)


def _powers(l: int, gamma: float, T: int) -> list[int]:  # noqa: E741
    if l < 1 or not 0 < l + gamma < math.inf:
        raise ScheduleError(
            f"A schedule of {l} steps with shift {gamma} cannot be made: it needs at least 1 step and "
            "a shift above minus the number of steps. The paper uses 30 steps and a shift of 60."
        )
    powers = [int(math.exp(math.log(T) * (i + gamma) / (l + gamma))) for i in range(1, l)]
    return [*powers, T]  # δ^(l+γ) is exactly T, whatever floating point says


def _valid(timesteps: Sequence[int], T: int) -> list[int]:
    """Descending, distinct and inside 0 .. T − 1, or an error that says what is not."""
    wrong = [t for t in timesteps if not 0 <= t < T]
    falls = all(a > b for a, b in pairwise(timesteps))
    if wrong or not falls or not timesteps:
        problem = f"{wrong[0]} is outside 0..{T - 1}" if wrong else "they must fall strictly and be at least one"
        raise ScheduleError(
            f"These {len(timesteps)} time steps cannot be used: {problem}. Given: {_short(timesteps)}. "
            "Use fewer steps or a larger shift, or give a strictly falling list."
        )
    return list(timesteps)


def _short(timesteps: Sequence[int]) -> str:
    shown = [str(t) for t in timesteps[:8]]
    return ", ".join(shown) + (", ..." if len(timesteps) > 8 else "")


SCHEDULES: dict[str, Callable[..., list[int]]] = {"uniform": uniform, "early": early, "late": late}


def resolve(schedule: str | Sequence[int], steps: int, shift: float | None = None, T: int = 1000) -> list[int] | None:
    """Time steps for a name or an explicit list; None for "uniform", which is the scheduler's own spacing.

    Raises `ScheduleError` for an unknown name, with the nearest known one.
    """
    if not isinstance(schedule, str):
        return _valid([int(t) for t in schedule], T)
    if schedule not in SCHEDULES:
        raise ScheduleError(f'There is no schedule "{schedule}". {did_you_mean(schedule, SCHEDULES)}')
    if schedule == "uniform":
        if shift is not None:
            raise ScheduleError(
                f'A shift of {shift:g} was given, but "uniform" has none. Use "early" or "late" with it.'
            )
        return None
    return SCHEDULES[schedule](steps, SHIFT if shift is None else shift, T)
