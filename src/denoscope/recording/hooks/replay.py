"""Recorded denoiser calls, made again with other samples: the direct engine.

No pipeline is known by name here. Which argument is the sample, how it was scaled, what else lies beside it in the same
tensor, which part of an output counts and how outputs were mixed are read off the recorded numbers. `engines.py` checks
the result against the recording, and against the pipeline's own code, before the first answer.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import count
from typing import Any

import torch

from ...errors import ReplayError, in_short
from .calls import SAMPLE_NAMES, ModuleCall, SchedulerStep
from .layers import TIME, time_place
from .mixing import Mixture
from .surroundings import Autocast, own_network, weights_kept
from .trees import map_tensors, output_of, shared_tensors, tensors_of

Conditioning = tuple[tuple[Any, ...], dict[str, Any]]
"""The positional and the named arguments of a denoiser, with None in the sample's place."""

SCALE_DIFFERENCE = {torch.float64: 1e-6, torch.float32: 1e-6}
"""Largest relative difference between the scheduler's scale and the fitted one; 1e-3 in half precision."""
SAME = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""Largest difference, relative to the largest value, of two tensors that are one up to rounding."""


@dataclass(frozen=True, eq=False)
class Part:
    """The part of a larger tensor that has a sample's shape: `copies` batches, and a stretch of one further axis."""

    copies: int
    axis: int
    start: int
    size: int
    is_whole: bool = True

    @classmethod
    def candidates(cls, whole: Sequence[int], part: Sequence[int]) -> list["Part"]:
        """Return the parts of this shape that a tensor may hold: the first stretch of the longer axis, and the last."""
        if len(whole) != len(part) or whole[0] % part[0]:
            return []
        longer = [axis for axis in range(1, len(part)) if whole[axis] != part[axis]]
        if len(longer) > 1 or any(whole[axis] < part[axis] for axis in longer):
            return []
        axis = longer[0] if longer else 1
        size, room = part[axis], whole[axis] - part[axis]
        return [cls(whole[0] // part[0], axis, start, size, not room) for start in ((0, room) if room else (0,))]

    def of(self, whole: torch.Tensor) -> torch.Tensor:
        """Return the part of a tensor, copies behind each other."""
        return whole.narrow(self.axis, self.start, self.size)


@dataclass(frozen=True, eq=False)
class DenoiserCall:
    """One recorded call of a denoiser, ready to be made with other samples.

    The sample, times `scale`, is the `part` of one argument; `beside` is that argument, for what lies beside the
    sample in it, None if nothing does. `place` is the argument's name, or its position. `taken` is the part of the
    output that counts. `elsewhere` are the tensors of the arguments, counted as they lie in them, that the pipeline has
    on another device than its samples.
    """

    name: str
    denoiser: torch.nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    place: int | str
    part: Part
    scale: float
    beside: torch.Tensor | None
    taken: Part
    autocast: Autocast
    elsewhere: tuple[int, ...] = ()

    @classmethod
    def of(cls, call: ModuleCall, step: SchedulerStep, earlier: "DenoiserCall | None") -> "DenoiserCall":
        """Read a call off its recording; raises `ReplayError` for one of another form."""
        place, seen = _sample_argument(call)
        part, scale = _located(seen, step)
        args, kwargs = list(call.args), dict(call.kwargs)
        if isinstance(place, int):
            args[place] = None
        else:
            kwargs[place] = None
        beside = seen.detach() if seen.shape[part.axis] > part.size else None
        before = None if earlier is None else (earlier.args, earlier.kwargs, earlier.beside)
        stored = shared_tensors((tuple(args), kwargs, beside), before)
        devices = [tensor.device for tensor in tensors_of(stored[:2])]
        elsewhere = tuple(index for index, device in enumerate(devices) if device != seen.device)
        taken = _taken(call, step)
        return cls(
            call.name, call.module, stored[0], stored[1], place, part, scale, stored[2], taken, call.autocast, elsewhere
        )

    def __call__(self, samples: torch.Tensor, batch: int) -> list[torch.Tensor]:
        """Return the part of the output that counts for each copy of the batch, (n, ...) each."""
        n = len(samples)

        def rows(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.repeat_interleave(n // batch, dim=0) if self.batched(tensor, batch) else tensor

        x = torch.cat([self.scale * samples] * self.part.copies)
        if self.beside is not None:
            axis, end = self.part.axis, self.part.start + self.part.size
            before, after = (
                self.beside.narrow(axis, 0, self.part.start),
                self.beside.narrow(axis, end, self.beside.shape[axis] - end),
            )
            x = torch.cat([rows(before), x, rows(after)], dim=axis)
        args, kwargs = map_tensors(rows, (self.args, self.kwargs))
        if isinstance(self.place, int):
            args = (*args[: self.place], x, *args[self.place + 1 :])
        else:
            kwargs = {**kwargs, self.place: x}
        with weights_kept(self.denoiser), self.autocast.again():
            output = self.taken.of(output_of(self.denoiser(*args, **kwargs)))
        return list(torch.split(output, n))

    def to(self, move: Callable[[torch.Tensor], torch.Tensor]) -> "DenoiserCall":
        """Return the call with its tensors moved, except those that lie `elsewhere`."""
        numbers = count()

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            return tensor if next(numbers) in self.elsewhere else move(tensor)

        args, kwargs = map_tensors(moved, (self.args, self.kwargs))
        return replace(self, args=args, kwargs=kwargs, beside=None if self.beside is None else move(self.beside))

    @property
    def is_whole(self) -> bool:
        """True if the whole input is the sample, and the whole output counts."""
        return self.beside is None and self.taken.is_whole

    def batched(self, tensor: torch.Tensor, batch: int) -> bool:
        """Return True if a tensor of the conditioning has a row for each row of the denoiser's batch."""
        return tensor.ndim > 0 and len(tensor) == self.part.copies * batch

    def rows(self, indices: Sequence[int], batch: int) -> Conditioning:
        """Return the conditioning of some rows of the denoiser's batch."""

        def chosen(tensor: torch.Tensor) -> torch.Tensor:
            return tensor[list(indices)] if self.batched(tensor, batch) else tensor

        args, kwargs = map_tensors(chosen, (self.args, self.kwargs))
        return args, kwargs

    def picture(self, rows: range, batch: int, earlier: "DenoiserCall | None") -> "DenoiserCall":
        """Return the call for some rows of the batch; conditioning equal to that of `earlier` is shared with it."""
        indices = [copy * batch + row for copy in range(self.part.copies) for row in rows]
        args, kwargs = self.rows(indices, batch)
        beside = None if self.beside is None else self.beside[indices]
        before = None if earlier is None else (earlier.args, earlier.kwargs, earlier.beside)
        args, kwargs, beside = shared_tensors((args, kwargs, beside), before)
        return replace(self, args=args, kwargs=kwargs, beside=beside)

    def copy(self, index: int, batch: int) -> "DenoiserCall":
        """Return the call with one copy of the batch alone."""
        indices = range(index * batch, (index + 1) * batch)
        args, kwargs = self.rows(indices, batch)
        beside = None if self.beside is None else self.beside[list(indices)]
        alone = (replace(part, copies=1) for part in (self.part, self.taken))
        return replace(self, args=args, kwargs=kwargs, beside=beside, part=next(alone), taken=next(alone))


@dataclass(frozen=True, eq=False)
class Replay:
    """How to send other samples through the denoiser as one recorded step did: its calls, and how they were mixed."""

    calls: tuple[DenoiserCall, ...]
    mixture: Mixture
    batch: int

    @classmethod
    def of(cls, calls: Sequence[ModuleCall], step: SchedulerStep, earlier: "Replay | None") -> "Replay":
        """Read the replay of one step off its recording; raises `ReplayError` if the step has another form."""
        if step.problem is not None:
            raise ReplayError(cannot(step.problem))
        if not calls:
            raise ReplayError(cannot("no denoiser was called before this scheduler step"))
        try:
            return cls._read(calls, step, earlier)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise ReplayError(cannot(f"reading its denoiser's call failed ({in_short(error, 120)})")) from error

    @classmethod
    def _read(cls, calls: Sequence[ModuleCall], step: SchedulerStep, earlier: "Replay | None") -> "Replay":
        before = earlier.calls if earlier is not None and len(earlier.calls) == len(calls) else (None,) * len(calls)
        read = tuple(DenoiserCall.of(call, step, old) for call, old in zip(calls, before, strict=True))
        outputs: list[torch.Tensor] = []
        for call, one in zip(calls, read, strict=True):
            outputs += torch.split(one.taken.of(output_of(call.output)), len(step.sample))
        mixture = Mixture.fitted(outputs, step.sample, step.model_output)
        if mixture is None:
            raise ReplayError(cannot("what its scheduler received is no sum of its denoiser's outputs"))
        return cls(read, mixture, len(step.sample))

    def __call__(self, samples: torch.Tensor) -> torch.Tensor:
        """Return the prediction for samples (n, ...); n is the recorded batch, or any if that is 1.

        Raises `ReplayError` for another number of samples.
        """
        if self.batch not in (1, len(samples)):
            raise ReplayError(
                f"{len(samples)} samples were given to a step that was recorded with {self.batch} pictures. "
                "Choose one picture of the trace first: trace.picture(0)."
            )
        outputs: list[torch.Tensor] = reduce(lambda done, call: done + call(samples, self.batch), self.calls, [])
        return self.mixture(outputs, samples)

    @property
    def shares(self) -> tuple[float, ...]:
        """How much each copy of each call counts in the prediction: (1 − w, w) with guidance, or (1,)."""
        return self.mixture.shares

    @property
    def copies(self) -> int:
        """How many copies of the batch the denoiser saw, in all calls together."""
        return len(self.shares)

    @property
    def weight(self) -> float:
        """The guidance scale w of u + w (c − u), whichever half comes first; 1 without guidance."""
        return self.shares[-1]

    @property
    def single(self) -> DenoiserCall:
        """The one call of the step; raises `ReplayError` for several."""
        if len(self.calls) > 1:
            raise ReplayError(
                f"This pipeline calls its denoiser {len(self.calls)} times a step, and this question is about one "
                "call with both halves of guidance. Record without guidance, guidance_scale=1, to ask it."
            )
        return self.calls[0]

    @property
    def denoiser(self) -> torch.nn.Module:
        """The network that was called, the last one of several, without what compiles it."""
        return own_network(self.calls[-1].denoiser)

    @property
    def kwargs(self) -> dict[str, Any]:
        """The named arguments of the one call."""
        return self.single.kwargs

    @property
    def context(self) -> torch.Tensor | None:
        """The text that cross-attention reads, (copies · pictures, tokens, features); None if there is none."""
        call = self.single
        context = call.kwargs.get("encoder_hidden_states", call.args[2] if len(call.args) > 2 else None)
        return context if isinstance(context, torch.Tensor) else None

    def to(self, move: Callable[[torch.Tensor], torch.Tensor]) -> "Replay":
        """Return the replay with its tensors moved."""
        return replace(self, calls=tuple(call.to(move) for call in self.calls))

    def half(self, copy: int) -> "Replay":
        """Return the replay of one copy alone: the denoiser's own prediction, before any guidance."""
        return Replay((self.single.copy(copy, self.batch),), Mixture((1.0,)), self.batch)

    @property
    def time(self) -> float:
        """The time step that was passed to the denoiser, in the denoiser's units."""
        call = self.calls[-1]
        time = call.kwargs[TIME] if TIME in call.kwargs else call.args[time_place(self.denoiser)]
        return float(time.flatten()[0] if isinstance(time, torch.Tensor) else time)

    def picture(self, index: int, unit: int, earlier: "Replay | None" = None) -> "Replay":
        """Return the replay of one picture of the batch, `unit` rows; equal conditioning is shared with `earlier`."""
        rows = range(index * unit, (index + 1) * unit)
        before: Sequence[DenoiserCall | None] = (None,) * len(self.calls) if earlier is None else earlier.calls
        calls = (call.picture(rows, self.batch, old) for call, old in zip(self.calls, before, strict=True))
        return replace(self, calls=tuple(calls), batch=unit)


def _sample_argument(call: ModuleCall) -> tuple[int | str, torch.Tensor]:
    """Return the place and the value of the argument with the sample; raises `ReplayError` if it is no tensor."""
    place: int | str
    if call.args:
        place, sample = 0, call.args[0]
    else:
        names = [name for name in SAMPLE_NAMES if name in call.kwargs]
        if not names:
            raise ReplayError(cannot(f"no argument of its denoiser is called {' or '.join(SAMPLE_NAMES)}"))
        place, sample = names[0], call.kwargs[names[0]]
    if not isinstance(sample, torch.Tensor):
        raise ReplayError(cannot(f"its denoiser takes its samples as a {type(sample).__name__} and not as one tensor"))
    return place, sample


def _located(seen: torch.Tensor, step: SchedulerStep) -> tuple[Part, float]:
    """Return the part of the denoiser's input that is the sample, and its scale; raises `ReplayError` if none is."""
    for part in Part.candidates(seen.shape, step.sample.shape):
        copies = torch.split(part.of(seen), len(step.sample))
        scale = _scale(step, copies[0])
        if all(alike(copy, scale * step.sample) for copy in copies):
            return part, scale
    shapes = f"{tuple(seen.shape)} for a sample of {tuple(step.sample.shape)}"
    raise ReplayError(cannot(f"its denoiser saw an input of {shapes}, and the sample is no part of it"))


def _taken(call: ModuleCall, step: SchedulerStep) -> Part:
    """Return the part of the output that has the prediction's shape; raises `ReplayError` if there is none."""
    if not isinstance(call.output, (torch.Tensor, tuple, list)) and getattr(call.output, "sample", None) is None:
        raise ReplayError(cannot("its denoiser gave no tensor"))
    output = output_of(call.output)
    parts = Part.candidates(output.shape, step.model_output.shape)
    if not parts:
        shapes = f"{tuple(output.shape)} became {tuple(step.model_output.shape)}"
        raise ReplayError(cannot(f"the denoiser's output of {shapes} on its way to the scheduler"))
    return parts[0]


def alike(value: torch.Tensor, expected: torch.Tensor, slack: float = 1.0) -> bool:
    """Return True if two tensors are one up to the rounding of their dtype."""
    if value.shape != expected.shape:
        return False
    value, expected = value.detach(), expected.detach()
    scale = expected.abs().max().clamp(min=1e-12)
    return float((value.to(expected) - expected).abs().max() / scale) <= slack * SAME.get(expected.dtype, 1e-2)


def _scale(step: SchedulerStep, seen: torch.Tensor) -> float:
    """Return the factor from the sample to the denoiser's input.

    The scheduler's own scale is exact, and says it for samples of zeros too. A pipeline that scales in another way is
    read off its numbers.
    """
    if not step.sample.any() and math.isfinite(step.scale):
        return step.scale
    fitted = slope(step.sample, seen)
    largest = SCALE_DIFFERENCE.get(step.sample.dtype, 1e-3) * abs(step.scale)
    return step.scale if abs(fitted - step.scale) <= largest else fitted


def slope(x: torch.Tensor, y: torch.Tensor) -> float:
    """Return the k that brings k x closest to y; 1 where x is zero."""
    x, y = x.detach().cpu().double(), y.detach().cpu().double()  # not every device has double precision
    square = (x * x).sum()
    return float((x * y).sum() / square) if square > 0 else 1.0


def cannot(reason: str) -> str:
    return f"The denoiser of this step cannot be asked directly: {reason}."
