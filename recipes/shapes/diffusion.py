"""Train the diffusion model: a text encoder and a U-Net that denoise the autoencoder's latents, v-prediction."""

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from loop import cached_latents, reduced, train
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer
from words import LENGTH, cached_tokens

from denoscope.worlds.shapes.scenes import Scene

UNET = dict(
    sample_size=16,
    in_channels=4,
    out_channels=4,
    block_out_channels=(64, 128, 128),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    layers_per_block=1,
    attention_head_dim=4,
    cross_attention_dim=128,
    norm_num_groups=16,
)
NOISE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction")
SAMPLING = dict(algorithm_type="dpmsolver++", timestep_spacing="trailing", steps_offset=1)
UNCONDITIONAL_SHARE = 0.1


class TextToLatent(torch.nn.Module):
    """The parts that are trained together: token ids and noisy latents in, the velocity out."""

    def __init__(self, text_encoder: CLIPTextModel, unet: UNet2DConditionModel):
        super().__init__()
        self.text_encoder, self.unet = text_encoder, unet

    def forward(self, latents: torch.Tensor, timesteps: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return self.unet(latents, timesteps, self.text_encoder(ids)[0], return_dict=False)[0]


def velocity_of(scheduler, clean: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """Return v = α ε − σ x0 (Salimans and Ho 2022)."""
    alpha = scheduler.alphas_cumprod[timesteps].sqrt()[:, None, None, None]
    sigma = (1 - scheduler.alphas_cumprod[timesteps]).sqrt()[:, None, None, None]
    return alpha * noise - sigma * clean


def stratified(batch: int, highest: int, random: torch.Generator) -> torch.Tensor:
    """Draw training time steps below `highest`, one from each of `batch` equal parts of the range.

    Every second step is drawn between a tenth and six tenths of the range, where shapes and textures are decided.
    """
    places = (torch.arange(batch) + torch.rand(batch, generator=random)) / batch
    places[::2] = 0.1 + 0.5 * places[::2]
    return (places * highest).long()


def crowded(count: int) -> torch.Tensor:
    """Return the training seeds below `count` whose scenes hold two objects, which are the harder ones."""
    return torch.tensor([seed for seed in range(count) if len(Scene.random(seed).things) == 2])


def main(folder: Path, minutes: float, count: int, peak: float, start: Path | None, batch: int = 32) -> None:
    """Train the diffusion model and save its pipeline."""
    torch.manual_seed(2)
    vae = AutoencoderTiny.from_pretrained(folder / "shapes" / "vae")
    words = CLIPTokenizer.from_pretrained(folder / "shapes" / "tokenizer")
    latents = cached_latents(folder, vae, count)
    ids = cached_tokens(folder, words, count)
    two = crowded(count)
    nothing = words("", padding="max_length", max_length=LENGTH, return_tensors="pt").input_ids
    scheduler = DPMSolverMultistepScheduler(**NOISE, **SAMPLING)
    text_encoder = CLIPTextModel(CLIPModel.from_pretrained(folder / "clip").config.text_config)
    text_encoder.load_state_dict(CLIPTextModel.from_pretrained(folder / "clip").state_dict())
    model = TextToLatent(text_encoder, UNet2DConditionModel(**UNET))
    text_encoder.set_attn_implementation("eager")
    model.unet.set_attn_processor(AttnProcessor())  # on a CPU the fused kernel's backward takes three times as long

    if start:
        model.text_encoder.load_state_dict(CLIPTextModel.from_pretrained(start / "text_encoder").state_dict())
        model.unet.load_state_dict(UNet2DConditionModel.from_pretrained(start / "unet").state_dict())

    def loss_of(step: int, worker: int) -> torch.Tensor:
        random = torch.Generator().manual_seed(1000 * step + worker)
        chosen = torch.randint(count, (batch,), generator=random)
        chosen[1::4] = two[torch.randint(len(two), chosen[1::4].shape, generator=random)]
        chosen[2::4] = two[torch.randint(len(two), chosen[2::4].shape, generator=random)]
        timesteps = stratified(batch, scheduler.config.num_train_timesteps, random)
        empty = torch.rand(batch, 1, generator=random) < UNCONDITIONAL_SHARE
        clean = latents[chosen].float()
        noise = torch.randn(clean.shape, generator=random)
        noisy = scheduler.alphas_cumprod[timesteps].sqrt()[:, None, None, None] * clean
        noisy = noisy + (1 - scheduler.alphas_cumprod[timesteps]).sqrt()[:, None, None, None] * noise
        with reduced():
            velocity = model(noisy, timesteps, torch.where(empty, nothing, ids[chosen]))
        return (velocity.float() - velocity_of(scheduler, clean, noise, timesteps)).square().mean()

    train(model, loss_of, folder / "diffusion", minutes, peak)
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=model.text_encoder,
        tokenizer=words,
        unet=model.unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder / "shapes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=100)
    parser.add_argument("--count", type=int, default=80_000, help="training scenes")
    parser.add_argument("--start", type=Path, help="folder of an earlier model whose weights to begin with")
    parser.add_argument("--peak", type=float, default=1e-3, help="highest learning rate")
    main(**vars(parser.parse_args()))
