"""Facts of a result that a figure needs: its steps, layers and units."""

from collections.abc import Hashable, Iterable
from typing import Any, Protocol

import xarray as xr

MOMENTS = {"0.05": "onset", "0.5": "half", "0.9": "ninety per cent"}


def explained_steps(result: xr.Dataset) -> list[int]:
    """Return the steps whose map has at least one finite value; an interrupted run leaves the others as NaN."""
    saliency = result["saliency"]
    finished = saliency.notnull().any([dim for dim in saliency.dims if dim != "step"])
    return [int(step) for step in saliency["step"].values[finished.values]]


def layers(result: xr.Dataset) -> list[tuple[str, xr.Dataset]]:
    """Return (label, dataset over step, y, x) for each entry of one further dimension, such as `token`, or for "".

    The dataset of a clip has the dim `frame` too.

    >>> import numpy as np
    >>> grid = np.zeros((1, 2, 4, 4))
    >>> words = xr.Dataset({"saliency": (("step", "token", "y", "x"), grid)}, {"step": [3], "token": ["red", "disc"]})
    >>> [(label, dict(layer.saliency.sizes)) for label, layer in layers(words)]
    [('red', {'step': 1, 'y': 4, 'x': 4}), ('disc', {'step': 1, 'y': 4, 'x': 4})]
    """
    further: list[Hashable] = [dim for dim in result["saliency"].dims if dim not in ("step", "frame", "y", "x")]
    if not further:
        return [("", result)]
    labels = result[further[0]].values
    return [(str(label), result.isel({further[0]: i}, drop=True)) for i, label in enumerate(labels)]


def is_layered(result: xr.Dataset) -> bool:
    """Return True if there are maps of several entries of a further dimension, such as `token`.

    Draws, and frames of a clip, do not count.
    """
    return any(
        size > 1 for dim, size in result["saliency"].sizes.items() if dim not in ("step", "draw", "frame", "y", "x")
    )


def is_noised(pictures: xr.Dataset) -> bool:
    """Return True for frames of a noised photograph, and False for steps of a model, which expects a picture."""
    return "pred_original_sample" not in pictures


def unit_of(pictures: xr.Dataset) -> str:
    """Return the word for one place of the sequence."""
    return "frame" if is_noised(pictures) else "step"


def clean_pictures(pictures: xr.Dataset) -> xr.DataArray:
    """Return the clean predictions (step, row, column, channel), or the frames themselves of a noised photograph."""
    return pictures["sample" if is_noised(pictures) else "pred_original_sample"]


def captions_of(results: Iterable[xr.Dataset]) -> dict[str, dict[str, Any]]:
    """Return the caption of every measure that has one, by the measure's name.

    A caption is the attributes that `evaluation.captions` gives a variable: `long_name`, `comment`, `heading`, `scale`
    and `of_object`.
    """
    captions: dict[str, dict[str, Any]] = {}
    for result in results:
        for name, values in result.data_vars.items():
            if "heading" in values.attrs:
                captions.setdefault(str(name), values.attrs)
    return captions


def three(values: xr.DataArray) -> tuple[float, float, float]:
    """Return low, median and high of values whose only dim is `quantile`."""
    low, median, high = (float(values.sel(quantile=name)) for name in ("low", "median", "high"))
    return low, median, high


class Explained(Protocol):
    """The parts of an `Explanation` that pages and figures read.

    `likelihood` (step, draw, label) and its moments over draws, `timing`, are None if no classifier looked on.
    """

    @property
    def run(self) -> dict[str, Any]:
        """The record of the run."""

    @property
    def pictures(self) -> xr.Dataset:
        """The pictures of all steps."""

    @property
    def likelihood(self) -> xr.DataArray | None:
        """The likelihood of each label."""

    @property
    def timing(self) -> xr.Dataset | None:
        """The moments of each label."""

    def methods(self) -> dict[str, xr.Dataset]:
        """Return the results by method."""
