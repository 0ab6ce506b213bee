"""`load`: a bundled name, a hub id, a folder or a pipeline that the user has already loaded, as a `Model`."""

import operator
import textwrap
import warnings
import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, SupportsIndex

import torch

from ..errors import InputError, ModelError, ScheduleError
from . import schedules
from .arguments import Call, default_of, training_steps
from .components import TEXT_ENCODERS, autoencoder_of, denoiser_of, parts_of, refuse_unusable, scheduler_of
from .hooks.schedulers import made_scheduler, refuse_fixed_grid, swapped_scheduler
from .loading import BUNDLED, UNSAFE, _from_pretrained, _source, device_of, precision_of, quiet_libraries
from .patterns import layers_of
from .prompts import Prompt, TextReader
from .recorder import record
from .schedules import Schedule
from .traces import Trace

LARGEST_SEED = 2**64 - 1


class TruncatedPromptWarning(UserWarning):
    """The end of a prompt did not fit into the tokenizer's length."""


def load(
    model: Any,
    *,
    dtype: torch.dtype | str | None = None,
    device: str | torch.device | None = None,
    **from_pretrained: Any,
) -> "Model":
    """Load a text-to-image or unconditional diffusion model.

    >>> model = load("shapes")                                        # the bundled model
    >>> model = load("stable-diffusion-v1-5/stable-diffusion-v1-5")   # a hub id         # doctest: +SKIP
    >>> model = load(pipe)                                            # a loaded pipeline

    A pipeline object is left as it is: scheduler, LoRA, device and dtype. Weights are read from safetensors only.
    Other keyword arguments go to `DiffusionPipeline.from_pretrained`. Raises `ModelError` if the model cannot be
    loaded, or if one of a pipeline's parts has no numbers (device meta).
    """
    if not isinstance(model, (str, Path)):
        return Model(_own_pipeline(model, dtype, device), type(model).__name__)
    name = str(model)
    if not name.strip():
        raise ModelError(f'A model\'s name cannot be empty. Give "{BUNDLED[0]}", a hub id, a folder or a pipeline.')
    refused = [option for option in UNSAFE if option in from_pretrained]
    if refused:
        raise ModelError(
            f"{refused[0]} cannot be chosen here: weights are read from safetensors only, and no code that comes with "
            "a model is run. To do so all the same, load the pipeline with diffusers and give that: load(pipe)."
        )
    precision, place = precision_of(dtype), device_of(device)
    with quiet_libraries() if name in BUNDLED else nullcontext(), torch.inference_mode(False):
        pipeline = _from_pretrained(_source(name), name, precision, from_pretrained)
    return Model(pipeline if place is None else pipeline.to(place), name)


def _own_pipeline(pipeline: Any, dtype: torch.dtype | str | None, device: Any) -> Any:
    if not callable(pipeline) or scheduler_of(pipeline) is None:
        raise ModelError(
            f"{pipeline!r:.80} ({type(pipeline).__name__}) is not a model: give the name of a bundled model "
            f"({', '.join(BUNDLED)}), a hub id, a folder saved by save_pretrained, or a loaded diffusers pipeline."
        )
    if dtype is not None or device is not None:
        raise ModelError(
            "dtype and device were given with a pipeline that is already loaded, which is left as it is. "
            "Move it first, pipe.to(device, dtype), then load it without them."
        )
    refuse_unusable(pipeline)
    return pipeline


def _generator(seed: Any) -> torch.Generator:
    """Return a CPU generator with a seed; raises `InputError` for an impossible one."""
    if not isinstance(seed, SupportsIndex) or not 0 <= operator.index(seed) <= LARGEST_SEED:
        raise InputError(f"The seed is {seed!r}. It must be a whole number from 0 to {LARGEST_SEED}.")
    return torch.Generator("cpu").manual_seed(operator.index(seed))


@dataclass(frozen=True, eq=False)
class Model:
    """A pipeline that can be recorded: `pipeline` is the diffusers object, untouched, `name` what it was loaded by."""

    pipeline: Any
    name: str
    _latest: list[Any] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        denoiser_of(self.pipeline)

    @property
    def denoiser(self) -> torch.nn.Module:
        """The U-Net or transformer whose predictions are explained."""
        return denoiser_of(self.pipeline)

    @property
    def autoencoder(self) -> Any:
        """The part that turns samples into pictures; None if samples are pixels."""
        return autoencoder_of(self.pipeline)

    @property
    def text_encoders(self) -> list[torch.nn.Module]:
        """The networks that read the prompt; some pipelines have two."""
        return parts_of(self.pipeline, TEXT_ENCODERS)

    @property
    def takes_text(self) -> bool:
        """True if the pipeline is prompted."""
        return getattr(self.pipeline, "tokenizer", None) is not None

    def layers(self, *patterns: str) -> tuple[str, ...]:
        """Return the denoiser's layers by their dotted paths, all or those that patterns name (see `matching`).

        >>> load("shapes").layers("down_blocks.*.resnets.*")
        ('down_blocks.0.resnets.0', 'down_blocks.1.resnets.0', 'down_blocks.2.resnets.0')

        Raises `InputError` for a pattern that names no layer.
        """
        return layers_of(self.denoiser, patterns or ("**",))

    # A run.

    def trace(
        self,
        *args: Any,
        seed: int | None = None,
        generator: Any = None,
        schedule: Schedule = "uniform",
        shift: float | None = None,
        scheduler: str | None = None,
        advance: Callable[[int], None] | None = None,
        keep: str | torch.device | None = None,
        **pipeline_kwargs: Any,
    ) -> Trace:
        """Run the pipeline's own call once and record it.

        >>> trace = model.trace("a large striped red circle on a white background", seed=0)

        `seed` is short for a CPU generator with that seed; `generator` may be a list of them. `schedule` is "uniform"
        (the scheduler's own spacing), "early", "late" (with `shift`, γ), "band:600" or a falling list of time steps,
        such as `schedules.band(600)`. `scheduler` swaps the pipeline's for this run, by a name such as "dpm-solver++".
        `advance(1)` is called after each step. `keep="cpu"` moves each step's tensors to the host while the call runs,
        in pinned memory where they come from CUDA, and leaves an accelerator's memory to the network (`Trace.to`).
        All else goes to the pipeline unchanged, pictures and latents too; by
        position in the order of its own call. In most pipelines of diffusers a `guidance_scale` of 1 or less switches
        guidance off, 0 and negative numbers too: `Trace.guidance_in_effect` says the scale that counted.

        Raises `InputError` for a call that the pipeline refuses or that needs more memory than is free, and for a word
        of these that the pipeline has an argument of its own for (seed, shift, schedule, scheduler, keep);
        `ScheduleError` for a scheduler that cannot do it, `NumericsError` naming the step of a NaN.
        """
        if generator is not None:
            pipeline_kwargs = {**pipeline_kwargs, "generator": generator}
        planned = Call(self.pipeline, args, pipeline_kwargs)
        own = {"seed": seed, "schedule": schedule, "shift": shift, "scheduler": scheduler}
        planned.refuse_shared_words({**own, "keep": keep})
        place = device_of(keep)
        self._warn_of_cut(planned.texts)
        kwargs, timesteps = self._with_schedule(schedule, shift, planned)
        if seed is not None:
            kwargs["generator"] = _generator(seed)
        call = {"args": planned.positional, **planned.named, **own}
        call.pop("generator", None)
        call |= {} if keep is None else {"keep": str(keep)}
        steps_done: list[int] = []

        def step_done(steps: int) -> None:
            steps_done.append(steps)
            if advance is not None:
                advance(steps)

        def run() -> Any:
            return planned.run(kwargs, steps_done)

        with swapped_scheduler(self.pipeline, scheduler) as used:
            return record(self, used, run, timesteps, call, (planned.positional, kwargs), step_done, place)

    def _warn_of_cut(self, texts: Sequence[str]) -> None:
        for text in texts if self.takes_text else ():
            cut = self.cut_off(text)
            if cut:
                warnings.warn(
                    f"The prompt is longer than the {self._text.length} tokens the model reads; this was cut off: "
                    f'"{textwrap.shorten(cut, 160, placeholder=" ...")}".',
                    TruncatedPromptWarning,
                    stacklevel=3,
                )

    def _with_schedule(
        self, schedule: Schedule, shift: float | None, planned: Call
    ) -> tuple[dict[str, Any], list[int] | None]:
        """Return the pipeline's named arguments, and the time steps if the schedule is not the scheduler's own.

        Raises `ScheduleError` where the pipeline's own `timesteps` or `sigmas` are given beside a schedule.
        """
        timesteps = self._timesteps(schedule, shift, planned.steps)
        if timesteps is None:
            return planned.named, None
        for name in ("timesteps", "sigmas"):
            if planned.named.get(name) is not None:
                raise ScheduleError(f"Both schedule and the pipeline's own {name} were given. Give one of them.")
        return {**planned.named, "num_inference_steps": len(timesteps)}, timesteps

    def _timesteps(self, schedule: Schedule, shift: float | None, steps: int) -> list[int] | None:
        return schedules.resolve(schedule, steps, shift, training_steps(scheduler_of(self.pipeline)))

    def step_count(
        self,
        steps: int,
        schedule: Schedule = "uniform",
        shift: float | None = None,
        scheduler: str | None = None,
    ) -> int | None:
        """Return the number of steps, counted in denoiser calls, that a run would have; None if only the run can tell.

        Raises `ScheduleError` for time steps, a scheduler or both together that a run would be refused for.
        """
        timesteps = self._timesteps(schedule, shift, steps)
        used = made_scheduler(scheduler_of(self.pipeline), scheduler)
        if timesteps is not None:
            refuse_fixed_grid(used)
        try:
            used.set_timesteps(steps) if timesteps is None else used.set_timesteps(timesteps=timesteps)
        except (TypeError, ValueError, RuntimeError):  # it needs numbers that the pipeline computes while running
            return None
        return len(used.timesteps)

    def scheduler_name(self, scheduler: str | None = None) -> str:
        """Return the class of a run's scheduler: the pipeline's own, or the one that it is swapped for."""
        return type(scheduler_of(self.pipeline)).__name__ if scheduler is None else schedules.SCHEDULERS[scheduler]

    def default(self, name: str) -> Any:
        """Return the pipeline's own value for an argument that is left out; None if it has none."""
        return default_of(self.pipeline, name)

    # Its text.

    @property
    def _text(self) -> TextReader:
        if not self.takes_text:
            raise ModelError(f"{type(self.pipeline).__name__} takes no prompt, so it has no tokens.")
        return TextReader(self.pipeline.tokenizer)

    def read(self, text: str, length: int | None = None) -> Prompt:
        """Return a prompt's words and tokens by position, padded or cut to `length` tokens (the tokenizer's own)."""
        return self._text.read(text, length)

    def tokens(self, prompt: str) -> list[str]:
        """Return the prompt's tokens as the model reads them, special tokens included, without padding."""
        return self._text.tokens(prompt)

    def cut_off(self, prompt: str) -> str:
        """Return the end of the prompt that does not fit into the tokenizer's length; usually empty."""
        return self._text.cut_off(prompt)

    def vocabulary(self) -> list[str] | None:
        """Return the words that the model knows; None if it spells any word from pieces, as CLIP does."""
        return self._text.vocabulary() if self.takes_text else None

    def unknown_words(self, prompt: str) -> list[str]:
        """Return the words of a prompt that the model cannot read, each once.

        >>> load("shapes").unknown_words("a photo of a cat on a red sofa")
        ['photo', 'cat', 'sofa']
        """
        return self._text.unknown_words(prompt) if self.takes_text else []

    # Its pictures.

    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        """Turn samples into pictures (n, 3, [frames,] height, width) in [0, 1] as the latest recorded run does.

        Differentiable. `Step.decode` does it as its own run does. Raises `ModelError` if no trace of the model is left.
        """
        decoding = self._latest[0]() if self._latest else None
        if decoding is None:
            raise ModelError(
                "The model has no recorded run, and how samples become pictures is the pipeline's own business. Record "
                "a picture first, trace = model.trace(...), and decode with trace.decode(samples)."
            )
        pictures: torch.Tensor = decoding(samples)
        return pictures

    def remember(self, decoding: Any) -> None:
        """Keep the way to pictures of the latest run, for as long as its trace is there."""
        self._latest[:] = [weakref.ref(decoding)]
