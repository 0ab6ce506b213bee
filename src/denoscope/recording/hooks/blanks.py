"""The shapes of a network's outputs, stored in the place of the numbers, and filled with zeros when they are needed."""

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Blank:
    """A tensor without its numbers."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True, eq=False)
class BlankOutput:
    """An output object of diffusers or transformers, with its fields blank."""

    kind: type
    fields: dict[str, Any]


def blank_of(output: Any) -> Any:
    """Return an output with every tensor replaced by its shape; other values stay."""
    if isinstance(output, torch.Tensor):
        return Blank(tuple(output.shape), output.dtype, output.device)
    if hasattr(output, "to_tuple") and isinstance(output, dict):
        return BlankOutput(type(output), {key: blank_of(value) for key, value in output.items()})
    if isinstance(output, dict):
        return {key: blank_of(value) for key, value in output.items()}
    if type(output) in (tuple, list):
        return type(output)(blank_of(value) for value in output)
    return output


def filled(blank: Any, count: int = 1) -> Any:
    """Return a blank output as zeros, with `count` times as many rows."""
    if isinstance(blank, Blank):
        shape = (count * blank.shape[0], *blank.shape[1:]) if blank.shape else ()
        return torch.zeros(shape, dtype=blank.dtype, device=blank.device)
    if isinstance(blank, BlankOutput):
        return blank.kind(**{key: filled(value, count) for key, value in blank.fields.items()})
    if isinstance(blank, dict):
        return {key: filled(value, count) for key, value in blank.items()}
    if type(blank) in (tuple, list):
        return type(blank)(filled(value, count) for value in blank)
    return blank


def same_tree(a: Any, b: Any) -> bool:
    """Return True if two nested values are equal, tensors number by number."""
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        tensors = isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
        return (
            tensors and a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and bool(torch.equal(a, b))
        )
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_tree(a[key], b[key]) for key in a)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(same_tree(x, y) for x, y in zip(a, b, strict=True))
    if a is b:
        return True
    try:
        return bool(a == b)
    except (RuntimeError, TypeError, ValueError):
        return False
