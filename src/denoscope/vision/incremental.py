"""Incremental inference: what a network says of pictures that differ from known ones in one place only.

A convolution reads a neighbourhood. Where a picture differs from a known one inside a window, the features of the first
stages differ around that window only; there they are computed, and everywhere else they are the known picture's. What
differs grows from stage to stage, and from where it is most of the picture the network runs as usual. The answer is the
whole network's but for rounding: nothing is approximated.

Source: Nakandala, Kumar, Papakonstantinou 2019, "Incremental and approximate inference for faster occlusion-based deep
CNN explanations", section 4 (its exact part).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

MOST = 0.25
"""The share of its input that a stage may have to read around what differs; beyond it, all of the rest is computed.

With more the rest is not much sooner, and the deeper stages round differently for a part than for the whole.
"""
TOGETHER = 4
"""Pictures at once through the rest of the network: small batches are a processor's fastest."""

Corner = tuple[int, int]
"""Top and left, in cells of a stage's grid."""


@dataclass(frozen=True)
class Patch:
    """The part of one picture's features that differs: values (channels, h, w), and where they begin."""

    values: torch.Tensor
    corner: Corner

    def paste(self, into: torch.Tensor, at: Corner = (0, 0)) -> None:
        """Write it into features (channels, H, W) that begin at a cell of the same grid."""
        _part(into, (self.corner[0] - at[0], self.corner[1] - at[1]), self.values.shape[1:]).copy_(self.values)


def _part(features: torch.Tensor, corner: Corner, size: Sequence[int]) -> torch.Tensor:
    (top, left), (height, width) = corner, size
    return features[:, top : top + height, left : left + width]


def _patches(pictures: torch.Tensor, known: Sequence[torch.Tensor]) -> list[Patch]:
    """What differs between pictures (channels, H, W) and known ones, all patches of the size of the largest."""
    boxes = [_box(picture != other) for picture, other in zip(pictures, known, strict=True)]
    height, width = (max(lengths) for lengths in zip(*(size for _, size in boxes), strict=True))
    most = pictures.shape[-2] - height, pictures.shape[-1] - width
    corners = [(min(top, most[0]), min(left, most[1])) for (top, left), _ in boxes]
    return [Patch(_part(picture, at, (height, width)), at) for picture, at in zip(pictures, corners, strict=True)]


def _box(differs: torch.Tensor) -> tuple[Corner, Corner]:
    """Corner and size of the smallest box around what is true in (channels, H, W); one cell where nothing is."""
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
        """First cell and number of the outputs that read any of the inputs from `start` on; whatever the start, the
        number is the same for the same length."""
        number = min((length + self.kernel - 2) // self.stride + 1, self.outputs)
        first = -((self.kernel - 1 - self.padding - start) // self.stride)
        return max(0, min(first, self.outputs - number)), number

    def read(self, first: int, number: int) -> tuple[int, int]:
        """First cell and number of the inputs that these outputs read; both are multiples of the stride."""
        span = self.stride * (number - 1) + self.kernel + self.stride - 1
        length = min(-(-span // self.stride) * self.stride, self.whole)
        start = (self.stride * first - self.padding) // self.stride * self.stride
        return max(0, min(start, self.whole - length)), length


class Stage(torch.nn.Module):
    """A part of a network with one convolution, `kernel` cells wide; all else in it works on each cell alone.

    Its input's sides are multiples of the stride, and its zero padding makes the output's sides that many times
    smaller: the `padding` on the left and the top, the rest on the right and the bottom.
    """

    def __init__(self, module: torch.nn.Module, kernel: int, stride: int, padding: int):
        super().__init__()
        self.module, self.kernel, self.stride, self.padding = module, kernel, stride, padding

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.module(features)

    def reaches(self, features: torch.Tensor) -> list[Reach]:
        """Along height and width of input features (n, channels, h, w)."""
        return [Reach(self.kernel, self.stride, self.padding, side) for side in features.shape[2:]]


class Chain(torch.nn.Module):
    """A network that is a chain of stages and a head, which reads everything. It runs as usual, or `near` pictures."""

    def __init__(self, stages: Sequence[Stage], head: torch.nn.Module):
        super().__init__()
        self.stages, self.head = torch.nn.Sequential(*stages), head

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.stages(inputs))

    @torch.no_grad()
    def near(self, known: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """The network for pictures (n · k, channels, h, w) in turn like the n known ones, but for a place in each."""
        return Near(self, known)


class Near:
    """A chain for pictures that are like known ones but for a place in each."""

    def __init__(self, chain: Chain, known: torch.Tensor):
        self.chain, self.features = chain, [known]
        for stage in chain.stages:
            self.features.append(stage(self.features[-1]))

    @torch.no_grad()
    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        known = self.features[0]
        which = [i % len(known) for i in range(len(pictures))]
        patches = _patches(pictures, [known[i] for i in which])
        done = 0
        while done < len(self.chain.stages) and (further := self._through(done, patches, which)):
            patches, done = further, done + 1
        return torch.cat([self._rest(done, *few) for few in _few(patches, which)])

    def _through(self, number: int, patches: list[Patch], which: list[int]) -> list[Patch] | None:
        """The patches behind a stage; None where it would have to read most of its input."""
        stage: Stage = self.chain.stages[number]  # type: ignore[assignment]
        before = self.features[number]
        reaches, size = stage.reaches(before), patches[0].values.shape[1:]
        numbers = [reach.changed(0, length)[1] for reach, length in zip(reaches, size, strict=True)]
        lengths = [reach.read(0, number)[1] for reach, number in zip(reaches, numbers, strict=True)]
        if lengths[0] * lengths[1] > MOST * reaches[0].whole * reaches[1].whole:
            return None
        inputs = before.new_empty((len(patches), before.shape[1], *lengths)).to(memory_format=torch.channels_last)
        places = []
        for into, patch, i in zip(inputs, patches, which, strict=True):
            firsts = [r.changed(a, length)[0] for r, a, length in zip(reaches, patch.corner, size, strict=True)]
            starts = [r.read(first, n)[0] for r, first, n in zip(reaches, firsts, numbers, strict=True)]
            corner = starts[0], starts[1]
            into.copy_(_part(before[i], corner, lengths))
            patch.paste(into, corner)
            places.append((firsts, starts))
        outputs, stride = stage(inputs), stage.stride
        return [
            Patch(_part(output, (a - y // stride, b - x // stride), numbers), (a, b))
            for output, ((a, b), (y, x)) in zip(outputs, places, strict=True)
        ]

    def _rest(self, done: int, patches: list[Patch], which: list[int]) -> torch.Tensor:
        """Logits from whole features: the known pictures', with the patches in their places."""
        features = self.features[done][which].to(memory_format=torch.channels_last)
        for into, patch in zip(features, patches, strict=True):
            patch.paste(into)
        return self.chain.head(self.chain.stages[done:](features))


def _few(patches: list[Patch], which: list[int]) -> list[tuple[list[Patch], list[int]]]:
    starts = range(0, len(patches), TOGETHER)
    return [(patches[i : i + TOGETHER], which[i : i + TOGETHER]) for i in starts]
