"""A network whose attentions hand on nothing, so that no position learns of another: the ground of the probe.

Around every attention of a transformer lies a residual connection. With zeros for the attention's result each position
goes through the network alone, and a disturbed token changes the keys of its own position and no other.
"""

import functools
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from .attention import SOFTMAXES, Running, Site, attention_layers, sdpa_arguments
from .surroundings import eagerly

FEATURES = 8
"""Random projections of each key and query that are compared, in place of all their numbers."""


@dataclass(frozen=True, eq=False)
class Seen:
    """The keys and queries of one attention, or their products by keys and by queries, (rows, positions, features).

    `are_products` is True where a processor took its softmax itself, so that a key cannot be seen without the queries.
    """

    key: torch.Tensor
    query: torch.Tensor
    are_products: bool = False


@dataclass(frozen=True, eq=False)
class Unmixed:
    """The attentions of one call, in their order, and the layers that ran without one, by paths.

    A silent layer has True if it is passed another sequence, and the size of its first input.
    """

    attentions: dict[Site, Seen]
    silent: dict[str, tuple[bool, float]]


@contextmanager
def unmixed(root: torch.nn.Module | None = None) -> Iterator[Unmixed]:
    """While open, every attention hands on zeros, and those inside `root` are listed with their keys and queries.

    A layer of `root` in which torch's attention was not called is silent.
    """
    heard = Unmixed({}, {})
    mode = _Unmixed(heard)
    with ExitStack() as undo:
        undo.enter_context(eagerly())
        for path, module in (attention_layers(root) if root is not None else {}).items():
            undo.callback(
                module.register_forward_pre_hook(functools.partial(mode.enter, path), with_kwargs=True).remove
            )
            undo.callback(module.register_forward_hook(mode.leave, with_kwargs=True).remove)
        undo.enter_context(mode)
        yield heard


class _Unmixed(TorchFunctionMode):
    def __init__(self, heard: Unmixed):
        super().__init__()
        self.heard = heard
        self.running: list[Running] = []

    def enter(self, path: str, module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.running.append(Running.of(path, module, args, kwargs))

    def leave(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        done = self.running.pop()
        if not done.times or done.sliced:
            joins = getattr(module, "add_k_proj", None) is not None
            sizes = [
                float(tensor.float().abs().sum())
                for tensor in (*args, *kwargs.values())
                if isinstance(tensor, torch.Tensor)
            ]
            self.heard.silent[done.path] = (done.cross or joins, sizes[0] if sizes else 0.0)

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is scaled_dot_product_attention:
            arguments = sdpa_arguments(args, kwargs)
            query, key, value = (arguments[name] for name in ("query", "key", "value"))
            if self.running:
                self._see(Seen(_features(key), _features(query)))
            nothing: torch.Tensor = query.new_zeros((*query.shape[:-1], value.shape[-1]))
            return nothing
        if self.running and func in SOFTMAXES:
            scores = args[0] if args else kwargs["input"]
            whole = self.running[-1].whole(scores)
            if whole is not None:
                by_key, by_query = (whole.detach().float().permute(order) for order in ((0, 3, 1, 2), (0, 2, 1, 3)))
                self._see(Seen(_projected(by_key.flatten(2)), _projected(by_query.flatten(2)), True))
            return torch.zeros_like(scores)
        return func(*args, **kwargs)

    def _see(self, seen: Seen) -> None:
        now = self.running[-1]
        self.heard.attentions[now.path, now.times] = seen
        now.times += 1


def _features(states: torch.Tensor) -> torch.Tensor:
    """Return (rows, heads, positions, size) as random projections (rows, positions, features), in float32."""
    states = states.detach().float()
    if states.ndim == 3:
        states = states[:, None]
    return _projected(states.transpose(1, 2).flatten(2))


def _projected(flat: torch.Tensor) -> torch.Tensor:
    projected: torch.Tensor = flat @ _projection(flat.shape[-1]).to(flat)
    return projected


@functools.lru_cache(maxsize=64)
def _projection(size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(size)
    directions: torch.Tensor = torch.randn(size, FEATURES, generator=generator) / size**0.5
    return directions


# Sets of disturbed positions, by which each one is told from all others.


def code(count: int) -> list[torch.Tensor]:
    """Return sets of so many positions, (positions) boolean, in pairs of one and the others: the bits of their number.

    >>> [[int(member) for member in members] for members in code(3)]
    [[0, 1, 0], [1, 0, 1], [0, 0, 1], [1, 1, 0]]
    """
    numbers = torch.arange(count)
    sets = []
    for bit in range(max(1, (count - 1).bit_length())):
        members = (numbers >> bit) % 2 == 1
        sets += [members, ~members]
    return sets


CLEAR = 3.0
"""How many times more a position has to change with its own token than with all others."""


def decoded(changes: list[torch.Tensor], count: int, scale: torch.Tensor) -> torch.Tensor:
    """Return the number of the token that each position belongs to, −1 for none, from its changes under each set.

    `changes` are in the order of `code(count)`, each of one shape, `scale` the size of an unchanged value. A position
    of no token changes with neither set of a pair, or with both.
    """
    number = torch.zeros_like(changes[0], dtype=torch.long)
    clear = torch.ones_like(changes[0], dtype=torch.bool)
    floor = 1e-5 * scale.clamp(min=1e-12)
    for bit, (own, others) in enumerate(zip(changes[0::2], changes[1::2], strict=True)):
        is_set, is_unset = own > CLEAR * others + floor, others > CLEAR * own + floor
        number += is_set.long() << bit
        clear &= is_set | is_unset
    return torch.where(clear & (number < count), number, -1)


def signs(members: torch.Tensor) -> torch.Tensor:
    """Return +1 and −1 by turns for the members of a set, 0 for the others, so that their mean hardly changes."""
    ranks = members.long().cumsum(0)
    return torch.where(members, 1.0 - 2.0 * (ranks % 2), 0.0)


def changed(now: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """Return how much each position changed, (rows, positions)."""
    change: torch.Tensor = torch.linalg.vector_norm(now - before, dim=-1)
    return change
