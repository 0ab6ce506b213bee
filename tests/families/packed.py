"""Transformers on packed samples, (pictures, positions, channels): Flux in its forms, and the families after it."""

from typing import Any

import diffusers
import small
import torch

from families.family import Family
from families.language import language_model, mistral_vl, qwen_vl, words
from families.parts import (
    AGAINST,
    SHORT,
    STEPS,
    TEXT,
    WIDE,
    autoencoder,
    awake,
    flow,
    mask,
    old_names,
    picture,
    with_contrast,
)

CALL = {**TEXT, **SHORT, **WIDE, **STEPS}
GUIDED = {**CALL, **AGAINST}
IMAGE = {"image": picture(), "strength": 0.7}
LATENTS = 4
CHANNELS = 4 * LATENTS
"""Channels of a packed position: two by two places of the latent picture."""

FLUX = dict(
    patch_size=1,
    num_single_layers=1,
    attention_head_dim=16,
    num_attention_heads=2,
    joint_attention_dim=32,
    axes_dims_rope=(4, 4, 8),
)


def flux(
    kind: str = "FluxPipeline", channels: int = CHANNELS, distilled: bool = True, image: bool = False, **parts: Any
) -> Any:
    """Flux in one of its forms: `channels` read by the transformer, `distilled` guidance, further `parts`."""
    torch.manual_seed(0)
    transformer = diffusers.FluxTransformer2DModel(
        **FLUX,
        num_layers=1,
        in_channels=channels,
        out_channels=CHANNELS,
        pooled_projection_dim=32,
        guidance_embeds=distilled,
    )
    return getattr(diffusers, kind)(
        transformer=awake(transformer),
        scheduler=flow(),
        vae=autoencoder(LATENTS, shift_factor=0.1),
        text_encoder=small.clip_text(),
        tokenizer=small.tokenizer(),
        text_encoder_2=small.t5_text(),
        tokenizer_2=small.t5_words(),
        **parts,
    )


def flux_controlnet() -> Any:
    """Flux with a ControlNet of one joint layer."""
    torch.manual_seed(1)
    with old_names():
        control = diffusers.FluxControlNetModel(
            **FLUX, num_layers=1, in_channels=CHANNELS, pooled_projection_dim=32, guidance_embeds=True
        )
    return flux("FluxControlNetPipeline", controlnet=awake(control))


def chroma(kind: str = "ChromaPipeline") -> Any:
    """Chroma: Flux without its pooled text, its modulations from one small network."""
    torch.manual_seed(0)
    approximator = dict(approximator_num_channels=16, approximator_hidden_dim=16, approximator_layers=1)
    with old_names():
        transformer = diffusers.ChromaTransformer2DModel(**FLUX, num_layers=1, in_channels=CHANNELS, **approximator)
    return getattr(diffusers, kind)(
        transformer=awake(transformer),
        scheduler=flow(),
        vae=autoencoder(LATENTS, shift_factor=0.1),
        text_encoder=small.t5_text(),
        tokenizer=small.t5_words(),
    )


def bria() -> Any:
    """Bria 3.2: Flux's blocks, T5's words, guidance over a doubled batch."""
    torch.manual_seed(0)
    transformer = diffusers.BriaTransformer2DModel(**FLUX, num_layers=1, in_channels=CHANNELS)
    return diffusers.BriaPipeline(
        transformer=awake(transformer),
        scheduler=flow(),
        vae=autoencoder(LATENTS, shift_factor=0.1),
        text_encoder=small.t5_text(),
        tokenizer=small.t5_words(),
    )


def ovis() -> Any:
    """Ovis-Image: Flux's blocks with Qwen3's words."""
    torch.manual_seed(0)
    transformer = diffusers.OvisImageTransformer2DModel(
        **FLUX, num_layers=1, in_channels=CHANNELS, out_channels=CHANNELS
    )
    return diffusers.OvisImagePipeline(
        transformer=awake(transformer),
        scheduler=flow(),
        vae=autoencoder(LATENTS, shift_factor=0.1),
        text_encoder=language_model("Qwen3"),
        tokenizer=words(),
    )


def codes_of_flux_2() -> Any:
    """Flux.2's autoencoder, which normalises its packed codes by running averages."""
    codes = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=LATENTS,
        norm_num_groups=4,
        layers_per_block=1,
    )
    return with_contrast(codes)


def flux_2_transformer(distilled: bool) -> Any:
    """Flux.2's transformer: four axes of positions, modulations shared by its blocks."""
    return awake(
        diffusers.Flux2Transformer2DModel(
            in_channels=CHANNELS,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=96,
            timestep_guidance_channels=16,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=distilled,
        )
    )


def flux_2() -> Any:
    """Flux.2: words of Mistral from three of its layers side by side, distilled guidance."""
    torch.manual_seed(0)
    return diffusers.Flux2Pipeline(
        scheduler=flow(),
        vae=codes_of_flux_2(),
        text_encoder=mistral_vl(),
        tokenizer=words(),
        transformer=flux_2_transformer(distilled=True),
    )


def flux_2_klein() -> Any:
    """Flux.2 Klein: words of Qwen3, guidance by a second call."""
    torch.manual_seed(0)
    return diffusers.Flux2KleinPipeline(
        scheduler=flow(),
        vae=codes_of_flux_2(),
        text_encoder=language_model("Qwen3", "ForCausalLM", num_hidden_layers=3),
        tokenizer=words(),
        transformer=flux_2_transformer(distilled=False),
    )


def longcat() -> Any:
    """LongCat-Image: Flux's blocks with Qwen2.5-VL's words, always 32 of them; its codes have 16 channels."""
    torch.manual_seed(0)
    transformer = diffusers.LongCatImageTransformer2DModel(
        **FLUX, num_layers=1, in_channels=4 * 16, pooled_projection_dim=32
    )
    pipeline = diffusers.LongCatImagePipeline(
        scheduler=flow(),
        vae=autoencoder(16, shift_factor=0.1),
        text_encoder=qwen_vl(),
        tokenizer=words(),
        text_processor=words(),  # it rewrites prompts, which no test asks for
        transformer=awake(transformer),
    )
    pipeline.tokenizer_max_length = 32
    return pipeline


LAYERS = {"text_encoder_out_layers": (1, 2, 3)}
BIG = {"image": picture(64, 96)}

FAMILIES: dict[str, Family] = {
    "flux": Family(flux, lambda: {**CALL, "guidance_scale": 3.5}, frozenset({"image", "packed"})),
    "flux-schnell": Family(lambda: flux(distilled=False), lambda: {**CALL}, frozenset({"image", "packed"})),
    "flux-true-cfg": Family(
        flux, lambda: {**GUIDED, "true_cfg_scale": 3.0}, frozenset({"image", "packed", "true-cfg"})
    ),
    "flux-img2img": Family(
        lambda: flux("FluxImg2ImgPipeline"), lambda: {**CALL, **IMAGE}, frozenset({"img2img", "packed"})
    ),
    "flux-inpaint": Family(
        lambda: flux("FluxInpaintPipeline"),
        lambda: {**CALL, **IMAGE, "mask_image": mask()},
        frozenset({"inpaint", "packed"}),
    ),
    "flux-fill": Family(
        lambda: flux("FluxFillPipeline", channels=2 * CHANNELS + 4 * 16),
        lambda: {**CALL, "image": picture(), "mask_image": mask()},
        frozenset({"inpaint", "packed"}),
    ),
    "flux-control": Family(
        lambda: flux("FluxControlPipeline", channels=2 * CHANNELS),
        lambda: {**CALL, "control_image": picture()},
        frozenset({"image", "packed", "control"}),
    ),
    "flux-controlnet": Family(
        flux_controlnet, lambda: {**CALL, "control_image": picture()}, frozenset({"image", "packed", "controlnet"})
    ),
    "flux-kontext": Family(
        lambda: flux("FluxKontextPipeline"),
        lambda: {**CALL, "image": picture(), "max_area": 32 * 48, "_auto_resize": False},
        frozenset({"edit", "packed"}),
    ),
    "chroma": Family(chroma, lambda: {**GUIDED}, frozenset({"image", "packed", "true-cfg"})),
    "chroma-img2img": Family(
        lambda: chroma("ChromaImg2ImgPipeline"),
        lambda: {**GUIDED, **IMAGE},
        frozenset({"img2img", "packed", "true-cfg"}),
    ),
    "bria": Family(bria, lambda: {**GUIDED}, frozenset({"image", "packed"})),
    "ovis-image": Family(ovis, lambda: {**GUIDED}, frozenset({"image", "packed", "true-cfg"})),
    "flux-2": Family(flux_2, lambda: {**CALL, **LAYERS, "max_sequence_length": 48}, frozenset({"image", "packed"})),
    "flux-2-edit": Family(
        flux_2, lambda: {**CALL, **LAYERS, **BIG, "max_sequence_length": 48}, frozenset({"edit", "packed"})
    ),
    "flux-2-klein": Family(flux_2_klein, lambda: {**CALL, **LAYERS}, frozenset({"image", "packed", "true-cfg"})),
    "flux-2-klein-edit": Family(
        flux_2_klein, lambda: {**CALL, **LAYERS, **BIG}, frozenset({"edit", "packed", "true-cfg"})
    ),
    "longcat-image": Family(
        longcat,
        lambda: {**TEXT, **AGAINST, **WIDE, **STEPS, "enable_prompt_rewrite": False},
        frozenset({"image", "packed", "true-cfg"}),
    ),
}
