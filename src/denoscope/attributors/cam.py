"""DF-CAM: which places of the denoiser's layers the prediction of a step is made from, by class-activation mapping.

Source: Park, Ju, Lee 2024 (arXiv 2402.10404), DF-CAM; after Grad-CAM, Selvaraju et al. 2017.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr

from ..errors import InputError
from ..recording.hooks.layers import activations
from ..recording.patterns import layers_of
from ..recording.traces import Step
from ..targets import trace_step
from ..vision.classifiers import at_rest
from ..vision.frames import Frame
from .base import Advance, Attributor, StepResult, form_of, register

PUBLISHED_LAYERS = ("**.{resnets,attentions,downsamplers,upsamplers}.*", "!mid_block.attentions.*")
"""The outputs of every residual, attention and resampling part of a U-Net, but the attention of its middle."""


@dataclass(frozen=True, eq=False)
class LayerResponse:
    """A layer's output A and its gradient ∂y/∂A, (halves, channels, h, w) each, y the sum of all halves' outputs.

    `shares` is how much each half counts in the guided prediction, (halves, 1, 1, 1): 1 − w and w, or 1.
    """

    activation: torch.Tensor
    gradient: torch.Tensor
    shares: torch.Tensor


Combination = Callable[[LayerResponse], torch.Tensor]
"""A layer's response to Σ_k α_k A^k, (h, w)."""


def of_guided_output(layer: LayerResponse) -> torch.Tensor:
    """Return Σ_k α_k A^k, (h, w), of y = the sum of the guided output, over the feature maps of both halves.

    The guided output is Σ share · half, so its ∂y/∂A is the half's own gradient times its share: the map is the
    unconditional one at w = 0, the conditional one at w = 1, and u + w (c − u) of these two at any w.
    """
    alpha = (layer.shares * layer.gradient).mean(dim=(2, 3), keepdim=True)
    return (alpha * layer.activation).sum(dim=(0, 1))


def of_guided_layers(layer: LayerResponse) -> torch.Tensor:
    """Return Σ_k α_k A^k, (h, w), with gradient and activation each guided, u + w (c − u), as the published code."""
    gradient, activation = ((layer.shares * part).sum(dim=0) for part in (layer.gradient, layer.activation))
    return (gradient.mean(dim=(1, 2), keepdim=True) * activation).sum(dim=0)


@register("df-cam")
@dataclass(frozen=True)
class DFCam(Attributor):
    """Class-activation maps of the denoiser's layers for the sum of its output.

        y   = sum of all elements of the denoiser's output
        α_k = (1/λ) Σ_ij ∂y/∂A^k_ij        λ the number of positions of the layer
        L   = ReLU( Σ_k α_k A^k )

    >>> maps = DFCam(layers=("up_blocks.*.resnets.*",))(trace, steps=[2, 8, 16])
    >>> maps.layer_saliency.sel(layer="up_blocks.0.resnets.1").dims
    ('step', 'y', 'x')

    With guidance the denoiser sees the sample twice, so that every layer has feature maps of both halves. `combine`
    joins them. `DFCam.paper()`, which `DFCam()` is too: y is the sum of the output as it leaves the denoiser for the
    scheduler, the guided one, and k runs over the feature maps of both halves. `DFCam.reference()`: y is the sum over
    both halves, and gradient and activation are guided each on its own before they are multiplied. For w = 0, w = 1
    and without guidance both are the same. `layers` are dotted paths or patterns of them (`model.layers()`); None is
    the published choice, every residual, attention and resampling part of a U-Net without the middle's attention.
    Layers that give (rows, positions, channels) count when the positions are the sample's grid, whole or reduced.

    Variables: `layer_saliency` (step, layer, y, x), L of each layer in the order in which they run, bilinearly resized
    to the sample's grid (the published code resizes to the picture), and `saliency` (step, y, x), the sum over layers
    of these, each brought to 0..1 by its smallest and largest value at the step. One forward and one backward pass a
    step, for all layers. Raises `InputError` for unknown layers and for layers that have no positions.
    """

    layers: tuple[str, ...] | None = None
    combine: Combination = of_guided_output
    title: str = "DF-CAM, paper"

    reading = (
        "High where the layers' features that raise the sum of the prediction are active: the sum over layers of maps "
        "from 0 to 1 each. Each layer's map is scaled at every step on its own, because gradients have other sizes at "
        "other steps: compare positions, not steps; the raw values of layer_saliency are not comparable across steps "
        "either."
    )

    def __post_init__(self) -> None:
        if isinstance(self.layers, str) or (self.layers is not None and not self.layers):
            raise InputError(
                f'layers is {self.layers!r}. Give a tuple of paths or patterns, such as ("up_blocks.*.resnets.*",), '
                "or leave it out for the published choice."
            )

    @classmethod
    def paper(cls, layers: tuple[str, ...] | None = None) -> "DFCam":
        """Return the map of the guided output's sum, over the feature maps of both halves."""
        return cls(layers)

    @classmethod
    def reference(cls, layers: tuple[str, ...] | None = None) -> "DFCam":
        """Return the published code's map: gradient and activation each guided before they are multiplied."""
        return cls(layers, of_guided_layers, "DF-CAM, reference")

    def options(self) -> dict[str, Any]:
        return {**super().options(), "form": form_of(self.title)}

    def explain(self, step: Step | Frame, advance: Advance) -> StepResult:
        step = trace_step(step)
        responses = responses_of(step, self.layers or PUBLISHED_LAYERS)
        combined = [self.combine(response).relu() for response in responses.values()]
        maps = np.stack([map_on_grid(map_, step.grid) for map_ in combined])
        layers = xr.DataArray(maps, {"layer": list(responses)}, ("layer", "y", "x"))
        advance(1)
        return {"saliency": sum_of_normalised(maps), "layer_saliency": layers}


def responses_of(step: Step, patterns: Sequence[str]) -> dict[str, LayerResponse]:
    """Return outputs and gradients of layers by their paths, in the order in which they run: one pass each way.

    `y` is the sum over the network's own output, that of both halves; a half's gradient is then its own, because no
    half reads the other.
    """
    denoiser, outputs = step.replay.denoiser, {}

    def keep(path: str, output: torch.Tensor) -> torch.Tensor:
        """Keep a layer's output, and hand on a copy: a layer behind it may work in place."""
        if path in outputs:
            raise InputError(
                f'The layer "{path}" runs several times in one call of this {type(denoiser).__name__}, so it has no '
                "one output to explain. Choose the layer around it."
            )
        outputs[path] = output if output.requires_grad else output.requires_grad_()
        return output.clone()

    with torch.enable_grad(), at_rest(denoiser), activations(denoiser, ("", *layers_of(denoiser, patterns)), keep):
        step.repeat()
        y = outputs.pop("").float().sum()
    halves, grid = step.replay.copies, step.grid
    activation = {path: as_maps(path, output.detach(), halves, grid) for path, output in outputs.items()}
    gradients = torch.autograd.grad(y, list(outputs.values()), materialize_grads=True)
    shares = torch.tensor(step.replay.shares, device=y.device, dtype=torch.float32)[:, None, None, None]
    return {
        path: LayerResponse(activation[path], as_maps(path, gradient, halves, grid), shares)
        for path, gradient in zip(outputs, gradients, strict=True)
    }


def as_maps(path: str, output: torch.Tensor, halves: int, grid: Sequence[int]) -> torch.Tensor:
    """Return a layer's output as maps (halves, channels, h, w), float32; `InputError` if it has no positions."""
    if len(output) == halves and output.ndim == 4:
        return output.float()
    if len(output) == halves and output.ndim == 3:
        for h, w in _reduced(*grid):
            if h * w == output.shape[1]:
                return output.float().mT.reshape(halves, -1, h, w)
    raise InputError(
        f'The layer "{path}" gives {tuple(output.shape)}, which are not maps of the picture. Choose layers that give '
        f"({halves}, channels, height, width), or ({halves}, positions, channels) of the sample's grid or a reduced "
        "one, such as resnets and attentions."
    )


def _reduced(height: int, width: int) -> list[tuple[int, int]]:
    """Return the grid, and the grids that remain when it is halved again and again, rounding up."""
    factors = [2**i for i in range(max(height, width).bit_length())]
    return [(math.ceil(height / f), math.ceil(width / f)) for f in factors]


def map_on_grid(map_: torch.Tensor, grid: Sequence[int]) -> np.ndarray:
    """Return a map (h, w), bilinearly resized to a grid."""
    size = (grid[0], grid[1])
    resized = torch.nn.functional.interpolate(map_[None, None], size, mode="bilinear")
    return resized[0, 0].cpu().numpy()


def sum_of_normalised(maps: np.ndarray) -> np.ndarray:
    """Return Σ (L − min L) / (max L − min L) over maps (layers, y, x); a flat map counts as 0 everywhere."""
    low, high = (edge(maps, axis=(1, 2), keepdims=True) for edge in (np.min, np.max))
    total: np.ndarray = ((maps - low) / np.where(high > low, high - low, 1)).sum(axis=0)
    return total


register("df-cam-reference")(DFCam.reference)
