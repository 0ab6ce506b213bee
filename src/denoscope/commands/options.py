"""The options that commands share, and the reading of lists that are typed with commas; imports nothing heavy."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from ..errors import InputError
from .names import methods_for_labels, methods_for_runs

if TYPE_CHECKING:
    from .job import At as Steps

PromptWords = Annotated[str | None, Argument(help="What the picture should show; none for models without text.")]
Out = Annotated[Path, Option("--out", help="Folder for the report, the pictures and the arrays.")]
Overwrite = Annotated[bool, Option("--overwrite", help="Replace an earlier run in that folder.")]
MaskCount = Annotated[
    int | None, Option("--masks", help="Masks a step for DF-RISE: 256 in its contrast form, else 500, if left out.")
]
RUN_METHODS = ", ".join(methods_for_runs())
OF_LABEL = ", ".join(methods_for_labels())
Scheduler = Annotated[str | None, Option(help="Swap the pipeline's scheduler, as in dpm-solver++, ddpm or euler.")]
Guidance = Annotated[float | None, Option(help="Guidance scale w, off at 1 and below; the pipeline's own if left out.")]
At = Annotated[str | None, Option("--at", help="Steps to explain, from 0, as in 2,8,16,28, or all.")]
Height = Annotated[int | None, Option(help="Height of the picture in pixels.")]
Width = Annotated[int | None, Option(help="Width of the picture in pixels.")]
Device = Annotated[str | None, Option("--device", help="Device, such as cpu, cuda or mps.")]
Dtype = Annotated[str | None, Option("--dtype", help="float32, float16 or bfloat16.")]
Memory = Annotated[
    str | None, Option("--memory", help="Limit of memory, as in 8GB; what is free on the device if left out.")
]
CHECKS_HELP = "localisation, games, infidelity, resampling, stability, sanity: all if none; or attacks."
Checks = Annotated[str | None, Option(help=CHECKS_HELP)]
ModelName = Annotated[str, Option("--model", help="Bundled name, hub id or folder.")]

# The picture that a generation starts from, and all else that the pipeline's call takes.

NegativePrompt = Annotated[str | None, Option(help="Text that the picture should not show.")]
ImageFile = Annotated[str | None, Option("--image", metavar="FILE", help="Picture to start from.")]
MaskFile = Annotated[str | None, Option("--mask-image", metavar="FILE", help="Mask of --image: white is painted.")]
ControlFile = Annotated[str | None, Option("--control-image", metavar="FILE", help="Picture for a ControlNet.")]
Strength = Annotated[float | None, Option(help="Noise added to --image, 0 to 1; the pipeline's own if left out.")]
Task = Annotated[str | None, Option("--pipeline", help="Make of the model: text2img, img2img or inpaint.")]
Layers = Annotated[list[str] | None, Option(metavar="PATTERN", help="Layers for df-cam. May be repeated.")]
CallWords = Annotated[
    list[str] | None,
    Option("--call", metavar="NAME=VALUE", help="Any other argument of the pipeline's call. May be repeated."),
]

# The words that word maps and concept maps are of.

Phrases = Annotated[
    str | None, Option(help="Word maps of these phrases only, as in 'red circle; blue square'; adds the method words.")
]
ConceptTexts = Annotated[
    str | None, Option("--concepts", help="Concept maps of these texts, as in 'sky; fur'; adds the method concepts.")
]
HalfName = Annotated[
    str | None, Option("--half", help="Word maps: conditional, or unconditional, of the negative prompt.")
]
SpecialTokens = Annotated[bool, Option("--special-tokens", help="Word maps: the tokens at the start and end too.")]


def names_in(methods: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in methods.split(",") if name.strip())


def texts_in(typed: str | None) -> tuple[str, ...] | None:
    """Return texts that have semicolons between them, or commas if there is no semicolon.

    >>> texts_in("red circle; blue square"), texts_in("sky, fur"), texts_in("red, or blue;")
    (('red circle', 'blue square'), ('sky', 'fur'), ('red, or blue',))
    """
    if typed is None:
        return None
    return tuple(text.strip() for text in typed.split(";" if ";" in typed else ",") if text.strip())


def steps_in(at: str | None) -> "Steps":
    if at is None:
        return None
    if at.strip() == "all":
        return "all"
    try:
        return tuple(int(word) for word in at.split(","))
    except ValueError:
        raise InputError(f'--at is "{at}". Give step numbers separated by commas, such as 2,8,16,28, or all.') from None
