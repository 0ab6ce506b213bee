"""The parts of a pipeline: networks, schedulers, autoencoder, text encoders, and the refusal of unusable ones."""

from typing import Any

import torch

from ..errors import ModelError
from .hooks.surroundings import is_offloaded, own_network

DENOISERS = (
    "unet",
    "transformer",
    "transformer_2",
    "dit",
    "prior",
    "prior_prior",
    "decoder",
    "super_res_first",
    "super_res_last",
)
"""Names that diffusers' pipelines have for their denoisers."""
AUTOENCODERS = ("vae", "vqvae", "movq", "vqgan")
TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "bert")


def parts_of(pipeline: Any, names: tuple[str, ...]) -> list[Any]:
    """Return those of the named parts that a pipeline has."""
    parts = [getattr(pipeline, name, None) for name in names]
    return [part for part in parts if part is not None]


def networks_of(pipeline: Any) -> dict[str, torch.nn.Module]:
    """Return the networks of a pipeline by their names, each once."""
    found: dict[str, torch.nn.Module] = {}
    for name, part in _components(pipeline).items():
        if isinstance(part, torch.nn.Module) and part not in found.values():
            found[name] = part
    return found


def schedulers_of(pipeline: Any) -> dict[str, Any]:
    """Return the schedulers of a pipeline by their names: one, or one for each of several stages."""
    return {name: part for name, part in _components(pipeline).items() if hasattr(part, "set_timesteps")}


def _components(pipeline: Any) -> dict[str, Any]:
    """Return the registered parts of a pipeline, and those that it only has as attributes."""
    registered = getattr(pipeline, "components", None) or {}
    named = {name: getattr(pipeline, name, None) for name in (*DENOISERS, "scheduler")}
    return {**dict(registered), **{name: part for name, part in named.items() if part is not None}}


def scheduler_of(pipeline: Any) -> Any:
    """Return the scheduler of a pipeline; the last one of a pipeline with several stages; None if there is none."""
    own = getattr(pipeline, "scheduler", None)
    return own if own is not None else next(reversed(schedulers_of(pipeline).values()), None)


def denoiser_of(pipeline: Any) -> torch.nn.Module:
    """Return the U-Net or transformer of a pipeline, without what compiles it; raises `ModelError` if it has none."""
    denoisers = parts_of(pipeline, DENOISERS)
    if not denoisers:
        raise ModelError(
            f"{type(pipeline).__name__} has no denoiser: Denoscope listens at pipe.unet, pipe.transformer and other "
            f"parts with one of the names {', '.join(DENOISERS[2:])}. Give a diffusers pipeline that has one of them."
        )
    return own_network(denoisers[0])


def autoencoder_of(pipeline: Any) -> Any:
    """Return the part that turns samples into pictures; None if samples are pixels."""
    return next(iter(parts_of(pipeline, AUTOENCODERS)), None)


def size_multiple(pipeline: Any) -> int:
    """Return the pixels that a side is a multiple of: 8 for latent pipelines, the U-Net's own reduction for pixels."""
    if autoencoder_of(pipeline) is not None:
        return 8
    denoiser: Any = denoiser_of(pipeline)
    return int(2 ** max(len(denoiser.config.get("block_out_channels", ())) - 1, 0))


def refuse_unusable(pipeline: Any) -> None:
    """Raise `ModelError`, naming the part, for weights without numbers (meta) or made under inference mode."""
    for name, part in getattr(pipeline, "components", {}).items():
        if not isinstance(part, torch.nn.Module) or is_offloaded(part):
            continue
        if any(weights.is_meta for weights in part.parameters()):
            raise ModelError(
                f"pipe.{name} ({type(part).__name__}) is on the device meta, which holds shapes and no numbers. "
                "Load its weights, or load the pipeline again without the device meta."
            )
        if any(weights.is_inference() for weights in part.parameters()):
            raise ModelError(
                f"The weights of pipe.{name} ({type(part).__name__}) were made under torch.inference_mode, so no "
                "gradients can be computed with them. Load the pipeline outside of it."
            )


def working_device(pipeline: Any) -> torch.device:
    """Return the device that a pipeline works on, which offloaded weights are not on between calls.

    It is the pipeline's own word for it; that of the denoiser's weights for a pipeline that has none.
    """
    own = getattr(pipeline, "_execution_device", None)
    return own if isinstance(own, torch.device) else next(denoiser_of(pipeline).parameters()).device
