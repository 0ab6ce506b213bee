"""Output folders that appear whole or not at all."""

import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..errors import InputError, OutputError
from .claims import ASIDE, PARTIAL, claimed

WRITTEN = {"report.html", "image.png", "timeline.gif", "figures", "explanation.zarr", "run.json"}
WRITTEN_OF_CLIPS = {"clip.gif", "clip.mp4"}
WRITTEN_TOGETHER = {"report.html", "comparison.png", "run.json"}
DESKTOP = {".DS_Store", "Thumbs.db", "desktop.ini"}  # what file managers leave in any folder they show


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
        _check_place(place, folder)
        if place.is_dir():
            _check_contents(place, folder, overwrite)
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise _refusal(folder, f"its path cannot be used ({error})") from error
    return place


def _check_place(place: Path, folder: object) -> None:
    if place.exists() and not place.is_dir():
        raise _refusal(folder, "it is a file")
    if os.path.ismount(place):
        raise _refusal(
            folder, "a drive or mount point cannot be replaced in one go", f'a folder inside it ("{folder}/run")'
        )
    parent = next(parent for parent in place.parents if parent.exists())
    if not parent.is_dir():
        raise _refusal(folder, f'"{parent}" is a file, so no folder can be made in it')
    if not os.access(parent, os.W_OK | os.X_OK):
        raise _refusal(folder, f'you may not write in "{parent}"')


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


@contextmanager
def whole_folder(place: Path) -> Iterator[Path]:
    """Yield a new folder beside `place`; at the end it takes that name, and on any exception it is removed.

    Raises `InputError` if another run is writing to `place`, and `OutputError` for an error of the file system.
    """
    with claimed(place):
        temporary = place.with_name(f".{place.name}-{secrets.token_hex(4)}{PARTIAL}")
        try:
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


def _take_place(temporary: Path, place: Path) -> None:
    """Rename a folder; an earlier one is moved aside first, moved back if that fails, and removed at the end."""
    if not place.exists():
        os.rename(temporary, place)
        return
    aside = temporary.with_suffix(ASIDE)
    os.rename(place, aside)
    try:
        os.rename(temporary, place)
    except BaseException:
        os.rename(aside, place)
        raise
    try:
        shutil.rmtree(aside)
    except KeyboardInterrupt:  # the new results are in place; only the old ones are left to remove
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


def listed(names: Iterable[object], most: int = 5) -> str:
    """Return the first names in one line, or "nothing"."""
    words = [str(name) for name in names]
    if len(words) > most:
        words = [*words[:most], "..."]
    return ", ".join(words) or "nothing"


# Files.


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a path beside `path`, and rename it to `path` at the end; remove it on any exception.

    The suffix is that of `path`, as some libraries choose a format by it. Raises `OutputError` if it cannot be written.
    """
    beside = path.with_name(f".{secrets.token_hex(4)}-{path.name}")
    try:
        yield beside
        os.replace(beside, path)
    except OSError as error:
        raise OutputError(
            f'The file "{path}" could not be written: {error.strerror or error}. {_free_space(path.parent)}Nothing was '
            "left half-written. Free some space or give another folder."
        ) from error
    finally:
        beside.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all."""
    with whole_file(path) as beside:
        beside.write_bytes(content)
