"""LTX-2: a video and its sound, denoised by one transformer that returns both."""

from typing import Any

import diffusers
import torch
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder

from families.family import Family
from families.language import language_model, words
from families.parts import AGAINST, SHORT, STEPS, TEXT, awake, flow, picture, with_contrast


def codes_of_video() -> Any:
    """LTX-2's autoencoder of videos, which halves pictures twice and time once."""
    codes = diffusers.AutoencoderKLLTX2Video(
        latent_channels=8,
        block_out_channels=(8,),
        decoder_block_out_channels=(8,),
        down_block_types=("LTX2VideoDownBlock3D",),
        layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        spatio_temporal_scaling=(True,),
        decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False),
        downsample_type=("spatial",),
        upsample_type=("spatiotemporal",),
        upsample_residual=(False,),
        upsample_factor=(1,),
        patch_size=4,
    )
    codes.use_framewise_encoding = codes.use_framewise_decoding = False
    return with_contrast(codes)


def codes_of_sound() -> Any:
    """LTX-2's autoencoder of spectrograms."""
    return diffusers.AutoencoderKLLTX2Audio(
        base_channels=4,
        ch_mult=(1,),
        num_res_blocks=1,
        resolution=32,
        latent_channels=2,
        norm_type="pixel",
        causality_axis="height",
        mid_block_add_attention=False,
        mel_bins=8,
    ).eval()


def ltx_2(kind: str = "LTX2Pipeline", perturbed: bool = False) -> Any:
    """LTX-2 in one of its forms; `perturbed` lets it be guided away from layers without attention."""
    torch.manual_seed(0)
    transformer = diffusers.LTX2VideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=8,
        audio_cross_attention_dim=16,
        num_layers=2,
        caption_channels=32,
        vae_scale_factors=(2, 8, 8),
        rope_double_precision=False,
        perturbed_attn=perturbed,
    )
    connectors = LTX2TextConnectors(
        caption_channels=32,
        text_proj_in_factor=3,
        video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=16,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=None,
        audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=16,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=None,
        connector_rope_base_seq_len=32,
        rope_double_precision=False,
    )
    vocoder = LTX2Vocoder(
        in_channels=16,
        hidden_channels=16,
        out_channels=2,
        upsample_kernel_sizes=[4, 4],
        upsample_factors=[2, 2],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1, 3]],
    )
    return getattr(diffusers, kind)(
        scheduler=flow(),
        vae=codes_of_video(),
        audio_vae=codes_of_sound(),
        text_encoder=language_model("Gemma3Text"),
        tokenizer=words("<bos>", side="left"),
        connectors=awake(connectors),
        transformer=awake(transformer),
        vocoder=vocoder.eval(),
    )


CALL = {**TEXT, **AGAINST, **SHORT, **STEPS, "height": 32, "width": 64, "num_frames": 9, "frame_rate": 24.0}
GUIDED = {**CALL, "guidance_scale": 3.0, "stg_scale": 0.0, "audio_stg_scale": 0.0}

FAMILIES: dict[str, Family] = {
    "ltx-2": Family(ltx_2, lambda: {**GUIDED}, frozenset({"video", "packed", "two-outputs"})),
    "ltx-2-four-calls": Family(
        lambda: ltx_2(perturbed=True),
        lambda: {**CALL, "spatio_temporal_guidance_blocks": [1]},
        frozenset({"video", "packed", "two-outputs", "pag", "rescale"}),
    ),
    "ltx-2-image-to-video": Family(
        lambda: ltx_2("LTX2ImageToVideoPipeline"),
        lambda: {**GUIDED, "image": picture(32, 64), "image_crf": 0},
        frozenset({"video", "packed", "two-outputs", "image-to-video", "many-timesteps", "part-stepped"}),
    ),
}
