"""From a region of the picture to the words that attend there."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from ..errors import InputError, shown_value

Box = tuple[float, float, float, float]


def words_at(
    maps: xr.Dataset,
    box: Box | None = None,
    mask: np.ndarray | None = None,
    steps: Sequence[int] | None = None,
) -> xr.Dataset:
    """The words that attend to a region of the picture, the one most at home there first.

    >>> words_at(maps, box=(0, 20, 30, 50), steps=[6, 15]).token.values[0]   # doctest: +SKIP
    'circle'

    `maps` are those of `Words`. `box` is (x0, y0, x1, y1) in pixels of the picture, x to the right, y downwards, the
    far edges excluded; `mask` is boolean, of the picture's size or of the maps'. Give one of them. The steps, all by
    default, count alike.

    Over `token`: `share` is how much of the word's attention lies inside, 0 to 1; `enrichment`, by which words are
    ranked, is that share divided by the region's share of the picture, so that 1 is what a word spread evenly has;
    `mean` is the raw mean inside, which says how much the region attends to the word compared with other words.

    Raises `InputError` for a box outside the picture, an empty mask or one of another size, and steps not explained.
    """
    saliency = _of_steps(maps, steps)
    weights = xr.DataArray(_weights(maps, box, mask), dims=("y", "x"))
    area = float(weights.mean())
    inside, total = (saliency * weights).sum(("y", "x")), saliency.sum(("y", "x"))
    share = inside / total.where(total > 0)
    found = xr.Dataset({"enrichment": share / area, "share": share, "mean": inside / float(weights.sum())})
    order = np.argsort(-found["enrichment"].fillna(-np.inf).values, kind="stable")
    return found.isel(token=order).assign_attrs(area=area, steps=[int(step) for step in saliency.attrs["steps"]])


def _of_steps(maps: xr.Dataset, steps: Sequence[int] | None) -> xr.DataArray:
    """The mean map of the chosen steps, (token, y, x)."""
    if "token" not in maps.get("saliency", xr.DataArray()).dims:
        raise InputError(
            "Only maps of words can say which words attend to a region: these have no dimension token. Give what Words "
            "returns: Words()(trace)."
        )
    known = maps["step"].values.tolist()
    chosen = known if steps is None else list(steps)
    if unknown := [step for step in chosen if step not in known]:
        raise InputError(
            f"The steps {chosen} cannot be looked at: step {unknown[0]} has no word maps. These maps have the steps "
            f"{', '.join(map(str, known))}; choose among them, or explain more."
        )
    if not chosen:
        raise InputError("No step was given. Name at least one, or leave steps out for all that have maps.")
    return maps["saliency"].sel(step=chosen).mean("step").assign_attrs(steps=chosen)


def _weights(maps: xr.Dataset, box: Box | None, mask: np.ndarray | None) -> np.ndarray:
    """How much of each cell of the maps lies in the region, (y, x) in [0, 1]."""
    grid = maps.sizes["y"], maps.sizes["x"]
    height, width = map(int, maps.attrs.get("picture_size", grid))
    if (box is None) == (mask is None):
        raise InputError("A region is either a box or a mask. Give one of them.")
    if box is not None:
        x0, y0, x1, y1 = _inside(box, width, height)
        return np.outer(_covered(grid[0], height, y0, y1), _covered(grid[1], width, x0, x1))
    return _shared(np.asarray(mask), grid, (height, width))


def _inside(box: Box, width: int, height: int) -> Box:
    try:
        x0, y0, x1, y1 = (float(edge) for edge in box)
    except (TypeError, ValueError):
        raise InputError(
            f"The box {shown_value(box)} is not one. Give four numbers: x0, y0, x1, y1, in pixels."
        ) from None
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise InputError(
            f"The box {shown_value(box)} is empty or outside the picture of {width} × {height} pixels. Give "
            f"(x0, y0, x1, y1) with 0 ≤ x0 < x1 ≤ {width} and 0 ≤ y0 < y1 ≤ {height}; y counts downwards."
        )
    return x0, y0, x1, y1


def _covered(cells: int, pixels: int, start: float, end: float) -> np.ndarray:
    """The share of each of the cells along one axis that lies between two places in pixels."""
    edges = np.linspace(0, pixels, cells + 1)
    overlap = np.minimum(edges[1:], end) - np.maximum(edges[:-1], start)
    return np.clip(overlap, 0, None) * cells / pixels


def _shared(mask: np.ndarray, grid: tuple[int, int], picture: tuple[int, int]) -> np.ndarray:
    """A boolean mask as the share of each cell that it covers."""
    if mask.shape not in (grid, picture) or mask.dtype != bool:
        raise InputError(
            f"The mask has shape {mask.shape} and type {mask.dtype}. It must be boolean, of the picture's height and "
            f"width {picture} or of the maps' {grid}."
        )
    if not mask.any():
        raise InputError("The mask is empty, so there is nothing to attend to. Give one that is True somewhere.")
    if mask.shape == grid:
        return mask.astype(float)
    rows, columns = (
        np.stack([_covered(cells, pixels, i, i + 1) for i in range(pixels)], axis=1)
        for cells, pixels in zip(grid, picture, strict=True)
    )
    return rows @ mask @ columns.T
