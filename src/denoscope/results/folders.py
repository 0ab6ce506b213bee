"""Output folders and files that appear whole or not at all."""

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import InputError, OutputError

WRITTEN = {"report.html", "image.png", "timeline.gif", "figures", "explanation.zarr", "run.json"}
WRITTEN_TOGETHER = {"report.html", "comparison.png", "run.json"}
DESKTOP = {".DS_Store", "Thumbs.db", "desktop.ini"}  # what file managers leave in any folder they show


def folder_names(names: Sequence[str]) -> list[str]:
    """A folder for each name, numbered where that is taken, as some file systems see it without case.

    >>> folder_names(["cat", "Cat", "report.html"])
    ['cat', 'Cat-2', 'report.html-2']
    """
    made: list[str] = []
    taken = {name.casefold() for name in WRITTEN_TOGETHER}
    for stem in names:
        name, number = stem, 2
        while name.casefold() in taken:
            name, number = f"{stem}-{number}", number + 1
        made.append(name)
        taken.add(name.casefold())
    return made


def check_output(folder: str | os.PathLike[str], overwrite: bool = False) -> Path:
    """The absolute path of a place that can be written to; call it before any work is done.

    Raises `InputError` for a file, a folder with something in it (unless `overwrite` and it holds nothing but an
    earlier run), a mount point, or a place where no folder can be made.
    """
    try:
        place = Path(folder).expanduser().resolve()
        _check_place(place, folder)
        if place.is_dir():
            _check_contents(place, folder, overwrite)
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise _refusal(folder, f"its path cannot be used ({error})") from error
    return place


def _check_place(place: Path, given: object) -> None:
    if place.exists() and not place.is_dir():
        raise _refusal(given, "it is a file")
    if os.path.ismount(place):
        raise _refusal(
            given, "a drive or mount point cannot be replaced in one go", f'a folder inside it ("{given}/run")'
        )
    parent = next(parent for parent in place.parents if parent.exists())
    if not parent.is_dir():
        raise _refusal(given, f'"{parent}" is a file, so no folder can be made in it')
    if not os.access(parent, os.W_OK | os.X_OK):
        raise _refusal(given, f'you may not write in "{parent}"')


def _check_contents(place: Path, given: object, overwrite: bool) -> None:
    """An old run may be replaced when asked; anything that this program did not write may not."""
    found = {entry.name for entry in place.iterdir()} - DESKTOP
    if not found:
        return
    if "run.json" not in found:
        raise _refusal(given, f"it is not empty and not the output of a run (it holds {listed(found)}, no run.json)")
    if not overwrite:
        raise _refusal(given, "an earlier run is there", "another folder, or allow replacing it (overwrite)")
    if foreign := found - WRITTEN - WRITTEN_TOGETHER - _folders(place / "run.json"):
        raise _refusal(
            given, f"it also holds what no run wrote ({listed(foreign)})", "another folder, or move that away"
        )


def _folders(record: Path) -> set[str]:
    """The folders that a run of several photographs or variants says it wrote."""
    try:
        return set(json.loads(record.read_text(encoding="utf-8")).get("folders", []))
    except (ValueError, AttributeError, TypeError):  # not a record of ours
        return set()


def _refusal(given: object, reason: str, remedy: str = "another folder") -> InputError:
    return InputError(
        f'The results cannot be written to "{given}": {reason}. '
        f"Allowed is a folder that does not exist yet or is empty. Give {remedy}."
    )


@contextmanager
def whole_folder(place: Path) -> Iterator[Path]:
    """A folder beside `place` that takes its name at the end, or is gone when something, or someone, stops it."""
    temporary = place.with_name(f".{place.name}-{secrets.token_hex(4)}.partial")
    new_parents = [parent for parent in place.parents if not parent.exists()]
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        _take_place(temporary, place)
    except OSError as error:
        raise OutputError(
            f'The results could not be written to "{place}": {error.strerror or error}. '
            f"{_free_space(place.parent)}Nothing was left half-written. Free some space or give another folder."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        with suppress(OSError):  # those with something in them, the results at best, stay
            for parent in new_parents:
                parent.rmdir()


def _take_place(temporary: Path, place: Path) -> None:
    """Rename; what was there is moved aside first, comes back if that fails, and is removed when it is not needed."""
    if not place.exists():
        os.rename(temporary, place)
        return
    aside = temporary.with_suffix(".old")
    os.rename(place, aside)
    try:
        os.rename(temporary, place)
    except BaseException:
        os.rename(aside, place)
        raise
    try:
        shutil.rmtree(aside)
    except KeyboardInterrupt:  # the new results are in place; only the old ones are still to go
        shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise OutputError(
            f'The results are in "{place}", but the earlier ones could not be removed: {error}. '
            f'Delete "{aside}" yourself.'
        ) from error


def _free_space(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 2**20:.0f} MB are free there. "
    except OSError:
        return ""


def listed(names: Any, most: int = 5) -> str:
    names = [str(name) for name in names]
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "") or "nothing"


def write_whole(path: Path, content: bytes) -> None:
    """A file that is there whole or not at all: written beside its place, then renamed."""
    beside = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        beside.write_bytes(content)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
