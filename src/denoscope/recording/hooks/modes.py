"""torch's modes of computing, changed while a context is open."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def gradients() -> Iterator[None]:
    """While open, gradients are computed, inside `torch.no_grad` and `torch.inference_mode` too.

    Tensors that were made under inference mode have no gradients even so: use copies of them, made here.
    """
    with torch.inference_mode(False), torch.enable_grad():
        yield
