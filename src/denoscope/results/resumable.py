"""Work that can be stopped at any moment and continued: a folder with its settings and the finished trials.

    FOLDER/settings.json     the settings; work with other settings is refused
           trials/NAME.json  the values of one finished trial, and NAME.npz its arrays

Each file appears whole or not at all, arrays first, so that a trial with a JSON file is finished.
"""

import io
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, OutputError
from ..files.whole import listed, write_whole

SETTINGS, TRIALS = "settings.json", "trials"
RESULTS = {"report.html", "run.json", "leaderboard.json", "evaluation.zarr"}
"""Files that the finished work may write beside the trials."""


@dataclass(frozen=True)
class ResumableFolder:
    """The folder of one piece of work; `opened` makes it, or takes it as an earlier run left it."""

    folder: Path

    @classmethod
    def opened(
        cls, folder: str | os.PathLike[str], settings: Mapping[str, Any], overwrite: bool = False
    ) -> "ResumableFolder":
        """Return the folder for work with these settings: new, or to be continued.

        Raises `InputError` if the folder holds anything else, or finished trials of other settings without
        `overwrite`, and `OutputError` if it cannot be written.
        """
        work = cls(Path(folder).expanduser().resolve())
        plain = json.loads(json.dumps(settings))
        work._refuse_foreign(folder)
        earlier = work.settings
        if earlier is not None and earlier != plain and work.begun and not overwrite:
            raise InputError(_differences(folder, earlier, plain))
        try:
            if earlier is not None and (overwrite or not work.begun):
                shutil.rmtree(work.folder)
            (work.folder / TRIALS).mkdir(parents=True, exist_ok=True)
            for leftover in (work.folder / TRIALS).glob(".*"):  # of a run that was killed while it wrote
                leftover.unlink()
            if work.settings is None:
                write_whole(work.folder / SETTINGS, json.dumps(plain, indent=2).encode())
        except OSError as error:
            raise OutputError(
                f'The results cannot be written to "{folder}": {error.strerror or error}. Give another folder.'
            ) from error
        return work

    @property
    def settings(self) -> dict[str, Any] | None:
        """The settings of the work in this folder; None if there is none."""
        return _read_json(self.folder / SETTINGS)

    @property
    def begun(self) -> bool:
        """True if a trial is finished."""
        names = [path.name for path in (self.folder / TRIALS).glob("*.json")]
        return not all(name.startswith(".") for name in names)

    def write(self, name: str, values: Any, arrays: Mapping[str, np.ndarray] | None = None) -> None:
        """Write a finished trial: its values, which JSON must hold, and its arrays, if it has any."""
        if arrays is not None:
            packed = io.BytesIO()
            np.savez_compressed(packed, **dict(arrays))  # type: ignore[arg-type]
            write_whole(self.folder / TRIALS / f"{name}.npz", packed.getvalue())
        write_whole(self.folder / TRIALS / f"{name}.json", json.dumps(values).encode())

    def read(self, name: str) -> Any | None:
        """Return the values of a trial; None if it is not finished."""
        return _read_json(self.folder / TRIALS / f"{name}.json")

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """Return the arrays of a finished trial."""
        with np.load(self.folder / TRIALS / f"{name}.npz", allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}

    def _refuse_foreign(self, folder: object) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f'The results cannot be written to "{folder}": it is a file. Give a folder.')
        if not self.folder.is_dir():
            return
        names = {entry.name for entry in self.folder.iterdir() if not entry.name.startswith(".")}
        foreign = sorted(names - RESULTS - {SETTINGS, TRIALS})
        if foreign or (names and SETTINGS not in names):
            raise InputError(
                f'The results cannot be written to "{folder}": it holds something else than such results '
                f"({listed(foreign or sorted(names))}). Allowed is a new or empty folder, or the folder of an earlier "
                "run. Give another folder."
            )


def _read_json(path: Path) -> Any | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def _differences(folder: object, earlier: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Return the message that names the settings that differ."""
    names = [name for name in {**earlier, **settings} if earlier.get(name) != settings.get(name)]
    changes = [f"{name} was {earlier.get(name)!r} and is now {settings.get(name)!r}" for name in names]
    return (
        f'"{folder}" holds work with other settings: {"; ".join(changes)}. Results of both cannot stand in one table. '
        "Give the same settings to go on with it, give another folder, or replace it with overwrite=True."
    )
