"""Facts of pictures of the shapes world, read by the judge: their differences, and the thing that a word names."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from .shapes.judge import find
from .shapes.scenes import COLOURS, SHAPES, SIDE, Thing

ATTRIBUTES = ("shape", "colour", "size", "texture")
"""The attributes of a thing that are words."""
MOVED = 4.0
"""The largest distance, in pixels, of a thing that has not moved: one cell of the bundled model's samples."""
ABSENT = "absent"
"""The value of a fact of a thing that a picture lacks."""

ThingsByPicture = Mapping[str, Thing | None]
"""One thing in each picture, by the pictures' names; None where the picture lacks it."""


@dataclass(frozen=True)
class Fact:
    """One fact: its value in each picture, in words, and the pictures in which it differs from the first picture."""

    name: str
    values: dict[str, str]
    changed: tuple[str, ...]


def scene_facts(pictures: Mapping[str, np.ndarray]) -> list[Fact]:
    """Return background, number of things, and the attributes and position of each thing of the first picture.

    Pictures are (64, 64, 3) in [0, 1]. Their things are matched to those of the first picture so that as much as
    possible agrees. A missing thing is "absent"; things beyond those of the first picture are one more fact.
    """
    findings = {name: find(picture) for name, picture in pictures.items()}
    reference = next(iter(findings.values())).things
    things = {name: _in_order(reference, finding.things) for name, finding in findings.items()}
    facts = [
        _fact("background", {name: finding.background for name, finding in findings.items()}),
        _fact("number of things", {name: str(len(finding.things)) for name, finding in findings.items()}),
    ]
    for i, title in enumerate(_titles(reference)):
        facts += _facts_of_thing(title, {name: matched[i] for name, matched in things.items()})
    extra = {name: matched[len(reference) :] for name, matched in things.items()}
    if any(extra.values()):
        facts.append(_fact("what else there is", {name: _described(more) for name, more in extra.items()}))
    return facts


def _facts_of_thing(title: str, things: ThingsByPicture) -> list[Fact]:
    facts = []
    for attribute in ATTRIBUTES:
        values = {name: ABSENT if thing is None else str(getattr(thing, attribute)) for name, thing in things.items()}
        facts.append(_fact(f"{title}: {attribute}", values))
    places = {name: ABSENT if thing is None else _place(thing) for name, thing in things.items()}
    return [*facts, _fact(f"{title}: position", places, _unmoved(things))]


def _fact(name: str, values: dict[str, str], agrees: Callable[[str], bool] | None = None) -> Fact:
    """Return a fact; `agrees` tells of a picture whether it agrees with the first, by default if the values do."""
    first = next(iter(values.values()))

    def same_value(picture: str) -> bool:
        return values[picture] == first

    agrees = agrees or same_value
    return Fact(name, values, tuple(picture for picture in values if not agrees(picture)))


def _in_order(reference: tuple[Thing, ...], things: tuple[Thing, ...]) -> list[Thing | None]:
    """Return things in the order of reference things, None for a missing thing, the remaining things at the end."""
    costs = np.array([[_difference(a, b) for b in things] for a in reference]).reshape(len(reference), len(things))
    pairs = dict(zip(*linear_sum_assignment(costs), strict=True))
    rest = [thing for i, thing in enumerate(things) if i not in pairs.values()]
    return [things[pairs[i]] if i in pairs else None for i in range(len(reference))] + rest


def _difference(a: Thing, b: Thing) -> float:
    """Return the number of differing attributes; the distance, below 1, decides between equals."""
    differing = sum(getattr(a, name) != getattr(b, name) for name in ATTRIBUTES)
    return float(differing + np.hypot(a.x - b.x, a.y - b.y) / (2 * SIDE))


def _titles(things: tuple[Thing, ...]) -> list[str]:
    """Return a name for each thing; repeated names get a number."""
    names = [f"{thing.colour} {thing.shape}" for thing in things]
    counts = [names[:i].count(name) + 1 for i, name in enumerate(names)]
    return [name if count == 1 else f"{name} ({count})" for name, count in zip(names, counts, strict=True)]


def _place(thing: Thing) -> str:
    return f"{thing.x:.0f} across, {thing.y:.0f} down"


def _unmoved(things: ThingsByPicture) -> Callable[[str], bool]:
    """Return a function of a picture's name: True if its thing is within MOVED of the first picture's."""
    first = next(iter(things.values()))

    def unmoved(name: str) -> bool:
        thing = things[name]
        if first is None or thing is None:
            return first is thing
        return bool(np.hypot(thing.x - first.x, thing.y - first.y) <= MOVED)

    return unmoved


def _described(things: Sequence[Thing | None]) -> str:
    present = [thing for thing in things if thing is not None]
    return ", ".join(f"{thing.size} {thing.texture} {thing.colour} {thing.shape}" for thing in present) or ABSENT


# The thing that a word of a prompt names


def named_thing(label: str, prompt: str, things: Sequence[Thing]) -> int | None:
    """Return the number of the thing that a word or phrase of a prompt names by colour and shape.

    >>> things = [Thing("circle", "red", "large", "plain"), Thing("square", "red", "large", "plain")]
    >>> [named_thing(word, "a red circle above a red square", things) for word in ("red", "square", "red (2)", "a")]
    [0, 1, 1, None]

    A word is read with its phrase, "red" as "red circle". If no thing is that, a word that the prompt has once names
    the only thing of its colour or shape. None for no thing or several things, and for one of two equal phrases.
    """
    words, number = _words(prompt), re.search(r" \((\d+)\)$", label)
    phrase = _words(label[: number.start()] if number else label)
    places = [i for i in range(len(words)) if phrase and words[i : i + len(phrase)] == phrase]
    place = int(number[1]) - 1 if number else 0
    if place >= len(places):
        return None
    attributes = _colour_and_shape(phrase)
    if not attributes or len(attributes) < sum(map(_is_attribute, phrase)):
        return None  # neither colour nor shape, or two of a kind
    wanted = [{**_around(words, i, len(phrase)), **attributes} for i in places]
    if wanted.count(wanted[place]) > 1:
        return None
    matching = _matching(wanted[place], things)
    if not matching and len(places) == 1:
        matching = _matching(attributes, things)
    return matching[0] if len(matching) == 1 else None


def _matching(attributes: Mapping[str, str], things: Sequence[Thing]) -> list[int]:
    def matches(thing: Thing) -> bool:
        return all(getattr(thing, kind) == word for kind, word in attributes.items())

    return [i for i, thing in enumerate(things) if matches(thing)]


def _around(words: Sequence[str], first: int, length: int) -> dict[str, str]:
    """Return colour and shape next to some words: a colour before and a shape behind, without another in between."""
    before = [word for word in words[:first] if _is_attribute(word)]
    behind = [word for word in words[first + length :] if _is_attribute(word)]
    attributes = {}
    if before and before[-1] in COLOURS:
        attributes["colour"] = before[-1]
    if behind and behind[0] in SHAPES:
        attributes["shape"] = behind[0]
    return attributes


def _colour_and_shape(words: Sequence[str]) -> dict[str, str]:
    """Return the last colour and the last shape among some words."""
    colours = [word for word in words if word in COLOURS]
    shapes = [word for word in words if word in SHAPES]
    attributes = {}
    if colours:
        attributes["colour"] = colours[-1]
    if shapes:
        attributes["shape"] = shapes[-1]
    return attributes


def _is_attribute(word: str) -> bool:
    return word in COLOURS or word in SHAPES


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.casefold())
