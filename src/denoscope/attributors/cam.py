"""DF-CAM: which places of the denoiser's layers the prediction of a step is made from, by class-activation mapping.

Source: Park, Ju, Lee 2024 (arXiv 2402.10404), DF-CAM; after Grad-CAM, Selvaraju et al. 2017.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
import xarray as xr

from ..errors import InputError, ReplayError, did_you_mean
from ..recording.hooks.layers import activations
from ..recording.patterns import layers_of
from ..recording.traces import Step
from ..vision.classifiers import at_rest
from .base import Advance, Attributor, Found, register

PUBLISHED_LAYERS = ("**.{resnets,attentions,downsamplers,upsamplers}.*", "!mid_block.attentions.*")
"""The outputs of every residual, attention and resampling part of a U-Net, but the attention of its middle."""


@dataclass(frozen=True, eq=False)
class Heard:
    """A layer's output A and its gradient ∂y/∂A, (halves, channels, h, w) each, y the sum of all halves' outputs.

    `shares` is how much each half counts in the guided prediction, (halves, 1, 1, 1): 1 − w and w, or 1.
    """

    activation: torch.Tensor
    gradient: torch.Tensor
    shares: torch.Tensor


def of_guided_output(heard: Heard) -> torch.Tensor:
    """Σ_k α_k A^k, (h, w), of y = the sum of the guided output, over the feature maps of both halves.

    The guided output is Σ share · half, so its ∂y/∂A is the half's own gradient times its share: the map is the
    unconditional one at w = 0, the conditional one at w = 1, and u + w (c − u) of these two at any w.
    """
    alpha = (heard.shares * heard.gradient).mean(dim=(2, 3), keepdim=True)
    return (alpha * heard.activation).sum(dim=(0, 1))


def of_guided_layers(heard: Heard) -> torch.Tensor:
    """Σ_k α_k A^k, (h, w), with gradient and activation each guided, u + w (c − u), as the published code does it."""
    gradient, activation = ((heard.shares * part).sum(dim=0) for part in (heard.gradient, heard.activation))
    return (gradient.mean(dim=(1, 2), keepdim=True) * activation).sum(dim=0)


VARIANTS: dict[str, Callable[[Heard], torch.Tensor]] = {"paper": of_guided_output, "reference": of_guided_layers}
VariantName = Literal["paper", "reference"]


@register("df-cam")
@dataclass(frozen=True)
class DFCam(Attributor):
    """Class-activation maps of the denoiser's layers for the sum of its output.

        y   = sum of all elements of the denoiser's output
        α_k = (1/λ) Σ_ij ∂y/∂A^k_ij        λ the number of positions of the layer
        L   = ReLU( Σ_k α_k A^k )

    >>> maps = DFCam(layers=("up_blocks.*.resnets.*",))(trace, steps=[2, 8, 16])   # doctest: +SKIP
    >>> maps.layer_saliency.sel(layer="up_blocks.0.resnets.1").dims               # doctest: +SKIP
    ('step', 'y', 'x')

    With guidance the denoiser sees the sample twice, so that every layer has feature maps of both halves. `variant`
    says how they come together. "paper": y is the sum of the output as it leaves the denoiser for the scheduler, the
    guided one, and k runs over the feature maps of both halves. "reference": y is the sum over both halves, and
    gradient and activation are guided each on its own before they are multiplied; for w = 0, w = 1 and without guidance
    both are the same. `layers` are dotted paths or patterns of them (`model.layers()`); None is the published choice,
    every residual, attention and resampling part of a U-Net without the middle's attention. Layers that give (rows,
    positions, channels) count when the positions are the sample's grid, whole or reduced.

    Variables: `layer_saliency` (step, layer, y, x), L of each layer in the order in which they run, bilinearly resized
    to the sample's grid (the published code resizes to the picture), and `saliency` (step, y, x), the sum over layers
    of these, each brought to 0..1 by its smallest and largest value at the step. One forward and one backward pass a
    step, for all layers. Raises `InputError` for unknown layers and for layers that have no positions.
    """

    variant: VariantName = "paper"
    layers: tuple[str, ...] | None = None

    reading = (
        "High where the layers' features that raise the sum of the prediction are active: the sum over layers of maps "
        "from 0 to 1 each. Each layer's map is scaled at every step anew, because gradients have other sizes at other "
        "steps: compare positions, not steps; the raw values of layer_saliency are not comparable across steps either."
    )

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise InputError(f'DF-CAM has no variant "{self.variant}". {did_you_mean(self.variant, VARIANTS)}')
        if isinstance(self.layers, str) or (self.layers is not None and not self.layers):
            raise InputError(
                f'layers is {self.layers!r}. Give a tuple of paths or patterns, such as ("up_blocks.*.resnets.*",), '
                "or leave it out for the published choice."
            )

    @property
    def title(self) -> str:  # type: ignore[override]
        return f"DF-CAM, {self.variant}"

    def explain(self, step: Step, advance: Advance) -> Found:
        combined, grid = VARIANTS[self.variant], step.sample.shape[-2:]
        heard = heard_of(step, self.layers or PUBLISHED_LAYERS)
        maps = np.stack([on_grid(combined(layer).relu(), grid) for layer in heard.values()])
        layers = xr.DataArray(maps, {"layer": list(heard)}, ("layer", "y", "x"))
        advance(1)
        return {"saliency": sum_of_normalised(maps), "layer_saliency": layers}


def heard_of(step: Step, patterns: Sequence[str]) -> dict[str, Heard]:
    """Outputs and gradients of layers by their paths, in the order in which they run: one pass forward, one back.

    `y` is the sum over the network's own output, that of both halves; a half's gradient is then its own, because no
    half reads the other.
    """
    if isinstance(step.replay, ReplayError):
        raise step.replay
    denoiser, outputs = step.replay.denoiser, {}

    def keep(path: str, output: torch.Tensor) -> None:
        if path in outputs:
            raise InputError(
                f'The layer "{path}" runs several times in one call of this {type(denoiser).__name__}, so it has no '
                "one output to explain. Choose the layer around it."
            )
        outputs[path] = output if output.requires_grad else output.requires_grad_()

    with torch.enable_grad(), at_rest(denoiser), activations(denoiser, ("", *layers_of(denoiser, patterns)), keep):
        step.repeat()
        y = outputs.pop("").float().sum()
    halves, grid = step.replay.copies, step.sample.shape[-2:]
    activation = {path: as_maps(path, output.detach(), halves, grid) for path, output in outputs.items()}
    gradients = torch.autograd.grad(y, list(outputs.values()), materialize_grads=True)
    shares = torch.tensor(step.replay.shares, device=y.device)[:, None, None, None]
    return {
        path: Heard(activation[path], as_maps(path, gradient, halves, grid), shares)
        for path, gradient in zip(outputs, gradients, strict=True)
    }


def as_maps(path: str, output: torch.Tensor, halves: int, grid: Sequence[int]) -> torch.Tensor:
    """A layer's output as maps (halves, channels, h, w) in float32; raises `InputError` where it has no positions."""
    if len(output) == halves and output.ndim == 4:
        return output.float()
    if len(output) == halves and output.ndim == 3:
        for h, w in _reduced(*grid):
            if h * w == output.shape[1]:
                return output.float().mT.unflatten(2, (h, w))
    raise InputError(
        f'The layer "{path}" gives {tuple(output.shape)}, which are not maps of the picture. Choose layers that give '
        f"({halves}, channels, height, width), or ({halves}, positions, channels) of the sample's grid or a reduced "
        "one, such as resnets and attentions."
    )


def _reduced(height: int, width: int) -> list[tuple[int, int]]:
    """The grid, and what is left of it when it is halved again and again."""
    factors = [2**i for i in range(max(height, width).bit_length())]
    return [(math.ceil(height / f), math.ceil(width / f)) for f in factors]


def on_grid(map_: torch.Tensor, grid: Sequence[int]) -> np.ndarray:
    """A map (h, w), bilinearly resized."""
    size = (grid[0], grid[1])
    return torch.nn.functional.interpolate(map_[None, None], size, mode="bilinear")[0, 0].cpu().numpy()


def sum_of_normalised(maps: np.ndarray) -> np.ndarray:
    """Σ (L − min L) / (max L − min L) over maps (layers, y, x); a flat map counts as 0 everywhere."""
    low, high = (edge(maps, axis=(1, 2), keepdims=True) for edge in (np.min, np.max))
    return ((maps - low) / np.where(high > low, high - low, 1)).sum(axis=0)


register("df-cam-reference")(partial(DFCam, variant="reference"))
