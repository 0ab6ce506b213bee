"""Parts of small U-Net pipelines: U-Nets, control networks, image encoders, and the pictures that calls are given."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from PIL import Image
from small import SCHEDULERS, autoencoder, clip_text, processor_named, tokenizer

from families.family import Family

PROMPT = {"prompt": "a red circle", "negative_prompt": "a blue square", "num_inference_steps": 4}
SMALL = {"height": 32, "width": 32}


def picture(size: int = 32, seed: int = 0) -> Image.Image:
    """A picture of coloured blocks."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((size, size), Image.Resampling.NEAREST)


def mask(size: int = 32) -> Image.Image:
    """A mask whose left half is to be painted."""
    covered = np.zeros((size, size), dtype=np.uint8)
    covered[:, : size // 2] = 255
    return Image.fromarray(covered)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Standard normal numbers that are the same at every call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


CHANGED = dict(image=picture(), strength=0.75)
MASKED = dict(image=picture(), mask_image=mask(), **SMALL)
CONTROLLED = dict(image=picture(), **SMALL)


def family(build: Callable[[], Any], layouts: str, **arguments: Any) -> Family:
    """A family that is asked for a red circle."""
    return Family(build, lambda: deepcopy(PROMPT | arguments), frozenset(layouts.split()))


def promptless(build: Callable[[], Any], layouts: str, **arguments: Any) -> Family:
    """A family whose call takes the number of steps and these arguments alone."""
    return Family(build, lambda: deepcopy({"num_inference_steps": 4, **arguments}), frozenset(layouts.split()))


def awake(module: torch.nn.Module, spread: float = 0.1) -> Any:
    """Fill the weights that start at zero, so that the branches behind them count, and return the module."""
    for weight in module.parameters():
        if weight.ndim != 1 and not weight.any():
            torch.nn.init.normal_(weight, std=spread)
    return module.eval()


def louder(module: torch.nn.Module, *names: str, times: float = 3.0) -> Any:
    """Raise the weights of the layers below these names, and return the module."""
    with torch.no_grad():
        for place, layer in module.named_modules():
            if isinstance(getattr(layer, "weight", None), torch.Tensor) and any(name in place for name in names):
                layer.weight.mul_(times)
    return module


def strong(unet: torch.nn.Module) -> Any:
    """Raise the part that the text and the sample have in a U-Net's prediction, and return the U-Net."""
    return awake(louder(unet, "conv_out", "attn2.to_v", "attn2.to_out"))


def vivid(codes: torch.nn.Module, contrast: float = 3.0, spread: float = 1.0) -> Any:
    """Raise the contrast of an autoencoder's pictures, and the spread of its latents, and return it."""
    louder(codes, "decoder.conv_out", times=contrast)
    with torch.no_grad():
        codes.quant_conv.weight[: codes.config.latent_channels] *= spread  # the mean alone, no variance
    return codes


def text_unet(**changes: Any) -> diffusers.UNet2DConditionModel:
    """A U-Net in the order of Stable Diffusion's: cross-attention in the larger block."""
    sizes = dict(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=4,
        cross_attention_dim=32,
        norm_num_groups=8,
    )
    return strong(diffusers.UNet2DConditionModel(**(sizes | changes)))


def sd_parts(scheduler: str = "dpm-solver++", **changes: Any) -> dict[str, Any]:
    """Every part of a Stable Diffusion pipeline, its U-Net with the changes named."""
    torch.manual_seed(0)
    return dict(
        vae=vivid(autoencoder(), spread=20.0),
        text_encoder=clip_text(),
        tokenizer=tokenizer(),
        unet=text_unet(**changes),
        scheduler=SCHEDULERS[scheduler](),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


XL = dict(
    attention_head_dim=(2, 4),
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=8,
    projection_class_embeddings_input_dim=6 * 8 + 32,
    cross_attention_dim=64,
)
"""What SDXL's U-Net adds: the size of the picture beside the time step, and two encoders' text."""


def sdxl_parts(scheduler: str = "euler", **changes: Any) -> dict[str, Any]:
    """Every part of an SDXL pipeline, its U-Net with the changes named."""
    torch.manual_seed(0)
    return dict(
        vae=vivid(autoencoder(), spread=20.0),
        text_encoder=clip_text(),
        text_encoder_2=clip_text(projected=True),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        unet=text_unet(**XL, **changes),
        scheduler=SCHEDULERS[scheduler](),
        add_watermarker=False,
    )


def picked(parts: dict[str, Any], *names: str) -> dict[str, Any]:
    """The parts of these names."""
    return {name: parts[name] for name in names}


def controlnet(unet: diffusers.UNet2DConditionModel) -> diffusers.ControlNetModel:
    """A control network for a U-Net, whose picture is halved twice."""
    network = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16, 16))
    return louder(awake(network), "controlnet_cond_embedding")


def clip_vision(width: int = 32, projected: bool = True) -> torch.nn.Module:
    """A small picture tower of CLIP, for pictures of 16 pixels."""
    config = transformers.CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        projection_dim=width,
        image_size=16,
        patch_size=8,
    )
    kind = transformers.CLIPVisionModelWithProjection if projected else transformers.CLIPVisionModel
    return kind(config).eval()


def clip_processor() -> Any:
    """The processor of pictures for `clip_vision`."""
    return processor_named("CLIP")(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
