"""The result of `denoscope evaluate`: scores, leaderboard and failures, and the files that hold them."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ..files.whole import whole_folder, write_whole
from ..report.leaderboard import render_leaderboard, short_rows
from ..results.records import PACKAGES, version_of
from ..results.resumable import ResumableFolder
from ..results.tables import Table
from .trial import Maps, Trial


@dataclass(frozen=True)
class Failures:
    """The failures of one kind: their number and the first reason."""

    times: int
    first: str


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """The result of an evaluation.

    `command` is the command line of the same evaluation, and `settings` are those that its trials share.
    `skipped_checks` are the checks that were skipped although none was named, with the reasons. `trials` are the
    measured pictures, and `unmade` those that could not be made because something failed. `maps` are the maps of each
    picture by its name. `scores` has `score` (measure, scene, attributor, step) and its `interval`. `table` is the
    leaderboard as plain values. `folder` holds the trials; None if they are only in memory.
    """

    command: str
    settings: Mapping[str, Any]
    skipped_checks: Mapping[str, str]
    trials: tuple[Trial, ...] = field(repr=False)
    unmade: tuple[Trial, ...] = field(repr=False)
    maps: Mapping[str, Maps] = field(repr=False)
    scores: xr.Dataset = field(repr=False)
    table: Mapping[str, Any] = field(repr=False)
    folder: Path | None = None
    interrupted: bool = False

    @property
    def interruption(self) -> str | None:
        """The reason why the work stopped early; None if it did not."""
        if not self.interrupted:
            return None
        return f"Interrupted after {len(self.trials)} pictures, which are in the table."

    @property
    def failures(self) -> dict[str, str]:
        """The failures by method or check: the number of pictures and the first reason."""
        reasons = {}
        for name, failures in self.failures_by_name().items():
            times = "once" if failures.times == 1 else f"{failures.times} times"
            reasons[name] = f"failed {times}: {failures.first}"
        return reasons

    def failures_by_name(self) -> dict[str, Failures]:
        """Return the failures of all pictures, by method or "method, check"."""
        reasons: dict[str, list[str]] = {}
        for trial in (*self.trials, *self.unmade):
            for name, reason in trial.failures.items():
                reasons.setdefault(name, []).append(reason)
        return {name: Failures(len(each), each[0]) for name, each in reasons.items()}

    def seconds(self) -> dict[str, float]:
        """Return the processor seconds of each method's maps, the median over pictures."""
        seconds: dict[str, list[float]] = {}
        for trial in self.trials:
            for name, value in trial.seconds.items():
                seconds.setdefault(name, []).append(value)
        return {name: float(np.median(values)) for name, values in seconds.items()}

    def rows(self) -> Table:
        """Return the short leaderboard: the best method first."""
        head, rows = short_rows(self.table)
        steps = ", ".join(map(str, self.table["steps"]))
        title = f"{self.table['scenes']} pictures, steps {steps}"
        notes = ("mean and 95 % interval over pictures, a line a step; baselines in brackets",)
        return Table(title, tuple(head), tuple(map(tuple, rows)), notes)

    def record(self) -> dict[str, Any]:
        """Return the content of run.json: the settings, the failures, the seconds of each method, the versions."""
        settings = {name: value for name, value in self.settings.items() if name != "denoscope"}
        return {
            "command": self.command,
            **settings,
            "scenes": len(self.trials),
            "left_out": dict(self.skipped_checks),
            "failures": {name: asdict(failures) for name, failures in self.failures_by_name().items()},
            "seconds": self.seconds(),
            "versions": {name: version_of(name) for name in PACKAGES},
        }

    def save(self, folder: str | os.PathLike[str], overwrite: bool = False) -> Path:
        """Write evaluation.zarr, leaderboard.json, report.html and run.json, and the trials if they are not there.

        Raises `InputError` for a folder with anything else in it, and `OutputError` if it cannot be written.
        """
        place = Path(folder).expanduser().resolve()
        if place != self.folder:
            self._write_trials(ResumableFolder.opened(place, self.settings, overwrite))
        record = self.record()
        with whole_folder(place / "evaluation.zarr") as temporary:
            self.scores.to_zarr(temporary, mode="w", zarr_format=2)  # xarray opens it without a warning
        write_whole(place / "leaderboard.json", json.dumps(self.table, indent=1).encode())
        write_whole(place / "report.html", render_leaderboard(self.table, record).encode())
        write_whole(place / "run.json", json.dumps(record, indent=1).encode())
        return place

    def _write_trials(self, work: ResumableFolder) -> None:
        for trial in self.trials:
            work.write(trial.subject.name, trial.to_json(), self.maps[trial.subject.name])
