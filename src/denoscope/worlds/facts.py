"""What several pictures of the shapes world show, fact by fact, and where they differ: read off by the judge."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from .shapes.judge import Finding, find
from .shapes.scenes import SIDE, Thing

ATTRIBUTES = ("shape", "colour", "size", "texture")
MOVED = 4.0
"""Pixels from where on a thing is elsewhere: one cell of the bundled model's samples."""
ABSENT = "absent"


@dataclass(frozen=True)
class Fact:
    """One fact in the words of each picture, and the pictures in which it is another than in the first."""

    name: str
    values: dict[str, str]
    changed: tuple[str, ...]


def readable_scene(picture: np.ndarray) -> bool:
    """Whether a picture (h, w, 3) has the size that the judge reads."""
    return picture.shape == (SIDE, SIDE, 3)


def facts(pictures: Mapping[str, np.ndarray]) -> list[Fact]:
    """Background, number of things, and of each thing of the first picture what it is in the others.

    Pictures are (64, 64, 3) in [0, 1]. Things are matched to those of the first picture so that as much as possible
    agrees; one that is missing is "absent", those left over are facts of their own.
    """
    found = {name: find(picture) for name, picture in pictures.items()}
    matched = _matched(found)
    rows = [
        _fact("background", {name: finding.background for name, finding in found.items()}),
        _fact("number of things", {name: str(len(finding.things)) for name, finding in found.items()}),
    ]
    titles = _titles(next(iter(found.values())).things)
    for i, title in enumerate(titles):
        things = {name: known[i] if i < len(known) else None for name, known in matched.items()}
        rows += [_fact(f"{title}: {attribute}", _said(things, attribute)) for attribute in ATTRIBUTES]
        rows.append(_fact(f"{title}: position", _said(things, "place"), _places(things)))
    extra = {name: known[len(titles) :] for name, known in matched.items()}
    if any(extra.values()):
        said = {name: ", ".join(map(_described, filter(None, left))) or ABSENT for name, left in extra.items()}
        rows.append(_fact("what else there is", said))
    return rows


def _fact(name: str, values: dict[str, str], same: Callable[[str], bool] | None = None) -> Fact:
    first = next(iter(values.values()))
    agrees = same or (lambda other: values[other] == first)
    return Fact(name, values, tuple(other for other in values if not agrees(other)))


def _matched(found: Mapping[str, Finding]) -> dict[str, list[Thing | None]]:
    """Each picture's things in the order of the first picture's, None where one is missing, those left over behind."""
    reference = next(iter(found.values())).things
    return {name: _in_order(reference, finding.things) for name, finding in found.items()}


def _in_order(reference: tuple[Thing, ...], things: tuple[Thing, ...]) -> list[Thing | None]:
    costs = np.array([[_apart(a, b) for b in things] for a in reference]).reshape(len(reference), len(things))
    pairs = dict(zip(*linear_sum_assignment(costs), strict=True))
    left = [thing for i, thing in enumerate(things) if i not in pairs.values()]
    return [things[pairs[i]] if i in pairs else None for i in range(len(reference))] + left


def _apart(a: Thing, b: Thing) -> float:
    """How many attributes differ; between equals the nearer one is the same thing."""
    differing = sum(getattr(a, name) != getattr(b, name) for name in ATTRIBUTES)
    return differing + np.hypot(a.x - b.x, a.y - b.y) / (2 * SIDE)


def _titles(things: tuple[Thing, ...]) -> list[str]:
    """A name for each thing, numbered where two would have the same."""
    names = [f"{thing.colour} {thing.shape}" for thing in things]
    counts = [names[:i].count(name) + 1 for i, name in enumerate(names)]
    return [name if count == 1 else f"{name} ({count})" for name, count in zip(names, counts, strict=True)]


def _said(things: Mapping[str, Thing | None], attribute: str) -> dict[str, str]:
    read = _place if attribute == "place" else lambda thing: str(getattr(thing, attribute))
    return {name: ABSENT if thing is None else read(thing) for name, thing in things.items()}


def _place(thing: Thing) -> str:
    return f"{thing.x:.0f} across, {thing.y:.0f} down"


def _places(things: Mapping[str, Thing | None]) -> Callable[[str], bool]:
    """Whether a thing is where it is in the first picture, within MOVED."""
    first = next(iter(things.values()))

    def same(name: str) -> bool:
        other = things[name]
        if first is None or other is None:
            return first is other
        return bool(np.hypot(other.x - first.x, other.y - first.y) <= MOVED)

    return same


def _described(thing: Thing) -> str:
    return f"{thing.size} {thing.texture} {thing.colour} {thing.shape}"
