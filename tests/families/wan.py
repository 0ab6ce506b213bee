"""Videos by Wan and the families that are built from it: cross-attention, a call for each half of guidance."""

from typing import Any

import diffusers
import small
import torch
import transformers

from families.family import Family
from families.parts import (
    AGAINST,
    SHORT,
    STEPS,
    TEXT,
    WIDE,
    awake,
    flow,
    mask,
    picture,
    pipeline_kind,
    video,
    with_contrast,
)

CALL = {**TEXT, **AGAINST, **SHORT, **WIDE, **STEPS}
FIVE = {**CALL, "num_frames": 5}
NINE = {**CALL, "num_frames": 9}
TALL = {"height": 64, "width": 96}

SIZES: dict[str, Any] = dict(
    patch_size=(1, 2, 2),
    num_attention_heads=2,
    attention_head_dim=12,
    text_dim=32,
    freq_dim=32,
    ffn_dim=32,
    num_layers=2,
    cross_attn_norm=True,
    qk_norm="rms_norm_across_heads",
    rope_max_seq_len=32,
)


def transformer(kind: str = "WanTransformer3DModel", channels: int = 16, **options: Any) -> Any:
    """Wan's transformer, which reads `channels`."""
    return awake(getattr(diffusers, kind)(**{**SIZES, "out_channels": 16, "in_channels": channels, **options}))


def codes(**options: Any) -> Any:
    """Wan's autoencoder, which makes one frame of four and halves pictures three times."""
    sizes = dict(base_dim=8, z_dim=16, dim_mult=[1, 1, 2, 2], num_res_blocks=1, temperal_downsample=[False, True, True])
    return with_contrast(diffusers.AutoencoderKLWan(**{**sizes, **options}))


def tall_codes() -> Any:
    """The autoencoder of Wan 2.2's small model, which halves pictures a fourth time by patches."""
    return codes(
        decoder_base_dim=8,
        z_dim=48,
        latents_mean=[0.0] * 48,
        latents_std=[1.0] * 48,
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
    )


def wan(kind: str = "WanPipeline", channels: int = 16, second: bool = False, **parts: Any) -> Any:
    """Wan in one of its forms; the `second` transformer takes over when half of the noise is gone."""
    torch.manual_seed(0)
    if second:
        parts |= dict(transformer_2=transformer(channels=channels), boundary_ratio=0.8)
    return pipeline_kind(kind)(
        **{
            "tokenizer": small.t5_words(),
            "text_encoder": small.t5_text("UMT5"),
            "vae": codes(),
            "scheduler": flow(shift=3.0),
            "transformer": transformer(channels=channels),
            **parts,
        }
    )


def wan_small(kind: str = "WanPipeline") -> Any:
    """Wan 2.2's small model, which is told a time step for every position."""
    torch.manual_seed(1)
    return wan(kind, vae=tall_codes(), transformer=transformer(channels=48, out_channels=48), expand_timesteps=True)


def sight() -> tuple[Any, Any]:
    """A small picture tower of CLIP, and its processor."""
    sizes = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    edges = dict(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    return transformers.CLIPVisionModel(sizes).eval(), small.processor_named("CLIP")(**edges)


def wan_with_sight() -> Any:
    """Wan 2.1 from a picture, which a tower of CLIP looks at too."""
    torch.manual_seed(1)
    tower, processor = sight()
    with_sight = transformer(channels=36, image_dim=16, added_kv_proj_dim=24)
    return wan("WanImageToVideoPipeline", image_encoder=tower, image_processor=processor, transformer=with_sight)


def vace() -> Any:
    """Wan VACE: a video, its mask and a picture of reference guide the first layer."""
    torch.manual_seed(1)
    return wan(
        "WanVACEPipeline",
        transformer=transformer("WanVACETransformer3DModel", vace_layers=[0], vace_in_channels=96),
    )


def sky_reels(kind: str = "SkyReelsV2Pipeline", **options: Any) -> Any:
    """SkyReels V2 in one of its forms."""
    torch.manual_seed(1)
    return wan(
        kind,
        transformer=transformer("SkyReelsV2Transformer3DModel", **options),
        scheduler=diffusers.UniPCMultistepScheduler(flow_shift=8.0, use_flow_sigmas=True),
    )


FAMILIES: dict[str, Family] = {
    "wan": Family(wan, lambda: {**FIVE}, frozenset({"video", "true-cfg"})),
    "wan-unipc": Family(
        lambda: wan(
            scheduler=diffusers.UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
            )
        ),
        lambda: {**NINE},
        frozenset({"video", "true-cfg"}),
    ),
    "wan-2.2": Family(
        lambda: wan(second=True),
        lambda: {**NINE, "guidance_scale": 4.0, "guidance_scale_2": 3.0},
        frozenset({"video", "true-cfg", "two-denoisers"}),
    ),
    "wan-2.2-small": Family(wan_small, lambda: {**FIVE, **TALL}, frozenset({"video", "true-cfg", "many-timesteps"})),
    "wan-image-to-video": Family(
        wan_with_sight, lambda: {**FIVE, "image": picture()}, frozenset({"video", "true-cfg", "image-to-video"})
    ),
    "wan-2.2-image-to-video": Family(
        lambda: wan("WanImageToVideoPipeline", channels=36, second=True),
        lambda: {**FIVE, "image": picture()},
        frozenset({"video", "true-cfg", "two-denoisers", "image-to-video"}),
    ),
    "wan-2.2-small-image-to-video": Family(
        lambda: wan_small("WanImageToVideoPipeline"),
        lambda: {**NINE, **TALL, "image": picture(64, 96)},
        frozenset({"video", "true-cfg", "many-timesteps", "image-to-video"}),
    ),
    "wan-video-to-video": Family(
        lambda: wan("WanVideoToVideoPipeline"),
        lambda: {**CALL, "video": video(), "strength": 0.7},
        frozenset({"video", "true-cfg", "img2img"}),
    ),
    "wan-vace": Family(
        vace,
        lambda: {**FIVE, "video": video(), "mask": [mask()] * 5, "reference_images": [picture()]},
        frozenset({"video", "true-cfg", "inpaint"}),
    ),
    "sky-reels-v2": Family(sky_reels, lambda: {**FIVE}, frozenset({"video", "true-cfg"})),
    "sky-reels-v2-forcing": Family(
        lambda: sky_reels("SkyReelsV2DiffusionForcingPipeline", inject_sample_info=True),
        lambda: {**NINE, "base_num_frames": 9, "ar_step": 0, "addnoise_condition": 0, "fps": 16},
        frozenset({"video", "true-cfg", "many-timesteps"}),
    ),
    "lucy-edit": Family(
        lambda: wan("LucyEditPipeline", channels=32),
        lambda: {**FIVE, "video": video()},
        frozenset({"video", "true-cfg", "edit"}),
    ),
}
