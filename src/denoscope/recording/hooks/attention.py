"""Attention of the denoiser: its probabilities, layer by layer, read off torch's own calls.

Whatever attention processor is set, it is listened to and never replaced, and the network's output stays as it is.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from ...errors import CaptureError
from .kernels import Kernels, as_rows, is_confirmed
from .surroundings import HOOKED_BY_DIFFUSERS, Autocast, eagerly

Site = tuple[str, int]
"""One attention: the dotted path of its layer, and its place among the attentions of one call of that layer."""


@dataclass(eq=False)
class AttentionCall:
    """One attention of a layer: softmax(Q Kᵀ / √d), (batch, heads, queries, keys), each row summing to one.

    In float32 for models in half precision. `cross` is True if the keys are another sequence than the queries, such as
    a text. Where text and picture attend to each other in one sequence, as in Stable Diffusion 3 and Flux, it is False.
    `ordinal` counts the attentions of one call of the layer: IP-Adapter's layers attend to the text, then to pictures.
    `query`, `key`, `value` and `output` are (batch, heads, positions, size), None where a processor took its softmax
    itself.
    """

    layer: str
    cross: bool
    ordinal: int = 0
    query: torch.Tensor | None = None
    key: torch.Tensor | None = None
    masks: Mapping[str, Any] = field(default_factory=dict)
    taken: torch.Tensor | None = None
    value: torch.Tensor | None = None
    output: torch.Tensor | None = None
    released: tuple[int, int] | None = None
    where: torch.device | None = None
    logsumexp: torch.Tensor | None = None
    """The logarithm of each query's sum over all keys, (batch, heads, queries), where torch's kernel told it."""

    def release(self) -> None:
        """Let go of all tensors; the layer, the `size` and the `device` stay."""
        self.released, self.where, self.masks = self.size, self.device, {}
        self.taken = self.query = self.key = self.value = self.output = self.logsumexp = None

    def bare(self) -> "AttentionCall":
        """Return the call without its tensors."""
        return AttentionCall(self.layer, self.cross, self.ordinal, released=self.size, where=self.device)

    @property
    def device(self) -> torch.device | None:
        """Where the attention is computed."""
        of_device = self.query if self.taken is None else self.taken
        return self.where if of_device is None else of_device.device

    @property
    def site(self) -> Site:
        """The layer and the ordinal."""
        return self.layer, self.ordinal

    @property
    def probabilities(self) -> torch.Tensor:
        """All probabilities, computed once."""
        if self.taken is None:
            assert self.query is not None and self.key is not None
            self.taken = attention_probabilities(self.query, self.key, **self.masks)
        return self.taken

    @property
    def size(self) -> tuple[int, int]:
        """The numbers of queries and of keys."""
        if self.released is not None:
            return self.released
        if self.taken is not None:
            return self.taken.shape[-2], self.taken.shape[-1]
        assert self.query is not None and self.key is not None
        return self.query.shape[-2], self.key.shape[-2]

    @property
    def rows(self) -> int:
        """The number of rows of the batch."""
        of_rows = self.query if self.taken is None else self.taken
        assert of_rows is not None
        return len(of_rows)

    @property
    def heads(self) -> int:
        """The number of heads."""
        of_heads = self.query if self.taken is None else self.taken
        assert of_heads is not None
        return of_heads.shape[1]

    def of(self, rows: list[int], queries: list[int], heads: list[int], at_once: int = 2**26) -> "list[torch.Tensor]":
        """Return the probabilities of some rows, queries and heads, (rows, heads, queries, keys), detached.

        In several portions of heads where all together would have more than `at_once` numbers.
        """
        if self.taken is not None:
            return [_picked(self.taken.detach(), rows, heads, queries)]
        assert self.query is not None and self.key is not None
        query, key = self.query.detach(), repeated_heads(self.key.detach(), self.query.shape[1])
        each = max(1, at_once // max(1, len(rows) * len(queries) * key.shape[2]))
        parts = [heads[i : i + each] for i in range(0, len(heads), each)]
        everything = list(range(key.shape[2]))
        return [
            attention_probabilities(
                _picked(query, rows, part, queries),
                _picked(key, rows, part, everything),
                self._mask(rows, part, queries),
                scale=self.masks.get("scale"),
            )
            for part in parts
        ]

    def of_keys(
        self, rows: list[int], queries: list[int], heads: list[int], keys: list[int], at_once: int = 2**26
    ) -> "list[torch.Tensor]":
        """Return the probabilities of some keys, (rows, heads, queries, keys); otherwise as `of`.

        With the kernel's `logsumexp` no other keys are looked at.
        """
        if self.logsumexp is None:
            return [part.index_select(3, _index(keys, part)) for part in self.of(rows, queries, heads, at_once)]
        assert self.query is not None and self.key is not None
        query, key = self.query.detach(), self.key.detach()
        each = max(1, at_once // max(1, len(rows) * len(queries) * len(keys)))
        own = _picked(key, rows, list(range(key.shape[1])), keys)
        own = repeated_heads(own, query.shape[1])
        everything = list(range(len(keys)))
        return [
            _of_some(
                _picked(query, rows, part, queries),
                own if len(part) == own.shape[1] else _picked(own, list(range(len(rows))), part, everything),
                _picked(self.logsumexp, rows, part, queries),
                self.masks.get("scale"),
            )
            for part in (heads[i : i + each] for i in range(0, len(heads), each))
        ]

    def _mask(self, rows: list[int], heads: list[int], queries: list[int]) -> torch.Tensor | None:
        """Return the mask of some rows, heads and queries; None if there is none."""
        assert self.query is not None and self.key is not None
        mask = self.masks.get("mask")
        size = (*self.query.shape[:3], self.key.shape[2])
        if self.masks.get("causal"):
            mask = torch.ones(size[2:], dtype=torch.bool, device=self.query.device).tril()
        return None if mask is None else _picked(mask.expand(size), rows, heads, queries)


def _picked(tensor: torch.Tensor, rows: list[int], heads: list[int], places: list[int]) -> torch.Tensor:
    """Return some rows, heads and places of (rows, heads, places, size); what is wanted whole is not copied."""
    for axis, wanted in enumerate((rows, heads, places)):
        if not wanted or wanted != list(range(wanted[0], wanted[0] + len(wanted))):
            tensor = tensor.index_select(axis, _index(wanted, tensor))
        elif len(wanted) < tensor.shape[axis]:
            tensor = tensor.narrow(axis, wanted[0], len(wanted))
    return tensor


def _index(places: list[int], tensor: torch.Tensor) -> torch.Tensor:
    return torch.tensor(places, dtype=torch.long, device=tensor.device)


OnAttention = Callable[[AttentionCall], None]
PROJECTIONS = (
    ("to_q", "to_k"),
    ("q_proj", "k_proj"),
    ("q", "k", "v"),
    ("query", "key", "value"),
    ("to_query", "to_key"),
    ("img_qkv_proj",),
    ("to_qkv",),
    ("to_qkv_mlp_proj",),
    ("query_key_value",),
    ("qkv",),
    ("qkv_proj",),
)
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
    once: bool = True,
    required: bool = True,
    on_unread: Callable[[str, CaptureError], None] | None = None,
    entered: bool = True,
) -> Iterator[TorchFunctionMode]:
    """Call `on_attention` for every attention inside `root`, in the order in which they run.

    The probabilities are read where the attention processor calls torch's `scaled_dot_product_attention`, or takes a
    softmax. The network's output stays as it is, bit for bit. With `through` it is computed from the very
    probabilities that were passed on, so that gradients with respect to them can be taken, and is then compared with
    the original. `wanted(layer, cross)` chooses layers; others are not judged. `once` False lets a layer attend
    several times in a call, as IP-Adapter's do. Unless it is `required`, nothing
    need be captured. `on_unread` is passed the path and the refusal of a wanted layer that ran without being read.
    Unless `entered`, only what runs while the mode is open that this gives is heard: torch switches modes that are open
    around a backward pass off in it.
    Raises `CaptureError` for such a layer (a kernel of its own) if there is no `on_unread`, if nothing was captured, or
    if the outputs differ.
    """
    layers = attention_layers(root)
    if not layers:
        raise CaptureError(f"This {type(root).__name__} has no attention layers, so nothing attends to anything in it.")
    mode = _Listening(on_attention, through, wanted, once, on_unread)
    with ExitStack() as undo:
        undo.enter_context(eagerly())
        for path, module in layers.items():
            enter, leave = functools.partial(mode.enter, path), mode.leave
            undo.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
            undo.callback(module.register_forward_hook(leave).remove)
        if entered:
            undo.enter_context(mode)
        yield mode
    if required and not mode.count:
        raise CaptureError(f"No attention of this {type(root).__name__} was captured: none of its layers was called.")


def attention_layers(root: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Return the modules below `root` that attend, by their dotted paths: those that project queries and keys."""
    return {path: module for path, module in root.named_modules() if module._modules and _attends(module)}


def _attends(module: torch.nn.Module) -> bool:
    parts = {name for name, part in module._modules.items() if part is not None}
    return any(parts.issuperset(names) for names in PROJECTIONS)


@dataclass(eq=False)
class Running:
    """A layer that is being called, how often its attention was read, and slices of its heads heard so far."""

    path: str
    module: torch.nn.Module
    cross: bool
    rows: int
    times: int = 0
    sliced: list[torch.Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, path: str, module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> "Running":
        """Return a layer that is called with these arguments."""
        return cls(path, module, is_cross(module, args, kwargs), _rows(args, kwargs))

    def whole(self, values: torch.Tensor) -> torch.Tensor | None:
        """Return the heads' values (batch, heads, queries, keys) once all slices of them are there, None until then."""
        if values.ndim == 4:
            return values
        heads = int(getattr(self.module, "heads", 0) or getattr(self.module, "n_heads", 1) or 1)
        self.sliced.append(values)
        if values.ndim != 3 or (self.rows and sum(map(len, self.sliced)) < self.rows * heads):
            return None
        whole = torch.cat(self.sliced) if len(self.sliced) > 1 else values
        if len(whole) % heads:
            return None
        self.sliced.clear()
        return whole.reshape(-1, heads, *whole.shape[1:])


class _Listening(TorchFunctionMode):
    """Reads the attention of the layer that is running off torch's own calls."""

    def __init__(
        self,
        on_attention: OnAttention,
        through: bool,
        wanted: Callable[[str, bool], bool],
        once: bool = True,
        on_unread: Callable[[str, CaptureError], None] | None = None,
    ):
        super().__init__()
        self.on_unread = on_unread
        self.on_attention, self.through, self.wanted, self.once = on_attention, through, wanted, once
        self.running: list[Running] = []
        self.count = 0
        self.confirmed: dict[Any, bool] = {}

    def enter(self, path: str, module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.running.append(Running.of(path, module, args, kwargs))

    def leave(self, module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
        done = self.running.pop()
        if not self.wanted(done.path, done.cross):
            return
        if (done.times != 1 if self.once else not done.times) or done.sliced:
            refusal = unreadable(done.path, module, done.times, slices=bool(done.sliced))
            if self.on_unread is None:
                raise refusal
            self.on_unread(done.path, refusal)

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.running and func is scaled_dot_product_attention:
            return self._attention(func, args, kwargs)
        if self.running and func in SOFTMAXES:
            return self._softmax(func(*args, **kwargs))
        return func(*args, **kwargs)

    def _attention(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        if not self._is_wanted():
            return cast(torch.Tensor, func(*args, **kwargs))
        arguments = sdpa_arguments(args, kwargs)
        with Kernels() as kernels:
            output: torch.Tensor = func(*args, **kwargs)
        value = arguments["value"]
        call = self._call(
            query=arguments["query"], key=arguments["key"], masks=_masks(arguments), value=value, output=output
        )
        call.logsumexp = self._told(call, kernels)
        if self.through:
            _ = call.probabilities
        self._pass_on(call)
        if not self.through:
            return output
        probabilities = call.probabilities
        ours = probabilities @ repeated_heads(value, probabilities.shape[-3]).to(probabilities.dtype)
        call.output = None  # not kept until the gradients are there
        return self._same(ours.to(value.dtype), output)

    @Autocast.off()
    def _told(self, call: AttentionCall, kernels: Kernels) -> torch.Tensor | None:
        """Return the kernel's logsumexp, if the first one of its kind is what the scores give; None without one.

        Masked calls have none: what a kernel does with a query that may attend to nothing is its own.
        """
        assert call.query is not None and call.key is not None
        told = as_rows(kernels.logsumexp, call.query)
        if told is None or self.through or call.masks["mask"] is not None or call.masks["causal"]:
            return None
        kind = (call.site, call.query.shape, call.key.shape, call.query.dtype)
        if kind not in self.confirmed:
            query, key = call.query.detach(), repeated_heads(call.key.detach(), call.query.shape[1])
            self.confirmed[kind] = is_confirmed(told, query, key, _scale(query, call.masks["scale"]))
        return told if self.confirmed[kind] else None

    def _softmax(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Pass on the softmax that older processors take themselves, of (batch · heads, queries, keys).

        Processors that take it slice by slice are heard until all heads are there.
        """
        now = self.running[-1]
        if not self.wanted(now.path, now.cross):
            return probabilities
        by_head = now.whole(probabilities)
        if by_head is None:
            return probabilities
        if self.through and by_head.numel() != probabilities.numel():
            now.sliced.append(probabilities)  # `leave` refuses it
            return probabilities
        now.times += 1
        self._pass_on(self._call(taken=by_head))
        return by_head.view_as(probabilities) if self.through else probabilities

    def _is_wanted(self) -> bool:
        now = self.running[-1]
        now.times += 1
        return self.wanted(now.path, now.cross)

    def _call(self, **parts: Any) -> AttentionCall:
        now = self.running[-1]
        return AttentionCall(now.path, now.cross, now.times - 1, **parts)

    def _pass_on(self, call: AttentionCall) -> None:
        self.count += 1
        self.on_attention(call)

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


SOFTMAXES = (torch.Tensor.softmax, torch.softmax, torch.nn.functional.softmax)
"""The functions by which processors without torch's attention take a softmax."""


def sdpa_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call of `scaled_dot_product_attention` by their names."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    return dict(zip(names, args, strict=False)) | dict(kwargs)


def _masks(arguments: Mapping[str, Any]) -> dict[str, Any]:
    causal, scale = bool(arguments.get("is_causal")), arguments.get("scale")
    return {"mask": arguments.get("attn_mask"), "causal": causal, "scale": scale}


def is_cross(module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Return True if a layer's keys are another sequence than its queries: it is passed one and does not join them."""
    states = kwargs.get("encoder_hidden_states", args[1] if len(args) > 1 else None)
    states = states[0] if isinstance(states, tuple) and states else states  # IP-Adapter: the text, the pictures
    return isinstance(states, torch.Tensor) and getattr(module, "add_k_proj", None) is None


def _rows(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Return the rows of a layer's first tensor; 0 if it has none."""
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
    return len(tensors[0]) if tensors and tensors[0].ndim else 0


def unreadable(path: str, module: torch.nn.Module, times: int, *, slices: bool = False) -> CaptureError:
    """Return the refusal of a layer whose attention was not read once."""
    processor = type(getattr(module, "processor", module)).__name__
    if slices:
        return CaptureError(
            f"The attention of {path} is computed in slices by {processor}, which this question cannot be asked about. "
            "Switch slicing off for it, pipe.disable_attention_slicing(); word maps work with it."
        )
    if not times and HOOKED_BY_DIFFUSERS in vars(module):
        return CaptureError(
            f"The attention of {path} was not computed at this step: a cache of diffusers gave what it had from an "
            "earlier one. Switch the cache off and record again, pipe.transformer.disable_cache(), ask about another "
            "step, or use a method without attention, such as df-rise."
        )
    return CaptureError(
        f"The attention of {path} cannot be read: torch's attention or softmax was called {times} times in it, and "
        f"once is what can be read. Its processor, {processor}, works in a way of its own. Switch off what has set it "
        "(xformers: pipe.disable_xformers_memory_efficient_attention(); another backend: "
        "pipe.transformer.reset_attention_backend()), which leaves adapters in their place, or choose other layers."
    )


def repeated_heads(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Return keys or values (…, fewer heads, positions, size) with a head for each head of the queries."""
    if tensor.ndim < 4 or tensor.shape[-3] == heads:
        return tensor
    return tensor.repeat_interleave(heads // tensor.shape[-3], dim=-3)


@Autocast.off()
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
    if query.dtype != key.dtype or query.dtype in (torch.float16, torch.bfloat16):
        query, key = query.float(), key.float()
    key = repeated_heads(key, query.shape[-3]) if query.ndim >= 4 else key
    scores = query @ key.mT * _scale(query, scale)
    if causal:
        ahead = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(ahead, float("-inf"))
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    nowhere = None
    if mask is not None or causal:  # a query that may attend to nothing, as in padding, hands on zeros
        nowhere = (scores == float("-inf")).all(dim=-1, keepdim=True)
        scores = scores.masked_fill(nowhere, 0)
    # Under this name no context of `attending` listens: they may be nested.
    probabilities = torch.special.softmax(scores, dim=-1)
    return cast(torch.Tensor, probabilities if nowhere is None else probabilities.masked_fill(nowhere, 0))


def _scale(query: torch.Tensor, scale: float | None) -> float:
    return float(query.shape[-1] ** -0.5 if scale is None else scale)


@Autocast.off()
def _of_some(query: torch.Tensor, key: torch.Tensor, logsumexp: torch.Tensor, scale: float | None) -> torch.Tensor:
    """Return the probabilities of some keys, by the logarithm of the sum over all: exp(q · k scale − logsumexp)."""
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = (query.to(wide) * _scale(query, scale)) @ key.to(wide).mT
    return scores.sub_(logsumexp[..., None]).exp_()


Instead = Callable[[AttentionCall, Callable[..., torch.Tensor]], torch.Tensor | None]
"""Called with an attention and the way to compute it for other keys and values; returns its output, or None."""


@contextmanager
def attention_instead(root: torch.nn.Module, instead: Instead) -> Iterator[None]:
    """While open, the attentions inside `root` give what `instead` returns for them."""
    mode = _Instead(instead)
    with ExitStack() as undo:
        undo.enter_context(eagerly())
        for path, module in attention_layers(root).items():
            undo.callback(
                module.register_forward_pre_hook(functools.partial(mode.enter, path), with_kwargs=True).remove
            )
            undo.callback(module.register_forward_hook(mode.leave).remove)
        undo.enter_context(mode)
        yield


class _Instead(TorchFunctionMode):
    def __init__(self, instead: Instead):
        super().__init__()
        self.instead = instead
        self.running: list[Running] = []

    def enter(self, path: str, module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.running.append(Running.of(path, module, args, kwargs))

    def leave(self, module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.running.pop()

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.running or func is not scaled_dot_product_attention:
            return func(*args, **kwargs)
        arguments, now = sdpa_arguments(args, kwargs), self.running[-1]
        query, key, value = (arguments.pop(name) for name in ("query", "key", "value"))
        call = AttentionCall(now.path, now.cross, now.times, query=query, key=key, masks=_masks(arguments), value=value)
        now.times += 1

        def compute(key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = func(query, key, value, **arguments)
            return result

        output = self.instead(call, compute)
        return compute(key, value) if output is None else output
