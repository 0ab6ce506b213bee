"""Random masks in [0, 1] on the sample's grid, from a seeded stream of their own, in chunks of any size.

A mask has the shape of a map: (h, w), or (frames, h, w) for clips.

A mask source yields the same masks however they are chunked, so `batch_size` never changes a result.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..errors import InputError


@dataclass(frozen=True, eq=False)
class Law:
    """The mean and the covariance of random masks: `keep` everywhere, and the product of a matrix for each axis."""

    keep: float
    covariances: tuple[np.ndarray, ...]


class Masks(ABC):
    """A source of masks: `blocks(shape, seed)` yields arrays (n, *shape) without end."""

    @property
    def independent(self) -> float | None:
        """The probability of keeping a position; None if positions are not masked independently of each other."""
        return None

    def law(self, shape: tuple[int, ...]) -> Law | None:
        """Return the mean and the covariance of one mask where neighbours are masked together; None elsewhere.

        Masks kept with probability ½ must be as probable as their complements.
        """
        return None

    def block(self, shape: tuple[int, ...]) -> int:
        """Return the number of masks that balance each other; pairs and single masks need not stay together."""
        return 2

    @abstractmethod
    def blocks(self, shape: tuple[int, ...], seed: int) -> Iterator[np.ndarray]:
        """Yield blocks of masks (n, *shape) without end, float32 in [0, 1]."""

    def stream(self, shape: tuple[int, ...], seed: int, total: int, chunk: int) -> Iterator[np.ndarray]:
        """Yield the first `total` masks of the stream in chunks of at most `chunk`."""
        left, rest = total, np.empty((0, *shape), np.float32)
        for block in self.blocks(shape, seed):
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

    def blocks(self, shape: tuple[int, ...], seed: int) -> Iterator[np.ndarray]:
        rng = np.random.default_rng([seed, 0])
        while True:
            yield (rng.random((64, *shape)) < self.keep).astype(np.float32)


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

    def blocks(self, shape: tuple[int, ...], seed: int) -> Iterator[np.ndarray]:
        for rows in _balanced(math.prod(shape), np.random.default_rng([seed, 1])):
            yield np.stack([rows, 1 - rows], axis=1).reshape(-1, *shape).astype(np.float32)


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
    A clip has as many cells along its frames, enlarged trilinearly; where it has no more frames than that, each frame
    is a cell of its own.
    """

    cells: int = 4
    keep: float = 0.5

    def __post_init__(self) -> None:
        _check_probability(self.keep)
        if self.cells < 1:
            raise InputError(f"The grid has {self.cells} cells a side. It needs at least 1; 4 to 8 are usual.")

    def block(self, shape: tuple[int, ...]) -> int:
        return _rows(math.prod(self._grid(shape))) if self.keep == 0.5 else 2

    def law(self, shape: tuple[int, ...]) -> Law:
        axes = [self._axis_covariance(side) for side in shape[-2:]]
        if len(shape) == 3:
            axes.insert(0, np.eye(shape[0]) if shape[0] <= self.cells else self._axis_covariance(shape[0]))
        axes[0] = self.keep * (1 - self.keep) * axes[0]
        return Law(self.keep, tuple(axes))

    def blocks(self, shape: tuple[int, ...], seed: int) -> Iterator[np.ndarray]:
        rng, grid = np.random.default_rng([seed, 2]), self._grid(shape)
        for cells in self._cells(math.prod(grid), rng):
            grids = cells.reshape(-1, *grid).astype(np.float32)
            starts = [rng.integers(0, -(-side // self.cells), len(grids)) for side in shape]
            rows, columns = (self._weights(side, start) for side, start in zip(shape[-2:], starts[-2:], strict=True))
            if len(shape) == 3:
                grids = np.einsum("nfr,nrst->nfst", self._frame_weights(shape[0], starts[0]), grids)
                yield np.einsum("nys,nfst,nxt->nfyx", rows, grids, columns, optimize=True).clip(0, 1)
            else:
                yield (rows @ grids @ columns.swapaxes(1, 2)).clip(0, 1)

    def _grid(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the number of cells along each axis."""
        return (*[min(self.cells, frames) for frames in shape[:-2]], self.cells, self.cells)

    def _cells(self, count: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """Yield the kept cells, (n, count); balanced at keep = ½, as positions in `BalancedMasks`."""
        if self.keep == 0.5:
            yield from _balanced(count, rng)
        while True:
            yield rng.random((32, count)) < self.keep

    def _frame_weights(self, frames: int, starts: np.ndarray) -> np.ndarray:
        """Return the weights (n, frames, cells) of the cells at each frame."""
        if frames > self.cells:
            return self._weights(frames, starts)
        return np.broadcast_to(np.eye(frames, dtype=np.float32), (len(starts), frames, frames))

    def _axis_covariance(self, side: int) -> np.ndarray:
        """Return the mean over shifts of Σ_cells weight · weight, (side, side)."""
        weights = self._weights(side, np.arange(-(-side // self.cells))).astype(np.float64)
        covariance: np.ndarray = np.einsum("nic,njc->ij", weights, weights, optimize=True) / len(weights)
        return covariance

    def _weights(self, side: int, starts: np.ndarray) -> np.ndarray:
        """Return bilinear weights (n, side, cells) of each cell at each position of the shifted crop."""
        cell = -(-side // self.cells)
        enlarged = (self.cells + 1) * cell
        places = (starts[:, None] + np.arange(side) + 0.5) * self.cells / enlarged - 0.5
        places = places.clip(0, self.cells - 1)
        weights: np.ndarray = np.maximum(0, 1 - np.abs(places[..., None] - np.arange(self.cells)))
        return weights.astype(np.float32)
