"""What torch's fused attention computes beside its output: the logarithm of each query's sum over all keys.

With it the probability of a few keys needs no softmax over all of them: exp(q · k / √d − logsumexp). The kernel that
torch chooses runs as it would, and is looked at through torch's own dispatch.
"""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

KERNELS = "aten::_scaled_dot_product_"
"""How the names of torch's fused attentions begin. Their first two results are the output and the logsumexp."""
CHECKED = 8
"""Queries of each head that are computed again to confirm a kernel's logsumexp."""
AGREES = {torch.float64: 1e-10, torch.float32: 4e-6}
"""Largest difference of a kernel's logsumexp from the scores' own, in sizes of the largest; 2e-3 in half precision."""


class Kernels(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While open, sees the fused attention that torch runs; `logsumexp` is the last one's, None if it told none."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.logsumexp: torch.Tensor | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.name().startswith(KERNELS) and isinstance(result, (tuple, list)) and len(result) > 1:
            self.logsumexp = result[1]
        return result


def as_rows(told: torch.Tensor | None, query: torch.Tensor) -> torch.Tensor | None:
    """Return a logsumexp as (batch, heads, queries) of the queries (batch, heads, queries, size); None for another.

    Some kernels fill the queries up to a multiple of theirs, some leave it out.
    """
    if told is None or not told.is_floating_point() or query.ndim != 4:
        return None
    rows = told.detach()
    rows = rows[..., 0] if rows.ndim == 4 and rows.shape[-1] == 1 else rows
    if rows.ndim != 3 or rows.shape[:2] != query.shape[:2] or rows.shape[2] < query.shape[2]:
        return None
    return rows[..., : query.shape[2]]


def is_confirmed(told: torch.Tensor, query: torch.Tensor, key: torch.Tensor, scale: float) -> bool:
    """Return True if a kernel's logsumexp is that of the scores, which are computed again for a few queries."""
    step = max(1, query.shape[2] // CHECKED)
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = (query[:, :, ::step].to(wide) * scale) @ key.to(wide).mT
    apart = (torch.logsumexp(scores, dim=-1) - told[..., ::step]).abs()
    size = scores.abs().amax(dim=-1).clamp(min=1)
    return bool((apart <= AGREES.get(query.dtype, 2e-3) * size).all())  # False for NaN, too
