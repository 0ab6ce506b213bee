"""Work over scenes that can be stopped and taken up again: two processes, and a JSON line for every scene."""

import json
import multiprocessing
from collections.abc import Callable, Iterator
from itertools import islice
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

from rich.progress import track

FIRST_SEED = 7_000_000

Score = Callable[[int, int], dict[str, Any] | None]
"""Of a scene's seed and its number of objects; None where the picture does not show as many."""


def over_scenes(score: Score, scenes: int, settings: dict[str, Any], out: Path, workers: int) -> list[dict[str, Any]]:
    """The scores of so many scenes, of one small object and of two in turn, each written to `out` when it is there.

    A scene that `out` has already, made with the same settings, is not made again.
    """
    _prepare(out)
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        made = _scores(pool, score, 3 * scenes, settings, out)
        return list(track(islice(made, scenes), f"{scenes} scenes", total=scenes))


def _scores(pool: Pool, score: Score, most: int, settings: dict[str, Any], out: Path) -> Iterator[dict[str, Any]]:
    """Scene after scene, those passed over left out, from `out` or made anew and written there."""
    jobs = [(FIRST_SEED + i, 1 + i % 2) for i in range(most)]
    known = {line["seed"]: line for line in _lines(out) if line["settings"] == json.loads(json.dumps(settings))}
    made = pool.imap(_Job(score), [job for job in jobs if job[0] not in known])
    for seed, count in jobs:
        if seed not in known:
            known[seed] = {"seed": seed, "objects": count, "settings": settings, "scores": next(made)}
            with out.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(known[seed]) + "\n")
        if known[seed]["scores"] is not None:
            yield known[seed]["scores"]


def _prepare(out: Path) -> None:
    """The file, with an end to the line that was being written when the last call was stopped."""
    out.parent.mkdir(parents=True, exist_ok=True)
    text = out.read_text(encoding="utf-8") if out.is_file() else ""
    if text and not text.endswith("\n"):
        out.write_text(text + "\n", encoding="utf-8")


class _Job:
    def __init__(self, score: Score):
        self.score = score

    def __call__(self, job: tuple[int, int]) -> dict[str, Any] | None:
        return self.score(*job)


def _lines(out: Path) -> Iterator[dict[str, Any]]:
    """All lines but those that were cut off while they were written."""
    for line in out.read_text(encoding="utf-8").splitlines() if out.is_file() else []:
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue
