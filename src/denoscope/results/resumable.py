"""Work that can be stopped at any moment and taken up again: a folder with its settings and what is finished.

    FOLDER/settings.json     what was asked for; other settings are refused
           trials/NAME.json  what was found in one trial, and NAME.npz its arrays

Each file appears whole or not at all, arrays first, so that a trial with a JSON file is finished."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, OutputError
from .folders import write_whole

SETTINGS, TRIALS = "settings.json", "trials"
MADE = {SETTINGS, TRIALS, "report.html", "run.json", "leaderboard.json", "evaluation.zarr"}


@dataclass(frozen=True)
class Ledger:
    """The folder of one piece of work; `Ledger.opened` makes it or finds it as it was left."""

    folder: Path

    @classmethod
    def opened(cls, folder: str | os.PathLike[str], settings: Mapping[str, Any], overwrite: bool = False) -> "Ledger":
        """The ledger of these settings in a folder: new, or to be continued.

        Raises `InputError` where the folder holds anything else, or work with other settings that is not to be
        replaced (`overwrite`), and `OutputError` where it cannot be written.
        """
        ledger, plain = cls(Path(folder).expanduser().resolve()), json.loads(json.dumps(settings))
        ledger._refuse_foreign(folder)
        kept, begun = ledger.settings, ledger.begun
        if kept is not None and kept != plain and begun and not overwrite:
            raise InputError(_differing(folder, kept, plain))
        try:
            if kept is not None and (overwrite or not begun):
                shutil.rmtree(ledger.folder)
            (ledger.folder / TRIALS).mkdir(parents=True, exist_ok=True)
            if ledger.settings is None:
                write_whole(ledger.folder / SETTINGS, json.dumps(plain, indent=2).encode())
        except OSError as error:
            raise OutputError(
                f'The results cannot be written to "{folder}": {error.strerror or error}. Give another folder.'
            ) from error
        return ledger

    @property
    def settings(self) -> dict[str, Any] | None:
        """What the work in this folder was asked for; None where there is none."""
        return _json_of(self.folder / SETTINGS)

    @property
    def begun(self) -> bool:
        """Whether anything was finished."""
        return any((self.folder / TRIALS).glob("*.json"))

    def write(self, name: str, found: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """A finished trial."""
        place = self.folder / TRIALS
        beside = place / f".{name}-{os.getpid()}.npz"
        np.savez_compressed(beside, **dict(arrays))  # type: ignore[arg-type]
        os.replace(beside, place / f"{name}.npz")
        write_whole(place / f"{name}.json", json.dumps(found).encode())

    def read(self, name: str) -> dict[str, Any] | None:
        """What was found in a trial; None where it is not finished."""
        return _json_of(self.folder / TRIALS / f"{name}.json")

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of a finished trial."""
        with np.load(self.folder / TRIALS / f"{name}.npz", allow_pickle=False) as kept:
            return {key: kept[key] for key in kept.files}

    def _refuse_foreign(self, given: object) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f'The results cannot be written to "{given}": it is a file. Give a folder.')
        found = {entry.name for entry in self.folder.iterdir()} if self.folder.is_dir() else set()
        found = {name for name in found if not name.startswith(".")}
        if found and (SETTINGS not in found or found - MADE):
            raise InputError(
                f'The results cannot be written to "{given}": it holds what no evaluation wrote '
                f"({', '.join(sorted(found - MADE) or sorted(found))}). Allowed is a new or empty folder, or one of an "
                "earlier evaluation. Give another folder."
            )


def _json_of(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def _differing(folder: object, kept: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """Which settings are others, in one paragraph."""
    names = [name for name in {**kept, **asked} if kept.get(name) != asked.get(name)]
    told = "; ".join(f"{name} was {kept.get(name)!r} and is now {asked.get(name)!r}" for name in names)
    return (
        f'"{folder}" holds an evaluation with other settings: {told}. Results of both cannot stand in one table. Ask '
        "for the same again to go on with it, give another folder, or replace it (--overwrite)."
    )
