"""Which of a layer's positions are the picture's: U-Nets give maps, transformers sequences that may hold text too."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from ..errors import InputError
from ..recording.layout import halved, inside_box, reduced
from ..recording.steps import Step

SHARE = 0.9
"""Least share of a gradient that has to lie on the expected positions to confirm a sequence's order."""


@dataclass(frozen=True)
class Stretch:
    """The picture's positions in a sequence: from `start` on, a grid of a map's form.

    `rows_are_frames` is True where each row of the output is one frame, so that a sequence holds (h, w) of it alone.
    """

    start: int
    grid: tuple[int, ...]
    rows_are_frames: bool = False


@dataclass(frozen=True, eq=False)
class Tokens:
    """The places of a map, (h, w) or (frames, h, w), in the outputs of a denoiser's layers.

    `stretches` are those of sequences by their length, measured; None for a length whose order was not confirmed.
    """

    shape: tuple[int, ...]
    stretches: Mapping[int, Stretch | None] = field(default_factory=dict)

    @classmethod
    def measured(cls, step: Step, prediction: torch.Tensor, blocks: Mapping[str, Sequence[torch.Tensor]]) -> "Tokens":
        """Measure the picture's positions in the last block of each length of sequence, by gradients.

        Behind the last block each position of the prediction is made of its own position alone, and text is dropped:
        the prediction inside a box has a gradient at the box's positions of the picture, and nowhere else.
        """
        shape = step.layout.shape
        last = {output.shape[1]: output for outputs in blocks.values() for output in outputs if output.ndim == 3}
        known: dict[int, Stretch | None] = step.run.tokens if step.run is not None else {}
        for length, output in last.items():
            if known.get(length) is None:
                known[length] = _stretch(step, prediction, output, shape)
        return cls(shape, dict(known))

    def shows(self, output: torch.Tensor) -> bool:
        """Return True if a layer's output has known positions."""
        return output.ndim in (4, 5) or (output.ndim == 3 and self._of_length(output.shape[1]) is not None)

    def as_maps(self, path: str, output: torch.Tensor) -> torch.Tensor:
        """Return a layer's output as maps (rows, channels, [frames,] h, w), float32; `InputError` if it has none."""
        frames = self.shape[0] if len(self.shape) == 3 else None
        if output.ndim == 4 and frames is None:
            return output.float()
        if output.ndim == 4 and frames is not None and len(output) % frames == 0:
            return output.float().reshape(-1, frames, *output.shape[1:]).movedim(2, 1)
        if output.ndim == 5 and frames is not None:
            return output.float()
        stretch = self._of_length(output.shape[1]) if output.ndim == 3 else None
        if stretch is not None:
            count = math.prod(stretch.grid[1:] if stretch.rows_are_frames else stretch.grid)
            places = output[:, stretch.start : stretch.start + count].float().mT
            if not stretch.rows_are_frames:
                return places.reshape(len(output), -1, *stretch.grid)
            by_frame = places.reshape(-1, stretch.grid[0], output.shape[2], *stretch.grid[1:])
            return by_frame.movedim(1, 2)
        raise InputError(
            f'The layer "{path}" gives {tuple(output.shape)}, which are not maps of the picture. Choose layers that '
            f"give (rows, channels, height, width), or (rows, positions, channels) of the sample's map, "
            f"{' × '.join(map(str, self.shape))}, or a reduced one, such as resnets, attentions and blocks."
        )

    def _of_length(self, length: int) -> Stretch | None:
        if length in self.stretches:
            return self.stretches[length]
        grid = next((grid for grid in halved(self.shape) if math.prod(grid) == length), None)
        return None if grid is None else Stretch(0, grid)


def _stretch(step: Step, prediction: torch.Tensor, output: torch.Tensor, shape: tuple[int, ...]) -> Stretch | None:
    """Return the picture's positions in a block's output; None if none are confirmed."""
    if not output.requires_grad:
        return None
    box = tuple(slice(0, max(1, side // 2)) for side in shape)
    with torch.enable_grad():
        y = step.as_maps(prediction)[(slice(None), slice(None), *box)].float().square().sum()
    (gradient,) = torch.autograd.grad(y, output, retain_graph=True, materialize_grads=True)
    weight = gradient.detach().float().abs().sum(dim=2)
    frames = shape[0] if len(shape) == 3 else 1
    by_row = weight.reshape(-1, frames, weight.shape[1]).sum(dim=0) if len(weight) % frames == 0 else weight[:0]
    for grid in reduced(shape):
        stretch = _found(weight.sum(dim=0), inside_box(box, shape, grid))
        if stretch is not None:
            return Stretch(stretch, grid)
        if len(shape) == 3 and grid[0] == frames > 1 and len(by_row):
            inside = inside_box(box, shape, grid)
            places = [_found(by_row[frame], inside[frame]) for frame in range(frames) if bool(inside[frame].any())]
            elsewhere = by_row[~inside.flatten(1).any(dim=1)].sum() / by_row.sum().clamp(min=1e-30)
            if places[0] is not None and len(set(places)) == 1 and float(elsewhere) <= 1 - SHARE:
                return Stretch(places[0], grid, rows_are_frames=True)
    return None


def _found(weight: torch.Tensor, inside: torch.Tensor) -> int | None:
    """Return where a grid begins in a sequence whose weights (positions,) lie inside a box of it; None if nowhere.

    The box holds the grid's first position, so the grid begins where the weights do.
    """
    total, places = float(weight.sum()), inside.flatten().to(weight.device)
    if not total > 0 or len(places) < 2 or bool(places.all()):
        return None
    start = int((weight > 1e-6 * weight.max()).nonzero()[0])
    end = start + len(places)
    if end > len(weight):
        return None
    return start if float(weight[start:end][places].sum()) / total >= SHARE else None
