"""Nested arguments and outputs of modules, tuples, lists and dicts with tensors in them; and modules in modules."""

import copy
from collections.abc import Callable
from typing import Any

import torch

from ...errors import CaptureError


def map_tensors(function: Callable[[torch.Tensor], Any], tree: Any) -> Any:
    """Apply a function to every tensor of nested tuples, lists and dicts; everything else stays."""
    if isinstance(tree, torch.Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {key: map_tensors(function, value) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        return _sequence_like(tree, [map_tensors(function, value) for value in tree])
    return tree


def _sequence_like(tree: Any, values: list[Any]) -> Any:
    """Return values as a list, a tuple or a named tuple, as the tree is."""
    return type(tree)(*values) if hasattr(tree, "_fields") else type(tree)(values)


def shared_tensors(tree: Any, earlier: Any) -> Any:
    """Return the tree with every tensor that equals its counterpart in `earlier` shared with it, the others copied."""
    if isinstance(tree, torch.Tensor):
        same = isinstance(earlier, torch.Tensor) and earlier.shape == tree.shape and torch.equal(earlier, tree)
        return earlier if same else tree.detach().clone()
    if isinstance(tree, dict):
        earlier = earlier if isinstance(earlier, dict) else {}
        return {key: shared_tensors(value, earlier.get(key)) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        alike = isinstance(earlier, (tuple, list)) and len(earlier) == len(tree)
        counterparts = earlier if alike else [None] * len(tree)
        return _sequence_like(tree, [shared_tensors(a, b) for a, b in zip(tree, counterparts, strict=True)])
    return tree


def copied(output: Any) -> Any:
    """Return a module's output with tensors and containers of its own: whoever changes one changes no other.

    What cannot be copied, such as an object with a lock, stays the same one.
    """
    own = {id(tensor): tensor.detach().clone() for tensor in leaves(output).values()}
    try:
        return copy.deepcopy(output, own)
    except (TypeError, RuntimeError):
        return map_tensors(lambda tensor: own[id(tensor)], output)


def tensors_of(tree: Any) -> list[torch.Tensor]:
    """Return every tensor of nested tuples, lists and dicts."""
    tensors: list[torch.Tensor] = []
    map_tensors(tensors.append, tree)
    return tensors


def tensor_of(output: Any) -> torch.Tensor | None:
    """Return the tensor that a module gave: its output, the first of several, or `sample`; None if that is none."""
    if isinstance(output, (tuple, list)):
        output = output[0] if output else None
    elif not isinstance(output, torch.Tensor):
        output = getattr(output, "sample", None)
    return output if isinstance(output, torch.Tensor) else None


def output_of(output: Any) -> torch.Tensor:
    """Return the tensor that a module gave; raises `CaptureError` if it gave none."""
    tensor = tensor_of(output)
    if tensor is None:
        raise CaptureError(
            f"A module of the denoiser gave {type(output).__name__} and no tensor, so its output cannot be read. "
            "Choose layers that give a tensor."
        )
    return tensor


Path = tuple[int | str, ...]
"""The keys and places by which a tensor lies in nested tuples, lists and dicts."""


def leaves(tree: Any, path: Path = ()) -> dict[Path, torch.Tensor]:
    """Return every tensor of nested tuples, lists, dicts and outputs of transformers, by its path."""
    if isinstance(tree, torch.Tensor):
        return {path: tree}
    found: dict[Path, torch.Tensor] = {}
    if isinstance(tree, dict):
        for key, value in tree.items():
            found |= leaves(value, (*path, key))
    elif isinstance(tree, (tuple, list)):
        for index, value in enumerate(tree):
            found |= leaves(value, (*path, index))
    return found


def with_leaves(tree: Any, others: dict[Path, torch.Tensor], path: Path = ()) -> Any:
    """Return a tree with other tensors at some paths; outputs of transformers keep their class."""
    if isinstance(tree, torch.Tensor):
        return others.get(path, tree)
    if isinstance(tree, dict):
        values = {key: with_leaves(value, others, (*path, key)) for key, value in tree.items()}
        return type(tree)(**values) if hasattr(tree, "to_tuple") else type(tree)(values)
    if isinstance(tree, (tuple, list)):
        return _sequence_like(tree, [with_leaves(value, others, (*path, i)) for i, value in enumerate(tree)])
    return tree


def layers_in(root: torch.nn.Module) -> list[torch.nn.Module]:
    """Return a module and all below it, fast, as this is asked for at every prediction.

    A module that stands in several places is there several times.
    """
    layers = [root]
    for layer in layers:
        layers += [below for below in layer._modules.values() if below is not None]
    return layers
