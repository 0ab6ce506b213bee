"""Does a map depend on what it explains? The map again under random weights, another prompt or other time steps.

Sources: Adebayo et al. 2018, "Sanity checks for saliency maps" (cascading randomisation of weights). The checks of the
prompt and of the time step follow the same idea. Only the denoiser sees other time steps: the scheduler goes on as
before.
"""

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
from ..recording.steps import Step
from ..recording.traces import Trace
from .intervals import Interval, bootstrap
from .metrics import over_maps
from .stability import agreement, own_maps, remade

Changed = Callable[[], AbstractContextManager[None]]
"""A function that opens a context in which the denoiser is changed."""


# Random weights.


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
    """Compare a method's maps with its maps of a denoiser with random weights, from the output to the input.

    >>> result = weight_randomisation(DFRise(), trace, steps=[6, 15])       # doctest: +SKIP
    >>> result.agreement.sel(stage="up_blocks.0").values                    # doctest: +SKIP
    array([0.12, -0.05])

    A stage is named after a block of the denoiser. At each stage the weights of that block and of all later blocks are
    random; at the last stage all are. `stages` chooses some (`stages_of` lists them). `own` are the method's maps of
    these steps; None to make them. Variables with dims (stage, step): `agreement`; `absolute`, of the maps' absolute
    values; `random_level`, the |agreement| expected by chance. The samples stay those of the trained network. The
    weights come back bit for bit. Raises `InputError` for an unknown stage.
    """
    chosen: list[Step] = choose(trace, steps)
    denoiser, layers_at = trace.model.denoiser, stages_of(trace, chosen[0].index)
    names = list(layers_at) if stages is None else list(stages)
    if wrong := [name for name in names if name not in layers_at]:
        raise InputError(f'The denoiser has no stage "{wrong[0]}". Its stages, output first: {", ".join(layers_at)}.')
    changes = {name: partial(randomised, denoiser, layers_at[name], seed) for name in names}
    return _agreement_under(changes, "stage", attributor, trace, chosen, own, advance)


def stages_of(trace: Trace, step: int = 0) -> dict[str, list[str]]:
    """Return the stages of weight randomisation: each block's name with the layers random at that stage, output first.

    The order is that in which layers run; they are run once to read it.
    """
    index = trace[step].index
    return cascade(called_layers(trace.model.denoiser, lambda: remade(trace, [index])))


def cascade(layers: Sequence[str]) -> dict[str, list[str]]:
    """Group layers, in the order in which they run, into the layers that are random at each stage, block by block.

    >>> cascade(["conv_in", "down_blocks.0.conv", "down_blocks.1.conv", "conv_out"])["down_blocks.1"]
    ['conv_out', 'down_blocks.1.conv']
    """
    blocks: dict[str, list[str]] = {}
    for layer in reversed(layers):
        blocks.setdefault(_block_of(layer), []).append(layer)
    stages: dict[str, list[str]] = {}
    random_layers: list[str] = []
    for name, block in blocks.items():
        random_layers = random_layers + block
        stages[name] = random_layers
    return stages


def _block_of(layer: str) -> str:
    first, _, rest = layer.partition(".")
    number = rest.partition(".")[0]
    return f"{first}.{number}" if number.isdigit() else first


# Another prompt.


def prompt_randomisation(
    attributor: Attributor,
    trace: Trace,
    other: Trace,
    steps: Sequence[int] | None = None,
    *,
    own: xr.DataArray | None = None,
    advance: Advance | None = None,
) -> xr.Dataset:
    """Compare a method's maps with its maps of the same samples under another trace's conditioning.

    The variables are those of `weight_randomisation`, with dims (step,). `own` are the method's maps of these steps;
    None to make them. Raises `InputError` where the other trace has other time steps or samples of another shape.
    """
    chosen: list[Step] = choose(trace, steps)
    _refuse_other_run(chosen, other)
    indices = [step.index for step in chosen]
    maps = own_maps(attributor, trace, indices, own, advance)
    return _compared(maps, attributor(_conditioned(chosen, other), indices, advance=advance).saliency)


@torch.no_grad()
def _conditioned(chosen: Sequence[Step], other: Trace) -> Trace:
    """Return the other trace with its predictions of these steps' samples."""
    return other.with_steps([other[step.index].with_sample(step.sample) for step in chosen])


def _refuse_other_run(chosen: Sequence[Step], other: Trace) -> None:
    """Raise `InputError` where the other trace lacks a step, or has another time step or shape there."""
    for step in chosen:
        there = other[step.index] if step.index < len(other) else None
        if there is None:
            description = "no such step"
        elif there.timestep != step.timestep or there.sample.shape != step.sample.shape:
            description = f"time step {there.timestep:g}, {tuple(there.sample.shape)}"
        else:
            continue
        raise InputError(
            f"Step {step.index} (time step {step.timestep:g}, {tuple(step.sample.shape)}) cannot be explained "
            f"under the other trace's prompt, which has {description}. Record both with the same schedule and size."
        )


# Other time steps.


TimeChange = Callable[[float], float]
"""A function from the time step that the denoiser would get to the time step that it gets instead."""


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
    """The run's own time steps in another order: each of `timesteps` becomes that of `others` in its place.

    >>> ShuffledTime((999.0, 500.0, 1.0), (1.0, 999.0, 500.0))(999.0)
    1.0
    """

    timesteps: tuple[float, ...]
    others: tuple[float, ...]

    @classmethod
    def of(cls, trace: Trace, seed: int = 0) -> "ShuffledTime":
        """Draw an order of the time steps that a trace's denoiser got; raises `InputError` for fewer than two."""
        timesteps = tuple(dict.fromkeys(step.direct.time for step in trace if step.direct is not None))
        if len(timesteps) < 2:
            raise InputError(
                f"The time steps {list(timesteps)} cannot be shuffled: there are fewer than two. Record more steps."
            )
        return cls(timesteps, tuple(np.random.default_rng(seed).permutation(timesteps).tolist()))

    def __call__(self, timestep: float) -> float:
        if timestep not in self.timesteps:
            raise InputError(
                f"The denoiser got the time step {timestep:g}, which is not among the shuffled ones, "
                f"{', '.join(f'{t:g}' for t in self.timesteps)}. Shuffle the time steps of the same schedule."
            )
        return self.others[self.timesteps.index(timestep)]


def record_with_other_times(trace: Trace, change: TimeChange) -> Trace:
    """Record the trace's call again, with the same seed, while the denoiser gets `change(t)` for each time step t.

    The new trace's steps replay with the changed time steps. Raises `InputError` for a trace without a seed.
    """
    call: dict[str, Any] = dict(trace.call)
    args, picture = call.pop("args", ()), call.pop("picture", None)
    if call.get("seed") is None:
        raise InputError(
            "This trace was recorded without a seed, so it cannot be made again. Record it with one: "
            "model.trace(..., seed=0)."
        )
    with other_times(trace.model.denoiser, change):
        again: Trace = trace.model.trace(*args, **call)
    again.made_under(partial(other_times, trace.model.denoiser, change, needed=False))
    return again if picture is None else again.picture(picture)


def time_agreement(
    attributor: Attributor,
    trace: Trace,
    times: Mapping[str, TimeChange],
    steps: Sequence[int] | None = None,
    *,
    advance: Advance | None = None,
) -> xr.Dataset:
    """Compare a method's maps with its maps of a denoiser that gets other time steps.

    `times` are changes by their names, such as `{"always 500": ConstantTime(500)}`. The variables are those of
    `weight_randomisation`, with dims (time, step).
    """
    changes = {name: partial(other_times, trace.model.denoiser, change) for name, change in times.items()}
    return _agreement_under(changes, "time", attributor, trace, choose(trace, steps), None, advance)


# The comparison.


def _agreement_under(
    changes: Mapping[str, Changed],
    dim: str,
    attributor: Attributor,
    trace: Trace,
    chosen: Sequence[Step],
    own: xr.DataArray | None,
    advance: Advance | None,
) -> xr.Dataset:
    """Compare the maps under each change of the denoiser with the method's own: variables with dims (`dim`, step)."""
    indices = [step.index for step in chosen]
    maps = own_maps(attributor, trace, indices, own, advance)
    comparisons = []
    for changed in changes.values():
        with changed():
            others = attributor(remade(trace, indices), indices, advance=advance).saliency
        comparisons.append(_compared(maps, others))
    return xr.concat(comparisons, dim).assign_coords({dim: list(changes)})


def _compared(maps: xr.DataArray, others: xr.DataArray) -> xr.Dataset:
    """Return `agreement`, `absolute` and `random_level` of two sets of maps: dims without y and x."""
    return xr.Dataset(
        {
            "agreement": over_maps(agreement, maps, others, name="agreement"),
            "absolute": over_maps(agreement, abs(maps), abs(others), name="agreement"),
            "random_level": over_maps(random_level, maps, others, name="agreement"),
        }
    )


def random_level(saliency: np.ndarray, other: np.ndarray) -> float:
    """Return the |agreement| of two maps expected by chance: its mean over all cyclic shifts of one map, 0 to 1.

    A shifted map varies as before but lies elsewhere, and smooth maps agree by chance. Positions drawn one by one would
    agree far less, as neighbours are alike in every map. NaN where one map is flat.
    """
    if np.ptp(saliency) == 0 or np.ptp(other) == 0:
        return float("nan")
    first, second = (stats.zscore(stats.rankdata(values)).reshape(values.shape) for values in (saliency, other))
    every = np.fft.ifft2(np.fft.fft2(first) * np.fft.fft2(second).conj()).real / first.size  # Spearman of each shift
    return float(np.abs(every.ravel()[1:]).mean())


# The verdict.


def above_chance(agreements: np.ndarray, levels: np.ndarray) -> Interval:
    """Return how far the agreement, of either sign, is above the random level: |agreement| − level over scenes.

    A scene in which either map is flat is left out. Raises `InputError` where fewer than two scenes remain.
    """
    return bootstrap(np.abs(np.asarray(agreements)) - np.asarray(levels))


def has_fallen(agreements: np.ndarray, levels: np.ndarray, tolerance: float = SANITY_TOLERANCE) -> bool | None:
    """Return True if maps have fallen to the random level: all of `above_chance`'s interval is below `tolerance`.

    False where they have not: the interval is above 0 and reaches beyond the tolerance. None where the scenes do not
    decide. Raises `InputError` where fewer than two scenes have both maps.
    """
    above = above_chance(agreements, levels)
    if above.high < tolerance:
        return True
    return False if above.low > 0 else None
