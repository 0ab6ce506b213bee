"""Time steps, schedulers and LoRAs of a pipeline, changed for one run and put back."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch

from ...errors import ModelError, ScheduleError, did_you_mean, one_line, sentence
from .calls import replaced_method

FREE_GRID_SCHEDULERS = "DPMSolverMultistepScheduler, DDPMScheduler or EulerDiscreteScheduler"
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
"""Schedulers that a run may be swapped to, by the names that their papers gave them."""
AS_PIPELINES_SET = {"clip_sample": False, "set_alpha_to_one": False, "skip_prk_steps": True}
"""What latent pipelines set where a scheduler's own default is for pixels and the one it replaces does not say."""


@contextmanager
def time_steps(scheduler: Any, timesteps: Sequence[int] | None) -> Iterator[None]:
    """While open, `scheduler.set_timesteps` sets these time steps, whatever number of steps it is asked for.

    Raises `ScheduleError` when the scheduler cannot take a free grid of time steps.
    """
    if timesteps is None:
        yield
        return
    refuse_fixed_grid(scheduler)

    def set_timesteps(original: Callable, *args: Any, device: Any = None, **kwargs: Any) -> None:
        original(timesteps=list(timesteps), device=device if device is not None else args[1] if len(args) > 1 else None)

    with replaced_method(scheduler, "set_timesteps", set_timesteps):
        yield


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
    """While open, the pipeline's scheduler is another one, made of its configuration; None leaves it its own.

    Raises `ScheduleError` as `made_scheduler` does, and for a pipeline whose call does not treat samples as it must.
    """
    own = pipeline.scheduler
    if name is None:
        yield own
        return
    made = made_scheduler(own, name)

    def stepped(step: Callable, *args: Any, **kwargs: Any) -> Any:
        _refuse_unscaled(made)
        return step(*args, **kwargs)

    pipeline.scheduler = made
    try:
        with replaced_method(made, "step", stepped):
            yield made
    finally:
        pipeline.scheduler = own


def made_scheduler(own: Any, name: str | None) -> Any:
    """A fresh scheduler for the model that `own` is for: of the same class, or of a name in SCHEDULERS.

    Raises `ScheduleError` for an unknown name, with the nearest known one, and for one that takes another noise
    schedule or another kind of prediction than the model was trained with.
    """
    import diffusers

    if name is None:
        return type(own).from_config(own.config)
    if name not in SCHEDULERS:
        raise ScheduleError(f'There is no scheduler "{name}". {did_you_mean(name, SCHEDULERS)}')
    kind = getattr(diffusers, SCHEDULERS[name])
    expected = inspect.signature(kind.__init__).parameters
    said = {key: value for key, value in AS_PIPELINES_SET.items() if key in expected and key not in own.config}
    made = kind.from_config(own.config, **said)
    _refuse_other_noise(own, made, name)
    return made


def _refuse_other_noise(own: Any, made: Any, name: str) -> None:
    """A model can only be sampled along the noise it was trained with, and read as what it predicts."""
    mine, theirs = (getattr(scheduler, "alphas_cumprod", torch.zeros(0)) for scheduler in (own, made))
    kinds = [scheduler.config.get("prediction_type") for scheduler in (own, made)]
    same = len(mine) > 0 and mine.shape == theirs.shape
    if not same or kinds[0] != kinds[1] or own.config.get("use_flow_sigmas") or _apart(mine, theirs) > 1e-4:
        raise ScheduleError(
            f"{type(own).__name__} cannot be swapped for {type(made).__name__}: the model's noise schedule or what it "
            f"predicts ({kinds[0] or 'flow matching'}) would become another. Swaps are among "
            f"{', '.join(SCHEDULERS)}, for models trained on a DDPM noise schedule; run this one with its own "
            f"scheduler, without {name!r}."
        )


def _apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.cpu().double() - b.cpu().double()).abs().max())


def _refuse_unscaled(scheduler: Any) -> None:
    """Euler and its kin walk along samples that the denoiser must not see unscaled; not every pipeline scales them."""
    if getattr(scheduler, "is_scale_input_called", True):
        return
    raise ScheduleError(
        f"This pipeline does not scale its samples, and {type(scheduler).__name__} needs that: the picture would be "
        "wrong. Use a scheduler whose samples are what the denoiser sees, such as DPMSolverMultistepScheduler "
        "(scheduler='dpm-solver++') or DDPMScheduler (scheduler='ddpm')."
    )


@contextmanager
def lora(pipeline: Any, folder: str | None) -> Iterator[None]:
    """While open, the pipeline has the LoRA of a folder or hub id, read by diffusers from safetensors; then not.

    What was loaded before is active again afterwards. None changes nothing. Raises `ModelError` for what cannot be
    loaded.
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
"""What the adapter is called while it is there."""


def refuse_no_lora(pipeline: Any) -> None:
    """Raise `ModelError` unless the pipeline takes a LoRA and what reads one is installed."""
    if not hasattr(pipeline, "load_lora_weights"):
        raise ModelError(
            f"{type(pipeline).__name__} takes no LoRA: it has no load_lora_weights. Give a model whose pipeline "
            "has, such as Stable Diffusion."
        )
    if find_spec("peft") is None:
        raise ModelError("A LoRA needs the package peft, which is not installed. Install it: pip install peft.")


def _load_lora(pipeline: Any, folder: str) -> None:
    """diffusers' own loading, with what fails in one paragraph."""
    try:
        pipeline.load_lora_weights(folder, adapter_name=LORA, use_safetensors=True)
    except Exception as error:
        raise ModelError(
            f'The LoRA "{folder}" could not be loaded: {sentence(one_line(error, 300))} Allowed is a folder or hub id '
            "that holds one for this very model as safetensors, as save_lora_weights wrote it."
        ) from error
