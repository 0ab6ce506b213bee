"""Attention of the denoiser: its probabilities, layer by layer, read off torch's own calls.

Whatever attention processor is set, it is listened to and never replaced, and the network's output stays as it is.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from ...errors import CaptureError


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """One attention of a layer: softmax(Q Kᵀ / √d), (batch, heads, queries, keys), each row summing to one.

    In float32 for models in half precision. `cross` is True if the keys are another sequence than the queries, such as
    a text. Where text and picture attend to each other in one sequence, as in Stable Diffusion 3 and Flux, it is False.
    """

    layer: str
    cross: bool
    probabilities: torch.Tensor


OnAttention = Callable[[AttentionCall], None]
PROJECTIONS = (("to_q", "to_k"), ("q_proj", "k_proj"))
"""The projections of modules that attend, in diffusers and in transformers."""
ATTENTION_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest relative difference of an attention's output computed from its probabilities from the model's own."""


def _every_layer(layer: str, cross: bool) -> bool:
    return True


@contextmanager
def attending(
    root: torch.nn.Module,
    on_attention: OnAttention,
    *,
    through: bool = False,
    wanted: Callable[[str, bool], bool] = _every_layer,
) -> Iterator[None]:
    """Call `on_attention` for every attention inside `root`, in the order in which they run.

    The probabilities are read where the attention processor calls torch's `scaled_dot_product_attention`, or takes a
    softmax. The network's output stays as it is, bit for bit. With `through` it is computed from the very
    probabilities that were passed on, so that gradients with respect to them can be taken, and is then compared with
    the original. `wanted(layer, cross)` chooses layers. Raises `CaptureError` if a layer ran without being read (a
    kernel of its own), if nothing was captured, or if the outputs differ.
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
    if not mode.count:
        raise CaptureError(f"No attention of this {type(root).__name__} was captured: none of its layers was called.")


def attention_layers(root: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Return the modules below `root` that attend, by their dotted paths: those that project queries and keys."""
    return {
        path: module
        for path, module in root.named_modules()
        if any(all(hasattr(module, name) for name in names) for names in PROJECTIONS)
    }


@dataclass(eq=False)
class _Running:
    """A layer that is being called, and how often its attention was read."""

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
        self.count = 0

    def enter(self, path: str, module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        states = kwargs.get("encoder_hidden_states", args[1] if len(args) > 1 else None)
        joint = getattr(module, "add_k_proj", None) is not None
        self.running.append(_Running(path, module, isinstance(states, torch.Tensor) and not joint))

    def leave(self, module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
        done = self.running.pop()
        if done.times != 1:
            processor = type(getattr(module, "processor", module)).__name__
            raise CaptureError(
                f"The attention of {done.path} cannot be read: torch's attention or softmax was called {done.times} "
                f"times in it, and once is what can be read. Its processor, {processor}, works in a way of its own; "
                "switch to the default one with pipe.unet.set_default_attn_processor()."
            )

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.running and func is scaled_dot_product_attention:
            return self._attention(func, args, kwargs)
        if self.running and func in (torch.Tensor.softmax, torch.softmax, torch.nn.functional.softmax):
            return self._softmax(func(*args, **kwargs))
        return func(*args, **kwargs)

    def _attention(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        if not self._is_wanted():
            return cast(torch.Tensor, func(*args, **kwargs))
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        arguments = dict(zip(names, args, strict=False)) | kwargs
        probabilities = attention_probabilities(
            arguments["query"],
            arguments["key"],
            arguments.get("attn_mask"),
            bool(arguments.get("is_causal")),
            arguments.get("scale"),
        )
        self._pass_on(probabilities)
        output: torch.Tensor = func(*args, **kwargs)
        if not self.through:
            return output
        value = arguments["value"]
        ours = probabilities @ value.to(probabilities.dtype)
        return self._same(ours.to(value.dtype), output)

    def _softmax(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Pass on the softmax that older processors take themselves, of (batch · heads, queries, keys)."""
        if not self._is_wanted():
            return probabilities
        heads = getattr(self.running[-1].module, "heads", 1)
        if probabilities.ndim != 4 and len(probabilities) % heads:  # a slice of the heads: `leave` refuses it
            self.running[-1].times += 1
            return probabilities
        by_head = probabilities
        if probabilities.ndim != 4:
            by_head = probabilities.reshape(-1, heads, *probabilities.shape[1:])
        self._pass_on(by_head)
        return by_head.view_as(probabilities) if self.through else probabilities

    def _is_wanted(self) -> bool:
        now = self.running[-1]
        now.times += 1
        return self.wanted(now.path, now.cross)

    def _pass_on(self, probabilities: torch.Tensor) -> None:
        self.count += 1
        self.on_attention(AttentionCall(self.running[-1].path, self.running[-1].cross, probabilities))

    def _same(self, ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
        """Return our output if it is the original's; raises `CaptureError` if they differ."""
        difference = float((ours.detach() - theirs.detach()).abs().max() / theirs.detach().abs().max().clamp(min=1e-12))
        if not difference <= ATTENTION_TOLERANCE.get(theirs.dtype, 1e-2):
            raise CaptureError(
                f"The attention of {self.running[-1].path}, computed step by step, is {difference:.2g} (relative) away "
                "from the model's own output, so its probabilities are not the model's. This attention is of an "
                "unknown kind (dropout, grouped heads?). Use a method without attention, such as df-rise."
            )
        return ours


def attention_probabilities(
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> torch.Tensor:
    """Return softmax(Q Kᵀ / √d + mask) of queries (…, q, d) and keys (…, k, d).

    `mask` is boolean (True attends) or added. Half precision is computed and returned in float32, as the models'
    kernels accumulate in it: in bfloat16 itself a probability would be off by up to 0.19.
    """
    if query.dtype in (torch.float16, torch.bfloat16):
        query, key = query.float(), key.float()
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        ahead = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(ahead, float("-inf"))
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    # Under this name no context of `attending` listens: they may be nested.
    return cast(torch.Tensor, torch.special.softmax(scores, dim=-1))
