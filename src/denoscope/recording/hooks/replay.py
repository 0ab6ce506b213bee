"""A recorded denoiser call, sent again with other samples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...errors import ReplayError
from .calls import SAMPLE_NAMES, DenoiserCall, SchedulerStep, map_tensors, output_of, shared_tensors
from .layers import TIME, time_place

DEPEND_ON_SAMPLE = (
    "down_block_additional_residuals",
    "mid_block_additional_residual",
    "controlnet_block_samples",
    "block_controlnet_hidden_states",
)
"""Arguments that ControlNet and its kin work out of the sample: kept as recorded, they would be wrong for another."""


@dataclass(frozen=True, eq=False)
class Replay:
    """How to send other samples through the denoiser as one recorded step did.

    The denoiser saw `copies` times the batch, each `scale * sample` with `extra` channels behind it, and the
    scheduler received `first + weight (second − first)` of the two copies. Since any guidance
    `u + w (c − u)` is such a mixture, whichever half comes first, `weight` is fitted to the recorded numbers.
    """

    denoiser: torch.nn.Module
    args: tuple
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
        """Read the replay of one step off its recording; raises `ReplayError` where it has another form."""
        if len(calls) != 1:
            raise ReplayError(_cannot(f"its denoiser was called {len(calls)} times before one scheduler step"))
        args, kwargs, seen = _without_sample(calls[0])
        if residuals := [name for name in DEPEND_ON_SAMPLE if kwargs.get(name) is not None]:
            raise ReplayError(
                _cannot(f"another network read the sample first and gave its denoiser {residuals[0]} (ControlNet?)")
            )
        args, kwargs = shared_tensors((args, kwargs), (earlier.args, earlier.kwargs) if earlier else None)
        batch = len(step.sample)
        copies = len(seen) // batch
        if copies not in (1, 2) or len(seen) % batch or seen[:batch, : step.sample.shape[1]].shape != step.sample.shape:
            shapes = f"{tuple(seen.shape)} for a sample of {tuple(step.sample.shape)}"
            raise ReplayError(_cannot(f"its denoiser saw an input of {shapes}"))
        if calls[0].output.shape != (copies * batch, *step.model_output.shape[1:]):
            shapes = f"{tuple(calls[0].output.shape)} became {tuple(step.model_output.shape)}"
            raise ReplayError(_cannot(f"the denoiser's output of {shapes} on its way to the scheduler"))
        channels = step.sample.shape[1]
        extra = seen[:batch, channels:].clone() if seen.shape[1] > channels else None
        scale = _slope(step.sample, seen[:batch, :channels])
        first, second = calls[0].output[:batch], calls[0].output[-batch:]
        weight = _slope(second - first, step.model_output - first)
        return cls(denoiser, args, kwargs, batch, copies, scale, weight, extra)

    @property
    def shares(self) -> tuple[float, ...]:
        """How much each copy counts in the guided prediction, Σ share · copy: (1 − w, w), or (1,) without guidance."""
        return (1.0,) if self.copies == 1 else (1 - self.weight, self.weight)

    def __call__(self, samples: torch.Tensor) -> torch.Tensor:
        """The guided prediction for samples (n, channels, h, w); n is the recorded batch, or any if that is 1."""
        n = len(samples)
        if self.batch not in (1, n):
            raise ReplayError(
                f"{n} samples were given to a step that was recorded with {self.batch} pictures. "
                "Choose one picture of the trace first: trace.picture(0)."
            )
        own = self._rows(n)
        x = self.scale * samples
        if self.extra is not None:
            x = torch.cat([x, own(self.extra.repeat(self.copies, *[1] * (self.extra.ndim - 1)))[:n]], dim=1)
        x = torch.cat([x] * self.copies)
        args, kwargs = map_tensors(own, (self.args, self.kwargs))
        output = output_of(_called(self.denoiser, x, args, kwargs))
        if self.copies == 1:
            return output
        first, second = output[:n], output[n:]
        return first + self.weight * (second - first)

    @property
    def context(self) -> torch.Tensor | None:
        """What cross-attention reads, (copies · pictures, tokens, features), where the denoiser was given such."""
        given = self.kwargs.get("encoder_hidden_states", self.args[2] if len(self.args) > 2 else None)
        return given if isinstance(given, torch.Tensor) else None

    def half(self, copy: int) -> "Replay":
        """One of the copies alone: what the denoiser itself says of it, before any guidance."""
        args, kwargs = self._only(range(copy * self.batch, (copy + 1) * self.batch))
        return Replay(self.denoiser, args, kwargs, self.batch, 1, self.scale, 1.0, self.extra)

    @property
    def time(self) -> float:
        """The time step that the denoiser was told, in its own units."""
        place = time_place(self.denoiser)
        told = self.kwargs[TIME] if TIME in self.kwargs else self.args[place]
        return float(told.flatten()[0] if isinstance(told, torch.Tensor) else told)

    def picture(self, index: int, earlier: "Replay | None" = None) -> "Replay":
        """The same step for one picture of the batch; conditioning equal to that of `earlier` is shared with it."""
        rows = [copy * self.batch + index for copy in range(self.copies)]
        known = (earlier.args, earlier.kwargs) if earlier else None
        args, kwargs = shared_tensors(self._only(rows), known)
        extra = None if self.extra is None else self.extra[index : index + 1]
        return Replay(self.denoiser, args, kwargs, 1, self.copies, self.scale, self.weight, extra)

    def _only(self, rows: Sequence[int]) -> tuple[tuple, dict[str, Any]]:
        """The conditioning of some rows of the denoiser's batch."""
        own = lambda tensor: tensor[list(rows)] if self._is_batched(tensor) else tensor  # noqa: E731
        return map_tensors(own, (self.args, self.kwargs))

    def _is_batched(self, tensor: torch.Tensor) -> bool:
        return tensor.ndim > 0 and len(tensor) == self.copies * self.batch

    def _rows(self, n: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """Give every batched tensor of the conditioning one row per sample."""
        times = n // self.batch
        return lambda tensor: tensor.repeat_interleave(times, dim=0) if self._is_batched(tensor) else tensor


def _without_sample(call: DenoiserCall) -> tuple[tuple, dict[str, Any], torch.Tensor]:
    """The arguments with None in the sample's place, and the sample."""
    if call.args:
        return (None, *call.args[1:]), call.kwargs, call.args[0]
    for name in SAMPLE_NAMES:
        if name in call.kwargs:
            return (), {**call.kwargs, name: None}, call.kwargs[name]
    raise ReplayError(_cannot(f"no argument of its denoiser is called {' or '.join(SAMPLE_NAMES)}"))


def _called(denoiser: torch.nn.Module, x: torch.Tensor, args: tuple, kwargs: dict[str, Any]) -> Any:
    if args:
        return denoiser(x, *args[1:], **kwargs)
    name = next(name for name in SAMPLE_NAMES if name in kwargs)
    return denoiser(**{**kwargs, name: x})


def _slope(x: torch.Tensor, y: torch.Tensor) -> float:
    """The k that brings k x closest to y; 1 where x is zero."""
    x, y = x.cpu().double(), y.cpu().double()  # not every device has double precision
    square = (x * x).sum()
    return float((x * y).sum() / square) if square > 0 else 1.0


def _cannot(reason: str) -> str:
    return (
        f"This pipeline's steps were recorded but cannot be replayed: {reason}. Denoscope replays a denoiser that is "
        "called once a step, alone or with two guidance halves, u + w (c − u). Use guidance_scale=1."
    )
