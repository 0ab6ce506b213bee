"""Picture families that read Qwen's words and lay their latents out as one frame of a video: Qwen-Image and others."""

from typing import Any

import diffusers
import small
import torch
import transformers
from diffusers.guiders import AdaptiveProjectedMixGuidance

from families.family import Family
from families.language import long_clip, qwen_3_vl, qwen_vl, words
from families.parts import (
    AGAINST,
    SHORT,
    STEPS,
    TEXT,
    WIDE,
    autoencoder,
    awake,
    certain,
    flow,
    mask,
    picture,
    with_contrast,
)

GUIDED = {**TEXT, **AGAINST, **WIDE, **STEPS}
TRUE_CFG = {**GUIDED, **SHORT, "true_cfg_scale": 3.0}
IMAGE = {"image": picture(), "strength": 0.7}

CHANNELS = 4 * 16
QWEN = dict(
    patch_size=2,
    in_channels=CHANNELS,
    out_channels=16,
    attention_head_dim=16,
    num_attention_heads=2,
    joint_attention_dim=32,
    axes_dims_rope=(8, 4, 4),
)


def codes_of_qwen() -> Any:
    """Qwen-Image's autoencoder of videos, which halves pictures twice here."""
    codes = diffusers.AutoencoderKLQwenImage(
        base_dim=6, z_dim=16, dim_mult=[1, 2, 2], num_res_blocks=1, temperal_downsample=[False, True]
    )
    return with_contrast(certain(codes), 4.0)


def qwen_image(kind: str = "QwenImagePipeline", codes: Any = None, **parts: Any) -> Any:
    """Qwen-Image in one of its forms, with other `codes` than `codes_of_qwen`'s or further `parts`."""
    torch.manual_seed(0)
    transformer = diffusers.QwenImageTransformer2DModel(**QWEN, num_layers=2)
    return getattr(diffusers, kind)(
        scheduler=flow(),
        vae=codes or codes_of_qwen(),
        text_encoder=qwen_vl(),
        tokenizer=words(),
        transformer=awake(transformer),
        **parts,
    )


def qwen_controlnet() -> Any:
    """Qwen-Image with a ControlNet of one layer."""
    torch.manual_seed(1)
    control = diffusers.QwenImageControlNetModel(**QWEN, num_layers=1)
    return qwen_image("QwenImageControlNetPipeline", controlnet=awake(control))


def krea() -> Any:
    """Krea 2: one stream of text and picture, its words from two layers of Qwen3-VL fused."""
    torch.manual_seed(0)
    transformer = diffusers.Krea2Transformer2DModel(
        in_channels=CHANNELS,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        timestep_embed_dim=16,
        text_hidden_dim=32,
        num_text_layers=2,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=32,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(8, 4, 4),
    )
    return diffusers.Krea2Pipeline(
        scheduler=flow(),
        vae=codes_of_qwen(),
        text_encoder=qwen_3_vl(),
        tokenizer=words(),
        transformer=awake(transformer),
        text_encoder_select_layers=(1, 2),
    )


def hunyuan_image(guided: bool = True) -> Any:
    """HunyuanImage 2.1: guidance by a guider of diffusers, or distilled; bytes of quoted words beside Qwen's."""
    torch.manual_seed(0)
    transformer = diffusers.HunyuanImageTransformer2DModel(
        in_channels=16,
        out_channels=16,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=(1, 1),
        guidance_embeds=not guided,
        text_embed_dim=32,
        text_embed_2_dim=32,
        rope_axes_dim=(8, 8),
    )
    codes = diffusers.AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=16,
        block_out_channels=(32, 32, 32),
        layers_per_block=1,
        spatial_compression_ratio=4,
        sample_size=32,
        scaling_factor=0.75,
    )
    letters = transformers.ByT5Tokenizer(extra_ids=0)
    sizes = dict(d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.0)
    return diffusers.HunyuanImagePipeline(
        scheduler=flow(),
        vae=codes.eval(),
        text_encoder=qwen_vl(),
        tokenizer=words(),
        text_encoder_2=transformers.T5EncoderModel(transformers.T5Config(vocab_size=len(letters), **sizes)).eval(),
        tokenizer_2=letters,
        transformer=awake(transformer),
        guider=AdaptiveProjectedMixGuidance(guidance_scale=3.0) if guided else None,
    )


def kandinsky_5() -> Any:
    """Kandinsky 5: text and picture in two streams, samples with their channels last."""
    torch.manual_seed(0)
    transformer = diffusers.Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        in_text_dim=32,
        in_text_dim2=32,
        time_dim=16,
        out_visual_dim=4,
        model_dim=32,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=2,
        axes_dims=(4, 4, 8),
    )
    pipeline = diffusers.Kandinsky5T2IPipeline(
        transformer=awake(transformer),
        vae=autoencoder(4, levels=4),
        text_encoder=qwen_vl(),
        tokenizer=words(),
        text_encoder_2=long_clip(),
        tokenizer_2=small.tokenizer(),
        scheduler=flow(),
    )
    pipeline.resolutions = [(48, 32)]  # it knows pictures of a million pixels alone
    return pipeline


FAMILIES: dict[str, Family] = {
    "qwen-image": Family(qwen_image, lambda: {**TRUE_CFG}, frozenset({"image", "packed", "true-cfg"})),
    "qwen-image-img2img": Family(
        lambda: qwen_image("QwenImageImg2ImgPipeline"),
        lambda: {**TRUE_CFG, **IMAGE},
        frozenset({"img2img", "packed", "true-cfg"}),
    ),
    "qwen-image-inpaint": Family(
        lambda: qwen_image("QwenImageInpaintPipeline"),
        lambda: {**TRUE_CFG, **IMAGE, "mask_image": mask()},
        frozenset({"inpaint", "packed", "true-cfg"}),
    ),
    "qwen-image-controlnet": Family(
        qwen_controlnet,
        lambda: {**TRUE_CFG, "control_image": picture()},
        frozenset({"image", "packed", "true-cfg", "controlnet"}),
    ),
    "krea-2": Family(krea, lambda: {**GUIDED, **SHORT}, frozenset({"image", "packed", "true-cfg"})),
    "hunyuan-image": Family(hunyuan_image, lambda: {**GUIDED}, frozenset({"image", "true-cfg", "guider"})),
    "hunyuan-image-distilled": Family(
        lambda: hunyuan_image(guided=False), lambda: {**TEXT, **WIDE, **STEPS}, frozenset({"image"})
    ),
    "kandinsky-5": Family(kandinsky_5, lambda: {**GUIDED, **SHORT}, frozenset({"image", "true-cfg"})),
}
