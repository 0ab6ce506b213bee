"""Folders and files that appear whole or not at all."""

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import OutputError
from .claims import ASIDE, PARTIAL, claimed

DESKTOP = {".DS_Store", "Thumbs.db", "desktop.ini"}  # what file managers leave in any folder they show


def reason_against(place: Path) -> tuple[str, str | None] | None:
    """Return why no folder can be put in a place, and a remedy of its own or None; None where one can.

    `place` is absolute. A folder that is there already is no reason. Raises as the file system does.
    """
    if place.exists() and not place.is_dir():
        return "it is a file", None
    if os.path.ismount(place):
        return "a drive or mount point cannot be replaced in one go", "a folder inside it"
    parent = next(parent for parent in place.parents if parent.exists())
    if not parent.is_dir():
        return f'"{parent}" is a file, so no folder can be made in it', None
    if not os.access(parent, os.W_OK | os.X_OK):
        return f'you may not write in "{parent}"', None
    return None


def free_bytes_at(place: Path) -> int | None:
    """Return the bytes that are free where a file or folder is to be; None if the system does not say."""
    try:
        return shutil.disk_usage(next(parent for parent in place.parents if parent.exists())).free
    except (OSError, StopIteration):
        return None


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
    free = free_bytes_at(folder / "new")
    return "" if free is None else f"{free / 2**20:.0f} MB are free there. "


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
