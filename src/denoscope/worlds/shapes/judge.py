"""What does a picture show? Read off its colours and outlines, without any trained network.

The judge knows the palette and the outlines of `scenes.py` and nothing of the models: the background is the
palette colour most of the frame is closest to; things are the connected regions that differ from it; each is
compared with every outline at every plausible centre and radius."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from .scenes import BACKGROUNDS, COLOURS, DARK, SHAPES, SIDE, SIZES, Scene, Thing, coverage

MIN_AREA = 40
DIFFERS = 0.14
FRINGE = 0.35  # pixels: how far outside the outline a partly covered pixel still differs from the background
SIZE_LIMIT = (SIZES["small"] + SIZES["large"]) / 2


@dataclass(frozen=True)
class Finding:
    """The background and the things found, largest first, each with its fitted centre and radius in pixels."""

    background: str
    things: tuple[Thing, ...]


@dataclass(frozen=True)
class Verdict:
    """Which facts of a scene a picture shows, as booleans; `position` is True where there is no relation to hold."""

    background: bool
    count: bool
    colour: tuple[bool, ...]
    shape: tuple[bool, ...]
    texture: tuple[bool, ...]
    size: tuple[bool, ...]
    position: bool

    def things_right(self) -> bool:
        """Every thing has every attribute that was asked for, and no thing is missing or left over."""
        return self.count and all(map(all, (self.colour, self.shape, self.texture, self.size)))


def find(picture: np.ndarray) -> Finding:
    """Read a picture, (64, 64, 3) in [0, 1].

    >>> from .scenes import render
    >>> find(render(Scene.random(3))).background == Scene.random(3).background
    True
    """
    picture = np.asarray(picture, dtype=np.float64)
    if picture.shape != (SIDE, SIDE, 3):
        raise ValueError(f"the judge reads pictures of shape ({SIDE}, {SIDE}, 3), and was given {picture.shape}")
    background = _background(picture)
    ground = np.array(BACKGROUNDS[background]) / 255
    differs = np.linalg.norm(picture - ground, axis=-1) > DIFFERS
    regions, count = ndimage.label(differs)
    whole = [ndimage.binary_fill_holes(regions == i) for i in range(1, count + 1)]
    whole = sorted((region for region in whole if region.sum() >= MIN_AREA), key=np.sum, reverse=True)
    return Finding(background, tuple(_thing(picture, region) for region in whole))


def judge(picture: np.ndarray, scene: Scene) -> Verdict:
    """Compare what a picture shows with what was asked for; things are matched to minimise the disagreements."""
    found = find(picture)
    things = matched(found.things, scene.things)
    same = {
        name: tuple(thing is not None and getattr(thing, name) == getattr(asked, name) for thing, asked in things)
        for name in ("colour", "shape", "texture", "size")
    }
    return Verdict(
        background=found.background == scene.background,
        count=len(found.things) == len(scene.things),
        position=_relation_holds([thing for thing, _ in things], scene.relation),
        **same,
    )


def _background(picture: np.ndarray) -> str:
    """The palette colour with the most pixels within reach, over the outer frame of the picture and its inside."""
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
    """The outline, centre and radius with the best overlap (intersection over union) with a region."""
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
    """The palette colour, at full or at dark shade, that most pixels are closest to."""
    palette = np.array(list(COLOURS.values())) / 255
    shades = np.concatenate([palette, DARK * palette])
    nearest = np.linalg.norm(pixels[:, None] - shades, axis=-1).argmin(-1) % len(palette)
    return list(COLOURS)[int(np.bincount(nearest, minlength=len(palette)).argmax())]


def _texture(picture: np.ndarray, inside: np.ndarray) -> str:
    """Plain where brightness hardly varies; striped where rows alone explain the variation; else dotted."""
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


def matched(found: tuple[Thing, ...], asked: tuple[Thing, ...]) -> list[tuple[Thing | None, Thing]]:
    """(found, asked) for each thing asked for: a different thing found, or None where there are too few."""
    padded = [*found[:3], *[None] * len(asked)]
    orders = [(i,) for i in range(len(padded))] if len(asked) == 1 else [
        (i, j) for i in range(len(padded)) for j in range(len(padded)) if i != j
    ]  # fmt: skip
    best = max(
        orders, key=lambda order: sum(_agreement(padded[i], thing) for i, thing in zip(order, asked, strict=True))
    )
    return [(padded[i], thing) for i, thing in zip(best, asked, strict=True)]


def _agreement(found: Thing | None, asked: Thing) -> float:
    if found is None:
        return -0.5
    return float(sum(getattr(found, name) == getattr(asked, name) for name in ("colour", "shape", "texture", "size")))


def _relation_holds(things: list[Thing | None], relation: str | None) -> bool:
    if relation is None:
        return True
    first, second = things
    if first is None or second is None:
        return False
    dx, dy = first.x - second.x, first.y - second.y
    return {"left of": dx < 0, "right of": dx > 0, "above": dy < 0, "below": dy > 0}[relation]


def object_masks(picture: np.ndarray) -> np.ndarray:
    """Masks of the things in a picture (64, 64, 3) of the bundled world, values in [0, 1]: boolean (things, 64, 64)."""
    things = find(picture).things
    return np.array([coverage(thing) >= 0.5 for thing in things]).reshape(len(things), *picture.shape[:2])


def masks_of_things(picture: np.ndarray, scene: Scene) -> np.ndarray | None:
    """Which of the things in a picture of the bundled world is which of a scene's: masks (things, 64, 64) in its order.

    None where the picture has another number of things, or one of them has another colour or shape than it should.
    """
    found = find(picture).things
    pairs = matched(found, scene.things)
    right = all(t is not None and (t.colour, t.shape) == (asked.colour, asked.shape) for t, asked in pairs)
    if len(found) != len(scene.things) or not right:
        return None
    return np.array([coverage(thing) >= 0.5 for thing, _ in pairs if thing is not None])
