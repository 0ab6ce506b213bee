"""The limit that a user sets to the memory that is used; imports nothing heavy."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from ..errors import InputError, shown_value

UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
"""Bytes of the units that a limit may have."""
WRITTEN = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-zA-Z]*)\s*")
LEAST = 10**6
"""The smallest limit: below a megabyte a unit was forgotten."""

_LIMIT: ContextVar[int | None] = ContextVar("memory limit", default=None)


def bytes_of(size: str | int | float | None) -> int | None:
    """Return the bytes of a size of memory, such as "8GB", "500 MB", "0.5 GiB" or a number of bytes; None for None.

    >>> bytes_of("8GB"), bytes_of("0.5 GiB")
    (8000000000, 536870912)

    Raises `InputError` for anything else, and for less than 1 MB.
    """
    if size is None:
        return None
    parts = (
        None if isinstance(size, bool) else WRITTEN.fullmatch(f"{size:.0f}" if isinstance(size, float) else f"{size}")
    )
    unit = None if parts is None else UNITS.get(parts[2].lower())
    value = 0 if parts is None or unit is None else int(float(parts[1]) * unit)
    if value < LEAST:
        raise InputError(
            f"memory is {shown_value(size)}. Give a size of at least 1MB with its unit, such as 8GB, 500MB or 0.5GiB, "
            "or leave it out to use the memory that is free."
        )
    return value


@contextmanager
def memory_limit(size: str | int | float | None) -> Iterator[None]:
    """Keep what is computed inside to so much memory of the model's device, weights and recording among it.

    >>> with memory_limit("8GB"):
    ...     maps = denoscope.DFRise()(trace)                                         # doctest: +SKIP

    Fewer samples go through the networks at once, and gradients are computed block by block (`recording.batches`), so
    the results stay as they are. It bounds what Denoscope asks for, and is not enforced by the system: a single sample
    that needs more is computed all the same. On a CPU the memory of the whole process counts. None is no limit,
    whatever is set around it. Raises `InputError` for a size that cannot be read.
    """
    token = _LIMIT.set(bytes_of(size))
    try:
        yield
    finally:
        _LIMIT.reset(token)


def limit_in_effect() -> int | None:
    """Return the bytes of the limit that is set here; None if none is."""
    return _LIMIT.get()
