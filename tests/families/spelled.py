"""Where a word of the prompt lies in what a denoiser reads, found without Denoscope: encoders that mix nothing.

Every text encoder gives a vector for each token alone, in all its outputs. The prompt's word is
then exchanged for another, and the positions of the denoiser's arguments that change are the word's.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from families.oracle import SEED


class Reached(BaseException):
    """The denoiser's call is there."""


def word_positions(
    pipe: Any, call: Mapping[str, Any], name: str, ordinal: int, path: tuple[Any, ...], word: str, other: str
) -> list[list[int]]:
    """Return the positions of an argument that change with a word, largest change first, for each of its rows.

    `name` is the denoiser's, `ordinal` counts its calls, `path` leads to the argument in (args, kwargs).
    """
    prompt = call["prompt"]
    texts = (prompt, prompt.replace(word, other))
    first, second = (_argument(pipe, {**call, "prompt": text}, name, ordinal, path) for text in texts)
    rows = [(first, second)] if first.ndim == 2 else list(zip(_rows(first), _rows(second), strict=True))
    return [_changed(a, b) for a, b in rows]


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """Return (rows, positions, features): several layers of an encoder lie beside each other."""
    if tensor.ndim == 3:
        return tensor
    if tensor.shape[-2] < tensor.shape[-3]:
        return tensor.flatten(2)
    return tensor.movedim(0, -1).flatten(2)


def _changed(first: torch.Tensor, second: torch.Tensor) -> list[int]:
    change = (first - second).float().abs().sum(dim=-1)
    order = change.argsort(descending=True).tolist()
    return [place for place in order if float(change[place]) > 0.3 * float(change.max()) > 0]


def _argument(pipe: Any, call: Mapping[str, Any], name: str, ordinal: int, path: tuple[Any, ...]) -> torch.Tensor:
    calls: list[torch.Tensor] = []

    def before(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        value: Any = (args, kwargs)
        for key in path:
            value = value[key]
        calls.append(value.detach().clone())
        if len(calls) > ordinal:
            raise Reached

    handle = getattr(pipe, name).register_forward_pre_hook(before, with_kwargs=True)
    try:
        with plain_encoders(pipe), plain_connectors(pipe), contextlib.suppress(Reached), torch.no_grad():
            torch.manual_seed(SEED)
            pipe(**{**call, "generator": torch.Generator().manual_seed(SEED)})
    finally:
        handle.remove()
        if hasattr(pipe, "maybe_free_model_hooks"):
            pipe.maybe_free_model_hooks()
    return calls[ordinal]


@contextlib.contextmanager
def plain_connectors(pipe: Any) -> Iterator[None]:
    """While open, attention in networks between encoders and denoiser hands on zeros, so that tokens do not mix."""
    parts = [part for key, part in pipe.components.items() if "connector" in key]
    outputs = [module for part in parts for name, module in part.named_modules() if name.endswith("to_out.0")]
    handles = [module.register_forward_hook(lambda own, args, output: torch.zeros_like(output)) for module in outputs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def plain_encoders(pipe: Any) -> Iterator[None]:
    """While open, text encoders give each token's own vector, in all their outputs with a vector for each token."""
    handles = [
        part.register_forward_hook(_plain, with_kwargs=True)
        for key, part in pipe.components.items()
        if isinstance(part, torch.nn.Module) and hasattr(part, "get_input_embeddings") and "encoder" in key
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _plain(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    ids = kwargs.get("input_ids", args[0] if args else None)
    if not isinstance(ids, torch.Tensor) or ids.is_floating_point() or ids.ndim != 2:
        return output
    directions = torch.Generator().manual_seed(3)
    table = torch.randn(int(ids.max()) + 4096, 16, generator=directions)

    def own(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.ndim == 3 and value.shape[:2] == ids.shape:
            vectors = table[ids].to(value)
            return vectors.repeat(1, 1, value.shape[-1] // 16 + 1)[..., : value.shape[-1]]
        if isinstance(value, (tuple, list)):
            return type(value)(own(one) for one in value)
        return value

    if isinstance(output, torch.Tensor):
        return own(output)
    if isinstance(output, tuple):
        return own(output)
    return type(output)(**{key: own(value) for key, value in output.items()})
