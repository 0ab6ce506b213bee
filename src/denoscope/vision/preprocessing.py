"""Preprocessing: from pictures, a PIL image in RGB or tensors (n, 3, H, W) in [0, 1], to a network's inputs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from ..errors import InputError, one_line, sentence

Preprocess = Callable[[Image.Image], torch.Tensor]
"""A function from a PIL image in RGB to a network's input (3, h, w)."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's pixels in [0, 1]: most classifiers, the study's too, normalise by them."""
PROBE = (224, 224)
"""Height and width of the pictures that preprocessing is tried with, where it resizes by itself."""
PERTURBED = 1.0
"""The largest distance of a picture's values from [0, 1]; a larger one is a mistake of scale."""


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
        inputs: torch.Tensor = self.processor(images=image, return_tensors="pt")["pixel_values"][0]
        return inputs


def preprocessed(preprocess: Preprocess, image: Image.Image) -> torch.Tensor:
    """Return the input (3, h, w) of a picture; raises `InputError` where the preprocessing makes anything else."""
    inputs = preprocess(image)
    if not isinstance(inputs, torch.Tensor) or not inputs.is_floating_point() or inputs.ndim != 3 or len(inputs) != 3:
        result = f"{inputs.dtype} {tuple(inputs.shape)}" if isinstance(inputs, torch.Tensor) else type(inputs).__name__
        raise InputError(
            f"The preprocessing made {result} of a picture. It must make a tensor of floating point numbers of shape "
            "(3, height, width)."
        )
    return inputs


def measured(
    preprocess: Preprocess, size: tuple[int, int]
) -> tuple[tuple[int, int], tuple[float, ...], tuple[float, ...]]:
    """Return size, mean and std of the inputs, measured on a black and a white picture of a size (height, width).

    An orange picture checks them. Raises `InputError` for a preprocessing that fails, or is not linear in each channel.
    """
    colours = (0, 0, 0), (255, 255, 255), (255, 128, 0)
    try:
        inputs_by_colour = [preprocessed(preprocess, Image.new("RGB", size[::-1], colour)) for colour in colours]
    except InputError:
        raise
    except Exception as error:
        reason = sentence(one_line(error, 300) or type(error).__name__)
        raise InputError(f"The preprocessing failed on a picture of one colour: {reason}") from error
    height, width = inputs_by_colour[0].shape[1:]
    black, white, orange = (inputs[:, height // 2, width // 2].double() for inputs in inputs_by_colour)
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
    """Return a number for each channel as (channels, 1, 1), on the device and in the dtype of another tensor."""
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]


def check_images(tensor: Any, who: str, noun: str, size: tuple[int | str, int | str]) -> None:
    """Raise `InputError` for anything but floating point numbers (n, 3, *size); a side given by a name may be any."""
    right = isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and tensor.ndim == 4
    if right and tensor.shape[1] == 3:
        sides = zip(tensor.shape[2:], size, strict=True)
        if all(isinstance(expected, str) or expected == side for side, expected in sides):
            return
    shape, kind = getattr(tensor, "shape", None), getattr(tensor, "dtype", type(tensor).__name__)
    value = f"{kind}" if shape is None else f"{kind} of shape {tuple(shape)}"
    raise InputError(
        f"{who} was given {value}. Its {noun} are a tensor of floating point numbers of shape "
        f"(n, 3, {size[0]}, {size[1]})."
    )


def check_pictures(images: Any, who: str) -> None:
    """Raise `InputError` for anything but pictures (n, 3, H, W) with values in or near [0, 1]."""
    check_images(images, who, "pictures", ("H", "W"))
    if not images.numel():
        return
    beyond = float((images.detach() - 0.5).abs().max()) - 0.5
    if beyond > PERTURBED:
        raise InputError(
            f"Pictures have values in [0, 1], and one of these is {beyond:.3g} beyond that; perturbing may "
            f"take them {PERTURBED} beyond. Divide pixels from 0 to 255 by 255 first."
        )


def inputs_of(
    images: torch.Tensor, size: tuple[int, int], mean: tuple[float, ...], std: tuple[float, ...]
) -> torch.Tensor:
    """Return inputs (n, 3, *size) of pictures (n, 3, H, W) in [0, 1]: the picture resized, (pixel − mean) / std.

    Bilinear, with antialiasing; differentiable. Pictures in half precision are resized in single precision, since not
    every device can resize them, and returned in their own dtype.
    """
    if images.shape[-2:] != size:
        own, images = images.dtype, images.to(torch.promote_types(images.dtype, torch.float32))
        images = interpolate(images, size, mode="bilinear", antialias=True, align_corners=False).to(own)
    return (images - channels(mean, images)) / channels(std, images)
