"""Imports run one way, and the heavy ones late."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import denoscope

PACKAGE = Path(denoscope.__file__).parent

ROOMS = (
    "errors",
    "photographs",
    "schedules",
    "bundled",
    "noise",
    "hooks",
    "traces",
    "models",
    "frames",
    "preprocessing",
    "repositories",
    "incremental",
    "classifiers",
    "encoders",
    "targets",
    "attributors",
    "timing",
    "commitment",
    "evaluation",
    "figures",
    "measures",
    "page",
    "maps",
    "curves",
    "concepts",
    "doubts",
    "sheets",
    "report",
    "comparison",
    "juxtaposition",
    "strips",
    "explanations",
    "runs",
    "recognition",
    "variants",
    "ledgers",
    "leaderboard",
    "trials",
    "cli",
    "__main__",
)
"""A room imports itself and rooms above it."""

DOORS = {"bundled": {"models", "evaluation"}}
"""Rooms that only these may enter."""

FRONT = {"cli", "__main__"}
"""Who may import the public names, `denoscope` itself: for everyone else that is a way back up."""

LIGHT = {
    "comparison",
    "concepts",
    "curves",
    "doubts",
    "explanations",
    "figures",
    "juxtaposition",
    "leaderboard",
    "ledgers",
    "maps",
    "measures",
    "page",
    "report",
    "sheets",
    "strips",
}
"""They know arrays, not tensors."""

HEAVY = {"torch", "diffusers", "transformers", "matplotlib"}
TENSORS = {"torch", "diffusers", "transformers"}


def imported(source: str, package: str) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of each thing imported anywhere in a source, inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def wrong_imports(source: str, room: str, package: str = "denoscope") -> list[str]:
    """What one file of a room imports against the rule."""
    return [f"line {line}: {why}" for line, name in imported(source, package) if (why := wrong(room, name))]


def wrong(room: str, name: str) -> str | None:
    first, _, rest = name.partition(".")
    if first != "denoscope":
        return f"{room} imports {name}, and knows no tensors" if room in LIGHT and first in TENSORS else None
    goal = rest.partition(".")[0]
    if goal == room:
        return None
    if goal not in ROOMS:
        return None if room in FRONT else f"{room} imports {name}: neither a room of ROOMS nor a way down"
    if room not in DOORS.get(goal, {room}):
        return f"{room} imports {name}, which only {sorted(DOORS[goal])} may"
    return f"{room} imports {name}, back up" if ROOMS.index(goal) > ROOMS.index(room) else None


def files() -> Iterator[tuple[Path, str, str]]:
    """Each source file of the package with its room and the package it belongs to; the public front door is apart."""
    for path in sorted(PACKAGE.rglob("*.py")):
        inside = path.relative_to(PACKAGE)
        if str(inside) != "__init__.py":
            yield path, inside.with_suffix("").parts[0], ".".join(["denoscope", *inside.parent.parts])


def loaded_after(statement: str, *arguments: str) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded after a statement; it may end by leaving with 0."""
    script = f"""
import atexit, sys
atexit.register(lambda: print("LOADED", *sorted({{name.partition(".")[0] for name in sys.modules}})))
{statement}
"""
    ran = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    return set(ran.stdout.rpartition("LOADED ")[2].split())


def test_every_file_is_in_a_room():
    strangers = sorted({room for _, room, _ in files()} - set(ROOMS))
    assert not strangers, f"give {strangers} a place in ROOMS and in the design"


@pytest.mark.parametrize("path, room, package", [pytest.param(*f, id=str(f[0].relative_to(PACKAGE))) for f in files()])
def test_imports_run_one_way(path: Path, room: str, package: str):
    if room not in ROOMS:
        pytest.fail(f"{room} has no place in ROOMS")
    assert wrong_imports(path.read_text(encoding="utf-8"), room, package) == []


@pytest.mark.parametrize(
    "source, room, package",
    [
        ("from .traces import Trace", "hooks", "denoscope"),
        ("from . import cli", "errors", "denoscope"),
        ("import denoscope.report as r", "figures", "denoscope"),
        ("from denoscope.attributors.rise import DFRise", "targets", "denoscope"),
        ("from ..timing import onset", "attributors", "denoscope.attributors"),
        ("def late():\n    from .models import load", "hooks", "denoscope"),
        ("if TYPE_CHECKING:\n    from .models import Model", "hooks", "denoscope"),
        ("from .bundled import scenes", "targets", "denoscope"),
        ("from ..bundled.scenes import masks", "attributors", "denoscope.attributors"),
        ("from . import DFRise", "report", "denoscope"),
        ("import denoscope", "traces", "denoscope"),
        ("from denoscope import load", "timing", "denoscope"),
        ("from .utils import anything", "cli_helpers", "denoscope"),
        ("import torch.nn", "figures", "denoscope"),
        ("def late():\n    from torch import Tensor", "explanations", "denoscope"),
    ],
)
def test_the_rule_sees_a_wrong_import(source: str, room: str, package: str):
    assert len(wrong_imports(source, room, package)) == 1


@pytest.mark.parametrize(
    "source, room, package",
    [
        ("from .errors import DenoscopeError", "hooks", "denoscope"),
        ("from . import errors, hooks, traces", "models", "denoscope"),
        ("from .scenes import Scene", "bundled", "denoscope.bundled"),
        ("from ..bundled.scenes import masks", "evaluation", "denoscope.evaluation"),
        ("from .base import Attributor\nfrom ..targets import score", "attributors", "denoscope.attributors"),
        ("import torch", "hooks", "denoscope"),
        ("import numpy\nfrom matplotlib import pyplot", "figures", "denoscope"),
        ("from denoscope import load", "cli", "denoscope"),
        ("from denoscope.cli import main", "__main__", "denoscope"),
    ],
)
def test_the_rule_allows_a_right_import(source: str, room: str, package: str):
    assert wrong_imports(source, room, package) == []


def test_every_public_name_resolves():
    assert len(set(denoscope.__all__)) == len(denoscope.__all__) > 0
    for name in denoscope.__all__:
        assert getattr(denoscope, name) is not None
    assert set(denoscope.__all__) <= set(dir(denoscope))


def test_importing_the_package_is_light():
    assert loaded_after("import denoscope") & HEAVY == set()


@pytest.mark.parametrize("room", sorted(LIGHT))
def test_arrays_load_no_tensors(room: str):
    assert loaded_after(f"import denoscope.{room}") & TENSORS == set()


def test_help_is_light():
    code = "import sys; sys.argv[0] = 'denoscope'; from denoscope.cli import main; main()"
    assert loaded_after(code, "--help") & HEAVY == set()


def test_help_names_the_commands():
    ran = subprocess.run([sys.executable, "-m", "denoscope", "--help"], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert "demo" in ran.stdout and "explain" in ran.stdout
