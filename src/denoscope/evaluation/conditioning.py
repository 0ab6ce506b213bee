"""Does the model need to be told the time? Made again with the denoiser told a constant time step, or shuffled ones.

Only the denoiser is misled: the scheduler goes on as before. What is then asked: is it the same picture, are the maps
the same (`sanity.time_agreement`), do coarse things still come before fine ones (`frequencies`)?
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError
from ..hooks import Replay, other_times
from ..traces import Trace

Time = Callable[[float], float]
"""From the time step that a denoiser would have been told to the one that it is told."""


@dataclass(frozen=True)
class ConstantTime:
    """The same time step always, in the denoiser's own units.

    >>> ConstantTime(500)(999.0)
    500.0
    """

    timestep: float

    def __call__(self, timestep: float) -> float:
        return float(self.timestep)


@dataclass(frozen=True)
class ShuffledTime:
    """The run's own time steps in another order: `others` stands for each of `timesteps`.

    >>> ShuffledTime((999.0, 500.0, 1.0), (1.0, 999.0, 500.0))(999.0)
    1.0
    """

    timesteps: tuple[float, ...]
    others: tuple[float, ...]

    @classmethod
    def of(cls, trace: Trace, seed: int = 0) -> "ShuffledTime":
        """The time steps that a trace's denoiser was told, in an order drawn at random."""
        told = tuple(dict.fromkeys(step.replay.time for step in trace if isinstance(step.replay, Replay)))
        if len(told) < 2:
            raise InputError(f"The time steps {list(told)} cannot be shuffled: there are fewer than two. Record more.")
        return cls(told, tuple(np.random.default_rng(seed).permutation(told).tolist()))

    def __call__(self, timestep: float) -> float:
        if timestep not in self.timesteps:
            raise InputError(
                f"The denoiser was told the time step {timestep:g}, which is not among those that were shuffled, "
                f"{', '.join(f'{t:g}' for t in self.timesteps)}. Shuffle the time steps of the same schedule."
            )
        return self.others[self.timesteps.index(timestep)]


def told(trace: Trace, change: Time) -> Trace:
    """The same call again, the same seed, with the denoiser told `change(t)` for each time step t.

    The new trace's steps replay what the denoiser was told then. Raises `InputError` for a trace without a seed.
    """
    call: dict[str, Any] = dict(trace.call)
    args, picture = call.pop("args", ()), call.pop("picture", None)
    if call.get("seed") is None:
        raise InputError(
            "This trace was recorded without a seed, so it cannot be made again. Record it with one: "
            "model.trace(..., seed=0)."
        )
    with other_times(trace.model.denoiser, change):
        again = trace.model.trace(*args, **call)
    return again if picture is None else again.picture(picture)
