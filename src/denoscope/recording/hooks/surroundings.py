"""Code that users put around a network's own: compilers, offloading of its weights, autocast.

Compiled code runs no hook that was set behind its compilation, so whoever listens inside a network runs it `eagerly`.
Offloading takes weights away after a call, so gradients need them `kept`.
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from .trees import layers_in

INSIDE = "_orig_mod"
"""The name that torch's compiled modules have for the network inside."""
HOOKED_BY_DIFFUSERS = "_diffusers_hook"
"""The attribute of modules that diffusers' caches and group offloading are at."""
OFFLOADING = ("_hf_hook", HOOKED_BY_DIFFUSERS)
"""Attributes of modules by which accelerate and diffusers bring weights before a call and take them away after it."""


def own_network(module: torch.nn.Module) -> torch.nn.Module:
    """Return the network inside `torch.compile(network)`; any other module as it is."""
    inside = module._modules.get(INSIDE)
    return module if inside is None else inside


def is_compiled(module: torch.nn.Module) -> bool:
    """Return True if a network, or a part of it, is compiled by torch."""
    return any(INSIDE in layer._modules or layer._compiled_call_impl is not None for layer in layers_in(module))


@contextmanager
def eagerly() -> Iterator[None]:
    """While open, compiled networks and blocks run their own code, as hooks inside them have to run.

    What was compiled stays so. It may be open several times.
    """
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and loading it takes seconds
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def is_offloaded(module: torch.nn.Module) -> bool:
    """Return True if something brings a network's weights before its calls and takes them away behind them."""
    return any(any(_offloads(vars(layer).get(name)) for name in OFFLOADING) for layer in layers_in(module))


def _offloads(hook: Any) -> bool:
    """Return True for accelerate's hook, and for diffusers' registry that has one of group offloading."""
    if hook is None:
        return False
    names = getattr(hook, "hooks", None)
    return "group_offloading" in names if isinstance(names, dict) else True


@contextmanager
def weights_kept(*modules: torch.nn.Module) -> Iterator[None]:
    """While open, the graphs of offloaded networks hold the weights that they were computed with.

    Otherwise a backward pass reads what lies in the weights' place by then: those on another device, or nothing. The
    weights stay on the working device until the graph is freed. Without gradients it does nothing.
    """
    if not torch.is_grad_enabled() or not any(map(is_offloaded, modules)):
        yield
        return
    with torch.autograd.graph.saved_tensors_hooks(torch.Tensor.detach, lambda tensor: tensor):
        yield


@dataclass(frozen=True)
class Autocast:
    """The dtypes of autocast on the devices, None where it is off."""

    dtypes: dict[str, torch.dtype | None] = field(default_factory=dict)

    @classmethod
    def now(cls) -> "Autocast":
        """Return autocast as it is, on the CPU and on the device that torch accelerates with."""
        accelerator = torch.accelerator.current_accelerator()
        devices = ["cpu", *([] if accelerator is None else [accelerator.type])]
        return cls(
            {
                device: torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
                for device in devices
            }
        )

    @classmethod
    @contextmanager
    def off(cls) -> Iterator[None]:
        """Switch autocast off."""
        with cls(dict.fromkeys(cls.now().dtypes)).again():
            yield

    @contextmanager
    def again(self) -> Iterator[None]:
        """Set autocast to what it was, whatever it is now."""
        now = Autocast.now().dtypes
        with ExitStack() as undo:
            for device, dtype in self.dtypes.items():
                if dtype != now.get(device):
                    context = torch.autocast(device, dtype=dtype, enabled=dtype is not None)
                    undo.enter_context(context)
            yield
