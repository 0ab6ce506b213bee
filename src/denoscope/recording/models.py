"""`load`: a bundled name, a hub id, a folder or a pipeline that the user has already loaded, as a `Model`."""

import difflib
import inspect
import math
import operator
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, SupportsIndex

import torch

from ..errors import DenoscopeError, InputError, ModelError, RecordingError, did_you_mean, in_short
from . import schedules
from .hooks.schedulers import SCHEDULERS, made_scheduler, refuse_fixed_grid, swapped_scheduler
from .loading import BUNDLED, UNSAFE, _from_pretrained, _source, device_of, precision_of, quiet_libraries
from .patterns import layers_of
from .schedules import Schedule
from .traces import Trace, record

DENOISERS = ("unet", "transformer")
AUTOENCODERS = ("vae", "vqvae")
TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "bert")
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
    >>> model = load(pipe)                                            # a loaded pipeline # doctest: +SKIP

    A pipeline object is left as it is: scheduler, LoRA, device and dtype. Weights are read from safetensors only.
    Other keyword arguments go to `DiffusionPipeline.from_pretrained`. Raises `ModelError`.
    """
    if not isinstance(model, (str, Path)):
        return Model(_own_pipeline(model, dtype, device), type(model).__name__)
    name = str(model)
    if not name.strip():
        raise ModelError(f'A model\'s name cannot be empty. Give "{BUNDLED[0]}", a hub id, a folder or a pipeline.')
    if refused := [option for option in UNSAFE if option in from_pretrained]:
        raise ModelError(
            f"{refused[0]} cannot be chosen here: weights are read from safetensors only, and no code that comes with "
            "a model is run. To do so all the same, load the pipeline with diffusers and give that: load(pipe)."
        )
    precision, place = precision_of(dtype), device_of(device)
    with quiet_libraries() if name in BUNDLED else nullcontext():
        pipeline = _from_pretrained(_source(name), name, precision, from_pretrained)
    return Model(pipeline if place is None else pipeline.to(place), name)


def _own_pipeline(pipeline: Any, dtype: torch.dtype | str | None, device: Any) -> Any:
    if not callable(pipeline) or not hasattr(pipeline, "scheduler"):
        raise ModelError(
            f"{pipeline!r:.80} ({type(pipeline).__name__}) is not a model: give the name of a bundled model "
            f"({', '.join(BUNDLED)}), a hub id, a folder saved by save_pretrained, or a loaded diffusers pipeline."
        )
    if dtype is not None or device is not None:
        raise ModelError(
            "dtype and device were given with a pipeline that is already loaded, which is left as it is. "
            "Move it first, pipe.to(device, dtype), then load it without them."
        )
    return pipeline


def _generator(seed: Any) -> torch.Generator:
    if not isinstance(seed, SupportsIndex) or not 0 <= operator.index(seed) <= LARGEST_SEED:
        raise InputError(f"The seed is {seed!r}. It must be a whole number from 0 to {LARGEST_SEED}.")
    return torch.Generator("cpu").manual_seed(operator.index(seed))


@dataclass(frozen=True, eq=False)
class Model:
    """A pipeline that can be recorded: `pipeline` is the diffusers object, untouched, `name` what it was loaded by."""

    pipeline: Any
    name: str

    def __post_init__(self) -> None:
        if not any(getattr(self.pipeline, part, None) is not None for part in DENOISERS):
            raise ModelError(
                f"{type(self.pipeline).__name__} has no denoiser: Denoscope listens at pipe.unet or pipe.transformer. "
                "Give a diffusers pipeline that has one of them."
            )

    @property
    def denoiser(self) -> torch.nn.Module:
        """The U-Net or transformer whose predictions are explained."""
        return next(d for part in DENOISERS if (d := getattr(self.pipeline, part, None)) is not None)

    def layers(self, *patterns: str) -> tuple[str, ...]:
        """The denoiser's layers by their dotted paths, all of them or those that patterns name (see `matching`).

        >>> load("shapes").layers("down_blocks.*.resnets.*")
        ('down_blocks.0.resnets.0', 'down_blocks.1.resnets.0', 'down_blocks.2.resnets.0')

        Raises `InputError` for a pattern that names no layer.
        """
        return layers_of(self.denoiser, patterns or ("**",))

    @property
    def takes_text(self) -> bool:
        """Whether the pipeline is prompted."""
        return getattr(self.pipeline, "tokenizer", None) is not None

    def trace(
        self,
        *args: Any,
        seed: int | None = None,
        generator: Any = None,
        schedule: Schedule = "uniform",
        shift: float | None = None,
        scheduler: str | None = None,
        advance: Callable[[int], None] | None = None,
        **pipeline_kwargs: Any,
    ) -> Trace:
        """Run the pipeline's own call once and record it.

        >>> trace = model.trace("a large striped red circle on a white background", seed=0)  # doctest: +SKIP

        `seed` is short for a CPU generator with that seed. `schedule` is "uniform" (the scheduler's own spacing),
        "early", "late" (with `shift`, γ), "band:600" or a falling list of time steps, such as `schedules.band(600)`.
        `scheduler` swaps the pipeline's for this run, by a name such as "dpm-solver++". `advance` is told of each step
        made. All else goes to the pipeline unchanged. Raises `InputError` for what the pipeline refuses,
        `ScheduleError` for a scheduler that cannot do it, `NumericsError` naming the step of a NaN.
        """
        if seed is not None and generator is not None:
            raise InputError("Both seed and generator were given. They say the same thing: give one of them.")
        self._check_call(args, pipeline_kwargs)
        if seed is not None:
            generator = _generator(seed)
        kwargs, timesteps = self._with_schedule(schedule, shift, pipeline_kwargs)
        if generator is not None:
            kwargs["generator"] = generator
        call = dict(args=args, seed=seed, schedule=schedule, shift=shift, scheduler=scheduler, **pipeline_kwargs)
        made: list[int] = []

        def heard(steps: int) -> None:
            made.append(steps)
            if advance is not None:
                advance(steps)

        run = lambda: self._run(args, kwargs, made)  # noqa: E731
        with swapped_scheduler(self.pipeline, scheduler) as used:
            return record(self, self.denoiser, used, run, timesteps, call, heard)

    @torch.no_grad()
    def _run(self, args: tuple, kwargs: dict[str, Any], made: Sequence[int]) -> Any:
        """The pipeline's call; what it refuses before the first step is the user's input, said in one paragraph."""
        try:
            return self.pipeline(*args, **kwargs)
        except DenoscopeError:
            raise
        except (MemoryError, ValueError, TypeError, RuntimeError) as error:
            self._refused(error, kwargs, len(made))

    def _refused(self, error: Exception, kwargs: Mapping[str, Any], made: int) -> NoReturn:
        given = ", ".join(f"{key}={value!r}" for key, value in kwargs.items() if isinstance(value, (int, float, str)))
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error):
            raise RecordingError(
                f"The memory was not enough to make the picture: {in_short(error, 160)} Given: {given}. Make a smaller "
                "picture, load the model with dtype float16 on a GPU, or use a machine with more memory."
            ) from error
        if made:
            raise RecordingError(
                f"{type(self.pipeline).__name__} failed after {made} of its steps: {in_short(error, 400)} "
                f"Given: {given}. "
                "The call itself was accepted. Make the same call without Denoscope to see where it fails."
            ) from error
        raise InputError(
            f"{type(self.pipeline).__name__} refused the call: {in_short(error, 400)} Given: {given}. Use arguments "
            f"that the pipeline takes on its own; sizes must be multiples of {self._size_multiple()} pixels."
        ) from error

    def step_count(
        self,
        steps: int,
        schedule: Schedule = "uniform",
        shift: float | None = None,
        scheduler: str | None = None,
    ) -> int | None:
        """How many steps, counted in denoiser calls, a run would have; None where only the run can tell.

        Raises `ScheduleError` for time steps, a scheduler or both together that a run would be refused for.
        """
        timesteps = self._timesteps(schedule, shift, steps)
        used = made_scheduler(self.pipeline.scheduler, scheduler)
        if timesteps is not None:
            refuse_fixed_grid(used)
        try:
            used.set_timesteps(steps) if timesteps is None else used.set_timesteps(timesteps=timesteps)
        except (TypeError, ValueError, RuntimeError):  # it needs what the pipeline works out while running
            return None
        return len(used.timesteps)

    def scheduler_name(self, scheduler: str | None = None) -> str:
        """The class of the scheduler that a run has: the pipeline's own, or the one that it is swapped for."""
        return type(self.pipeline.scheduler).__name__ if scheduler is None else SCHEDULERS[scheduler]

    def _timesteps(self, schedule: Schedule, shift: float | None, steps: int) -> list[int] | None:
        return schedules.resolve(schedule, steps, shift, self._training_steps())

    def _training_steps(self) -> int:
        return self.pipeline.scheduler.config.get("num_train_timesteps", 1000)

    def _with_schedule(
        self, schedule: Schedule, shift: float | None, kwargs: dict[str, Any]
    ) -> tuple[dict[str, Any], list[int] | None]:
        default = self._parameters().get("num_inference_steps")
        steps = kwargs.get("num_inference_steps") or (default.default if default is not None else 50)
        timesteps = self._timesteps(schedule, shift, steps)
        if timesteps is None:
            return dict(kwargs), None
        return {**kwargs, "num_inference_steps": len(timesteps)}, timesteps

    def _parameters(self) -> Mapping[str, inspect.Parameter]:
        """What the pipeline's own call takes."""
        return inspect.signature(self.pipeline.__call__).parameters

    def default(self, name: str) -> Any:
        """What the pipeline takes for an argument that is left out, or None."""
        parameter = self._parameters().get(name)
        return None if parameter is None or parameter.default is parameter.empty else parameter.default

    def _check_call(self, args: tuple, kwargs: dict[str, Any]) -> None:
        self._check_names(args, kwargs)
        steps = kwargs.get("num_inference_steps")
        if steps is not None and (not isinstance(steps, int) or steps < 1):
            raise InputError(
                f"num_inference_steps is {steps!r}. A picture needs at least 1 denoising step; 20 to 50 are usual."
            )
        trained = self._training_steps()
        if steps is not None and steps > trained:
            raise InputError(
                f"num_inference_steps is {steps}. The model has no more steps than the time steps it was "
                f"trained on, {trained}; 20 to 50 are usual."
            )
        for name in ("height", "width"):
            size = kwargs.get(name)
            if size is not None and (not isinstance(size, int) or size < 1 or size % self._size_multiple()):
                raise InputError(
                    f"The model cannot make a picture with {name} {size!r}: sizes are positive multiples of "
                    f"{self._size_multiple()} pixels. Leave height and width out for the size it was trained on."
                )
        guidance = kwargs.get("guidance_scale")
        if guidance is not None and not math.isfinite(guidance):
            raise InputError(f"guidance_scale is {guidance}. Give a finite number; 1 is no guidance, 7.5 is usual.")
        if "prompt" in self._parameters() and kwargs.get("prompt_embeds") is None:
            self._check_prompts(kwargs["prompt"] if "prompt" in kwargs else args[0] if args else None)

    def _check_names(self, args: tuple, kwargs: dict[str, Any]) -> None:
        known, pipeline = self._parameters(), type(self.pipeline).__name__
        if "prompt" not in known and ("prompt" in kwargs or (args and isinstance(args[0], str))):
            raise InputError(
                f"A prompt was given, and {pipeline} takes none: this model makes pictures without text. "
                "Leave the prompt out, or load a text-to-image model."
            )
        swallows = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
        for name in kwargs:
            slip = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
            if name not in known and (slip or not swallows):
                raise InputError(f'{pipeline} has no option "{name}". {did_you_mean(name, known)}')

    def _check_prompts(self, prompt: Any) -> None:
        texts = [prompt] if isinstance(prompt, str) or prompt is None else prompt
        if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts) or not texts:
            given = "No prompt was given" if prompt is None else f"The prompt is {prompt!r:.80}"
            raise InputError(
                f"{given}, and {type(self.pipeline).__name__} makes pictures of a text, or of a list of texts. "
                'Say what the picture should show, such as "a red circle".'
            )
        for text in texts:
            self._check_prompt(text)

    def _check_prompt(self, text: str) -> None:
        if not text.strip():
            raise InputError(
                'The prompt is empty. Say what the picture should show, such as "a red circle"; for a picture '
                "without a prompt give guidance_scale=1 and prompt_embeds, or load an unconditional model."
            )
        if self.takes_text and (cut := self.cut_off(text)):
            warnings.warn(
                f"The prompt is longer than the {self._length()} tokens the model reads; this was cut off: "
                f'"{textwrap.shorten(cut, 160, placeholder=" ...")}".',
                TruncatedPromptWarning,
                stacklevel=5,
            )

    def _size_multiple(self) -> int:
        """Pixels a side is a multiple of: 8 for diffusers' latent pipelines, the U-Net's own reduction for pixels."""
        if self.autoencoder is not None:
            return 8
        denoiser: Any = self.denoiser
        return 2 ** max(len(denoiser.config.get("block_out_channels", ())) - 1, 0)

    def _length(self) -> int:
        return min(int(self.pipeline.tokenizer.model_max_length), 10**6)

    def tokens(self, prompt: str) -> list[str]:
        """The prompt's tokens as the model reads them, special tokens included, without padding."""
        tokenizer = self._tokenizer()
        ids = tokenizer(prompt, truncation=True, max_length=self._length()).input_ids
        return tokenizer.convert_ids_to_tokens(ids)

    def cut_off(self, prompt: str) -> str:
        """The end of the prompt that does not fit into the tokenizer's length; usually empty."""
        tokenizer = self._tokenizer()
        ids = tokenizer(prompt, truncation=False, verbose=False).input_ids
        return tokenizer.decode(ids[self._length() - 1 : -1]).strip() if len(ids) > self._length() else ""

    def _tokenizer(self) -> Any:
        if not self.takes_text:
            raise ModelError(f"{type(self.pipeline).__name__} takes no prompt, so it has no tokens.")
        return self.pipeline.tokenizer

    @property
    def text_encoders(self) -> list[torch.nn.Module]:
        """What reads the prompt; some pipelines have two."""
        return [e for part in TEXT_ENCODERS if (e := getattr(self.pipeline, part, None)) is not None]

    def embedding(self, prompt: str, length: int, clip_skip: int | None = None) -> torch.Tensor:
        """What the pipeline makes of a prompt for its denoiser, (1, tokens, features), with its graph.

        `length` is that of the padded prompt, for pipelines that do not say how they encode.
        """
        encode: Any = getattr(self.pipeline, "encode_prompt", None)
        if encode is None:
            padded = dict(padding="max_length", max_length=length, truncation=True, return_tensors="pt")
            ids = self._tokenizer()(prompt, **padded).input_ids
            return self.text_encoders[0](ids.to(self.pipeline.device))[0]
        call = dict(device=self.pipeline.device, num_images_per_prompt=1, do_classifier_free_guidance=False)
        call |= {} if clip_skip is None else {"clip_skip": clip_skip}
        asked = inspect.signature(encode).parameters.values()
        unsaid = {p.name: None for p in asked if p.default is p.empty and p.name not in call}  # a second prompt
        return encode(**{**unsaid, **call, "prompt": prompt})[0]

    @property
    def autoencoder(self) -> Any:
        """What turns samples into pictures; None where samples are pixels."""
        return next((a for part in AUTOENCODERS if (a := getattr(self.pipeline, part, None)) is not None), None)

    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        """Samples (n, channels, h, w) to pictures (n, 3, height, width) in [0, 1]; differentiable."""
        autoencoder = self.autoencoder
        if autoencoder is not None:
            scaling = autoencoder.config.get("scaling_factor") or 1.0
            shift = autoencoder.config.get("shift_factor") or 0.0
            samples = autoencoder.decode(samples.to(autoencoder.dtype) / scaling + shift, return_dict=False)[0]
        return (samples / 2 + 0.5).clamp(0, 1)
