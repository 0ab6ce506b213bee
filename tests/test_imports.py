"""Imports run one way, and the heavy ones late."""

import ast
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

import denoscope

PACKAGE = Path(denoscope.__file__).parent

ROOMS = (
    "errors",
    "files",
    "criteria",
    "figures",
    "recording",
    "report",
    "vision",
    "results",
    "targets",
    "attributors",
    "timing",
    "worlds",
    "evaluation",
    "commands",
    "cli",
    "__main__",
)
"""A room imports itself and rooms above it."""

FRONT = {"cli", "__main__"}
"""Who may import the public names, `denoscope` itself: for everyone else that is a way back up."""

LIGHT = {"criteria", "files", "figures", "report", "results"}
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
    return f"{room} imports {name}, back up" if ROOMS.index(goal) > ROOMS.index(room) else None


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Every way from a module back to itself that a depth-first walk meets."""
    closed: set[str] = set()
    found = []

    def visit(module: str, path: list[str]) -> None:
        for goal in sorted(graph.get(module, set()) - {module}):
            if goal in path:
                found.append([*path[path.index(goal) :], goal])
            elif goal not in closed:
                visit(goal, [*path, goal])
        closed.add(module)

    for module in sorted(graph):
        if module not in closed:
            visit(module, [module])
    return found


def module_graph() -> dict[str, set[str]]:
    """The modules of the package, each with the modules that it imports, inside functions too."""
    modules = {
        ".".join([package, path.stem]) if path.stem != "__init__" else package: (path, package)
        for path, _, package in files()
    }
    graph: dict[str, set[str]] = {}
    for module, (path, package) in modules.items():
        names = [name for _, name in imported(path.read_text(encoding="utf-8"), package)]
        graph[module] = {goal for name in names if (goal := _module_of(name, modules)) is not None}
    return graph


def _module_of(name: str, modules: Collection[str]) -> str | None:
    parent = name.rpartition(".")[0]
    return name if name in modules else parent if parent in modules else None


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


def test_imports_run_one_way():
    wrong = {
        str(path): wrong_imports(path.read_text(encoding="utf-8"), room, package) for path, room, package in files()
    }
    assert {path: lines for path, lines in wrong.items() if lines} == {}


def test_no_module_imports_itself_by_a_detour():
    graph = module_graph()
    assert "denoscope.recording.hooks.trees" in graph["denoscope.recording.traces"], "the graph is read"
    assert cycles(graph) == []


def test_a_cycle_is_seen():
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c", "a"]]
    assert cycles({"a": {"b", "c"}, "b": {"c"}}) == []


def test_the_rule_sees_a_wrong_import():
    for source, room, package in [
        ("from .traces import Trace\nfrom ..vision import frames", "recording", "denoscope.recording"),
        ("from . import cli", "errors", "denoscope"),
        ("import denoscope.report.run as r", "figures", "denoscope.figures"),
        ("from denoscope.attributors.rise import DFRise", "targets", "denoscope"),
        ("from ..timing import onset", "attributors", "denoscope.attributors"),
        ("def late():\n    from ...vision.frames import blend", "recording", "denoscope.recording.hooks"),
        ("if TYPE_CHECKING:\n    from ..commands.explain import Request", "report", "denoscope.report"),
        ("from ..worlds.shapes import scenes", "attributors", "denoscope.attributors"),
        ("from .. import DFRise", "report", "denoscope.report"),
        ("import denoscope", "recording", "denoscope.recording"),
        ("from denoscope import load", "timing", "denoscope.timing"),
        ("from .utils import anything", "cli_helpers", "denoscope"),
        ("import torch.nn", "figures", "denoscope.figures"),
        ("def late():\n    from torch import Tensor", "results", "denoscope.results"),
    ]:
        assert len(wrong_imports(source, room, package)) == 1, source


def test_the_rule_allows_a_right_import():
    for source, room, package in [
        ("from ..errors import DenoscopeError", "recording", "denoscope.recording"),
        ("from .hooks import calls", "recording", "denoscope.recording"),
        ("from .shapes.scenes import Scene", "worlds", "denoscope.worlds"),
        ("from ..worlds.shapes.scenes import masks", "evaluation", "denoscope.evaluation"),
        ("from .base import Attributor\nfrom ..targets import score", "attributors", "denoscope.attributors"),
        ("import torch", "recording", "denoscope.recording"),
        ("import numpy\nfrom matplotlib import pyplot", "figures", "denoscope.figures"),
        ("from denoscope import load", "cli", "denoscope"),
        ("from denoscope.cli import main", "__main__", "denoscope"),
    ]:
        assert wrong_imports(source, room, package) == [], source


def test_every_public_name_resolves():
    assert len(set(denoscope.__all__)) == len(denoscope.__all__) > 0
    for name in denoscope.__all__:
        assert getattr(denoscope, name) is not None
    assert set(denoscope.__all__) <= set(dir(denoscope))


def test_the_lists_of_public_names_are_one():
    """The imports for type checkers name the same things, from the same modules, as the table of lazy imports."""
    source = Path(denoscope.__file__).read_text(encoding="utf-8")
    (block,) = [node for node in ast.parse(source).body if isinstance(node, ast.If)]
    typed = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            assert alias.asname == alias.name, "an import that type checkers take for a public name"
            typed[alias.name] = node.module
    assert typed == denoscope._MODULE_OF and sorted(typed) == denoscope.__all__


def test_importing_the_package_is_light():
    assert loaded_after("import denoscope") & HEAVY == set()


def test_arrays_load_no_tensors():
    light = [".".join([package, path.stem]) for path, room, package in files() if room in LIGHT]
    assert len(light) > 20
    assert loaded_after(f"import {', '.join(light)}") & TENSORS == set()


def test_help_is_light():
    code = "import sys; sys.argv[0] = 'denoscope'; from denoscope.cli import main; main()"
    assert loaded_after(code, "--help") & HEAVY == set()


def test_help_names_the_commands():
    ran = subprocess.run([sys.executable, "-m", "denoscope", "--help"], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert "demo" in ran.stdout and "explain" in ran.stdout
