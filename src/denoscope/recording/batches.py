"""The number of samples that go through a network at once: one rule, from the memory that is free.

1. **Positions.** No more samples than are fastest together: on a CPU few, elsewhere as many as fill a device.
2. **Memory.** No more than fit in the `room` of the device: a share of what is free, and within the user's limit.
   Before the first call a sample's need is estimated from its positions and dtype. On CUDA the first call is measured
   by torch's allocator. Elsewhere the estimate stands, since a process's memory says little of one call. Of a
   gradient, the tensors that autograd saves, most of its need, are counted on every device (`hooks.checkpointing`).
3. **Out of memory.** The portion is halved, which is said once, and the work goes on where it was. With one sample
   left, blocks of the networks are computed again for gradients, some and then all; then `MemoryShortage` is raised.

A number that a person chose is taken as it is, and halved too. The results do not depend on the portions.
"""

import gc
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from ..errors import MemoryShortage, in_short
from .comparing import lacks_memory
from .hooks.checkpointing import ALL, TooMuchSaved
from .limits import limit_in_effect
from .memory import room

POSITIONS_ON_CPU, POSITIONS_ELSEWHERE = 2**14, 2**17
"""Positions of all samples together: 16,384 on a CPU and 131,072 on other devices."""
MOST_SAMPLES = 64
"""Samples, however small they are."""
BYTES_OF_CALL = 2**14
"""Estimated need of a guided call, in bytes for each position and each byte of a number.

Measured: 16,000 for Stable Diffusion 1.5 and SDXL in float16 on a GPU."""

Result = TypeVar("Result")


class MemoryWarning(UserWarning):
    """Memory ran out, and fewer samples at once are computed from here on."""


def fastest_together(
    sample: torch.Tensor,
    *,
    on_cpu: int = POSITIONS_ON_CPU,
    elsewhere: int = POSITIONS_ELSEWHERE,
    most: int = MOST_SAMPLES,
) -> int:
    """Return how many samples like this one, (n, channels, [frames,] h, w), are fastest together, if memory is large.

    1 to `most`. `on_cpu` and `elsewhere` are the positions [frames ·] h · w of all of them.
    """
    limit = on_cpu if sample.device.type == "cpu" else elsewhere
    return int(np.clip(limit // math.prod(sample.shape[2:]), 1, most))


def samples_at_once(sample: torch.Tensor, *, need: int = BYTES_OF_CALL, **limits: int) -> int:
    """Return how many samples like this one, (n, channels, [frames,] h, w), to compute at once on its device.

    As many as are fastest together (`fastest_together`, whose limits are taken), and fit in the `room` of the device
    with an estimated `need` in bytes for each position and byte of a number.

    >>> samples_at_once(torch.zeros(1, 4, 16, 16)), samples_at_once(torch.zeros(1, 4, 128, 128))
    (64, 1)
    """
    fastest, free = fastest_together(sample, **limits), room(sample.device)
    each = need * math.prod(sample.shape[2:]) * sample.element_size()
    return fastest if free is None else int(np.clip(free // each, 1, fastest))


@dataclass(eq=False)
class Portions:
    """The number of samples that go at once, in one question: `size` now, at most `most`.

    `size` halves when memory runs out. `needed` are the measured bytes of one sample, None before the first call.
    `widest` is the largest portion that went through, as which the smaller ones behind it go through compiled networks.
    `again` says which blocks of the networks are computed again for gradients, with one sample at a time: 0 for none,
    then `SOME`, then `ALL`; None where no gradients are computed.
    """

    size: int
    most: int
    again: int | None = None
    is_chosen: bool = False
    needed: float | None = None
    warned: bool = False
    widest: int = 0

    def over(self, count: int, work: Callable[[slice], Result], device: torch.device) -> Iterator[tuple[slice, Result]]:
        """Yield each portion of `count` samples with work(portion), in order; portions shrink when memory runs out.

        Raises `MemoryShortage` where it runs out for one sample.
        """
        start = 0
        while start < count:
            part = slice(start, min(start + self.size, count))
            results = self._tried(work, part, device)
            for result in results:
                start = part.stop
                yield part, result

    def _tried(self, work: Callable[[slice], Result], part: slice, device: torch.device) -> list[Result]:
        """Return work(part) in a list; an empty one if memory ran out, and the portion is smaller now."""
        number = part.stop - part.start
        token = _WIDTH.set((number, self.widest))
        try:
            with self._measured(number, device):
                result = work(part)
            self.widest = max(self.widest, number)
            return [result]
        except Exception as error:
            if not lacks_memory(error):
                raise
            self._shrink(error, number)
            self.widest = 0
        finally:
            _WIDTH.reset(token)
        forget_freed(device)
        return []

    @contextmanager
    def _measured(self, number: int, device: torch.device) -> Iterator[None]:
        """Measure the need of a first call on CUDA, and choose the size by it."""
        if device.type != "cuda" or self.needed is not None or self.is_chosen:
            yield
            return
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield
        self.fit((torch.cuda.max_memory_allocated(device) - before) / number, room(device))

    def fit(self, needed: float, free: int | None) -> None:
        """Choose the size for samples that need so many bytes each, where so many are free."""
        self.needed = needed
        if free is not None and needed > 0 and not self.is_chosen:
            self.size = int(np.clip(free // needed, 1, self.most))

    def _shrink(self, error: Exception, number: int) -> None:
        """Halve the portion, or compute more blocks again; raises `MemoryShortage` where neither is left."""
        if number > 1:
            self.size = self.most = number // 2
            now = f"{self.size} at once are"
        elif self.again is not None and self.again < ALL:
            self.size, self.again = 1, self.again + 1
            now = "its gradient is computed block by block, which is"
        elif isinstance(error, MemoryShortage):
            raise error
        else:
            raise MemoryShortage(
                f"Memory ran out with one sample at a time: {in_short(error, 200)} Close other programs that use the "
                "device, record a smaller picture (height and width), load the model with dtype=torch.float16, or use "
                "another device."
            ) from error
        before = "1 sample" if number == 1 else f"{number} samples"
        if isinstance(error, TooMuchSaved):  # planned, and nothing ran out
            return
        if not self.warned and not _warned_of_question():
            warnings.warn(
                f"Memory ran out with {before} at once, so {now} computed from here on; the results stay the same. "
                "A limit avoids the first try: --memory 8GB, or denoscope.memory_limit.",
                MemoryWarning,
                stacklevel=2,
            )
        self.warned = True


_WIDTH: ContextVar[tuple[int, int] | None] = ContextVar("width", default=None)
"""The samples of the portion that is computed, and of the largest one before it."""


def width_of(count: int) -> int:
    """Return how many samples a compiled network should be passed in the place of so many: a number that it knows.

    The last portion of many is smaller than those before, and a number of its own would be compiled for it.
    """
    number, widest = _WIDTH.get() or (0, 0)
    return widest if number == count < widest else count


def forget_freed(device: torch.device) -> None:
    """Give memory that no tensor takes any more back to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


# Sizes that were found stand for all steps of a question.

_FOUND: ContextVar[dict[Any, Portions] | None] = ContextVar("portions", default=None)


@contextmanager
def remembered_portions() -> Iterator[None]:
    """While open, portions of one kind are the same object, so that memory runs out once and is measured once."""
    token = _FOUND.set({}) if _FOUND.get() is None else None
    try:
        yield
    finally:
        if token is not None:
            _FOUND.reset(token)


def _warned_of_question() -> bool:
    """Return True if other portions of the question have been halved because memory ran out."""
    return any(portions.warned for portions in (_FOUND.get() or {}).values())


def portions_of(
    kind: str, sample: torch.Tensor, chosen: int | None, at_once: Callable[[], tuple[int, int]], **options: Any
) -> Portions:
    """Return the portions of a kind of work on samples like this one: a person's own number, or (size, most)."""
    found = _FOUND.get()
    key = (kind, sample.shape[1:], sample.dtype, str(sample.device), chosen, limit_in_effect())
    if found is not None and key in found:
        return found[key]
    size, most = (chosen, chosen) if chosen is not None else at_once()
    portions = Portions(size, most, is_chosen=chosen is not None, **options)
    if found is not None:
        found[key] = portions
    return portions


def call_portions(
    sample: torch.Tensor, chosen: int | None = None, kind: str = "call", *, need: int = BYTES_OF_CALL, **limits: int
) -> Portions:
    """Return the portions of calls without gradients: `chosen` samples, or `samples_at_once` within these limits."""

    def at_once() -> tuple[int, int]:
        return samples_at_once(sample, need=need, **limits), fastest_together(sample, **limits)

    return portions_of(kind, sample, chosen, at_once)
