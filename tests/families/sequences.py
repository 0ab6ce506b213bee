"""Transformers on one sequence of text and picture, with words of language models: Lumina 2, Z-Image, CogView4, ..."""

from typing import Any

import diffusers
import small
import torch

from families.family import Family
from families.language import language_model, qwen_3_vl, words
from families.packed import codes_of_flux_2
from families.parts import AGAINST, SHORT, STEPS, TEXT, WIDE, autoencoder, awake, flow, picture
from families.qwen import codes_of_qwen

CALL = {**TEXT, **WIDE, **STEPS}
GUIDED = {**CALL, **AGAINST, **SHORT}
IMAGE = {"image": picture(), "strength": 0.7}


def lumina_2() -> Any:
    """Lumina 2: words of Gemma before the picture, a call for each half of guidance."""
    torch.manual_seed(0)
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        hidden_size=32,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        scaling_factor=1.0,
        axes_dim_rope=(8, 4, 4),
        axes_lens=(128, 32, 32),
        cap_feat_dim=32,
    )
    return diffusers.Lumina2Pipeline(
        tokenizer=words("<bos>"),
        text_encoder=language_model("Gemma2"),
        vae=autoencoder(levels=4, shift_factor=0.1),
        transformer=awake(transformer),
        scheduler=flow(),
    )


Z_IMAGE = dict(all_patch_size=(2,), all_f_patch_size=(1,), dim=32, n_refiner_layers=1, n_heads=2, n_kv_heads=2)


def z_image(kind: str = "ZImagePipeline", **parts: Any) -> Any:
    """Z-Image in one of its forms: lists of samples and of texts, words of Qwen3."""
    torch.manual_seed(0)
    transformer = diffusers.ZImageTransformer2DModel(
        **Z_IMAGE,
        in_channels=16,
        n_layers=2,
        qk_norm=True,
        cap_feat_dim=32,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    return getattr(diffusers, kind)(
        scheduler=flow(),
        vae=autoencoder(16, shift_factor=0.1),
        text_encoder=language_model("Qwen3"),
        tokenizer=words(),
        transformer=awake(transformer),
        **parts,
    )


def z_image_controlnet() -> Any:
    """Z-Image with a ControlNet on its first layer."""
    torch.manual_seed(1)
    control = diffusers.ZImageControlNetModel(
        **Z_IMAGE,
        control_layers_places=[0],
        control_refiner_layers_places=[0],
        control_in_dim=16,
        add_control_noise_refiner="control_noise_refiner",
    )
    return z_image("ZImageControlNetPipeline", controlnet=awake(control))


def cog_view_4(kind: str = "CogView4Pipeline", channels: int = 4) -> Any:
    """CogView4 in one of its forms: words of GLM, told the size of the picture."""
    torch.manual_seed(0)
    transformer = diffusers.CogView4Transformer2DModel(
        patch_size=2,
        in_channels=channels,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        out_channels=4,
        text_embed_dim=32,
        time_embed_dim=8,
        condition_dim=4,
        rope_axes_dim=(64, 64),
    )
    return getattr(diffusers, kind)(
        tokenizer=words(side="left"),
        text_encoder=language_model("Glm"),
        vae=autoencoder(levels=4),
        transformer=awake(transformer),
        scheduler=flow(base_shift=0.25, max_shift=0.75, base_image_seq_len=256, use_dynamic_shifting=True),
    )


def hi_dream() -> Any:
    """HiDream: four text encoders, experts, words of every layer of Llama."""
    torch.manual_seed(0)
    transformer = diffusers.HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_channels=[32, 32],
        text_emb_dim=64,
        num_routed_experts=2,
        num_activated_experts=1,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(32, 32),
        llama_layers=(0, 1),
        force_inference_output=True,
    )
    pipeline = diffusers.HiDreamImagePipeline(
        scheduler=flow(),
        vae=autoencoder(shift_factor=0.1),
        text_encoder=small.clip_text(projected=True),
        tokenizer=small.tokenizer(),
        text_encoder_2=small.clip_text(projected=True),
        tokenizer_2=small.tokenizer(),
        text_encoder_3=small.t5_text(),
        tokenizer_3=small.t5_words(),
        text_encoder_4=language_model("Llama", "ForCausalLM", attn_implementation="eager"),
        tokenizer_4=words(),
        transformer=awake(transformer),
    )
    pipeline.default_sample_size = 10  # or it enlarges every picture to 512 x 512
    return pipeline


def ernie() -> Any:
    """ERNIE-Image: samples of packed channels that keep their grid."""
    torch.manual_seed(0)
    transformer = diffusers.ErnieImageTransformer2DModel(
        hidden_size=32,
        num_attention_heads=2,
        num_layers=2,
        ffn_hidden_size=32,
        in_channels=16,
        out_channels=16,
        patch_size=1,
        text_in_dim=32,
        rope_axes_dim=(8, 4, 4),
    )
    return diffusers.ErnieImagePipeline(
        transformer=awake(transformer),
        vae=codes_of_flux_2(),
        text_encoder=language_model("Qwen3"),
        tokenizer=words(),
        scheduler=flow(),
    )


def ideogram() -> Any:
    """Ideogram 4: one transformer for the text, another for the half of guidance without one."""
    torch.manual_seed(0)
    sizes = dict(
        in_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        intermediate_size=32,
        adaln_dim=16,
        llm_features_dim=13 * 32,
        mrope_section=(4, 2, 2),
    )
    return diffusers.Ideogram4Pipeline(
        scheduler=flow(),
        vae=codes_of_flux_2(),
        text_encoder=qwen_3_vl(layers=36),
        tokenizer=words(),
        transformer=awake(diffusers.Ideogram4Transformer2DModel(**sizes)),
        unconditional_transformer=awake(diffusers.Ideogram4Transformer2DModel(**sizes)),
    )


def nucleus() -> Any:
    """Nucleus-Image: experts chosen by position, words of Qwen3-VL."""
    torch.manual_seed(0)
    transformer = diffusers.NucleusMoEImageTransformer2DModel(
        patch_size=2,
        in_channels=64,
        out_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(8, 4, 4),
        mlp_ratio=8.0,
        dense_moe_strategy="leave_first_block_dense",
        num_experts=2,
        moe_intermediate_dim=16,
        capacity_factors=[2.0, 2.0],
    )
    return diffusers.NucleusMoEImagePipeline(
        transformer=awake(transformer),
        scheduler=flow(),
        vae=codes_of_qwen(),
        text_encoder=qwen_3_vl(),
        processor=words(),
    )


FAMILIES: dict[str, Family] = {
    "lumina-2": Family(lumina_2, lambda: {**GUIDED, "max_sequence_length": 64}, frozenset({"image", "true-cfg"})),
    "z-image": Family(z_image, lambda: {**GUIDED}, frozenset({"image", "lists"})),
    "z-image-img2img": Family(
        lambda: z_image("ZImageImg2ImgPipeline"), lambda: {**GUIDED, **IMAGE}, frozenset({"img2img", "lists"})
    ),
    "z-image-controlnet": Family(
        z_image_controlnet,
        lambda: {**GUIDED, "control_image": picture()},
        frozenset({"image", "lists", "controlnet"}),
    ),
    "cog-view-4": Family(cog_view_4, lambda: {**GUIDED}, frozenset({"image", "true-cfg"})),
    "cog-view-4-control": Family(
        lambda: cog_view_4("CogView4ControlPipeline", channels=8),
        lambda: {**GUIDED, "control_image": picture()},
        frozenset({"image", "true-cfg", "control", "global-noise"}),
    ),
    "hi-dream": Family(hi_dream, lambda: {**GUIDED}, frozenset({"image"})),
    "ernie-image": Family(ernie, lambda: {**CALL, **AGAINST}, frozenset({"image"})),
    "ideogram-4": Family(
        ideogram,
        lambda: {**CALL, "guidance_scale": 5.0, "guidance_schedule": None, "max_sequence_length": 32},
        frozenset({"image", "packed", "true-cfg", "two-denoisers"}),
    ),
    "nucleus-image": Family(
        nucleus, lambda: {**CALL, **AGAINST, "return_index": -1}, frozenset({"image", "packed", "true-cfg"})
    ),
}
