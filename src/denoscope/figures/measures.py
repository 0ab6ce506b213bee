"""What `evaluation.stages` measures of a heat map, in the words of pages and figures."""

from typing import NamedTuple


class Measure(NamedTuple):
    """A measure in words: on a page its name and what it says, above a panel of a figure a heading and its range.

    `of_object` is a measure that needs to know where the object is, which not every picture tells.
    """

    name: str
    meaning: str
    heading: str
    extent: str
    of_object: bool = False


MEASURES = {
    "frequency": Measure(
        "Mean frequency",
        "Low is broad areas, high is fine lines and grain, in cycles along the picture’s longer side.",
        "Fineness",
        "whole map: mean cycles along the longer side",
    ),
    "share_inside": Measure(
        "Share inside the object",
        "How much of the positive part lies on the object.",
        "Share inside the object",
        "of the positive part: 0 none, 1 all",
        of_object=True,
    ),
    "contour_preference": Measure(
        "Preference for the contour",
        "Above 0 the outline of the object counts more than its inside; below 0, less.",
        "Contour or interior of the object",
        "positive part: 1 contour only, −1 interior only",
        of_object=True,
    ),
    "agreement_edges": Measure(
        "Agreement with an edge map",
        "High means that the attribution may be only an edge detector, whatever the class.",
        "Agreement with the picture's edges",
        "positive part: rank correlation, −1 to 1",
    ),
    "agreement_last": Measure(
        "Agreement with the last map",
        "1 is the same order of places as in the last explained map; near 0 another one.",
        "Agreement with the last map",
        "whole map: rank correlation, −1 to 1",
    ),
}
