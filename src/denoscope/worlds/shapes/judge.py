"""The judge of the shapes world: reads the scene of a picture off its colours and outlines, without a trained network.

The judge knows the palette and the outlines of `scenes` and nothing of the models. The background is the palette colour
that most of the frame is closest to. Things are the connected regions that differ from it. Each region is compared with
every outline at every plausible centre and radius.
"""

from dataclasses import dataclass
from itertools import permutations

import numpy as np
from scipy import ndimage

from ...errors import InputError
from .scenes import BACKGROUNDS, COLOURS, DARK, SHAPES, SIDE, SIZES, Scene, Thing, outline_coverage

SHAPES_MODEL = "shapes"
"""The name of the bundled model, whose pictures the judge reads."""

MIN_AREA = 40
"""The smallest area of a thing, in pixels."""
DIFFERS = 0.14
"""The smallest distance in RGB, each channel in [0, 1], from the background's colour to a thing's."""
FRINGE = 0.35
"""The distance outside an outline, in pixels, at which a partly covered pixel still differs from the background."""
SIZE_LIMIT = (SIZES["small"] + SIZES["large"]) / 2
"""The radius, in pixels, from which a thing is large."""


@dataclass(frozen=True)
class Finding:
    """The background and the things of a picture, largest first, each with its fitted centre and radius in pixels."""

    background: str
    things: tuple[Thing, ...]


@dataclass(frozen=True)
class Verdict:
    """The facts of a scene that a picture shows, as booleans; `position` is True for a scene without a relation."""

    background: bool
    count: bool
    colour: tuple[bool, ...]
    shape: tuple[bool, ...]
    texture: tuple[bool, ...]
    size: tuple[bool, ...]
    position: bool

    def things_right(self) -> bool:
        """Return True if every thing has its scene's attributes, and no thing is missing or left over."""
        return self.count and all(map(all, (self.colour, self.shape, self.texture, self.size)))


def is_shapes_model(name: str) -> bool:
    """Return True if a model, given by its name, draws the shapes world, so that the judge can read its pictures."""
    return name == SHAPES_MODEL


def is_readable(picture: np.ndarray) -> bool:
    """Return True if a picture has the shape that the judge reads, (64, 64, 3)."""
    return picture.shape == (SIDE, SIDE, 3)


def find(picture: np.ndarray) -> Finding:
    """Read a picture, (64, 64, 3) in [0, 1]; raises `InputError` for a picture of another shape.

    >>> from .scenes import render
    >>> find(render(Scene.random(3))).background == Scene.random(3).background
    True
    """
    picture = np.asarray(picture, dtype=np.float64)
    if not is_readable(picture):
        raise InputError(
            f"The judge cannot read a picture of shape {picture.shape}: it reads pictures of the bundled model, "
            f"({SIDE}, {SIDE}, 3). For another model give a reader of your own, a function from a picture to a dict of "
            "attributes and values."
        )
    background = _background(picture)
    ground = np.array(BACKGROUNDS[background]) / 255
    differs = np.linalg.norm(picture - ground, axis=-1) > DIFFERS
    regions, count = ndimage.label(differs)
    filled = [ndimage.binary_fill_holes(regions == i) for i in range(1, count + 1)]
    large = sorted((region for region in filled if region.sum() >= MIN_AREA), key=np.sum, reverse=True)
    return Finding(background, tuple(_thing(picture, region) for region in large))


def judge(picture: np.ndarray, scene: Scene) -> Verdict:
    """Compare a picture, (64, 64, 3) in [0, 1], with a scene; things are matched to minimise the disagreements."""
    finding = find(picture)
    pairs = matched(finding.things, scene.things)

    def agreeing(attribute: str) -> tuple[bool, ...]:
        return tuple(
            seen is not None and getattr(seen, attribute) == getattr(wanted, attribute) for seen, wanted in pairs
        )

    return Verdict(
        background=finding.background == scene.background,
        count=len(finding.things) == len(scene.things),
        colour=agreeing("colour"),
        shape=agreeing("shape"),
        texture=agreeing("texture"),
        size=agreeing("size"),
        position=_relation_holds([seen for seen, _ in pairs], scene.relation),
    )


def _background(picture: np.ndarray) -> str:
    """Return the background colour that most pixels of the picture are close to."""
    palette = np.array(list(BACKGROUNDS.values())) / 255
    distance = np.linalg.norm(picture[:, :, None] - palette, axis=-1)
    nearest, close = distance.argmin(-1), distance.min(-1) < 0.44
    votes = np.bincount(nearest[close], minlength=len(palette))
    return list(BACKGROUNDS)[int(votes.argmax())]


def _thing(picture: np.ndarray, region: np.ndarray) -> Thing:
    shape, x, y, radius = _outline(region)
    inside = ndimage.binary_erosion(region, iterations=1)
    inside = inside if inside.sum() >= 12 else region
    size = "small" if radius < SIZE_LIMIT else "large"
    return Thing(shape, _colour(picture[inside]), size, _texture(picture, inside), x, y, radius)


def _outline(region: np.ndarray) -> tuple[str, float, float, float]:
    """Return shape, centre x, y and radius of the outline with the best overlap (intersection over union)."""
    rows, columns = np.nonzero(region)
    x0, x1, y0, y1 = columns.min(), columns.max() + 1, rows.min(), rows.max() + 1
    extent = max(x1 - x0, y1 - y0) / 2
    axis = np.arange(SIDE) + 0.5
    best = (-1.0, "circle", 0.0, 0.0, 0.0)
    for radius in np.arange(0.85, 1.15, 0.05) * extent:
        for dx, dy in np.ndindex(3, 3):
            x, y = (x0 + x1) / 2 + dx - 1, (y0 + y1) / 2 + dy - 1
            u, v = np.meshgrid((axis - x) / radius, (axis - y) / radius)
            for name, distance in SHAPES.items():
                ideal = distance(u, v) * radius < FRINGE
                overlap = (ideal & region).sum() / (ideal | region).sum()
                best = max(best, (overlap, name, x, y, radius))
    _, name, x, y, radius = best
    return name, float(x), float(y), float(radius)


def _colour(pixels: np.ndarray) -> str:
    """Return the palette colour, at full or at dark shade, that most pixels are closest to."""
    palette = np.array(list(COLOURS.values())) / 255
    shades = np.concatenate([palette, DARK * palette])
    nearest = np.linalg.norm(pixels[:, None] - shades, axis=-1).argmin(-1) % len(palette)
    return list(COLOURS)[int(np.bincount(nearest, minlength=len(palette)).argmax())]


def _texture(picture: np.ndarray, inside: np.ndarray) -> str:
    """Return plain where brightness hardly varies, striped where rows explain the variation, else dotted."""
    brightness = picture.max(-1)
    values = brightness[inside]
    bright = np.quantile(values, 0.9)
    if (values < (1 + DARK) / 2 * bright).mean() < 0.06:
        return "plain"
    rows = np.nonzero(inside)[0]
    means = np.array([values[rows == row].mean() for row in np.unique(rows)])
    weights = np.array([(rows == row).sum() for row in np.unique(rows)])
    between = (weights * (means - values.mean()) ** 2).sum() / weights.sum()
    return "striped" if between > 0.6 * values.var() else "dotted"


def matched(things: tuple[Thing, ...], wanted: tuple[Thing, ...]) -> list[tuple[Thing | None, Thing]]:
    """Return a pair (thing of the picture, wanted thing) for each wanted thing, the pairs that agree best.

    The things are distinct; None stands for a thing that the picture lacks. At most the three largest are compared.
    """
    candidates = [*things[:3], *[None] * len(wanted)]

    def total(order: tuple[int, ...]) -> float:
        return sum(_agreement(candidates[i], thing) for i, thing in zip(order, wanted, strict=True))

    best = max(permutations(range(len(candidates)), len(wanted)), key=total)
    return [(candidates[i], thing) for i, thing in zip(best, wanted, strict=True)]


def _agreement(thing: Thing | None, wanted: Thing) -> float:
    if thing is None:
        return -0.5
    attributes = ("colour", "shape", "texture", "size")
    return float(sum(getattr(thing, name) == getattr(wanted, name) for name in attributes))


def _relation_holds(things: list[Thing | None], relation: str | None) -> bool:
    if relation is None:
        return True
    first, second = things
    if first is None or second is None:
        return False
    dx, dy = first.x - second.x, first.y - second.y
    return {"left of": dx < 0, "right of": dx > 0, "above": dy < 0, "below": dy > 0}[relation]


def object_masks(picture: np.ndarray) -> np.ndarray:
    """Return masks of the things in a picture, (64, 64, 3) in [0, 1]: boolean (things, 64, 64), the largest first."""
    things = find(picture).things
    return np.array([outline_coverage(thing) >= 0.5 for thing in things]).reshape(len(things), *picture.shape[:2])


def masks_of_things(picture: np.ndarray, scene: Scene) -> np.ndarray | None:
    """Return masks of a scene's things in a picture, (64, 64, 3) in [0, 1]: boolean (things, 64, 64), in their order.

    None if the picture has another number of things, or one of them has another colour or shape than in the scene.
    """
    things = find(picture).things
    pairs = matched(things, scene.things)
    seen = [thing for thing, wanted in pairs if thing is not None and _same_kind(thing, wanted)]
    if len(things) != len(scene.things) or len(seen) != len(scene.things):
        return None
    return np.array([outline_coverage(thing) >= 0.5 for thing in seen])


def _same_kind(thing: Thing, wanted: Thing) -> bool:
    return (thing.colour, thing.shape) == (wanted.colour, wanted.shape)
