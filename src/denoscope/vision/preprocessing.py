"""What turns pictures into a network's inputs: a PIL image in RGB, or tensors (n, 3, H, W) in [0, 1]."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from ..errors import InputError, in_short

Preprocess = Callable[[Image.Image], torch.Tensor]

PROBE = (224, 224)
"""Height and width of the pictures that preprocessing is tried with, where it resizes by itself."""
PERTURBED = 1.0
"""How far beyond [0, 1] the values of a picture may be; more is a slip of scale."""


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


def check_images(tensor: Any, who: str, what: str, size: tuple[int | str, int | str]) -> None:
    """Refuse what is not (n, 3, *size) of floating point; a side that is named and not numbered may be any."""
    right = isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and tensor.ndim == 4
    sides = zip(tensor.shape[2:], size, strict=True) if right else ()
    if not right or tensor.shape[1] != 3 or any(isinstance(a, int) and a != side for side, a in sides):
        shape, kind = getattr(tensor, "shape", None), getattr(tensor, "dtype", type(tensor).__name__)
        given = f"{kind}" if shape is None else f"{kind} of shape {tuple(shape)}"
        raise InputError(
            f"{who} was given {given}. Its {what} are a tensor of floating point numbers of shape "
            f"(n, 3, {size[0]}, {size[1]})."
        )


def check_pictures(images: Any, who: str) -> None:
    """Refuse what is not pictures (n, 3, H, W) with values about [0, 1]."""
    check_images(images, who, "pictures", ("H", "W"))
    if images.numel() and (beyond := float((images.detach() - 0.5).abs().max())) > PERTURBED + 0.5:
        raise InputError(
            f"Pictures have values in [0, 1], and one of these is {beyond - 0.5:.3g} beyond that; perturbing may "
            f"take them {PERTURBED} beyond. Divide pixels from 0 to 255 by 255 first."
        )


def normalised(
    images: torch.Tensor, size: tuple[int, int], mean: tuple[float, ...], std: tuple[float, ...]
) -> torch.Tensor:
    """Inputs (n, 3, *size) of pictures (n, 3, H, W) in [0, 1]: the whole picture resized, (pixel − mean) / std.

    Bilinear, with antialiasing; differentiable.
    """
    if images.shape[-2:] != size:
        images = interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
    return (images - channels(mean, images)) / channels(std, images)
