"""Random masks in [0, 1] on the sample's grid, from a seeded stream of their own, in chunks of any size.

A mask source yields the same masks however they are chunked, so `batch_size` never changes a result.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..errors import InputError


class Masks(ABC):
    """A source of masks: `blocks(height, width, seed)` yields arrays (n, height, width) without end."""

    @property
    def independent(self) -> float | None:
        """The probability of keeping a position; None if positions are not masked independently of each other."""
        return None

    @property
    def block(self) -> int:
        """The number of masks that balance each other; pairs and single masks need not stay together."""
        return 2

    @abstractmethod
    def blocks(self, height: int, width: int, seed: int) -> Iterator[np.ndarray]:
        """Yield blocks of masks without end, float32 in [0, 1]."""

    def stream(self, height: int, width: int, seed: int, total: int, chunk: int) -> Iterator[np.ndarray]:
        """Yield the first `total` masks of the stream in chunks of at most `chunk`."""
        left, rest = total, np.empty((0, height, width), np.float32)
        for block in self.blocks(height, width, seed):
            rest = np.concatenate([rest, block])
            while len(rest) >= min(chunk, left) and left:
                size = min(chunk, left)
                yield rest[:size]
                rest, left = rest[size:], left - size
            if not left:
                return


def _check_probability(keep: float) -> None:
    if not 0 < keep < 1:
        raise InputError(
            f"The probability of keeping a position is {keep}. It must lie between 0 and 1, both excluded; "
            "the paper keeps 0.5."
        )


@dataclass(frozen=True)
class PixelMasks(Masks):
    """Each position kept on its own with probability `keep` (Park, Ju, Lee 2024: a thresholded Gaussian each)."""

    keep: float = 0.5

    def __post_init__(self) -> None:
        _check_probability(self.keep)

    @property
    def independent(self) -> float | None:
        return self.keep

    def blocks(self, height: int, width: int, seed: int) -> Iterator[np.ndarray]:
        rng = np.random.default_rng([seed, 0])
        while True:
            yield (rng.random((64, height, width)) < self.keep).astype(np.float32)


@dataclass(frozen=True)
class BalancedMasks(Masks):
    """Positions kept with probability ½ each, every two of them balanced against each other over a block.

    A block is a randomised Hadamard matrix and its complement: every mask on its own is uniform over all masks, so
    means stay unbiased, while over a block the effect that *other* positions have on a score cancels instead of
    averaging out slowly. Source of the design: Plackett and Burman 1946, folded over (Box and Wilson 1951).
    """

    @property
    def independent(self) -> float | None:
        return 0.5

    def blocks(self, height: int, width: int, seed: int) -> Iterator[np.ndarray]:
        for rows in _balanced(height * width, np.random.default_rng([seed, 1])):
            yield np.stack([rows, 1 - rows], axis=1).reshape(-1, height, width).astype(np.float32)


def _rows(positions: int) -> int:
    """Return the order of the smallest Hadamard matrix of Sylvester's kind with a column for each position."""
    return 1 << int(np.ceil(np.log2(positions + 1)))


def _balanced(positions: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield rows (at most 32, positions) of randomised Hadamard matrices, one after the other without end."""
    rows = _rows(positions)
    while True:
        columns = rng.permutation(np.arange(1, rows, dtype=np.uint32))[:positions]
        flips = rng.integers(0, 2, positions, dtype=np.uint32)
        order = rng.permutation(rows).astype(np.uint32)
        for some in np.split(order, range(32, rows, 32)):
            yield (np.bitwise_count(some[:, None] & columns) + flips) & 1


@dataclass(frozen=True)
class GridMasks(Masks):
    """RISE's masks: a coarse grid of kept cells, enlarged bilinearly and shifted at random (Petsiuk et al. 2018).

    `cells` × `cells` cells, each kept with probability `keep`; enlarged to (cells + 1) · ⌈side / cells⌉ and cropped.
    """

    cells: int = 4
    keep: float = 0.5

    def __post_init__(self) -> None:
        _check_probability(self.keep)
        if self.cells < 1:
            raise InputError(f"The grid has {self.cells} cells a side. It needs at least 1; 4 to 8 are usual.")

    @property
    def block(self) -> int:
        return _rows(self.cells**2) if self.keep == 0.5 else 2

    def blocks(self, height: int, width: int, seed: int) -> Iterator[np.ndarray]:
        rng = np.random.default_rng([seed, 2])
        for cells in self._cells(rng):
            grids = cells.reshape(-1, self.cells, self.cells).astype(np.float32)
            tops = rng.integers(0, -(-height // self.cells), len(grids))
            lefts = rng.integers(0, -(-width // self.cells), len(grids))
            rows, columns = self._weights(height, tops), self._weights(width, lefts)
            yield np.einsum("nys,nst,nxt->nyx", rows, grids, columns).clip(0, 1)

    def _cells(self, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """Yield the kept cells, (n, cells²); balanced at keep = ½, as positions in `BalancedMasks`."""
        if self.keep == 0.5:
            yield from _balanced(self.cells**2, rng)
        while True:
            yield rng.random((32, self.cells**2)) < self.keep

    def _weights(self, side: int, starts: np.ndarray) -> np.ndarray:
        """Return bilinear weights (n, side, cells) of each cell at each position of the shifted crop."""
        cell = -(-side // self.cells)
        enlarged = (self.cells + 1) * cell
        places = (starts[:, None] + np.arange(side) + 0.5) * self.cells / enlarged - 0.5
        places = places.clip(0, self.cells - 1)
        weights: np.ndarray = np.maximum(0, 1 - np.abs(places[..., None] - np.arange(self.cells)))
        return weights.astype(np.float32)
