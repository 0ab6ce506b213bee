"""A recorded run: its steps in diffusers' words, each of which can be replayed with other samples."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, overload

import numpy as np
import torch

from ..errors import InputError, NumericsError, RecordingError, ReplayError
from .hooks.calls import DenoiserCall, SchedulerStep, recording, tensors_of
from .hooks.replay import Replay
from .hooks.schedulers import time_steps
from .noise import NoiseLevel, noise_level

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


class Decoder(Protocol):
    """What a trace needs of its model."""

    def decode(self, samples: torch.Tensor) -> torch.Tensor: ...


@dataclass(frozen=True, eq=False)
class Step:
    """One step of a run, in diffusers' words.

    `index` counts denoiser calls from 0; `timestep` is the scheduler's. `sample` (x_t), `model_output` (guided) and
    `prev_sample` have shape (pictures, channels, h, w). `level` is alpha and sigma of the denoiser's input, and
    `next_level` those of the next step's; None at the last step, behind which there is no noise.
    """

    index: int
    timestep: float
    level: NoiseLevel
    sample: torch.Tensor
    model_output: torch.Tensor
    prev_sample: torch.Tensor
    replay: Replay | ReplayError
    decoder: Decoder
    next_level: NoiseLevel | None = None
    _checked: list[bool] = field(default_factory=list, repr=False)

    @property
    def log_snr(self) -> float:
        """log(alpha² / sigma²), what makes steps of different schedulers comparable."""
        return self.level.log_snr

    @property
    def pred_original_sample(self) -> torch.Tensor:
        """The clean sample that the recorded prediction amounts to, without any clipping; shape as `sample`."""
        return self.level.original(self.sample, self.model_output)

    def predict(self, samples: torch.Tensor) -> torch.Tensor:
        """The guided prediction for other samples of this step, (n, channels, h, w) to the same.

        Stateless and differentiable. The first call replays the step's own sample and raises `ReplayError` when the
        result is not what the scheduler received; `NumericsError` when a prediction is not finite.
        """
        self._check()
        return self._finite(self._replay()(samples))

    def half(self, copy: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """What the denoiser alone says in one of its guidance halves, before they are mixed, as a function of samples.

        `copy` is 0 or 1; without guidance there is only 0. Checked as `predict` is, when it is asked for.
        """
        self._check()
        replay = self._replay().half(copy)
        return lambda samples: self._finite(replay(samples))

    def predict_original(self, samples: torch.Tensor) -> torch.Tensor:
        """The predicted clean samples, (n, channels, h, w)."""
        return self.level.original(samples, self.predict(samples))

    def next_sample(self, samples: torch.Tensor) -> torch.Tensor:
        """x_{t−1} that other samples of this step lead to, (n, channels, h, w) to the same.

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
        """This step as it would be for another sample, (pictures, channels, h, w), its conditioning kept.

        Its prediction is what the denoiser says of that sample now, and `prev_sample` is `next_sample`. Differentiable:
        what is computed of the new step is a function of the sample.
        """
        prediction = self.predict(sample)
        following = self._next(sample, prediction)
        return replace(self, sample=sample, model_output=prediction, prev_sample=following, _checked=[True])

    def clean(self, samples: torch.Tensor | None = None) -> torch.Tensor:
        """The predicted clean pictures, (n, 3, height, width) in [0, 1]; without samples, the recorded ones."""
        original = self.pred_original_sample if samples is None else self.predict_original(samples)
        return self.decoder.decode(original)

    def picture(self, index: int, earlier: "Step | None" = None) -> "Step":
        """This step for one picture of the batch; conditioning equal to that of `earlier` is shared with it."""
        own, known = slice(index, index + 1), earlier.replay if earlier else None
        known = known if isinstance(known, Replay) else None
        kept = replay if isinstance(replay := self.replay, ReplayError) else replay.picture(index, known)
        return replace(
            self,
            sample=self.sample[own],
            model_output=self.model_output[own],
            prev_sample=self.prev_sample[own],
            replay=kept,
            _checked=[],
        )

    def _replay(self) -> Replay:
        if isinstance(self.replay, ReplayError):
            raise self.replay
        return self.replay

    def repeat(self) -> torch.Tensor:
        """The guided prediction for the step's own sample, by exactly one denoiser call: for hooks to listen to.

        Differentiable. Raises `ReplayError` when it is not what the scheduler received.
        """
        again = self._replay()(self.sample)
        self._compare(again.detach())
        return self._finite(again)

    @torch.no_grad()
    def _check(self) -> None:
        if not self._checked:
            self._compare(self._replay()(self.sample))

    def _compare(self, again: torch.Tensor) -> None:
        scale = self.model_output.abs().max().clamp(min=1e-12)
        error = float((again - self.model_output).abs().max() / scale)
        allowed = TOLERANCE.get(self.model_output.dtype, 1e-2)
        if not error <= allowed:
            raise ReplayError(
                f"Step {self.index} (time step {self.timestep:g}) cannot be replayed: with its own sample the denoiser "
                f"gives a prediction that is {error:.2g} (relative) away from what the scheduler received; up to "
                f"{allowed:g} is allowed. The pipeline changes the prediction in a way other than u + w (c − u) "
                "(guidance_rescale, perturbed guidance, a random denoiser?); switch that off and record again."
            )
        self._checked[:] = [True]

    def _finite(self, prediction: torch.Tensor) -> torch.Tensor:
        _refuse_non_finite(prediction, self.index, self.timestep)
        return prediction


def _refuse_non_finite(prediction: torch.Tensor, index: int, timestep: float) -> None:
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
        """What the pipeline returned as `images`."""
        return self.result.images

    @property
    def image(self) -> Any:
        """The first picture."""
        return self.images[0]

    @property
    def pictures(self) -> int:
        """How many pictures were made at once."""
        return len(self.steps[0].sample)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors the trace holds; what steps share counts once."""
        storages = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in self._tensors()
        }
        return sum(storages.values())

    def _tensors(self) -> list[torch.Tensor]:
        found = []
        for step in self.steps:
            found += [step.sample, step.model_output, step.prev_sample]
            if isinstance(step.replay, Replay):
                found += tensors_of((step.replay.args, step.replay.kwargs, step.replay.extra))
        return found

    def picture(self, index: int) -> "Trace":
        """The trace of one picture of a batch.

        Raises `InputError` when there is no such picture.
        """
        if not 0 <= index < self.pictures:
            raise InputError(
                f"This trace has no picture {index}: it holds {self.pictures}, counted from 0 to {self.pictures - 1}."
            )
        result = _Images(self.images[index : index + 1])
        steps: list[Step] = []
        for step in self.steps:
            steps.append(step.picture(index, steps[-1] if steps else None))
        return Trace(steps, result, {**self.call, "picture": self.call.get("picture", 0) + index}, self.model)

    def with_steps(self, steps: Sequence[Step]) -> "Trace":
        """The same trace with these steps in the place of those of their index."""
        others = {step.index: step for step in steps}
        return Trace([others.get(step.index, step) for step in self.steps], self.result, self.call, self.model)

    def continued(self, index: int, samples: torch.Tensor) -> torch.Tensor:
        """The clean samples that other samples of a step end in, (n, channels, h, w) to the same.

        `next_sample` from that step to the last: stateless and deterministic, so the step's own sample does not end
        in exactly the recorded picture unless the scheduler is DDIM. Raises `InputError` when there is no such step.
        """
        if not 0 <= index < len(self):
            raise InputError(f"This trace has no step {index} to go on from: it has steps 0 to {len(self) - 1}.")
        for step in self.steps[index:]:
            samples = step.next_sample(samples)
        return samples

    def samples_decoded(self) -> np.ndarray:
        """Every step's sample as a picture: (steps, height, width, 3) in [0, 1], of the first picture."""
        return self._decoded(lambda step: step.sample[:1])

    def clean_decoded(self) -> np.ndarray:
        """Every step's predicted clean picture: (steps, height, width, 3) in [0, 1], of the first picture."""
        return self._decoded(lambda step: step.pred_original_sample[:1])

    @torch.no_grad()
    def _decoded(self, part: Callable[[Step], torch.Tensor]) -> np.ndarray:
        pictures = [self.model.decode(part(step))[0] for step in self.steps]
        return torch.stack(pictures).movedim(1, -1).float().cpu().numpy()


@dataclass(frozen=True)
class _Images:
    images: Any


def record(
    model: Any,
    denoiser: torch.nn.Module,
    scheduler: Any,
    run: Callable[[], Any],
    timesteps: Sequence[int] | None,
    call: dict[str, Any],
    advance: Callable[[int], None] | None = None,
) -> Trace:
    """Run a pipeline once and keep what went through its denoiser and its scheduler; tell `advance` of each step.

    Raises `NumericsError` at the step where a prediction is not finite and `RecordingError` when no step was heard.
    """
    steps: list[Step] = []

    def on_step(calls: list[DenoiserCall], step: SchedulerStep) -> None:
        _refuse_non_finite(step.model_output, len(steps), step.timestep)
        steps.append(_step(model, denoiser, scheduler, calls, step, steps[-1] if steps else None))
        if advance is not None:
            advance(1)

    with time_steps(scheduler, timesteps), recording(denoiser, scheduler, on_step):
        result = run()
    if not steps:
        raise RecordingError(
            f"The pipeline ran, but its {type(scheduler).__name__}.step was never called, so there is nothing to "
            "explain. Record a pipeline that denoises in its own call, with at least one inference step."
        )
    return Trace(_linked(steps), result, call, model)


def _linked(steps: Sequence[Step]) -> list[Step]:
    """The same steps, each told the noise level that it leads to."""
    following = [step.level for step in steps[1:]]
    return [replace(step, next_level=level) for step, level in zip(steps, [*following, None], strict=True)]


def _step(
    model: Any,
    denoiser: torch.nn.Module,
    scheduler: Any,
    calls: list[DenoiserCall],
    heard: SchedulerStep,
    before: Step | None,
) -> Step:
    """Build a step; what equals the step before's is shared with it, not stored again."""
    earlier = before.replay if before and isinstance(before.replay, Replay) else None
    replay: Replay | ReplayError
    try:
        replay = Replay.of(denoiser, calls, heard, earlier)
    except ReplayError as error:
        replay = error
    scale = replay.scale if isinstance(replay, Replay) else 1.0
    level = noise_level(scheduler, heard.timestep, heard.sigma_index, scale)
    follows = before is not None and torch.equal(before.prev_sample, heard.sample)
    sample = before.prev_sample if before is not None and follows else heard.sample
    index = 0 if before is None else before.index + 1
    return Step(index, heard.timestep, level, sample, heard.model_output, heard.prev_sample, replay, model)
