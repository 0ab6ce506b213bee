"""Small pipelines that are given a picture: repainting, inpainting, ControlNet, image variation, and the pictures."""

import diffusers
import numpy as np
import torch
import transformers
from PIL import Image
from small import SCHEDULERS, autoencoder, clip_text, conditional_unet, processor_named, stable_diffusion, tokenizer


def photograph(side: int = 32, seed: int = 0) -> Image.Image:
    """A picture of smooth noise."""
    values = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((side, side), Image.Resampling.BICUBIC)


def left_half(side: int = 32) -> Image.Image:
    """A mask: the left half is repainted."""
    mask = np.zeros((side, side), np.uint8)
    mask[:, : side // 2] = 255
    return Image.fromarray(mask)


def img2img() -> diffusers.StableDiffusionImg2ImgPipeline:
    return diffusers.StableDiffusionImg2ImgPipeline(**_parts())


def inpaint() -> diffusers.StableDiffusionInpaintPipeline:
    return diffusers.StableDiffusionInpaintPipeline(**_parts())


def _parts() -> dict:
    return {**stable_diffusion().components, "requires_safety_checker": False}


def controlnet(kind=diffusers.StableDiffusionControlNetPipeline):
    """Stable Diffusion with a ControlNet whose picture has an effect: its last layers are not the usual zeros."""
    torch.manual_seed(1)
    network = diffusers.ControlNetModel(
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        layers_per_block=1,
        attention_head_dim=4,
        cross_attention_dim=32,
        norm_num_groups=8,
        conditioning_embedding_out_channels=(8, 8, 16),
    ).eval()
    for name, weights in network.named_parameters():
        if name.startswith(("controlnet_", "controlnet_cond_embedding.conv_out")):
            torch.nn.init.normal_(weights, std=0.3)
    return kind(**_parts(), controlnet=network)


def _eyes() -> dict:
    config = transformers.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        projection_dim=32,
        image_size=16,
        patch_size=8,
    )
    return {
        "image_encoder": transformers.CLIPVisionModelWithProjection(config).eval(),
        "feature_extractor": processor_named("CLIP")(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
    }


def image_variation() -> diffusers.StableDiffusionImageVariationPipeline:
    """A pipeline that is given a picture and no text."""
    torch.manual_seed(0)
    return diffusers.StableDiffusionImageVariationPipeline(
        vae=autoencoder(),
        unet=conditional_unet(),
        scheduler=SCHEDULERS["ddim"](),
        safety_checker=None,
        requires_safety_checker=False,
        **_eyes(),
    )


def unclip_img2img() -> diffusers.StableUnCLIPImg2ImgPipeline:
    """A pipeline whose first argument is a picture, and that makes one of it without a text."""
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer

    torch.manual_seed(0)
    unet = conditional_unet(class_embed_type="projection", projection_class_embeddings_input_dim=64)
    return diffusers.StableUnCLIPImg2ImgPipeline(
        image_normalizer=StableUnCLIPImageNormalizer(embedding_dim=32).eval(),
        image_noising_scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        tokenizer=tokenizer(),
        text_encoder=clip_text(),
        unet=unet,
        scheduler=SCHEDULERS["ddim"](),
        vae=autoencoder(),
        **_eyes(),
    )
