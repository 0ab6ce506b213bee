"""Charts of the relevance of words."""

from collections.abc import Mapping
from typing import Any

import xarray as xr

from ..figures.words import has_words, word_keys
from .page import across, line


def word_charts(trace: xr.Dataset, methods: Mapping[str, xr.Dataset]) -> list[dict[str, Any]]:
    """For a page: of each method that has words, its title and a line for every word, in per cent of the chart."""
    places = across(trace["step"].values)
    charts = []
    for name, method in methods.items():
        if has_words(method):
            values, keys = method["relevance_scaled"], word_keys([str(word) for word in method["token"].values])
            lines = [{"key": key, **line(values.sel(token=key.label), places, 0, 1)} for key in keys]
            charts.append({"title": method.attrs.get("title", name), "lines": lines})
    return charts
