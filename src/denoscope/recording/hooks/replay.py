"""A recorded denoiser call, sent again with other samples: the direct engine.

No pipeline is known by name here. Which argument of the denoiser is the sample, how it was scaled, what else was put
behind its channels and how the guidance halves were mixed are read off the recorded numbers. `Step.predict` checks the
result against the recording before its first answer.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...errors import ReplayError, in_short
from .calls import SAMPLE_NAMES, DenoiserCall, SchedulerStep, map_tensors, output_of, shared_tensors
from .layers import TIME, time_place

DEPEND_ON_SAMPLE = (
    "down_block_additional_residuals",
    "mid_block_additional_residual",
    "controlnet_block_samples",
    "block_controlnet_hidden_states",
)
"""Arguments that ControlNet and its kin compute from the sample: the recorded ones are wrong for another sample."""

Conditioning = tuple[tuple[Any, ...], dict[str, Any]]
"""The positional and the named arguments of the denoiser, with None in the sample's place."""

SCALE_DIFFERENCE = {torch.float64: 1e-6, torch.float32: 1e-6}
"""Largest relative difference between the scheduler's scale and the fitted one; 1e-3 in half precision."""


@dataclass(frozen=True, eq=False)
class Replay:
    """How to send other samples through the denoiser as one recorded step did.

    The denoiser saw `copies` times the batch, each `scale * sample` with `extra` channels behind it, and the
    scheduler received `first + weight (second − first)` of the two copies. Since any guidance
    `u + w (c − u)` is such a mixture, whichever half comes first, `weight` is fitted to the recorded numbers.
    """

    denoiser: torch.nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    batch: int
    copies: int
    scale: float
    weight: float
    extra: torch.Tensor | None

    @classmethod
    def of(
        cls, denoiser: torch.nn.Module, calls: list[DenoiserCall], step: SchedulerStep, earlier: "Replay | None"
    ) -> "Replay":
        """Read the replay of one step off its recording; raises `ReplayError` if the step has another form."""
        if step.problem is not None:
            raise ReplayError(_cannot(step.problem))
        if len(calls) != 1:
            raise ReplayError(_cannot(f"its denoiser was called {len(calls)} times before one scheduler step"))
        try:
            return cls._read(denoiser, calls[0], step, earlier)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise ReplayError(_cannot(f"reading its denoiser's call failed ({in_short(error, 120)})")) from error

    @classmethod
    def _read(
        cls, denoiser: torch.nn.Module, call: DenoiserCall, step: SchedulerStep, earlier: "Replay | None"
    ) -> "Replay":
        args, kwargs, seen = _without_sample(call)
        residuals = [name for name in DEPEND_ON_SAMPLE if kwargs.get(name) is not None]
        if residuals:
            raise ReplayError(
                _cannot(f"another network read the sample first and gave its denoiser {residuals[0]} (ControlNet?)")
            )
        copies = _copies(call, seen, step)
        batch, channels = step.sample.shape[:2]
        sample_seen, output = seen[:batch, :channels], call.output
        assert output is not None  # _copies refuses it
        args, kwargs = shared_tensors((args, kwargs), (earlier.args, earlier.kwargs) if earlier else None)
        extra = seen[:batch, channels:].clone() if seen.shape[1] > channels else None
        first, second = output[:batch], output[-batch:]
        weight = _slope(second - first, step.model_output - first)
        return cls(denoiser, args, kwargs, batch, copies, _scale(step, sample_seen), weight, extra)

    @property
    def shares(self) -> tuple[float, ...]:
        """How much each copy counts in the guided prediction, Σ share · copy: (1 − w, w), or (1,) without guidance."""
        return (1.0,) if self.copies == 1 else (1 - self.weight, self.weight)

    def __call__(self, samples: torch.Tensor) -> torch.Tensor:
        """Return the guided prediction for samples (n, channels, h, w); n is the recorded batch, or any if that is 1.

        Raises `ReplayError` for another number of samples.
        """
        n = len(samples)
        if self.batch not in (1, n):
            raise ReplayError(
                f"{n} samples were given to a step that was recorded with {self.batch} pictures. "
                "Choose one picture of the trace first: trace.picture(0)."
            )
        for_samples = self._rows(n)
        x = self.scale * samples
        if self.extra is not None:
            extra = for_samples(self.extra.repeat(self.copies, *[1] * (self.extra.ndim - 1)))
            x = torch.cat([x, extra[:n]], dim=1)
        x = torch.cat([x] * self.copies)
        args, kwargs = map_tensors(for_samples, (self.args, self.kwargs))
        output = output_of(_called(self.denoiser, x, args, kwargs))
        if self.copies == 1:
            return output
        first, second = output[:n], output[n:]
        return first + self.weight * (second - first)

    @property
    def context(self) -> torch.Tensor | None:
        """The text that cross-attention reads, (copies · pictures, tokens, features); None if there is none."""
        context = self.kwargs.get("encoder_hidden_states", self.args[2] if len(self.args) > 2 else None)
        return context if isinstance(context, torch.Tensor) else None

    def half(self, copy: int) -> "Replay":
        """Return the replay of one copy alone: the denoiser's own prediction, before any guidance."""
        args, kwargs = self._only(range(copy * self.batch, (copy + 1) * self.batch))
        return replace(self, args=args, kwargs=kwargs, copies=1, weight=1.0)

    def nearest_text(self, embedding: torch.Tensor) -> tuple[int, float]:
        """Return the row of the denoiser's batch whose text is nearest to an embedding, (1, tokens, features).

        The second value is their largest difference, relative to the largest value of the embedding; infinite if no
        row has the embedding's shape.
        """
        context = self.context
        rows = [] if context is None else list(context.detach()[:, None])
        scale = embedding.detach().abs().max().clamp(min=1e-12)
        differences = [math.inf] * max(len(rows), 1)
        for index, row in enumerate(rows):
            if row.shape == embedding.shape:
                differences[index] = float((row - embedding.detach()).abs().max() / scale)
        nearest = min(range(len(differences)), key=differences.__getitem__)
        return nearest, differences[nearest]

    @property
    def time(self) -> float:
        """The time step that was passed to the denoiser, in the denoiser's units."""
        place = time_place(self.denoiser)
        time = self.kwargs[TIME] if TIME in self.kwargs else self.args[place]
        return float(time.flatten()[0] if isinstance(time, torch.Tensor) else time)

    def picture(self, index: int, earlier: "Replay | None" = None) -> "Replay":
        """Return the replay of one picture of the batch; conditioning equal to that of `earlier` is shared with it."""
        rows = [copy * self.batch + index for copy in range(self.copies)]
        shared = (earlier.args, earlier.kwargs) if earlier else None
        args, kwargs = shared_tensors(self._only(rows), shared)
        extra = None if self.extra is None else self.extra[index : index + 1]
        return replace(self, args=args, kwargs=kwargs, batch=1, extra=extra)

    def _only(self, rows: Sequence[int]) -> Conditioning:
        """Return the conditioning of some rows of the denoiser's batch."""

        def of_rows(tensor: torch.Tensor) -> torch.Tensor:
            return tensor[list(rows)] if self._is_batched(tensor) else tensor

        args, kwargs = map_tensors(of_rows, (self.args, self.kwargs))
        return args, kwargs

    def _is_batched(self, tensor: torch.Tensor) -> bool:
        return tensor.ndim > 0 and len(tensor) == self.copies * self.batch

    def _rows(self, n: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the function that gives every batched tensor of the conditioning one row per sample."""
        times = n // self.batch
        return lambda tensor: tensor.repeat_interleave(times, dim=0) if self._is_batched(tensor) else tensor


def _without_sample(call: DenoiserCall) -> tuple[tuple[Any, ...], dict[str, Any], torch.Tensor]:
    """Return the arguments with None in the sample's place, and the sample; raises `ReplayError` if it is no tensor."""
    if call.args:
        args, kwargs, sample = (None, *call.args[1:]), call.kwargs, call.args[0]
    else:
        names = [name for name in SAMPLE_NAMES if name in call.kwargs]
        if not names:
            raise ReplayError(_cannot(f"no argument of its denoiser is called {' or '.join(SAMPLE_NAMES)}"))
        args, kwargs, sample = (), {**call.kwargs, names[0]: None}, call.kwargs[names[0]]
    if not isinstance(sample, torch.Tensor):
        raise ReplayError(_cannot(f"its denoiser takes its samples as a {type(sample).__name__} and not as one tensor"))
    return args, kwargs, sample


def _copies(call: DenoiserCall, seen: torch.Tensor, step: SchedulerStep) -> int:
    """Return how many copies of the batch the denoiser saw, 1 or 2; raises `ReplayError` if it saw something else."""
    batch = len(step.sample)
    copies = len(seen) // batch
    if copies not in (1, 2) or len(seen) % batch or seen[:batch, : step.sample.shape[1]].shape != step.sample.shape:
        shapes = f"{tuple(seen.shape)} for a sample of {tuple(step.sample.shape)}"
        raise ReplayError(_cannot(f"its denoiser saw an input of {shapes}"))
    if call.output is None:
        raise ReplayError(_cannot("its denoiser gave no tensor"))
    if call.output.shape != (copies * batch, *step.model_output.shape[1:]):
        shapes = f"{tuple(call.output.shape)} became {tuple(step.model_output.shape)}"
        raise ReplayError(_cannot(f"the denoiser's output of {shapes} on its way to the scheduler"))
    return copies


def _called(denoiser: torch.nn.Module, x: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if args:
        return denoiser(x, *args[1:], **kwargs)
    name = next(name for name in SAMPLE_NAMES if name in kwargs)
    return denoiser(**{**kwargs, name: x})


def _scale(step: SchedulerStep, seen: torch.Tensor) -> float:
    """Return the factor from the sample to the denoiser's input.

    The scheduler's own scale is exact, and says it for samples of zeros too. A pipeline that scales in another way is
    read off its numbers.
    """
    if not step.sample.any() and math.isfinite(step.scale):
        return step.scale
    fitted = _slope(step.sample, seen)
    largest = SCALE_DIFFERENCE.get(step.sample.dtype, 1e-3) * abs(step.scale)
    return step.scale if abs(fitted - step.scale) <= largest else fitted


def _slope(x: torch.Tensor, y: torch.Tensor) -> float:
    """Return the k that brings k x closest to y; 1 where x is zero."""
    x, y = x.cpu().double(), y.cpu().double()  # not every device has double precision
    square = (x * x).sum()
    return float((x * y).sum() / square) if square > 0 else 1.0


def _cannot(reason: str) -> str:
    return (
        f"This pipeline's steps were recorded but cannot be replayed: {reason}. Denoscope replays a denoiser that is "
        "called once a step, alone or with two guidance halves, u + w (c − u). If guidance is the reason, "
        "guidance_scale=1 switches it off."
    )
