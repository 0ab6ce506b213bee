"""Further forms of the video families: videos from pictures, from videos, and under control."""

from typing import Any

import diffusers
import small
import torch
import transformers

from families import clips, told, wan
from families.family import Family
from families.parts import AGAINST, SHORT, STEPS, TEXT, WIDE, awake, flow, picture, video

CALL = {**TEXT, **AGAINST, **SHORT, **WIDE, **STEPS}
FIVE = {**CALL, "num_frames": 5}


def cosmos_2_video() -> Any:
    """Cosmos 2 from a picture: a channel says which frames are there already."""
    torch.manual_seed(0)
    return diffusers.Cosmos2VideoToWorldPipeline(
        text_encoder=small.t5_text(),
        tokenizer=small.t5_words(),
        transformer=clips.cosmos_transformer(channels=17, extra_pos_embed_type=None),
        vae=wan.codes(),
        scheduler=flow(use_karras_sigmas=True),
        safety_checker=clips.AllIsSafe(),
    )


def chrono_edit() -> Any:
    """ChronoEdit: an edited picture as the last frame of a video."""
    torch.manual_seed(1)
    tower, processor = wan.sight()
    with_sight = wan.transformer("ChronoEditTransformer3DModel", channels=36, image_dim=16, added_kv_proj_dim=24)
    return wan.wan("ChronoEditPipeline", image_encoder=tower, image_processor=processor, transformer=with_sight)


def any_flow() -> Any:
    """AnyFlow: told the time step it goes to beside the one it comes from."""
    torch.manual_seed(1)
    sizes = {name: size for name, size in wan.SIZES.items() if name != "qk_norm"}
    transformer = diffusers.AnyFlowTransformer3DModel(**sizes, in_channels=16, out_channels=16)
    return wan.wan(
        "AnyFlowPipeline", transformer=awake(transformer), scheduler=diffusers.FlowMapEulerDiscreteScheduler(shift=3.0)
    )


def helios() -> Any:
    """Helios: frames in chunks, each of them from those before it."""
    torch.manual_seed(1)
    sizes = {name: size for name, size in wan.SIZES.items() if name != "rope_max_seq_len"}
    transformer = diffusers.HeliosTransformer3DModel(**sizes, in_channels=16, out_channels=16, rope_dim=(4, 4, 4))
    return wan.wan("HeliosPipeline", transformer=awake(transformer), scheduler=flow(shift=3.0))


def framepack() -> Any:
    """FramePack: a video in windows from its end to its start, each told the frames around it."""
    torch.manual_seed(0)
    transformer = diffusers.HunyuanVideoFramepackTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=2,
        patch_size_t=1,
        guidance_embeds=True,
        text_embed_dim=32,
        pooled_projection_dim=32,
        rope_axes_dim=(4, 6, 6),
        image_proj_dim=16,
        has_image_proj=True,
        has_clean_x_embedder=True,
    )
    tower = transformers.SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    base = told.hunyuan_video().components
    return diffusers.HunyuanVideoFramepackPipeline(
        **{
            **base,
            "transformer": awake(transformer),
            "image_encoder": transformers.SiglipVisionModel(tower).eval(),
            "feature_extractor": small.processor_named("Siglip")(size={"height": 16, "width": 16}),
        }
    )


FAMILIES: dict[str, Family] = {
    "cosmos-2-image-to-video": Family(
        cosmos_2_video,
        lambda: {**FIVE, "image": picture()},
        frozenset({"video", "true-cfg", "image-to-video", "many-timesteps"}),
    ),
    "chrono-edit": Family(chrono_edit, lambda: {**FIVE, "image": picture()}, frozenset({"video", "true-cfg", "edit"})),
    "any-flow": Family(any_flow, lambda: {**FIVE, "guidance_scale": 3.0}, frozenset({"video", "many-timesteps"})),
    "helios": Family(
        helios,
        lambda: {**CALL, "num_frames": 9, "num_latent_frames_per_chunk": 2, "history_sizes": [4, 2, 1]},
        frozenset({"video", "true-cfg", "chunks"}),
    ),
    "framepack": Family(
        framepack,
        lambda: {**FIVE, "num_frames": 18, "latent_window_size": 3, "image": picture(), "true_cfg_scale": 3.0},
        frozenset({"video", "true-cfg", "image-to-video", "chunks"}),
    ),
    "ltx-condition": Family(
        lambda: clips.ltx("LTXConditionPipeline"),
        lambda: {**CALL, "num_frames": 9, "width": 64, "image": picture(32, 64)},
        frozenset({"video", "packed", "many-timesteps", "image-to-video"}),
    ),
    "cogvideo-control": Family(
        lambda: clips.cogvideo("CogVideoXFunControlPipeline", channels=8),
        lambda: {**CALL, "control_video": video(9)},
        frozenset({"video", "control"}),
    ),
    "kandinsky-5-image-to-video": Family(
        lambda: told.kandinsky_5_video("Kandinsky5I2VPipeline"),
        lambda: {**CALL, "num_frames": 17, "image": picture()},  # it needs a fifth frame of latents
        frozenset({"video", "true-cfg", "image-to-video", "part-stepped"}),
    ),
    "sky-reels-v2-image-to-video": Family(
        lambda: wan.sky_reels("SkyReelsV2DiffusionForcingImageToVideoPipeline"),
        lambda: {**CALL, "num_frames": 9, "base_num_frames": 9, "ar_step": 0, "image": picture()},
        frozenset({"video", "true-cfg", "many-timesteps", "image-to-video"}),
    ),
    "hunyuan-sky-reels-image-to-video": Family(
        lambda: told.hunyuan_video("HunyuanSkyreelsImageToVideoPipeline", channels=8, distilled=False),
        lambda: {**FIVE, "true_cfg_scale": 3.0, "image": picture()},
        frozenset({"video", "image-to-video"}),
    ),
    "sana-image-to-video": Family(
        lambda: told.sana_video("SanaImageToVideoPipeline"),
        lambda: {**told.SANA, "frames": 9, "image": picture(32, 64)},
        frozenset({"video", "many-timesteps", "image-to-video", "part-stepped"}),
    ),
}
