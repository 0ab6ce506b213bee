"""U-Nets that make videos: motion beside Stable Diffusion's layers, three dimensions, and a first picture."""

from collections.abc import Callable
from typing import Any

import diffusers
import torch
import transformers
from small import processor_named

from families.family import Family
from families.unet_parts import (
    SMALL,
    awake,
    clip_processor,
    clip_vision,
    controlnet,
    family,
    picked,
    picture,
    promptless,
    sd_parts,
    sdxl_parts,
    strong,
    vivid,
)

TEXT_PARTS = "vae", "text_encoder", "tokenizer"
FRAMES = dict(num_frames=2, **SMALL)
FIRST, SECOND = picture(), picture(seed=1)


def motion(**changes: Any) -> diffusers.MotionAdapter:
    """Layers of motion for the U-Net of `sd_parts`."""
    sizes = dict(
        block_out_channels=(16, 32),
        motion_layers_per_block=1,
        motion_norm_num_groups=2,
        motion_num_attention_heads=4,
    )
    return awake(diffusers.MotionAdapter(**(sizes | changes)))


def animated(kind: type, with_controlnet: bool = False, **changes: Any) -> Callable[[], Any]:
    """The builder of a pipeline from Stable Diffusion's parts and motion."""

    def build() -> Any:
        parts = picked(sd_parts("ddim"), *TEXT_PARTS, "unet", "scheduler")
        if with_controlnet:
            parts["controlnet"] = controlnet(parts["unet"])
        pipeline = kind(**parts, motion_adapter=motion(**changes))
        pipeline.unet.eval()
        return pipeline

    return build


def animated_extended() -> diffusers.AnimateDiffSDXLPipeline:
    parts = sdxl_parts()
    del parts["add_watermarker"]
    pipeline = diffusers.AnimateDiffSDXLPipeline(**parts, motion_adapter=motion(use_motion_mid_block=False))
    pipeline.unet.eval()
    return pipeline


def three_dimensional(kind: type) -> Callable[[], Any]:
    """The builder of a pipeline whose U-Net convolves and attends over time too."""

    def build() -> Any:
        parts = picked(sd_parts("ddim"), *TEXT_PARTS, "scheduler")
        unet = diffusers.UNet3DConditionModel(
            sample_size=8,
            block_out_channels=(32, 32),
            down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
            layers_per_block=1,
            attention_head_dim=4,
            cross_attention_dim=32,
        )
        return kind(**parts, unet=strong(unet))

    return build


def stable_video() -> diffusers.StableVideoDiffusionPipeline:
    """A picture's embedding and its latents in the place of text; guidance grows from frame to frame."""
    torch.manual_seed(0)
    unet = diffusers.UNetSpatioTemporalConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        layers_per_block=1,
        num_attention_heads=(2, 4),
        cross_attention_dim=32,
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=3 * 8,
    )
    codes = diffusers.AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32, 32), down_block_types=("DownEncoderBlock2D",) * 3, latent_channels=4
    )
    vision = transformers.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        projection_dim=32,
        image_size=224,
        patch_size=56,
    )
    scheduler = diffusers.EulerDiscreteScheduler(
        prediction_type="v_prediction",
        timestep_type="continuous",
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
    )
    return diffusers.StableVideoDiffusionPipeline(
        vae=vivid(codes.eval(), spread=20.0),
        image_encoder=transformers.CLIPVisionModelWithProjection(vision).eval(),
        unet=strong(unet),
        scheduler=scheduler,
        feature_extractor=processor_named("CLIP")(size={"shortest_edge": 224}),
    )


def i2vgen() -> diffusers.I2VGenXLPipeline:
    """A prompt and a picture, over the layers of three dimensions."""
    parts = picked(sd_parts("ddim"), *TEXT_PARTS, "scheduler")
    unet = diffusers.models.unets.I2VGenXLUNet(
        sample_size=8,
        block_out_channels=(32, 32),
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        layers_per_block=1,
        attention_head_dim=4,
        cross_attention_dim=32,
    )
    return diffusers.I2VGenXLPipeline(
        **parts, unet=strong(unet), image_encoder=clip_vision(), feature_extractor=clip_processor()
    )


FAMILIES: dict[str, Family] = {
    "video-animatediff": family(animated(diffusers.AnimateDiffPipeline), "video", **FRAMES),
    "video-animatediff-pag": family(animated(diffusers.AnimateDiffPAGPipeline), "video pag", **FRAMES),
    "video-animatediff-controlnet": family(
        animated(diffusers.AnimateDiffControlNetPipeline, with_controlnet=True),
        "video controlnet",
        conditioning_frames=[FIRST, SECOND],
        **FRAMES,
    ),
    "video-animatediff-video": family(
        animated(diffusers.AnimateDiffVideoToVideoPipeline),
        "video img2img",
        video=[FIRST, SECOND],
        strength=0.75,
        **SMALL,
    ),
    "video-animatediff-sdxl": family(animated_extended, "video", **FRAMES),
    "video-pia": family(animated(diffusers.PIAPipeline, conv_in_channels=9), "video img2img", image=FIRST, **FRAMES),
    "video-text-to-video": family(three_dimensional(diffusers.TextToVideoSDPipeline), "video", **FRAMES),
    "video-stable-video": promptless(stable_video, "video no-text", image=FIRST, **FRAMES),
    "video-i2vgen": family(
        # Its default, 1, reads a layer by a name that transformers 5 no longer has.
        i2vgen,
        "video",
        image=FIRST,
        clip_skip=None,
        **FRAMES,
    ),
}
