"""`load_encoder`: features of pictures, from the bundled CLIP, a hub id or a folder.

An encoder is any function from pictures (n, 3, H, W) in [0, 1] to features (n, d). These come with their own mean,
standard deviation and size of pictures, and are differentiable.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch.nn.functional import normalize

from ..errors import DenoscopeError, ModelError, NumericsError, one_line, sentence
from ..recording.loading import Repository, Wanted, bundled_folder, device_of, precision_of, quiet_libraries, settled
from .preprocessing import PROBE, OwnProcessor, check_pictures, inputs_of, measured

Features = Callable[[torch.Tensor], torch.Tensor]
"""Pictures (n, 3, H, W) in [0, 1] to features (n, d)."""

BUNDLED_CLIP = "shapes"
"""The name of the bundled CLIP, trained on pictures and captions of the shapes world."""
WANTED = Wanted(
    "encoder",
    "CLIP and vision models",
    "openai/clip-vit-base-patch32",
    (BUNDLED_CLIP,),
    "any function of pictures as it is",
)


def load_encoder(
    encoder: str | Path = BUNDLED_CLIP,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
) -> "Encoder":
    """Load an encoder, which turns pictures into features, so that pictures can be compared by them.

    >>> encoder = load_encoder()                                  # the bundled CLIP of the shapes world
    >>> encoder(torch.rand(2, 3, 64, 64)).shape
    torch.Size([2, 128])
    >>> load_encoder("openai/clip-vit-base-patch32")              # a hub id or a folder   # doctest: +SKIP
    >>> load_encoder("facebook/dinov2-small")                     # any vision model       # doctest: +SKIP

    A hub id or folder is a vision model of transformers, or one of pictures and texts such as CLIP, with its own image
    processor. Weights are read from safetensors only, and no code that comes with a model is run. `device` is the CPU
    and `dtype` float32 unless given. Raises `ModelError` for a model that cannot be loaded.
    """
    place, precision = device_of(device) or torch.device("cpu"), precision_of(dtype) or torch.float32
    name = str(encoder)
    bundled = name == BUNDLED_CLIP
    home = Repository(name, bundled_folder("clip"), {}, WANTED) if bundled else Repository.of(name, WANTED)
    with quiet_libraries():
        return _tried(home, settled(_network(home, precision), place, precision))


@final
@dataclass(frozen=True, eq=False)
class Encoder:
    """Pictures (n, 3, H, W) in [0, 1] to features (n, `width`), differentiable.

    `size` is the height and width (h, w) that pictures are resized to; `mean` and `std` belong to pixels in [0, 1].
    """

    name: str
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    width: int
    module: torch.nn.Module

    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        """Features of pictures, on the encoder's device, in float32 or better.

        The whole picture is resized, whatever its proportions. Raises `InputError` for anything but pictures,
        and `NumericsError` for NaN or infinity.
        """
        check_pictures(pictures, f'The encoder "{self.name}"')
        like = next(self.module.parameters())
        features: torch.Tensor = self.module(inputs_of(pictures.to(like), self.size, self.mean, self.std))
        if not features.detach().isfinite().all():
            raise NumericsError(
                f'The encoder "{self.name}" gave NaN or infinity. Use finite pictures, and dtype float32 where it was '
                "float16."
            )
        return features.to(torch.promote_types(features.dtype, torch.float32))

    def plain(self) -> dict[str, Any]:
        """Return the facts of the encoder that a result records."""
        return {"name": self.name, "width": self.width, "size": list(self.size)}


class VisionTower(torch.nn.Module):
    """The picture half of a network of pictures and texts: projected features of unit length, as it compares them.

    Source: Radford et al. 2021, "Learning transferable visual models from natural language supervision", section 2.3.
    """

    def __init__(self, network: Any):
        super().__init__()
        self.vision = network.vision_model
        self.projection = getattr(network, "visual_projection", torch.nn.Identity())

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = normalize(self.projection(self.vision(pixel_values=inputs).pooler_output), dim=-1)
        return features


class VisionModel(torch.nn.Module):
    """A vision model's summary of a picture: its trained pooling, or without one the mean over positions."""

    def __init__(self, network: torch.nn.Module, pooled: bool):
        super().__init__()
        self.network, self.pooled = network, pooled

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        output = self.network(pixel_values=inputs)
        pooled: torch.Tensor | None = getattr(output, "pooler_output", None)
        if self.pooled and pooled is not None:
            return pooled.flatten(1)
        # (n, positions, d), or (n, d, h, w) of a convolutional network
        positions: torch.Tensor = output.last_hidden_state
        return positions.mean(dim=1) if positions.ndim == 3 else positions.mean(dim=(2, 3))


def _network(home: Repository, precision: torch.dtype) -> torch.nn.Module:
    """Load a module from inputs (n, 3, h, w) to features (n, d), of the kind of model that a repository holds."""
    from transformers import AutoModel

    network, missing = home.module_and_missing(AutoModel, precision)
    pooled = not any(name.startswith("pooler.") for name in missing)
    others = [name for name in missing if not name.startswith("pooler.")]
    if others:
        home.refuse_missing(network, others)
    if hasattr(network, "vision_model") and hasattr(network, "text_model"):
        return VisionTower(network)
    if getattr(network, "main_input_name", None) != "pixel_values":
        raise ModelError(
            f'"{home.name}" is not an encoder of pictures: it is a {type(network).__name__}. Allowed are vision models '
            "of transformers (ViT, DINOv2, ResNet and others), and models of pictures and texts such as CLIP."
        )
    return VisionModel(network, pooled)


def _tried(home: Repository, module: torch.nn.Module) -> Encoder:
    """Return the encoder after one trial picture, so that mistakes show when it is loaded."""
    from transformers import AutoImageProcessor

    size, mean, std = measured(OwnProcessor(home.read(AutoImageProcessor)), PROBE)
    like = next(module.parameters())
    try:
        with torch.no_grad():
            width = module(torch.zeros(1, 3, *size).to(like)).shape[1]
    except DenoscopeError:
        raise
    except Exception as error:
        reason = sentence(one_line(error, 300) or type(error).__name__)
        raise ModelError(
            f'The encoder "{home.name}" cannot be run on pictures of {size[0]} × {size[1]} pixels, which its image '
            f"processor makes: {reason} Check that model and processor belong together."
        ) from error
    return Encoder(home.name, size, mean, std, width, module)
