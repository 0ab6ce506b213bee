"""The claim on an output folder: two runs cannot write to one place at the same time."""

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from ..errors import InputError, OutputError

PARTIAL = ".partial"
"""The suffix of a folder that is being written."""
ASIDE = ".old"
"""The suffix of earlier results while new ones take their place."""

_claims: dict[Path, int] = {}
_claims_lock = threading.Lock()


@contextmanager
def claimed(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Claim an output folder, and yield its absolute path; the claim ends with the block, or with the process.

    The claim is a locked file beside the folder. The operating system unlocks it when its process ends, so a killed
    run leaves no claim. Partly written folders that a killed run left there are removed. In one thread a claim may be
    made again inside its block. Raises `InputError` if another run holds the claim, and `OutputError` if no file can
    be made beside the folder.
    """
    place = Path(folder).expanduser().resolve()
    if not place.name:
        raise InputError(
            f'The results cannot be written to "{folder}", the root of a file system. Give a folder in it.'
        )
    with _claims_lock:
        holder = _claims.get(place)
        if holder is None:
            _claims[place] = threading.get_ident()
    if holder == threading.get_ident():
        yield place
        return
    if holder is not None:
        raise _taken(folder)
    try:
        with _parents_of(place), _locked(place, folder) as is_locked:
            if is_locked:
                _remove_leftovers(place)
            yield place
    finally:
        with _claims_lock:
            del _claims[place]


@contextmanager
def _parents_of(place: Path) -> Iterator[None]:
    """Make the folders above a place; at the end remove those of them that are empty."""
    new_parents = [parent for parent in place.parents if not parent.exists()]
    try:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(place, error) from error
        yield
    finally:
        with suppress(OSError):  # a folder with something in it stays
            for parent in new_parents:
                parent.rmdir()


@contextmanager
def _locked(place: Path, folder: object) -> Iterator[bool]:
    """Hold the lock of a place; yield False where the file system has no locks."""
    path = place.with_name(f".{place.name}.claim")
    try:
        file = _open_locked(path, folder)
    except OSError as error:
        if place.is_dir() and os.access(place, os.W_OK):  # a folder that was handed over, in another one's
            yield False
            return
        raise _unwritable(place, error) from error
    try:
        yield file is not None
    finally:
        if file is not None:
            path.unlink(missing_ok=True)  # while it is locked, so that it cannot be another run's
            file.close()


def _open_locked(path: Path, folder: object) -> IO[bytes] | None:
    """Open and lock the claim file; None where the file system has no locks.

    Raises `InputError` if another run holds the lock.
    """
    while True:
        file = path.open("ab")
        try:
            _lock(file)
        except BlockingIOError:
            file.close()
            raise _taken(folder) from None
        except OSError:
            file.close()
            path.unlink(missing_ok=True)
            return None
        if _is_at(file, path):
            return file
        file.close()  # the run that held it removed it in between


def _is_at(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _lock(file: IO[bytes]) -> None:
    """Lock a file for this process; raises `BlockingIOError` if another has locked it."""
    try:
        import fcntl
    except ImportError:  # Windows
        _lock_on_windows(file)
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _lock_on_windows(file: IO[bytes]) -> None:
    import importlib

    msvcrt = importlib.import_module("msvcrt")
    try:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except OSError as error:
        raise BlockingIOError from error


def _remove_leftovers(place: Path) -> None:
    """Remove what a killed run left beside a place; whoever wrote it is gone, as the claim is ours.

    Earlier results that were moved aside for new ones are moved back if the place is empty.
    """
    start = f".{place.name}-"
    leftovers = []
    for path in place.parent.iterdir():
        token = path.name.removeprefix(start).removesuffix(path.suffix)
        if path.suffix in (PARTIAL, ASIDE) and path.name == f"{start}{token}{path.suffix}" and _is_token(token):
            leftovers.append(path)
    for path in leftovers:
        if path.suffix == ASIDE and not place.exists():
            os.rename(path, place)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _is_token(text: str) -> bool:
    """Return True for the eight hexadecimal digits in the name of a partly written folder."""
    return len(text) == 8 and set(text) <= set("0123456789abcdef")


def _taken(folder: object) -> InputError:
    return InputError(
        f'The results cannot be written to "{folder}": another run is writing there now. Give another folder, or wait '
        "until that run has ended."
    )


def _unwritable(place: Path, error: OSError) -> OutputError:
    return OutputError(
        f'The results cannot be written to "{place}": {error.strerror or error}. Give a folder that you may write to.'
    )
