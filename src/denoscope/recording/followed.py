"""Which token each position of a denoiser's arguments holds: by its vectors, or by disturbing them in sets."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .hooks.trees import Path, leaves
from .hooks.unmixed import changed, decoded

Sequences = Mapping[Path, torch.Tensor]
"""The sequences of vectors among a call's arguments."""
Tokens = dict[int, dict[Path, torch.Tensor]]
"""For each call, the token of each position of its arguments, −1 for none."""


def sequences(tree: Any) -> dict[Path, torch.Tensor]:
    """Return the sequences of vectors among a denoiser's arguments."""
    found = {}
    for path, tensor in leaves(tree).items():
        listed = tensor.ndim == 2 and len(path) > 2 and isinstance(path[-1], int)
        if tensor.is_floating_point() and (tensor.ndim >= 3 or listed):
            found[path] = tensor
    return found


def tokens_by_sets(base: Sequence[Sequences], sets: Sequence[Sequence[Sequences]], length: int) -> Tokens:
    """Return the tokens by the arguments under each set of disturbed tokens, in the order of `code(length)`."""
    found: Tokens = {}
    for number, arguments in enumerate(base):
        for path, tensor in arguments.items():
            others = [one[number].get(path) if number < len(one) else None for one in sets]
            if any(other is None or other.shape != tensor.shape for other in others):
                continue
            own = tensor.float()
            changes = [changed(other.float(), own) for other in others if other is not None]
            tokens = decoded(changes, length, torch.linalg.vector_norm(own, dim=-1)).cpu()
            if bool((tokens >= 0).any()):
                found.setdefault(number, {})[path] = tokens
    return found


def tokens_by_vectors(
    base: Sequence[Sequences], disturbed: Sequence[Sequences], vectors: Sequence[torch.Tensor]
) -> Tokens | None:
    """Return the tokens where the arguments hold an encoder's vectors as they are, in their order; None if not.

    `disturbed` are the arguments under all tokens disturbed: what changes there is what the tokens reach. Each row that
    they reach has to hold one of the encoder's `vectors`, (length, features), number by number, perhaps among other
    positions and features; and no two vectors may be the same, which could have changed places.
    """
    if len(base) != len(disturbed):
        return None
    found: Tokens = {}
    for number, (arguments, others) in enumerate(zip(base, disturbed, strict=True)):
        for path, tensor in arguments.items():
            other = others.get(path)
            if other is None or other.shape != tensor.shape:
                return None
            places = (tensor != other).any(dim=-1)
            if not bool(places.any()):
                continue
            tokens = _held(tensor, places, vectors) if tensor.ndim == 3 else None
            if tokens is None:
                return None
            found.setdefault(number, {})[path] = tokens
    return found or None


def _held(tensor: torch.Tensor, places: torch.Tensor, vectors: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """Return the token of each position, (rows, positions), where the vectors are held in rows; None if one is not."""
    tokens = torch.full(places.shape, -1)
    for row in places.any(dim=1).nonzero().flatten().tolist():
        start = next((at for one in vectors if (at := _start(tensor[row], one)) is not None), None)
        if start is None:
            return None
        length = len(vectors[0])
        inside = places[row].clone()
        inside[start : start + length] = False
        if bool(inside.any()):
            return None
        numbers = torch.arange(length)
        tokens[row, start : start + length] = torch.where(places[row, start : start + length].cpu(), numbers, -1)
    return tokens


def _start(row: torch.Tensor, vectors: torch.Tensor) -> int | None:
    """Return the position at which a row, (positions, features), begins to hold vectors that all differ."""
    length, size = vectors.shape
    own = vectors.to(row)
    if length > len(row) or size > row.shape[1] or len(torch.unique(own, dim=0)) < length:
        return None
    for start in dict.fromkeys((0, len(row) - length)):
        for feature in (row[start] == own[0, 0]).nonzero().flatten().tolist():
            part = row[start : start + length, feature : feature + size]
            if part.shape == own.shape and torch.equal(part, own):
                return start
    return None
