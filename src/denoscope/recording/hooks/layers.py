"""Layers of the denoiser: their outputs, random weights, other time steps. All is put back exactly afterwards."""

import functools
import inspect
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch

from ...errors import CaptureError
from .surroundings import eagerly, is_offloaded
from .trees import layers_in, output_of


@contextmanager
def whole_graph(root: torch.nn.Module) -> Iterator[None]:
    """While open, the network keeps its whole graph: gradient checkpointing, which computes parts twice, is off."""
    checkpointing = [layer for layer in layers_in(root) if vars(layer).get(CHECKPOINTING)]
    for layer in checkpointing:
        setattr(layer, CHECKPOINTING, False)
    try:
        yield
    finally:
        for layer in checkpointing:
            setattr(layer, CHECKPOINTING, True)


HOOKS = ("_forward_hooks", "_forward_pre_hooks")


@contextmanager
def without_hooks(root: torch.nn.Module) -> Iterator[None]:
    """While open, no forward hook of a module or of one below it runs: those of users, and of other listeners."""
    kept = [(layer, name, getattr(layer, name)) for layer in layers_in(root) for name in HOOKS if getattr(layer, name)]
    try:
        for layer, name, hooks in kept:
            vars(layer)[name] = type(hooks)()  # a compiled module would set the attribute of the one inside
        yield
    finally:
        for layer, name, hooks in kept:
            vars(layer)[name] = hooks


CHECKPOINTING = "gradient_checkpointing"
"""The switch of diffusers' and transformers' networks for gradient checkpointing."""

OnOutput = Callable[[str, torch.Tensor], torch.Tensor | None]

Choice = Callable[[str, Any], int]
"""The place of the tensor that counts in what a layer gave, from the layer's path and its output."""


@contextmanager
def activations(
    root: torch.nn.Module,
    layers: Sequence[str],
    on_output: OnOutput,
    choice: Choice | None = None,
    *,
    all_called: bool = True,
) -> Iterator[None]:
    """Call `on_output(path, output)` for each output of these modules, in the order in which they run.

    Outputs keep their graph. A tensor that `on_output` returns is handed on in the output's place. Layers are dotted
    paths below `root`; of a tuple the first element is the output, or the one of `choice`. Raises `CaptureError` if
    one of the layers gave no tensor, or was not called by the end where `all_called` says that it must be.
    """
    silent = set(layers)

    def hook(path: str, module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        silent.discard(path)
        place = choice(path, output) if choice is not None and isinstance(output, tuple) else 0
        instead = on_output(path, output[place] if place else output_of(output))
        if instead is not None and isinstance(output, torch.Tensor):
            return instead
        if instead is not None and isinstance(output, tuple):
            return (*output[:place], instead, *output[place + 1 :])
        return output

    with ExitStack() as undo:
        undo.enter_context(eagerly())
        for path in layers:
            undo.callback(root.get_submodule(path).register_forward_hook(functools.partial(hook, path)).remove)
        yield
    if silent and all_called:
        raise CaptureError(
            f"The layers {', '.join(sorted(silent))} of this {type(root).__name__} gave no output: they were not "
            "called. Choose layers that the denoiser runs through."
        )


def called_layers(root: torch.nn.Module, run: Callable[[], Any]) -> list[str]:
    """Return dotted paths of the modules with weights of their own, in the order in which `run` first uses them.

    A module that is used without being called, a projection whose weights another module reads, comes first. Raises
    `CaptureError` if `run` calls none.
    """
    weighted = [path for path, module in root.named_modules() if any(True for _ in module.parameters(recurse=False))]
    called: dict[str, None] = {}

    def hook(path: str, module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
        called.setdefault(path)

    with ExitStack() as undo:
        undo.enter_context(eagerly())
        for path in weighted:
            undo.callback(root.get_submodule(path).register_forward_hook(functools.partial(hook, path)).remove)
        run()
    if not called:
        raise CaptureError(
            f"No layer of this {type(root).__name__} with weights of its own was called. Give a run that calls it."
        )
    return [path for path in weighted if path not in called] + list(called)


@contextmanager
def randomised(root: torch.nn.Module, layers: Sequence[str], seed: int = 0) -> Iterator[None]:
    """While open, the own weights of these modules are random; afterwards they are as before, bit for bit.

    Each weight tensor is drawn from a normal distribution of its own mean and spread. A layer's draw follows from
    `seed` and its path alone, so it is the same whichever others are random. Raises `CaptureError` if the layers have
    no weights, or weights that no numbers can be written to: offloaded or quantised ones.
    """
    weights = {path: list(root.get_submodule(path).parameters(recurse=False)) for path in layers}
    tensors = [tensor for of_layer in weights.values() for tensor in of_layer]
    _refuse_unwritable(root, tensors)
    before = [(tensor, tensor.detach().clone()) for tensor in tensors]
    if not before:
        raise CaptureError(
            f"The layers {list(layers)} of this {type(root).__name__} have no weights to randomise. "
            "Choose layers with weights."
        )
    try:
        with torch.no_grad():
            for path, of_layer in weights.items():
                rng = np.random.default_rng([seed, zlib.crc32(path.encode())])
                for tensor in of_layer:
                    tensor.copy_(_drawn_like(tensor, rng))
        yield
    finally:
        with torch.no_grad():
            for tensor, original in before:
                tensor.copy_(original)


def _refuse_unwritable(root: torch.nn.Module, tensors: Sequence[torch.Tensor]) -> None:
    name = type(root).__name__
    if is_offloaded(root):
        raise CaptureError(
            f"The weights of this {name} are offloaded: they lie elsewhere between its calls, and random ones written "
            "in their place would not be used. Ask with the pipeline as it was before offloading "
            "(pipe.remove_all_hooks(), or loaded again)."
        )
    if any(not tensor.is_floating_point() or type(tensor.data) is not torch.Tensor for tensor in tensors):
        raise CaptureError(
            f"Weights of this {name} are quantised, and random ones need plain floating-point numbers to be written "
            "to. Ask with the pipeline loaded without quantisation."
        )


def _drawn_like(weights: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Return normal numbers of the weights' shape, mean and spread."""
    spread, mean = torch.std_mean(weights.float(), correction=0)
    return mean + spread * torch.from_numpy(rng.standard_normal(weights.shape, dtype=np.float32)).to(mean)


TIME = "timestep"
"""The name that diffusers' denoisers have for the argument with the time step."""


@contextmanager
def other_times(root: torch.nn.Module, change: Callable[[float], float], *, needed: bool = True) -> Iterator[None]:
    """While open, the denoiser is passed `change(t)` in place of the time step t; the scheduler is not.

    Raises `CaptureError` if it takes no time step, or was not called at all although that is `needed`.
    """
    place, changed_times = time_place(root), []

    def changed(time: Any) -> Any:
        changed_times.append(time)
        if not isinstance(time, torch.Tensor):
            return type(time)(change(float(time)))
        others = [change(float(t)) for t in time.flatten()]
        return torch.tensor(others, dtype=time.dtype, device=time.device).reshape(time.shape)

    def instead(
        module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if TIME in kwargs:
            return args, {**kwargs, TIME: changed(kwargs[TIME])}
        return (*args[:place], changed(args[place]), *args[place + 1 :]), kwargs

    handle = root.register_forward_pre_hook(instead, with_kwargs=True)
    try:
        with eagerly():
            yield
    finally:
        handle.remove()
    if needed and not changed_times:
        raise CaptureError(
            f"This {type(root).__name__} was not called, so no time step was changed. Call the pipeline inside."
        )


def time_place(root: torch.nn.Module) -> int:
    """Return the place of the time step among a denoiser's arguments; raises `CaptureError` if it takes none."""
    names = list(inspect.signature(root.forward).parameters)
    if TIME not in names:
        raise CaptureError(
            f"This {type(root).__name__} takes no argument called {TIME}, but {', '.join(names)}: its time step cannot "
            "be changed. Use a denoiser that takes one, such as Stable Diffusion's."
        )
    return names.index(TIME)
