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
from .errors import DenoscopeError, InputError, Interrupted, sentence

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
METHODS = (
    "df-cam, df-cam-reference, df-rise, df-rise-contrast, df-rise-reference, "
    "lime, relevance, relevance-reference, words"
)
OF_CLASS = "integrated-gradients, gradient-shap, occlusion"
Scheduler = Annotated[
    str | None, typer.Option("--scheduler", help="Swap the pipeline's scheduler, as in dpm-solver++, ddpm or euler.")
]
Device = Annotated[str | None, typer.Option("--device", help="Device, such as cpu, cuda or mps.")]
Dtype = Annotated[str | None, typer.Option("--dtype", help="float32, float16 or bfloat16.")]


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
        return _fail(f"{sentence(error.format_message())} Given: {shlex.join(words)}. {_more_help(error)}", 2)
    except DenoscopeError as error:
        return _fail(str(error), 2 if isinstance(error, InputError) else 1)
    except Exception as error:  # a mistake of ours or of a library: still one paragraph, and --debug shows all
        what = " ".join(f"{type(error).__name__}: {error}".split())
        return _fail(f"This failed in a way that was not foreseen: {sentence(what)} --debug shows where.", 1)


def _fail(message: str, status: int) -> int:
    typer.echo(f"denoscope: {message}", err=True)
    return status


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
def demo(out: Out = Path("denoscope-demo"), overwrite: Overwrite = False, masks: Masks = 256) -> None:
    """The main job on the bundled model: generate, record, explain with DF-RISE, write a report."""
    _explain(dict(**DEMO, masks=masks), out, overwrite)


@app.command()
def explain(
    context: typer.Context,
    prompt: Annotated[
        str | None, typer.Argument(help="What the picture should show; none for models without text.")
    ] = None,
    model: Annotated[str, typer.Option(help="Bundled name, hub id or folder.")] = "shapes",
    seed: Annotated[int, typer.Option(help="Seed of the picture.")] = 0,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 30,
    schedule: Annotated[
        str, typer.Option(help="uniform, early, late, band:600, or time steps such as 999,800,600.")
    ] = "uniform",
    shift: Annotated[float | None, typer.Option(help="Shift of an early or late schedule; 60 if left out.")] = None,
    scheduler: Scheduler = None,
    lora: Annotated[str | None, typer.Option(help="LoRA: a folder or hub id, safetensors.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale w; the pipeline's own if left out.")] = None,
    height: Annotated[int | None, typer.Option(help="Height of the picture in pixels.")] = None,
    width: Annotated[int | None, typer.Option(help="Width of the picture in pixels.")] = None,
    at: Annotated[str | None, typer.Option(help="Steps to explain, from 0, as in 2,8,16,28, or all.")] = None,
    methods: Annotated[str, typer.Option(help=f"Of {METHODS}.")] = "df-rise-contrast,df-rise",
    masks: Masks = 500,
    until: Annotated[float | None, typer.Option(help="Stop at this reliability (0 to 1) if reached before.")] = None,
    device: Device = None,
    dtype: Dtype = None,
    out: Out = Path("denoscope-out"),
    overwrite: Overwrite = False,
) -> None:
    """Generate a picture, record every step, explain the steps and write a report."""
    asked = _without(context, "out", "overwrite") | dict(at=_steps(at), methods=_names(methods))
    _explain(asked, out, overwrite)


@app.command()
def compare(
    context: typer.Context,
    prompt: Annotated[
        str | None, typer.Argument(help="What the pictures should show; none for models without text.")
    ] = None,
    schedules: Annotated[
        str | None, typer.Option(help="What varies unless something else is named: uniform,early,late, or band:600.")
    ] = None,
    shifts: Annotated[str | None, typer.Option(help="Shifts of --schedule early or late, as in 10,30,60,120.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds, as in 0,1,2.")] = None,
    guidances: Annotated[str | None, typer.Option(help="Guidance scales, as in 1,3,7.5.")] = None,
    schedulers: Annotated[str | None, typer.Option(help="Schedulers, as in dpm-solver++,ddpm,euler.")] = None,
    models: Annotated[str | None, typer.Option(help="Models: bundled names, hub ids or folders.")] = None,
    lora: Annotated[str | None, typer.Option(help="With and without this LoRA: a folder or hub id.")] = None,
    model: Annotated[str | None, typer.Option(help="Bundled name, hub id or folder; shapes if left out.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the pictures; 0 if left out.")] = None,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 30,
    schedule: Annotated[str | None, typer.Option(help="Schedule of all variants; uniform if left out.")] = None,
    shift: Annotated[float | None, typer.Option(help="Shift of the early and late schedules; 60 if left out.")] = None,
    scheduler: Scheduler = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale w; the pipeline's own if left out.")] = None,
    height: Annotated[int | None, typer.Option(help="Height of the pictures in pixels.")] = None,
    width: Annotated[int | None, typer.Option(help="Width of the pictures in pixels.")] = None,
    at: Annotated[str | None, typer.Option(help="Steps to explain, from 0, as in 2,8,16,28, or all.")] = None,
    methods: Annotated[str | None, typer.Option(help=f"Of {METHODS}; relevance if left out.")] = None,
    masks: Masks = 500,
    label: Annotated[
        list[str] | None, typer.Option(help="A text that every picture is rated by. Give at least two.")
    ] = None,
    classifier: Annotated[str, typer.Option(help="For --label: shapes (bundled), a hub id or folder.")] = "shapes",
    encoder: Annotated[
        str | None, typer.Option(help="What measures how far apart pictures are: a hub id or folder of a vision model.")
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    out: Out = Path("denoscope-out"),
    overwrite: Overwrite = False,
) -> None:
    """The same picture several ways, side by side: schedules, shifts, seeds, guidances, schedulers or models."""
    asked = _without(context, "label", "classifier", "encoder", "out", "overwrite")
    asked |= dict(at=_steps(at), methods=None if methods is None else _names(methods))
    rating = dict(labels=tuple(label or ()), classifier=classifier, encoder=encoder)
    _kept(lambda: _compared(asked, rating, out, overwrite))


def _compared(asked: dict[str, Any], rating: dict[str, Any], out: Path, overwrite: bool) -> None:
    """Check what can be checked, then record and explain every variant, save and tell."""
    from .results.explanations import save_variants
    from .results.folders import check_output

    check_output(out, overwrite)
    with _quiet():
        from .commands import compare

        comparison = compare.Comparison.of(asked, **rating)
        typer.echo(f"Comparing {', '.join(comparison.titles())}", err=True)
        with _progress() as watch:
            found = compare.compare(comparison, watch=watch)
        typer.echo(f"Writing {out}", err=True)
        run = compare.record(comparison, found)
        folder = save_variants(found.explanations, run, out, overwrite)
    _tell_compared(run, folder)


def _tell_compared(run: dict[str, Any], folder: Path) -> None:
    """Where each variant's steps are, what changed, and where the report is; what failed exits with status 1."""
    from rich.console import Console
    from rich.table import Table

    bands = next(iter(run["variants"].values()))["coverage"]
    table = Table("variant", "steps", *bands, title="Share of the steps in each band of noise")
    for told in run["variants"].values():
        shares = [f"{100 * share:.0f} %" for share in told["coverage"].values()]
        table.add_row(told["title"], str(len(told["timesteps"])), *shares)
    Console().print(table)
    for fact in run["facts"]:
        if fact["changed"]:
            said = ", ".join(f"{run['variants'][name]['title']} {value}" for name, value in fact["values"].items())
            typer.echo(f"{fact['name']}: {said}")
    for name, why in run["failures"].items():
        typer.echo(f"denoscope: {name}: {why}", err=True)
    if run["interrupted"]:
        typer.echo(f"denoscope: {run['interruption']}", err=True)
    typer.echo(f"Report: {folder / 'report.html'}")
    if run["interrupted"] or run["failures"]:
        raise typer.Exit(1)


@app.command()
def recognise(
    context: typer.Context,
    photos: Annotated[list[str] | None, typer.Argument(metavar="PHOTO...", help="Files of photographs.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="A label to follow, by name or number; a text for CLIP. May be repeated.")
    ] = None,
    classifier: Annotated[
        str, typer.Option(help="imagenet (offline), shapes (the bundled CLIP), a hub id or a folder.")
    ] = "imagenet",
    frames: Annotated[int | None, typer.Option(help="Frames from pure noise to clean; 100 if left out.")] = None,
    noising: Annotated[str | None, typer.Option(help="blend (the study's, if left out) or ddpm.")] = None,
    beta_schedule: Annotated[
        str, typer.Option(help="For ddpm: linear, scaled_linear or squaredcos_cap_v2.")
    ] = "linear",
    draws: Annotated[int, typer.Option(help="Noises per photograph, for the likelihood's intervals.")] = 5,
    map_draws: Annotated[int, typer.Option(help="How many of them are attributed.")] = 1,
    at: Annotated[
        str | None, typer.Option(help="Frames to attribute, from 0, as in 30,50,90, or all; else ten that tell most.")
    ] = None,
    methods: Annotated[str | None, typer.Option(help=f"{OF_CLASS}, all if left out.")] = None,
    n_steps: Annotated[
        int | None, typer.Option(help="Points on the path of Integrated Gradients; 50 if left out.")
    ] = None,
    mask: Annotated[
        list[str] | None, typer.Option(help="A picture that is bright where the object is, one for each photograph.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="study: the published settings, every frame attributed.")] = None,
    trace: Annotated[str | None, typer.Option(help="A prompt: look at its generation instead of photographs.")] = None,
    model: Annotated[str, typer.Option(help="For --trace: bundled name, hub id or folder.")] = "shapes",
    steps: Annotated[int, typer.Option(help="For --trace: denoising steps.")] = 30,
    guidance: Annotated[float | None, typer.Option(help="For --trace: guidance scale w.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the noise, or of the generated picture.")] = 0,
    device: Device = None,
    dtype: Dtype = None,
    out: Out = Path("denoscope-out"),
    overwrite: Overwrite = False,
) -> None:
    """When does a classifier recognise the picture, and by what? Photographs noised forward, or a generation."""
    named = dict(photographs=tuple(photos or ()), labels=tuple(label or ()), masks=tuple(mask or ()), at=_steps(at))
    made = dict(prompt=trace, model=model, seed=seed, steps=steps, guidance=guidance, device=device, dtype=dtype)
    asked = _without(
        context, "photos", "label", "mask", "preset", "trace", "model", "steps", "guidance", "out", "overwrite"
    )
    asked |= named | dict(methods=None if methods is None else _names(methods))
    _kept(lambda: _recognised(preset, asked, None if trace is None else made, out, overwrite))


def _recognised(
    preset: str | None, asked: dict[str, Any], made: dict[str, Any] | None, out: Path, overwrite: bool
) -> None:
    """Check what can be checked, then load, look, save and tell."""
    from .results.explanations import save_together
    from .results.folders import check_output

    check_output(out, overwrite)
    with _quiet():
        from .commands import explain, recognise
        from .recording.models import load

        study = recognise.Study.of(preset, **asked, trace=None if made is None else explain.Request(**made))
        typer.echo(f"Loading {study.classifier}{f' and {study.trace.model}' if study.trace else ''}", err=True)
        model = load(study.trace.model, device=study.device, dtype=study.dtype) if study.trace else None
        if model is not None:
            model.pipeline.set_progress_bar_config(disable=True)
        with _progress() as watch:
            found = recognise.recognise(study, model=model, watch=watch)
        typer.echo(f"Writing {out}", err=True)
        run = recognise.record(study, found)
        if len(study.photographs) > 1:
            folder = save_together(found.explanations, run, out, overwrite)
        else:
            folder = next(iter(found.explanations.values())).save(out, overwrite)
    _tell_recognised(run, folder)


def _tell_recognised(run: dict[str, Any], folder: Path) -> None:
    """When each label was recognised, in frames, and where the report is; what failed exits with status 1."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    picture, label, *moments = run["columns"]
    table = Table(f"{picture}\n{label}", title="Frame at which a likelihood is reached", box=box.SIMPLE_HEAD)
    for moment in moments:
        table.add_column(moment, no_wrap=True)
    table.caption = "median, and below it the interval that holds at least 90 % of the draws"
    for name, text, *cells in run["table"]:
        table.add_row(f"{name}\n{text}\n", *map(_on_two_lines, cells))
    Console().print(table)
    for name, why in run["failures"].items():
        typer.echo(f"denoscope: {name}: {why}", err=True)
    if run["interrupted"]:
        typer.echo("Interrupted: what was finished is kept.", err=True)
    typer.echo(f"Report: {folder / 'report.html'}")
    if run["interrupted"] or run["failures"]:
        raise typer.Exit(1)


def _on_two_lines(cell: str) -> str:
    """
    >>> _on_two_lines("51.0 [46.2, never]")
    '51.0\\n46.2–never'
    """
    return cell.replace(" [", "\n").replace(", ", "–").rstrip("]")


@app.command()
def evaluate(
    model: Annotated[str, typer.Option(help="Bundled name, hub id or folder.")] = "shapes",
    scenes: Annotated[int | None, typer.Option(help="Pictures to measure; 50, or every prompt, if left out.")] = None,
    prompts: Annotated[
        str | None, typer.Option(help="For other models: a file, a prompt a line, or NAME, PROMPT and PHRASE by tabs.")
    ] = None,
    masks: Annotated[
        str | None, typer.Option(help="Folder of pictures, bright where the object is, named after the prompts' lines.")
    ] = None,
    methods: Annotated[str | None, typer.Option(help=f"Of {METHODS}, {OF_CLASS}; all if left out.")] = None,
    checks: Annotated[
        str | None,
        typer.Option(help="localisation, games, infidelity, resampling, stability, sanity: all if none; or attacks."),
    ] = None,
    at: Annotated[str | None, typer.Option(help="Steps to explain, from 0, as in 6,15,24.")] = None,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 30,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale w; 3 for shapes, else the pipeline's.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the pictures of --prompts.")] = 0,
    num_masks: Annotated[int, typer.Option(help="Masks per step of DF-RISE, samples of LIME.")] = 256,
    encoder: Annotated[
        str | None, typer.Option(help="What measures the games of other models: a hub id or folder of a vision model.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Pictures side by side; one a processor if left out.")] = None,
    device: Device = None,
    dtype: Dtype = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of the results; work in it is continued.")] = Path(
        "denoscope-evaluation"
    ),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew what is in that folder.")] = False,
) -> None:
    """Which explanation is true? Every method on many pictures, against what is known: a leaderboard."""
    try:
        _evaluate(
            dict(
                model=model,
                scenes=scenes,
                prompts=prompts,
                masks=masks,
                methods=None if methods is None else _names(methods),
                checks=None if checks is None else _names(checks),
                at=_steps(at),
                steps=steps,
                guidance=guidance,
                seed=seed,
                num_masks=num_masks,
                encoder=encoder,
                device=device,
                dtype=dtype,
            ),
            workers,
            out,
            overwrite,
        )
    except KeyboardInterrupt:
        raise Interrupted(f"Interrupted: the pictures finished are kept in {out}. The same command goes on.") from None


def _evaluate(settings: dict[str, Any], workers: int | None, out: Path, overwrite: bool) -> None:
    """Run an evaluation, save it and print its table; a failure exits with status 1."""
    from .commands.evaluate import Evaluation

    evaluation = Evaluation(**settings)
    with _quiet():
        with _progress() as watch:
            result = evaluation.run(watch, folder=out, workers=workers, overwrite=overwrite)
        typer.echo(f"Writing {out}", err=True)
        folder = result.save(out)
    _print_evaluation(result, folder)


def _print_evaluation(result: Any, folder: Path) -> None:
    """Print the short leaderboard and the place of the report; a failure exits with status 1."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    short = result.rows()
    table = Table(*short.head, title=short.title, box=box.SIMPLE_HEAD, show_lines=True)
    for row in short.rows:
        table.add_row(*row)
    table.caption = "; ".join(short.notes)
    Console().print(table)
    for name, reason in result.failures.items():
        typer.echo(f"denoscope: {name}: {reason}", err=True)
    typer.echo(f"Report: {folder / 'report.html'}")
    if result.failures:
        raise typer.Exit(1)


def _without(context: typer.Context, *names: str) -> dict[str, Any]:
    """What a command was given, by the names of its parameters, but for some."""
    return {name: value for name, value in context.params.items() if name not in names}


def _names(methods: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in methods.split(",") if name.strip())


def _steps(at: str | None) -> tuple[int, ...] | str | None:
    if at is None or at.strip() == "all":
        return at and at.strip()
    try:
        return tuple(int(word) for word in at.split(","))
    except ValueError:
        raise InputError(f'--at is "{at}". Give step numbers separated by commas, such as 2,8,16,28, or all.') from None


def _explain(asked: dict[str, Any], out: Path, overwrite: bool) -> None:
    """Check what can be checked, then load, explain, save and say where the report is."""
    _kept(lambda: _tell(*_saved(asked, out, overwrite)))


def _kept(work: Callable[[], None]) -> None:
    """Do the work of a command; Ctrl-C where nothing can be kept says so."""
    try:
        work()
    except KeyboardInterrupt:
        raise Interrupted("Interrupted before the results were saved; nothing was written.") from None


def _saved(asked: dict[str, Any], out: Path, overwrite: bool) -> tuple[Any, Path]:
    from .results.folders import check_output

    check_output(out, overwrite)
    typer.echo(f"Loading {asked.get('model', 'the bundled model')}", err=True)
    with _quiet():
        from .commands import explain
        from .recording.models import load

        request = explain.Request(**asked)
        request.attributors()
        model = load(request.model, device=request.device, dtype=request.dtype)
        model.pipeline.set_progress_bar_config(disable=True)
        with _progress() as watch:
            explanation = explain.explain(model, request, watch)
        typer.echo(f"Writing {out}", err=True)
        return explanation, explanation.save(out, overwrite)


@contextmanager
def _quiet() -> Iterator[None]:
    """Other libraries' notices stay silent, except the bars of a download; our own warnings are one line each."""
    from .recording.loading import quiet_libraries

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
        typer.echo(f"denoscope: {explanation.run['interruption']}", err=True)
    typer.echo(f"Report: {folder / 'report.html'}")
    if explanation.run["interrupted"]:
        raise typer.Exit(1)


def _reliabilities(maps: Any) -> str:
    places = [f"step {int(step)} (t {float(time):g})" for step, time in zip(maps.step, maps.timestep, strict=True)]
    if "reliability" not in maps:
        return ", ".join(places)
    values = [f"{float(value):.2f}" for value in maps.reliability]
    return "reliability at " + ", ".join(f"{place} {value}" for place, value in zip(places, values, strict=True))
