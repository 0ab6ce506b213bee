"""A pipeline put back as it was: what its own call changes on it, and would leave changed when it is broken off."""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .trees import layers_in

PROCESSOR = "processor"
"""The name that attention layers have for the part that computes the attention."""


@contextmanager
def restored(pipeline: Any, others: Iterable[Any] = (), *, after_failure_only: bool = False) -> Iterator[None]:
    """Put a pipeline back at the end: attributes, schedulers and `others`, attention processors, switches and dtypes.

    A call that is broken off leaves some of them changed: perturbed attention's processors, an autoencoder in single
    precision, a scheduler in the middle of its steps, layers that GLIGEN switches off after its first steps.
    `after_failure_only` leaves a call that succeeds alone.
    """
    put_back = _saved(pipeline, list(others))
    succeeded = False
    try:
        yield
        succeeded = True
    finally:
        if not (succeeded and after_failure_only):
            put_back()


def _saved(pipeline: Any, others: list[Any]) -> Any:
    """Return a function that puts everything back."""
    plain = [pipeline, *others, *(part for part in _parts(pipeline) if not isinstance(part, torch.nn.Module))]
    attributes = [(owner, _copied(vars(owner))) for owner in plain if hasattr(owner, "__dict__")]
    modules = [part for part in _parts(pipeline) if isinstance(part, torch.nn.Module)]
    dtypes = [(module, _dtype(module)) for module in modules]
    layers = [layer for module in modules for layer in layers_in(module)]
    processors = [
        (layer, layer.processor) for layer in layers if PROCESSOR in vars(layer) or PROCESSOR in layer._modules
    ]
    switches = [(layer, {key: value for key, value in vars(layer).items() if type(value) is bool}) for layer in layers]

    def put_back() -> None:
        for owner, values in attributes:
            vars(owner).clear()
            vars(owner).update({key: _refilled(value, content) for key, (value, content) in values.items()})
        for layer, processor in processors:
            if layer.processor is not processor:
                layer.processor = processor
        for layer, flags in switches:
            vars(layer).update(flags)
        for module, dtype in dtypes:
            if dtype is not None and _dtype(module) != dtype:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    module.to(dtype)
        _free(pipeline, modules)

    return put_back


def _free(pipeline: Any, modules: Iterable[Any]) -> None:
    """Do what a pipeline does at the end of its call: empty diffusers' caches and take offloaded weights away."""
    for module in modules:
        if getattr(module, "is_cache_enabled", False):
            module._reset_stateful_cache()
    if getattr(pipeline, "_all_hooks", None):
        pipeline.maybe_free_model_hooks()


def _parts(pipeline: Any) -> list[Any]:
    """Return the parts that a call may change: networks, schedulers and guiders, but no tokenizers."""
    values = getattr(pipeline, "components", None) or vars(pipeline)
    changing = ("set_timesteps", "set_state")
    return [
        part
        for part in values.values()
        if isinstance(part, torch.nn.Module) or any(hasattr(part, name) for name in changing)
    ]


def _copied(values: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return attributes, lists and dicts with copies beside them, so that what is written into these is undone too."""
    return {key: (value, value.copy() if type(value) in (list, dict) else None) for key, value in values.items()}


def _refilled(value: Any, content: Any) -> Any:
    """Return an attribute's value, the very object, a list or dict with its former content."""
    if isinstance(content, list):
        value[:] = content
    elif isinstance(content, dict):
        value.clear()
        value.update(content)
    return value


def _dtype(module: torch.nn.Module) -> torch.dtype | None:
    return next((weights.dtype for weights in module.parameters()), None)
