"""Videos whose words come from T5: CogVideoX, LTX, Mochi, Allegro, Latte, Cosmos."""

from typing import Any

import diffusers
import small
import torch

from families.family import Family
from families.parts import (
    AGAINST,
    SHORT,
    STEPS,
    TEXT,
    WIDE,
    autoencoder,
    awake,
    flow,
    picture,
    pipeline_kind,
    video,
    with_contrast,
    without_torchvision,
)
from families.wan import codes as codes_of_wan

CALL = {**TEXT, **AGAINST, **SHORT, **WIDE, **STEPS}
FIVE = {**CALL, "num_frames": 5}
NINE = {**CALL, "num_frames": 9}


def codes_of_cogvideo() -> Any:
    """CogVideoX's autoencoder, which halves pictures three times, and makes one frame of four."""
    codes = diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )
    return with_contrast(codes)


def cogvideo(kind: str = "CogVideoXPipeline", channels: int = 4, scheduler: Any = None, rotary: bool = False) -> Any:
    """CogVideoX in one of its forms: text and video in one sequence, samples (videos, frames, channels, h, w)."""
    torch.manual_seed(0)
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=channels,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=32,
        num_layers=2,
        sample_width=6,
        sample_height=4,
        sample_frames=9,
        patch_size=2,
        temporal_compression_ratio=4,
        max_text_seq_length=16,
        use_rotary_positional_embeddings=rotary,
        use_learned_positional_embeddings=False,
    )
    return pipeline_kind(kind)(
        tokenizer=small.t5_words(),
        text_encoder=small.t5_text(),
        vae=codes_of_cogvideo(),
        transformer=awake(transformer),
        scheduler=scheduler or diffusers.CogVideoXDDIMScheduler(prediction_type="v_prediction"),
    )


def ltx(kind: str = "LTXPipeline") -> Any:
    """LTX-Video in one of its forms: packed samples, words of T5 by cross-attention."""
    torch.manual_seed(0)
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=2,
        caption_channels=32,
    )
    codes = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=1,
    )
    codes.use_framewise_encoding = False
    codes.use_framewise_decoding = False
    return pipeline_kind(kind)(
        scheduler=flow(),
        vae=with_contrast(codes),
        text_encoder=small.t5_text(),
        tokenizer=small.t5_words(),
        transformer=awake(transformer),
    )


def mochi() -> Any:
    """Mochi: joint attention, one frame of six."""
    torch.manual_seed(0)
    transformer = diffusers.MochiTransformer3DModel(
        patch_size=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=12,
        text_embed_dim=32,
        time_embed_dim=4,
        max_sequence_length=16,
    )
    codes = diffusers.AutoencoderKLMochi(
        latent_channels=12,
        out_channels=3,
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
    )
    return diffusers.MochiPipeline(
        scheduler=flow(),
        vae=codes.eval(),
        text_encoder=small.t5_text(),
        tokenizer=small.t5_words(),
        transformer=awake(transformer),
    )


def allegro() -> Any:
    """Allegro: cross-attention with T5's words."""
    torch.manual_seed(0)
    transformer = diffusers.AllegroTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        cross_attention_dim=24,
        sample_width=6,
        sample_height=4,
        sample_frames=2,
        caption_channels=32,
    )
    codes = diffusers.AutoencoderKLAllegro(
        down_block_types=("AllegroDownBlock3D",) * 4,
        up_block_types=("AllegroUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )
    codes.kernel = codes.stride = (8, *WIDE.values())  # it decodes by tiles alone, and this video is one
    codes.enable_tiling()
    return diffusers.AllegroPipeline(
        tokenizer=small.t5_words(),
        text_encoder=small.t5_text(),
        vae=with_contrast(codes),
        transformer=awake(transformer),
        scheduler=diffusers.EulerAncestralDiscreteScheduler(),
    )


def latte() -> Any:
    """Latte: frames as pictures, in turn with attention over time; a variance beside the noise."""
    torch.manual_seed(0)
    transformer = diffusers.LatteTransformer3DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=32,
        in_channels=4,
        cross_attention_dim=24,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        video_length=2,
    )
    return diffusers.LattePipeline(
        tokenizer=small.t5_words(),
        text_encoder=small.t5_text(),
        vae=autoencoder(),
        transformer=awake(transformer),
        scheduler=small.SCHEDULERS["ddim"](),
    )


class AllIsSafe(torch.nn.Module):
    """The check that Cosmos asks for, of a package that is not here: every text and video passes."""

    device, dtype = torch.device("cpu"), torch.float32

    def check_text_safety(self, text: str) -> bool:
        return True

    def check_video_safety(self, frames: Any) -> Any:
        return frames


def cosmos_transformer(channels: int = 16, **options: Any) -> Any:
    """Cosmos's transformer, which is told where the picture is padded."""
    without_torchvision(diffusers.CosmosTransformer3DModel.__module__)
    return awake(
        diffusers.CosmosTransformer3DModel(
            in_channels=channels,
            out_channels=16,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=2,
            mlp_ratio=2,
            text_embed_dim=32,
            adaln_lora_dim=4,
            max_size=(4, 32, 32),
            patch_size=(1, 2, 2),
            rope_scale=(2.0, 1.0, 1.0),
            concat_padding_mask=True,
            **options,
        )
    )


def cosmos() -> Any:
    """Cosmos 1: Karras's preconditioning around the transformer, its own autoencoder of wavelets."""
    torch.manual_seed(0)
    codes = diffusers.AutoencoderKLCosmos(
        latent_channels=16,
        encoder_block_out_channels=(8, 8, 8, 8),
        decode_block_out_channels=(8, 8, 8, 8),
        attention_resolutions=(8,),
        resolution=64,
        num_layers=1,
        patch_size=4,
    )
    return diffusers.CosmosTextToWorldPipeline(
        text_encoder=small.t5_text(),
        tokenizer=small.t5_words(),
        transformer=cosmos_transformer(extra_pos_embed_type="learnable"),
        vae=with_contrast(codes, 0.5),
        scheduler=diffusers.EDMEulerScheduler(
            sigma_min=0.002, sigma_max=80, sigma_data=0.5, sigma_schedule="karras", prediction_type="epsilon",
            rho=7.0, final_sigmas_type="sigma_min",
        ),
        safety_checker=AllIsSafe(),
    )  # fmt: skip


def cosmos_2() -> Any:
    """Cosmos 2, pictures: one frame by a transformer of videos."""
    torch.manual_seed(0)
    return diffusers.Cosmos2TextToImagePipeline(
        text_encoder=small.t5_text(),
        tokenizer=small.t5_words(),
        transformer=cosmos_transformer(extra_pos_embed_type=None),
        vae=codes_of_wan(),
        scheduler=flow(use_karras_sigmas=True),
        safety_checker=AllIsSafe(),
    )


FAMILIES: dict[str, Family] = {
    "cogvideo": Family(cogvideo, lambda: {**NINE}, frozenset({"video"})),
    "cogvideo-dpm": Family(
        lambda: cogvideo(scheduler=diffusers.CogVideoXDPMScheduler(prediction_type="v_prediction"), rotary=True),
        lambda: {**NINE, "use_dynamic_cfg": True},
        frozenset({"video", "two-step"}),
    ),
    "cogvideo-image-to-video": Family(
        lambda: cogvideo("CogVideoXImageToVideoPipeline", channels=8, rotary=True),
        lambda: {**NINE, "image": picture()},
        frozenset({"video", "image-to-video"}),
    ),
    "cogvideo-video-to-video": Family(
        lambda: cogvideo("CogVideoXVideoToVideoPipeline"),
        lambda: {**CALL, "video": video(9), "strength": 0.7},
        frozenset({"video", "img2img"}),
    ),
    "ltx": Family(ltx, lambda: {**NINE, "width": 64}, frozenset({"video", "packed"})),
    "ltx-image-to-video": Family(
        lambda: ltx("LTXImageToVideoPipeline"),
        lambda: {**NINE, "width": 64, "image": picture(32, 64)},
        frozenset({"video", "packed", "many-timesteps", "image-to-video", "part-stepped"}),
    ),
    "mochi": Family(mochi, lambda: {**CALL, "num_frames": 7}, frozenset({"video"})),
    "allegro": Family(allegro, lambda: {**CALL, "num_frames": 8, "clean_caption": False}, frozenset({"video"})),
    "latte": Family(
        latte,
        lambda: {**TEXT, **AGAINST, **WIDE, **STEPS, "video_length": 2, "clean_caption": False},
        frozenset({"video", "split-output"}),
    ),
    "cosmos": Family(cosmos, lambda: {**NINE}, frozenset({"video", "true-cfg"})),
    "cosmos-2-image": Family(cosmos_2, lambda: {**CALL}, frozenset({"image", "true-cfg"})),
}
