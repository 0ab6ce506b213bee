"""Is a map the same again? Under other masks, at the step before it, and of a sample with a little noise."""

import dataclasses
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
import xarray as xr

from ..attributors.base import Advance, Attributor, choose
from ..errors import InputError
from ..recording.steps import Step
from ..recording.traces import Trace
from .metrics import metric, over_maps, without_gaps
from .stages import rank_agreement


@metric("agreement", "rank agreement", "stability", -1, 1, True, "Spearman 1904", text="Rank correlation of two maps.")
def agreement(saliency: np.ndarray, other: np.ndarray) -> float:
    """Return the rank correlation of two maps, −1 to 1; NaN where one is flat.

    Raises `InputError` for maps with gaps or of different sizes.
    """
    saliency, other = without_gaps(saliency), without_gaps(other)
    if saliency.shape != other.shape:
        raise InputError(
            f"Maps of {saliency.shape} and {other.shape} cannot be compared. Bring one to the other's size: "
            "on_grid(saliency, *other.shape)."
        )
    return rank_agreement(saliency, other)


def seed_agreement(
    attributor: Attributor,
    trace: Trace,
    steps: Sequence[int] | None = None,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    advance: Advance | None = None,
) -> xr.DataArray:
    """Compare a method's maps under every two of several seeds of the method: agreement (step, pair).

    Raises `InputError` for a method without a `seed`, or fewer than two seeds.
    """
    if "seed" not in {field.name for field in dataclasses.fields(attributor)}:  # type: ignore[arg-type]
        raise InputError(
            f"{type(attributor).__name__} has no seed: it draws nothing at random, so it cannot differ between seeds."
        )
    if len(set(seeds)) < 2:
        raise InputError(f"The seeds {list(seeds)} have no two to compare. Give at least two different ones.")
    runs = [dataclasses.replace(attributor, seed=seed) for seed in seeds]  # type: ignore[type-var]
    maps = [run(trace, steps, advance=advance).saliency for run in runs]
    pairs = [over_maps(agreement, a, b, name="agreement") for a, b in combinations(maps, 2)]
    names = [f"{a}, {b}" for a, b in combinations(seeds, 2)]
    return xr.concat(pairs, "pair").assign_coords(pair=names).transpose("step", "pair")


def neighbour_agreement(saliency: xr.DataArray) -> xr.DataArray:
    """Compare each step's map with that of the step before it: agreement, dims of `saliency` without the map's.

    The first step, which has none before it, is left out. Raises `InputError` for fewer than two steps.
    """
    if saliency.sizes.get("step", 0) < 2:
        raise InputError("Neighbouring steps cannot be compared: the maps are of fewer than two. Explain more steps.")
    before, after = saliency.isel(step=slice(-1)), saliency.isel(step=slice(1, None))
    moved = before.drop_vars([name for name, c in before.coords.items() if "step" in c.dims])
    return over_maps(agreement, after, moved.assign_coords(step=after.step), name="agreement")


def noise_agreement(
    attributor: Attributor,
    trace: Trace,
    steps: Sequence[int] | None = None,
    *,
    amount: float = 0.02,
    draws: int = 3,
    seed: int = 0,
    own: xr.DataArray | None = None,
    advance: Advance | None = None,
) -> xr.DataArray:
    """Compare a method's map with its map of a sample with a little noise added: agreement (step, draw).

    `amount` is the noise's standard deviation as a share of the sample's own. The method explains the denoiser's
    prediction of the noisy sample, so this is the stability of map and model together. `own` are the method's maps of
    these steps; None to make them. Raises `InputError` for no noise or no draws.
    """
    if not amount > 0 or draws < 1:
        raise InputError(f"amount is {amount} and draws {draws}. Give an amount above 0, such as 0.02, and 1 or more.")
    chosen: list[Step] = choose(trace, steps)
    indices = [step.index for step in chosen]
    unchanged = own_maps(attributor, trace, indices, own, advance)

    def agreement_of(draw: int) -> xr.DataArray:
        noisy = trace.with_steps([with_noise(step, amount, [seed, draw]) for step in chosen])
        return over_maps(agreement, unchanged, attributor(noisy, indices, advance=advance).saliency, name="agreement")

    return xr.concat([agreement_of(draw) for draw in range(draws)], "draw").transpose("step", "draw")


@torch.no_grad()
def with_noise(step: Step, amount: float, seed: Sequence[int]) -> Step:
    """Return a step with noise added to its sample, and the denoiser's prediction of the noisy sample.

    `amount` is the noise's standard deviation as a share of the sample's own.
    """
    rng = np.random.default_rng([*seed, step.index])
    noise = torch.from_numpy(rng.standard_normal(step.sample.shape, dtype=np.float32)).to(step.sample)
    return step.with_sample(step.sample + amount * step.sample.std() * noise)


@torch.no_grad()
def remade(trace: Trace, steps: Sequence[int] | None = None) -> Trace:
    """Return the trace with the predictions that the denoiser now makes of these steps' samples.

    With it a method explains the network as it is and not the recording. `prev_sample` becomes the stateless one.
    """
    return trace.with_steps([step.with_sample(step.sample) for step in choose(trace, steps)])


def own_maps(
    attributor: Attributor,
    trace: Trace,
    steps: list[int],
    maps: xr.DataArray | None = None,
    advance: Advance | None = None,
) -> xr.DataArray:
    """Return a method's maps of these steps of the network as it is: `maps` where they are given, else made here.

    Raises `InputError` where `maps` lack a step.
    """
    if maps is None:
        saliency: xr.DataArray = attributor(remade(trace, steps), steps, advance=advance).saliency
        return saliency
    if missing := [step for step in steps if step not in maps.step.values]:
        raise InputError(
            f"The method's own maps are of the steps {maps.step.values.tolist()}, and step {missing[0]} is missing. "
            "Give maps of all steps, or none to make them."
        )
    return maps.sel(step=steps)
