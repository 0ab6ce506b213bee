"""Comparisons of predictions: how far two may be apart, and which failures of a trial say that a way is none."""

from collections.abc import Callable

import torch

from ..errors import MemoryShortage

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
"""Largest relative difference between an engine's prediction and the recorded one; see `tolerance` for the others."""
MOST_ROUNDING = 0.3
"""Largest relative difference that rounding in half precision may explain."""
DISTURBANCE = 1.0
"""Noise that is added to a sample to try an engine, in standard deviations of the sample."""

FAILURES = (Exception,)
"""Exceptions of a trial that say that this way is none: it runs the pipeline's own code, which may raise anything."""


LACKS = ("out of memory", "not enough memory", "can't allocate memory", "ALLOC_FAILED")
"""Parts of the messages by which torch's devices and their libraries say in a RuntimeError that memory is lacking."""


def lacks_memory(error: BaseException) -> bool:
    """Return True if an error is a lack of memory, of the host or of a device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError, MemoryShortage)):
        return True
    return isinstance(error, RuntimeError) and any(part in str(error) for part in LACKS)


def refuse_memory(error: Exception) -> None:
    """Raise an error again that is a lack of memory, which says nothing of the way that was tried."""
    if lacks_memory(error):
        raise error


def disturbed(sample: torch.Tensor) -> torch.Tensor:
    """Return the sample with noise added to it, the same each time."""
    noise = torch.randn(sample.shape, generator=torch.Generator().manual_seed(7)).to(sample)
    spread = sample.float().std(correction=0).clamp(min=1e-3) if sample.numel() > 1 else 1.0
    return sample + DISTURBANCE * spread * noise


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the largest difference of two tensors, relative to the largest value of the second; NaN if it is NaN."""
    if a.shape != b.shape:
        return float("inf")
    wide = torch.promote_types(b.dtype, torch.float32)
    scale = b.to(wide).abs().max().clamp(min=1e-12)
    return float((a.to(wide) - b.to(wide)).abs().max() / scale)


@torch.no_grad()
def tolerance(
    engine: Callable[[torch.Tensor], torch.Tensor],
    sample: torch.Tensor,
    expected: torch.Tensor,
    found: float,
) -> float:
    """Return the largest relative difference from the expected prediction that rounding explains.

    In single and double precision it is a fixed number. In half precision it is measured, where the difference that was
    `found` is more than a few roundings: three times what the engine's prediction changes by when each number of the
    sample is rounded to its neighbour.
    """
    fixed = TOLERANCE.get(expected.dtype)
    if fixed is not None:
        return fixed
    unit = torch.finfo(expected.dtype).eps
    if found <= 4 * unit:
        return 4 * unit
    signs = torch.randn(sample.shape, generator=torch.Generator().manual_seed(8)).sign().to(sample)
    rounding = difference(engine(sample * (1 + unit * signs)), engine(sample))
    return min(max(4 * unit, 3 * rounding), MOST_ROUNDING)
