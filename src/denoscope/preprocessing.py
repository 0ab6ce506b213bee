"""What turns a PIL image in RGB into a classifier's input (3, h, w)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from .errors import InputError
from .models import in_short

Preprocess = Callable[[Image.Image], torch.Tensor]

PROBE = (224, 224)
"""Height and width of the pictures that preprocessing is tried with, where it resizes by itself."""


@dataclass(frozen=True)
class CentreCrop:
    """The largest centred crop of the inputs' proportions, `crop` of it, resized to `size` (h, w) and normalised.

    "Resize the short side to 256, crop 224 from the centre" is `crop=224 / 256`, done in one resampling (bicubic)
    that reads no more of the picture than it needs.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float = 1.0

    def __call__(self, image: Image.Image) -> torch.Tensor:
        height, width = self.size
        scale = self.crop * min(image.width / width, image.height / height)
        left, top = (image.width - scale * width) / 2, (image.height - scale * height) / 2
        box = (max(left, 0), max(top, 0), min(image.width - left, image.width), min(image.height - top, image.height))
        small = image.resize((width, height), Image.Resampling.BICUBIC, box=box)
        images = torch.from_numpy(np.array(small)).permute(2, 0, 1) / 255
        return (images - channels(self.mean, images)) / channels(self.std, images)


@dataclass(frozen=True)
class OwnProcessor:
    """The image processor that a model of transformers comes with."""

    processor: Callable[..., Any]

    def __call__(self, image: Image.Image) -> torch.Tensor:
        return self.processor(images=image, return_tensors="pt")["pixel_values"][0]


def preprocessed(preprocess: Preprocess, image: Image.Image) -> torch.Tensor:
    inputs = preprocess(image)
    if not isinstance(inputs, torch.Tensor) or not inputs.is_floating_point() or inputs.ndim != 3 or len(inputs) != 3:
        given = f"{inputs.dtype} {tuple(inputs.shape)}" if isinstance(inputs, torch.Tensor) else type(inputs).__name__
        raise InputError(
            f"The preprocessing made {given} of a picture. It must make a tensor of floating point numbers of shape "
            "(3, height, width)."
        )
    return inputs


def measured(
    preprocess: Preprocess, size: tuple[int, int]
) -> tuple[tuple[int, int], tuple[float, ...], tuple[float, ...]]:
    """Size, mean and std of the inputs, read off a black and a white picture and checked with an orange one."""
    colours = (0, 0, 0), (255, 255, 255), (255, 128, 0)
    try:
        tried = [preprocessed(preprocess, Image.new("RGB", size[::-1], colour)) for colour in colours]
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"The preprocessing failed on a picture of one colour: {in_short(error)}") from error
    height, width = tried[0].shape[1:]
    black, white, orange = (inputs[:, height // 2, width // 2].double() for inputs in tried)
    std = 1 / (white - black)
    mean = -black * std
    pixel = torch.tensor([1, 128 / 255, 0], dtype=torch.float64, device=mean.device)
    if not torch.allclose(orange * std + mean, pixel, atol=1e-3):
        raise InputError(
            "The preprocessing does not turn each colour channel of a picture by itself into (pixel − mean) / std: a "
            "black, a white and an orange picture do not agree. Use one that does, with the channels in RGB order."
        )
    return (height, width), tuple(mean.tolist()), tuple(std.tolist())


def channels(values: tuple[float, ...], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]
