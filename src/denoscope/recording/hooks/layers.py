"""Layers of the denoiser: their outputs, random weights, other time steps."""

import functools
import inspect
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch

from ...errors import CaptureError
from .calls import output_of

# Inside the network: what a layer gives, and what attends to what.


Heard = Callable[[str, torch.Tensor], torch.Tensor | None]


@contextmanager
def activations(root: torch.nn.Module, layers: Sequence[str], on_output: Heard) -> Iterator[None]:
    """Call `on_output(path, output)` for each output of these modules, in the order in which they run.

    Outputs keep their graph. A tensor that `on_output` returns is handed on in the output's place. Layers are dotted
    paths below `root`; of a tuple the first tensor is the output. Raises `CaptureError` when one of the layers gave
    nothing by the end.
    """
    silent = set(layers)

    def heard(path: str, module: torch.nn.Module, args: tuple, output: Any) -> Any:
        silent.discard(path)
        instead = on_output(path, output_of(output))
        if instead is not None and isinstance(output, torch.Tensor):
            return instead
        if instead is not None and isinstance(output, tuple):
            return (instead, *output[1:])
        return output

    with ExitStack() as undo:
        for path in layers:
            undo.callback(root.get_submodule(path).register_forward_hook(functools.partial(heard, path)).remove)
        yield
    if silent:
        raise CaptureError(
            f"The layers {', '.join(sorted(silent))} of this {type(root).__name__} gave no output: they were not "
            "called. Choose layers that the denoiser runs through."
        )


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
    place, told = time_place(root), []

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


def time_place(root: torch.nn.Module) -> int:
    """Where among its arguments a denoiser takes the time step."""
    names = list(inspect.signature(root.forward).parameters)
    if TIME not in names:
        raise CaptureError(
            f"This {type(root).__name__} takes no argument called {TIME}, but {', '.join(names)}: it is not told the "
            "time, so it cannot be told another."
        )
    return names.index(TIME)
