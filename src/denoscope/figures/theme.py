"""Colours and looks of lines, and numbers and labels as people write them."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import xarray as xr
from matplotlib.axes import Axes

FIGURE_SIDE, FRAME_SIDE = 256, 512
"""Pixels of one picture in a figure and in the time line, at most."""


def bare(ax: Axes) -> Axes:
    """Remove ticks and frame from axes that hold a picture."""
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    return ax


def heading(pictures: xr.Dataset, step: int) -> str:
    """Return a step's index, time step and log-SNR on three lines."""
    at_step = pictures.sel(step=step)
    timestep, log_snr = readable(float(at_step["timestep"]), 4), readable(float(at_step["log_snr"]))
    return f"step {step}\nt = {timestep}\nlog-SNR {log_snr}"


def short_labels(labels: Sequence[str]) -> dict[str, str]:
    """Return the first synonym of each label, or all synonyms if two labels share the first.

    >>> short_labels(["tiger, Panthera tigris", "crane, bird", "crane, machine"])
    {'tiger, Panthera tigris': 'tiger', 'crane, bird': 'crane, bird', 'crane, machine': 'crane, machine'}
    """
    first = [label.split(",")[0] for label in labels]
    chosen = [name if first.count(name) == 1 else label for name, label in zip(first, labels, strict=True)]
    return {label: shortened(name, 40) for label, name in zip(labels, chosen, strict=True)}


SEQUENTIAL, DIVERGING, ERROR = "inferno", "RdBu_r", "Purples"
ALPHA = 0.7
INK, FAINT, RULE, ACCENT = "#1b1f24", "#68717d", "#dfe3e8", "#3a5bc7"
HUES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito (2008), of lines: told apart with any colour vision, on light and on dark ground."""

DASHES = ("none", "8 4", "2 4", "10 3 2 3", "5 3", "14 4")
"""Patterns of lines on a page, as an SVG stroke-dasharray has them."""


def hue_and_dash(number: int, hues: Sequence[str] = HUES, dashes: Sequence[str] = DASHES) -> tuple[str, str]:
    """Return the look of line `number`, from 0; up to `len(hues) * len(dashes)` lines no two look the same.

    >>> [hue_and_dash(number, ("blue", "red"), ("none", "8 4")) for number in range(4)]
    [('blue', 'none'), ('red', '8 4'), ('blue', '8 4'), ('red', 'none')]
    """
    rounds, hue = divmod(number, len(hues))
    return hues[hue], dashes[(hue + rounds) % len(dashes)]


def readable(number: float, digits: int = 3) -> str:
    """Return a number as people print it, with a real minus sign.

    >>> [readable(value) for value in (-0.012345, 1234567.0, float("inf"), float("nan"), 8)]
    ['−0.0123', '1.23e+06', '∞', 'n/a', '8']
    """
    if math.isnan(number):
        return "n/a"
    text = "∞" if math.isinf(number) else f"{abs(number):.{digits}g}"
    return f"−{text}" if number < 0 and text != "0" else text


def shortened(text: str, most: int) -> str:
    """Return the text cut to at most `most` characters.

    >>> shortened("tabby", 5), shortened("tabby cat", 5)
    ('tabby', 'tabb…')
    """
    return text if len(text) <= most else f"{text[: most - 1]}…"


class Key(NamedTuple):
    """The look of a label's line; the explained label's has the colour of the text and no gaps."""

    label: str
    hue: str
    dash: str
    explained: bool
