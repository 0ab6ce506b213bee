"""Arguments of a pipeline's call as they are typed, NAME=VALUE, read and written again; no torch is loaded."""

import ast
import json
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import InputError, shown_value

Pairs = tuple[tuple[str, Any], ...]
"""Arguments by their names, in the order in which they were given."""


def read_pairs(typed: Iterable[str]) -> Pairs:
    """Return arguments as typed.

    >>> read_pairs(["eta=0.5", "clip_skip=1", "text=a cat", "sizes=[1, 2]", "masked=true"])
    (('eta', 0.5), ('clip_skip', 1), ('text', 'a cat'), ('sizes', [1, 2]), ('masked', True))

    Raises `InputError` for words that are not NAME=VALUE.
    """
    pairs = []
    for words in typed:
        name, sign, value = words.partition("=")
        name = name.strip().replace("-", "_")
        if not sign or not name.isidentifier():
            raise InputError(
                f'The argument "{words}" is not NAME=VALUE. Give the name of an argument of the pipeline\'s call and '
                "its value, such as eta=0.5."
            )
        pairs.append((name, read_value(value)))
    return tuple(pairs)


def read_value(text: str) -> Any:
    """Return the value of a Python or JSON literal, and any other text as it is."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a text such as "1is" is nearly Python
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        pass  # not Python's
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return text


def _refuse_constant(word: str) -> None:
    """Raise `ValueError` for NaN and Infinity, which stay texts."""
    raise ValueError(word)


def written_pair(name: str, value: Any) -> str:
    """Return an argument as it is typed.

    >>> written_pair("eta", 0.5), written_pair("text", "a cat"), written_pair("text", "3")
    ('eta=0.5', 'text=a cat', "text='3'")
    """
    is_plain_text = isinstance(value, str) and read_value(value) == value
    return f"{name}={value if is_plain_text else repr(value)}"


def kept_pairs(arguments: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> Pairs:
    """Return arguments as pairs of their own, which no change of the given ones reaches.

    Raises `InputError` for a value that cannot be written down, and for a name that is there twice.
    """
    pairs = arguments.items() if isinstance(arguments, Mapping) else arguments
    kept: dict[str, Any] = {}
    for name, value in pairs:
        if name in kept:
            raise InputError(
                f"call has {name} twice, {shown_value(kept[name])} and {shown_value(value)}. Give it once."
            )
        kept[name] = _copy(name, value)
    return tuple(kept.items())


def _copy(name: str, value: Any) -> Any:
    """Return a copy of a value by its literal; raises `InputError` for one that has none."""
    copy = read_value(repr(value))
    if type(copy) is not type(value) or copy != value:
        raise InputError(
            f"call has {name}={shown_value(value)}, which cannot be written into a record: allowed are texts, finite "
            "numbers, True, False, None, and lists, tuples and dictionaries of them. Tensors and functions go to "
            "denoscope.Model.trace."
        )
    return copy
