"""Digests of a model's weights: two models with the same digests give the same predictions.

The digest of a network is the SHA-256 of a line for each entry of its state dict, in the order of their names: the
name, the dtype, the shape and the SHA-256 of the bytes. Entries are hashed side by side.
"""

import hashlib
import os
import weakref
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from ..errors import ModelError
from .components import networks_of

SAMPLED = 64
"""Numbers of each weight that are compared before a digest is taken from memory: merging a LoRA changes no counter."""
WORKERS = 4

Weights = Mapping[str, Mapping[str, str]]
"""For each network by its name: its class, its dtype and its digest."""

_remembered: "weakref.WeakKeyDictionary[torch.nn.Module, tuple[str, str]]" = weakref.WeakKeyDictionary()


def weights_of(pipeline: Any) -> dict[str, dict[str, str]]:
    """Return the class, the dtype and the digest of every network of a pipeline.

    Raises `ModelError` for weights that have no numbers here, as offloading leaves them.
    """
    return {
        name: {"class": type(module).__name__, "dtype": _dtype(module), "sha256": digest(name, module)}
        for name, module in networks_of(pipeline).items()
    }


def digest(name: str, module: torch.nn.Module) -> str:
    """Return the digest of a network's weights, from memory if nothing has changed since it was computed.

    Changed means another address, version counter or shape of a weight, or other values at 64 places of it.
    """
    entries = sorted(_entries(name, module))
    state = _state(entries)
    known = _remembered.get(module)
    if known is not None and known[0] == state:
        return known[1]
    with ThreadPoolExecutor(min(WORKERS, os.cpu_count() or 1)) as pool:
        lines = list(pool.map(_line, entries))
    value = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    _remembered[module] = (state, value)
    return value


def _entries(name: str, module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of a state dict by their names; raises `ModelError` for tensors without numbers."""
    for key, value in module.state_dict().items():
        if not isinstance(value, torch.Tensor):  # settings of quantised layers
            yield key, torch.frombuffer(bytearray(repr(value).encode()), dtype=torch.uint8)
            continue
        tensor = _offloaded(module, key) if value.is_meta else value
        if tensor is None or tensor.is_meta:
            raise ModelError(
                f"The weights of pipe.{name} ({type(module).__name__}) are kept elsewhere by an offloading hook, so "
                "their digest, by which a stored trace knows its model, cannot be computed. Save and load traces "
                "with the model loaded plainly, or with enable_model_cpu_offload."
            )
        yield from _parts(key, tensor.detach())


def _offloaded(module: torch.nn.Module, key: str) -> torch.Tensor | None:
    """Return a weight that accelerate keeps outside of its layer; None if it is not found."""
    path, _, name = key.rpartition(".")
    kept = getattr(getattr(module.get_submodule(path), "_hf_hook", None), "weights_map", None)
    value = None if kept is None else kept[name]
    return value if isinstance(value, torch.Tensor) else None


def _parts(key: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the plain tensors that a tensor is made of: several for quantised weights of torchao."""
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter) and hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        for name in names:
            yield from _parts(f"{key}.{name}", getattr(tensor, name))
    else:
        yield key, tensor


def _line(entry: tuple[str, torch.Tensor]) -> str:
    name, tensor = entry
    content = hashlib.sha256(_bytes(tensor)).hexdigest()
    return f"{name} {tensor.dtype} {tuple(tensor.shape)} {content}"


def _bytes(tensor: torch.Tensor) -> Any:
    """Return the numbers of a tensor as bytes, in rows."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _state(entries: list[tuple[str, torch.Tensor]]) -> str:
    """Return what a remembered digest holds for: addresses, counters, shapes, and some values of every weight."""
    found = hashlib.sha256()
    for name, tensor in entries:
        flat = tensor.reshape(-1)
        some = flat[:: max(1, len(flat) // SAMPLED)]
        found.update(f"{name} {tensor.data_ptr()} {_version(tensor)} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(_bytes(some))
    return found.hexdigest()


def _version(tensor: torch.Tensor) -> int:
    """Return how often a tensor was written to; 0 for tensors of inference mode, which count nothing."""
    return 0 if tensor.is_inference() else tensor._version


def _dtype(module: torch.nn.Module) -> str:
    dtypes = {str(weights.dtype).removeprefix("torch.") for weights in module.parameters()}
    return " and ".join(sorted(dtypes)) or "none"


def difference_between(recorded: Weights, now: Weights) -> str | None:
    """Return in what a model's weights are not those of a recording, as a clause; None if they are the same."""
    for name, was in recorded.items():
        has = now.get(name)
        if has is None:
            return f"it has no pipe.{name} ({was['class']})"
        if has["class"] != was["class"]:
            return f"its pipe.{name} is a {has['class']}, and the recorded one was a {was['class']}"
        if has["dtype"] != was["dtype"]:
            return f"its pipe.{name} is in {has['dtype']}, and the recorded one was in {was['dtype']}"
    others = [name for name, was in recorded.items() if now[name]["sha256"] != was["sha256"]]
    if not others:
        return None
    same = [name for name in recorded if name not in others]
    rest = f"; the same are {', '.join(same)}" if same else ""
    return f"other weights are in {', '.join(f'pipe.{name}' for name in others)} (by their SHA-256{rest})"
