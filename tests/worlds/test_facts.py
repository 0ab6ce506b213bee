"""Facts of pictures of the shapes world: the thing that a word names, and the differences between pictures."""

import pytest

from denoscope.worlds.facts import ABSENT, named_thing, scene_facts
from denoscope.worlds.shapes.scenes import Scene, Thing, render


@pytest.mark.parametrize(
    "label, prompt, things, named",
    [
        ("red", "a red circle", "red circle", 0),
        ("Circle", "A red Circle", "red circle", 0),
        ("red circle", "a red circle above a red square", "red square, red circle", 1),
        ("red", "a red circle above a red square", "red square, red circle", 1),
        ("red (2)", "a red circle above a red square", "red square, red circle", 0),
        ("square", "a red square left of a striped blue square", "blue square, red square", 1),
        ("square (2)", "a red square left of a striped blue square", "blue square, red square", 0),
        ("red", "a red square", "red circle", 0),  # the picture has the colour but not the shape
        ("red", "a red circle above a red square", "red square", None),  # which red is this?
        ("red", "a red circle above a red circle", "red circle, red circle", None),
        ("circle", "a circle above a circle", "red circle", None),
        ("circle", "a circle", "red circle, blue circle", None),
        ("blue", "a red circle", "red circle", None),
        ("green", "a green circle", "red square", None),
        ("pink", "a red circle on a pink background", "red circle", None),
        ("red (3)", "a red circle above a red square", "red circle", None),
        ("red circle above a blue square", "a red circle above a blue square", "red circle, blue square", None),
    ],
)
def test_what_a_word_names(label, prompt, things, named):
    seen = [Thing(*reversed(thing.split()), "large", "plain") for thing in things.split(", ")]
    assert named_thing(label, prompt, seen) == named


CIRCLE = Thing("circle", "red", "large", "plain", 20.0, 20.0, 13.0)
SQUARE = Thing("square", "blue", "small", "plain", 48.0, 48.0, 8.0)


def changes(first: Scene, second: Scene) -> dict[str, tuple[str, str]]:
    facts = scene_facts({"first": render(first), "second": render(second)})
    return {fact.name: (fact.values["first"], fact.values["second"]) for fact in facts if fact.changed == ("second",)}


def test_a_missing_thing_is_absent_and_a_new_one_is_named():
    """Truth: the scenes that were drawn."""
    both, circle, square = (Scene("white", things) for things in ((CIRCLE, SQUARE), (CIRCLE,), (SQUARE,)))
    gone = changes(both, circle)
    assert gone["number of things"] == ("2", "1") and gone["blue square: shape"] == ("square", ABSENT)
    assert not any(name.startswith("red circle") for name in gone)
    new = changes(square, both)
    assert new == {"number of things": ("1", "2"), "what else there is": (ABSENT, "large plain red circle")}


def test_a_thing_has_moved_beyond_one_cell_of_the_samples():
    """Truth: the distance between the scenes; the judge itself is exact to about a pixel."""
    for distance, moved in ((2.0, False), (8.0, True)):
        other = Thing("circle", "red", "large", "plain", CIRCLE.x + distance, CIRCLE.y, CIRCLE.radius)
        names = changes(Scene("white", (CIRCLE,)), Scene("white", (other,)))
        assert list(names) == (["red circle: position"] if moved else [])
