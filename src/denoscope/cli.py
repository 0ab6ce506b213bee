"""The command line: parse, call, print. Heavy imports wait until a command needs them."""

import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from . import __version__
from .errors import DenoscopeError, InputError, Interrupted

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="See how a diffusion model makes a picture, step by step, and how far the explanation can be trusted.",
)

UsageError: Any = typer.BadParameter.__mro__[1]  # Click's; whether Click stands alone or inside Typer is Typer's affair
DEMO = dict(prompt="a large dotted yellow square on a pink background", seed=8, guidance=3.0)
Out = Annotated[Path, typer.Option("--out", help="Folder for the report, the pictures and the arrays.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in that folder.")]
Masks = Annotated[int, typer.Option("--masks", help="Masks per step for DF-RISE.")]


def main() -> None:
    """Run the command line: exit status 2 for bad input, 1 for a failure while working."""
    words = [word for word in sys.argv[1:] if word != "--debug"]
    if len(words) < len(sys.argv) - 1:
        sys.exit(app(words, standalone_mode=False))
    sys.exit(_run(words))


def _run(words: Sequence[str]) -> int:
    """The exit status of a command, every failure told in one paragraph."""
    try:
        return app(words, standalone_mode=False) or 0
    except UsageError as error:
        return _fail(f"{_sentence(error.format_message())} Given: {shlex.join(words)}. {_more_help(error)}", 2)
    except DenoscopeError as error:
        return _fail(str(error), 2 if isinstance(error, InputError) else 1)
    except Exception as error:  # a mistake of ours or of a library: still one paragraph, and --debug shows all
        what = " ".join(f"{type(error).__name__}: {error}".split())
        return _fail(f"This failed in a way that was not foreseen: {_sentence(what)} --debug shows where.", 1)


def _fail(message: str, status: int) -> int:
    typer.echo(f"denoscope: {message}", err=True)
    return status


def _sentence(text: str) -> str:
    """One line that ends like a sentence."""
    text = " ".join(text.split())
    return text if text.endswith((".", "?", "!")) else f"{text}."


def _more_help(error: Any) -> str:
    command = "denoscope" if error.ctx is None or error.ctx.parent is None else f"denoscope {error.ctx.info_name}"
    return f"What is allowed: {command} --help."


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"denoscope {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True, epilog="--debug before or after a command shows the traceback of an error.")
def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def demo(out: Out = Path("denoscope-demo"), overwrite: Overwrite = False, masks: Masks = 200) -> None:
    """The main job on the bundled model: generate, record, explain with DF-RISE, write a report."""
    _explain(dict(**DEMO, masks=masks), out, overwrite)


@app.command()
def explain(
    prompt: Annotated[
        str | None, typer.Argument(help="What the picture should show; none for models without text.")
    ] = None,
    model: Annotated[str, typer.Option(help="Bundled name, hub id or folder.")] = "shapes",
    seed: Annotated[int, typer.Option(help="Seed of the picture.")] = 0,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 30,
    schedule: Annotated[str, typer.Option(help="uniform, early or late.")] = "uniform",
    shift: Annotated[float | None, typer.Option(help="Shift of an early or late schedule; 60 if left out.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale w; the pipeline's own if left out.")] = None,
    height: Annotated[int | None, typer.Option(help="Height of the picture in pixels.")] = None,
    width: Annotated[int | None, typer.Option(help="Width of the picture in pixels.")] = None,
    at: Annotated[str | None, typer.Option(help="Steps to explain, from 0, as in 2,8,16,28, or all.")] = None,
    methods: Annotated[str, typer.Option(help="Methods, separated by commas.")] = "df-rise-contrast,df-rise",
    masks: Masks = 500,
    until: Annotated[float | None, typer.Option(help="Stop at this reliability (0 to 1) if reached before.")] = None,
    device: Annotated[str | None, typer.Option(help="Device, such as cpu, cuda or mps.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16.")] = None,
    out: Out = Path("denoscope-out"),
    overwrite: Overwrite = False,
) -> None:
    """Generate a picture, record every step, explain the steps and write a report."""
    asked = dict(
        prompt=prompt,
        model=model,
        seed=seed,
        steps=steps,
        schedule=schedule,
        shift=shift,
        guidance=guidance,
        height=height,
        width=width,
        at=_steps(at),
        methods=tuple(name.strip() for name in methods.split(",") if name.strip()),
        masks=masks,
        until=until,
        device=device,
        dtype=dtype,
    )
    _explain(asked, out, overwrite)


def _steps(at: str | None) -> tuple[int, ...] | str | None:
    if at is None or at.strip() == "all":
        return at and at.strip()
    try:
        return tuple(int(word) for word in at.split(","))
    except ValueError:
        raise InputError(f'--at is "{at}". Give step numbers separated by commas, such as 2,8,16,28, or all.') from None


def _explain(asked: dict[str, Any], out: Path, overwrite: bool) -> None:
    """Check what can be checked, then load, explain, save and say where the report is."""
    try:
        explanation, folder = _saved(asked, out, overwrite)
    except KeyboardInterrupt:
        raise Interrupted("Interrupted before the results were saved; nothing was written.") from None
    _tell(explanation, folder)


def _saved(asked: dict[str, Any], out: Path, overwrite: bool) -> tuple[Any, Path]:
    from .explanations import check_output

    check_output(out, overwrite)
    typer.echo(f"Loading {asked.get('model', 'the bundled model')}", err=True)
    with _quiet():
        from . import runs
        from .models import load

        request = runs.Request(**asked)
        request.attributors()
        model = load(request.model, device=request.device, dtype=request.dtype)
        model.pipeline.set_progress_bar_config(disable=True)
        with _progress() as watch:
            explanation = runs.explain(model, request, watch)
        typer.echo(f"Writing {out}", err=True)
        return explanation, explanation.save(out, overwrite)


@contextmanager
def _quiet() -> Iterator[None]:
    """Other libraries' notices stay silent, except the bars of a download; our own warnings are one line each."""
    from .models import quiet_libraries

    with quiet_libraries(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", category=UserWarning, module=r"denoscope\.")
        # Not typer.echo: it goes past the stream that keeps lines and bars apart.
        warnings.showwarning = lambda message, *_, **__: print(f"denoscope: warning: {message}", file=sys.stderr)
        yield


@contextmanager
def _progress() -> Iterator[Callable[[str, int], Callable[[int], None]]]:
    """Bars with the time left: one for the picture, one per method."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as progress:

        def watch(title: str, total: int) -> Callable[[int], None]:
            task = progress.add_task(title, total=total or None)
            return lambda done: progress.advance(task, done)

        yield watch


def _tell(explanation: Any, folder: Path) -> None:
    """What was explained, how reliable it is, and where the report is; a partial run exits with status 1."""
    for name, maps in explanation.methods().items():
        typer.echo(f"{maps.attrs.get('title', name)}: {_reliabilities(maps)}")
    if explanation.run["interrupted"]:
        typer.echo("Interrupted: what was finished is kept.", err=True)
    typer.echo(f"Report: {folder / 'report.html'}")
    if explanation.run["interrupted"]:
        raise typer.Exit(1)


def _reliabilities(maps: Any) -> str:
    places = [f"step {int(step)} (t {float(time):g})" for step, time in zip(maps.step, maps.timestep, strict=True)]
    if "reliability" not in maps:
        return ", ".join(places)
    values = [f"{float(value):.2f}" for value in maps.reliability]
    return "reliability at " + ", ".join(f"{place} {value}" for place, value in zip(places, values, strict=True))
