"""Transformers with joint attention of text and picture, on samples that keep their grid."""

from typing import Any

import diffusers
import small
import torch

from families.family import Family
from families.parts import AGAINST, SHORT, STEPS, TEXT, WIDE, autoencoder, awake, flow, mask, picture

CALL = {**TEXT, **AGAINST, **SHORT, **WIDE, **STEPS}


SD3 = dict(
    sample_size=8,
    patch_size=2,
    in_channels=16,
    attention_head_dim=8,
    num_attention_heads=4,
    joint_attention_dim=64,
    caption_projection_dim=32,
    pooled_projection_dim=64,
    out_channels=16,
)


def stable_diffusion_3(kind: str = "StableDiffusion3Pipeline", **parts: Any) -> Any:
    """Stable Diffusion 3 in one of its forms, which may have further `parts`."""
    torch.manual_seed(0)
    transformer = diffusers.SD3Transformer2DModel(**SD3, num_layers=2)
    return getattr(diffusers, kind)(
        transformer=awake(transformer),
        scheduler=flow(),
        vae=autoencoder(16, shift_factor=0.1),
        text_encoder=small.clip_text(projected=True),
        tokenizer=small.tokenizer(),
        text_encoder_2=small.clip_text(projected=True),
        tokenizer_2=small.tokenizer(),
        text_encoder_3=small.t5_text(width=64),
        tokenizer_3=small.t5_words(),
        **parts,
    )


def sd3_controlnet() -> Any:
    """Stable Diffusion 3 with a ControlNet of one layer."""
    torch.manual_seed(1)
    control = diffusers.SD3ControlNetModel(**SD3, num_layers=1)
    return stable_diffusion_3("StableDiffusion3ControlNetPipeline", controlnet=awake(control))


def aura_flow() -> Any:
    """AuraFlow: joint layers, then single ones over text and picture in one sequence."""
    torch.manual_seed(0)
    transformer = diffusers.AuraFlowTransformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=32,
        out_channels=4,
        pos_embed_max_size=256,
    )
    return diffusers.AuraFlowPipeline(
        tokenizer=small.t5_words(),
        text_encoder=small.t5_text("UMT5"),
        vae=autoencoder(),
        transformer=awake(transformer),
        scheduler=flow(),
    )


def cog_view_3() -> Any:
    """CogView3-Plus: one sequence of text and picture, told the size of the picture."""
    torch.manual_seed(0)
    transformer = diffusers.CogView3PlusTransformer2DModel(
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        out_channels=4,
        text_embed_dim=32,
        time_embed_dim=8,
        condition_dim=2,
        pos_embed_max_size=16,
        sample_size=16,
    )
    return diffusers.CogView3PlusPipeline(
        tokenizer=small.t5_words(),
        text_encoder=small.t5_text(),
        vae=autoencoder(),
        transformer=awake(transformer),
        scheduler=diffusers.CogVideoXDDIMScheduler(snr_shift_scale=4.0, prediction_type="v_prediction"),
    )


IMAGE = {"image": picture(), "strength": 0.7}

FAMILIES: dict[str, Family] = {
    "sd3": Family(stable_diffusion_3, lambda: {**CALL}, frozenset({"image"})),
    "sd3-img2img": Family(
        lambda: stable_diffusion_3("StableDiffusion3Img2ImgPipeline"), lambda: {**CALL, **IMAGE}, frozenset({"img2img"})
    ),
    "sd3-inpaint": Family(
        lambda: stable_diffusion_3("StableDiffusion3InpaintPipeline"),
        lambda: {**CALL, **IMAGE, "mask_image": mask()},
        frozenset({"inpaint"}),
    ),
    "sd3-controlnet": Family(
        sd3_controlnet,
        lambda: {**CALL, "control_image": picture()},
        frozenset({"image", "controlnet", "global-noise"}),
    ),
    "sd3-pag": Family(
        lambda: stable_diffusion_3("StableDiffusion3PAGPipeline", pag_applied_layers="blocks.1"),
        lambda: {**CALL, "pag_scale": 2.0},
        frozenset({"image", "pag"}),
    ),
    "sd3-skip-layer": Family(
        stable_diffusion_3,
        lambda: {**CALL, "skip_guidance_layers": [1], "skip_layer_guidance_stop": 0.8},
        frozenset({"image", "skip-layer"}),
    ),
    "aura-flow": Family(aura_flow, lambda: {**CALL}, frozenset({"image"})),
    "cog-view-3": Family(cog_view_3, lambda: {**CALL}, frozenset({"image"})),
}
