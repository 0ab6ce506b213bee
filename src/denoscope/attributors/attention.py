"""Maps of every token of a text: the cross-attention of the denoiser's layers and heads, enlarged and averaged."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.functional import interpolate

from ..errors import InputError, ModelError
from ..recording.hooks.attention import attention_layers
from ..recording.patterns import matching
from .relevance import grid_of

Half = Literal["conditional", "unconditional"]
HALVES = {
    "conditional": ("prompt", slice(-1, None)),
    "unconditional": ("negative_prompt", slice(0, 1)),
}
"""The argument with the text of a half of guidance, and its place among the batch's copies: diffusers' order."""


@dataclass(eq=False)
class LayerMean:
    """The mean over layers and heads of attention maps, taken layer by layer: no layer is stored.

    `grid` is the sample's (h, w); `rows` of the batch and `positions` of the text are chosen from each layer.
    """

    grid: tuple[int, int]
    heads: Sequence[int] | None = None
    rows: slice | None = None
    positions: Sequence[int] | None = None
    count: int = 0
    total: torch.Tensor | None = None

    def hear(self, layer: str, probabilities: torch.Tensor) -> None:
        """Add a layer's attention, (rows, heads, queries, tokens)."""
        chosen = self._chosen(layer, probabilities.detach()[self.rows or slice(None)])
        added = enlarged(chosen, self.grid)
        self.total = added if self.total is None else self.total + added
        self.count += chosen.shape[1]

    def _chosen(self, layer: str, probabilities: torch.Tensor) -> torch.Tensor:
        number = probabilities.shape[1]
        if self.heads is not None and max(self.heads) >= number:
            raise InputError(
                f"The layer {layer} has no head {max(self.heads)}: its heads are 0 to {number - 1}. "
                "Choose heads that all chosen layers have, or fewer layers."
            )
        if self.heads is not None:
            probabilities = probabilities[:, list(self.heads)]
        if self.positions is not None and max(self.positions, default=0) >= probabilities.shape[-1]:
            raise InputError(
                f"The layer {layer} reads {probabilities.shape[-1]} tokens of text, and the prompt's words go on to "
                f"token {max(self.positions)}. Shorten the prompt, or choose words at its beginning, phrases=(...)."
            )
        return probabilities if self.positions is None else probabilities[..., list(self.positions)]

    def mean(self) -> torch.Tensor:
        """Return the mean, (rows, tokens, h, w); raises `ModelError` when no layer attended to a text."""
        if self.total is None:
            raise ModelError(
                "This model's denoiser has no cross-attention that attends from the picture to a text in the layers "
                "asked for, so there are no word maps. Layers of self-attention have none, nor do models that read "
                "text and picture as one sequence (Stable Diffusion 3, Flux). Use a model such as Stable Diffusion and "
                "its layers attn2, or another method, such as df-rise."
            )
        return self.total / self.count


def enlarged(probabilities: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Return attention (rows, heads, queries, tokens) as maps (rows, tokens, h, w) on a grid, summed over heads."""
    rows, columns = grid_of(probabilities.shape[2], *grid)
    total = probabilities.new_zeros((len(probabilities), probabilities.shape[3], *grid), dtype=torch.float32)
    for head in probabilities.unbind(dim=1):
        maps = head.mT.reshape(len(head), -1, rows, columns).float()
        total += interpolate(maps, size=grid, mode="bicubic").clamp(min=0)
    return total


def half_of(half: Half, copies: torch.Tensor) -> torch.Tensor:
    """Return a half of the batch's copies, (1, ...); without guidance there is the conditional one only."""
    if half == "unconditional" and len(copies) == 1:
        raise InputError(
            "The unconditional half was asked for, and this picture was made without guidance: there is only the "
            'conditional one. Use half="conditional", or make the picture with a guidance_scale above 1.'
        )
    return copies[HALVES[half][1]]


def grid_of_samples(sample: torch.Tensor) -> tuple[int, int]:
    """Return the (h, w) of samples; raises `ModelError` for packed ones."""
    if sample.ndim != 4:
        raise ModelError(
            f"The samples of this model have shape {tuple(sample.shape)} and not (pictures, channels, h, w), so that "
            "what attends to a word has no known place. Word maps need a model whose samples are not packed."
        )
    return sample.shape[-2], sample.shape[-1]


def chosen_layers(denoiser: torch.nn.Module, patterns: Sequence[str] | None) -> tuple[str, ...]:
    """Return the layers that attend and that patterns name, all of them for None.

    Raises `ModelError` where there are none at all, `InputError` for a pattern that names none, with near misses.
    """
    layers, owner = tuple(attention_layers(denoiser)), f"the attention of this {type(denoiser).__name__}"
    if not layers:
        raise ModelError(
            f"This {type(denoiser).__name__} has no attention layers, so there are no word maps. Use a text-to-image "
            "model with cross-attention, such as Stable Diffusion, or another method, such as df-rise."
        )
    return layers if patterns is None else matching(layers, patterns, owner)
