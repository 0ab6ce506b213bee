"""Work over scenes that can be stopped and continued, as `denoscope evaluate` does it: a folder with a file a scene."""

import argparse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from denoscope.commands.subjects import FIRST_SEED
from denoscope.commands.workers import results_in_order
from denoscope.files.claims import claimed
from denoscope.results.resumable import ResumableFolder

Score = Callable[[int], Any]
"""From the seed of a scene to its plain values; None if the picture does not show the scene."""


def benchmark_parser(doc: str | None, scenes: int, out: str, option: str = "--scenes") -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks over scenes share; `option` is the number of scenes."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(option, type=int, default=scenes, dest="scenes")
    parser.add_argument("--workers", type=int, default=2, help="scenes side by side")
    parser.add_argument("--out", type=Path, default=Path(out), help="folder of the scenes; the table is OUT.json")
    parser.add_argument("--overwrite", action="store_true", help="start again instead of going on")
    return parser


def in_turn(scenes: int) -> range:
    """Return seeds of scenes with one small object and with two in turn, more than are measured."""
    return range(FIRST_SEED, FIRST_SEED + 3 * scenes)


@dataclass(frozen=True)
class ScoreInFolder:
    """Computes the values of a scene and writes them to the folder, unless they are there."""

    score: Score
    folder: ResumableFolder

    def __call__(self, seed: int) -> Any:
        torch.set_num_threads(1)
        finished = self.folder.read(str(seed))
        if finished is None:
            finished = {"seed": seed, "scores": self.score(seed)}
            self.folder.write(str(seed), finished)
        return finished["scores"]


def over_scenes(
    score: Score, seeds: Iterable[int], scenes: int, settings: Mapping[str, Any], options: argparse.Namespace
) -> tuple[list[Any], int]:
    """Return the values of the first `scenes` scenes that have some, and the number of scenes without.

    Raises `InputError` if the folder `options.out` holds scenes of other settings.
    """
    scores, skipped = [], 0
    with claimed(options.out) as place:
        work = ScoreInFolder(score, ResumableFolder.opened(place, settings, options.overwrite))
        results = results_in_order(work, seeds, _has_values, scenes, options.workers)
        for values in track(results, description="scenes", total=scenes):
            if _has_values(values):
                scores.append(values)
            else:
                skipped += 1
    return scores, skipped


def _has_values(values: Any) -> bool:
    return values is not None


def table_path(options: argparse.Namespace) -> Path:
    """Return the file of a benchmark's table."""
    return options.out.with_name(f"{options.out.name}.json")
