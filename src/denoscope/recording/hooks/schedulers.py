"""Time steps, schedulers and LoRAs of a pipeline, changed for one run and put back afterwards."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

from ...errors import ModelError, ScheduleError, one_line, sentence
from ..components import scheduler_of
from ..schedules import SCHEDULERS, check_scheduler
from .calls import replaced_method

FREE_GRID_SCHEDULERS = "DPMSolverMultistepScheduler, DDPMScheduler or EulerDiscreteScheduler"
AS_PIPELINES_SET = {"clip_sample": False, "set_alpha_to_one": False, "skip_prk_steps": True}
"""Settings of latent pipelines, for schedulers whose defaults are for pixels, if the replaced scheduler has none."""


@contextmanager
def time_steps(scheduler: Any, timesteps: Sequence[int] | None) -> Iterator[None]:
    """While open, `scheduler.set_timesteps` sets these time steps, whatever number of steps it is asked for.

    Raises `ScheduleError` if the scheduler cannot take a free grid of time steps.
    """
    if timesteps is None:
        yield
        return
    refuse_fixed_grid(scheduler)

    def set_timesteps(original: Callable[..., Any], *args: Any, device: Any = None, **kwargs: Any) -> None:
        if device is None and len(args) > 1:
            device = args[1]
        original(timesteps=list(timesteps), device=device)

    with replaced_method(scheduler, "set_timesteps", set_timesteps):
        yield


@dataclass(frozen=True, eq=False)
class TimeSteps:
    """`time_steps` of one call, to be entered again and again; `values` is None for the scheduler's own spacing."""

    scheduler: Any
    values: Sequence[int] | None

    def __call__(self) -> AbstractContextManager[None]:
        return time_steps(self.scheduler, self.values)


def refuse_fixed_grid(scheduler: Any) -> None:
    """Raise `ScheduleError` unless `scheduler.set_timesteps` takes `timesteps=`."""
    if "timesteps" not in inspect.signature(scheduler.set_timesteps).parameters:
        raise ScheduleError(
            f"{type(scheduler).__name__} cannot take a list of time steps: it assumes its own even spacing. "
            "Use schedule='uniform', or swap it for this run, scheduler='dpm-solver++' (--scheduler dpm-solver++); "
            f"those that can are {FREE_GRID_SCHEDULERS}."
        )


@contextmanager
def swapped_scheduler(pipeline: Any, name: str | None) -> Iterator[Any]:
    """While open, the pipeline's scheduler is another one, made of its configuration; None changes nothing.

    Raises `ScheduleError` as `made_scheduler` does, and for a pipeline that does not scale samples although the new
    scheduler needs it.
    """
    original = scheduler_of(pipeline)
    if name is None:
        yield original
        return
    other = made_scheduler(original, name)

    def stepped(step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        _refuse_unscaled(other)
        return step(*args, **kwargs)

    pipeline.scheduler = other
    try:
        with replaced_method(other, "step", stepped):
            yield other
    finally:
        pipeline.scheduler = original


def made_scheduler(original: Any, name: str | None) -> Any:
    """Return a fresh scheduler for the model of the `original`: of the same class, or of a name in SCHEDULERS.

    Raises `ScheduleError` for an unknown name, with the nearest known one, and for a scheduler with another noise
    schedule or another kind of prediction than the model was trained with.
    """
    import diffusers

    if name is None:
        return type(original).from_config(original.config)
    check_scheduler(name)
    kind = getattr(diffusers, SCHEDULERS[name])
    parameters = inspect.signature(kind.__init__).parameters
    absent = [key for key in AS_PIPELINES_SET if key in parameters and key not in original.config]
    other = kind.from_config(original.config, **{key: AS_PIPELINES_SET[key] for key in absent})
    _refuse_other_noise(original, other, name)
    return other


def _refuse_other_noise(original: Any, other: Any, name: str) -> None:
    """Raise `ScheduleError` unless both have the noise that the model was trained with, and its kind of prediction."""
    products = [getattr(scheduler, "alphas_cumprod", torch.zeros(0)) for scheduler in (original, other)]
    kinds = [scheduler.config.get("prediction_type") for scheduler in (original, other)]
    same = len(products[0]) > 0 and products[0].shape == products[1].shape
    if not same or kinds[0] != kinds[1] or original.config.get("use_flow_sigmas") or _difference(*products) > 1e-4:
        raise ScheduleError(
            f"{type(original).__name__} cannot be swapped for {type(other).__name__}: the model's noise schedule or "
            f"its kind of prediction ({kinds[0] or 'flow matching'}) would become another. Swaps are among "
            f"{', '.join(SCHEDULERS)}, for models trained on a DDPM noise schedule; run this one with its own "
            f"scheduler, without {name!r}."
        )


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.cpu().double() - b.cpu().double()).abs().max())


def _refuse_unscaled(scheduler: Any) -> None:
    """Raise `ScheduleError` if the pipeline does not scale its samples although Euler and its kin need it."""
    if getattr(scheduler, "is_scale_input_called", True):
        return
    raise ScheduleError(
        f"This pipeline does not scale its samples, and {type(scheduler).__name__} needs that: the picture would be "
        "wrong. Use a scheduler whose samples are what the denoiser sees, such as DPMSolverMultistepScheduler "
        "(scheduler='dpm-solver++') or DDPMScheduler (scheduler='ddpm')."
    )


@contextmanager
def lora(pipeline: Any, folder: str | None) -> Iterator[None]:
    """While open, the pipeline has the LoRA of a folder or hub id, read by diffusers from safetensors.

    Adapters that were active before are active again afterwards. None changes nothing. Raises `ModelError` if the
    LoRA cannot be loaded.
    """
    if folder is None:
        yield
        return
    refuse_no_lora(pipeline)
    before = list(pipeline.get_active_adapters())
    try:
        _load_lora(pipeline, folder)
        yield
    finally:
        if before:
            pipeline.delete_adapters([LORA])
            pipeline.set_adapters(before)
        else:
            pipeline.unload_lora_weights()


LORA = "denoscope"
"""The name of the adapter while it is there."""


def refuse_no_lora(pipeline: Any) -> None:
    """Raise `ModelError` unless the pipeline takes a LoRA and the package that reads one is installed."""
    if not hasattr(pipeline, "load_lora_weights"):
        raise ModelError(
            f"{type(pipeline).__name__} takes no LoRA: it has no load_lora_weights. Give a model whose pipeline "
            "has, such as Stable Diffusion."
        )
    if find_spec("peft") is None:
        raise ModelError("A LoRA needs the package peft, which is not installed. Install it: pip install peft.")


def _load_lora(pipeline: Any, folder: str) -> None:
    """Load a LoRA by diffusers' own method; its failures are `ModelError`s of one paragraph."""
    try:
        pipeline.load_lora_weights(folder, adapter_name=LORA, use_safetensors=True)
    except Exception as error:
        raise ModelError(
            f'The LoRA "{folder}" could not be loaded: {sentence(one_line(error, 300))} Allowed is a folder or hub id '
            "that holds one for this very model as safetensors, as save_lora_weights wrote it."
        ) from error
