"""The labels of a classifier, looked up by name, by synonym or by number."""

import difflib
import operator
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, SupportsIndex, final

from ..errors import InputError, one_line, shown_value

LISTED = 12
"""The largest number of labels that a message lists in full."""
LONGEST_LABEL = 80
"""The largest number of letters of a label that a message repeats."""


@final
@dataclass(frozen=True)
class Labels:
    """The labels of one classifier; `classifier` is its name, for messages."""

    classifier: str
    names: tuple[str, ...]

    def index(self, label: str | SupportsIndex) -> int:
        """Return the number of a label, given by its name or by its number.

        Case does not matter, and any synonym of a label ("tabby, tabby cat") names it. Raises `InputError` for a name
        that no label has, for a name that several labels have, and for a number out of range.
        """
        if isinstance(label, str):
            return self._by_name(label.strip())
        number = _whole_number(label)
        if number is None:
            raise InputError(f"{shown_value(label)} is not a label: give a name or a whole number. {self._allowed()}")
        return self._by_number(number)

    def _by_name(self, text: str) -> int:
        """Return the number of the label that a text is: the exact label first, then a synonym, then a number."""
        if self.names.count(text) == 1:
            return self.names.index(text)
        matches = [number for number, label in enumerate(self.names) if text.casefold() in _synonyms(label)]
        if len(matches) > 1:
            numbered = "; ".join(f"{number}: {quoted(self.names[number])}" for number in matches[:LISTED])
            raise InputError(f"{len(matches)} labels are called {quoted(text)} ({numbered}). Give one of the numbers.")
        if matches:
            return matches[0]
        if re.fullmatch(r"[+-]?\d{1,9}", text):
            return self._by_number(int(text))
        raise InputError(self._unknown(text))

    def _by_number(self, number: int) -> int:
        if not 0 <= number < len(self.names):
            raise InputError(f'The classifier "{self.classifier}" has no label {number}. {self._allowed()}')
        return number

    def _unknown(self, text: str) -> str:
        suggestions = _suggestions(text, chain.from_iterable(map(_synonyms, self.names)))
        hint = f"Did you mean {', '.join(map(quoted, suggestions))}? " if suggestions else ""
        return f'The classifier "{self.classifier}" has no label {quoted(text)}. {hint}{self._allowed()}'

    def _allowed(self) -> str:
        few = len(self.names) <= LISTED
        names = ", ".join(map(quoted, self.names)) if few else f"one of its {len(self.names)} labels"
        return f"Allowed: {names}, or its number, 0 to {len(self.names) - 1}."


def _whole_number(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def _synonyms(label: str) -> list[str]:
    """Return the names of a label in lower case: the whole label, and its parts between commas."""
    names = [name.strip().casefold() for name in (label, *label.split(","))]
    return list(dict.fromkeys(names))


def _suggestions(text: str, names: Iterable[str]) -> list[str]:
    """Return up to three names that contain a text, the shortest first; without any, names spelled like it."""
    text = text.casefold()
    candidates = sorted(set(names), key=lambda name: (len(name), name))
    containing = [name for name in candidates if text and text in name]
    return containing[:3] or difflib.get_close_matches(text, candidates, n=3)


def quoted(text: str) -> str:
    """Return a label in quotation marks, shortened to one line."""
    return f'"{one_line(text, LONGEST_LABEL)}"'


def distinct_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """Add its number to every label that several classes share.

    >>> distinct_labels(["crane", "bald eagle", "crane"])
    ('crane (0)', 'bald eagle', 'crane (2)')
    """
    counts = Counter(labels)
    return tuple(f"{label} ({number})" if counts[label] > 1 else label for number, label in enumerate(labels))


def label_texts(labels: Any, classifier: str) -> list[str]:
    """Return labels that a user gave as a list of at least two texts, none of them empty; `InputError` otherwise."""
    rule = 'Give at least 2 texts, such as labels=["a red circle", "a blue square"].'
    if labels is None:
        raise InputError(f'The classifier "{classifier}" needs labels, the names or texts of its classes. {rule}')
    several = isinstance(labels, Sequence) and not isinstance(labels, str) and len(labels) > 1
    if not several or not all(isinstance(text, str) and text.strip() for text in labels):
        raise InputError(f'The classifier "{classifier}" cannot have labels={shown_value(labels)}. {rule}')
    return [text.strip() for text in labels]
