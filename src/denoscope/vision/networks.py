"""A network with its labels and preprocessing, before it is a classifier; the user's own module as such."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch

from ..errors import InputError, shown_value
from .labels import label_texts
from .preprocessing import IMAGENET_MEAN, IMAGENET_STD, CentreCrop, Preprocess


@final
@dataclass(frozen=True, eq=False)
class Network:
    """A module that maps inputs to logits, the labels of its classes, and its preprocessing of a PIL image.

    `size` is the height and width of the pictures that the preprocessing is measured with; None where it resizes.
    """

    name: str
    labels: Sequence[str]
    module: torch.nn.Module
    preprocess: Preprocess
    size: tuple[int, int] | None = None


def own_network(
    module: torch.nn.Module,
    labels: Any,
    *,
    size: int | tuple[int, int] | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    preprocess: Preprocess | None = None,
) -> Network:
    """Return a user's module with its labels and preprocessing; raises `InputError` for options that do not fit."""
    name = type(module).__name__
    names = _class_names(labels, name)
    sides = None if size is None else _sides(size)
    if preprocess is None:
        return Network(name, names, module, _centre_crop(sides, mean, std))
    refuse_options({"mean": mean, "std": std}, "they are measured on what preprocess makes of plain pictures")
    return Network(name, names, module, preprocess, sides)


def refuse_options(options: Mapping[str, Any], reason: str) -> None:
    """Raise `InputError` for options that were given, the values that are not None."""
    names = [name for name, value in options.items() if value is not None]
    if names:
        raise InputError(f"{' and '.join(names)} cannot be given here: {reason}.")


def _class_names(labels: Any, name: str) -> list[str]:
    if isinstance(labels, int) and not isinstance(labels, bool) and labels > 1:
        return [f"class {number}" for number in range(labels)]
    return label_texts(labels, name)


def _centre_crop(sides: tuple[int, int] | None, mean: Any, std: Any) -> CentreCrop:
    if sides is None or mean is None or std is None:
        raise InputError(
            "The preprocessing of the module is not known. Give size, mean and std, such as size=224, "
            f"mean={IMAGENET_MEAN}, std={IMAGENET_STD}, or give preprocess."
        )
    means, deviations = _per_colour("mean", mean), _per_colour("std", std)
    if not all(deviations):
        raise InputError(f"std is {shown_value(std)}. Pixels are divided by it: it cannot be 0.")
    return CentreCrop(sides, means, deviations)


def _sides(size: Any) -> tuple[int, int]:
    sides = (size, size) if isinstance(size, int) else size
    pair = isinstance(sides, Sequence) and len(sides) == 2
    if not pair or not all(isinstance(side, int) and side > 0 for side in sides):
        raise InputError(
            f"size is {shown_value(size)}. Give a number of pixels, or a pair (height, width), such as (224, 224)."
        )
    return sides[0], sides[1]


def _per_colour(name: str, value: Any) -> tuple[float, ...]:
    """Return a number for each colour channel."""
    values = (value,) * 3 if isinstance(value, (int, float)) else value
    three = isinstance(values, Sequence) and len(values) == 3 and all(isinstance(v, (int, float)) for v in values)
    if not three or not all(map(math.isfinite, values)):
        raise InputError(
            f"{name} is {shown_value(value)}. Give a finite number for pixels in [0, 1], or three in RGB order."
        )
    return tuple(map(float, values))
