"""U-Nets that make pixels, latents from noise alone or from a small picture, and measurements of a picture."""

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from small import PIPELINES, SCHEDULERS, t5_text, t5_words

from families.family import Family
from families.unet_parts import (
    family,
    mask,
    picked,
    picture,
    promptless,
    sd_parts,
    strong,
    text_unet,
    vivid,
)

SIMPLE = dict(
    down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    mid_block_type="UNetMidBlock2DSimpleCrossAttn",
    up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    resnet_time_scale_shift="scale_shift",
)


def plain_unet(**changes: Any) -> diffusers.UNet2DModel:
    """A U-Net that is told no text."""
    sizes = dict(
        sample_size=16,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=8,
    )
    return diffusers.UNet2DModel(**(sizes | changes)).eval()


def codes() -> diffusers.VQModel:
    """A small autoencoder of a codebook, which halves pictures once."""
    model = diffusers.VQModel(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=3,
        norm_num_groups=4,
        num_vq_embeddings=16,
    )
    return vivid(model.eval())


def from_noise(kind: type, scheduler: type, **options: Any) -> Callable[[], Any]:
    """The builder of a pipeline that is a U-Net and a scheduler with these options."""

    def build() -> Any:
        torch.manual_seed(0)
        return kind(unet=plain_unet(), scheduler=scheduler(**options))

    return build


def consistency() -> diffusers.ConsistencyModelPipeline:
    """A class and no text; the prediction is the picture itself."""
    torch.manual_seed(0)
    unet = plain_unet(num_class_embeds=10, resnet_time_scale_shift="scale_shift")
    scheduler = diffusers.CMStochasticIterativeScheduler(num_train_timesteps=40, sigma_min=0.002, sigma_max=80.0)
    return diffusers.ConsistencyModelPipeline(unet=unet, scheduler=scheduler)


def latent_from_text() -> diffusers.LDMTextToImagePipeline:
    pipeline = PIPELINES["latent-diffusion"]()
    strong(pipeline.unet)
    return pipeline


def latent_without_text() -> diffusers.LDMPipeline:
    torch.manual_seed(0)
    unet = plain_unet()
    return diffusers.LDMPipeline(vqvae=codes(), unet=unet, scheduler=SCHEDULERS["ddim"]())


def latent_super_resolution() -> diffusers.LDMSuperResolutionPipeline:
    """A U-Net that reads the small picture beside the sample."""
    torch.manual_seed(0)
    unet = plain_unet(in_channels=6, out_channels=3)
    return diffusers.LDMSuperResolutionPipeline(vqvae=codes(), unet=unet, scheduler=SCHEDULERS["ddim"]())


def deepfloyd_parts(**changes: Any) -> dict[str, Any]:
    """Every part of a DeepFloyd pipeline: T5's text, pixels, and a variance beside the noise."""
    torch.manual_seed(0)
    unet = text_unet(
        **SIMPLE,
        sample_size=16,
        out_channels=6,
        encoder_hid_dim=32,
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        cross_attention_norm="group_norm",
        act_fn="gelu",
        **changes,
    )
    scheduler = diffusers.DDPMScheduler(
        beta_schedule="squaredcos_cap_v2",
        variance_type="learned_range",
        thresholding=True,
        dynamic_thresholding_ratio=0.95,
        sample_max_value=1.0,
    )
    return dict(
        tokenizer=t5_words(),
        text_encoder=t5_text(),
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    )


def deepfloyd(kind: type, **changes: Any) -> Callable[[], Any]:
    """The builder of DeepFloyd's first stage."""
    return lambda: kind(**deepfloyd_parts(in_channels=3, **changes))


def deepfloyd_super_resolution() -> diffusers.IFSuperResolutionPipeline:
    """A U-Net that reads a small noisy picture beside the sample."""
    parts = deepfloyd_parts(in_channels=6, class_embed_type="timestep")
    noising = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    return diffusers.IFSuperResolutionPipeline(**parts, image_noising_scheduler=noising)


def marigold(kind: type, targets: int = 1, **options: Any) -> Callable[[], Any]:
    """The builder of a pipeline that paints what it measures of a picture; it is told an empty prompt."""

    def build() -> Any:
        parts = picked(
            sd_parts("ddim", in_channels=4 + 4 * targets, out_channels=4 * targets),
            *("vae", "text_encoder", "tokenizer", "unet", "scheduler"),
        )
        return kind(**parts, **options)

    return build


MEASURED = dict(image=picture(), processing_resolution=0)
STAGE = dict(clean_caption=False)

FAMILIES: dict[str, Family] = {
    "pixel-ddpm": promptless(PIPELINES["ddpm"], "image pixel no-text"),
    "pixel-ddim": promptless(PIPELINES["ddim"], "image pixel no-text"),
    "pixel-pndm": promptless(
        from_noise(diffusers.PNDMPipeline, diffusers.PNDMScheduler, beta_end=0.004), "image pixel no-text"
    ),
    "pixel-repaint": promptless(
        from_noise(diffusers.RePaintPipeline, diffusers.RePaintScheduler, beta_end=0.004),
        "image pixel no-text inpaint",
        image=picture(),
        mask_image=mask(),
        jump_length=1,
        jump_n_sample=2,
    ),
    "pixel-score-sde": promptless(
        from_noise(diffusers.ScoreSdeVePipeline, diffusers.ScoreSdeVeScheduler, sigma_max=1.0), "image pixel no-text"
    ),
    "pixel-karras-ve": promptless(
        from_noise(diffusers.KarrasVePipeline, diffusers.KarrasVeScheduler, sigma_max=1.0), "image pixel no-text"
    ),
    "pixel-consistency": promptless(consistency, "image pixel class no-text", class_labels=3),
    "pixel-deepfloyd": family(deepfloyd(diffusers.IFPipeline), "image pixel split-output", **STAGE),
    "pixel-deepfloyd-img2img": family(
        deepfloyd(diffusers.IFImg2ImgPipeline),
        "image pixel img2img split-output",
        image=picture(16),
        strength=0.75,
        **STAGE,
    ),
    "pixel-deepfloyd-inpaint": family(
        deepfloyd(diffusers.IFInpaintingPipeline),
        "image pixel inpaint split-output",
        image=picture(16),
        mask_image=mask(16),
        **STAGE,
    ),
    "pixel-deepfloyd-super-resolution": family(
        deepfloyd_super_resolution, "image pixel split-output", image=picture(8), height=16, width=16, **STAGE
    ),
    "latent-text": family(latent_from_text, "image", guidance_scale=5.0),
    "latent-noise": promptless(latent_without_text, "image no-text"),
    "latent-super-resolution": promptless(latent_super_resolution, "image no-text", image=picture()),
    "marigold-depth": promptless(marigold(diffusers.MarigoldDepthPipeline), "image no-text", **MEASURED),
    "marigold-normals": promptless(marigold(diffusers.MarigoldNormalsPipeline), "image no-text", **MEASURED),
    "marigold-intrinsics": promptless(
        marigold(diffusers.MarigoldIntrinsicsPipeline, targets=2), "image no-text", **MEASURED
    ),
}
