"""Output folders of runs: their names, and the check of a place before any work is done."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError
from ..files.whole import DESKTOP, listed, reason_against

WRITTEN = {"report.html", "image.png", "timeline.gif", "figures", "explanation.zarr", "run.json"}
WRITTEN_OF_CLIPS = {"clip.gif", "clip.mp4"}
WRITTEN_TOGETHER = {"report.html", "comparison.png", "run.json"}


def folder_names(names: Sequence[str]) -> list[str]:
    """Return a folder name for each name; a name that is taken gets a number. Upper and lower case are the same.

    >>> folder_names(["cat", "Cat", "report.html"])
    ['cat', 'Cat-2', 'report.html-2']
    """
    folders: list[str] = []
    taken = {name.casefold() for name in WRITTEN_TOGETHER}
    for stem in names:
        name, number = stem, 2
        while name.casefold() in taken:
            name, number = f"{stem}-{number}", number + 1
        folders.append(name)
        taken.add(name.casefold())
    return folders


def check_output(folder: str | os.PathLike[str], overwrite: bool = False) -> Path:
    """Return the absolute path of a place that can be written to; call it before any work is done.

    Raises `InputError` for a file, a mount point, or a place where no folder can be made. A folder with something in
    it is refused too, unless `overwrite` is true and it holds nothing but an earlier run.
    """
    try:
        place = Path(folder).expanduser().resolve()
        if against := reason_against(place):
            reason, remedy = against
            raise _refusal(folder, reason, f'{remedy} ("{folder}/run")' if remedy else "another folder")
        if place.is_dir():
            _check_contents(place, folder, overwrite)
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise _refusal(folder, f"its path cannot be used ({error})") from error
    return place


def _check_contents(place: Path, folder: object, overwrite: bool) -> None:
    """Raise `InputError` for contents that may not be replaced: another program's, or an earlier run if not asked."""
    names = {entry.name for entry in place.iterdir()} - DESKTOP
    if not names:
        return
    if "run.json" not in names:
        raise _refusal(folder, f"it is not empty and not the output of a run (it holds {listed(names)}, no run.json)")
    if not overwrite:
        raise _refusal(folder, "an earlier run is there", "another folder, or allow replacing it with overwrite=True")
    if foreign := names - WRITTEN - WRITTEN_OF_CLIPS - WRITTEN_TOGETHER - _folders(place / "run.json"):
        raise _refusal(
            folder, f"it also holds files that no run wrote ({listed(foreign)})", "another folder, or move them away"
        )


def _folders(record: Path) -> set[str]:
    """Return the folders that a run of several photographs or variants wrote, by its record."""
    try:
        return set(json.loads(record.read_text(encoding="utf-8")).get("folders", []))
    except (ValueError, AttributeError, TypeError):  # not a record of ours
        return set()


def _refusal(folder: object, reason: str, remedy: str = "another folder") -> InputError:
    return InputError(
        f'The results cannot be written to "{folder}": {reason}. '
        f"Allowed is a folder that does not exist yet or is empty. Give {remedy}."
    )
