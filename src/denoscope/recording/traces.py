"""A recorded run: its steps in diffusers' words, each of which can be replayed with other samples."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, overload

import numpy as np
import torch

from ..errors import DenoscopeError, InputError, ModelError, NumericsError, ReplayError
from .hooks.calls import tensors_of
from .hooks.replay import Replay
from .noise import NoiseLevel
from .prompts import prompt_of

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest relative difference between a replayed and a recorded prediction."""

CONFIRMED = "_confirmed"
"""Where a step remembers that its replay was right."""
SAME_TEXT = 1e-2
"""Largest relative difference of two encodings of one text, that of half precision; another text is about 1 away."""
READ_SCALE = ("guidance", "timestep_cond")
"""Arguments by which distilled denoisers are told the guidance scale."""


class Decoder(Protocol):
    """The part of a model that a trace needs."""

    def decode(self, samples: torch.Tensor) -> torch.Tensor: ...


@dataclass(frozen=True, eq=False)
class Step:
    """One step of a run, in diffusers' words.

    `index` counts denoiser calls from 0; `timestep` is the scheduler's. `sample` (x_t), `model_output` (guided) and
    `prev_sample` have shape (pictures, channels, h, w). `next_level` is the noise level of the next step, None at the
    last step, behind which there is no noise.

    Some runs cannot be replayed, some schedulers have no known noise level. Both are recorded all the same: `refusal`
    and `level_refusal` are the reasons, None if there are none, and `replay` and `level` raise them.
    """

    index: int
    timestep: float
    noise: NoiseLevel | None
    sample: torch.Tensor
    model_output: torch.Tensor
    prev_sample: torch.Tensor
    engine: Replay | None
    decoder: Decoder
    next_level: NoiseLevel | None = None
    refusal: ReplayError | None = None
    level_refusal: DenoscopeError | None = None
    checked: bool = False
    """True if `model_output` is the engine's own prediction, so that there is nothing to check."""

    @property
    def replay(self) -> Replay:
        """The engine that sends other samples through the denoiser; raises the `refusal`."""
        if self.engine is None:
            raise ReplayError(str(self.refusal))
        return self.engine

    @property
    def level(self) -> NoiseLevel:
        """alpha and sigma of the denoiser's input; raises the `level_refusal`."""
        if self.noise is None:
            raise ModelError(str(self.level_refusal))
        return self.noise

    @property
    def log_snr(self) -> float:
        """log(alpha² / sigma²), which makes steps of different schedulers comparable; raises the `level_refusal`."""
        return self.level.log_snr

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns (h, w) of the sample; raises `InputError` for samples that are packed or of a video."""
        if self.sample.ndim != 4:
            raise InputError(
                f"The samples of this model have shape {tuple(self.sample.shape)} and not (pictures, channels, h, w): "
                "they are packed into a sequence or have frames. Such samples have no known place on the picture yet, "
                "so this question cannot be answered. Use a model of pictures such as Stable Diffusion."
            )
        return self.sample.shape[-2], self.sample.shape[-1]

    @property
    def pred_original_sample(self) -> torch.Tensor:
        """The clean sample that the recorded prediction amounts to, without any clipping; shape as `sample`.

        Raises the `level_refusal`.
        """
        return self.level.original(self.sample, self.model_output)

    def predict(self, samples: torch.Tensor) -> torch.Tensor:
        """Return the guided prediction for other samples of this step, (n, channels, h, w) to the same.

        Stateless and differentiable. The first call replays the step's own sample and raises `ReplayError` if the
        result is not the prediction that the scheduler received; `NumericsError` if a prediction is not finite.
        """
        self._check()
        return self._finite(self.replay(samples))

    def half(self, copy: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the denoiser's own prediction in one guidance half, before they are mixed, as a function of samples.

        `copy` is 0 or 1; without guidance there is only 0. Checked as in `predict`, when it is asked for.
        """
        self._check()
        replay = self.replay.half(copy)
        return lambda samples: self._finite(replay(samples))

    def predict_original(self, samples: torch.Tensor) -> torch.Tensor:
        """Return the predicted clean samples, (n, channels, h, w)."""
        return self.level.original(samples, self.predict(samples))

    def next_sample(self, samples: torch.Tensor) -> torch.Tensor:
        """Return x_{t−1} that other samples of this step lead to, (n, channels, h, w) to the same.

        One step of DDIM with η = 0 (Song, Meng, Ermon 2021, equation 12), x_{t−1} = α' x0 + σ' ε, with the predicted
        x0 (not clipped) and ε and the noise of the next step; the last step goes to x0. Stateless, deterministic and
        differentiable whatever the scheduler is, so a multistep or a random one's own `prev_sample` is another.
        """
        return self._next(samples, self.predict(samples))

    def _next(self, samples: torch.Tensor, prediction: torch.Tensor) -> torch.Tensor:
        original = self.level.original(samples, prediction)
        if self.next_level is None:
            return original
        return self.next_level.noisy(original, self.level.noise(samples, prediction))

    def with_sample(self, sample: torch.Tensor) -> "Step":
        """Return this step as it would be for another sample, (pictures, channels, h, w), its conditioning kept.

        Its prediction is the denoiser's for that sample now, and `prev_sample` is `next_sample`. Differentiable: the
        tensors of the new step are functions of the sample.
        """
        prediction = self.predict(sample)
        following = self._next(sample, prediction)
        return replace(self, sample=sample, model_output=prediction, prev_sample=following, checked=True)

    def clean(self, samples: torch.Tensor | None = None) -> torch.Tensor:
        """Return the predicted clean pictures, (n, 3, height, width) in [0, 1]; without samples, the recorded ones.

        Raises `InputError` for samples without a grid, and as `level` and `predict` do.
        """
        _ = self.grid
        original = self.pred_original_sample if samples is None else self.predict_original(samples)
        return self.decoder.decode(original)

    def picture(self, index: int, earlier: "Step | None" = None) -> "Step":
        """Return this step for one picture of the batch; conditioning equal to that of `earlier` is shared with it."""
        rows = slice(index, index + 1)
        shared = None if earlier is None else earlier.engine
        return replace(
            self,
            sample=self.sample[rows],
            model_output=self.model_output[rows],
            prev_sample=self.prev_sample[rows],
            engine=None if self.engine is None else self.engine.picture(index, shared),
            checked=False,
        )

    def repeat(self) -> torch.Tensor:
        """Return the guided prediction for the step's own sample, by exactly one denoiser call: for hooks to listen to.

        Differentiable. Raises `ReplayError` if it is not the prediction that the scheduler received.
        """
        again = self.replay(self.sample)
        self._confirm(self._difference(again.detach()))
        return self._finite(again)

    def _check(self) -> None:
        """Replay the step's own sample, unless that was right before."""
        if self.checked or self.__dict__.get(CONFIRMED):
            return
        with torch.no_grad():
            difference = self._difference(self.replay(self.sample))
        self._confirm(difference)

    def _confirm(self, difference: float) -> None:
        """Remember that the replay is right; a refusal is not remembered, as the network may be changed for a while."""
        self._compare(difference)
        self.__dict__[CONFIRMED] = True

    def _difference(self, again: torch.Tensor) -> float:
        """Return the largest difference from the recorded prediction, relative to the largest value."""
        scale = self.model_output.abs().max().clamp(min=1e-12)
        return float((again - self.model_output).abs().max() / scale)

    def _compare(self, difference: float) -> None:
        allowed = TOLERANCE.get(self.model_output.dtype, 1e-2)
        if not difference <= allowed:
            raise ReplayError(
                f"Step {self.index} (time step {self.timestep:g}) cannot be replayed: with its own sample the denoiser "
                f"gives a prediction that is {difference:.2g} (relative) away from the one that the scheduler "
                f"received; up to {allowed:g} is allowed. The pipeline changes the prediction in a way other than "
                "u + w (c − u) (guidance_rescale, perturbed guidance, a random denoiser?); switch that off and record "
                "again."
            )

    def _finite(self, prediction: torch.Tensor) -> torch.Tensor:
        refuse_non_finite(prediction, self.index, self.timestep)
        return prediction


def refuse_non_finite(prediction: torch.Tensor, index: int, timestep: float) -> None:
    """Raise `NumericsError`, naming the step, for a prediction with NaN or infinite values."""
    if not torch.isfinite(prediction).all():
        raise NumericsError(
            f"The prediction at step {index} (time step {timestep:g}) has NaN or infinite values. Only finite "
            "predictions can be explained. Half precision often overflows: load the model with dtype=torch.float32, "
            "or check its weights."
        )


class Trace(Sequence[Step]):
    """A recorded run: a sequence of `Step`s, the pictures, and the call that made them."""

    def __init__(self, steps: Sequence[Step], result: Any, call: dict[str, Any], model: Any):
        self.steps, self.result, self.call, self.model = tuple(steps), result, call, model

    def __len__(self) -> int:
        return len(self.steps)

    @overload
    def __getitem__(self, index: int) -> Step: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Step, ...]: ...
    def __getitem__(self, index: int | slice) -> Step | tuple[Step, ...]:
        return self.steps[index]

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def __repr__(self) -> str:
        first, last = self.steps[0], self.steps[-1]
        return (
            f"Trace of {len(self)} steps, time steps {first.timestep:g} to {last.timestep:g}, {self.pictures} "
            f"picture(s), samples {tuple(first.sample.shape[1:])}, {self.nbytes / 1e6:.1f} MB"
        )

    @property
    def images(self) -> Any:
        """The pictures that the pipeline returned; raises `InputError` if it returned something else."""
        images = getattr(self.result, "images", None)
        if images is None:
            raise InputError(self._no_images())
        return images

    def _no_images(self) -> str:
        if isinstance(self.result, tuple):
            return (
                "The pipeline returned a tuple (return_dict=False), so its pictures have no name. Record without "
                "return_dict=False."
            )
        fields = ", ".join(getattr(self.result, "keys", list)()) or "no fields"
        return (
            f"The pipeline returned {type(self.result).__name__} with {fields} and no images. Denoscope explains "
            "pictures: record a pipeline that returns images. The pipeline's own result is trace.result."
        )

    @property
    def image(self) -> Any:
        """The first picture."""
        return self.images[0]

    @property
    def pictures(self) -> int:
        """The number of pictures that were made at once."""
        return len(self.steps[0].sample)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors the trace holds; what steps share counts once."""
        storages = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in self._tensors()
        }
        return sum(storages.values())

    def _tensors(self) -> list[torch.Tensor]:
        tensors = []
        for step in self.steps:
            tensors += [step.sample, step.model_output, step.prev_sample]
            if step.engine is not None:
                tensors += tensors_of((step.engine.args, step.engine.kwargs, step.engine.extra))
        return tensors

    def picture(self, index: int) -> "Trace":
        """Return the trace of one picture of a batch.

        Raises `InputError` if there is no such picture, or if the samples are not one for each picture.
        """
        if not 0 <= index < self.pictures:
            raise InputError(
                f"This trace has no picture {index}: it holds {self.pictures}, counted from 0 to {self.pictures - 1}."
            )
        if len(self.images) != self.pictures:
            raise InputError(
                f"This trace has {self.pictures} samples for {len(self.images)} pictures: the pipeline doubles its "
                "samples for guidance, as DiT does, or drops some. So the sample of a picture is not known, and no "
                "picture can be chosen. Record without guidance, guidance_scale=1."
            )
        result = _Images(self.images[index : index + 1])
        steps: list[Step] = []
        for step in self.steps:
            steps.append(step.picture(index, steps[-1] if steps else None))
        return Trace(steps, result, {**self.call, "picture": self.call.get("picture", 0) + index}, self.model)

    @torch.no_grad()
    def prompt_half(self) -> int:
        """Return the copy of the denoiser's batch that reads the prompt: 0 or 1, always 0 without guidance.

        Measured: the copy that reads the text encoder's own encoding of the prompt. Raises `InputError` if the picture
        was made from no text or is not one, `ModelError` if no copy reads that encoding, and the `refusal`.
        """
        text = prompt_of(self.call)
        if text is None or self.pictures != 1:
            raise InputError(
                f"The half of guidance that reads the prompt is asked for, of {self.pictures} picture(s) and "
                f"{'no text' if text is None else 'a text'}. Record one picture with its prompt as a text."
            )
        replay = self.steps[0].replay
        if replay.context is None:
            raise ModelError("This denoiser reads no text by cross-attention, so no half of it reads the prompt.")
        embedding = self.model.embedding(text, replay.context.shape[1], self.call.get("clip_skip"))
        half, difference = replay.nearest_text(embedding)
        if not difference <= SAME_TEXT:
            raise ModelError(
                "The text that the denoiser read is not what the pipeline's text encoder makes of the prompt now: they "
                f"are {difference:.2g} (relative) apart. Was it changed, by prompt_embeds, a second prompt, weights "
                "that were loaded since? Record the picture again with its prompt alone."
            )
        return half

    def guidance_in_effect(self, scale: float | None) -> float | None:
        """Return the guidance scale that counted in this run, for the `scale` that the pipeline was given.

        1 if the denoiser saw each sample once and was not told the scale: diffusers switches guidance off so, in most
        pipelines for every scale of 1 or less. The scale itself for guided runs, for denoisers that are told it, and
        for runs that cannot be replayed and have a scale above 1.
        """
        engine = self.steps[0].engine
        if scale is None or scale == 1:
            return scale
        if engine is None:
            return max(scale, 1.0)
        reads_scale = any(engine.kwargs.get(name) is not None for name in READ_SCALE)
        return scale if engine.copies > 1 or reads_scale else 1.0

    def with_steps(self, steps: Sequence[Step]) -> "Trace":
        """Return the same trace with these steps in the place of those of their index."""
        others = {step.index: step for step in steps}
        return Trace([others.get(step.index, step) for step in self.steps], self.result, self.call, self.model)

    def continued(self, index: int, samples: torch.Tensor) -> torch.Tensor:
        """Return the clean samples that other samples of a step end in, (n, channels, h, w) to the same.

        `next_sample` from that step to the last: stateless and deterministic. The step's own sample ends in the
        recorded one only if the scheduler's own step is the same. Euler's is (4e-6 apart in 8 steps of the bundled
        model), and DDIM's if its previous time steps are the recorded ones and its last step goes to x0: leading
        spacing with `set_alpha_to_one` is 3e-6 apart, without it 0.11, linspace spacing 0.45, `clip_sample` 3.2.
        Raises `InputError` if there is no such step.
        """
        if not 0 <= index < len(self):
            raise InputError(f"This trace has no step {index} to go on from: it has steps 0 to {len(self) - 1}.")
        for step in self.steps[index:]:
            samples = step.next_sample(samples)
        return samples

    def samples_decoded(self) -> np.ndarray:
        """Return every step's sample as a picture: (steps, height, width, 3) in [0, 1], of the first picture."""
        return self._decoded(lambda step: step.sample[:1])

    def clean_decoded(self) -> np.ndarray:
        """Return every step's predicted clean picture: (steps, height, width, 3) in [0, 1], of the first picture."""
        return self._decoded(lambda step: step.pred_original_sample[:1])

    @torch.no_grad()
    def _decoded(self, part: Callable[[Step], torch.Tensor]) -> np.ndarray:
        _ = self.steps[0].grid
        pictures = [self.model.decode(part(step))[0] for step in self.steps]
        return torch.stack(pictures).movedim(1, -1).float().cpu().numpy()


@dataclass(frozen=True)
class _Images:
    images: Any
