"""Pipelines and schedulers small enough to run in milliseconds, built from configs with random weights."""

import tempfile
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
