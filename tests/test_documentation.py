"""The examples run: docstrings, the Python of README and docs, and the command lines, which are read and not run.

A block of a document that cannot be run has a comment in front of it, `<!-- not run: reason -->`."""

import doctest
import importlib
import inspect
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot
import pytest
import typer
from places import ROOT

from denoscope import cli

# Docstrings.

PACKAGE = ROOT / "src" / "denoscope"
WITH_EXAMPLES = [path for path in sorted(PACKAGE.rglob("*.py")) if ">>> " in path.read_text(encoding="utf-8")]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


class Finder(doctest.DocTestFinder):
    """Finds examples of decorated functions too: their wrappers come from other modules."""

    def _from_module(self, module: Any, owner: Any) -> bool:
        return super()._from_module(module, inspect.unwrap(owner) if callable(owner) else owner)


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_docstrings(path, example_names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    module, runner, report = importlib.import_module(name), doctest.DocTestRunner(optionflags=FLAGS), []
    tests = Finder().find(module, name, extraglobs=example_names)
    for test in tests:
        runner.run(test, out=report.append)
    assert not runner.summarize(verbose=False).failed, "".join(report)
    lines = path.read_text(encoding="utf-8").count(">>> ")
    assert sum(len(test.examples) for test in tests) == lines, "an example stands where doctest does not look"


# Documents.

BLOCK = re.compile(r"(?:<!-- not run: (?P<reason>[^>]+) -->\s*)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@dataclass(frozen=True)
class Block:
    """A fenced block of a document, with the number of its first line."""

    document: Path
    line: int
    language: str
    text: str
    reason: str | None

    @property
    def commands(self) -> list[str]:
        """The command lines of a block, continued lines joined."""
        return [line for line in self.text.replace("\\\n", " ").splitlines() if line.strip()]


def blocks_of(document: Path) -> Iterator[Block]:
    text = document.read_text(encoding="utf-8")
    for match in BLOCK.finditer(text):
        line = 1 + text[: match.start("text")].count("\n")
        yield Block(document, line, match["language"], match["text"], match["reason"])


BLOCKS = [block for document in DOCUMENTS for block in blocks_of(document)]
PYTHON = [document for document in DOCUMENTS if any(block.language == "python" for block in blocks_of(document))]
SHELL = [block for block in BLOCKS if block.language in ("", "sh", "bash", "shell", "console")]
INLINE = re.compile(r"`((?:denoscope|python|make) [^`]+)`")


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
@pytest.mark.parametrize("document", PYTHON, ids=lambda document: document.name)
def test_python_of_a_document(document, tmp_path, monkeypatch):
    """As a reader would: files made as the shell blocks say, then block after block in one session."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks_of(document):
        if block.reason is not None:
            continue
        if block.language == "python":
            lines = "\n" * (block.line - 1) + block.text  # a failure has the document's line
            exec(compile(lines, str(document), "exec"), namespace)
        for command in block.commands if block in SHELL else []:
            if command.startswith("python -c "):
                subprocess.run([sys.executable, *shlex.split(command, comments=True)[1:]], check=True)
    matplotlib.pyplot.close("all")


# Command lines.

LINES = [(block.document, command) for block in SHELL if block.reason is None for command in block.commands]
LINES += [
    (document, " ".join(match[1].split()))
    for document in DOCUMENTS
    for match in INLINE.finditer(BLOCK.sub("", document.read_text(encoding="utf-8")))
]


@pytest.mark.parametrize(("document", "line"), LINES, ids=[f"{path.name}: {line[:60]}" for path, line in LINES])
def test_command_lines(document, line):
    program, *words = shlex.split(line, comments=True)
    assert program in READERS, f"{document.name} has a command line that nothing here reads: {line}"
    READERS[program](words)


def read_denoscope(words: list[str]) -> None:
    """Parse the options as the command line does, without running the command."""
    program: Any = typer.main.get_command(cli.app)
    with program.make_context("denoscope", list(words), resilient_parsing=False) as context:
        name, command, rest = program.resolve_command(context, words)
        command.make_context(name, rest, parent=context).close()


def read_python(words: list[str]) -> None:
    """A script that is there and has the options, or the package's own command."""
    if words[:2] == ["-m", "denoscope"]:
        read_denoscope(words[2:])
    elif words[0] == "-c":
        compile(words[1], "-c", "exec")
    else:
        text = (ROOT / words[0]).read_text(encoding="utf-8")
        if "benchmark_parser(" in text:
            text += (ROOT / "benchmarks" / "work.py").read_text(encoding="utf-8")
        for option in [word for word in words[1:] if word.startswith("--")]:
            assert f'"{option}"' in text, f"{words[0]} has no option {option}"


def read_make(words: list[str]) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert set(words) <= set(targets)


def read_pip(words: list[str]) -> None:
    """An installation, with extras that the package has."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for extra in re.findall(r"\[(\w+)\]", " ".join(words)):
        assert re.search(rf"^{extra} = \[", project, re.M), f"there is no extra {extra}"


READERS: dict[str, Callable[[list[str]], None]] = {
    "denoscope": read_denoscope,
    "python": read_python,
    "make": read_make,
    "pip": read_pip,
}


def test_an_unknown_option_of_a_command_line_is_found():
    with pytest.raises(cli.UsageError, match="--nonsense"):
        read_denoscope(["explain", "a red circle", "--nonsense", "3"])
    with pytest.raises(cli.UsageError):
        read_denoscope(["explain", "a red circle", "--seed", "none"])


def test_documents_have_the_blocks_that_these_tests_read():
    languages = {block.language for block in BLOCKS}
    assert languages <= {"python", "", "sh", "bash", "shell", "console", "text"}, "a block in a language nobody reads"
    fences = sum(text.count("```") for text in (document.read_text(encoding="utf-8") for document in DOCUMENTS))
    assert fences == 2 * len(BLOCKS), "a fence that is not closed, or not at the start of a line"
