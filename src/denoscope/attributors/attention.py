"""Maps of every token of a text: the attention of the picture to it, over layers and heads, enlarged and averaged."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch.nn.functional import interpolate

from ..errors import InputError, ModelError
from ..figures.clips import map_frame
from ..recording.hooks.attention import attention_layers
from ..recording.hooks.surroundings import Autocast
from ..recording.listening import Attended
from ..recording.patterns import matching

Half = Literal["conditional", "unconditional"]
HALVES = ("conditional", "unconditional")
"""The halves of guidance: that of the prompt, and that of the negative prompt."""

AT_ONCE = 2**26
"""Attention probabilities of one layer that are held at once; more are computed head by head."""
ENLARGED_AT_ONCE = 2**25
"""Numbers of enlarged heads that are held at once."""


@dataclass(eq=False)
class LayerMean:
    """The mean over layers and heads of attention maps, taken layer by layer: no layer is stored.

    `shape` is the map's (h, w) or (frames, h, w). `numbers` are the positions of the text whose maps are wanted. A
    position that lies at several keys of a layer has the sum of them; layers that do not read it do not count for it.
    Of plain samples (pictures, channels, h, w) each head is enlarged and clamped alone, as in DAAM; of others heads are
    added first.
    """

    shape: tuple[int, ...]
    numbers: Sequence[int]
    heads: Sequence[int] | None = None
    total: torch.Tensor | None = None
    summed: dict[tuple[int, ...], torch.Tensor] = field(default_factory=dict)
    counts: torch.Tensor | None = None

    def hear(self, attended: Attended) -> None:
        """Add an attention of the picture to the text."""
        if attended.grid is None:
            raise ModelError(
                f"The layer {attended.call.layer} attends from {len(attended.queries)} positions of the picture to the "
                f"text, and they are on no grid of the map of {' × '.join(map(str, self.shape))}, whole or in patches. "
                "Choose other layers, layers=(...)."
            )
        for by_token, heard in by_number(attended, self.numbers, self.heads):
            if attended.is_plain and len(self.shape) == 2:
                maps = enlarged(by_token, self.shape, attended.grid)[0]
                self.total = maps if self.total is None else self.total + maps
            else:
                summed = by_token.float().sum(dim=1)
                before = self.summed.get(attended.grid)
                self.summed[attended.grid] = summed if before is None else before + summed
            self.counts = heard if self.counts is None else self.counts + heard

    def mean(self) -> torch.Tensor:
        """Return the mean, (tokens, [frames,] h, w); raises `ModelError` when no layer attended to the text."""
        total = self.total
        for grid, summed in self.summed.items():
            maps = enlarged_clip(summed, self.shape, grid)
            total = maps if total is None else total + maps
        if total is None or self.counts is None:
            raise ModelError(NO_TEXT)
        counts = self.counts.clamp(min=1).to(total.device)
        return total / counts.reshape(-1, *[1] * len(self.shape))


@dataclass(eq=False)
class FlatMean:
    """The sum over layers and heads of attention whose grid is not known yet, for each number of positions.

    `totals` are (rows, queries, tokens) by rows and queries, `counts` how often each token was read.
    """

    numbers: Sequence[int]
    heads: Sequence[int] | None = None
    totals: dict[tuple[int, tuple[int, ...]], torch.Tensor] = field(default_factory=dict)
    counts: torch.Tensor | None = None

    def hear(self, attended: Attended) -> None:
        """Add an attention of the picture to the text."""
        key = (len(attended.rows), attended.queries)
        for by_token, heard in by_number(attended, self.numbers, self.heads):
            total = by_token.float().sum(dim=1)
            self.totals[key] = self.totals[key] + total if key in self.totals else total
            self.counts = heard if self.counts is None else self.counts + heard


def by_number(
    attended: Attended, numbers: Sequence[int], heads: Sequence[int] | None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the picture's attention to positions of the text, (rows, heads, queries, numbers), in portions of heads.

    The second value is how many heads of a position were heard, (numbers). Yields nothing for a layer that reads none.
    """
    columns = [attended.keys.get(number, []) for number in numbers]
    keys = [key for column in columns for key in column]
    owners = [i for i, column in enumerate(columns) for _ in column]
    is_read = torch.tensor([bool(column) for column in columns], dtype=torch.float32)
    for chosen in portions(attended, heads, keys) if keys else ():
        by_token = chosen
        if owners != list(range(len(numbers))):
            by_token = chosen.new_zeros((*chosen.shape[:3], len(numbers)))
            by_token.index_add_(3, torch.tensor(owners, device=chosen.device), chosen)
        yield by_token, is_read * chosen.shape[1]


NO_TEXT = (
    "None of the denoiser's layers that were asked for attends from the picture to the text: there are no word maps. "
    "Layers of self-attention have none. Leave layers out for all that read the text, or use another method, such as "
    "df-rise."
)


def portions(attended: Attended, heads: Sequence[int] | None, keys: list[int]) -> list[torch.Tensor]:
    """Return the picture's attention of chosen heads to chosen keys, (rows, heads, queries, keys) in portions of heads.

    Raises `InputError` for a head that is not there.
    """
    call = attended.call
    number = call.heads
    if heads is not None and max(heads) >= number:
        raise InputError(
            f"The layer {call.layer} has no head {max(heads)}: its heads are 0 to {number - 1}. "
            "Choose heads that all chosen layers have, or fewer layers."
        )
    chosen = list(range(number)) if heads is None else list(heads)
    rows, queries = list(attended.rows), list(attended.queries)
    return call.of_keys(rows, queries, chosen, keys, AT_ONCE)


@Autocast.off()  # products would be in half precision: a recording is listened to inside of the user's call
def enlarged(probabilities: torch.Tensor, shape: tuple[int, ...], grid: tuple[int, ...]) -> torch.Tensor:
    """Return attention (rows, heads, queries, tokens) as maps (rows, tokens, h, w) of a shape, summed over heads.

    Each head is enlarged by cubic interpolation, and negative values are clamped to 0, as in DAAM: so heads cannot be
    added before. The interpolation is the product with one matrix for each axis, which is many times faster than
    torch's own, whose every number fetches sixteen others.
    """
    by_place = probabilities.reshape(*probabilities.shape[:2], *grid, probabilities.shape[3])
    if grid == tuple(shape):
        own: torch.Tensor = by_place.sum(dim=1, dtype=torch.float32).movedim(-1, 1)
        return own
    rows, columns = (cubic_weights(*sides, probabilities.device) for sides in zip(grid, shape, strict=True))
    total: torch.Tensor | None = None
    each = max(1, ENLARGED_AT_ONCE // max(1, len(probabilities) * shape[0] * shape[1] * probabilities.shape[3]))
    for heads in torch.split(by_place, each, dim=1):
        tall = (rows @ heads.float().flatten(3)).reshape(*heads.shape[:2], shape[0], *heads.shape[3:])
        maps = (columns @ tall).clamp_(min=0).sum(dim=1)
        total = maps if total is None else total.add_(maps)
    assert total is not None
    return total.movedim(-1, 1)


@functools.lru_cache(maxsize=64)
def cubic_weights(cells: int, size: int, device: torch.device) -> torch.Tensor:
    """Return torch's cubic interpolation along an axis from some cells to a size, as a matrix (size, cells)."""
    unit = torch.eye(cells, dtype=torch.float32, device=device)[:, None, :, None]
    weights: torch.Tensor = interpolate(unit, size=[size, 1], mode="bicubic")[:, 0, :, 0].T.contiguous()
    return weights


def enlarged_clip(
    summed: torch.Tensor, shape: tuple[int, ...], grid: tuple[int, ...], *, mode: str = "bicubic"
) -> torch.Tensor:
    """Return attention (rows, queries, tokens) as maps (tokens, [frames,] h, w) of a shape.

    The rows are the frames, or one row holds them all. Bicubic maps are clamped at 0; in mode "bilinear" every value
    is a mean of values that were there, of either sign.
    """
    maps = summed.flatten(0, 1).mT.reshape(-1, *grid)
    if len(shape) == 3:
        maps = maps[:, [map_frame(i, grid[0], shape[0]) for i in range(shape[0])]]
    if maps.shape[-2:] == tuple(shape[-2:]):
        return maps
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    larger = interpolate(flat, size=list(shape[-2:]), mode=mode)
    larger = larger.clamp(min=0) if mode == "bicubic" else larger
    return larger.reshape(*maps.shape[:-2], *shape[-2:])


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
