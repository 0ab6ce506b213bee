"""Incremental inference: a network's answers for pictures that differ from an original in one place only.

A convolution reads a neighbourhood. Where a picture differs from its original inside a window, the features of the
first stages differ around that window only. They are computed there, and everywhere else they are the original's. The
differing part grows from stage to stage; once it is most of the picture, the network runs as usual. The answer is the
whole network's but for rounding: nothing is approximated.

Source: Nakandala, Kumar, Papakonstantinou 2019, "Incremental and approximate inference for faster occlusion-based deep
CNN explanations", section 4 (its exact part).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

LARGEST_SHARE = 0.25
"""The largest share of its input that a stage reads around a difference; beyond it, the rest runs on whole features.

A larger share saves little time, and the deeper stages round differently for a part than for the whole.
"""
WHOLE_BATCH = 4
"""Pictures at once through the rest of the network: small batches are the fastest on a CPU."""

Corner = tuple[int, int]
"""Top and left, in cells of a stage's grid."""


@dataclass(frozen=True)
class Patch:
    """The differing part of one picture's features: values (channels, h, w), and the corner where they begin."""

    values: torch.Tensor
    corner: Corner

    def paste(self, into: torch.Tensor, at: Corner = (0, 0)) -> None:
        """Write the patch into features (channels, H, W) that begin at the cell `at` of the same grid."""
        _part(into, (self.corner[0] - at[0], self.corner[1] - at[1]), self.values.shape[1:]).copy_(self.values)


def _part(features: torch.Tensor, corner: Corner, size: Sequence[int]) -> torch.Tensor:
    (top, left), (height, width) = corner, size
    return features[:, top : top + height, left : left + width]


def _patches(pictures: torch.Tensor, originals: Sequence[torch.Tensor]) -> list[Patch]:
    """Return the differing part of each picture (channels, H, W); all patches have the size of the largest."""
    boxes = [_box(picture != original) for picture, original in zip(pictures, originals, strict=True)]
    height = max(size[0] for _, size in boxes)
    width = max(size[1] for _, size in boxes)
    most = pictures.shape[-2] - height, pictures.shape[-1] - width
    corners = [(min(top, most[0]), min(left, most[1])) for (top, left), _ in boxes]
    return [Patch(_part(picture, at, (height, width)), at) for picture, at in zip(pictures, corners, strict=True)]


def _box(differs: torch.Tensor) -> tuple[Corner, Corner]:
    """Return corner and size of the smallest box around the true values of (channels, H, W); one cell without any."""
    anywhere = differs.any(dim=0)
    cells = [anywhere.any(dim=1 - axis).nonzero().flatten().tolist() or [0] for axis in (0, 1)]
    return (cells[0][0], cells[1][0]), (cells[0][-1] - cells[0][0] + 1, cells[1][-1] - cells[1][0] + 1)


@dataclass(frozen=True)
class Reach:
    """Along one axis of `whole` input cells: output j reads the `kernel` cells from stride · j − padding on."""

    kernel: int
    stride: int
    padding: int
    whole: int

    @property
    def outputs(self) -> int:
        return self.whole // self.stride

    def changed(self, start: int, length: int) -> tuple[int, int]:
        """Return first cell and number of the outputs that read any of `length` inputs from `start` on.

        The number depends on the length alone, not on the start.
        """
        number = min((length + self.kernel - 2) // self.stride + 1, self.outputs)
        first = -((self.kernel - 1 - self.padding - start) // self.stride)
        return max(0, min(first, self.outputs - number)), number

    def read(self, first: int, number: int) -> tuple[int, int]:
        """Return first cell and number of the inputs that `number` outputs read; both are multiples of the stride."""
        span = self.stride * (number - 1) + self.kernel + self.stride - 1
        length = min(-(-span // self.stride) * self.stride, self.whole)
        start = (self.stride * first - self.padding) // self.stride * self.stride
        return max(0, min(start, self.whole - length)), length


class Stage(torch.nn.Module):
    """A part of a network with one convolution, `kernel` cells wide; its other layers work on each cell alone.

    The sides of its input are multiples of the stride. Zero padding makes the output's sides that many times smaller:
    `padding` cells on the left and the top, the rest on the right and the bottom.
    """

    def __init__(self, module: torch.nn.Module, kernel: int, stride: int, padding: int):
        super().__init__()
        self.module, self.kernel, self.stride, self.padding = module, kernel, stride, padding

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.module(features)
        return output

    def reaches(self, features: torch.Tensor) -> list[Reach]:
        """Return the reach along height and along width of input features (n, channels, h, w)."""
        return [Reach(self.kernel, self.stride, self.padding, side) for side in features.shape[2:]]


class Chain(torch.nn.Module):
    """A network of stages and a head that reads all of their features. It runs as usual, or `near` pictures."""

    def __init__(self, stages: Sequence[Stage], head: torch.nn.Module):
        super().__init__()
        self.stages, self.head = torch.nn.Sequential(*stages), head

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.stages(inputs))
        return logits

    @torch.no_grad()
    def near(self, originals: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the network for pictures (n · k, channels, h, w) that repeat n originals, but for a place in each."""
        return Near(self, originals)


class Near:
    """A chain for pictures that repeat some originals in turn, but for a place in each."""

    def __init__(self, chain: Chain, originals: torch.Tensor):
        self.chain, self.features = chain, [originals]
        for stage in chain.stages:
            self.features.append(stage(self.features[-1]))

    @torch.no_grad()
    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        originals = self.features[0]
        numbers = [i % len(originals) for i in range(len(pictures))]
        patches = _patches(pictures, [originals[i] for i in numbers])
        done = 0
        while done < len(self.chain.stages):
            patches_behind = self._through(done, patches, numbers)
            if patches_behind is None:
                break
            patches, done = patches_behind, done + 1
        starts = range(0, len(patches), WHOLE_BATCH)
        batches = [slice(start, start + WHOLE_BATCH) for start in starts]
        return torch.cat([self._rest(done, patches[batch], numbers[batch]) for batch in batches])

    def _through(self, number: int, patches: list[Patch], originals: list[int]) -> list[Patch] | None:
        """Return the patches behind a stage; None where the stage would have to read most of its input.

        `originals` are the numbers of the patches' originals.
        """
        stage: Stage = self.chain.stages[number]  # type: ignore[assignment]
        before = self.features[number]
        reaches, size = stage.reaches(before), patches[0].values.shape[1:]
        counts = [reach.changed(0, length)[1] for reach, length in zip(reaches, size, strict=True)]
        lengths = [reach.read(0, count)[1] for reach, count in zip(reaches, counts, strict=True)]
        if lengths[0] * lengths[1] > LARGEST_SHARE * reaches[0].whole * reaches[1].whole:
            return None
        inputs = before.new_empty((len(patches), before.shape[1], *lengths)).to(memory_format=torch.channels_last)
        places = []
        for into, patch, i in zip(inputs, patches, originals, strict=True):
            firsts = [r.changed(a, length)[0] for r, a, length in zip(reaches, patch.corner, size, strict=True)]
            starts = [r.read(first, n)[0] for r, first, n in zip(reaches, firsts, counts, strict=True)]
            corner = starts[0], starts[1]
            into.copy_(_part(before[i], corner, lengths))
            patch.paste(into, corner)
            places.append((firsts, starts))
        outputs, stride = stage(inputs), stage.stride
        return [
            Patch(_part(output, (a - y // stride, b - x // stride), counts), (a, b))
            for output, ((a, b), (y, x)) in zip(outputs, places, strict=True)
        ]

    def _rest(self, done: int, patches: list[Patch], originals: list[int]) -> torch.Tensor:
        """Return logits from whole features: the originals' features with the patches in their places."""
        features = self.features[done][originals].to(memory_format=torch.channels_last)
        for into, patch in zip(features, patches, strict=True):
            patch.paste(into)
        logits: torch.Tensor = self.chain.head(self.chain.stages[done:](features))
        return logits
