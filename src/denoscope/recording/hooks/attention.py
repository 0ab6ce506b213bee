"""Attention of the denoiser: who attends to what."""

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from ...errors import CaptureError


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """One attention of a layer: softmax(Q Kᵀ / √d), (batch, heads, queries, keys), each row summing to one.

    `cross` says whether the keys are another sequence than the queries, a text for one. Where text and picture attend
    to each other in one sequence, as in Stable Diffusion 3 and Flux, it is False.
    """

    layer: str
    cross: bool
    probabilities: torch.Tensor


OnAttention = Callable[[AttentionCall], None]
PROJECTIONS = (("to_q", "to_k"), ("q_proj", "k_proj"))
"""What modules that attend are made of, in diffusers and in transformers."""


@contextmanager
def attending(
    root: torch.nn.Module,
    on_attention: OnAttention,
    *,
    through: bool = False,
    wanted: Callable[[str, bool], bool] = lambda layer, cross: True,
) -> Iterator[None]:
    """Call `on_attention` for every attention inside `root`, in the order in which they run.

    Whatever attention processor is set, what it hands to torch's `scaled_dot_product_attention`, or takes the softmax
    of, is what is read. The network's output stays as it is, bit for bit; with `through` it is computed from the very
    probabilities that were told, so that gradients with respect to them can be taken, and is then compared with the
    original's. `wanted(layer, cross)` chooses layers. Raises `CaptureError` when a layer ran without being heard (a
    kernel of its own), when nothing was captured, or when the outputs differ.
    """
    layers = attention_layers(root)
    if not layers:
        raise CaptureError(f"This {type(root).__name__} has no attention layers, so nothing attends to anything in it.")
    mode = _Listening(on_attention, through, wanted)
    with ExitStack() as undo:
        for path, module in layers.items():
            enter, leave = functools.partial(mode.enter, path), mode.leave
            undo.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
            undo.callback(module.register_forward_hook(leave).remove)
        undo.enter_context(mode)
        yield
    if not mode.heard:
        raise CaptureError(f"No attention of this {type(root).__name__} was captured: none of its layers was called.")


def attention_layers(root: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The modules below `root` that attend, by their dotted paths: those that project queries and keys."""
    return {
        path: module
        for path, module in root.named_modules()
        if any(all(hasattr(module, name) for name in names) for names in PROJECTIONS)
    }


@dataclass(eq=False)
class _Running:
    """A layer that is being called, and how often its attention was heard."""

    path: str
    module: torch.nn.Module
    cross: bool
    times: int = 0


class _Listening(TorchFunctionMode):
    """Reads the attention of the layer that is running off torch's own calls."""

    def __init__(self, on_attention: OnAttention, through: bool, wanted: Callable[[str, bool], bool]):
        super().__init__()
        self.on_attention, self.through, self.wanted = on_attention, through, wanted
        self.running: list[_Running] = []
        self.heard = 0

    def enter(self, path: str, module: torch.nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> None:
        states = kwargs.get("encoder_hidden_states", args[1] if len(args) > 1 else None)
        joint = getattr(module, "add_k_proj", None) is not None
        self.running.append(_Running(path, module, isinstance(states, torch.Tensor) and not joint))

    def leave(self, module: torch.nn.Module, args: tuple, output: Any) -> None:
        done = self.running.pop()
        if done.times != 1:
            processor = type(getattr(module, "processor", module)).__name__
            raise CaptureError(
                f"The attention of {done.path} cannot be read: torch's attention or softmax was called {done.times} "
                f"times in it, and once is what can be read. Its processor, {processor}, works in a way of its own; "
                "switch to the default one with pipe.unet.set_default_attn_processor()."
            )

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.running and func is scaled_dot_product_attention:
            return self._attention(func, args, kwargs)
        if self.running and func in (torch.Tensor.softmax, torch.softmax, torch.nn.functional.softmax):
            return self._softmax(func(*args, **kwargs))
        return func(*args, **kwargs)

    def _attention(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> torch.Tensor:
        if not self._is_wanted():
            return func(*args, **kwargs)
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        given = dict(zip(names, args, strict=False)) | kwargs
        probabilities = attention_probabilities(
            given["query"],
            given["key"],
            given.get("attn_mask"),
            bool(given.get("is_causal")),
            given.get("scale"),
        )
        self._tell(probabilities)
        output = func(*args, **kwargs)
        return self._same(probabilities.to(given["value"].dtype) @ given["value"], output) if self.through else output

    def _softmax(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Older processors take the softmax themselves, of (batch · heads, queries, keys); it is used as it is told."""
        if not self._is_wanted():
            return probabilities
        heads = getattr(self.running[-1].module, "heads", 1)
        told = probabilities if probabilities.ndim == 4 else probabilities.unflatten(0, (-1, heads))
        self._tell(told)
        return told.view_as(probabilities) if self.through else probabilities

    def _is_wanted(self) -> bool:
        now = self.running[-1]
        now.times += 1
        return self.wanted(now.path, now.cross)

    def _tell(self, probabilities: torch.Tensor) -> None:
        self.heard += 1
        self.on_attention(AttentionCall(self.running[-1].path, self.running[-1].cross, probabilities))

    def _same(self, ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
        """Ours, if it is what the original gives."""
        apart = float((ours.detach() - theirs.detach()).abs().max() / theirs.detach().abs().max().clamp(min=1e-12))
        if not apart <= ATTENTION_TOLERANCE.get(theirs.dtype, 1e-2):
            raise CaptureError(
                f"The attention of {self.running[-1].path}, computed step by step, is {apart:.2g} (relative) away from "
                "what the model computes, so its probabilities are not the model's. This attention is of a kind that "
                "is not known (dropout, grouped heads?)."
            )
        return ours


ATTENTION_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def attention_probabilities(
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> torch.Tensor:
    """softmax(Q Kᵀ / √d + mask) of queries (…, q, d) and keys (…, k, d); `mask` is boolean (True attends) or added."""
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        ahead = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(ahead, float("-inf"))
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return torch.special.softmax(scores, dim=-1)  # under a name that nobody listens for: contexts may be nested
