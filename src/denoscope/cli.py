"""The command line: parse, build a job by name, run it, print. Heavy imports wait until a job runs."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from . import __version__
from .commands import options as option
from .commands.literals import read_pairs
from .commands.names import check_model
from .commands.options import OF_LABEL, RUN_METHODS, names_in, steps_in, texts_in
from .commands.terminal import importing_beside, more_help, print_result, progress_bars, quiet, with_options
from .errors import DenoscopeError, InputError, Interrupted, sentence

if TYPE_CHECKING:
    from .commands.job import Job

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="See how a diffusion model makes a picture, step by step, and how far the explanation can be trusted.",
)

UsageError: Any = typer.BadParameter.__mro__[1]  # Click's; Click stands alone or inside Typer, by Typer's version
Folder = Path("denoscope-out")


def main() -> None:
    """Run the command line: exit status 2 for bad input, 1 for a failure while working."""
    words = [word for word in sys.argv[1:] if word != "--debug"]
    if len(words) < len(sys.argv) - 1:
        sys.exit(app(words, standalone_mode=False))
    sys.exit(_run(words))


def _run(words: Sequence[str]) -> int:
    """Run a command and return its exit status; every failure is printed as one paragraph."""
    try:
        return app(words, standalone_mode=False) or 0
    except UsageError as error:
        return _fail(f"{sentence(error.format_message())} Given: {shlex.join(words)}. {more_help(error)}", 2)
    except DenoscopeError as error:
        return _fail(_in_options(str(error), words), 2 if isinstance(error, InputError) else 1)
    except Exception as error:  # a mistake of ours or of a library: still one paragraph, and --debug shows all
        what = " ".join(f"{type(error).__name__}: {error}".split())
        return _fail(f"This failed in a way that was not foreseen: {sentence(what)} --debug shows where.", 1)


def _fail(message: str, status: int) -> int:
    typer.echo(f"denoscope: {message}", err=True)
    return status


def _in_options(message: str, words: Sequence[str]) -> str:
    """Return a message with the options of the command that was given in the place of Python's arguments."""
    commands: Any = typer.main.get_command(app)
    command = commands.commands.get(words[0]) if words else None
    return message if command is None else with_options(message, command)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"denoscope {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True, epilog="--debug before or after a command shows the traceback of an error.")
def options(
    context: typer.Context,
    version: Annotated[
        bool, Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def demo(
    out: option.Out = Path("denoscope-demo"),
    overwrite: option.Overwrite = False,
    masks: Annotated[int, Option("--masks", help="Masks a step for DF-RISE.")] = 128,
    memory: option.Memory = None,
) -> None:
    """Explain a picture of the bundled model with DF-RISE: generate, record, explain, write a report."""
    from .commands.requests import Request

    prompt = "a large dotted yellow square on a pink background"
    request = Request(prompt=prompt, seed=8, guidance=3.0, masks=masks, memory=memory)
    _do(request, "Loading the bundled model", out, overwrite)


@app.command()
def explain(
    prompt: option.PromptWords = None,
    model: option.ModelName = "shapes",
    seed: Annotated[int, Option(help="Seed of the picture.")] = 0,
    steps: Annotated[int, Option(help="Denoising steps.")] = 30,
    schedule: Annotated[str, Option(help="uniform, early, late, band:600, or time steps as 999,800,600.")] = "uniform",
    shift: Annotated[float | None, Option(help="Shift of an early or late schedule; 60 if left out.")] = None,
    scheduler: option.Scheduler = None,
    lora: Annotated[str | None, Option(help="LoRA: a folder or hub id, safetensors.")] = None,
    guidance: option.Guidance = None,
    height: option.Height = None,
    width: option.Width = None,
    negative_prompt: option.NegativePrompt = None,
    image: option.ImageFile = None,
    mask_image: option.MaskFile = None,
    control_image: option.ControlFile = None,
    strength: option.Strength = None,
    pipeline: option.Task = None,
    layers: option.Layers = None,
    call: option.CallWords = None,
    phrases: option.Phrases = None,
    concepts: option.ConceptTexts = None,
    half: option.HalfName = None,
    special_tokens: option.SpecialTokens = False,
    at: option.At = None,
    methods: Annotated[str | None, Option(help=f"Of {RUN_METHODS}; df-rise-contrast,df-rise if left out.")] = None,
    masks: option.MaskCount = None,
    until: Annotated[float | None, Option(help="Stop at this reliability (0 to 1) if reached before.")] = None,
    device: option.Device = None,
    dtype: option.Dtype = None,
    memory: option.Memory = None,
    out: option.Out = Folder,
    overwrite: option.Overwrite = False,
) -> None:
    """Generate a picture, record every step, explain the steps and write a report."""
    from .commands.requests import Request

    request = Request(
        prompt=prompt,
        model=model,
        seed=seed,
        steps=steps,
        schedule=schedule,
        shift=shift,
        scheduler=scheduler,
        lora=lora,
        guidance=guidance,
        height=height,
        width=width,
        negative_prompt=negative_prompt,
        image=image,
        mask_image=mask_image,
        control_image=control_image,
        strength=strength,
        pipeline=pipeline,
        layers=tuple(layers or ()),
        call=read_pairs(call or ()),
        phrases=texts_in(phrases),
        concepts=texts_in(concepts),
        half=half,
        special_tokens=special_tokens,
        at=steps_in(at),
        methods=None if methods is None else names_in(methods),
        masks=masks,
        until=until,
        device=device,
        dtype=dtype,
        memory=memory,
    )
    _do(request, f"Loading {model}", out, overwrite)


@app.command()
def compare(
    prompt: option.PromptWords = None,
    schedules: Annotated[str | None, Option(help="As in uniform,early,late; the usual comparison.")] = None,
    shifts: Annotated[str | None, Option(help="Shifts of --schedule early or late, as in 10,30,60,120.")] = None,
    seeds: Annotated[str | None, Option(help="Seeds, as in 0,1,2.")] = None,
    guidances: Annotated[str | None, Option(help="Guidance scales, as in 1,3,7.5.")] = None,
    schedulers: Annotated[str | None, Option(help="Schedulers, as in dpm-solver++,ddpm,euler.")] = None,
    models: Annotated[str | None, Option(help="Models: bundled names, hub ids or folders.")] = None,
    lora: Annotated[str | None, Option(help="With and without this LoRA: a folder or hub id.")] = None,
    model: Annotated[str | None, Option(help="Bundled name, hub id or folder; shapes if left out.")] = None,
    seed: Annotated[int | None, Option(help="Seed of the pictures; 0 if left out.")] = None,
    steps: Annotated[int, Option(help="Denoising steps.")] = 30,
    schedule: Annotated[str | None, Option(help="Schedule of all variants; uniform if left out.")] = None,
    shift: Annotated[float | None, Option(help="Shift of the early and late schedules; 60 if left out.")] = None,
    scheduler: option.Scheduler = None,
    guidance: option.Guidance = None,
    height: option.Height = None,
    width: option.Width = None,
    negative_prompt: option.NegativePrompt = None,
    image: option.ImageFile = None,
    mask_image: option.MaskFile = None,
    control_image: option.ControlFile = None,
    strength: option.Strength = None,
    pipeline: option.Task = None,
    layers: option.Layers = None,
    call: option.CallWords = None,
    phrases: option.Phrases = None,
    concepts: option.ConceptTexts = None,
    half: option.HalfName = None,
    special_tokens: option.SpecialTokens = False,
    at: option.At = None,
    methods: Annotated[str | None, Option(help=f"Of {RUN_METHODS}; relevance if left out.")] = None,
    masks: option.MaskCount = None,
    label: Annotated[list[str] | None, Option(help="A text to rate every picture by; give at least two.")] = None,
    classifier: Annotated[str, Option(help="For --label: shapes (bundled), a hub id or folder.")] = "shapes",
    encoder: Annotated[str | None, Option(help="Vision model that measures how far apart pictures are.")] = None,
    device: option.Device = None,
    dtype: option.Dtype = None,
    memory: option.Memory = None,
    out: option.Out = Folder,
    overwrite: option.Overwrite = False,
) -> None:
    """Make the same picture several ways, side by side: schedules, shifts, seeds, guidances, schedulers or models."""
    from .commands.comparisons import Comparison, Several
    from .commands.requests import Request

    several = Several(
        schedules=schedules,
        shifts=shifts,
        seeds=seeds,
        guidances=guidances,
        schedulers=schedulers,
        models=models,
        lora=lora,
    )
    along, values = several.axis(
        schedule=schedule, shift=shift, seed=seed, guidance=guidance, scheduler=scheduler, model=model
    )
    request = Request(
        prompt=prompt,
        model="shapes" if model is None else model,
        seed=seed or 0,
        steps=steps,
        schedule=schedule or "uniform",
        shift=None if along == "schedule" else shift,
        scheduler=scheduler,
        guidance=guidance,
        height=height,
        width=width,
        negative_prompt=negative_prompt,
        image=image,
        mask_image=mask_image,
        control_image=control_image,
        strength=strength,
        pipeline=pipeline,
        layers=tuple(layers or ()),
        call=read_pairs(call or ()),
        phrases=texts_in(phrases),
        concepts=texts_in(concepts),
        half=half,
        special_tokens=special_tokens,
        at=steps_in(at),
        masks=masks,
        device=device,
        dtype=dtype,
        memory=memory,
    )
    comparison = Comparison(
        request=request,
        along=along,
        values=values,
        shift=shift if along == "schedule" else None,
        methods=None if methods is None else names_in(methods),
        labels=tuple(label or ()),
        classifier=classifier,
        encoder=encoder,
    )
    _do(comparison, f"Comparing {', '.join(comparison.titles())}", out, overwrite)


@app.command()
def recognise(
    photos: Annotated[list[str] | None, Argument(metavar="PHOTO...", help="Files of photographs.")] = None,
    label: Annotated[list[str] | None, Option(help="A label to follow: name, number or text. May be repeated.")] = None,
    classifier: Annotated[str, Option(help="imagenet, shapes (the bundled CLIP), a hub id or a folder.")] = "imagenet",
    frames: Annotated[int | None, Option(help="Frames from pure noise to clean; 100 if left out.")] = None,
    noising: Annotated[str | None, Option(help="blend (the study's, if left out) or ddpm.")] = None,
    beta_schedule: Annotated[str, Option(help="For ddpm: linear, scaled_linear, squaredcos_cap_v2.")] = "linear",
    draws: Annotated[int, Option(help="Noises per photograph, for the likelihood's intervals.")] = 5,
    map_draws: Annotated[int, Option(help="How many of them are attributed.")] = 1,
    at: Annotated[str | None, Option(help="Frames to attribute, as in 30,50,90, or all; else ten.")] = None,
    methods: Annotated[str | None, Option(help=f"{OF_LABEL}, all if left out.")] = None,
    n_steps: Annotated[int | None, Option(help="Points of Integrated Gradients; 50 if left out.")] = None,
    mask: Annotated[list[str] | None, Option(help="The object white, or labels with 0 outside; one a photo.")] = None,
    preset: Annotated[str | None, Option(help="study: the published settings, every frame attributed.")] = None,
    trace: Annotated[str | None, Option(help="A prompt: look at its generation instead of photographs.")] = None,
    model: Annotated[str, Option(help="For --trace: bundled name, hub id or folder.")] = "shapes",
    steps: Annotated[int, Option(help="For --trace: denoising steps.")] = 30,
    guidance: Annotated[float | None, Option(help="For --trace: guidance scale w.")] = None,
    seed: Annotated[int, Option(help="Seed of the noise, or of the generated picture.")] = 0,
    device: option.Device = None,
    dtype: option.Dtype = None,
    memory: option.Memory = None,
    out: option.Out = Folder,
    overwrite: option.Overwrite = False,
) -> None:
    """Find when a classifier recognises a picture, and by what: photographs noised forward, or a generation."""
    from .commands.requests import Request
    from .commands.studies import Study, preset_of

    usual = preset_of(preset)
    generation = None
    if trace is not None:
        generation = Request(
            prompt=trace, model=model, seed=seed, steps=steps, guidance=guidance, device=device, dtype=dtype
        )
    study = Study(
        photographs=tuple(photos or ()),
        trace=generation,
        labels=tuple(label or ()),
        classifier=classifier,
        frames=usual.frames if frames is None else frames,
        noising=noising or usual.noising,
        beta_schedule=beta_schedule,
        draws=draws,
        map_draws=map_draws,
        seed=seed,
        at=usual.at if at is None else steps_in(at),
        methods=usual.methods if methods is None else names_in(methods),
        n_steps=usual.n_steps if n_steps is None else n_steps,
        masks=tuple(mask or ()),
        preset=preset,
        device=device,
        dtype=dtype,
        memory=memory,
    )
    _do(study, f"Loading {classifier}{f' and {model}' if generation else ''}", out, overwrite)


@app.command()
def words(model: option.ModelName = "shapes", device: option.Device = None, dtype: option.Dtype = None) -> None:
    """List the words that a model can read, if it has a short vocabulary as the bundled one."""
    check_model(model)
    with quiet():
        from .recording.models import load

        loaded = load(model, device=device, dtype=dtype)
        vocabulary = loaded.vocabulary()
    if not loaded.takes_text:
        typer.echo(f"{model} takes no text.")
    elif vocabulary is None:
        typer.echo(f"{model} has no short list of words: it reads any text.")
    else:
        typer.echo(" ".join(vocabulary))


@app.command()
def evaluate(
    model: option.ModelName = "shapes",
    scenes: Annotated[int | None, Option(help="Pictures to measure; 50, or every prompt, if left out.")] = None,
    prompts: Annotated[str | None, Option(help="File: a PROMPT a line, or NAME, PROMPT, PHRASE by tabs.")] = None,
    masks: Annotated[str | None, Option(help="Folder of masks, named after the lines of --prompts.")] = None,
    methods: Annotated[str | None, Option(help=f"Of {RUN_METHODS}, {OF_LABEL}; all if left out.")] = None,
    checks: option.Checks = None,
    at: Annotated[str | None, Option(help="Steps to explain, from 0, as in 6,15,24.")] = None,
    steps: Annotated[int, Option(help="Denoising steps.")] = 30,
    guidance: Annotated[float | None, Option(help="Guidance scale w; 3 for shapes, else the pipeline's.")] = None,
    seed: Annotated[int, Option(help="Seed of the pictures of --prompts.")] = 0,
    num_masks: Annotated[int, Option(help="Masks per step of DF-RISE, samples of LIME.")] = 256,
    encoder: Annotated[str | None, Option(help="For the games of other models: a vision model.")] = None,
    workers: Annotated[int | None, Option(help="Pictures side by side; one per CPU if left out.")] = None,
    device: option.Device = None,
    dtype: option.Dtype = None,
    memory: option.Memory = None,
    out: Annotated[Path, Option("--out", help="Folder of the results; work in it is continued.")] = Path(
        "denoscope-evaluation"
    ),
    overwrite: Annotated[bool, Option("--overwrite", help="Replace the work in that folder.")] = False,
) -> None:
    """Measure which explanation is true: every method on many pictures whose truth is known, as a leaderboard."""
    from .commands.evaluate import Evaluation
    from .commands.job import check_workers
    from .files.claims import claimed

    check_workers(workers)
    chosen = steps_in(at)
    evaluation = Evaluation(
        model=model,
        scenes=scenes,
        prompts=prompts,
        masks=masks,
        methods=None if methods is None else names_in(methods),
        checks=None if checks is None else names_in(checks),
        at=tuple(range(steps)) if chosen == "all" else chosen,
        steps=steps,
        guidance=guidance,
        seed=seed,
        num_masks=num_masks,
        encoder=encoder,
        device=device,
        dtype=dtype,
        memory=memory,
    )
    try:
        with claimed(out), quiet():
            with progress_bars() as watch:
                result = evaluation.run(watch, folder=out, workers=workers, overwrite=overwrite)
            typer.echo(f"Writing {out}", err=True)
            folder = result.save(out)
    except KeyboardInterrupt:
        raise Interrupted(f"Interrupted: the pictures finished are kept in {out}. The same command goes on.") from None
    print_result(result, folder)


def _do(job: "Job", beginning: str, out: Path, overwrite: bool) -> None:
    """Claim the output folder, run the job, save its result and print it; Ctrl-C before that leaves nothing."""
    from .files.claims import claimed
    from .results.folders import check_output

    job.check()
    check_output(out, overwrite)
    with claimed(out):
        try:
            typer.echo(beginning, err=True)
            with quiet():
                with progress_bars() as watch:
                    result = job.run(importing_beside(watch))
                typer.echo(f"Writing {out}", err=True)
                folder = result.save(out, overwrite)
        except KeyboardInterrupt:
            raise Interrupted("Interrupted before the results were saved; nothing was written.") from None
    print_result(result, folder)
