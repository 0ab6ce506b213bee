"""U-Nets in rarer company: stages in one pipeline, control woven into the U-Net, depth beside colour, and more."""

from collections.abc import Callable
from typing import Any

import diffusers
import transformers
from diffusers.pipelines.deprecated.paint_by_example.image_encoder import PaintByExampleImageEncoder
from small import autoencoder

from families.family import Family
from families.unet_parts import (
    CHANGED,
    CONTROLLED,
    MASKED,
    SMALL,
    awake,
    clip_processor,
    clip_vision,
    controlnet,
    family,
    louder,
    picked,
    picture,
    promptless,
    sd_parts,
    sdxl_parts,
    vivid,
)
from families.unets import LATENT_PARTS, ip_adapter_weights
from families.unets_embeddings import (
    cascade,
    cascade_prior,
    kandinsky,
    kandinsky_prior,
    unclip,
    wuerstchen,
    wuerstchen_prior,
)
from families.unets_extended import controlled as controlled_extended
from families.unets_extended import extended
from families.unets_pixels import STAGE, deepfloyd_parts
from families.unets_video import FIRST, FRAMES, SECOND, motion, three_dimensional


def woven(kind: type, parts: Callable[..., dict[str, Any]]) -> Callable[[], Any]:
    """The builder of a pipeline whose U-Net and control network read each other block by block."""

    def build() -> Any:
        every = parts(layers_per_block=2)
        adapter = diffusers.ControlNetXSAdapter.from_unet(
            every["unet"],
            block_out_channels=[8, 16],
            num_attention_heads=[2, 4],
            conditioning_embedding_out_channels=(8, 16, 16),
        )
        return kind(**every, controlnet=louder(awake(adapter), "controlnet_cond_embedding"))

    return build


def with_depth() -> diffusers.StableDiffusionLDM3DPipeline:
    """An autoencoder of six channels: colour and depth."""
    codes = autoencoder(in_channels=6, out_channels=6)
    return diffusers.StableDiffusionLDM3DPipeline(**(sd_parts() | {"vae": vivid(codes)}), image_encoder=None)


def by_example() -> diffusers.PaintByExamplePipeline:
    """An example's embedding in the place of text, over a U-Net that reads a mask."""
    parts = picked(sd_parts(in_channels=9), "vae", "unet", "scheduler", "safety_checker")
    config = transformers.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=5,
        projection_dim=32,
        image_size=16,
        patch_size=8,
    )
    return diffusers.PaintByExamplePipeline(
        **parts,
        image_encoder=PaintByExampleImageEncoder(config, proj_size=32).eval(),
        feature_extractor=clip_processor(),
    )


def consistent_image_to_image() -> diffusers.LatentConsistencyModelImg2ImgPipeline:
    parts = sd_parts(time_cond_proj_dim=32)
    scheduler = diffusers.LCMScheduler.from_config(parts["scheduler"].config)
    return diffusers.LatentConsistencyModelImg2ImgPipeline(**(parts | {"scheduler": scheduler}))


def guided_controlnet_inpaint() -> diffusers.StableDiffusionControlNetPAGInpaintPipeline:
    parts = sd_parts()
    return diffusers.StableDiffusionControlNetPAGInpaintPipeline(**parts, controlnet=controlnet(parts["unet"]))


def extended_with_ip_adapter() -> diffusers.StableDiffusionXLPipeline:
    parts = sdxl_parts() | dict(image_encoder=clip_vision(), feature_extractor=clip_processor())
    pipeline = diffusers.StableDiffusionXLPipeline(**parts)
    pipeline.load_ip_adapter(ip_adapter_weights(pipeline.unet), subfolder=None, weight_name=None)
    return pipeline


def sparse() -> diffusers.AnimateDiffSparseControlNetPipeline:
    """A control network that is shown some frames and told which."""
    parts = picked(sd_parts("ddim"), *LATENT_PARTS)
    network = diffusers.SparseControlNetModel(
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=32,
        attention_head_dim=4,
        conditioning_embedding_out_channels=(8, 16, 16),
        motion_num_attention_heads=4,
    )
    pipeline = diffusers.AnimateDiffSparseControlNetPipeline(
        **parts, motion_adapter=motion(), controlnet=louder(awake(network), "controlnet_cond_embedding")
    )
    pipeline.unet.eval()
    return pipeline


def deepfloyd_finer() -> diffusers.IFImg2ImgSuperResolutionPipeline:
    parts = deepfloyd_parts(in_channels=6, class_embed_type="timestep")
    noising = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    return diffusers.IFImg2ImgSuperResolutionPipeline(**parts, image_noising_scheduler=noising)


def unclip_from_picture() -> diffusers.UnCLIPImageVariationPipeline:
    parts = picked(
        unclip().components,
        *("decoder", "text_encoder", "tokenizer", "text_proj", "super_res_first", "super_res_last"),
        *("decoder_scheduler", "super_res_scheduler"),
    )
    return diffusers.UnCLIPImageVariationPipeline(
        **parts, image_encoder=clip_vision(), feature_extractor=clip_processor()
    )


def kandinsky_combined() -> diffusers.KandinskyV22CombinedPipeline:
    """Prior and decoder in one pipeline: two loops, two denoisers."""
    first = {f"prior_{name}": part for name, part in kandinsky_prior().components.items()}
    second = kandinsky(diffusers.KandinskyV22Pipeline)().components
    return diffusers.KandinskyV22CombinedPipeline(**second, **first)


def cascade_combined() -> diffusers.StableCascadeCombinedPipeline:
    """Prior and decoder in one pipeline: two loops, two denoisers."""
    first = cascade_prior().components
    return diffusers.StableCascadeCombinedPipeline(
        **picked(cascade().components, "tokenizer", "text_encoder", "decoder", "scheduler", "vqgan"),
        prior_prior=first["prior"],
        prior_text_encoder=first["text_encoder"],
        prior_tokenizer=first["tokenizer"],
        prior_scheduler=first["scheduler"],
    )


def wuerstchen_combined() -> diffusers.WuerstchenCombinedPipeline:
    """Prior and decoder in one pipeline: two loops, two denoisers."""
    first = wuerstchen_prior().components
    return diffusers.WuerstchenCombinedPipeline(
        **picked(wuerstchen().components, "tokenizer", "text_encoder", "decoder", "scheduler", "vqgan"),
        prior_tokenizer=first["tokenizer"],
        prior_text_encoder=first["text_encoder"],
        prior_prior=first["prior"],
        prior_scheduler=first["scheduler"],
    )


FAMILIES: dict[str, Family] = {
    "sd-controlnet-xs": family(
        woven(diffusers.StableDiffusionControlNetXSPipeline, sd_parts), "image controlnet", **CONTROLLED
    ),
    "sd-with-depth": family(with_depth, "image", output_type="np"),  # pillow refuses its 16-bit depths
    "sd-paint-by-example": promptless(by_example, "image inpaint no-text", example_image=picture(16, seed=1), **MASKED),
    "sd-latent-consistency-img2img": promptless(
        consistent_image_to_image, "image img2img", prompt="a red circle", **CHANGED
    ),
    "sd-pag-controlnet-inpaint": family(
        guided_controlnet_inpaint, "image inpaint controlnet pag", **MASKED, control_image=picture(seed=1)
    ),
    "sdxl-controlnet-xs": family(
        woven(diffusers.StableDiffusionXLControlNetXSPipeline, sdxl_parts), "image controlnet", **CONTROLLED
    ),
    "sdxl-controlnet-inpaint": family(
        controlled_extended(diffusers.StableDiffusionXLControlNetInpaintPipeline),
        "image inpaint controlnet",
        **MASKED,
        control_image=picture(seed=1),
    ),
    "sdxl-pag-inpaint": family(extended(diffusers.StableDiffusionXLPAGInpaintPipeline), "image inpaint pag", **MASKED),
    "sdxl-ip-adapter": family(extended_with_ip_adapter, "image adapter", ip_adapter_image=picture(), **SMALL),
    "video-animatediff-sparse": family(sparse, "video controlnet", conditioning_frames=[FIRST], **FRAMES),
    "video-video-to-video": family(
        three_dimensional(diffusers.VideoToVideoSDPipeline), "video img2img", video=[FIRST, SECOND], strength=0.75
    ),
    "pixel-deepfloyd-super-resolution-img2img": family(
        deepfloyd_finer,
        "image pixel img2img split-output",
        image=picture(8),
        original_image=picture(16),
        strength=0.75,
        **STAGE,
    ),
    "unclip-picture": Family(
        unclip_from_picture,
        lambda: {"image": picture(16), "decoder_num_inference_steps": 4, "super_res_num_inference_steps": 2},
        frozenset({"image", "pixel", "two-denoisers", "split-output"}),
    ),
    "kandinsky-2-combined": family(
        kandinsky_combined, "image two-denoisers split-output", prior_num_inference_steps=2, **SMALL
    ),
    "cascade-combined": family(
        cascade_combined,
        "image two-denoisers",
        prior_num_inference_steps=2,
        decoder_guidance_scale=2.0,
        height=256,
        width=256,
    ),
    "wuerstchen-combined": family(
        wuerstchen_combined,
        "image two-denoisers",
        prior_num_inference_steps=2,
        decoder_guidance_scale=2.0,
        height=256,
        width=256,
    ),
}
