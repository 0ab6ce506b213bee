"""Maps as a page carries them: raw, so that a reader points at values; in blocks, over draws, on clipped scales."""

import base64
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from ..figures.clips import frames_of, is_clip, map_frame, spread
from ..figures.results import Explained, explained_steps, is_layered, is_noised, layers
from ..figures.scales import Limits, clipped_limits, colour_limits, error_limits, outlier_scale
from ..figures.theme import HUES, readable
from .page import in_words, rounded

CELLS, FULL_MAPS = 64, 300
"""Cells on a side of a map of a photograph, for up to so many maps; more maps have fewer cells."""
CARD_CELLS, CARD_MAPS = 32, 400
"""The same for the cards of a page that compares, with all its maps counted."""
CLIP_MAPS, SHOWN_FRAMES = 600, 16
"""Maps of a clip with CELLS on a side, at most, and frames of a clip that a page shows."""
WHOLE, MISSING = 32767, -32768
"""The largest of the 16-bit numbers that carry a map, and the number for a missing value."""


class PageResult(NamedTuple):
    """The result of a method as a page carries it.

    `data` has the dims (step, y, x), or one further, such as `token`, but no `draw`; of a clip it has `frame` with the
    frames that belong to those shown. A cell is the mean of `block` ×
    `block` cells of the result. Values beyond `clipped` limits have the end's colour.
    """

    name: str
    hue: str
    data: xr.Dataset
    limits: Limits
    errors: Limits | None
    block: int = 1
    clipped: bool = False
    packed: bool = False

    @property
    def title(self) -> str:
        """The method's title, or its name."""
        return str(self.data.attrs.get("title", self.name))

    @property
    def foremost(self) -> int:
        """The entry of a further dimension, such as a word, with the strongest value: it is drawn large first."""
        return int(np.argmax([np.abs(layer["saliency"]).max().fillna(0.0) for _, layer in layers(self.data)]))


def page_results(explanation: Explained, cells: int = CELLS) -> list[PageResult]:
    """Return every result as the page carries it; those of a recognition over draws, in blocks, with clipped scales."""
    results = explanation.methods()
    hues = [HUES[i % len(HUES)] for i in range(len(results))]
    coloured = list(zip(results.items(), hues, strict=True))
    if is_clip(explanation.pictures):
        return _clip_results(coloured, explanation.pictures, cells)
    if explanation.likelihood is None and not is_noised(explanation.pictures):
        return [_unchanged(name, result, hue) for (name, result), hue in coloured]
    most = fewer_cells(cells, FULL_MAPS, sum(result.sizes["step"] for result in results.values()))
    return [averaged(name, result, hue, most) for (name, result), hue in coloured]


def fewer_cells(cells: int, most_maps: int, maps: int) -> int:
    """Return the cells on a side of a map, so that all maps together have no more than `most_maps` with `cells`."""
    return max(1, int(cells * min(1.0, math.sqrt(most_maps / max(1, maps)))))


def _unchanged(name: str, result: xr.Dataset, hue: str) -> PageResult:
    """Return a result whose maps are carried cell by cell."""
    errors = error_limits(result) if "standard_error" in result else None
    return PageResult(name, hue, result, colour_limits(result), errors, packed=is_layered(result))


def _clip_results(
    coloured: Sequence[tuple[tuple[str, xr.Dataset], str]], pictures: xr.Dataset, cells: int
) -> list[PageResult]:
    """Return results of a clip in blocks, with the frames that belong to the shown ones; scales are those of all."""
    carried = []
    for (name, result), hue in coloured:
        whole = _unchanged(name, result, hue)
        frames = carried_frames(result, pictures)
        carried.append(whole._replace(data=result.isel(frame=frames) if is_clip(result) else result, packed=True))
    most = fewer_cells(cells, CLIP_MAPS, sum(number_of_maps(each.data) for each in carried))
    blocks = [math.ceil(max(each.data.sizes["y"], each.data.sizes["x"]) / most) for each in carried]
    return [
        each._replace(data=in_blocks(each.data, block), block=block)
        for each, block in zip(carried, blocks, strict=True)
    ]


def shown_frames(pictures: xr.Dataset) -> list[int]:
    """Return the frames of a clip that a page shows: all, or SHOWN_FRAMES that are evenly spread."""
    return spread(frames_of(pictures), SHOWN_FRAMES)


def carried_frames(result: xr.Dataset, pictures: xr.Dataset) -> list[int]:
    """Return the frames of a result's maps that belong to the frames of the clip that a page shows."""
    number = frames_of(pictures)
    return sorted({map_frame(frame, frames_of(result), number) for frame in shown_frames(pictures)})


def number_of_maps(result: xr.Dataset) -> int:
    """Return the number of maps (y, x) of a result."""
    return math.prod(size for dim, size in result["saliency"].sizes.items() if dim not in ("y", "x"))


def averaged(name: str, result: xr.Dataset, hue: str, cells: int) -> PageResult:
    """Return the mean over draws of a result, in at most `cells` blocks on a side, on a scale without outliers."""
    block = math.ceil(max(result.sizes["y"], result.sizes["x"]) / cells)
    data = _over_draws(in_blocks(result, block))
    limits, errors = clipped_limits(data), None
    if "standard_error" in data:
        reach = limits.high if limits.signed else limits.high - limits.low
        errors = Limits(0.0, max(outlier_scale(data["standard_error"].values), reach / 2))
    return PageResult(name, hue, data, limits, errors, block, clipped=limits.signed, packed=True)


def in_blocks(result: xr.Dataset, block: int) -> xr.Dataset:
    """Return means of `block` × `block` cells that have a value; the blocks at the far edges are smaller."""
    if block == 1:
        return result
    return result.coarsen(y=block, x=block, boundary="pad").mean(keep_attrs=True)


def _over_draws(result: xr.Dataset) -> xr.Dataset:
    """Return the mean over draws; of maps, if there are several draws, its standard error too."""
    if "draw" not in result.dims:
        return result
    saliency = result["saliency"]
    means = result.mean("draw", keep_attrs=True)
    if saliency.sizes["draw"] > 1:
        number = saliency.notnull().sum("draw")
        deviation = saliency.std("draw") * np.sqrt(number / (number - 1.0).where(number > 1))  # divided by n − 1
        means["standard_error"] = deviation / np.sqrt(number)
    return means


def raw_maps(result: PageResult) -> dict[str, Any]:
    """Return the raw values of a result for the page's script, row by row; null where there is none."""
    data, limits, steps = result.data, result.limits, explained_steps(result.data)
    maps = [{step: _map(layer.sel(step=step), result) for step in steps} for _, layer in layers(data)]
    return {
        "shape": [data.sizes["y"], data.sizes["x"]],
        "block": result.block,
        "colours": limits.cmap().name,
        "signed": limits.signed,
        "clipped": result.clipped,
        "limits": rounded([limits.low, limits.high]),
        "errorLimits": rounded(result.errors[:2]) if result.errors else None,
        "numbers": {step: _numbers(data.sel(step=step)) for step in steps},
        "layers": maps,
    }


def _map(at_step: xr.Dataset, result: PageResult) -> dict[str, Any]:
    """Return the values and standard errors of a map, and the limits of its own scale if scales are clipped.

    Of a clip these are a list, one for each frame, with the range of all their values.
    """
    if is_clip(at_step):
        values = at_step["saliency"].values
        finite = values[np.isfinite(values)]
        frames = [_map(at_step.isel(frame=frame), result) for frame in range(frames_of(at_step))]
        return {"frames": frames, "range": rounded([finite.min(), finite.max()]) if finite.size else []}
    carried: Callable[[np.ndarray], Any] = packed if result.packed else rounded
    values = at_step["saliency"].transpose("y", "x").values
    errors = carried(at_step["standard_error"].transpose("y", "x").values) if result.errors else None
    content = {"values": carried(values), "errors": errors}
    if result.clipped:
        content["limits"] = rounded([-outlier_scale(values), outlier_scale(values)])
    return content


def nearest_maps(result: PageResult | None, limits: Limits | None = None) -> dict[str, Any]:
    """Return the maps of a card that shows the nearest explained step, on their own colour scale or on `limits`.

    Without a result there are no maps.
    """
    if result is None:
        return {"title": "", "maps": {}, "limits": [0, 0], "shape": [0, 0], "colours": ""}
    limits = limits or result.limits
    saliency = result.data["saliency"].transpose("step", "y", "x")
    return {
        "title": result.title,
        "maps": {step: packed(saliency.sel(step=step).values) for step in explained_steps(result.data)},
        "limits": [limits.low, limits.high],
        "shape": [result.data.sizes["y"], result.data.sizes["x"]],
        "colours": limits.cmap().name,
    }


def packed(values: np.ndarray) -> dict[str, Any]:
    """Return whole numbers of 16 bits, little-endian, as base64, and the unit that turns them into values again."""
    finite = np.isfinite(values)
    unit = float(np.abs(values[finite]).max(initial=0.0)) / WHOLE or 1.0
    words = np.where(finite, np.round(np.where(finite, values, 0) / unit), MISSING).astype("<i2")
    return {"unit": unit, "words": base64.b64encode(words.tobytes()).decode()}


def _numbers(at_step: xr.Dataset) -> list[tuple[str, str]]:
    """Return every number of a step with its name, the reliability first."""
    names = [str(name) for name in at_step.data_vars if not at_step[name].dims]
    names.sort(key=lambda name: name != "reliability")
    numbers = [(_name_of(name, at_step), readable(float(at_step[name]))) for name in names]
    if "presence" in at_step:
        tokens = zip(at_step.token.values, at_step.presence.values, strict=True)
        numbers += [(f"presence of “{token}”", f"{value:.2f}") for token, value in tokens]
    return numbers


def _name_of(name: str, result: xr.Dataset) -> str:
    """Return the name of a variable in words: its caption's, if it has one."""
    return str(result[name].attrs.get("long_name", in_words(name)))
