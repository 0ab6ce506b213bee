"""Captions of the measures of `stages`, which travel with the numbers as attributes of the variables."""

from collections.abc import Mapping

import xarray as xr

CAPTIONS: dict[str, dict[str, str | bool]] = {
    "frequency": {
        "long_name": "Mean frequency",
        "comment": "Low is broad areas, high is fine lines and grain, in cycles along the picture’s longer side.",
        "heading": "Fineness",
        "scale": "whole map: mean cycles along the longer side",
        "of_object": False,
    },
    "share_inside": {
        "long_name": "Share inside the object",
        "comment": "How much of the positive part lies on the object.",
        "heading": "Share inside the object",
        "scale": "of the positive part: 0 none, 1 all",
        "of_object": True,
    },
    "contour_preference": {
        "long_name": "Preference for the contour",
        "comment": "Above 0 the outline of the object counts more than its inside; below 0, less.",
        "heading": "Contour or interior of the object",
        "scale": "positive part: 1 contour only, −1 interior only",
        "of_object": True,
    },
    "agreement_edges": {
        "long_name": "Agreement with an edge map",
        "comment": "High means that the attribution may be only an edge detector, whatever the class.",
        "heading": "Agreement with the picture's edges",
        "scale": "positive part: rank correlation, −1 to 1",
        "of_object": False,
    },
    "agreement_last": {
        "long_name": "Agreement with the last map",
        "comment": "1 is the same order of places as in the last explained map; near 0 another one.",
        "heading": "Agreement with the last map",
        "scale": "whole map: rank correlation, −1 to 1",
        "of_object": False,
    },
}
"""Of each measure its name, its meaning, a heading and scale for a panel, and True if it needs the object's place.

The measures stand in the order in which a page shows them.
"""


def captioned(measures: Mapping[str, xr.DataArray]) -> xr.Dataset:
    """Return the measures as one dataset, in the order of CAPTIONS, each with its caption as attributes."""
    names = [name for name in CAPTIONS if name in measures]
    return xr.Dataset({name: measures[name].assign_attrs(CAPTIONS[name]) for name in names})
