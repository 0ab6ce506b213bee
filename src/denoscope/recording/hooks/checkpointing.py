"""Gradients in little memory: weights without gradients, blocks computed twice, and the bytes that autograd saves.

Source of the exchange of memory for computation: Chen, Xu, Zhang, Guestrin 2016, "Training deep nets with sublinear
memory cost"; here by torch's non-reentrant `checkpoint`.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from ...errors import ReplayError
from .calls import replaced_method
from .trees import layers_in, tensor_of

BULK = 0.5
"""A module is divided into the members of its lists where these have at least this share of its weights."""
REPEATED = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest relative difference of a block's output from its output when it is computed again; 1e-2 in half precision."""
PLAIN = (torch.Tensor, torch.dtype, torch.device, str, int, float, bool, type(None))
"""Arguments that are the same when a block is computed again."""
DIFFUSERS_HOOKS = "_diffusers_hook"
"""Where diffusers keeps a module's hooks with a state, such as caches."""


class TooMuchSaved(MemoryError):
    """Autograd saves more than the memory that is planned for it."""


@contextmanager
def weights_without_gradients(roots: Sequence[torch.nn.Module]) -> Iterator[None]:
    """While open, no weight of these networks has a gradient, so that what only these need is not kept.

    Weights are put back by their names: offloading puts others in their place at each call.
    """
    places: list[tuple[torch.nn.Module, str]] = []
    for layer in (layer for root in roots for layer in layers_in(root)):
        for name, weight in layer._parameters.items():
            if weight is not None and weight.requires_grad:
                weight.requires_grad_(False)
                places.append((layer, name))
    try:
        yield
    finally:
        for layer, name in places:
            weight = layer._parameters.get(name)
            if weight is not None:
                weight.requires_grad_(True)


# Tensors that autograd saves.


@dataclass(eq=False)
class Saved:
    """The bytes of the tensors that autograd has saved so far, each storage once; at most `most`."""

    most: int | None = None
    bytes: int = 0
    storages: set[int] = field(default_factory=set)

    def add(self, tensor: torch.Tensor) -> None:
        """Count a tensor; raises `TooMuchSaved` where it is one too many."""
        place = place_of(tensor)
        if place is None or place in self.storages:
            return
        self.storages.add(place)
        self.bytes += tensor.untyped_storage().nbytes()
        if self.most is not None and self.bytes > self.most:
            raise TooMuchSaved(f"Autograd saves more than {self.most / 2**30:.2f} GiB.")


def place_of(tensor: torch.Tensor) -> int | None:
    """Return where a tensor's numbers lie; None for one that has none of its own, such as torchao's weights."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):
        return None


@contextmanager
def counting_saved(roots: Sequence[torch.nn.Module] = (), most: int | None = None) -> Iterator[Saved]:
    """While open, count the bytes that autograd saves, without the weights of these networks.

    Raises `TooMuchSaved` out of the computation as soon as there are more than `most`.
    """
    saved = Saved(most)
    weights = [weight for root in roots for weight in (*root.parameters(), *root.buffers())]
    saved.storages |= {place for weight in weights if (place := place_of(weight)) is not None}

    def pack(tensor: torch.Tensor) -> tuple[torch.Tensor, int]:
        saved.add(tensor)
        return tensor.detach(), tensor._version  # detached: an output would hold itself

    def unpack(packed: tuple[torch.Tensor, int]) -> torch.Tensor:
        tensor, version = packed
        if tensor._version != version:  # torch itself looks at it only without hooks
            raise RuntimeError(
                "One of the variables needed for gradient computation has been modified by an inplace operation."
            )
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield saved


# Blocks that are computed twice.


def blocks_in(root: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the blocks of a network, each once: members of its lists of modules that have weights.

    A member is divided further where its own lists have most of its weights: a U-Net's stage into its residual and
    attention parts and these into transformer blocks, but not an attention into its projections.
    """
    blocks: dict[int, torch.nn.Module] = {}
    for child in root.children():
        for part in child if isinstance(child, torch.nn.ModuleList) else ():
            for block in _parts_of(part):
                blocks.setdefault(id(block), block)
        if not isinstance(child, torch.nn.ModuleList):
            blocks |= {id(block): block for block in blocks_in(child) if id(block) not in blocks}
    return list(blocks.values())


def _parts_of(member: torch.nn.Module) -> list[torch.nn.Module]:
    """Return a member of a list, or the blocks that most of it is made of; nothing for one without weights."""
    total = _weight(member)
    lists = [child for child in member.children() if isinstance(child, torch.nn.ModuleList)]
    if total and sum(map(_weight, lists)) >= BULK * total:
        return blocks_in(member)
    return [member] if total else []


def _weight(module: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


SOME, ALL = 1, 2
"""The blocks that are computed again: the cheap ones for their memory, or all.

The cheap ones are the denoiser's, and of a decoder those at the size of the picture: these hold two fifths of what
Stable Diffusion's decoder saves, with a fifth of its work."""


@contextmanager
def block_by_block(
    roots: Sequence[torch.nn.Module], cheap: Sequence[torch.nn.Module] = (), size: int = 0
) -> Iterator["Blocks"]:
    """While open, autograd keeps only the inputs of the networks' blocks, and computes them again on the way back.

    Of networks that are not `cheap`, only blocks whose input has at least `size` positions. The networks, with their
    modes, hooks and flags, are put back as they were. A block is left as it is where it could not be computed again:
    with a state (caches), or an argument that it may write to. Raises `ReplayError` at the end where a block gave
    another output the second time, so that gradients were wrong.
    """
    again = Blocks()
    with ExitStack() as undo:
        least = {id(block): size for root in roots for block in blocks_in(root)}
        least |= {id(block): 0 for root in cheap for block in blocks_in(root)}
        for block in {id(block): block for root in roots for block in blocks_in(root)}.values():
            if any(getattr(part, DIFFUSERS_HOOKS, None) is not None for part in layers_in(block)):
                continue
            # Beneath the hooks of the block itself; a compiled block is computed again as a whole.
            name = "forward" if block._compiled_call_impl is None else "_compiled_call_impl"
            undo.enter_context(replaced_method(block, name, functools.partial(again.twice, block, least[id(block)])))
        yield again
    again.refuse_others()


class Blocks:
    """Blocks whose outputs are compared when they are computed again.

    `inside` is True while a block runs that will be computed again, for the first time. `around` is opened around a
    block that is computed again; torch switches modes that are open around a backward pass off in it.
    """

    def __init__(self) -> None:
        self.around: AbstractContextManager[Any] = nullcontext()
        self.pairs: list[tuple[str, torch.dtype, list[torch.Tensor]]] = []
        self.inside = False

    def twice(self, block: torch.nn.Module, least: int, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        tensors: list[torch.Tensor] = []
        if not torch.is_grad_enabled() or not _is_plain((args, kwargs), tensors):
            return original(*args, **kwargs)
        if not any(tensor.requires_grad for tensor in tensors) or math.prod(tensors[0].shape[2:]) < least:
            return original(*args, **kwargs)
        lengths: list[torch.Tensor] = []
        passes = 0
        self.pairs.append((type(block).__name__, tensors[0].dtype, lengths))

        def compared(*args: Any, **kwargs: Any) -> Any:
            nonlocal passes
            passes += 1
            with self.around if passes > 1 else nullcontext():
                output = original(*args, **kwargs)
            first = tensor_of(output)
            if first is not None:
                lengths.append(torch.linalg.vector_norm(wide(first.detach())))
            return output

        random = any(part.training for part in layers_in(block))
        before, self.inside = self.inside, True
        try:
            with set_checkpoint_early_stop(False):
                return checkpoint(compared, *args, use_reentrant=False, preserve_rng_state=random, **kwargs)
        finally:
            self.inside = before

    def refuse_others(self) -> None:
        """Raise `ReplayError` for a block that gave another output the second time."""
        pairs, self.pairs = self.pairs, []
        for name, dtype, lengths in pairs:
            if len(lengths) < 2:
                continue
            before, after = float(lengths[0]), float(lengths[1])
            if not abs(after - before) <= REPEATED.get(dtype, 1e-2) * max(abs(before), 1e-12):
                raise ReplayError(
                    f"A block of the network ({name}) gave another output when it was computed again for its gradient, "
                    f"of length {after:.6g} and not {before:.6g}: it has a state, or changes its input. Its gradients "
                    "need more memory than there is: use a method without gradients, such as df-rise or occlusion."
                )


def wide(values: torch.Tensor) -> torch.Tensor:
    """Return values in single precision at least."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _is_plain(tree: Any, tensors: list[torch.Tensor]) -> bool:
    """Return True if arguments are tensors and values, in tuples and dicts; their tensors are added to the list."""
    if isinstance(tree, torch.Tensor):
        tensors.append(tree)
    if isinstance(tree, tuple):
        return all([_is_plain(value, tensors) for value in tree])
    if isinstance(tree, dict):
        return all([_is_plain(value, tensors) for value in tree.values()])
    return isinstance(tree, PLAIN)
