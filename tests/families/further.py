"""Further forms of the picture families: inpainting, control and references joined, and a few families more."""

from typing import Any

import diffusers
import torch

from families import crossed, joint, packed, qwen, sequences
from families.family import Family
from families.language import Reader, language_model, qwen_3_vl, words
from families.parts import (
    AGAINST,
    STEPS,
    TEXT,
    WIDE,
    autoencoder,
    awake,
    flow,
    mask,
    old_names,
    picture,
    pipeline_kind,
    with_contrast,
)
from families.wan import TALL, tall_codes

IMAGE = {"image": picture(), "strength": 0.7}
PAINT = {**IMAGE, "mask_image": mask()}
CONTROL = {"control_image": picture()}


def klein(kind: str) -> Any:
    """Flux.2 Klein in another form."""
    return getattr(diffusers, kind)(**packed.flux_2_klein().components)


def flux_controlnet(kind: str) -> Any:
    """Flux with a ControlNet, in another form."""
    parts = packed.flux_controlnet().components
    return getattr(diffusers, kind)(
        **{name: part for name, part in parts.items() if name not in ("image_encoder", "feature_extractor")}
    )


def qwen_controlnet_inpaint() -> Any:
    """Qwen-Image with a ControlNet that is told the mask beside the picture."""
    torch.manual_seed(1)
    control = diffusers.QwenImageControlNetModel(**qwen.QWEN, num_layers=1, extra_condition_channels=4)
    return qwen.qwen_image("QwenImageControlNetInpaintPipeline", controlnet=awake(control))


def qwen_image_21() -> Any:
    """Qwen-Image 2.1: text before picture, each blind to what follows; the text's keys are kept between steps."""
    torch.manual_seed(0)
    transformer = diffusers.QwenImage21Transformer2DModel(
        in_channels=16,
        out_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        context_in_dim=32,
        mlp_ratio=2,
        axes_dims_rope=(8, 4, 4),
    )
    codes = diffusers.AutoencoderKLQwenImage21(
        base_dim=8,
        decoder_base_dim=8,
        z_dim=16,
        dim_mult=[1, 1, 2, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True, True, True],
        latents_mean=[0.0] * 16,
        latents_std=[1.0] * 16,
    )
    return diffusers.QwenImage21Pipeline(
        scheduler=flow(),
        vae=with_contrast(codes),
        text_encoder=qwen_3_vl(ending="ForConditionalGeneration"),
        processor=Reader(),
        transformer=awake(transformer),
    )


def sd3_controlnet_inpaint() -> Any:
    """Stable Diffusion 3 with a ControlNet that is told the mask beside the picture."""
    torch.manual_seed(1)
    control = diffusers.SD3ControlNetModel(**joint.SD3, num_layers=1, extra_conditioning_channels=1)
    return joint.stable_diffusion_3("StableDiffusion3ControlNetInpaintingPipeline", controlnet=awake(control))


def prx(pixel: bool = False) -> Any:
    """PRX on latents or pixels: words of Gemma that every block reads and none writes."""
    torch.manual_seed(0)
    kind = pipeline_kind("PRXPixelPipeline" if pixel else "PRXPipeline")
    parts = {} if pixel else {"vae": autoencoder(shift_factor=0.1)}
    transformer = diffusers.PRXTransformer2DModel(
        in_channels=3 if pixel else 4,
        patch_size=2,
        context_in_dim=32,
        hidden_size=32,
        mlp_ratio=2.0,
        num_heads=2,
        depth=2,
        axes_dim=[8, 8],
    )
    with old_names():
        return kind(
            transformer=awake(transformer),
            scheduler=flow(),
            text_encoder=language_model("Gemma2"),
            tokenizer=words("<bos>", length=16),
            **parts,
        )


def fibo() -> Any:
    """Bria FIBO: every block reads another layer of the language model."""
    torch.manual_seed(0)
    transformer = diffusers.BriaFiboTransformer2DModel(
        **{**packed.FLUX, "joint_attention_dim": 64},
        num_layers=1,
        in_channels=48,
        text_encoder_dim=32,
    )
    return diffusers.BriaFiboPipeline(
        transformer=awake(transformer),
        scheduler=flow(),
        vae=tall_codes(),
        text_encoder=language_model("SmolLM3", "ForCausalLM"),
        tokenizer=words(),
    )


KLEIN = {**packed.CALL, **packed.LAYERS}
KONTEXT = {"max_area": 32 * 48, "_auto_resize": False}
PRX = {**TEXT, **AGAINST, **WIDE, **STEPS, "use_resolution_binning": False}

FAMILIES: dict[str, Family] = {
    "sd3-pag-img2img": Family(
        lambda: joint.stable_diffusion_3("StableDiffusion3PAGImg2ImgPipeline", pag_applied_layers="blocks.1"),
        lambda: {**joint.CALL, **IMAGE, "pag_scale": 2.0},
        frozenset({"img2img", "pag"}),
    ),
    "sd3-controlnet-inpaint": Family(
        sd3_controlnet_inpaint,
        lambda: {**joint.CALL, **CONTROL, "control_mask": mask()},
        frozenset({"inpaint", "controlnet", "global-noise"}),
    ),
    "flux-control-img2img": Family(
        lambda: packed.flux("FluxControlImg2ImgPipeline", channels=32),
        lambda: {**packed.CALL, **IMAGE, **CONTROL},
        frozenset({"img2img", "packed", "control"}),
    ),
    "flux-control-inpaint": Family(
        lambda: packed.flux("FluxControlInpaintPipeline", channels=32),
        lambda: {**packed.CALL, **PAINT, **CONTROL},
        frozenset({"inpaint", "packed", "control"}),
    ),
    "flux-controlnet-img2img": Family(
        lambda: flux_controlnet("FluxControlNetImg2ImgPipeline"),
        lambda: {**packed.CALL, **IMAGE, **CONTROL},
        frozenset({"img2img", "packed", "controlnet"}),
    ),
    "flux-controlnet-inpaint": Family(
        lambda: flux_controlnet("FluxControlNetInpaintPipeline"),
        lambda: {**packed.CALL, **PAINT, **CONTROL},
        frozenset({"inpaint", "packed", "controlnet"}),
    ),
    "flux-kontext-inpaint": Family(
        lambda: packed.flux("FluxKontextInpaintPipeline"),
        lambda: {**packed.CALL, **PAINT, **KONTEXT},
        frozenset({"inpaint", "packed", "edit"}),
    ),
    "flux-2-klein-inpaint": Family(
        lambda: klein("Flux2KleinInpaintPipeline"),
        lambda: {**KLEIN, **PAINT},
        frozenset({"inpaint", "packed", "true-cfg"}),
    ),
    "flux-2-klein-kept": Family(
        lambda: klein("Flux2KleinKVPipeline"),
        lambda: {**KLEIN, **packed.BIG},
        frozenset({"edit", "packed", "kept-keys"}),
    ),
    "qwen-image-controlnet-inpaint": Family(
        qwen_controlnet_inpaint,
        lambda: {**qwen.TRUE_CFG, **CONTROL, "control_mask": mask()},
        frozenset({"inpaint", "packed", "true-cfg", "controlnet", "global-noise"}),
    ),
    "qwen-image-2.1": Family(
        qwen_image_21,
        lambda: {**TEXT, **AGAINST, **TALL, **STEPS, "true_cfg_scale": 3.0},
        frozenset({"image", "packed", "true-cfg", "kept-keys", "alpha"}),
    ),
    "qwen-image-2.1-edit": Family(
        qwen_image_21,
        lambda: {
            **TEXT,
            **AGAINST,
            **TALL,
            **STEPS,
            "true_cfg_scale": 3.0,
            "image": picture(64, 96),
            "output_resolution": 64,
        },
        frozenset({"edit", "packed", "true-cfg", "kept-keys", "alpha"}),
    ),
    "sana-sprint-img2img": Family(
        lambda: crossed.sana("SanaSprintImg2ImgPipeline", scheduler=diffusers.SCMScheduler(), sprint=True),
        lambda: (
            {
                name: value
                for name, value in {**crossed.SANA, "image": picture(32, 64), "strength": 0.7}.items()
                if name not in AGAINST
            }
            | {"intermediate_timesteps": None}
        ),
        frozenset({"img2img"}),
    ),
    "z-image-inpaint": Family(
        lambda: sequences.z_image("ZImageInpaintPipeline"),
        lambda: {**sequences.GUIDED, **PAINT},
        frozenset({"inpaint", "lists"}),
    ),
    "prx": Family(prx, lambda: {**PRX, "skip_text_cleaning": True}, frozenset({"image"})),
    "prx-pixel": Family(lambda: prx(pixel=True), lambda: {**PRX}, frozenset({"image", "pixel", "clean-output"})),
    "bria-fibo": Family(
        fibo, lambda: {**TEXT, **AGAINST, **TALL, **STEPS, "max_sequence_length": 16}, frozenset({"image", "packed"})
    ),
}
