"""SDXL's pipelines: two text encoders, the picture's size beside the time step, and a schedule cut in two."""

from collections.abc import Callable
from typing import Any

import diffusers

from families.family import Family
from families.unet_parts import (
    CHANGED,
    CONTROLLED,
    MASKED,
    SMALL,
    XL,
    awake,
    controlnet,
    family,
    louder,
    noise,
    picture,
    sdxl_parts,
)


def extended(kind: type, scheduler: str = "euler", **changes: Any) -> Callable[[], Any]:
    """The builder of a pipeline from SDXL's parts, its U-Net with the changes named."""
    return lambda: kind(**sdxl_parts(scheduler, **changes))


def rescheduled(kind: type) -> Callable[[], Any]:
    """The builder of SDXL with a scheduler of this kind."""
    return lambda: diffusers.StableDiffusionXLPipeline(**(sdxl_parts() | {"scheduler": kind()}))


def controlled(kind: type) -> Callable[[], Any]:
    """The builder of a pipeline with a control network."""

    def build() -> Any:
        parts = sdxl_parts()
        return kind(**parts, controlnet=controlnet(parts["unet"]))

    return build


def union(kind: type) -> Callable[[], Any]:
    """The builder of a pipeline whose control network is told the kind of its picture."""

    def build() -> Any:
        parts = sdxl_parts()
        network = diffusers.ControlNetUnionModel(
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            block_out_channels=(16, 32),
            layers_per_block=1,
            norm_num_groups=8,
            conditioning_embedding_out_channels=(8, 16, 16),
            num_trans_channel=16,
            num_trans_head=2,
            num_proj_channel=16,
            **XL,
        )
        return kind(**parts, controlnet=louder(awake(network), "controlnet_cond_embedding"))

    return build


def t2i_adapter() -> diffusers.StableDiffusionXLAdapterPipeline:
    parts = sdxl_parts()
    del parts["add_watermarker"]
    adapter = diffusers.T2IAdapter(
        in_channels=3, channels=[16, 32], num_res_blocks=1, downscale_factor=4, adapter_type="full_adapter"
    )
    return diffusers.StableDiffusionXLAdapterPipeline(**parts, adapter=adapter.eval())


FAMILIES: dict[str, Family] = {
    "sdxl-text": family(extended(diffusers.StableDiffusionXLPipeline), "image", **SMALL),
    "sdxl-rescale": family(
        extended(diffusers.StableDiffusionXLPipeline), "image rescale", **SMALL, guidance_rescale=0.7
    ),
    "sdxl-first-half": family(
        extended(diffusers.StableDiffusionXLPipeline), "image", **SMALL, denoising_end=0.5, output_type="latent"
    ),
    "sdxl-second-half": family(
        extended(diffusers.StableDiffusionXLImg2ImgPipeline),
        "image img2img",
        image=noise(1, 4, 8, 8),
        denoising_start=0.5,
    ),
    "sdxl-edm-euler": family(rescheduled(diffusers.EDMEulerScheduler), "image", **SMALL),
    "sdxl-edm-dpm-solver": family(rescheduled(diffusers.EDMDPMSolverMultistepScheduler), "image", **SMALL),
    "sdxl-img2img": family(extended(diffusers.StableDiffusionXLImg2ImgPipeline), "image img2img", **CHANGED),
    "sdxl-inpaint": family(
        extended(diffusers.StableDiffusionXLInpaintPipeline, in_channels=9), "image inpaint", **MASKED
    ),
    "sdxl-inpaint-plain": family(
        extended(diffusers.StableDiffusionXLInpaintPipeline), "image img2img inpaint", **MASKED, strength=0.75
    ),
    "sdxl-instruct-pix2pix": family(
        extended(diffusers.StableDiffusionXLInstructPix2PixPipeline, in_channels=8), "image", **CONTROLLED
    ),
    "sdxl-controlnet": family(
        controlled(diffusers.StableDiffusionXLControlNetPipeline), "image controlnet", **CONTROLLED
    ),
    "sdxl-controlnet-img2img": family(
        controlled(diffusers.StableDiffusionXLControlNetImg2ImgPipeline),
        "image img2img controlnet",
        **CHANGED,
        control_image=picture(seed=1),
    ),
    "sdxl-controlnet-union": family(
        union(diffusers.StableDiffusionXLControlNetUnionPipeline),
        "image controlnet",
        control_image=[picture()],
        control_mode=[1],
        **SMALL,
    ),
    "sdxl-t2i-adapter": family(t2i_adapter, "image adapter", **CONTROLLED),
    "sdxl-pag": family(extended(diffusers.StableDiffusionXLPAGPipeline), "image pag", **SMALL),
    "sdxl-pag-img2img": family(extended(diffusers.StableDiffusionXLPAGImg2ImgPipeline), "image img2img pag", **CHANGED),
    "sdxl-pag-controlnet": family(
        controlled(diffusers.StableDiffusionXLControlNetPAGPipeline), "image controlnet pag", **CONTROLLED
    ),
}
