"""Evaluations of several groups of methods, each with its own number of masks, in one array of scores."""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import xarray as xr
from rich.progress import Progress

from denoscope.commands.evaluate import Evaluation
from denoscope.evaluation import over_scenes
from denoscope.report.leaderboard import cell_text


def scores_of(
    masks: Mapping[str, int], check: str, steps: Sequence[int], scenes: int, options: argparse.Namespace
) -> xr.DataArray:
    """Return the scores (measure, scene, attributor, step) of methods with a number of masks each, and of baselines.

    Methods with the same number are one evaluation, in a folder of `options.out`, which a later call goes on with.
    """
    parts: list[xr.DataArray] = []
    present: set[str] = set()
    for num_masks, methods in grouped(masks).items():
        evaluation = Evaluation(
            methods=tuple(methods), checks=(check,), at=tuple(steps), scenes=scenes, num_masks=num_masks
        )
        folder = options.out / f"{'+'.join(methods)}-{num_masks}-masks"
        with _bar(f"{', '.join(methods)}, {num_masks} masks") as watch:
            result = evaluation.run(watch, folder=folder, workers=options.workers, overwrite=options.overwrite)
        result.save(folder)
        score = result.scores.score
        names = [name for name in score.attributor.values.tolist() if name not in present]
        parts.append(score.sel(attributor=names))
        present |= set(names)
    return xr.concat(parts, "attributor")


def grouped(masks: Mapping[str, int]) -> dict[int, list[str]]:
    """Return the methods by their number of masks.

    >>> grouped({"df-rise": 64, "lime": 500, "df-rise-reference": 64})
    {64: ['df-rise', 'df-rise-reference'], 500: ['lime']}
    """
    groups: dict[int, list[str]] = {}
    for method, number in masks.items():
        groups.setdefault(number, []).append(method)
    return groups


@contextmanager
def _bar(title: str) -> Iterator[Callable[[str, int], Callable[[int], None]]]:
    with Progress() as progress:

        def watch(_: str, total: int) -> Callable[[int], None]:
            task = progress.add_task(title, total=total)
            return lambda done: progress.advance(task, done)

        yield watch


def intervals(scores: xr.DataArray) -> dict[str, Any]:
    """Return the mean and interval over scenes of (scene, attributor, step), by method and step."""
    summary = over_scenes(scores)
    rows: dict[str, Any] = {}
    for name in scores.attributor.values.tolist():
        rows[name] = {}
        for step in scores.step.values.tolist():
            cell = summary.sel(attributor=name, step=step)
            rows[name][str(step)] = {figure: float(cell[figure]) for figure in ("mean", "low", "high", "count")}
    return rows


def cells(row: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return the text of each step's interval."""
    return [cell_text(cell) for cell in row.values()]
