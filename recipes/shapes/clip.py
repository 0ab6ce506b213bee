"""Train the small CLIP: pictures and texts of the same scenes, contrasted within each batch.

A picture's text is its caption or any phrase that is true of it ("striped red", "a cross on a pink background"); beside
it stand phrases with one word changed, which is what teaches shapes and textures. Texts that happen to be true of
another picture of the batch are no counter-examples to it. Its text encoder is where the diffusion model's starts from.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from loop import cached_pictures, reduced, to_tensor, train
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor
from words import LENGTH, tokenizer

from denoscope.worlds.shapes.scenes import BACKGROUNDS, COLOURS, SHAPES, SIZES, TEXTURES, Scene, caption

WIDTH = 128
LAYER = dict(hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_attention_heads=4)
STATISTICS = dict(image_mean=[0.5] * 3, image_std=[0.5] * 3)


def config(words) -> CLIPConfig:
    """Return the configuration of the small CLIP for a tokenizer."""
    ends = dict(bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id)
    text = dict(**LAYER, **ends, num_hidden_layers=3, vocab_size=len(words), max_position_embeddings=LENGTH)
    vision = dict(**LAYER, num_hidden_layers=4, image_size=64, patch_size=8)
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)


ALTERED = 3  # phrases with one word changed, for each picture
OFTEN = np.array([1, 2, 1, 5, 1])  # how often each fact of `Facts` is the changed one: shapes are learned last


class Facts(NamedTuple):
    """The facts in a phrase about one thing and the background; None for a fact that is left out."""

    size: str | None
    texture: str | None
    colour: str | None
    shape: str | None
    background: str | None

    def __str__(self) -> str:
        thing = [word for word in (self.size, self.texture, self.colour, self.shape) if word]
        ground = [self.background, "background"] if self.background else []
        article = ["an" if thing[0][0] in "aeiou" else "a"] if self.shape else []
        return " ".join([*article, *thing, *(["on", "a"] if thing and ground else []), *ground])


CHOICES = tuple(map(tuple, (SIZES, TEXTURES, COLOURS, SHAPES, BACKGROUNDS)))


def facts_of(scene: Scene) -> list[Facts]:
    """Return the complete facts of each thing of a scene."""
    return [Facts(t.size, t.texture, t.colour, t.shape, scene.background) for t in scene.things]


def some(facts: Facts, rng: np.random.Generator) -> Facts:
    """Leave out a random part, never everything."""
    included = rng.random(5) < rng.choice([0.3, 0.6, 1.0])
    included[rng.integers(5)] = True
    return Facts(*(fact if include else None for fact, include in zip(facts, included, strict=True)))


def altered(facts: Facts, rng: np.random.Generator) -> Facts:
    """Change one of the facts that are in a phrase."""
    values = list(facts)
    weights = OFTEN * np.array([value is not None for value in values])
    place = rng.choice(len(values), p=weights / weights.sum())
    values[place] = str(rng.choice([value for value in CHOICES[place] if value != values[place]]))
    return Facts(*values)


def coded(facts: Facts | None) -> list[int]:
    """Return each fact's number among its choices, −1 if it is left out; −2, which nothing equals, for other texts."""
    if facts is None:
        return [-2] * len(CHOICES)
    return [-1 if fact is None else choices.index(fact) for fact, choices in zip(facts, CHOICES, strict=True)]


def texts_of(scenes: list[Scene], rng: np.random.Generator) -> tuple[list[str], np.ndarray]:
    """Return a text for each scene, then altered phrases; and the truth of each text of each scene, (scenes, texts)."""
    own, wrong = [], []
    for scene in scenes:
        things = facts_of(scene)
        thing = things[rng.integers(len(things))]
        own.append(None if rng.random() < 0.3 else some(thing, rng))
        wrong += [altered(some(thing, rng), rng) for _ in range(ALTERED)]
    codes = np.array([coded(facts) for facts in own + wrong])
    true = [[((codes == -1) | (codes == coded(thing))).all(1) for thing in facts_of(scene)] for scene in scenes]
    captions = [str(caption(scene, complete=False)) for scene in scenes]
    texts = [str(f or c) for f, c in zip(own, captions, strict=True)] + [str(f) for f in wrong]
    return texts, np.array([np.any(things, axis=0) for things in true])


def contrast(logits: torch.Tensor, true: np.ndarray) -> torch.Tensor:
    """Return the cross-entropy of each picture's text among the texts, and of each text's picture among pictures."""
    pictures, own = len(logits), torch.arange(len(logits))
    also_true = torch.from_numpy(true) & ~torch.eye(*logits.shape, dtype=torch.bool)
    logits = logits.masked_fill(also_true, float("-inf"))
    of_texts = torch.nn.functional.cross_entropy(logits[:, :pictures].T, own)
    return (torch.nn.functional.cross_entropy(logits, own) + of_texts) / 2


def main(folder: Path, minutes: float, count: int, start: Path | None, batch: int = 64) -> None:
    """Train the CLIP and save it."""
    torch.manual_seed(1)
    words = tokenizer(folder / "shapes" / "tokenizer")
    words.save_pretrained(folder / "shapes" / "tokenizer")
    data = cached_pictures(folder, count)
    clip = CLIPModel(config(words))
    if start:
        clip.load_state_dict(CLIPModel.from_pretrained(start).state_dict())
    clip.set_attn_implementation("eager")

    def loss_of(step: int, worker: int) -> torch.Tensor:
        rng = np.random.default_rng([step, 3, worker])
        chosen = np.sort(rng.integers(0, count, batch))
        texts, true = texts_of([Scene.random(int(seed)) for seed in chosen], rng)
        ids = words(texts, padding=True, return_tensors="pt")
        with reduced():
            out = clip(**ids, pixel_values=to_tensor(data[chosen]))
        return contrast(out.logits_per_image.float(), true)

    train(clip, loss_of, folder / "clip-training", minutes, peak=1e-3)
    clip.save_pretrained(folder / "clip")
    size = dict(height=64, width=64)
    pictures = CLIPImageProcessor(size=size, crop_size=size, do_center_crop=False, **STATISTICS)
    CLIPProcessor(pictures, words).save_pretrained(folder / "clip")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--count", type=int, default=80_000, help="training scenes")
    parser.add_argument("--start", type=Path, help="folder of an earlier CLIP whose weights to begin with")
    main(**vars(parser.parse_args()))
