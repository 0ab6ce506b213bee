"""The terminal: tables, bars, and messages that speak of options."""

import re
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from ..results.tables import Table
    from .job import Result, Watch

PYTHON_NAMES = {
    "num_masks": "masks",
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "labels": "label",
}
"""Names of arguments in Python whose options have another name."""
NEEDED_LATER = (
    "denoscope.figures.methods",
    "denoscope.report.run",
    "zarr",
    "scipy.stats",
    "denoscope.evaluation.diagnosis",
)
"""Modules that no job needs before its last part, and that take long to import, with all that they import."""


def with_options(message: str, command: Any) -> str:
    """Return a message with options in the place of Python's arguments.

    Messages name an argument as `NAME is VALUE` at their start, as `option "NAME"`, and as `NAME=VALUE` in advice.
    `command` is Click's.
    """
    options: dict[str, str] = {}
    for parameter in command.params:
        if parameter.param_type_name == "option":
            options[parameter.name] = parameter.opts[0]
    for name, own in PYTHON_NAMES.items():
        if own in options:
            options.setdefault(name, options[own])

    def advice(match: re.Match[str]) -> str:
        option = options.get(match["name"])
        if option is None:
            return match[0]
        if match["list"] is not None:
            return " ".join(f"{option} {value.strip()}" for value in match["list"].split(","))
        return option if match["value"] == "True" else f"{option} {match['value']}"

    start = re.match(r"(\w+) is ", message)
    if start and start[1] in options:
        message = f"{options[start[1]]}{message[start.end(1) :]}"
    message = re.sub(r'option "(\w+)"', lambda match: f'option "{options.get(match[1], match[1])}"', message)
    value = r"\[(?P<list>[^]]*)\]|(?:torch\.)?(?P<value>'[^']*'|\w+(?:\.\w+)*)"
    return re.sub(rf'(?<![\w("])(?P<name>\w+)=(?:{value})', advice, message)


def more_help(error: Any) -> str:
    """Return a sentence that names the help of the command that an error of Click's comes from."""
    command = "denoscope" if error.ctx is None or error.ctx.parent is None else f"denoscope {error.ctx.info_name}"
    return f"For the options: {command} --help."


def print_result(result: "Result", folder: Path) -> None:
    """Print a result, and where its report is; failures and an interruption are the exit status 1."""
    print_table(result.rows())
    for name, why in result.failures.items():
        typer.echo(f"denoscope: {name}: {why}", err=True)
    if result.interruption:
        typer.echo(f"denoscope: {result.interruption}", err=True)
    typer.echo(f"Report: {folder / 'report.html'}")
    if result.interrupted or result.failures:
        raise typer.Exit(1)


def print_table(table: "Table") -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table as Grid

    if table.head:
        tall = any("\n" in cell for row in table.rows for cell in row)
        grid = Grid(*table.head, title=table.title, box=box.SIMPLE_HEAD, show_lines=tall)
        grid.columns[0].no_wrap = True
        for row in table.rows:
            grid.add_row(*row)
        Console().print(grid)
    else:
        for first, *others in table.rows:
            typer.echo(f"{first}: {' '.join(others)}")
    for note in table.notes:
        typer.echo(note)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence other libraries, except the bars of a download; print our own warnings as one line each."""
    from ..recording.loading import quiet_libraries

    with quiet_libraries(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", category=UserWarning, module=r"denoscope\.")
        # Not typer.echo: it goes past the stream that keeps lines and bars apart.
        warnings.showwarning = lambda message, *_, **__: print(f"denoscope: warning: {message}", file=sys.stderr)
        yield


def importing_beside(watch: "Watch") -> "Watch":
    """Return a watch that starts to import, in a thread, the packages that results are written with.

    It starts with the first part of the work, when the model is loaded: from there on the work is arithmetic, which
    leaves room for imports beside it. What fails to import fails again, and is reported, where it is needed.
    """
    importer = ThreadPoolExecutor(1)
    started = False

    def watching(title: str, total: int) -> Callable[[int], None]:
        nonlocal started
        if not started:
            started = True
            for module in NEEDED_LATER:
                importer.submit(import_module, module)
            importer.shutdown(wait=False)
        return watch(title, total)

    return watching


@contextmanager
def progress_bars() -> Iterator["Watch"]:
    """Show a bar with the time left for each part of the work."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as progress:

        def watch(title: str, total: int) -> Callable[[int], None]:
            task = progress.add_task(title, total=total or None)
            return lambda done: progress.advance(task, done)

        yield watch
