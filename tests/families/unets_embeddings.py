"""Pipelines in stages: a prior makes an embedding of a picture, and a U-Net paints it."""

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
from diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model import PaellaVQModel
from diffusers.pipelines.deprecated.wuerstchen.modeling_wuerstchen_diffnext import WuerstchenDiffNeXt
from diffusers.pipelines.deprecated.wuerstchen.modeling_wuerstchen_prior import WuerstchenPrior
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from small import SCHEDULERS, clip_text, t5_text, t5_words, tokenizer

from families.family import Family
from families.unet_parts import (
    SMALL,
    awake,
    clip_processor,
    clip_vision,
    family,
    louder,
    mask,
    noise,
    picked,
    picture,
    promptless,
    sd_parts,
    strong,
    text_unet,
    vivid,
)
from families.unets_pixels import SIMPLE

COSINE = dict(beta_schedule="squaredcos_cap_v2")


def prior() -> diffusers.PriorTransformer:
    """A transformer that turns a prompt into a picture's embedding."""
    transformer = diffusers.PriorTransformer(
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        embedding_dim=32,
        num_embeddings=tokenizer().model_max_length,
    )
    louder(transformer, "attn1.to_q", "attn1.to_k", times=5.0)
    return awake(louder(transformer, "proj_to_clip_embeddings", "attn1.to_v", "attn1.to_out"))


def prior_scheduler() -> diffusers.UnCLIPScheduler:
    return diffusers.UnCLIPScheduler(variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=5.0)


def prior_parts() -> dict[str, Any]:
    """The parts of a prior of Stable unCLIP, under the names of its pipeline."""
    return dict(
        prior_tokenizer=tokenizer(),
        prior_text_encoder=clip_text(projected=True),
        prior=prior(),
        prior_scheduler=prior_scheduler(),
    )


def noised_embedding() -> dict[str, Any]:
    """The parts of a Stable unCLIP pipeline that paint an embedding."""
    parts = sd_parts("ddim", class_embed_type="projection", projection_class_embeddings_input_dim=64)
    return dict(
        **picked(parts, "vae", "text_encoder", "tokenizer", "unet", "scheduler"),
        image_normalizer=StableUnCLIPImageNormalizer(embedding_dim=32),
        image_noising_scheduler=diffusers.DDPMScheduler(**COSINE),
    )


def stable_unclip() -> diffusers.StableUnCLIPPipeline:
    return diffusers.StableUnCLIPPipeline(**noised_embedding(), **prior_parts())


def stable_unclip_from_picture() -> diffusers.StableUnCLIPImg2ImgPipeline:
    return diffusers.StableUnCLIPImg2ImgPipeline(
        **noised_embedding(), image_encoder=clip_vision(), feature_extractor=clip_processor()
    )


def unclip() -> diffusers.UnCLIPPipeline:
    """Three U-Nets and a prior, each with its own schedule."""
    torch.manual_seed(0)
    decoder = text_unet(**SIMPLE, in_channels=3, out_channels=6, class_embed_type="identity")
    project = UnCLIPTextProjModel(clip_embeddings_dim=32, time_embed_dim=64, cross_attention_dim=32)
    finer = [
        diffusers.UNet2DModel(
            sample_size=16,
            in_channels=6,
            out_channels=3,
            block_out_channels=(16, 32),
            down_block_types=("ResnetDownsampleBlock2D",) * 2,
            up_block_types=("ResnetUpsampleBlock2D",) * 2,
            layers_per_block=1,
            norm_num_groups=8,
        ).eval()
        for _ in range(2)
    ]
    return diffusers.UnCLIPPipeline(
        prior=prior(),
        decoder=decoder,
        text_encoder=clip_text(projected=True),
        tokenizer=tokenizer(),
        text_proj=project.eval(),
        super_res_first=finer[0],
        super_res_last=finer[1],
        prior_scheduler=prior_scheduler(),
        decoder_scheduler=diffusers.UnCLIPScheduler(variance_type="learned_range", prediction_type="epsilon"),
        super_res_scheduler=diffusers.UnCLIPScheduler(variance_type="fixed_small_log", prediction_type="epsilon"),
    )


def codes(levels: int = 2) -> diffusers.VQModel:
    """A small autoencoder whose decoder is normalised by the codes themselves."""
    model = diffusers.VQModel(
        block_out_channels=(32,) * levels,
        down_block_types=("DownEncoderBlock2D",) * (levels - 1) + ("AttnDownEncoderBlock2D",),
        up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * (levels - 1),
        latent_channels=4,
        norm_num_groups=8,
        num_vq_embeddings=16,
        vq_embed_dim=4,
        norm_type="spatial",
    )
    return vivid(model.eval(), contrast=1.0)


def kandinsky(kind: type, scheduler: str = "ddim", levels: int = 2, **changes: Any) -> Callable[[], Any]:
    """The builder of a pipeline whose U-Net reads an embedding in the place of text, and predicts a variance too."""

    def build() -> Any:
        torch.manual_seed(0)
        sizes = dict(
            out_channels=8,
            addition_embed_type="image",
            encoder_hid_dim=32,
            encoder_hid_dim_type="image_proj",
            cross_attention_dim=32,
        )
        unet = louder(text_unet(**(SIMPLE | sizes | changes)), "input_hint_block", times=2.0)
        return kind(unet=unet, scheduler=SCHEDULERS[scheduler](), movq=codes(levels))

    return build


def kandinsky_prior(kind: type = diffusers.KandinskyV22PriorPipeline) -> Any:
    torch.manual_seed(0)
    return kind(
        prior=prior(),
        image_encoder=clip_vision(),
        text_encoder=clip_text(projected=True),
        tokenizer=tokenizer(),
        scheduler=prior_scheduler(),
        image_processor=clip_processor(),
    )


def kandinsky_3(kind: type) -> Callable[[], Any]:
    """The builder of a pipeline with T5's text and a U-Net whose every norm reads the time step."""

    def build() -> Any:
        torch.manual_seed(0)
        unet = diffusers.Kandinsky3UNet(
            time_embedding_dim=16,
            groups=4,
            attention_head_dim=4,
            layers_per_block=2,
            block_out_channels=(16, 32),
            cross_attention_dim=32,
            encoder_hid_dim=32,
        )
        return kind(
            tokenizer=t5_words(),
            text_encoder=t5_text(),
            unet=strong(unet),
            scheduler=SCHEDULERS["ddpm"](),
            movq=codes(levels=4),  # the pipeline counts on three halvings
        )

    return build


def paella(contrast: float) -> PaellaVQModel:
    """A small autoencoder that halves pictures twice, with grey in the middle of its pictures."""
    model = PaellaVQModel(bottleneck_blocks=1, embed_dim=16, num_vq_embeddings=16)
    with torch.no_grad():
        model.out_block[0].weight.mul_(contrast)
        model.out_block[0].bias.fill_(0.5)
    return awake(model)


def renewed(network: torch.nn.Module) -> Any:
    """Draw the last layers of a cascade's blocks again, since their own start shrinks them to nothing."""
    for name, layer in network.named_modules():
        if name.endswith("channelwise.4"):
            torch.nn.init.xavier_uniform_(layer.weight)
    return louder(awake(network), "_mapper", times=10.0)


def wuerstchen_prior() -> diffusers.WuerstchenPriorPipeline:
    torch.manual_seed(0)
    network = WuerstchenPrior(c_in=4, c=16, c_cond=32, c_r=16, depth=2, nhead=2, dropout=0.0)
    with torch.no_grad():
        network.out[1].weight[4:] *= 0.1  # the noise is divided by 1 minus this half
        network.out[1].bias[4:] = 0
    return diffusers.WuerstchenPriorPipeline(
        tokenizer=tokenizer(),
        text_encoder=clip_text(),
        prior=renewed(network),
        scheduler=diffusers.DDPMWuerstchenScheduler(),
    )


def wuerstchen() -> diffusers.WuerstchenDecoderPipeline:
    """Guidance whose first half has the text, and the second has none."""
    torch.manual_seed(0)
    network = WuerstchenDiffNeXt(
        c_cond=32,
        c_hidden=[16, 32],
        nhead=[-1, 2],
        blocks=[1, 1],
        level_config=["CT", "CTA"],
        inject_effnet=[False, True],
        effnet_embd=4,
        clip_embd=32,
        dropout=0.0,
    )
    return diffusers.WuerstchenDecoderPipeline(
        tokenizer=tokenizer(),
        text_encoder=clip_text(),
        decoder=renewed(network),
        scheduler=diffusers.DDPMWuerstchenScheduler(),
        vqgan=paella(contrast=1.0),
        latent_dim_scale=4.0,
    )


def cascade_unet(**sizes: Any) -> diffusers.models.StableCascadeUNet:
    network = diffusers.models.StableCascadeUNet(
        conditioning_dim=32,
        block_out_channels=(16, 32),
        num_attention_heads=(2, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        clip_text_pooled_in_channels=32,
        dropout=(0.0, 0.0),
        switch_level=(False,),
        **sizes,
    )
    return renewed(network)


def cascade_prior() -> diffusers.StableCascadePriorPipeline:
    torch.manual_seed(0)
    network = cascade_unet(in_channels=4, out_channels=4, clip_text_in_channels=32, clip_image_in_channels=32)
    return diffusers.StableCascadePriorPipeline(
        tokenizer=tokenizer(),
        text_encoder=clip_text(projected=True),
        prior=network,
        scheduler=diffusers.DDPMWuerstchenScheduler(),
    )


def cascade() -> diffusers.StableCascadeDecoderPipeline:
    torch.manual_seed(0)
    network = cascade_unet(in_channels=4, out_channels=4, patch_size=2, effnet_in_channels=4)
    return diffusers.StableCascadeDecoderPipeline(
        decoder=network,
        tokenizer=tokenizer(),
        text_encoder=clip_text(projected=True),
        scheduler=diffusers.DDPMWuerstchenScheduler(),
        vqgan=paella(contrast=0.1),
        latent_dim_scale=4.0,
    )


EMBEDDED = dict(image_embeds=noise(1, 32), negative_image_embeds=noise(1, 32, seed=1), **SMALL)
STAGES = dict(prior_num_inference_steps=2, decoder_num_inference_steps=4, super_res_num_inference_steps=2)
COMPRESSED = dict(image_embeddings=noise(1, 4, 4, 4), guidance_scale=2.0)

FAMILIES: dict[str, Family] = {
    "unclip-stable": family(stable_unclip, "image two-denoisers", prior_num_inference_steps=2),
    "unclip-stable-picture": family(stable_unclip_from_picture, "image", image=picture()),
    "unclip": Family(
        unclip,
        lambda: {"prompt": "a red circle", **STAGES},
        frozenset({"image", "pixel", "two-denoisers", "split-output"}),
    ),
    "kandinsky-2": promptless(kandinsky(diffusers.KandinskyV22Pipeline), "image no-text split-output", **EMBEDDED),
    "kandinsky-2-img2img": promptless(
        kandinsky(diffusers.KandinskyV22Img2ImgPipeline),
        "image img2img no-text split-output",
        image=picture(),
        strength=0.75,
        **EMBEDDED,
    ),
    "kandinsky-2-inpaint": promptless(
        kandinsky(diffusers.KandinskyV22InpaintPipeline, in_channels=9),
        "image inpaint no-text split-output",
        image=picture(),
        mask_image=mask(),
        **EMBEDDED,
    ),
    "kandinsky-2-controlnet": promptless(
        kandinsky(diffusers.KandinskyV22ControlnetPipeline, levels=4, in_channels=8, addition_embed_type="image_hint"),
        "image controlnet no-text split-output",
        hint=noise(1, 3, 64, 64),
        **(EMBEDDED | dict(height=64, width=64)),
    ),
    "kandinsky-2-prior": family(kandinsky_prior, ""),
    "kandinsky-3": family(kandinsky_3(diffusers.Kandinsky3Pipeline), "image", height=64, width=64),
    "kandinsky-3-img2img": family(
        kandinsky_3(diffusers.Kandinsky3Img2ImgPipeline), "image img2img", image=picture(64), strength=0.75
    ),
    "wuerstchen-prior": family(wuerstchen_prior, "", height=256, width=256),
    "wuerstchen": family(wuerstchen, "image", **COMPRESSED),
    "cascade-prior": family(cascade_prior, "", height=256, width=256),
    "cascade": family(cascade, "image", **COMPRESSED),
}
"""A prior has none of the layouts: its result is an embedding, not a picture."""
