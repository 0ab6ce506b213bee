"""Readers of the bundled model's pictures, for the experiments of `timing.commitment`."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import ModelError
from ..recording.models import Model
from .shapes.judge import SHAPES_MODEL, find, is_shapes_model

SAME_PLACE = 4.0
"""The largest distance of two positions, in pixels, that are the same place.

It is half the radius of a small thing, and the grid that centres lie on.
"""

Place = tuple[float, float]
"""A position in pixels, (x, y)."""


def attributes_shown(picture: np.ndarray) -> dict[str, str | Place | None]:
    """Return the background of a picture, (64, 64, 3) in [0, 1], and the attributes of its largest thing.

    The attributes are background, colour, shape, size, texture and position, the last in pixels (x, y). Without any
    thing they are None, but for the background. Raises `InputError` for a picture of another shape.
    """
    finding = find(picture)
    thing = finding.things[0] if finding.things else None
    attributes = {name: getattr(thing, name, None) for name in ("colour", "shape", "size", "texture")}
    position = None if thing is None else (thing.x, thing.y)
    return {"background": finding.background, **attributes, "position": position}


def same_value(first: Any, second: Any) -> bool:
    """Return True if two values of an attribute are the same; two places may be `SAME_PLACE` pixels apart."""
    if isinstance(first, tuple) and isinstance(second, tuple):
        return math.dist(first, second) <= SAME_PLACE
    return bool(first == second)


def reader_for(model: Model) -> Callable[[np.ndarray], dict[str, str | Place | None]]:
    """Return the reader of the bundled model's pictures; raises `ModelError` for another model."""
    if not is_shapes_model(model.name):
        raise ModelError(
            f'There is no judge of the pictures of "{model.name}": only pictures of the bundled model "{SHAPES_MODEL}" '
            "can be read. Give a reader of your own, a function from a picture (height, width, 3) in [0, 1] to a dict "
            "of attributes and values, such as a classifier's best label."
        )
    return attributes_shown
