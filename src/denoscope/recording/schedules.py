"""Schedules of time steps: uniform, early, late, a band (Park, Ju, Lee 2024; arXiv 2402.10404).

Pure functions from a number of steps to a descending list of time steps. `resolve` reads a schedule as a user types it,
and `coverage` counts the steps of a list by their noise. Large time steps are noise, so "early" spends the steps near T
and "late" near 0.
"""

import math
import re
from collections.abc import Callable, Sequence
from itertools import pairwise

from ..errors import ScheduleError, did_you_mean

SHIFT = 60.0


def early(l: int, gamma: float = SHIFT, T: int = 1000) -> list[int]:  # noqa: E741
    """Return s_i = T − int(δ^(i+γ)), i = 1..l, δ^(l+γ) = T, with T − 1 in front and without the last (0).

    >>> early(30)[:3], early(30)[-1]
    ([999, 893, 884], 74)
    """
    return _valid([T - 1, *(T - s for s in _powers(l, gamma, T))][:-1], T)


def late(l: int, gamma: float = SHIFT, T: int = 1000) -> list[int]:  # noqa: E741
    """Return s_i = int(δ^(i+γ)), i = 1..l, δ^(l+γ) = T, sorted descending, the first T → T − 1.

    >>> late(30)[:3], late(30)[-1]
    ([999, 926, 857], 107)
    """
    return _valid([min(s, T - 1) for s in reversed(_powers(l, gamma, T))], T)


def uniform(l: int, T: int = 1000) -> list[int]:  # noqa: E741
    """Return l evenly spaced steps from T − 1 down to T / l − 1 (diffusers' "trailing" spacing)."""
    return _valid([round(T - i * T / l) - 1 for i in range(l)], T)


def band(start: int, width: int = 50, inside: int = 25, outside: int = 6, T: int = 1000) -> list[int]:
    """Return `outside` uniform steps and `inside` steps in the window [start, start + width].

    >>> len(band(600)), [t for t in band(600) if 600 <= t <= 605]
    (31, [604, 602, 600])
    """
    if not 0 <= start < start + width <= T or not 2 <= inside <= width + 1:
        raise ScheduleError(
            f"A band of {inside} steps from {start} to {start + width} cannot be made: it must lie inside 0..{T} "
            "and be wide enough for at least 2 different steps in it. The paper has 25 steps in a window 50 wide."
        )
    window = [round(start + i * width / (inside - 1)) for i in range(inside)]
    return _valid(sorted({*uniform(outside, T), *(min(s, T - 1) for s in window)}, reverse=True), T)


def _powers(l: int, gamma: float, T: int) -> list[int]:  # noqa: E741
    """Return int(δ^(i+γ)), i = 1..l, with δ^(l+γ) = T; raises `ScheduleError` unless l + γ is positive and finite."""
    if l < 1 or not 0 < l + gamma < math.inf:
        raise ScheduleError(
            f"A schedule of {l} steps with shift {gamma} cannot be made: it needs at least 1 step and "
            "a shift above minus the number of steps. The paper uses 30 steps and a shift of 60."
        )
    powers = [int(math.exp(math.log(T) * (i + gamma) / (l + gamma))) for i in range(1, l)]
    return [*powers, T]  # δ^(l+γ) is exactly T, whatever floating point says


def _valid(timesteps: Sequence[int], T: int) -> list[int]:
    """Return the time steps as a list; raises `ScheduleError` unless they fall strictly and lie in 0 .. T − 1."""
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
    first = [str(t) for t in timesteps[:8]]
    more = ["..."] if len(timesteps) > 8 else []
    return ", ".join([*first, *more])


SCHEDULES: dict[str, Callable[..., list[int]]] = {"uniform": uniform, "early": early, "late": late}
TYPED = (*SCHEDULES, "band:600", "band:600-700", "999,800,600")
"""Examples of each way to write a schedule."""

Schedule = str | Sequence[int]
"""A name as a user types it, or a falling list of time steps, such as `band(600, width=100)`."""


def takes_shift(schedule: Schedule) -> bool:
    """Return True if a shift γ moves the schedule."""
    return schedule in ("early", "late")


def resolve(schedule: Schedule, steps: int, shift: float | None = None, T: int = 1000) -> list[int] | None:
    """Return the time steps of a schedule as typed, or of a list; None for "uniform", the scheduler's own spacing.

    >>> resolve("late", 3, 60), resolve("band:600", 30)[:3], resolve("999,500", 30)
    ([999, 896, 803], [999, 832, 666], [999, 500])

    A band and a list have a number of steps of their own. Raises `ScheduleError` for an unknown name, with the nearest
    one that exists, and for a shift beside a schedule that has none.
    """
    if shift is not None and not takes_shift(schedule):
        name = f'"{schedule}"' if isinstance(schedule, str) else "a list of time steps"
        raise ScheduleError(f'A shift of {shift:g} was given, but {name} has none. Use "early" or "late" with it.')
    if not isinstance(schedule, str):
        return _valid([_whole(t) for t in schedule], T)
    if schedule == "uniform":
        return None
    if schedule in SCHEDULES:
        return SCHEDULES[schedule](steps, SHIFT if shift is None else shift, T)
    return _read(schedule.strip(), T)


def _read(typed: str, T: int) -> list[int]:
    """Read a band, "band:600" or "band:600-700", or a list, "999,800,600"."""
    window = re.fullmatch(r"band:(\d+)(?:-(\d+))?", typed)
    if window:
        start, end = int(window[1]), window[2]
        return band(start, T=T) if end is None else band(start, int(end) - start, T=T)
    if re.fullmatch(r"-?\d+(\s*,\s*-?\d+)*", typed):
        return _valid([int(word) for word in typed.split(",")], T)
    raise ScheduleError(f'There is no schedule "{typed}". {did_you_mean(typed, TYPED)}')


def _whole(timestep: int) -> int:
    """Return a time step as an integer; raises `ScheduleError` if it is not whole."""
    if int(timestep) != timestep:
        raise ScheduleError(
            f"The time step {timestep} is no whole number. The models that take a list count theirs from 0: give whole "
            "numbers, such as [999, 800, 600]."
        )
    return int(timestep)


BANDS = {"coarse": 1e-2, "content": 1.0, "clean-up": math.inf}
"""Bands of SNR = ᾱ / (1 − ᾱ), each up to this value (P2 weighting, Choi et al. 2022; arXiv 2204.00227)."""


def coverage(log_snr: Sequence[float]) -> dict[str, float]:
    """Return the share of steps in each band of SNR, by their log-SNR.

    >>> coverage([-6.0, -2.0, -1.0, 3.0])
    {'coarse': 0.25, 'content': 0.5, 'clean-up': 0.25}
    """
    bands = [_band_of(value) for value in log_snr]
    return {name: bands.count(name) / len(bands) for name in BANDS}


def _band_of(log_snr: float) -> str:
    snr = math.exp(min(log_snr, 700.0))
    if snr < BANDS["coarse"]:
        return "coarse"
    return "content" if snr <= BANDS["content"] else "clean-up"


# Schedulers.

SCHEDULERS = {
    "dpm-solver++": "DPMSolverMultistepScheduler",
    "dpm-solver++-single": "DPMSolverSinglestepScheduler",
    "ddpm": "DDPMScheduler",
    "euler": "EulerDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "lcm": "LCMScheduler",
    "tcd": "TCDScheduler",
    "ddim": "DDIMScheduler",
    "pndm": "PNDMScheduler",
    "unipc": "UniPCMultistepScheduler",
    "deis": "DEISMultistepScheduler",
    "lms": "LMSDiscreteScheduler",
    "euler-ancestral": "EulerAncestralDiscreteScheduler",
}
"""Schedulers that a run may be swapped to, by the names of their papers."""


def check_scheduler(name: str | None) -> None:
    """Raise `ScheduleError` for a name that no scheduler has; None is the pipeline's own."""
    if name is not None and name not in SCHEDULERS:
        raise ScheduleError(f'There is no scheduler "{name}". {did_you_mean(name, SCHEDULERS)}')
