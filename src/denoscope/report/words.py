"""Charts of the relevance of words."""

from collections.abc import Mapping
from typing import Any

import xarray as xr

from ..figures.words import has_words, word_keys
from .page import column_middles, line


def word_charts(pictures: xr.Dataset, results: Mapping[str, xr.Dataset]) -> list[dict[str, Any]]:
    """Return a chart for each result that has words: its title and a line for every word, in per cent of the chart."""
    places = column_middles(pictures["step"].values)
    charts = []
    for name, result in results.items():
        if has_words(result):
            values, keys = result["relevance_scaled"], word_keys([str(word) for word in result["token"].values])
            lines = [{"key": key, **line(values.sel(token=key.label), places, 0, 1)} for key in keys]
            charts.append({"title": result.attrs.get("title", name), "lines": lines})
    return charts
