"""The parts of every page: templates, pictures as data URIs, numbers in words, tables, lines and ticks, colours."""

import base64
import io
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
import xarray as xr
from jinja2.utils import htmlsafe_json_dumps
from matplotlib.colors import to_hex
from matplotlib.ticker import MaxNLocator
from PIL import Image

from ..figures.overlays import shrunk
from ..figures.scales import OUTLIER_PERC
from ..figures.theme import DIVERGING, SEQUENTIAL, readable

EXACT_SIDE, LARGEST_SIDE = 128, 512
"""Pixels up to which a picture is carried exactly, and of the longer side of the largest picture."""
NOISE_QUALITY = 60
"""The quality of a noised frame as WebP: noise is all detail, and keeps its look at a lower quality."""
NOISED_WORDS = {"draws": "draws of the noise: {}", "kind": "noising: {}"}


def template(name: str) -> jinja2.Template:
    """Load a template; everything that comes from a run is escaped, as a prompt may contain markup."""
    folder = Path(__file__).parent / "templates"
    loader = jinja2.FileSystemLoader(folder)
    return jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).get_template(name)


def as_json(content: Any) -> str:
    """Return JSON that can stand inside a script element of a page."""
    return htmlsafe_json_dumps(content, separators=(",", ":"), allow_nan=False)


# Pictures


def picture_uri(picture: np.ndarray, side: int = LARGEST_SIDE, quality: int | None = None) -> str:
    """Return (row, column, channel) uint8 as a data URI: exact (PNG) up to 128 px; above, at most `side` px, as WebP.

    With a `quality` it is WebP at any size.
    """
    image = Image.fromarray(shrunk(picture, side))
    exact = max(image.size) <= EXACT_SIDE and quality is None
    file = io.BytesIO()
    if exact:
        image.save(file, "PNG", optimize=True)
    else:
        image.save(file, "WEBP", quality=quality or 80)
    return f"data:image/{'png' if exact else 'webp'};base64,{base64.b64encode(file.getvalue()).decode()}"


# Numbers and words


def rounded(values: Any) -> list[float | None]:
    """Return four significant digits of each value; None for values that are not finite.

    >>> rounded([0.123456, float("nan")])
    [0.1235, None]
    """
    return [float(f"{value:.4g}") if math.isfinite(value) else None for value in np.ravel(values).tolist()]


def counted(number: int, noun: str) -> str:
    """Return a number with its noun.

    >>> counted(1, "frame"), counted(100, "frame")
    ('1 frame', '100 frames')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def place_numbers(here: xr.Dataset) -> dict[str, Any]:
    """Return a step's index, time step and log-SNR, in words."""
    return {
        "index": int(here["step"]),
        "timestep": readable(float(here["timestep"]), 4),
        "log_snr": readable(float(here["log_snr"])),
    }


def clipped_share() -> str:
    """Return the share beyond the ends of a clipped scale, in words."""
    return f"{OUTLIER_PERC:g}\N{NO-BREAK SPACE}%"


def table_rows(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (label, text) for each row of a table; lists and nested options stand on one line."""
    return [(in_words(name), _text(value)) for name, value in values.items()]


def _text(value: Any) -> str:
    """Return a value in words."""
    if isinstance(value, Mapping):
        return ", ".join(f"{in_words(name)} {_text(entry)}" for name, entry in value.items())
    if isinstance(value, (list, tuple, np.ndarray)):
        return ", ".join(_text(entry) for entry in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return readable(value, 4)
    return "none" if value is None else str(value)


def in_words(name: str) -> str:
    """Return an option's name in words."""
    return str(name).replace("_", " ").replace("num ", "number of ")


def command_line(command: Any) -> str:
    """Return the command as a line for a shell; a run records it as a line or a list of words."""
    return shlex.join(map(str, command)) if isinstance(command, (list, tuple)) else str(command or "")


# Lines in per cent of a chart’s box, whose columns are the steps


def column_middles(steps: Sequence[int] | np.ndarray) -> dict[int, float]:
    """Return the middle of each step's column in a chart, in per cent."""
    return {int(step): 100 * (i + 0.5) / len(steps) for i, step in enumerate(steps)}


def step_ticks(steps: np.ndarray) -> list[tuple[float, int]]:
    """Return (place in per cent, step) of a few round steps."""
    chosen = _ticks([int(step) for step in steps], integer=True)
    return [(x, step) for step, x in column_middles(steps).items() if step in chosen]


def line(series: xr.DataArray, places: Mapping[int, float], low: float, high: float) -> dict[str, Any]:
    """Return the path, points and ticks of (step) values in a chart from `low` to `high`.

    Values outside the range lie on its border; missing values have no point.
    """
    pairs = zip(series["step"].values.tolist(), series.values.tolist(), strict=True)
    points = [(places[step], 100 * (high - min(max(value, low), high)) / (high - low)) for step, value in pairs
              if math.isfinite(value)]  # fmt: skip
    ticks = [(100 * (high - tick) / (high - low), readable(tick)) for tick in _ticks([low, high])]
    return {
        "path": path(points),
        "points": points,
        "ticks": ticks,
    }


def path(points: Sequence[tuple[float, float]]) -> str:
    """Return the points as an SVG path."""
    return "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in points) if points else ""


def span(values: np.ndarray) -> tuple[float, float]:
    """Return round numbers around the finite values, with a little room for a single value."""
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    ticks = MaxNLocator(4).tick_values(low - 1e-6, high + 1e-6)
    return float(ticks[0]), float(ticks[-1])


def _ticks(values: Sequence[float], integer: bool = False) -> list[float]:
    ticks = MaxNLocator(8 if integer else 4, integer=integer).tick_values(min(values), max(values))
    return [float(tick) for tick in ticks if min(values) <= tick <= max(values)]


def is_series(result: xr.Dataset, name: str) -> bool:
    """Return True if a result has a number of this name for each step."""
    return name in result and result[name].dims == ("step",)


# Colours


def palettes() -> dict[str, list[str]]:
    """Return the colours of every colour map that a page may need, from the lowest value to the highest."""
    return {name: _colours(name) for name in (SEQUENTIAL, DIVERGING)}


def _colours(name: str, number: int = 256) -> list[str]:
    return [to_hex(colour) for colour in matplotlib.colormaps[name](np.linspace(0, 1, number))]


def gradient(name: str) -> str:
    """Return a colour map as a CSS gradient."""
    return f"linear-gradient(to right, {', '.join(_colours(name, 17))})"
