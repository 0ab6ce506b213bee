"""Scenes of one or two objects with their caption, exact masks and the words that name each object.

Everything follows from a seed: `Scene.random(seed)` draws the facts, `render(scene)` the picture,
`masks(scene)` the ground truth and `caption(scene)` one of many wordings of it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

SIDE = 64
"""Height and width of a picture, in pixels."""

COLOURS = {
    "red": (214, 40, 40),
    "green": (44, 160, 44),
    "blue": (40, 80, 210),
    "yellow": (240, 215, 40),
    "purple": (140, 60, 190),
    "orange": (245, 130, 30),
}
BACKGROUNDS = {
    "white": (245, 245, 245),
    "black": (20, 20, 20),
    "gray": (128, 128, 128),
    "pink": (250, 180, 205),
    "cyan": (130, 220, 230),
}
SIZES = {"small": 8.0, "large": 13.0}
"""Half extents of things, in pixels."""
TEXTURES = ("plain", "striped", "dotted")
RELATIONS = ("left of", "right of", "above", "below")

GRID = 4
"""Pixels between possible centres: one cell of the bundled autoencoder's latent."""
MARGIN = 1.5
"""Pixels between a thing and the picture's border."""
GAP = 2.0
"""Pixels between two things, along the axis of their relation."""

TEXTURE_PERIOD = 7.0
"""Pixels from stripe to stripe, and from dot to dot."""
DOT_RADIUS = 2.1
"""The radius of a dot, in pixels."""
DARK = 0.4
"""The brightness of a texture's dark shade, as a share of the colour's."""


@dataclass(frozen=True)
class Thing:
    """One object: its four attributes and where it is (centre `x`, `y` and half extent `radius`, in pixels)."""

    shape: str
    colour: str
    size: str
    texture: str
    x: float = SIDE / 2
    y: float = SIDE / 2
    radius: float = 0.0


@dataclass(frozen=True)
class Scene:
    """A background and one or two things; `relation` says where the first stands, seen from the second."""

    background: str
    things: tuple[Thing, ...]
    relation: str | None = None
    seed: int = 0

    @classmethod
    def random(cls, seed: int, count: int | None = None, size: str | None = None) -> "Scene":
        """Draw a scene from a seed.

        >>> Scene.random(7, count=1, size="small").things[0].size
        'small'

        `count` is 1 or 2, or None to draw it; `size` fixes the size of every thing.
        """
        rng = np.random.default_rng([seed, 0])
        count = int(rng.integers(1, 3)) if count is None else count
        things = tuple(_random_thing(rng, size) for _ in range(count))
        background = str(rng.choice(list(BACKGROUNDS)))
        relation = str(rng.choice(RELATIONS)) if count == 2 else None
        return cls(background, _placed(rng, things, relation), relation, seed)


def _random_thing(rng: np.random.Generator, size: str | None) -> Thing:
    size = size or str(rng.choice(list(SIZES)))
    shape, colour, texture = (str(rng.choice(list(names))) for names in (SHAPES, COLOURS, TEXTURES))
    return Thing(shape, colour, size, texture, radius=SIZES[size])


def _places(thing: Thing) -> np.ndarray:
    """Return the coordinates that a thing's centre may have, the same across and down."""
    lowest = thing.radius + MARGIN
    places: np.ndarray = np.arange(GRID * np.ceil(lowest / GRID), SIDE - lowest + 1e-9, GRID)
    return places


def _placed(rng: np.random.Generator, things: tuple[Thing, ...], relation: str | None) -> tuple[Thing, ...]:
    """Give every thing a centre inside the picture; two things stand apart along the relation's axis."""
    if relation is None:
        (thing,) = things
        return (replace(thing, x=float(rng.choice(_places(thing))), y=float(rng.choice(_places(thing)))),)
    first_is_low = relation in ("left of", "above")
    near, far = things if first_is_low else things[::-1]
    apart = near.radius + far.radius + GAP
    along = rng.choice([(a, b) for a in _places(near) for b in _places(far) if b - a >= apart])
    across_near, reach = rng.choice(_places(near)), 0.8 * (along[1] - along[0])
    across_far = rng.choice([c for c in _places(far) if abs(c - across_near) <= reach])
    centres = [(along[0], across_near), (along[1], across_far)]
    if not first_is_low:
        centres.reverse()
    if relation in ("above", "below"):
        centres = [(across, along) for along, across in centres]
    return tuple(replace(t, x=float(x), y=float(y)) for t, (x, y) in zip(things, centres, strict=True))


def _circle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    distance: np.ndarray = np.hypot(x, y) - 1.0
    return distance


def _square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    distance: np.ndarray = np.maximum(np.abs(x), np.abs(y)) - 0.9
    return distance


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the distance to an upright triangle, apex at y = −1, base at y = 0.9."""
    side = (np.abs(x) * 1.9 + (-1.0 - y)) / np.hypot(1.9, 1.0)
    distance: np.ndarray = np.maximum(side, y - 0.9)
    return distance


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = np.abs(x), np.abs(y)
    distance: np.ndarray = np.maximum(np.maximum(x, y) - 1.0, np.minimum(x, y) - 0.4)
    return distance


SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
}
"""Signed distances from points (x, y) to the outlines, in units of the radius; negative inside, y downwards."""


def _offsets(thing: Thing) -> tuple[np.ndarray, np.ndarray]:
    axis = np.arange(SIDE) + 0.5
    return np.meshgrid(axis - thing.x, axis - thing.y)


def outline_coverage(thing: Thing) -> np.ndarray:
    """Return the share of each pixel that a thing covers, (64, 64) in [0, 1]."""
    x, y = _offsets(thing)
    distance = SHAPES[thing.shape](x / thing.radius, y / thing.radius) * thing.radius
    return np.clip(0.5 - distance, 0.0, 1.0)


def _darkness(thing: Thing) -> np.ndarray:
    """Return the share of the texture's dark shade in each pixel, (64, 64) in [0, 1]."""
    x, y = _offsets(thing)
    if thing.texture == "plain":
        return np.zeros_like(x)
    if thing.texture == "striped":
        return np.clip(0.5 + TEXTURE_PERIOD / 4 - _folded(y), 0.0, 1.0)
    dots: np.ndarray = np.clip(0.5 + DOT_RADIUS - np.hypot(_folded(x), _folded(y)), 0.0, 1.0)
    return dots


def _folded(offsets: np.ndarray) -> np.ndarray:
    """Return the distance of each offset to the nearest multiple of the texture's period."""
    distance: np.ndarray = np.abs((offsets / TEXTURE_PERIOD + 0.5) % 1.0 - 0.5) * TEXTURE_PERIOD
    return distance


def render(scene: Scene) -> np.ndarray:
    """Draw a scene's picture, (64, 64, 3) in [0, 1]."""
    picture = np.broadcast_to(np.array(BACKGROUNDS[scene.background]) / 255, (SIDE, SIDE, 3)).copy()
    for thing in scene.things:
        alpha = outline_coverage(thing)[..., None]
        shade = 1.0 - (1.0 - DARK) * _darkness(thing)[..., None]
        picture += alpha * (shade * np.array(COLOURS[thing.colour]) / 255 - picture)
    return picture


def masks(scene: Scene) -> np.ndarray:
    """Return a boolean mask of each thing, (things, 64, 64): the pixels at least half covered."""
    return np.stack([outline_coverage(thing) >= 0.5 for thing in scene.things])


Owner = int | str | None
"""The owner of a caption's word: the number of a thing, "background" or None."""

OwnedWords = list[tuple[str, Owner]]
"""Words with their owners."""


@dataclass(frozen=True)
class Caption:
    """A wording of a scene: its `words`, and the owner of each word."""

    words: tuple[str, ...]
    owners: tuple[Owner, ...]

    def __str__(self) -> str:
        return " ".join(self.words)

    def words_of(self, owner: int | str) -> tuple[int, ...]:
        """Return the positions of the words that name one thing or the background."""
        return tuple(i for i, word_owner in enumerate(self.owners) if word_owner == owner)


def caption(scene: Scene, seed: int | None = None, complete: bool = True) -> Caption:
    """Word a scene.

    >>> str(caption(Scene("white", (Thing("circle", "red", "large", "striped"),)), seed=1))
    'a large striped red circle on a white background'

    `complete` names every attribute; without it, size, relation or background may be left out, as users do.
    """
    rng = np.random.default_rng([scene.seed if seed is None else seed, 1])
    article = rng.random() < 0.8
    phrases = [_noun_phrase(rng, i, t, article, complete) for i, t in enumerate(scene.things)]
    pairs = phrases[0] if len(phrases) == 1 else _joined(rng, phrases, scene.relation, complete)
    pairs = _with_background(rng, pairs, scene.background, article, complete)
    words, owners = zip(*pairs, strict=True)
    return Caption(words, owners)


def _noun_phrase(rng: np.random.Generator, owner: int, thing: Thing, article: bool, complete: bool) -> OwnedWords:
    size = [] if not complete and rng.random() < 0.1 else [thing.size]
    texture = [] if thing.texture == "plain" and rng.random() < 0.5 else [thing.texture]
    adjectives = [*size, *texture, thing.colour]
    if rng.random() < 0.3:
        adjectives = [str(word) for word in rng.permutation(adjectives)]
    owned: OwnedWords = [(word, owner) for word in (*adjectives, thing.shape)]
    return _article(adjectives[0], article) + owned


def _article(following: str, wanted: bool) -> OwnedWords:
    if not wanted:
        return []
    return [("an" if following[0] in "aeiou" else "a", None)]


def _joined(rng: np.random.Generator, phrases: list[OwnedWords], relation: str | None, complete: bool) -> OwnedWords:
    if relation is None or (not complete and rng.random() < 0.15):
        return [*phrases[0], ("and", None), *phrases[1]]
    words = relation.split()
    if len(words) == 2 and rng.random() < 0.3:
        words = ["to", "the", *words]
    return [*phrases[0], *((word, None) for word in words), *phrases[1]]


def _with_background(
    rng: np.random.Generator, pairs: OwnedWords, background: str, article: bool, complete: bool
) -> OwnedWords:
    if not complete and rng.random() < 0.05:
        return pairs
    ground: OwnedWords = [*_article(background, article), (background, "background"), ("background", "background")]
    wording = rng.random()
    if wording < 0.7:
        return [*pairs, ("on", None), *ground]
    if wording < 0.85:
        return [("on", None), *ground, *pairs]
    return [*ground, ("with", None), *pairs]


_PLAIN_WORDS = "a an the on of to with and picture background left right above below".split()
WORDS = tuple(dict.fromkeys([*_PLAIN_WORDS, *SIZES, *TEXTURES, *COLOURS, *SHAPES, *BACKGROUNDS]))
"""All words that captions use."""
