"""Train the autoencoder: 64×64×3 pictures to 16×16×4 latents and back.

Noise on the latents and a small penalty on their size do what the KL term does in a variational autoencoder: near
latents decode to near pictures, and a latent has a standard deviation of about one.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from loop import cached_latents, cached_pictures, reduced, to_tensor, train

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
CROP, CELL = 32, 4  # pixels: the side of a training crop, and of a latent's cell


def corners(pictures: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw top left corners, in cells, (n, 2): one crop of each picture, around a pixel that is not background."""
    differs = np.abs(pictures.astype(np.int16) - pictures[:, :1, :1]).max(-1) > 20
    chosen = np.stack([pixels[rng.integers(len(pixels))] for pixels in map(np.argwhere, differs)])
    shift = rng.integers(-CROP // 4, CROP // 4, chosen.shape) - CROP // 2
    return np.clip(chosen + shift, 0, pictures.shape[1] - CROP) // CELL


def cropped(pictures: np.ndarray, corners: np.ndarray, side: int) -> np.ndarray:
    """Cut one square of `side` rows and columns from each picture (n, height, width, channels)."""
    return np.stack([p[y : y + side, x : x + side] for p, (y, x) in zip(pictures, corners, strict=True)])


def error_of(decoded: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return the mean absolute plus the mean squared error."""
    error = decoded.float() - x
    return error.abs().mean() + error.square().mean()


def main(folder: Path, minutes: float, count: int, batch: int = 12) -> None:
    """Train encoder and decoder together."""
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    data = cached_pictures(folder, count)
    vae = AutoencoderTiny(**CONFIG)

    def loss_of(step: int, worker: int) -> torch.Tensor:
        rng, random = np.random.default_rng([step, 2, worker]), torch.Generator().manual_seed(2 * step + worker)
        pictures = data[np.sort(rng.integers(0, count, batch))]
        x = to_tensor(cropped(pictures, CELL * corners(pictures, rng), CROP))
        with reduced():
            latents = vae.encode(x).latents
            decoded = vae.decode(latents + LATENT_NOISE * torch.randn(latents.shape, generator=random)).sample
        return error_of(decoded, x) + LATENT_PENALTY * latents.float().square().mean()

    train(vae, loss_of, folder / "autoencoder", minutes, peak=2e-3)
    with torch.inference_mode():
        latents = vae.encode(to_tensor(data[:512])).latents
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    save(vae, data, folder)


def refine(folder: Path, minutes: float, count: int, batch: int = 12) -> None:
    """Train the decoder alone, on the latents that the diffusion model was trained on; the latents stay the same."""
    data, vae = cached_pictures(folder, count), AutoencoderTiny.from_pretrained(folder / "shapes" / "vae")
    cached = cached_latents(folder, vae, count) / vae.config.scaling_factor

    def loss_of(step: int, worker: int) -> torch.Tensor:
        rng, random = np.random.default_rng([step, 5, worker]), torch.Generator().manual_seed(2 * step + worker)
        chosen = np.sort(rng.integers(0, count, batch))
        pictures, latents = data[chosen], cached[chosen].float().movedim(1, -1).numpy()
        places = corners(pictures, rng)
        x = to_tensor(cropped(pictures, CELL * places, CROP))
        latents = torch.from_numpy(cropped(latents, places, CROP // CELL)).movedim(-1, 1)
        with reduced():
            decoded = vae.decode(latents + LATENT_NOISE * torch.randn(latents.shape, generator=random)).sample
        return error_of(decoded, x)

    train(vae.decoder, loss_of, folder / "decoder", minutes, peak=2e-4)
    save(vae, data, folder)


def save(vae: AutoencoderTiny, data: np.ndarray, folder: Path) -> None:
    with torch.inference_mode():
        x = to_tensor(data[:512])
        print("mean squared error", (vae.decode(vae.encode(x).latents).sample - x).square().mean().item())
    vae.save_pretrained(folder / "shapes" / "vae")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--count", type=int, default=80_000, help="training scenes")
    parser.add_argument("--refine", action="store_true", help="go on with the decoder alone")
    options = vars(parser.parse_args())
    job = refine if options.pop("refine") else main
    job(**options)
