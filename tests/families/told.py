"""Videos whose words come from language models: HunyuanVideo, Kandinsky 5, EasyAnimate, Sana-Video, Motif-Video."""

from typing import Any

import diffusers
import small
import torch
import transformers
from diffusers.guiders import ClassifierFreeGuidance

from families.family import Family
from families.language import language_model, long_clip, qwen_vl, words
from families.parts import AGAINST, SHORT, STEPS, TEXT, WIDE, awake, flow, with_contrast
from families.wan import codes as codes_of_wan

CALL = {**TEXT, **WIDE, **STEPS}
FIVE = {**CALL, "num_frames": 5}
GUIDED = {**FIVE, **AGAINST, **SHORT}


def codes_of_hunyuan(channels: int = 4) -> Any:
    """HunyuanVideo's autoencoder, which halves pictures three times, and makes one frame of four."""
    codes = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=channels,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=True,
    )
    return with_contrast(codes)


def hunyuan_video(kind: str = "HunyuanVideoPipeline", channels: int = 4, distilled: bool = True) -> Any:
    """HunyuanVideo in one of its forms: Flux's blocks over time, words of Llama after a long instruction."""
    torch.manual_seed(0)
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=channels,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=2,
        patch_size_t=1,
        guidance_embeds=distilled,
        text_embed_dim=32,
        pooled_projection_dim=32,
        rope_axes_dim=(4, 6, 6),
    )
    return getattr(diffusers, kind)(
        transformer=awake(transformer),
        scheduler=flow(shift=7.0),
        vae=codes_of_hunyuan(),
        text_encoder=language_model("Llama", num_hidden_layers=4),
        text_encoder_2=long_clip(),
        tokenizer=words(),
        tokenizer_2=small.tokenizer(),
    )


def hunyuan_video_15() -> Any:
    """HunyuanVideo 1.5: guidance by a guider of diffusers; bytes of quoted words beside Qwen's."""
    torch.manual_seed(0)
    transformer = diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_refiner_layers=1,
        text_embed_dim=32,
        text_embed_2_dim=32,
        image_embed_dim=16,
        rope_axes_dim=(4, 6, 6),
        target_size=32,
        task_type="t2v",
    )
    codes = diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=4,
        block_out_channels=(16, 16, 16),
        layers_per_block=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=4,
    )
    letters = transformers.ByT5Tokenizer(extra_ids=0)
    sizes = dict(d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.0)
    pipeline = diffusers.HunyuanVideo15Pipeline(
        text_encoder=qwen_vl().model.language_model,
        tokenizer=words(),
        transformer=awake(transformer),
        vae=with_contrast(codes),
        scheduler=flow(shift=5.0),
        text_encoder_2=transformers.T5EncoderModel(transformers.T5Config(vocab_size=len(letters), **sizes)).eval(),
        tokenizer_2=letters,
        guider=ClassifierFreeGuidance(guidance_scale=4.0),
    )
    pipeline.vision_num_semantic_tokens = 8  # of a picture that there is none of: 729 empty positions otherwise
    return pipeline


def kandinsky_5_video(kind: str = "Kandinsky5T2VPipeline") -> Any:
    """Kandinsky 5: samples with their channels last, (videos, frames, h, w, channels)."""
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
        visual_cond=True,
    )
    return getattr(diffusers, kind)(
        transformer=awake(transformer),
        vae=codes_of_hunyuan(),
        text_encoder=qwen_vl(),
        tokenizer=words(),
        text_encoder_2=long_clip(),
        tokenizer_2=small.tokenizer(),
        scheduler=flow(),
    )


def easy_animate(kind: str = "EasyAnimatePipeline", channels: int = 4) -> Any:
    """EasyAnimate: joint attention of Qwen's words and of the video."""
    torch.manual_seed(0)
    transformer = diffusers.EasyAnimateTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=channels,
        out_channels=4,
        patch_size=2,
        sample_width=6,
        sample_height=4,
        num_layers=2,
        mmdit_layers=1,
        time_embed_dim=8,
        text_embed_dim=32,
    )
    codes = diffusers.AutoencoderKLMagvit(
        latent_channels=4,
        down_block_types=["SpatialDownBlock3D", *["SpatialTemporalDownBlock3D"] * 3],
        up_block_types=["SpatialUpBlock3D", *["SpatialTemporalUpBlock3D"] * 3],
        block_out_channels=[8, 8, 8, 8],
        layers_per_block=1,
        norm_num_groups=2,
        spatial_group_norm=False,
    )
    return getattr(diffusers, kind)(
        vae=with_contrast(codes),
        text_encoder=language_model("Qwen2"),
        tokenizer=words(),
        transformer=awake(transformer),
        scheduler=flow(),
    )


def sana_video(kind: str = "SanaVideoPipeline") -> Any:
    """Sana-Video: linear attention over the whole video, words of Gemma by cross-attention."""
    torch.manual_seed(0)
    transformer = diffusers.SanaVideoTransformer3DModel(
        in_channels=16,
        out_channels=16,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=32,
        sample_size=8,
        patch_size=(1, 2, 2),
        rope_max_seq_len=32,
    )
    return getattr(diffusers, kind)(
        tokenizer=words("<bos>"),
        text_encoder=language_model("Gemma2"),
        vae=codes_of_wan(),
        transformer=awake(transformer),
        scheduler=flow(shift=3.0),
    )


def motif_video(kind: str = "MotifVideoPipeline") -> Any:
    """Motif-Video: guidance by a guider of diffusers; a mask and a picture beside the sample."""
    torch.manual_seed(0)
    transformer = diffusers.MotifVideoTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=1,
        num_decoder_layers=1,
        text_embed_dim=32,
        rope_axes_dim=(4, 6, 6),
        enable_text_cross_attention_dual=True,
        enable_text_cross_attention_single=True,
    )
    return getattr(diffusers, kind)(
        scheduler=flow(),
        vae=codes_of_wan(),
        text_encoder=small.t5_text(),
        tokenizer=small.t5_words(),
        transformer=awake(transformer),
        guider=ClassifierFreeGuidance(guidance_scale=4.0),
    )


SANA = {
    **CALL,
    **AGAINST,
    **SHORT,
    "width": 64,
    "frames": 5,
    "use_resolution_binning": False,
    "complex_human_instruction": None,
}

FAMILIES: dict[str, Family] = {
    "hunyuan-video": Family(hunyuan_video, lambda: {**FIVE, **SHORT}, frozenset({"video"})),
    "hunyuan-video-true-cfg": Family(
        hunyuan_video, lambda: {**GUIDED, "true_cfg_scale": 3.0}, frozenset({"video", "true-cfg"})
    ),
    "hunyuan-video-1.5": Family(
        hunyuan_video_15, lambda: {**FIVE, **AGAINST}, frozenset({"video", "true-cfg", "guider"})
    ),
    "kandinsky-5-video": Family(kandinsky_5_video, lambda: {**GUIDED}, frozenset({"video", "true-cfg"})),
    "easy-animate": Family(easy_animate, lambda: {**FIVE, **AGAINST}, frozenset({"video"})),
    "sana-video": Family(sana_video, lambda: {**SANA}, frozenset({"video"})),
    "motif-video": Family(motif_video, lambda: {**GUIDED}, frozenset({"video", "true-cfg", "guider"})),
}
