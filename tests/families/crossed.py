"""Transformers that read their text, or a class, by cross-attention or modulation: PixArt, Sana, Hunyuan-DiT, DiT."""

from typing import Any

import diffusers
import small
import torch

from families.family import Family
from families.language import bert, language_model, words
from families.parts import AGAINST, SHORT, STEPS, TEXT, WIDE, autoencoder, awake, flow, picture

GUIDED = {**TEXT, **AGAINST, **WIDE, **STEPS}
EXACT = {"use_resolution_binning": False}
PIXART = {**GUIDED, **SHORT, **EXACT, "clean_caption": False}
SANA = {**GUIDED, **SHORT, **EXACT, "width": 64, "complex_human_instruction": None}


def pixart(kind: str, sizes: bool, **parts: Any) -> Any:
    """PixArt in one of its forms; `sizes` says that it is told the size and shape of the picture."""
    torch.manual_seed(0)
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=128 if sizes else 8,  # which is by what the pipeline knows that sizes are asked for
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=32,
        in_channels=4,
        cross_attention_dim=24,
        out_channels=8,
        norm_type="ada_norm_single",
        use_additional_conditions=sizes,
    )
    return getattr(diffusers, kind)(
        tokenizer=small.t5_words(),
        text_encoder=small.t5_text(),
        vae=autoencoder(),
        transformer=awake(transformer),
        scheduler=small.SCHEDULERS["dpm-solver++"](),
        **parts,
    )


def dit() -> Any:
    """DiT: a class and no text, samples doubled for guidance."""
    torch.manual_seed(0)
    transformer = diffusers.DiTTransformer2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_zero",
    )
    return diffusers.DiTPipeline(
        transformer=awake(transformer), vae=autoencoder(), scheduler=small.SCHEDULERS["ddim"]()
    )


SANA_SIZES = dict(
    in_channels=4,
    out_channels=4,
    num_attention_heads=2,
    attention_head_dim=8,
    num_cross_attention_heads=2,
    cross_attention_head_dim=8,
    cross_attention_dim=16,
    caption_channels=32,
    patch_size=1,
    sample_size=8,
)


def codes_of_sana() -> Any:
    """Sana's autoencoder, without a distribution, which halves pictures twice here."""
    blocks = dict(
        encoder_block_out_channels=(16, 16, 16),
        decoder_block_out_channels=(16, 16, 16),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        encoder_qkv_multiscales=((), (), (5,)),
        decoder_qkv_multiscales=((), (), (5,)),
    )
    codes = diffusers.AutoencoderDC(latent_channels=4, attention_head_dim=8, scaling_factor=0.4, **blocks)
    return codes.eval()


def sana(kind: str = "SanaPipeline", scheduler: Any = None, sprint: bool = False, **parts: Any) -> Any:
    """Sana in one of its forms: linear attention, words of Gemma by cross-attention."""
    torch.manual_seed(0)
    options = dict(guidance_embeds=True, qk_norm="rms_norm_across_heads", timestep_scale=1000.0) if sprint else {}
    transformer = diffusers.SanaTransformer2DModel(**SANA_SIZES, num_layers=2, **options)
    return getattr(diffusers, kind)(
        tokenizer=words("<bos>"),
        text_encoder=language_model("Gemma2"),
        vae=codes_of_sana(),
        transformer=awake(transformer),
        scheduler=scheduler or flow(shift=3.0),
        **parts,
    )


def sana_controlnet() -> Any:
    """Sana with a ControlNet of one layer."""
    torch.manual_seed(1)
    control = diffusers.SanaControlNetModel(**SANA_SIZES, num_layers=1)
    return sana("SanaControlNetPipeline", controlnet=awake(control))


HUNYUAN = dict(
    sample_size=8,
    patch_size=2,
    in_channels=4,
    num_attention_heads=2,
    attention_head_dim=8,
    hidden_size=16,
    cross_attention_dim=32,
    cross_attention_dim_t5=32,
    pooled_projection_dim=16,
    text_len=77,
    text_len_t5=256,
    activation_fn="gelu-approximate",
)


def hunyuan_dit(kind: str = "HunyuanDiTPipeline", **parts: Any) -> Any:
    """Hunyuan-DiT in one of its forms: BERT's words beside T5's, a variance beside the noise."""
    torch.manual_seed(0)
    transformer = diffusers.HunyuanDiT2DModel(**HUNYUAN, num_layers=4)
    return getattr(diffusers, kind)(
        vae=autoencoder(levels=4),
        text_encoder=bert(),
        tokenizer=words(),
        transformer=awake(transformer),
        scheduler=small.SCHEDULERS["ddpm"](),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        text_encoder_2=small.t5_text(),
        tokenizer_2=small.t5_words(),
        **parts,
    )


def hunyuan_controlnet() -> Any:
    """Hunyuan-DiT with a ControlNet."""
    torch.manual_seed(1)
    control = diffusers.HunyuanDiT2DControlNetModel(**HUNYUAN, transformer_num_layers=4)
    return hunyuan_dit("HunyuanDiTControlNetPipeline", controlnet=awake(control))


def lumina() -> Any:
    """Lumina-Next: words of Gemma by gated cross-attention, a variance beside the velocity."""
    torch.manual_seed(0)
    transformer = diffusers.LuminaNextDiT2DModel(
        sample_size=4,
        patch_size=2,
        in_channels=4,
        hidden_size=32,
        num_layers=2,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        norm_eps=1e-5,
        learn_sigma=True,
        qk_norm=True,
        cross_attention_dim=32,
        scaling_factor=1.0,
    )
    return diffusers.LuminaPipeline(
        tokenizer=words("<bos>"),
        text_encoder=language_model("Gemma"),
        vae=autoencoder(levels=4),
        transformer=awake(transformer),
        scheduler=flow(),
    )


FAMILIES: dict[str, Family] = {
    "pixart-alpha": Family(
        lambda: pixart("PixArtAlphaPipeline", sizes=True), lambda: {**PIXART}, frozenset({"image", "split-output"})
    ),
    "pixart-sigma": Family(
        lambda: pixart("PixArtSigmaPipeline", sizes=False), lambda: {**PIXART}, frozenset({"image", "split-output"})
    ),
    "pixart-sigma-pag": Family(
        lambda: pixart("PixArtSigmaPAGPipeline", sizes=False, pag_applied_layers="blocks.1"),
        lambda: {**PIXART, "pag_scale": 2.0},
        frozenset({"image", "split-output", "pag"}),
    ),
    "dit": Family(
        dit, lambda: {"class_labels": [3], **STEPS}, frozenset({"image", "class", "no-text", "split-output"})
    ),
    "sana": Family(sana, lambda: {**SANA}, frozenset({"image"})),
    "sana-pag": Family(
        lambda: sana("SanaPAGPipeline", pag_applied_layers="transformer_blocks.1"),
        lambda: {**SANA, "pag_scale": 2.0},
        frozenset({"image", "pag"}),
    ),
    "sana-controlnet": Family(
        sana_controlnet, lambda: {**SANA, "control_image": picture()}, frozenset({"image", "controlnet"})
    ),
    "sana-sprint": Family(
        lambda: sana("SanaSprintPipeline", scheduler=diffusers.SCMScheduler(), sprint=True),
        lambda: {name: value for name, value in SANA.items() if name not in AGAINST} | {"intermediate_timesteps": None},
        frozenset({"image"}),
    ),
    "hunyuan-dit": Family(hunyuan_dit, lambda: {**GUIDED, **EXACT}, frozenset({"image", "split-output"})),
    "hunyuan-dit-pag": Family(
        lambda: hunyuan_dit("HunyuanDiTPAGPipeline", pag_applied_layers="blocks.1"),
        lambda: {**GUIDED, **EXACT, "pag_scale": 2.0},
        frozenset({"image", "split-output", "pag"}),
    ),
    "hunyuan-dit-controlnet": Family(
        hunyuan_controlnet,
        lambda: {**GUIDED, **EXACT, "control_image": picture()},
        frozenset({"image", "split-output", "controlnet", "global-noise"}),
    ),
    "lumina": Family(lumina, lambda: {**GUIDED, "clean_caption": False, **SHORT}, frozenset({"image", "split-output"})),
}
