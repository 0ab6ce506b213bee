"""Train the small CLIP: pictures and captions of the same scenes, contrasted within each batch.

Its text encoder is where the diffusion model's text encoder starts from.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from loop import cached_pictures, to_tensor, train
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor
from words import LENGTH, cached_tokens, tokenizer

WIDTH = 128
LAYER = dict(hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_attention_heads=4)
STATISTICS = dict(image_mean=[0.5] * 3, image_std=[0.5] * 3)


def config(words) -> CLIPConfig:
    ends = dict(bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id)
    text = dict(**LAYER, **ends, num_hidden_layers=3, vocab_size=len(words), max_position_embeddings=LENGTH)
    vision = dict(**LAYER, num_hidden_layers=4, image_size=64, patch_size=8)
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)


def main(folder: Path, minutes: float, count: int, batch: int = 64) -> None:
    torch.manual_seed(1)
    words = tokenizer(folder / "shapes" / "tokenizer")
    words.save_pretrained(folder / "shapes" / "tokenizer")
    data = cached_pictures(folder, count)
    ids = cached_tokens(folder, words, count)
    clip = CLIPModel(config(words))

    def loss_of(step: int, worker: int) -> torch.Tensor:
        chosen = np.sort(np.random.default_rng([step, 3, worker]).integers(0, count, batch))
        with torch.autocast("cpu", torch.bfloat16):
            out = clip(input_ids=ids[chosen], pixel_values=to_tensor(data[chosen]))
        logits, own = out.logits_per_text.float(), torch.arange(batch)
        return (torch.nn.functional.cross_entropy(logits, own) + torch.nn.functional.cross_entropy(logits.T, own)) / 2

    train(clip, loss_of, folder / "clip-training", minutes, peak=1e-3, every=100)
    clip.save_pretrained(folder / "clip")
    size = dict(height=64, width=64)
    pictures = CLIPImageProcessor(size=size, crop_size=size, do_center_crop=False, **STATISTICS)
    CLIPProcessor(pictures, words).save_pretrained(folder / "clip")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--count", type=int, default=80_000, help="training scenes")
    main(**vars(parser.parse_args()))
