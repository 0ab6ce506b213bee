"""Work over scenes that can be stopped and taken up again: two processes, and a JSON line for every scene."""

import json
import multiprocessing
from collections.abc import Callable, Iterator
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
    jobs = [(FIRST_SEED + i, 1 + i % 2) for i in range(3 * scenes)]
    known, found = _known(out, settings), []
    out.parent.mkdir(parents=True, exist_ok=True)
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        made = pool.imap(_Job(score), [job for job in jobs if job[0] not in known])
        for seed, count in track(jobs, description=f"{scenes} scenes"):
            if seed not in known:
                line = {"seed": seed, "objects": count, "settings": settings, "scores": next(made)}
                with out.open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps(line) + "\n")
                known[seed] = line
            found += [known[seed]["scores"]] if known[seed]["scores"] else []
            if len(found) == scenes:
                break
    return found


class _Job:
    def __init__(self, score: Score):
        self.score = score

    def __call__(self, job: tuple[int, int]) -> dict[str, Any] | None:
        return self.score(*job)


def _known(out: Path, settings: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Lines made with these settings, by their seeds."""
    return {line["seed"]: line for line in _lines(out) if line["settings"] == json.loads(json.dumps(settings))}


def _lines(out: Path) -> Iterator[dict[str, Any]]:
    """All lines but one that was cut off while it was written."""
    for line in out.read_text(encoding="utf-8").splitlines() if out.is_file() else []:
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue
