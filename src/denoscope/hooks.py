"""The only file that touches a live module: what went through the denoiser and the scheduler, and how to send it again.

Everything is a context manager that undoes itself in `finally`. No pipeline is known by name here: which part of
the denoiser's input is the sample, how it was scaled and how the guidance halves were combined are read off the
recorded numbers, and `Replay` can be checked against them.
"""

import functools
import inspect
import weakref
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from .errors import (
    CaptureError,
    ModelError,
    RecordingError,
    ReplayError,
    ScheduleError,
    did_you_mean,
    one_line,
    sentence,
)

SAMPLE_NAMES = ("sample", "hidden_states")
DEPEND_ON_SAMPLE = (
    "down_block_additional_residuals",
    "mid_block_additional_residual",
    "controlnet_block_samples",
    "block_controlnet_hidden_states",
)
"""Arguments that ControlNet and its kin work out of the sample: kept as recorded, they would be wrong for another."""
FREE_GRID_SCHEDULERS = "DPMSolverMultistepScheduler, DDPMScheduler or EulerDiscreteScheduler"
SCHEDULERS = {
    "dpm-solver++": "DPMSolverMultistepScheduler",
    "dpm-solver++-single": "DPMSolverSinglestepScheduler",
    "ddpm": "DDPMScheduler",
    "euler": "EulerDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "lcm": "LCMScheduler",
    "tcd": "TCDScheduler",
    "ddim": "DDIMScheduler",
    "pndm": "PNDMScheduler",
    "unipc": "UniPCMultistepScheduler",
    "deis": "DEISMultistepScheduler",
    "lms": "LMSDiscreteScheduler",
    "euler-ancestral": "EulerAncestralDiscreteScheduler",
}
"""Schedulers that a run may be swapped to, by the names that their papers gave them."""
AS_PIPELINES_SET = {"clip_sample": False, "set_alpha_to_one": False, "skip_prk_steps": True}
"""What latent pipelines set where a scheduler's own default is for pixels and the one it replaces does not say."""

_being_recorded: weakref.WeakSet = weakref.WeakSet()


@dataclass(frozen=True, eq=False)
class DenoiserCall:
    """One call of the denoiser: its arguments as they were passed and its output."""

    args: tuple
    kwargs: dict[str, Any]
    output: torch.Tensor


@dataclass(frozen=True, eq=False)
class SchedulerStep:
    """One call of `scheduler.step`; `sigma_index` is the scheduler's position in `sigmas`, where it has one."""

    model_output: torch.Tensor
    timestep: float
    sample: torch.Tensor
    prev_sample: torch.Tensor
    sigma_index: int | None


@contextmanager
def recording(
    denoiser: torch.nn.Module, scheduler: Any, on_step: Callable[[list[DenoiserCall], SchedulerStep], None]
) -> Iterator[None]:
    """Call `on_step` after every `scheduler.step`, with the denoiser's calls since the step before.

    Raises `RecordingError` when the denoiser is already being recorded. Leaves denoiser and scheduler as they were.
    """
    if denoiser in _being_recorded:
        raise RecordingError(
            f"This {type(denoiser).__name__} is being recorded already. Recordings cannot be nested: "
            "let the first one finish, or load the pipeline a second time."
        )
    calls: list[DenoiserCall] = []

    def heard(module: torch.nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        calls.append(DenoiserCall(args, kwargs, _output_of(output).detach()))

    def stepped(step: Callable, *args: Any, **kwargs: Any) -> Any:
        model_output, timestep, sample = _step_arguments(*args, **kwargs)
        kept = sample.detach().clone(), model_output.detach().clone()
        result = step(*args, **kwargs)
        previous = result[0] if isinstance(result, tuple) else result.prev_sample
        position = getattr(scheduler, "step_index", None)
        sigma_index = None if position is None else position - 1
        on_step(calls.copy(), SchedulerStep(kept[1], float(timestep), kept[0], previous.detach().clone(), sigma_index))
        calls.clear()
        return result

    _being_recorded.add(denoiser)
    handle = denoiser.register_forward_hook(heard, with_kwargs=True)
    try:
        with replaced_method(scheduler, "step", stepped):
            yield
    finally:
        handle.remove()
        _being_recorded.discard(denoiser)


@contextmanager
def denoising(
    denoiser: torch.nn.Module,
    scheduler: Any,
    on_call: Callable[[torch.Tensor], None],
    on_step: Callable[[torch.Tensor], None],
) -> Iterator[None]:
    """Call `on_call` before every call of the denoiser and `on_step` after every `scheduler.step`, with their samples.

    It may be open around a recording. Leaves denoiser and scheduler as they were.
    """

    def called(module: torch.nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> None:
        given = args[:1] or [kwargs[name] for name in SAMPLE_NAMES if name in kwargs]
        if not given:
            raise CaptureError(f"No argument of the {type(module).__name__} is called {' or '.join(SAMPLE_NAMES)}.")
        on_call(given[0])

    def stepped(step: Callable, *args: Any, **kwargs: Any) -> Any:
        sample = _step_arguments(*args, **kwargs)[2].detach().clone()
        result = step(*args, **kwargs)
        on_step(sample)
        return result

    handle = denoiser.register_forward_pre_hook(called, with_kwargs=True)
    try:
        with replaced_method(scheduler, "step", stepped):
            yield
    finally:
        handle.remove()


@contextmanager
def time_steps(scheduler: Any, timesteps: Sequence[int] | None) -> Iterator[None]:
    """While open, `scheduler.set_timesteps` sets these time steps, whatever number of steps it is asked for.

    Raises `ScheduleError` when the scheduler cannot take a free grid of time steps.
    """
    if timesteps is None:
        yield
        return
    refuse_fixed_grid(scheduler)

    def set_timesteps(original: Callable, *args: Any, device: Any = None, **kwargs: Any) -> None:
        original(timesteps=list(timesteps), device=device if device is not None else args[1] if len(args) > 1 else None)

    with replaced_method(scheduler, "set_timesteps", set_timesteps):
        yield


def refuse_fixed_grid(scheduler: Any) -> None:
    """Raise `ScheduleError` unless `scheduler.set_timesteps` takes `timesteps=`."""
    if "timesteps" not in inspect.signature(scheduler.set_timesteps).parameters:
        raise ScheduleError(
            f"{type(scheduler).__name__} cannot take a list of time steps: it assumes its own even spacing. "
            "Use schedule='uniform', or swap it for this run, scheduler='dpm-solver++' (--scheduler dpm-solver++); "
            f"those that can are {FREE_GRID_SCHEDULERS}."
        )


@contextmanager
def swapped_scheduler(pipeline: Any, name: str | None) -> Iterator[Any]:
    """While open, the pipeline's scheduler is another one, made of its configuration; None leaves it its own.

    Raises `ScheduleError` as `made_scheduler` does, and for a pipeline whose call does not treat samples as it must.
    """
    own = pipeline.scheduler
    if name is None:
        yield own
        return
    made = made_scheduler(own, name)

    def stepped(step: Callable, *args: Any, **kwargs: Any) -> Any:
        _refuse_unscaled(made)
        return step(*args, **kwargs)

    pipeline.scheduler = made
    try:
        with replaced_method(made, "step", stepped):
            yield made
    finally:
        pipeline.scheduler = own


def made_scheduler(own: Any, name: str | None) -> Any:
    """A fresh scheduler for the model that `own` is for: of the same class, or of a name in SCHEDULERS.

    Raises `ScheduleError` for an unknown name, with the nearest known one, and for one that takes another noise
    schedule or another kind of prediction than the model was trained with.
    """
    import diffusers

    if name is None:
        return type(own).from_config(own.config)
    if name not in SCHEDULERS:
        raise ScheduleError(f'There is no scheduler "{name}". {did_you_mean(name, SCHEDULERS)}')
    kind = getattr(diffusers, SCHEDULERS[name])
    expected = inspect.signature(kind.__init__).parameters
    said = {key: value for key, value in AS_PIPELINES_SET.items() if key in expected and key not in own.config}
    made = kind.from_config(own.config, **said)
    _refuse_other_noise(own, made, name)
    return made


def _refuse_other_noise(own: Any, made: Any, name: str) -> None:
    """A model can only be sampled along the noise it was trained with, and read as what it predicts."""
    mine, theirs = (getattr(scheduler, "alphas_cumprod", torch.zeros(0)) for scheduler in (own, made))
    kinds = [scheduler.config.get("prediction_type") for scheduler in (own, made)]
    same = len(mine) > 0 and mine.shape == theirs.shape
    if not same or kinds[0] != kinds[1] or own.config.get("use_flow_sigmas") or _apart(mine, theirs) > 1e-4:
        raise ScheduleError(
            f"{type(own).__name__} cannot be swapped for {type(made).__name__}: the model's noise schedule or what it "
            f"predicts ({kinds[0] or 'flow matching'}) would become another. Swaps are among "
            f"{', '.join(SCHEDULERS)}, for models trained on a DDPM noise schedule; run this one with its own "
            f"scheduler, without {name!r}."
        )


def _apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.cpu().double() - b.cpu().double()).abs().max())


def _refuse_unscaled(scheduler: Any) -> None:
    """Euler and its kin walk along samples that the denoiser must not see unscaled; not every pipeline scales them."""
    if getattr(scheduler, "is_scale_input_called", True):
        return
    raise ScheduleError(
        f"This pipeline does not scale its samples, and {type(scheduler).__name__} needs that: the picture would be "
        "wrong. Use a scheduler whose samples are what the denoiser sees, such as DPMSolverMultistepScheduler "
        "(scheduler='dpm-solver++') or DDPMScheduler (scheduler='ddpm')."
    )


@contextmanager
def lora(pipeline: Any, folder: str | None) -> Iterator[None]:
    """While open, the pipeline has the LoRA of a folder or hub id, read by diffusers from safetensors; then not.

    What was loaded before is active again afterwards. None changes nothing. Raises `ModelError` for what cannot be
    loaded.
    """
    if folder is None:
        yield
        return
    refuse_no_lora(pipeline)
    before = list(pipeline.get_active_adapters())
    try:
        _load_lora(pipeline, folder)
        yield
    finally:
        if before:
            pipeline.delete_adapters([LORA])
            pipeline.set_adapters(before)
        else:
            pipeline.unload_lora_weights()


LORA = "denoscope"
"""What the adapter is called while it is there."""


def refuse_no_lora(pipeline: Any) -> None:
    """Raise `ModelError` unless the pipeline takes a LoRA and what reads one is installed."""
    if not hasattr(pipeline, "load_lora_weights"):
        raise ModelError(
            f"{type(pipeline).__name__} takes no LoRA: it has no load_lora_weights. Give a model whose pipeline "
            "has, such as Stable Diffusion."
        )
    if find_spec("peft") is None:
        raise ModelError("A LoRA needs the package peft, which is not installed. Install it: pip install peft.")


def _load_lora(pipeline: Any, folder: str) -> None:
    """diffusers' own loading, with what fails in one paragraph."""
    try:
        pipeline.load_lora_weights(folder, adapter_name=LORA, use_safetensors=True)
    except Exception as error:
        raise ModelError(
            f'The LoRA "{folder}" could not be loaded: {sentence(one_line(error, 300))} Allowed is a folder or hub id '
            "that holds one for this very model as safetensors, as save_lora_weights wrote it."
        ) from error


@contextmanager
def replaced_method(owner: Any, name: str, replacement: Callable) -> Iterator[None]:
    """While open, `owner.name(...)` is `replacement(original, ...)` with the original's signature."""
    original, own = getattr(owner, name), vars(owner).get(name)
    setattr(owner, name, functools.wraps(original)(functools.partial(replacement, original)))
    try:
        yield
    finally:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)


def _step_arguments(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, Any, torch.Tensor]:
    names = ("model_output", "timestep", "sample")
    given = dict(zip(names, args, strict=False)) | kwargs
    return tuple(given[name] for name in names)


def map_tensors(function: Callable[[torch.Tensor], Any], tree: Any) -> Any:
    """Apply a function to every tensor of nested tuples, lists and dicts; everything else stays."""
    if isinstance(tree, torch.Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {key: map_tensors(function, value) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        return type(tree)(map_tensors(function, value) for value in tree)
    return tree


def shared_tensors(tree: Any, earlier: Any) -> Any:
    """The same tree with every tensor that equals its counterpart in `earlier` replaced by that one; others copied."""
    if isinstance(tree, torch.Tensor):
        same = isinstance(earlier, torch.Tensor) and earlier.shape == tree.shape and torch.equal(earlier, tree)
        return earlier if same else tree.detach().clone()
    if isinstance(tree, dict):
        earlier = earlier if isinstance(earlier, dict) else {}
        return {key: shared_tensors(value, earlier.get(key)) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        known = earlier if isinstance(earlier, (tuple, list)) and len(earlier) == len(tree) else [None] * len(tree)
        return type(tree)(shared_tensors(a, b) for a, b in zip(tree, known, strict=True))
    return tree


def tensors_of(tree: Any) -> list[torch.Tensor]:
    """Every tensor of nested tuples, lists and dicts."""
    found: list[torch.Tensor] = []
    map_tensors(found.append, tree)
    return found


# Inside the network: what a layer gives, and what attends to what.


Heard = Callable[[str, torch.Tensor], None]


@contextmanager
def activations(root: torch.nn.Module, layers: Sequence[str], on_output: Heard) -> Iterator[None]:
    """Call `on_output(path, output)` for each output of these modules, in the order in which they run.

    Outputs keep their graph. Layers are dotted paths below `root`; of a tuple the first tensor is the output. Raises
    `CaptureError` when one of the layers gave nothing by the end.
    """
    silent = set(layers)

    def heard(path: str, module: torch.nn.Module, args: tuple, output: Any) -> None:
        silent.discard(path)
        on_output(path, _output_of(output))

    with ExitStack() as undo:
        for path in layers:
            undo.callback(root.get_submodule(path).register_forward_hook(functools.partial(heard, path)).remove)
        yield
    if silent:
        raise CaptureError(
            f"The layers {', '.join(sorted(silent))} of this {type(root).__name__} gave no output: they were not "
            "called. Choose layers that the denoiser runs through."
        )


def _output_of(output: Any) -> torch.Tensor:
    if isinstance(output, torch.Tensor):
        return output
    return output[0] if isinstance(output, tuple) else output.sample


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


# The network made another: its weights drawn anew, its time step misreported. Put back exactly when that is over.


def called_layers(root: torch.nn.Module, run: Callable[[], Any]) -> list[str]:
    """Dotted paths of the modules with weights of their own, in the order in which `run` first uses them.

    What is used without being called, a projection whose weights another module reads, comes first. Raises
    `CaptureError` when `run` calls none.
    """
    weighty = [path for path, module in root.named_modules() if any(True for _ in module.parameters(recurse=False))]
    called: dict[str, None] = {}

    def heard(path: str, module: torch.nn.Module, args: tuple, output: Any) -> None:
        called.setdefault(path)

    with ExitStack() as undo:
        for path in weighty:
            undo.callback(root.get_submodule(path).register_forward_hook(functools.partial(heard, path)).remove)
        run()
    if not called:
        raise CaptureError(f"No layer of this {type(root).__name__} with weights of its own was called.")
    return [path for path in weighty if path not in called] + list(called)


@contextmanager
def randomised(root: torch.nn.Module, layers: Sequence[str], seed: int = 0) -> Iterator[None]:
    """While open, the weights that these modules have of their own are random; afterwards they are as before, bit for
    bit.

    Each weight tensor is drawn from a normal distribution of its own mean and spread. A layer's draw follows from
    `seed` and its path alone, so it is the same whichever others are random. Raises `CaptureError` where there is
    nothing to randomise.
    """
    weights = {path: list(root.get_submodule(path).parameters(recurse=False)) for path in layers}
    before = [(tensor, tensor.detach().clone()) for own in weights.values() for tensor in own]
    if not before:
        raise CaptureError(f"The layers {list(layers)} of this {type(root).__name__} have no weights to randomise.")
    try:
        with torch.no_grad():
            for path, own in weights.items():
                rng = np.random.default_rng([seed, zlib.crc32(path.encode())])
                for tensor in own:
                    tensor.copy_(_drawn_like(tensor, rng))
        yield
    finally:
        with torch.no_grad():
            for tensor, kept in before:
                tensor.copy_(kept)


def _drawn_like(weights: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    spread, mean = torch.std_mean(weights.float(), correction=0)
    return mean + spread * torch.from_numpy(rng.standard_normal(weights.shape, dtype=np.float32)).to(mean)


TIME = "timestep"
"""What diffusers' denoisers call the argument that tells them the time step."""


@contextmanager
def other_times(root: torch.nn.Module, change: Callable[[float], float]) -> Iterator[None]:
    """While open, a denoiser is told `change(t)` wherever it is told the time step t; nobody else is.

    Raises `CaptureError` when it takes no time step, or was not called at all.
    """
    place, told = _time_place(root), []

    def changed(time: Any) -> Any:
        told.append(time)
        if not isinstance(time, torch.Tensor):
            return type(time)(change(float(time)))
        others = [change(float(t)) for t in time.flatten()]
        return torch.tensor(others, dtype=time.dtype, device=time.device).reshape(time.shape)

    def instead(module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        if TIME in kwargs:
            return args, {**kwargs, TIME: changed(kwargs[TIME])}
        return (*args[:place], changed(args[place]), *args[place + 1 :]), kwargs

    handle = root.register_forward_pre_hook(instead, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
    if not told:
        raise CaptureError(f"This {type(root).__name__} was not called, so it was told no other time step.")


def _time_place(root: torch.nn.Module) -> int:
    """Where among its arguments a denoiser takes the time step."""
    names = list(inspect.signature(root.forward).parameters)
    if TIME not in names:
        raise CaptureError(
            f"This {type(root).__name__} takes no argument called {TIME}, but {', '.join(names)}: it is not told the "
            "time, so it cannot be told another."
        )
    return names.index(TIME)


@dataclass(frozen=True, eq=False)
class Replay:
    """How to send other samples through the denoiser as one recorded step did.

    The denoiser saw `copies` times the batch, each `scale * sample` with `extra` channels behind it, and the
    scheduler received `first + weight (second − first)` of the two copies. Since any guidance
    `u + w (c − u)` is such a mixture, whichever half comes first, `weight` is fitted to the recorded numbers.
    """

    denoiser: torch.nn.Module
    args: tuple
    kwargs: dict[str, Any]
    batch: int
    copies: int
    scale: float
    weight: float
    extra: torch.Tensor | None

    @classmethod
    def of(
        cls, denoiser: torch.nn.Module, calls: list[DenoiserCall], step: SchedulerStep, earlier: "Replay | None"
    ) -> "Replay":
        """Read the replay of one step off its recording; raises `ReplayError` where it has another form."""
        if len(calls) != 1:
            raise ReplayError(_cannot(f"its denoiser was called {len(calls)} times before one scheduler step"))
        args, kwargs, seen = _without_sample(calls[0])
        if residuals := [name for name in DEPEND_ON_SAMPLE if kwargs.get(name) is not None]:
            raise ReplayError(
                _cannot(f"another network read the sample first and gave its denoiser {residuals[0]} (ControlNet?)")
            )
        args, kwargs = shared_tensors((args, kwargs), (earlier.args, earlier.kwargs) if earlier else None)
        batch = len(step.sample)
        copies = len(seen) // batch
        if copies not in (1, 2) or len(seen) % batch or seen[:batch, : step.sample.shape[1]].shape != step.sample.shape:
            shapes = f"{tuple(seen.shape)} for a sample of {tuple(step.sample.shape)}"
            raise ReplayError(_cannot(f"its denoiser saw an input of {shapes}"))
        if calls[0].output.shape != (copies * batch, *step.model_output.shape[1:]):
            shapes = f"{tuple(calls[0].output.shape)} became {tuple(step.model_output.shape)}"
            raise ReplayError(_cannot(f"the denoiser's output of {shapes} on its way to the scheduler"))
        channels = step.sample.shape[1]
        extra = seen[:batch, channels:].clone() if seen.shape[1] > channels else None
        scale = _slope(step.sample, seen[:batch, :channels])
        first, second = calls[0].output[:batch], calls[0].output[-batch:]
        weight = _slope(second - first, step.model_output - first)
        return cls(denoiser, args, kwargs, batch, copies, scale, weight, extra)

    @property
    def shares(self) -> tuple[float, ...]:
        """How much each copy counts in the guided prediction, Σ share · copy: (1 − w, w), or (1,) without guidance."""
        return (1.0,) if self.copies == 1 else (1 - self.weight, self.weight)

    def __call__(self, samples: torch.Tensor) -> torch.Tensor:
        """The guided prediction for samples (n, channels, h, w); n is the recorded batch, or any if that is 1."""
        n = len(samples)
        if self.batch not in (1, n):
            raise ReplayError(
                f"{n} samples were given to a step that was recorded with {self.batch} pictures. "
                "Choose one picture of the trace first: trace.picture(0)."
            )
        own = self._rows(n)
        x = self.scale * samples
        if self.extra is not None:
            x = torch.cat([x, own(self.extra.repeat(self.copies, *[1] * (self.extra.ndim - 1)))[:n]], dim=1)
        x = torch.cat([x] * self.copies)
        args, kwargs = map_tensors(own, (self.args, self.kwargs))
        output = _output_of(_called(self.denoiser, x, args, kwargs))
        if self.copies == 1:
            return output
        first, second = output[:n], output[n:]
        return first + self.weight * (second - first)

    @property
    def context(self) -> torch.Tensor | None:
        """What cross-attention reads, (copies · pictures, tokens, features), where the denoiser was given such."""
        given = self.kwargs.get("encoder_hidden_states", self.args[2] if len(self.args) > 2 else None)
        return given if isinstance(given, torch.Tensor) else None

    def half(self, copy: int) -> "Replay":
        """One of the copies alone: what the denoiser itself says of it, before any guidance."""
        args, kwargs = self._only(range(copy * self.batch, (copy + 1) * self.batch))
        return Replay(self.denoiser, args, kwargs, self.batch, 1, self.scale, 1.0, self.extra)

    @property
    def time(self) -> float:
        """The time step that the denoiser was told, in its own units."""
        place = _time_place(self.denoiser)
        told = self.kwargs[TIME] if TIME in self.kwargs else self.args[place]
        return float(told.flatten()[0] if isinstance(told, torch.Tensor) else told)

    def picture(self, index: int, earlier: "Replay | None" = None) -> "Replay":
        """The same step for one picture of the batch; conditioning equal to that of `earlier` is shared with it."""
        rows = [copy * self.batch + index for copy in range(self.copies)]
        known = (earlier.args, earlier.kwargs) if earlier else None
        args, kwargs = shared_tensors(self._only(rows), known)
        extra = None if self.extra is None else self.extra[index : index + 1]
        return Replay(self.denoiser, args, kwargs, 1, self.copies, self.scale, self.weight, extra)

    def _only(self, rows: Sequence[int]) -> tuple[tuple, dict[str, Any]]:
        """The conditioning of some rows of the denoiser's batch."""
        own = lambda tensor: tensor[list(rows)] if self._is_batched(tensor) else tensor  # noqa: E731
        return map_tensors(own, (self.args, self.kwargs))

    def _is_batched(self, tensor: torch.Tensor) -> bool:
        return tensor.ndim > 0 and len(tensor) == self.copies * self.batch

    def _rows(self, n: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """Give every batched tensor of the conditioning one row per sample."""
        times = n // self.batch
        return lambda tensor: tensor.repeat_interleave(times, dim=0) if self._is_batched(tensor) else tensor


def _without_sample(call: DenoiserCall) -> tuple[tuple, dict[str, Any], torch.Tensor]:
    """The arguments with None in the sample's place, and the sample."""
    if call.args:
        return (None, *call.args[1:]), call.kwargs, call.args[0]
    for name in SAMPLE_NAMES:
        if name in call.kwargs:
            return (), {**call.kwargs, name: None}, call.kwargs[name]
    raise ReplayError(_cannot(f"no argument of its denoiser is called {' or '.join(SAMPLE_NAMES)}"))


def _called(denoiser: torch.nn.Module, x: torch.Tensor, args: tuple, kwargs: dict[str, Any]) -> Any:
    if args:
        return denoiser(x, *args[1:], **kwargs)
    name = next(name for name in SAMPLE_NAMES if name in kwargs)
    return denoiser(**{**kwargs, name: x})


def _slope(x: torch.Tensor, y: torch.Tensor) -> float:
    """The k that brings k x closest to y; 1 where x is zero."""
    x, y = x.cpu().double(), y.cpu().double()  # not every device has double precision
    square = (x * x).sum()
    return float((x * y).sum() / square) if square > 0 else 1.0


def _cannot(reason: str) -> str:
    return (
        f"This pipeline's steps were recorded but cannot be replayed: {reason}. Denoscope replays a denoiser that is "
        "called once a step, alone or with two guidance halves, u + w (c − u). Use guidance_scale=1."
    )
