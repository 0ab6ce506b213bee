"""Stable Diffusion's pipelines: from text, from pictures, under masks, and with what was added to them."""

from collections.abc import Callable
from typing import Any

import diffusers
import torch
import transformers
from small import SCHEDULERS, processor_named

from families.family import Family
from families.unet_parts import (
    CHANGED,
    CONTROLLED,
    MASKED,
    SMALL,
    clip_processor,
    clip_vision,
    controlnet,
    family,
    louder,
    noise,
    picked,
    picture,
    promptless,
    sd_parts,
    vivid,
)

LATENT_PARTS = "vae", "text_encoder", "tokenizer", "unet", "scheduler"


def stable(kind: type, scheduler: str = "dpm-solver++", **changes: Any) -> Callable[[], Any]:
    """The builder of a pipeline from Stable Diffusion's parts, its U-Net with the changes named."""
    return lambda: kind(**sd_parts(scheduler, **changes))


def controlled(kind: type, count: int = 1) -> Callable[[], Any]:
    """The builder of a pipeline with control networks."""

    def build() -> Any:
        parts = sd_parts()
        networks = [controlnet(parts["unet"]) for _ in range(count)]
        return kind(**parts, controlnet=networks if count > 1 else networks[0])

    return build


def image_variation() -> diffusers.StableDiffusionImageVariationPipeline:
    """A picture's embedding in the place of the text's."""
    parts = picked(sd_parts(), "vae", "unet", "scheduler", "safety_checker", "requires_safety_checker")
    return diffusers.StableDiffusionImageVariationPipeline(
        **parts, image_encoder=clip_vision(), feature_extractor=clip_processor()
    )


def upscale() -> diffusers.StableDiffusionUpscalePipeline:
    """A U-Net that reads a small noisy picture beside the sample, and is told how noisy it is."""
    parts = picked(sd_parts(in_channels=7, num_class_embeds=1000), *LATENT_PARTS)
    parts["vae"].register_to_config(scaling_factor=0.08333)  # the pipeline takes any other for a mistake
    return diffusers.StableDiffusionUpscalePipeline(**parts, low_res_scheduler=SCHEDULERS["ddpm"]())


def latent_upscale() -> diffusers.StableDiffusionLatentUpscalePipeline:
    """A U-Net of K blocks that predicts a fifth channel, which the pipeline cuts off."""
    unet = dict(
        in_channels=8,
        out_channels=5,
        down_block_types=("KDownBlock2D", "KCrossAttnDownBlock2D", "KCrossAttnDownBlock2D"),
        up_block_types=("KCrossAttnUpBlock2D", "KCrossAttnUpBlock2D", "KUpBlock2D"),
        mid_block_type=None,
        only_cross_attention=False,
        conv_in_kernel=1,
        conv_out_kernel=1,
        norm_num_groups=None,
        block_out_channels=(32, 64, 64),
        attention_head_dim=8,
        resnet_time_scale_shift="scale_shift",
        time_embedding_type="fourier",
        timestep_post_act="gelu",
        act_fn="gelu",
        time_cond_proj_dim=128 + 32,  # the noise level's embedding, and the text's
    )
    parts = picked(sd_parts("euler", **unet), "vae", "text_encoder", "tokenizer", "unet")
    return diffusers.StableDiffusionLatentUpscalePipeline(
        **parts, scheduler=SCHEDULERS["euler"](prediction_type="sample")
    )


def depth_to_image() -> diffusers.StableDiffusionDepth2ImgPipeline:
    """A U-Net that reads a map of depth beside the sample."""
    config = transformers.DPTConfig(
        image_size=32,
        patch_size=16,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=37,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[16, 16, 16, 16],
        fusion_hidden_size=16,
    )
    return diffusers.StableDiffusionDepth2ImgPipeline(
        **picked(sd_parts(in_channels=5), *LATENT_PARTS),
        depth_estimator=transformers.DPTForDepthEstimation(config).eval(),
        feature_extractor=processor_named("DPT")(size={"height": 32, "width": 32}),
    )


def panorama() -> diffusers.StableDiffusionPanoramaPipeline:
    """Two views side by side; the pipeline cuts them as if pictures were halved three times."""
    codes = diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
    )
    return diffusers.StableDiffusionPanoramaPipeline(**(sd_parts("ddim") | {"vae": vivid(codes.eval())}))


def cycle() -> diffusers.CycleDiffusionPipeline:
    """A picture's own noise is kept while the prompt changes; the last step needs a variance above 0."""
    return diffusers.CycleDiffusionPipeline(**(sd_parts() | {"scheduler": SCHEDULERS["ddim"](set_alpha_to_one=False)}))


def diffedit() -> diffusers.StableDiffusionDiffEditPipeline:
    parts = sd_parts("ddim")
    inverse = diffusers.DDIMInverseScheduler.from_config(parts["scheduler"].config)
    return diffusers.StableDiffusionDiffEditPipeline(**parts, inverse_scheduler=inverse)


def t2i_adapter() -> diffusers.StableDiffusionAdapterPipeline:
    parts = sd_parts()
    adapter = diffusers.T2IAdapter(
        in_channels=3, channels=[16, 32], num_res_blocks=1, downscale_factor=4, adapter_type="full_adapter"
    )
    return diffusers.StableDiffusionAdapterPipeline(**parts, adapter=adapter.eval())


def latent_consistency() -> diffusers.LatentConsistencyModelPipeline:
    """Guidance as a number that the U-Net is told, not as a second half of the batch."""
    parts = sd_parts(time_cond_proj_dim=32)
    louder(parts["unet"], "cond_proj", times=5.0)
    scheduler = diffusers.LCMScheduler.from_config(parts["scheduler"].config)
    return diffusers.LatentConsistencyModelPipeline(**(parts | {"scheduler": scheduler}))


def with_ip_adapter() -> diffusers.StableDiffusionPipeline:
    """A prompt and a picture, each with cross-attention of its own."""
    pipeline = diffusers.StableDiffusionPipeline(
        **sd_parts() | dict(image_encoder=clip_vision(), feature_extractor=clip_processor())
    )
    pipeline.load_ip_adapter(ip_adapter_weights(pipeline.unet), subfolder=None, weight_name=None)
    return pipeline


def ip_adapter_weights(unet: diffusers.UNet2DConditionModel, tokens: int = 4) -> dict[str, dict[str, torch.Tensor]]:
    """The weights of an adapter, named as published ones are."""
    text = unet.config.cross_attention_dim
    weights = {}
    places = [name for name in unet.attn_processors if "attn2" in name]
    for place, name in enumerate(places):
        width = unet.get_submodule(name.removesuffix(".processor")).to_q.out_features
        for side in ("k", "v"):
            weights[f"{2 * place + 1}.to_{side}_ip.weight"] = noise(width, text, seed=place) / 4
    project = {
        "proj.weight": noise(tokens * text, 32) / 4,
        "proj.bias": noise(tokens * text),
        "norm.weight": torch.ones(text),
        "norm.bias": torch.zeros(text),
    }
    return {"image_proj": project, "ip_adapter": weights}


CIRCLE = {"gligen_phrases": ["a red circle"], "gligen_boxes": [[0.1, 0.2, 0.6, 0.7]]}

WITH_MORE_INPUTS: dict[str, Family] = {
    "sd-inpaint": family(stable(diffusers.StableDiffusionInpaintPipeline, in_channels=9), "image inpaint", **MASKED),
    "sd-image-variation": promptless(image_variation, "image no-text", image=picture()),
    "sd-instruct-pix2pix": family(
        stable(diffusers.StableDiffusionInstructPix2PixPipeline, "euler", in_channels=8), "image", image=picture()
    ),
    "sd-upscale": family(upscale, "image", image=picture(8)),
    "sd-latent-upscale": family(latent_upscale, "image split-output", image=noise(1, 4, 8, 8)),
    "sd-depth": family(depth_to_image, "image img2img", **CHANGED, depth_map=noise(1, 32, 32)),
}
"""U-Nets that read a picture, a mask or a depth beside the sample."""

CONTROLLED_MORE: dict[str, Family] = {
    "sd-controlnet": family(controlled(diffusers.StableDiffusionControlNetPipeline), "image controlnet", **CONTROLLED),
    "sd-controlnet-half": family(
        controlled(diffusers.StableDiffusionControlNetPipeline),
        "image controlnet",
        **CONTROLLED,
        control_guidance_end=0.5,
    ),
    "sd-controlnet-pair": family(
        controlled(diffusers.StableDiffusionControlNetPipeline, count=2),
        "image controlnet",
        image=[picture(), picture(seed=1)],
        controlnet_conditioning_scale=[1.0, 0.5],
        **SMALL,
    ),
    "sd-controlnet-guess": family(
        controlled(diffusers.StableDiffusionControlNetPipeline), "image controlnet", **CONTROLLED, guess_mode=True
    ),
    "sd-controlnet-img2img": family(
        controlled(diffusers.StableDiffusionControlNetImg2ImgPipeline),
        "image img2img controlnet",
        **CHANGED,
        control_image=picture(seed=1),
        **SMALL,
    ),
    "sd-controlnet-inpaint": family(
        controlled(diffusers.StableDiffusionControlNetInpaintPipeline),
        "image inpaint controlnet",
        **MASKED,
        control_image=picture(seed=1),
    ),
    "sd-pag-controlnet": family(
        controlled(diffusers.StableDiffusionControlNetPAGPipeline), "image controlnet pag", **CONTROLLED
    ),
    "sd-t2i-adapter": family(t2i_adapter, "image adapter", **CONTROLLED),
    "sd-ip-adapter": family(with_ip_adapter, "image adapter", ip_adapter_image=picture()),
    "sd-gligen": family(
        stable(diffusers.StableDiffusionGLIGENPipeline, "ddim", attention_type="gated"), "image", **CIRCLE
    ),
}
"""Networks or attention of their own beside the U-Net's."""

FAMILIES: dict[str, Family] = {
    "sd-text": family(stable(diffusers.StableDiffusionPipeline), "image"),
    "sd-rescale": family(stable(diffusers.StableDiffusionPipeline), "image rescale", guidance_rescale=0.7),
    "sd-img2img": family(stable(diffusers.StableDiffusionImg2ImgPipeline), "image img2img", **CHANGED),
    "sd-inpaint-plain": family(
        stable(diffusers.StableDiffusionInpaintPipeline), "image img2img inpaint", **MASKED, strength=0.75
    ),
    "sd-diffedit": family(
        diffedit, "image img2img inpaint", image_latents=noise(1, 3, 4, 8, 8), mask_image=(noise(1, 8, 8) > 0).float()
    ),
    "sd-pag": family(stable(diffusers.StableDiffusionPAGPipeline), "image pag"),
    "sd-pag-img2img": family(stable(diffusers.StableDiffusionPAGImg2ImgPipeline), "image img2img pag", **CHANGED),
    "sd-pag-inpaint": family(stable(diffusers.StableDiffusionPAGInpaintPipeline), "image inpaint pag", **MASKED),
    "sd-sag": family(stable(diffusers.StableDiffusionSAGPipeline, "ddim"), "image"),
    "sd-attend-and-excite": family(
        stable(diffusers.StableDiffusionAttendAndExcitePipeline, "ddim"), "image", token_indices=[2, 3], attn_res=(8, 8)
    ),
    "sd-panorama": family(panorama, "image", height=32, width=576),
    "sd-semantic": family(
        stable(diffusers.SemanticStableDiffusionPipeline), "image", editing_prompt=["large"], edit_warmup_steps=1
    ),
    "sd-cycle": promptless(cycle, "image img2img", prompt="a red circle", source_prompt="a blue square", **CHANGED),
    "sd-latent-consistency": promptless(latent_consistency, "image", prompt="a red circle"),
    **WITH_MORE_INPUTS,
    **CONTROLLED_MORE,
}
