"""Does the model need to be told the time? Made again with the denoiser told a constant time step, or shuffled ones.

Only the denoiser is misled: the scheduler goes on as before. What is then asked: is it the same picture, are the maps
the same (`sanity.time_agreement`), do coarse things still come before fine ones (`frequencies`)?"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from scipy import stats

from ..attributors.base import Advance, Attributor, choose
from ..criteria import SANITY_TOLERANCE
from ..errors import InputError
from ..recording.hooks.layers import called_layers, other_times, randomised
from ..recording.hooks.replay import Replay
from ..recording.traces import Step, Trace
from .intervals import Interval, bootstrap
from .metrics import over_maps
from .stability import agreement, own_maps, remade

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


Changed = Callable[[], AbstractContextManager[None]]
"""Opens a context in which the denoiser is another."""


def weight_randomisation(
    attributor: Attributor,
    trace: Trace,
    steps: Sequence[int] | None = None,
    *,
    stages: Sequence[str] | None = None,
    seed: int = 0,
    own: xr.DataArray | None = None,
    advance: Advance | None = None,
) -> xr.Dataset:
    """Agreement of a method's maps with its own while the denoiser's weights are random, from the output to the input.

    >>> found = weight_randomisation(DFRise(), trace, steps=[6, 15])        # doctest: +SKIP
    >>> found.agreement.sel(stage="up_blocks.0").values                     # doctest: +SKIP
    array([0.12, -0.05])

    At each stage, named after a block of the denoiser, the weights of that block and of all that come after it are
    random; at the last stage all are. `stages` chooses some (`stages_of` lists them). `own` are the method's maps of
    these steps where they are there already; without them they are made. Variables with dims (stage, step):
    `agreement`, `absolute`, of the maps' absolute values, and `random_level`, the |agreement| to be expected by chance.
    The steps' samples stay what the trained network made them. The weights come back bit for bit.
    """
    chosen: list[Step] = choose(trace, steps)
    denoiser, cascade = trace.model.denoiser, stages_of(trace, chosen[0].index)
    names = list(cascade) if stages is None else list(stages)
    if wrong := [name for name in names if name not in cascade]:
        raise InputError(f'The denoiser has no stage "{wrong[0]}". Its stages, output first: {", ".join(cascade)}.')
    changes = {name: partial(randomised, denoiser, cascade[name], seed) for name in names}
    return _agreement_under(changes, "stage", attributor, trace, chosen, own, advance)


def stages_of(trace: Trace, step: int = 0) -> dict[str, list[str]]:
    """The stages of weight randomisation: each block's name with the layers that are random by then, output first.

    The order is that in which layers run, found by running them once.
    """
    one = trace[step]
    return cascade(called_layers(trace.model.denoiser, lambda: remade(trace, [one.index])))


def cascade(layers: Sequence[str]) -> dict[str, list[str]]:
    """From layers in the order in which they run to the layers that are random at each stage, block by block.

    >>> cascade(["conv_in", "down_blocks.0.conv", "down_blocks.1.conv", "conv_out"])["down_blocks.1"]
    ['conv_out', 'down_blocks.1.conv']
    """
    blocks: dict[str, list[str]] = {}
    for layer in reversed(layers):
        blocks.setdefault(_block_of(layer), []).append(layer)
    names = list(blocks)
    return {name: [layer for block in names[: i + 1] for layer in blocks[block]] for i, name in enumerate(names)}


def _block_of(layer: str) -> str:
    first, _, rest = layer.partition(".")
    number = rest.partition(".")[0]
    return f"{first}.{number}" if number.isdigit() else first


def time_agreement(
    attributor: Attributor,
    trace: Trace,
    times: Mapping[str, Callable[[float], float]],
    steps: Sequence[int] | None = None,
    *,
    advance: Advance | None = None,
) -> xr.Dataset:
    """The same when the denoiser is told other time steps: variables with dims (time, step).

    `times` are functions from the time step it would have been told, such as `ConstantTime(500)`, by their names.
    """
    changes = {name: partial(other_times, trace.model.denoiser, change) for name, change in times.items()}
    return _agreement_under(changes, "time", attributor, trace, choose(trace, steps), None, advance)


def prompt_randomisation(
    attributor: Attributor,
    trace: Trace,
    other: Trace,
    steps: Sequence[int] | None = None,
    *,
    own: xr.DataArray | None = None,
    advance: Advance | None = None,
) -> xr.Dataset:
    """The same when the samples are explained under the conditioning of another trace: variables with dims (step,).

    `own` as for `weight_randomisation`. Raises `InputError` where the other trace has other time steps or samples of
    another shape.
    """
    chosen: list[Step] = choose(trace, steps)
    _refuse_other_run(chosen, other)
    indices = [step.index for step in chosen]
    own = own_maps(attributor, trace, indices, own, advance)
    return _compared(own, attributor(_conditioned(chosen, other), indices, advance=advance).saliency)


@torch.no_grad()
def _conditioned(chosen: Sequence[Step], other: Trace) -> Trace:
    """The other trace, with what it says of these steps' samples."""
    return other.with_steps([other[step.index].with_sample(step.sample) for step in chosen])


def _refuse_other_run(chosen: Sequence[Step], other: Trace) -> None:
    for step in chosen:
        there = other[step.index] if step.index < len(other) else None
        if there is None or there.timestep != step.timestep or there.sample.shape != step.sample.shape:
            found = "no such step" if there is None else f"time step {there.timestep:g}, {tuple(there.sample.shape)}"
            raise InputError(
                f"Step {step.index} (time step {step.timestep:g}, {tuple(step.sample.shape)}) cannot be explained "
                f"under the other trace's prompt, which has {found}. Record both with the same schedule and size."
            )


def _agreement_under(
    changes: Mapping[str, Changed],
    dim: str,
    attributor: Attributor,
    trace: Trace,
    chosen: Sequence[Step],
    own: xr.DataArray | None,
    advance: Advance | None,
) -> xr.Dataset:
    indices = [step.index for step in chosen]
    own = own_maps(attributor, trace, indices, own, advance)
    found = []
    for changed in changes.values():
        with changed():
            found.append(_compared(own, attributor(remade(trace, indices), indices, advance=advance).saliency))
    return xr.concat(found, dim).assign_coords({dim: list(changes)})


def _compared(own: xr.DataArray, others: xr.DataArray) -> xr.Dataset:
    pairs = {"agreement": (own, others), "absolute": (abs(own), abs(others))}
    found = xr.Dataset({name: over_maps(agreement, *pair, name="agreement") for name, pair in pairs.items()})
    return found.assign(random_level=over_maps(random_level, own, others, name="agreement"))


def random_level(saliency: np.ndarray, other: np.ndarray) -> float:
    """The |agreement| of two maps that is to be expected by chance: its mean over all cyclic shifts of one, 0 to 1.

    Shifted, a map keeps how it varies and loses where, which is what makes smooth maps agree by chance; positions drawn
    one by one would agree far less, as neighbours are alike in every map. NaN where one is flat.
    """
    if np.ptp(saliency) == 0 or np.ptp(other) == 0:
        return float("nan")
    first, second = (stats.zscore(stats.rankdata(values)).reshape(values.shape) for values in (saliency, other))
    every = np.fft.ifft2(np.fft.fft2(first) * np.fft.fft2(second).conj()).real / first.size  # Spearman of each shift
    return float(np.abs(every.ravel()[1:]).mean())


def above_chance(agreements: np.ndarray, levels: np.ndarray) -> Interval:
    """How far a method's agreement, of either sign, is above the random level: |agreement| − level over scenes.

    A scene in which either map is flat says nothing. Raises `InputError` where fewer than two are left.
    """
    return bootstrap(np.abs(np.asarray(agreements)) - np.asarray(levels))


def has_fallen(agreements: np.ndarray, levels: np.ndarray, tolerance: float = SANITY_TOLERANCE) -> bool | None:
    """Whether maps have fallen to the random level: `above_chance` is below `tolerance` with its whole interval.

    False where they have not: the interval is above 0 and reaches beyond the tolerance. None where the scenes do not
    tell.
    """
    above = above_chance(agreements, levels)
    if above.high < tolerance:
        return True
    return False if above.low > 0 else None
