"""Pipelines and schedulers small enough to run in milliseconds, built from configs with random weights."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import diffusers
import huggingface_hub.errors
import pytest
import torch
import transformers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import denoscope.recording.models
from denoscope.errors import InputError

BETAS = dict(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000, steps_offset=1
)

SCHEDULERS = {
    "ddpm": lambda **kw: diffusers.DDPMScheduler(**BETAS, clip_sample=False, **kw),
    "ddim": lambda **kw: diffusers.DDIMScheduler(**BETAS, clip_sample=False, **kw),
    "pndm": lambda **kw: diffusers.PNDMScheduler(**BETAS, skip_prk_steps=True, **kw),
    "dpm-solver++": lambda **kw: diffusers.DPMSolverMultistepScheduler(**BETAS, **kw),
    "euler": lambda **kw: diffusers.EulerDiscreteScheduler(**BETAS, **kw),
    "unipc": lambda **kw: diffusers.UniPCMultistepScheduler(**BETAS, **kw),
}


def tokenizer() -> CLIPTokenizer:
    """The bundled one: real words, real special tokens."""
    return CLIPTokenizer.from_pretrained(denoscope.recording.loading.bundled_folder("shapes") / "tokenizer")


def stable_diffusion() -> diffusers.StableDiffusionPipeline:
    torch.manual_seed(0)
    words = tokenizer()
    text = CLIPTextConfig(
        hidden_size=32,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        vocab_size=len(words),
        max_position_embeddings=words.model_max_length,
        eos_token_id=words.eos_token_id,
        bos_token_id=words.bos_token_id,
        pad_token_id=words.pad_token_id,
    )
    return diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(
            block_out_channels=(8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            latent_channels=4,
            norm_num_groups=4,
        ),
        text_encoder=CLIPTextModel(text).eval(),
        tokenizer=words,
        unet=conditional_unet(),
        scheduler=SCHEDULERS["dpm-solver++"](),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def conditional_unet(**options) -> diffusers.UNet2DConditionModel:
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=4,
        cross_attention_dim=32,
        norm_num_groups=8,
        **options,
    ).eval()


def pixel_unet() -> diffusers.UNet2DModel:
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=16,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=8,
    ).eval()


def latent_diffusion() -> diffusers.LDMTextToImagePipeline:
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

    torch.manual_seed(0)
    words = tokenizer()
    text = LDMBertConfig(
        vocab_size=len(words), d_model=32, encoder_layers=1, encoder_ffn_dim=32, encoder_attention_heads=2, head_dim=8
    )
    codes = diffusers.VQModel(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
        num_vq_embeddings=16,
    )
    return diffusers.LDMTextToImagePipeline(
        vqvae=codes.eval(),
        bert=LDMBertModel(text).eval(),
        tokenizer=words,
        unet=conditional_unet(),
        scheduler=SCHEDULERS["ddim"](),
    )


PIPELINES = {
    "stable-diffusion": stable_diffusion,
    "ddpm": lambda: diffusers.DDPMPipeline(pixel_unet(), SCHEDULERS["ddpm"]()),
    "ddim": lambda: diffusers.DDIMPipeline(pixel_unet(), SCHEDULERS["ddim"]()),
    "latent-diffusion": latent_diffusion,
}


def t5_words() -> transformers.T5TokenizerFast:
    """A T5 tokenizer that has every word of the bundled one whole, and its letters."""
    pieces = sorted(piece.removesuffix("</w>") for piece in tokenizer().get_vocab() if piece.endswith("</w>"))
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -100.0)]
    words = [(f"▁{piece}", -1.0) for piece in pieces]
    return transformers.T5TokenizerFast(vocab=special + words, extra_ids=0, model_max_length=16)


def clip_text(projected: bool = False) -> transformers.CLIPTextModel:
    """A small text tower of CLIP for the bundled tokenizer."""
    words = tokenizer()
    config = CLIPTextConfig(
        hidden_size=32,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        projection_dim=32,
        vocab_size=len(words),
        max_position_embeddings=words.model_max_length,
        eos_token_id=words.eos_token_id,
        bos_token_id=words.bos_token_id,
        pad_token_id=words.pad_token_id,
    )
    kind = transformers.CLIPTextModelWithProjection if projected else CLIPTextModel
    return kind(config).eval()


def t5_text(kind: str = "T5", width: int = 32) -> torch.nn.Module:
    """A small encoder of T5 for `t5_words`, or of its multilingual form, "UMT5"."""
    sizes = dict(vocab_size=len(t5_words()), d_model=width, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
    config = getattr(transformers, f"{kind}Config")(**sizes, dropout_rate=0.0)
    return getattr(transformers, f"{kind}EncoderModel")(config).eval()


def autoencoder(channels: int = 4, **options) -> diffusers.AutoencoderKL:
    """A small autoencoder that halves pictures twice."""
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=channels,
        norm_num_groups=4,
        **options,
    ).eval()


def sdxl() -> diffusers.StableDiffusionXLPipeline:
    """Two text encoders, and the size of the picture beside the time step."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=1,
        projection_class_embeddings_input_dim=6 * 8 + 32,
        cross_attention_dim=64,
        norm_num_groups=8,
    )
    return diffusers.StableDiffusionXLPipeline(
        vae=autoencoder(),
        text_encoder=clip_text(),
        text_encoder_2=clip_text(projected=True),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        unet=unet.eval(),
        scheduler=SCHEDULERS["euler"](),
        add_watermarker=False,
    )


def stable_diffusion_3() -> diffusers.StableDiffusion3Pipeline:
    """Three text encoders, joint attention of text and picture, flow matching."""
    torch.manual_seed(0)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=64,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        out_channels=4,
    )
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=autoencoder(shift_factor=0.1),
        text_encoder=clip_text(projected=True),
        tokenizer=tokenizer(),
        text_encoder_2=clip_text(projected=True),
        tokenizer_2=tokenizer(),
        text_encoder_3=t5_text(width=64),
        tokenizer_3=t5_words(),
    )


def flux() -> diffusers.FluxPipeline:
    """Samples packed as (pictures, positions, channels), distilled guidance, joint attention."""
    torch.manual_seed(0)
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )
    return diffusers.FluxPipeline(
        transformer=transformer.eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=autoencoder(shift_factor=0.1),
        text_encoder=clip_text(),
        tokenizer=tokenizer(),
        text_encoder_2=t5_text(),
        tokenizer_2=t5_words(),
    )


def pixart() -> diffusers.PixArtAlphaPipeline:
    """A transformer with cross-attention that predicts a variance beside the noise."""
    torch.manual_seed(0)
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=32,
        in_channels=4,
        cross_attention_dim=24,
        out_channels=8,
        norm_type="ada_norm_single",
        use_additional_conditions=False,
    )
    return diffusers.PixArtAlphaPipeline(
        tokenizer=t5_words(),
        text_encoder=t5_text(),
        vae=autoencoder(),
        transformer=transformer.eval(),
        scheduler=SCHEDULERS["dpm-solver++"](),
    )


def dit() -> diffusers.DiTPipeline:
    """A transformer that is told a class and no text, and doubles its samples for guidance."""
    torch.manual_seed(0)
    transformer = diffusers.DiTTransformer2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_zero",
    )
    return diffusers.DiTPipeline(transformer=transformer.eval(), vae=autoencoder(), scheduler=SCHEDULERS["ddim"]())


def animatediff() -> diffusers.AnimateDiffPipeline:
    """A video: Stable Diffusion's U-Net with motion between frames, samples (videos, channels, frames, h, w)."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=4,
        cross_attention_dim=32,
        norm_num_groups=8,
    )
    motion = diffusers.MotionAdapter(
        block_out_channels=(16, 32),
        motion_layers_per_block=1,
        motion_norm_num_groups=2,
        motion_num_attention_heads=4,
    )
    pipeline = diffusers.AnimateDiffPipeline(
        vae=autoencoder(),
        text_encoder=clip_text(),
        tokenizer=tokenizer(),
        unet=unet.eval(),
        motion_adapter=motion.eval(),
        scheduler=SCHEDULERS["ddim"](),
    )
    pipeline.unet.eval()
    return pipeline


def wan() -> diffusers.WanPipeline:
    """A video: a transformer with cross-attention that is called once for each half of guidance."""
    torch.manual_seed(0)
    transformer = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=32,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )
    codes = diffusers.AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    return diffusers.WanPipeline(
        tokenizer=t5_words(),
        text_encoder=t5_text("UMT5"),
        vae=codes.eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        transformer=transformer.eval(),
    )


TEXT = {"prompt": "a red circle"}
SHORT = {**TEXT, "max_sequence_length": 16}
SMALL = {"height": 32, "width": 32}

FAMILIES: dict[str, tuple[Callable, dict]] = {
    "stable-diffusion": (stable_diffusion, TEXT),
    "sdxl": (sdxl, {**TEXT, **SMALL, "negative_prompt": "a blue square"}),  # without one it reads zeros
    "sd3": (stable_diffusion_3, {**SHORT, **SMALL}),
    "flux": (flux, {**SHORT, "height": 32, "width": 48}),
    "pixart": (pixart, {**SHORT, **SMALL, "use_resolution_binning": False, "clean_caption": False}),
    "dit": (dit, {"class_labels": [3]}),
    "ddpm": (PIPELINES["ddpm"], {}),
    "ddim": (PIPELINES["ddim"], {}),
    "latent-diffusion": (latent_diffusion, TEXT),
    "animatediff": (animatediff, {**TEXT, **SMALL, "num_frames": 2}),
    "wan": (wan, {**SHORT, **SMALL, "num_frames": 5}),
}
"""Every family that is built here, and its call's arguments: `test_conformance.py` runs every method on each."""


def saved(pipeline) -> Path:
    """A folder that the pipeline was saved to."""
    folder = Path(tempfile.mkdtemp()) / "pipeline"
    pipeline.save_pretrained(folder)
    return folder


def processor_named(kind: str):
    """An image processor of transformers that needs no torchvision."""
    pil = f"{kind}ImageProcessorPil"
    return getattr(transformers, pil if hasattr(transformers, pil) else f"{kind}ImageProcessor")


def saved_clip(folder: Path) -> Path:
    """A folder with a small CLIP, and the bundled tokenizer."""
    torch.manual_seed(0)
    words = tokenizer()
    tower = dict(hidden_size=32, intermediate_size=37, num_attention_heads=4, num_hidden_layers=2)
    special = dict(eos_token_id=words.eos_token_id, bos_token_id=words.bos_token_id, pad_token_id=words.pad_token_id)
    config = transformers.CLIPConfig(
        text_config=dict(**tower, vocab_size=len(words), max_position_embeddings=32, **special),
        vision_config=dict(**tower, image_size=16, patch_size=8),
        projection_dim=24,
    )
    transformers.CLIPModel(config).save_pretrained(folder)
    processor = processor_named("CLIP")(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    transformers.CLIPProcessor(processor, words).save_pretrained(folder)
    return folder


def refusal(call, *args, kind=InputError, **kwargs) -> str:
    """The one paragraph that a call is refused with."""
    with pytest.raises(kind) as refused:
        call(*args, **kwargs)
    message = str(refused.value)
    assert "\n" not in message and message.endswith((".", "!", "?")), message
    return message


HUB_SAYS = [("GatedRepoError", "asks for consent"), ("RepositoryNotFoundError", "no such model")]


def failing_hub(name):
    """A from_pretrained that fails as the library's does, over an error of the hub."""

    def fail(*args, **kwargs):
        kind = getattr(huggingface_hub.errors, name)
        raise OSError("see the stack trace above") from kind.__new__(kind)

    return fail
