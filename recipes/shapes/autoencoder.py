"""Train the autoencoder: 64×64×3 pictures to 16×16×4 latents and back.

Noise on the latents and a small penalty on their size do what the KL term does in a variational autoencoder: near
latents decode to near pictures, and a latent has a standard deviation of about one.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from loop import cached_pictures, to_tensor, train

CHANNELS = (32, 32, 32)
CONFIG = dict(
    encoder_block_out_channels=CHANNELS,
    decoder_block_out_channels=CHANNELS,
    num_encoder_blocks=(1, 2, 3),
    num_decoder_blocks=(4, 2, 1),
    latent_channels=4,
)
LATENT_NOISE = 0.1
LATENT_PENALTY = 1e-3


CROP = 32


def crops(pictures: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A 32×32 crop of each picture around a pixel that is not background: where there is something to learn."""
    differs = np.abs(pictures.astype(np.int16) - pictures[:, :1, :1]).max(-1) > 20
    out = np.empty((len(pictures), CROP, CROP, 3), np.uint8)
    for i, picture in enumerate(pictures):
        rows, columns = np.nonzero(differs[i])
        pixel = rng.integers(len(rows))
        shift = rng.integers(-CROP // 4, CROP // 4, 2)
        top, left = np.clip(np.array([rows[pixel], columns[pixel]]) + shift - CROP // 2, 0, pictures.shape[1] - CROP)
        out[i] = picture[top : top + CROP, left : left + CROP]
    return out


def main(folder: Path, minutes: float, count: int, batch: int = 24) -> None:
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    data = cached_pictures(folder, count)
    vae = AutoencoderTiny(**CONFIG).to(memory_format=torch.channels_last)

    def loss_of(step: int) -> torch.Tensor:
        rng = np.random.default_rng([step, 2])
        x = to_tensor(crops(data[np.sort(rng.integers(0, count, batch))], rng)).contiguous(
            memory_format=torch.channels_last
        )
        with torch.autocast("cpu", torch.bfloat16):
            latents = vae.encode(x).latents
            decoded = vae.decode(latents + LATENT_NOISE * torch.randn_like(latents)).sample
        error = decoded.float() - x
        return error.abs().mean() + error.square().mean() + LATENT_PENALTY * latents.float().square().mean()

    train(vae, loss_of, folder / "autoencoder", minutes, peak=2e-3)
    with torch.inference_mode():
        x = to_tensor(data[:512])
        latents = vae.encode(x).latents
        print("mean squared error", (vae.decode(latents).sample - x).square().mean().item())
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    vae.save_pretrained(folder / "shapes" / "vae")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--count", type=int, default=60_000, help="training scenes")
    main(**vars(parser.parse_args()))
