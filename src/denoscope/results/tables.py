"""The short table that a terminal prints of a result."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Rows of text under a head, with notes below.

    Without a head each row is one line: its first cell, a colon, and the other cells. A line break in a cell is kept.
    """

    title: str = ""
    head: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()
