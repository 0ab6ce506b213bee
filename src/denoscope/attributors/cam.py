"""DF-CAM: which places of the denoiser's layers the prediction of a step is made from, by class-activation mapping.

Source: Park, Ju, Lee 2024 (arXiv 2402.10404), DF-CAM; after Grad-CAM, Selvaraju et al. 2017.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
import xarray as xr

from ..errors import InputError
from ..recording.hooks.checkpointing import Blocks
from ..recording.hooks.layers import activations, whole_graph
from ..recording.layout import reduced
from ..recording.patterns import layers_of
from ..recording.steps import Step
from ..targets import trace_step
from ..vision.classifiers import at_rest
from ..vision.frames import Frame
from .base import Advance, Attributor, StepResult, form_of, register
from .graphs import in_room, lies_inside
from .tokens import Tokens

PUBLISHED_LAYERS = ("**.{resnets,attentions,downsamplers,upsamplers}.*", "!mid_block.attentions.*")
"""The outputs of every residual, attention and resampling part of a U-Net, but the attention of its middle."""


OTHER_LAYERS = ("down_blocks.*.*", "up_blocks.*.*")
"""The blocks of U-Nets that name their parts in another way, such as Stable Cascade's."""


@dataclass(frozen=True, eq=False)
class LayerResponse:
    """A layer's output A and its gradient ∂y/∂A, (halves, channels, [frames,] h, w) each.

    y is the sum of all halves' outputs, and `shares`, (halves, 1, ...), is how much each half counts in the guided
    prediction: 1 − w and w, or 1. Where `guided` is False, y is the sum of the guided prediction, and shares are 1.
    """

    activation: torch.Tensor
    gradient: torch.Tensor
    shares: torch.Tensor
    guided: bool = True


Combined = TypeVar("Combined")
Combination = Callable[[LayerResponse], torch.Tensor]
"""A layer's response to Σ_k α_k A^k, (h, w)."""


def of_guided_output(layer: LayerResponse) -> torch.Tensor:
    """Return Σ_k α_k A^k, ([frames,] h, w), of y = the sum of the guided output, over the feature maps of both halves.

    The guided output is Σ share · half, so its ∂y/∂A is the half's own gradient times its share: the map is the
    unconditional one at w = 0, the conditional one at w = 1, and u + w (c − u) of these two at any w.
    """
    places = tuple(range(2, layer.gradient.ndim))
    alpha = (layer.shares * layer.gradient).mean(dim=places, keepdim=True)
    return (alpha * layer.activation).sum(dim=(0, 1))


def of_guided_layers(layer: LayerResponse) -> torch.Tensor:
    """Return Σ_k α_k A^k, (h, w), with gradient and activation each guided, u + w (c − u), as the published code."""
    if not layer.guided:
        raise InputError(
            "The published code guides gradients and activations each on its own, which needs a denoiser that is "
            "called once a step with both halves. This pipeline guides in another way. Use df-cam, DFCam()."
        )
    gradient, activation = ((layer.shares * part).sum(dim=0) for part in (layer.gradient, layer.activation))
    places = tuple(range(1, gradient.ndim))
    return (gradient.mean(dim=places, keepdim=True) * activation).sum(dim=0)


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
    the published choice, every residual, attention and resampling part of a U-Net without the middle's attention, or
    every block of a transformer. Layers that give (rows, positions, channels) count when the positions are the sample's
    grid, whole or reduced; text and register tokens beside them are left out (`tokens.py`).

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
        combined, layout = combined_of(step, self.layers, self.combine), step.layout
        maps = np.stack([map_on_grid(map_.relu(), layout.shape) for map_ in combined.values()])
        layers = xr.DataArray(maps, {"layer": list(combined)}, ("layer", *layout.dims))
        advance(1)
        return {"saliency": sum_of_normalised(maps), "layer_saliency": layers}


def responses_of(step: Step, patterns: Sequence[str] | None) -> dict[str, LayerResponse]:
    """Return outputs and gradients of layers by their paths, in the order in which they run: one pass each way.

    All of them are in memory together; see `combined_of`.
    """
    return combined_of(step, patterns, lambda response: response)


def combined_of(
    step: Step, patterns: Sequence[str] | None, combine: Callable[[LayerResponse], Combined]
) -> dict[str, Combined]:
    """Return what is combined of the outputs and gradients of layers, by their paths in the order in which they run.

    One pass each way. A layer's response is combined as soon as its gradient is there, and let go of.

    For a denoiser that is called once with both halves, `y` is the sum over the network's own output, that of both
    halves; a half's gradient is then its own, because no half reads the other. For any other, `y` is the sum of the
    prediction that the scheduler receives, and all shares are 1: guidance is in the gradients.

    Where the whole graph does not fit in memory, the denoiser's blocks are computed twice (`in_room`), unless a layer
    inside of one is asked for.
    """
    denoiser = step.denoiser
    inside = patterns is not None and any(lies_inside(denoiser, path) for path in chosen_layers(denoiser, patterns))

    def work(blocks: Blocks) -> dict[str, Combined]:
        with at_rest(denoiser), whole_graph(denoiser):
            return _combined(step, patterns, combine)

    return in_room("activations", step, work, whole=inside)


def _combined(
    step: Step, patterns: Sequence[str] | None, combine: Callable[[LayerResponse], Combined]
) -> dict[str, Combined]:
    denoiser = step.denoiser
    direct = step.asks_directly and len(step.replay.calls) == 1 and step.replay.calls[0].is_whole
    if not direct:
        _ = step.engine  # checked before anything listens, so that the check's own calls are not heard
    layers, blocks = chosen_layers(denoiser, patterns), blocks_of(denoiser)
    paths = (*(("",) if direct else ()), *dict.fromkeys((*layers, *blocks)))
    for copied in (False, True):
        heard = _Outputs(step, allow_several=not direct, copied=copied)
        listening = activations(denoiser, paths, heard.keep, heard.choice, all_called=patterns is not None)
        with listening:
            prediction = step.repeat() if direct else step.predict(step.sample.detach().clone().requires_grad_())
            y = torch.cat(heard.outputs[""]).float().sum() if direct else prediction.float().sum()
        if not heard.written_over:
            break
    outputs = {path: each for path, each in heard.outputs.items() if path}
    measured = {path: each for path, each in outputs.items() if path in blocks and path not in heard.of_text}
    tokens = Tokens.measured(step, prediction, measured)
    if patterns is None:
        shown = {path: [output for output in each if tokens.shows(output)] for path, each in outputs.items()}
        outputs = {path: each for path, each in shown.items() if path not in heard.of_text}
    wanted = [path for path, each in outputs.items() if path in layers and each]
    if not wanted:
        raise InputError(_no_maps(denoiser))
    shares = torch.tensor(step.replay.shares if direct else (1.0,), device=y.device, dtype=torch.float32)

    def combined(path: str, values: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]) -> Combined:
        activation = torch.cat([tokens.as_maps(path, output) for output in values])
        gradient = torch.cat([tokens.as_maps(path, each) for each in gradients])
        shape = (-1, *[1] * (activation.ndim - 1))
        return combine(LayerResponse(activation, gradient, shares.reshape(shape), guided=direct))

    chosen = {path: outputs[path] for path in wanted}
    heard.outputs.clear()
    heard.versions.clear()
    del measured, outputs, prediction
    return _when_gradients_come(y, chosen, combined)


def _when_gradients_come(
    y: torch.Tensor,
    outputs: dict[str, list[torch.Tensor]],
    combined: Callable[[str, Sequence[torch.Tensor], Sequence[torch.Tensor]], Combined],
) -> dict[str, Combined]:
    """Return combined(path, outputs, gradients of y) by path, each computed when its last gradient is there."""
    paths, results = list(outputs), dict[str, Combined]()
    gradients: dict[str, dict[int, torch.Tensor]] = {path: {} for path in paths}
    held = {path: [output.detach() for output in of_path] for path, of_path in outputs.items()}

    def came(path: str, place: int, gradient: torch.Tensor) -> None:
        gradients[path][place] = gradient.detach()
        if len(gradients[path]) == len(held[path]):
            finish(path)

    def finish(path: str) -> None:
        values, of_path = held.pop(path), gradients.pop(path)
        whole = [of_path[i] if i in of_path else torch.zeros_like(value) for i, value in enumerate(values)]
        with torch.no_grad():
            results[path] = combined(path, values, whole)

    for path, of_path in outputs.items():
        for place, output in enumerate(of_path):
            on_gradient: Any = output.register_hook
            on_gradient(partial(came, path, place))
    outputs.clear()
    torch.autograd.grad(y, leaves_of(y), allow_unused=True)
    for path in list(held):  # y does not depend on them
        finish(path)
    return {path: results[path] for path in paths}


def leaves_of(y: torch.Tensor) -> list[torch.Tensor]:
    """Return the tensors with a gradient that y is computed from, without weights, each once."""
    leaves: dict[int, torch.Tensor] = {}
    nodes, seen = [y.grad_fn], set[Any]()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, torch.Tensor) and not isinstance(leaf, torch.nn.Parameter):
            leaves[id(leaf)] = leaf
        nodes += [below for below, _ in node.next_functions]
    return list(leaves.values())


def chosen_layers(denoiser: torch.nn.Module, patterns: Sequence[str] | None) -> tuple[str, ...]:
    """Return the layers that patterns name; for None the published ones of a U-Net, or a transformer's blocks."""
    if patterns is not None:
        return layers_of(denoiser, patterns)
    blocks = blocks_of(denoiser)
    if blocks:
        return blocks
    names = {part for path, _ in denoiser.named_modules() for part in path.split(".")}
    return layers_of(denoiser, PUBLISHED_LAYERS if names & {"resnets", "attentions"} else OTHER_LAYERS)


def blocks_of(denoiser: torch.nn.Module) -> tuple[str, ...]:
    """Return the blocks of a transformer, the members of its lists of modules; none for a U-Net."""
    if any(hasattr(denoiser, name) for name in ("down_blocks", "up_blocks")):
        return ()
    paths = []
    for name, members in denoiser.named_children():
        for index, block in enumerate(members if isinstance(members, torch.nn.ModuleList) else ()):
            if any(True for _ in block.parameters()):
                paths.append(f"{name}.{index}")
    return tuple(paths)


class _Outputs:
    """The outputs of layers by their paths while a step is predicted, each call's behind the other.

    `of_text` are the layers that read no sample, or that give text and picture as sequences of one length, so that
    the picture's cannot be told. Where outputs are `copied`, the network goes on with copies, so that a layer behind
    may work in place; else `written_over` says afterwards that one did.
    """

    def __init__(self, step: Step, allow_several: bool, copied: bool = True):
        self.step, self.allow_several, self.copied = step, allow_several, copied
        self.versions: list[tuple[torch.Tensor, int]] = []
        self.outputs: dict[str, list[torch.Tensor]] = {}
        self.of_text: set[str] = set()
        self.sizes = {math.prod(grid) for grid in reduced(step.layout.shape)}

    def choice(self, path: str, output: tuple[Any, ...]) -> int:
        """Return the place of the picture in a block's output by its number of positions; the longest if none fits."""
        lengths = {place: part.shape[1] for place, part in enumerate(output) if _is_sequence(part)}
        fitting = [place for place, length in lengths.items() if length in self.sizes]
        if len({lengths[place] for place in fitting}) < len(fitting):
            self.of_text.add(path)
        if fitting:
            return max(fitting, key=lengths.__getitem__)
        return max(lengths, key=lengths.__getitem__, default=0)

    @property
    def written_over(self) -> bool:
        """True if a layer wrote over the output of another."""
        return any(tensor._version != version for tensor, version in self.versions)

    def keep(self, path: str, output: torch.Tensor) -> torch.Tensor | None:
        """Keep a layer's output, and hand on it or its copy."""
        if path in self.outputs and not self.allow_several:
            raise InputError(
                f'The layer "{path}" runs several times in one call of this {type(self.step.denoiser).__name__}, so it '
                "has no one output to explain. Choose the layer around it."
            )
        if not output.requires_grad:
            self.of_text.add(path)
        copied = self.copied or not output.requires_grad
        kept = output if output.requires_grad else output.requires_grad_()
        self.outputs.setdefault(path, []).append(kept)
        if copied:
            return output.clone()
        self.versions.append((output.detach(), output._version))
        return None


def _is_sequence(part: Any) -> bool:
    """Return True for (rows, positions, channels)."""
    return isinstance(part, torch.Tensor) and part.ndim == 3


def _no_maps(denoiser: torch.nn.Module) -> str:
    return (
        f"No layer of this {type(denoiser).__name__} is known to give maps of the picture: none has as many positions "
        "as the sample, whole or in patches, or text and picture are sequences of one length and cannot be told apart. "
        'Choose layers of the picture, such as layers=("**.attn",), which model.layers() lists, or another size.'
    )


def map_on_grid(map_: torch.Tensor, shape: Sequence[int]) -> np.ndarray:
    """Return a map (h, w) or (frames, h, w), linearly resized to a shape of the same form."""
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    resized = torch.nn.functional.interpolate(map_[None, None], tuple(shape), mode=mode)
    return resized[0, 0].cpu().numpy()


def sum_of_normalised(maps: np.ndarray) -> np.ndarray:
    """Return Σ (L − min L) / (max L − min L) over maps (layers, [frame,] y, x); a flat map counts as 0 everywhere."""
    places = tuple(range(1, maps.ndim))
    low, high = (edge(maps, axis=places, keepdims=True) for edge in (np.min, np.max))
    total: np.ndarray = ((maps - low) / np.where(high > low, high - low, 1)).sum(axis=0)
    return total


register("df-cam-reference")(DFCam.reference)
