"""What is stored of a call so that it can be made again: its arguments, its random streams, its steps."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from .blanks import blank_of
from .calls import ModuleCall
from .surroundings import Autocast


@dataclass(frozen=True, eq=False)
class RecordedStep:
    """What a resumed call needs of a step: the prediction and the next sample, and blanks of the networks' outputs.

    `copies` is how often the pipeline repeats each sample in the step's tensors, 1 as a rule. `beside` is True for a
    calculation with the scheduler beside the samples, as Cosmos makes one.
    """

    model_output: torch.Tensor
    sample: torch.Tensor
    prev_sample: torch.Tensor
    blanks: tuple[tuple[str, Any], ...]
    copies: int = 1
    beside: bool = False

    def folded(self, copies: int) -> "RecordedStep":
        """Return the step of a pipeline that repeats each sample, with one copy of its tensors."""
        first = slice(0, len(self.sample) // copies)
        parts = {name: getattr(self, name)[first] for name in ("model_output", "sample", "prev_sample")}
        return replace(self, **parts, copies=copies)

    def to(self, device: torch.device) -> "RecordedStep":
        """Return the step with its tensors on a device; itself if they lie there."""
        return self if self.sample.device == device else self.moved(lambda tensor: tensor.to(device))

    def moved(self, move: Callable[[torch.Tensor], torch.Tensor]) -> "RecordedStep":
        """Return the step with its tensors moved."""
        sample, output, following = (move(each) for each in (self.sample, self.model_output, self.prev_sample))
        return replace(self, sample=sample, model_output=output, prev_sample=following)

    @classmethod
    def of(cls, calls: Sequence[ModuleCall], step: Any) -> "RecordedStep":
        blanks = tuple((call.name, blank_of(call.output)) for call in calls)
        return cls(step.model_output, step.sample, step.prev_sample, blanks)


@dataclass(frozen=True, eq=False)
class RecordedCall:
    """The user's call: the pipeline, its arguments, and the random streams as they were before it."""

    pipeline: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    streams: Mapping[int, tuple[torch.device, torch.Tensor]]
    common_stream: torch.Tensor
    stream_of_gpu: torch.Tensor | None = None
    autocast: Autocast = field(default_factory=Autocast.now)

    @classmethod
    def of(cls, pipeline: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> "RecordedCall":
        """Keep the arguments of a call that is about to be made."""
        generators = generators_in((args, dict(kwargs)))
        streams = {id(generator): (generator.device, generator.get_state()) for generator in generators}
        on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        of_gpu = torch.cuda.get_rng_state() if on_gpu else None
        return cls(pipeline, _kept(args), _kept(dict(kwargs)), streams, torch.get_rng_state(), of_gpu)

    @contextmanager
    def common_streams(self) -> Iterator[None]:
        """Set torch's own random streams to where they were before the call; afterwards they go on as if not used."""
        with torch.random.fork_rng(devices=[] if self.stream_of_gpu is None else [torch.cuda.current_device()]):
            torch.set_rng_state(self.common_stream)
            if self.stream_of_gpu is not None:
                torch.cuda.set_rng_state(self.stream_of_gpu)
            yield

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments once more, with generators that are where they were at first.

        Numbers and pictures are copies: some pipelines change what they are passed.
        """

        def again(value: Any) -> Any:
            if isinstance(value, torch.Generator):
                device, state = self.streams[id(value)]
                generator = torch.Generator(device)
                generator.set_state(state)
                return generator
            if isinstance(value, list):
                return [again(inner) for inner in value]
            if type(value) is dict:
                return {key: again(inner) for key, inner in value.items()}
            return _kept(value)

        return tuple(again(value) for value in self.args), {key: again(value) for key, value in self.kwargs.items()}


def _kept(tree: Any) -> Any:
    """Return arguments with numbers and pictures of their own, which nobody else changes in place."""
    if isinstance(tree, torch.Tensor):
        return tree.detach().clone()
    if isinstance(tree, (np.ndarray, Image.Image)):
        return tree.copy()
    if type(tree) is dict:
        return {key: _kept(value) for key, value in tree.items()}
    return type(tree)(map(_kept, tree)) if type(tree) in (list, tuple) else tree


def generators_in(tree: Any) -> list[torch.Generator]:
    """Return every generator of nested tuples, lists and dicts."""
    if isinstance(tree, torch.Generator):
        return [tree]
    values = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (tuple, list)) else ()
    return [generator for value in values for generator in generators_in(value)]
