"""Word maps: the places that attend to each word of the prompt, by the attention of the denoiser.

Source: Tang et al. 2023, What the DAAM: Interpreting Stable Diffusion Using Cross Attention (ACL). Their maps are
summed over time; here they are kept for every step.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr

from ..errors import InputError, ModelError, did_you_mean, shown_value
from ..recording.listening import listening, reading_of
from ..recording.models import Model
from ..recording.prompts import Word, chosen_words, refuse_wordless
from ..recording.reading import Reading
from ..recording.steps import Step
from ..recording.traces import Trace
from ..targets import trace_step
from ..vision.frames import Frame, Frames
from . import Needs
from .attention import HALVES, Half, LayerMean, chosen_layers
from .base import Advance, Attributor, StepResult, picture_size, register
from .recorded_words import RecordedMaps, listening_while_recording

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels of the picture, the far edges excluded."""


@register("words")
@dataclass(frozen=True)
class Words(Attributor):
    """Attention maps of the words of the prompt, for every step.

    >>> maps = Words(phrases=("red circle", "white background"))(trace, steps=[6, 15])
    >>> maps.saliency.sel(step=15, token="red circle").dims
    ('y', 'x')

    softmax(Q Kᵀ / √d) from the picture to the text, in every layer that reads the text: by cross-attention, where the
    text is a sequence of its own (Stable Diffusion, PixArt, Wan), or by joint attention, where text and picture are
    one sequence (Stable Diffusion 3, Flux, Qwen-Image). Which positions are text, and which picture, is measured.
    Enlarged to the sample's size (bicubic, clamped at 0), mean over layers and heads. The map of a word of several
    pieces, or of a phrase, is the mean over its tokens in all encoders, as in DAAM: so a word's value does not depend
    on how many pieces it is spelled in, and words compare. Clips have a dimension `frame`.

    `phrases` None is every word of the prompt; what is there again is "a (2)", "red circle (2)" and so on.
    `special_tokens` adds those at the start, the end, behind it, and "<instruction>", the pipeline's own words.
    `half` "unconditional" is of the negative prompt. `layers` are dotted paths or patterns such as "up_blocks.**",
    `heads` numbers from 0. `prompt_text` labels a picture made from prompt_embeds, such as weighted ones. The same
    maps without replaying: `words.recording(model)`.

    Raises `InputError` for a word, phrase, layer or head that is not there, `ModelError` for a model whose denoiser
    reads no text by attention.
    """

    needs: ClassVar[Needs | None] = "words"

    phrases: tuple[str, ...] | None = None
    special_tokens: bool = False
    half: Half = "conditional"
    layers: tuple[str, ...] | None = None
    heads: tuple[int, ...] | None = None
    prompt_text: str | None = None

    title = "Word maps"
    reading = (
        "High where the picture reads the word at this step. Values are shares of attention, 0 to 1, of all tokens "
        "together, those at the start, the end and behind it included, which often have most of it. "
        "Attention says what is read from where, and not what that does to the picture."
    )

    def __post_init__(self) -> None:
        if self.half not in HALVES:
            raise InputError(f'There is no half "{self.half}" of guidance. {did_you_mean(str(self.half), HALVES)}')
        for name in ("phrases", "layers", "heads"):
            entries = getattr(self, name)
            if entries is not None and (isinstance(entries, str) or not entries or len(set(entries)) < len(entries)):
                raise InputError(
                    f"{name} is {entries!r}. Give a tuple with at least one entry, and each once, or None."
                )
        if any(head < 0 for head in self.heads or ()):
            raise InputError(f"The heads {tuple(self.heads or ())} cannot be chosen: heads are counted from 0.")

    def prepared(self, sequence: Trace | Frames) -> Attributor:
        trace = prompted(sequence, "Word maps are")
        reading = reading_of(trace[0], self.half, self.prompt_text)
        layers = chosen_layers(trace[0].denoiser, self.layers)
        words = self.words_of(reading)
        positions = _positions(words)

        def maps_at(step: Step) -> torch.Tensor:
            own = reading_of(step, self.half, self.prompt_text)  # another denoiser's, where several take turns
            return replayed(step, own, self, layers, positions)

        return _WordsOfRun(self, words, maps_at, picture_size(trace), reading)

    def words_of(self, reading: Reading) -> tuple[Word, ...]:
        """Return the words or phrases to map; raises `InputError` where there is none, or one is not in the text."""
        return chosen_words(reading.prompt, self.phrases, self.special_tokens)

    @contextmanager
    def recording(self, model: Model) -> Iterator["RecordedWords"]:
        """Listen while a picture is made; afterwards `recorded.maps(trace)` has the word maps, without any replay.

        >>> with Words().recording(model) as recorded:                     # doctest: +SKIP
        ...     trace = model.trace("a red circle", seed=0)
        >>> maps = recorded.maps(trace)                                    # doctest: +SKIP

        The picture is the same, bit for bit. One map of every token of the `half`'s text is stored for each step, none
        of a layer; of special tokens and padding only with `special_tokens`. Where a denoiser does not hand its text to
        its layers as it is, one of its calls is repeated some twenty times at the beginning, to measure where the text
        lies. For packed samples and clips one step is made again when the maps are first asked for.
        """
        refuse_wordless(model)
        layers = chosen_layers(model.denoiser, self.layers) if self.layers is not None else None
        with listening_while_recording(
            model.pipeline, layers, self.heads, half=self.half, special_tokens=self.special_tokens
        ) as maps:
            yield RecordedWords(self, maps)


@dataclass(frozen=True, eq=False)
class _WordsOfRun(Attributor):
    """Word maps of a run whose words are read; `maps_at` returns the maps of all their tokens, (tokens, h, w)."""

    settings: Words
    words: Sequence[Word]
    maps_at: Callable[[Step], torch.Tensor]
    picture_size: tuple[int, int]
    text: Reading

    title = Words.title
    reading = Words.reading

    def options(self) -> dict[str, Any]:
        mixed = {"texts_mixed": list(self.text.mixed)} if self.text.mixed else {}
        return {**self.settings.options(), "picture_size": self.picture_size, **mixed}

    def explain(self, step: Step | Frame, advance: Advance) -> StepResult:
        step = trace_step(step)
        maps, positions = self.maps_at(step).cpu().numpy(), _positions(self.words)
        places = [[positions.index(position) for position in word.positions] for word in self.words]
        merged = [maps[tokens].mean(axis=0) for tokens in places]
        advance(1)
        coords = {
            "token": [word.label for word in self.words],
            "position": ("token", [word.positions[0] for word in self.words]),
            "pieces": ("token", [len(word.positions) for word in self.words]),
        }
        return {"saliency": xr.DataArray(np.stack(merged), dims=("token", *step.layout.dims), coords=coords)}


@dataclass(frozen=True, eq=False)
class RecordedWords:
    """The word maps of a recording."""

    settings: Words
    recorded: RecordedMaps

    @property
    def nbytes(self) -> int:
        """Bytes of the maps."""
        return self.recorded.nbytes

    def tokens(self, trace: Trace, index: int) -> torch.Tensor:
        """Return the maps of all positions of the text at one step, (tokens, [frames,] h, w); raises as `maps`.

        Those of special tokens and padding are NaN, unless `special_tokens` had them kept.
        """
        self.recorded.check(trace)
        step = trace[index]
        reading = reading_of(step, self.settings.half, self.settings.prompt_text)
        kept = [n for n in range(reading.prompt.length) if self.recorded.has(trace, step, reading, n)]
        maps = self.recorded.maps(trace, step, reading, kept)
        whole = maps.new_full((reading.prompt.length, *maps.shape[1:]), float("nan"))
        whole[kept] = maps
        return whole

    def maps(self, trace: Trace, steps: Sequence[int] | None = None) -> xr.Dataset:
        """Return the word maps of the trace that was recorded, or of one picture of it, `trace.picture(0)`.

        Raises `InputError` for another trace, and the errors of `Words`.
        """
        trace = prompted(trace, "Word maps are")
        self.recorded.check(trace)
        reading = reading_of(trace[0], self.settings.half, self.settings.prompt_text)
        words = self.settings.words_of(reading)
        positions = _positions(words)

        def maps_at(step: Step) -> torch.Tensor:
            reading = reading_of(step, self.settings.half, self.settings.prompt_text)
            if not all(self.recorded.has(trace, step, reading, position) for position in positions):
                raise ModelError(
                    "The maps of some words were not kept while the picture was made: its tokenizers read them as "
                    "special tokens. Replay it, Words()(trace), or record it with Words(special_tokens=True)."
                )
            return self.recorded.maps(trace, step, reading, positions)

        return _WordsOfRun(self.settings, words, maps_at, picture_size(trace), reading)(trace, steps)


@torch.no_grad()
def replayed(
    step: Step, reading: Reading, settings: Words, layers: Sequence[str], positions: Sequence[int]
) -> torch.Tensor:
    """Return the maps of some positions of the text, (tokens, [frames,] h, w), by replaying a step of one picture."""
    mean = LayerMean(step.layout.shape, positions, settings.heads)
    chosen = frozenset(layers)
    with listening(step, reading, mean.hear, wanted=chosen.__contains__):
        step.again()
    return mean.mean()


def prompted(sequence: Trace | Frames, what: str) -> Trace:
    """Return a trace of one picture made from a prompt; raises `InputError` or `ModelError` for anything else."""
    if not isinstance(sequence, Trace):
        raise InputError(
            f"{what} of a picture made from a prompt, and frames were given. Give a trace: model.trace(prompt)."
        )
    refuse_wordless(sequence.model)
    if sequence.pictures > 1:
        raise InputError(
            f"{what} of one picture, and this trace has {sequence.pictures}. Choose one: trace.picture(0)."
        )
    return sequence


def _positions(words: Sequence[Word]) -> list[int]:
    """Return the positions of all tokens of these words, each once."""
    return sorted({position for word in words for position in word.positions})


# From a region of the picture to the words that attend there.


def words_at(
    maps: xr.Dataset,
    box: Box | None = None,
    mask: np.ndarray | None = None,
    steps: Sequence[int] | None = None,
) -> xr.Dataset:
    """Return the words that attend to a region of the picture, the most enriched first.

    >>> words_at(maps, box=(0, 20, 30, 50), steps=[6, 15]).token.values[0]   # doctest: +SKIP
    'circle'

    `maps` are those of `Words`. `box` is (x0, y0, x1, y1) in pixels of the picture, x to the right, y downwards, the
    far edges excluded; `mask` is boolean, of the picture's size or of the maps'. Give one of them. The steps, all by
    default, count alike.

    Over `token`: `share` is how much of the word's attention lies inside, 0 to 1; `enrichment`, by which words are
    ranked, is that share divided by the region's share of the picture, so that 1 is what a word spread evenly has;
    `mean` is the raw mean inside, which says how much the region attends to the word compared with other words.

    Raises `InputError` for a box outside the picture, an empty mask or one of another size, and steps not explained.
    """
    saliency = _of_steps(maps, steps)
    weights = xr.DataArray(_weights(maps, box, mask), dims=("y", "x"))
    area = float(weights.mean())
    inside, total = (saliency * weights).sum(("y", "x")), saliency.sum(("y", "x"))
    share = inside / total.where(total > 0)
    words = xr.Dataset({"enrichment": share / area, "share": share, "mean": inside / float(weights.sum())})
    order = np.argsort(-words["enrichment"].fillna(-np.inf).values, kind="stable")
    return words.isel(token=order).assign_attrs(area=area, steps=[int(step) for step in saliency.attrs["steps"]])


def _of_steps(maps: xr.Dataset, steps: Sequence[int] | None) -> xr.DataArray:
    """Return the mean map of the chosen steps, (token, y, x)."""
    if "token" not in maps.get("saliency", xr.DataArray()).dims:
        raise InputError(
            "Only maps of words can say which words attend to a region: these have no dimension token. Give what Words "
            "returns: Words()(trace)."
        )
    explained = maps["step"].values.tolist()
    chosen = explained if steps is None else list(steps)
    missing = [step for step in chosen if step not in explained]
    if missing:
        raise InputError(
            f"The steps {chosen} cannot be looked at: step {missing[0]} has no word maps. These maps have the steps "
            f"{', '.join(map(str, explained))}; choose among them, or explain more."
        )
    if not chosen:
        raise InputError("No step was given. Name at least one, or leave steps out for all that have maps.")
    return maps["saliency"].sel(step=chosen).mean("step").assign_attrs(steps=chosen)


def _weights(maps: xr.Dataset, box: Box | None, mask: np.ndarray | None) -> np.ndarray:
    """Return how much of each cell of the maps lies in the region, (y, x) in [0, 1]."""
    grid = maps.sizes["y"], maps.sizes["x"]
    height, width = map(int, maps.attrs.get("picture_size", grid))
    if (box is None) == (mask is None):
        raise InputError("A region is either a box or a mask. Give one of them.")
    if box is not None:
        x0, y0, x1, y1 = _inside(box, width, height)
        return np.outer(_covered(grid[0], height, y0, y1), _covered(grid[1], width, x0, x1))
    return _shared(np.asarray(mask), grid, (height, width))


def _inside(box: Box, width: int, height: int) -> Box:
    """Return the edges of a box as numbers; raises `InputError` for a box that is none or lies outside."""
    try:
        x0, y0, x1, y1 = (float(edge) for edge in box)
    except (TypeError, ValueError):
        raise InputError(
            f"The box {shown_value(box)} is not one. Give four numbers: x0, y0, x1, y1, in pixels."
        ) from None
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise InputError(
            f"The box {shown_value(box)} is empty or outside the picture of {width} × {height} pixels. Give "
            f"(x0, y0, x1, y1) with 0 ≤ x0 < x1 ≤ {width} and 0 ≤ y0 < y1 ≤ {height}; y counts downwards."
        )
    return x0, y0, x1, y1


def _covered(cells: int, pixels: int, start: float, end: float) -> np.ndarray:
    """Return the share of each of the cells along one axis that lies between two places in pixels."""
    edges = np.linspace(0, pixels, cells + 1)
    overlap = np.minimum(edges[1:], end) - np.maximum(edges[:-1], start)
    shares: np.ndarray = np.clip(overlap, 0, None) * cells / pixels
    return shares


def _shared(mask: np.ndarray, grid: tuple[int, int], picture: tuple[int, int]) -> np.ndarray:
    """Return a boolean mask as the share of each cell that it covers."""
    if mask.shape not in (grid, picture) or mask.dtype != bool:
        raise InputError(
            f"The mask has shape {mask.shape} and type {mask.dtype}. It must be boolean, of the picture's height and "
            f"width {picture} or of the maps' {grid}."
        )
    if not mask.any():
        raise InputError("The mask is empty, so there is nothing to attend to. Give one that is True somewhere.")
    if mask.shape == grid:
        return mask.astype(float)
    rows, columns = _pixel_shares(grid[0], picture[0]), _pixel_shares(grid[1], picture[1])
    shares: np.ndarray = rows @ mask @ columns.T
    return shares


def _pixel_shares(cells: int, pixels: int) -> np.ndarray:
    """Return the share of each cell along one axis that each pixel covers, (cells, pixels)."""
    return np.stack([_covered(cells, pixels, i, i + 1) for i in range(pixels)], axis=1)
