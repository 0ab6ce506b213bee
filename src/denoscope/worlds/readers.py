"""What a picture of the bundled world shows, as the experiments of `commitment` read it."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import InputError, ModelError
from ..recording.loading import BUNDLED
from ..recording.models import Model
from .shapes.judge import find
from .shapes.scenes import SIDE

NEAR = 4.0
"""Pixels within which two places are one: half the radius of a small thing, and the grid that centres lie on."""

Place = tuple[float, float]


def attributes_shown(picture: np.ndarray) -> dict[str, str | Place | None]:
    """The background and the largest thing of a picture (64, 64, 3) in [0, 1]; None for what no thing has.

    The attributes are background, colour, shape, size, texture and position, the last in pixels (x, y). Raises
    `InputError` for a picture of another size.
    """
    if picture.shape != (SIDE, SIDE, 3):
        raise InputError(
            f"The judge reads pictures of the bundled world, ({SIDE}, {SIDE}, 3), and was given {picture.shape}. For "
            "another model give a reader of your own: a function from a picture to a dict of attributes and values."
        )
    found = find(picture)
    thing = found.things[0] if found.things else None
    own = {name: getattr(thing, name, None) for name in ("colour", "shape", "size", "texture")}
    return {"background": found.background, **own, "position": (thing.x, thing.y) if thing else None}


def same_value(first: Any, second: Any) -> bool:
    """Whether two values of an attribute are one; places are within `NEAR` pixels of each other."""
    if isinstance(first, tuple) and isinstance(second, tuple):
        return math.dist(first, second) <= NEAR
    return bool(first == second)


def reader_for(model: Model) -> Callable[[np.ndarray], dict[str, str | Place | None]]:
    """The judge of a bundled model's pictures; raises `ModelError` for a model that none was made for."""
    if model.name not in BUNDLED:
        raise ModelError(
            f'There is no judge of the pictures of "{model.name}": the attributes of the bundled '
            f"{', '.join(BUNDLED)} are known, and no others. Give a reader of your own, a function from a picture "
            "(height, width, 3) in [0, 1] to a dict of attributes and values, such as a classifier's best label."
        )
    return attributes_shown
