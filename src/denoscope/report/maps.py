"""Maps as a page carries them, raw, so that a reader points at values: in blocks, over draws, on clipped scales."""

import base64
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from ..figures.results import Explained, explained_steps, is_layered, is_noised, layers
from ..figures.scales import Limits, clipped_limits, colour_limits, error_limits, outlier_scale
from ..figures.theme import HUES, readable
from .page import in_words, rounded

CELLS, FULL_MAPS = 64, 300
"""Cells on a side of a map of a photograph, for up to so many maps; more maps have fewer cells."""
WHOLE, MISSING = 32767, -32768
"""The largest of the 16-bit numbers that carry a map, and the one that says that there is no value."""


class Shown(NamedTuple):
    """A method as the page carries it: dims (step, y, x) or with one further, such as `token`, but no `draw`.

    A cell is the mean of `block` × `block` cells of the result. Values beyond `clipped` limits have the end's colour.
    """

    name: str
    hue: str
    result: xr.Dataset
    limits: Limits
    errors: Limits | None
    block: int = 1
    clipped: bool = False
    packed: bool = False

    @property
    def title(self) -> str:
        return str(self.result.attrs.get("title", self.name))

    @property
    def foremost(self) -> int:
        """The entry of a further dimension, such as a word, that has the strongest value: what is shown large first."""
        return int(np.argmax([np.abs(layer["saliency"]).max().fillna(0.0) for _, layer in layers(self.result)]))


def shown_methods(explanation: Explained, cells: int = CELLS) -> list[Shown]:
    """Every method as the page shows it; those of a recognition run over draws, in blocks, with clipped scales."""
    results = explanation.methods()
    coloured = list(zip(results.items(), _hues(results), strict=True))
    if explanation.likelihood is None and not is_noised(explanation.pictures):
        return [_as_it_is(name, result, hue) for (name, result), hue in coloured]
    number = sum(result.sizes["step"] for result in results.values())
    most = max(1, int(cells * min(1.0, math.sqrt(FULL_MAPS / max(1, number)))))
    return [shown_attribution(name, result, hue, most) for (name, result), hue in coloured]


def _hues(results: Mapping[str, xr.Dataset]) -> list[str]:
    return [HUES[i % len(HUES)] for i in range(len(results))]


def _as_it_is(name: str, result: xr.Dataset, hue: str) -> Shown:
    errors = error_limits(result) if "standard_error" in result else None
    return Shown(name, hue, result, colour_limits(result), errors, packed=is_layered(result))


def shown_attribution(name: str, result: xr.Dataset, hue: str, cells: int) -> Shown:
    """The mean over draws of an attribution, in at most `cells` blocks on a side, on a scale that outliers leave."""
    block = math.ceil(max(result.sizes["y"], result.sizes["x"]) / cells)
    result = _over_draws(in_blocks(result, block))
    limits, errors = clipped_limits(result), None
    if "standard_error" in result:
        reach = limits.high if limits.signed else limits.high - limits.low
        errors = Limits(0.0, max(outlier_scale(result["standard_error"].values), reach / 2))
    return Shown(name, hue, result, limits, errors, block, clipped=limits.signed, packed=True)


def in_blocks(result: xr.Dataset, block: int) -> xr.Dataset:
    """Means of `block` × `block` cells of every map, of those that have a value; smaller blocks at the far edges."""
    if block == 1:
        return result
    return result.coarsen(y=block, x=block, boundary="pad").mean(keep_attrs=True)


def _over_draws(result: xr.Dataset) -> xr.Dataset:
    """The mean over draws; of maps, where there are several draws, its standard error too."""
    if "draw" not in result.dims:
        return result
    saliency = result["saliency"]
    found = result.mean("draw", keep_attrs=True)
    if saliency.sizes["draw"] > 1:
        enough = saliency.notnull().sum("draw")
        error = saliency.std("draw") * np.sqrt(enough / (enough - 1.0).where(enough > 1))  # with n − 1 for n
        found["standard_error"] = error / np.sqrt(enough)
    return found


def raw_maps(shown: Shown) -> dict[str, Any]:
    """The raw values of a method, row by row; null where there is none."""
    result, limits, steps = shown.result, shown.limits, explained_steps(shown.result)
    return {
        "shape": [result.sizes["y"], result.sizes["x"]],
        "block": shown.block,
        "colours": limits.cmap().name,
        "signed": limits.signed,
        "clipped": shown.clipped,
        "limits": rounded([limits.low, limits.high]),
        "errorLimits": rounded(shown.errors[:2]) if shown.errors else None,
        "numbers": {step: _numbers(result.sel(step=step)) for step in steps},
        "layers": [{step: _map(layer.sel(step=step), shown) for step in steps} for _, layer in layers(result)],
    }


def _map(here: xr.Dataset, shown: Shown) -> dict[str, Any]:
    carried: Callable[[np.ndarray], Any] = packed if shown.packed else rounded
    values = here["saliency"].transpose("y", "x").values
    errors = carried(here["standard_error"].transpose("y", "x").values) if shown.errors else None
    own = {"limits": rounded([-outlier_scale(values), outlier_scale(values)])} if shown.clipped else {}
    return {"values": carried(values), "errors": errors, **own}


def packed(values: np.ndarray) -> dict[str, Any]:
    """Whole numbers of 16 bits, little-endian, as base64, and the unit that turns them into values again."""
    finite = np.isfinite(values)
    unit = float(np.abs(values[finite]).max(initial=0.0)) / WHOLE or 1.0
    words = np.where(finite, np.round(np.where(finite, values, 0) / unit), MISSING).astype("<i2")
    return {"unit": unit, "words": base64.b64encode(words.tobytes()).decode()}


def _numbers(here: xr.Dataset) -> list[tuple[str, str]]:
    """Every number a method has for a step, with the reliability first."""
    names = sorted(
        (str(name) for name in here.data_vars if not here[name].dims), key=lambda name: name != "reliability"
    )
    return [(str(here[name].attrs.get("long_name", in_words(name))), readable(float(here[name]))) for name in names]
