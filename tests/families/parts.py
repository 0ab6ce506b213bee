"""Parts and arguments that the small families share: an autoencoder with contrast, pictures to start from."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image

TEXT = {"prompt": "a large red circle"}
AGAINST = {"negative_prompt": "a small blue square"}
SHORT = {"max_sequence_length": 16}
WIDE = {"height": 32, "width": 48}
STEPS = {"num_inference_steps": 4}


def autoencoder(channels: int = 4, levels: int = 3, **options: Any) -> diffusers.AutoencoderKL:
    """An autoencoder that halves pictures `levels` - 1 times, with codes that are (nearly) one value for a picture."""
    codes = diffusers.AutoencoderKL(
        block_out_channels=(8,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=channels,
        norm_num_groups=4,
        **options,
    )
    return with_contrast(certain(codes))


def certain(codes: torch.nn.Module) -> Any:
    """The same autoencoder without noise in its codes, but for rounding: a trained one is nearly as certain."""
    channels = codes.quant_conv.bias.shape[0] // 2
    codes.quant_conv.weight.data[channels:] = 0.0
    codes.quant_conv.bias.data[channels:] = -30.0
    return codes


def with_contrast(codes: torch.nn.Module, factor: float = 2.0) -> Any:
    """The same autoencoder with a louder last convolution: random weights alone paint pale pictures."""
    for weight in codes.decoder.conv_out.parameters():
        if weight.dim() > 1:
            weight.data *= factor
    return codes.eval()


def awake(module: torch.nn.Module) -> Any:
    """The same module with random numbers where it starts at zero or at none, and signals that keep their size.

    Left as they are built, small transformers hardly hear their text: torch's linear layers shrink each signal
    by √3, layers that training opens are shut, and some tables and experts are whatever the memory held.
    """
    for layer in module.modules():
        own = type(layer).__module__.startswith("torch.nn")
        for name, weight in layer.named_parameters(recurse=False):
            if name == "gate" and not weight.any():
                torch.nn.init.ones_(weight)
            elif not own and (weight.dim() > 1 or name.endswith("token")):
                torch.nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)
            elif name == "weight" and not weight.any():
                torch.nn.init.normal_(weight, std=0.1)
        if isinstance(layer, torch.nn.Linear):
            layer.weight.data *= 3**0.5
    return module.eval()


@contextmanager
def old_names() -> Iterator[None]:
    """Let diffusers' own models use a name that diffusers itself has moved: its warning is not about the caller."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`\w+` is deprecated and will be removed in version 1\.0\.0", FutureWarning)
        yield


def pipeline_kind(name: str) -> Any:
    """A pipeline's class, which runs without ftfy too: ftfy repairs broken text, and the prompts here are whole."""
    kind = getattr(diffusers, name)
    module = sys.modules[kind.__module__]
    if not hasattr(module, "ftfy"):
        module.ftfy = SimpleNamespace(fix_text=str)
    return kind


def nearest(picture: torch.Tensor, size: list[int], interpolation: Any) -> torch.Tensor:
    """The picture at another size, each place as the nearest one was: what torchvision's resize does with "nearest"."""
    return torch.nn.functional.interpolate(picture, size=size, mode=interpolation)


def without_torchvision(module: str) -> None:
    """Let a module of diffusers run without torchvision, where all that it wants of it is to resize a flat mask."""
    if not hasattr(sys.modules[module], "transforms"):
        modes = SimpleNamespace(NEAREST="nearest")
        sys.modules[module].transforms = SimpleNamespace(
            functional=SimpleNamespace(resize=nearest), InterpolationMode=modes
        )


def flow(**options: Any) -> diffusers.FlowMatchEulerDiscreteScheduler:
    """Flow matching by Euler's steps."""
    return diffusers.FlowMatchEulerDiscreteScheduler(**options)


def picture(height: int = 32, width: int = 48) -> Image.Image:
    """A red disc left of the middle, on a ground that brightens downwards."""
    rows, columns = np.mgrid[:height, :width] + 0.5
    disc = np.hypot(rows - height / 2, columns - width / 3) < height / 4
    ground = np.repeat((100 + 120 * rows / height)[..., None], 3, axis=-1)
    return Image.fromarray(np.where(disc[..., None], (220, 30, 30), ground).astype(np.uint8))


def mask(height: int = 32, width: int = 48) -> Image.Image:
    """White over the right half: the part to paint."""
    painted = np.zeros((height, width), np.uint8)
    painted[:, width // 2 :] = 255
    return Image.fromarray(painted)


def video(frames: int = 5, height: int = 32, width: int = 48) -> list[Image.Image]:
    """A red disc that moves to the right."""
    wide = picture(height, 2 * width)
    return [wide.crop((start, 0, start + width, height)) for start in range(2 * frames, 0, -2)]
