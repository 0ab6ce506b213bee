"""A diffusers scheduler as a forward process: its time steps, and how much picture and noise each one holds."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

from ..errors import InputError, did_you_mean, one_line, shown_value
from ..recording.noise import NoiseLevel
from ..recording.schedules import uniform

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
"""The beta schedules of a `DDPMScheduler`; the first is the default."""


def log_snr_of(a: float, b: float) -> float:
    """Return log(a² / b²), the log-SNR of a x + b ε."""
    return NoiseLevel(a, b, 1.0, "epsilon").log_snr


def noising_scheduler(scheduler: Any) -> Any:
    """Return a scheduler that can add noise and has a number of time steps, from a scheduler, a beta schedule or None.

    Raises `InputError` for another name, and for an object that cannot add noise.
    """
    if scheduler is None:
        return _ddpm_scheduler(BETA_SCHEDULES[0])
    if isinstance(scheduler, str):
        return _ddpm_scheduler(scheduler)
    trained = getattr(getattr(scheduler, "config", None), "num_train_timesteps", None)
    if not callable(getattr(scheduler, "add_noise", None)) or not isinstance(trained, int):
        raise InputError(
            f"{type(scheduler).__name__} cannot noise a photograph: it has no add_noise, or no number of training time "
            f"steps. Give a diffusers scheduler that has both, such as DDPMScheduler, or a name: "
            f"{', '.join(BETA_SCHEDULES)}. For a flow-matching process use the blend, which is the same line."
        )
    return scheduler


def _ddpm_scheduler(beta_schedule: str) -> Any:
    if beta_schedule not in BETA_SCHEDULES:
        raise InputError(
            f"There is no scheduler {shown_value(beta_schedule)}. {did_you_mean(beta_schedule, BETA_SCHEDULES)} "
            "For any other scheduler give the diffusers scheduler itself."
        )
    from diffusers import DDPMScheduler

    ddpm: Any = DDPMScheduler
    return ddpm(beta_schedule=beta_schedule)


def noising_timesteps(scheduler: Any, count: int) -> list[int]:
    """Return `count` evenly spaced training time steps, the noisiest first; `InputError` for more than there are."""
    trained = scheduler.config.num_train_timesteps
    if count > trained:
        raise InputError(
            f"{count} frames were asked for, and {type(scheduler).__name__} has {trained} time steps, at most one "
            f"frame for each. Give a count from 1 to {trained}, or use the blend, which has no such limit."
        )
    return uniform(count, trained)


def noise_levels(scheduler: Any, timesteps: Sequence[int]) -> list[tuple[float, float]]:
    """Return a and b of add_noise(x, ε) = a x + b ε at each time step, measured with (1, 0) and (0, 1).

    Raises `InputError` for a scheduler whose noise is anything else, or does not fall with the time step.
    """
    one, at = torch.ones(len(timesteps), 1, 1, 1), torch.tensor(timesteps)
    try:
        fresh = _on_every_time_step(scheduler)
        a, b = fresh.add_noise(one, 0 * one, at), fresh.add_noise(0 * one, one, at)
        linear = torch.allclose(fresh.add_noise(one, one, at), a + b)
        levels = list(zip(a.flatten().tolist(), b.flatten().tolist(), strict=True))
    except Exception as error:
        raise InputError(_no_noise(scheduler, f"its add_noise failed, {type(error).__name__}: {error}")) from error
    if not linear or len(levels) != len(timesteps) or not all(a >= 0 and b >= 0 for a, b in levels):
        raise InputError(_no_noise(scheduler, "its add_noise is not a x + b ε with the same a and b for every pixel"))
    if not all(log_snr_of(*before) < log_snr_of(*after) for before, after in pairwise(levels)):
        raise InputError(_no_noise(scheduler, "its noise does not fall with the time step"))
    return levels


def _no_noise(scheduler: Any, reason: str) -> str:
    return (
        f"{type(scheduler).__name__} cannot noise a photograph: {one_line(reason, 300).rstrip('.')}. Use a scheduler "
        "whose add_noise takes any of its training time steps, such as DDPMScheduler, or a name: "
        f"{', '.join(BETA_SCHEDULES)}."
    )


def _on_every_time_step(scheduler: Any) -> Any:
    """Return a fresh copy of a scheduler; its sigmas, if it has any, lie on every time step it was trained on.

    add_noise looks a time step up in the grid of the last run; Karras sigmas and similar ones only place that grid.
    """
    spacing = {
        "timestep_spacing": "trailing",
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "use_lu_lambdas": False,
    }
    changes = {key: value for key, value in spacing.items() if key in scheduler.config}
    fresh = type(scheduler).from_config(scheduler.config, **changes)
    if hasattr(fresh, "sigmas"):
        fresh.set_timesteps(fresh.config.num_train_timesteps)
    return fresh


def scheduler_settings(scheduler: Any) -> dict[str, Any]:
    """Return a scheduler's class and settings as one flat dictionary; settings of None are left out."""
    settings: dict[str, Any] = {"scheduler": type(scheduler).__name__}
    for key, value in scheduler.config.items():
        if not key.startswith("_") and value is not None:
            settings[f"scheduler_{key}"] = value
    return settings
