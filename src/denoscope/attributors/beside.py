"""Work on the CPU beside a network's: a GPU does not wait for what is drawn, or added up, in Python."""

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Done = TypeVar("Done")


def ahead(items: Iterator[Item]) -> Generator[Item, None, None]:
    """Yield items in their order, and make the next one while this is used."""
    with ThreadPoolExecutor(1) as beside:
        made = beside.submit(_next, items)
        while (some := made.result()) is not None:
            made = beside.submit(_next, items)
            yield some[0]


def _next(items: Iterator[Item]) -> tuple[Item] | None:
    """Return the next item, in a tuple; None at the end."""
    return next(((item,) for item in items), None)


def each_of(work: Callable[[Item], Done], items: list[Item]) -> list[Done]:
    """Return work(item) for each item, side by side; for work that does not hold Python."""
    with ThreadPoolExecutor(len(items)) as beside:
        return list(beside.map(work, items))
