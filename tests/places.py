"""Folders that tests read: the checkout, and the shared data beside it, which may be absent."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


def shared(*names: str) -> Path:
    """A file or folder of the shared data; skips the test where it is absent."""
    path = SHARED.joinpath(*names)
    if not path.exists():
        pytest.skip(f"{'/'.join(names)} of the shared data is not there")
    return path
