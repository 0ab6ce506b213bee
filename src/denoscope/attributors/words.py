"""Word maps: where each word of the prompt is attended to from, by the cross-attention of the denoiser.

Source: Tang et al. 2023, What the DAAM: Interpreting Stable Diffusion Using Cross Attention (ACL). Their maps are
summed over time; here they are kept for every step.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from torch.nn.functional import interpolate

from ..errors import CaptureError, InputError, ModelError, ReplayError, did_you_mean
from ..recording.hooks.attention import AttentionCall, attending, attention_layers
from ..recording.hooks.calls import denoising
from ..recording.models import Model
from ..recording.patterns import matching
from ..recording.prompts import Word, prompt_of, read
from ..recording.traces import Step, Trace
from ..vision.frames import Frames
from .base import Advance, Attributor, Found, options_of, register
from .relevance import grid_of

Half = Literal["conditional", "unconditional"]
HALVES = {
    "conditional": ("prompt", slice(-1, None)),
    "unconditional": ("negative_prompt", slice(0, 1)),
}
"""Which text a half of guidance reads, and which of the batch's copies it is: diffusers' order."""


@register("words")
@dataclass(frozen=True)
class Words(Attributor):
    """Cross-attention maps of the words of the prompt, for every step.

    >>> maps = Words(phrases=("red circle", "white background"))(trace, steps=[6, 15])   # doctest: +SKIP
    >>> maps.saliency.sel(step=15, token="red circle").dims                              # doctest: +SKIP
    ('y', 'x')

    softmax(Q Kᵀ / √d) of every cross-attention layer and head, enlarged to the sample's size (bicubic, clamped at 0),
    mean over layers and heads. The map of a word of several pieces, or of a phrase, is the mean over its tokens, as in
    DAAM: so a word's value does not depend on how many pieces it is spelled in, and words compare.

    `phrases` None is every word of the prompt; what is there again is "a (2)", "red circle (2)" and so on.
    `special_tokens` adds those at the start, the end and behind it. `half` "unconditional" is of the negative prompt.
    `layers` are dotted paths or patterns such as "up_blocks.**", `heads` numbers from 0. The same maps without
    replaying: `words.recording(model)`.

    Raises `InputError` for a word, phrase, layer or head that is not there, `ModelError` for a model without
    cross-attention.
    """

    phrases: tuple[str, ...] | None = None
    special_tokens: bool = False
    half: Half = "conditional"
    layers: tuple[str, ...] | None = None
    heads: tuple[int, ...] | None = None

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
            given = getattr(self, name)
            if given is not None and (isinstance(given, str) or not given or len(set(given)) < len(given)):
                raise InputError(f"{name} is {given!r}. Give a tuple with at least one entry, and each once, or None.")
        if any(head < 0 for head in self.heads or ()):
            raise InputError(f"The heads {tuple(self.heads or ())} cannot be chosen: heads are counted from 0.")

    def explain(self, step: Step, advance: Advance) -> Found:
        raise InputError("A step does not know the words of its prompt, its trace does. Call Words()(trace).")

    def __call__(
        self,
        sequence: Trace | Frames,
        steps: Sequence[int] | None = None,
        *,
        show_progress: bool = False,
        advance: Advance | None = None,
    ) -> xr.Dataset:
        """Word maps by replaying the chosen steps, a call of the denoiser each; see `Attributor` and the class."""
        trace = _prompted(sequence)
        layers, words = chosen_layers(trace.model.denoiser, self.layers), words_of(self, trace, _tokens_of(trace))
        maps_at = lambda step: replayed(step, self, layers, _positions(words))  # noqa: E731
        told = _Told(self, words, maps_at, _picture_size(trace))
        return told(trace, steps, show_progress=show_progress, advance=advance)

    @contextmanager
    def recording(self, model: Model) -> Iterator["Heard"]:
        """Listen while a picture is made; afterwards `heard.maps(trace)` has the word maps, without any replay.

        >>> with Words().recording(model) as heard:                        # doctest: +SKIP
        ...     trace = model.trace("a red circle", seed=0)
        >>> maps = heard.maps(trace)                                       # doctest: +SKIP

        The picture is the same, bit for bit. One map of every token of the text is kept for each step, none of a layer.
        """
        _refuse_wordless(model)
        layers, heard = chosen_layers(model.denoiser, self.layers), Heard(self)
        wanted = lambda layer, cross: cross and layer in layers  # noqa: E731
        with (
            denoising(model.denoiser, model.pipeline.scheduler, heard.begin, heard.finish),
            attending(model.denoiser, heard.hear, wanted=wanted),
        ):
            yield heard


@dataclass(frozen=True, eq=False)
class _Told(Attributor):
    """Word maps of a trace whose words are known; `maps_at` gives the maps of all their tokens, (tokens, h, w)."""

    asked: Words
    words: Sequence[Word]
    maps_at: Callable[[Step], torch.Tensor]
    picture_size: tuple[int, int]

    title = Words.title
    reading = Words.reading

    def options(self) -> dict[str, Any]:
        return {**options_of(self.asked), "picture_size": self.picture_size}

    def explain(self, step: Step, advance: Advance) -> Found:
        maps, positions = self.maps_at(step).cpu().numpy(), _positions(self.words)
        merged = [maps[[positions.index(i) for i in word.positions]].mean(axis=0) for word in self.words]
        advance(1)
        coords = {
            "token": [word.label for word in self.words],
            "position": ("token", [word.positions[0] for word in self.words]),
            "pieces": ("token", [len(word.positions) for word in self.words]),
        }
        return {"saliency": xr.DataArray(np.stack(merged), dims=("token", "y", "x"), coords=coords)}


@dataclass(eq=False)
class Heard:
    """What a recording of word maps heard: each step's maps of every token, (pictures, tokens, h, w)."""

    asked: Words
    kept: list[torch.Tensor] = field(default_factory=list)
    last_sample: torch.Tensor | None = None
    _now: "LayerMean | None" = None

    @property
    def nbytes(self) -> int:
        """Bytes of what was kept."""
        return sum(maps.nbytes for maps in self.kept)

    def begin(self, sample: torch.Tensor) -> None:
        """The denoiser is about to be called."""
        if self._now is not None:
            raise CaptureError(
                "The denoiser was called again before a step of the pipeline's scheduler was heard: it is called once "
                "for each half of guidance, or the scheduler was swapped meanwhile. Record the trace without listening "
                "and replay it: Words()(trace)."
            )
        self._now = LayerMean(_grid_of(sample), self.asked.heads)

    def hear(self, call: AttentionCall) -> None:
        """A cross-attention layer has attended."""
        assert self._now is not None
        self._now.hear(call.layer, call.probabilities)

    def finish(self, sample: torch.Tensor) -> None:
        """The scheduler has made its step: keep the half that was asked for."""
        assert self._now is not None
        maps, self._now, self.last_sample = self._now.mean(), None, sample
        copies = len(maps) // len(sample)
        self.kept.append(_half(self.asked.half, maps.unflatten(0, (copies, len(sample))))[0].cpu())

    def maps(self, trace: Trace, steps: Sequence[int] | None = None) -> xr.Dataset:
        """The word maps of the trace that was recorded, or of one picture of it, `trace.picture(0)`.

        Raises `InputError` for another trace, and what `Words` raises.
        """
        picture = int(_prompted(trace).call.get("picture", 0))
        self._check(trace, picture)
        words = words_of(self.asked, trace, self.kept[0].shape[1])
        maps_at = lambda step: self.kept[step.index][picture, _positions(words)]  # noqa: E731
        return _Told(self.asked, words, maps_at, _picture_size(trace))(trace, steps)

    def _check(self, trace: Trace, picture: int) -> None:
        ours = None if self.last_sample is None else self.last_sample[picture : picture + trace.pictures]
        if ours is None or len(self.kept) != len(trace) or not ours.equal(trace[-1].sample):
            raise InputError(
                f"This trace of {len(trace)} steps is not what was listened to: that had {len(self.kept)} steps, or "
                "ended with another sample. Record one trace in each recording, and ask for the maps of that one."
            )


@dataclass(eq=False)
class LayerMean:
    """The mean over layers and heads of attention maps, taken layer by layer: nothing of a layer stays.

    `grid` is the sample's (h, w); `rows` of the batch and `positions` of the text are what is kept of each layer.
    """

    grid: tuple[int, int]
    heads: Sequence[int] | None = None
    rows: slice | None = None
    positions: Sequence[int] | None = None
    count: int = 0
    total: torch.Tensor | None = None

    def hear(self, layer: str, probabilities: torch.Tensor) -> None:
        """Add a layer's attention, (rows, heads, queries, tokens)."""
        chosen = self._chosen(layer, probabilities.detach()[self.rows or slice(None)])
        added = enlarged(chosen, self.grid)
        self.total = added if self.total is None else self.total + added
        self.count += chosen.shape[1]

    def _chosen(self, layer: str, probabilities: torch.Tensor) -> torch.Tensor:
        number = probabilities.shape[1]
        if self.heads is not None and max(self.heads) >= number:
            raise InputError(
                f"The layer {layer} has no head {max(self.heads)}: its heads are 0 to {number - 1}. "
                "Choose heads that all chosen layers have, or fewer layers."
            )
        if self.heads is not None:
            probabilities = probabilities[:, list(self.heads)]
        return probabilities if self.positions is None else probabilities[..., list(self.positions)]

    def mean(self) -> torch.Tensor:
        """(rows, tokens, h, w). Raises `ModelError` when no layer attended to a text."""
        if self.total is None:
            raise ModelError(
                "This model's denoiser has no cross-attention that attends from the picture to a text in the layers "
                "asked for, so there are no word maps. Layers of self-attention have none, nor do models that read "
                "text and picture as one sequence (Stable Diffusion 3, Flux). Use a model such as Stable Diffusion and "
                "its layers attn2, or another method, such as df-rise."
            )
        return self.total / self.count


def enlarged(probabilities: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Attention (rows, heads, queries, tokens) as maps (rows, tokens, h, w) on a grid, summed over heads."""
    rows, columns = grid_of(probabilities.shape[2], *grid)
    total = probabilities.new_zeros((len(probabilities), probabilities.shape[3], *grid), dtype=torch.float32)
    for head in probabilities.unbind(dim=1):
        maps = head.mT.unflatten(-1, (rows, columns)).float()
        total += interpolate(maps, size=grid, mode="bicubic").clamp(min=0)
    return total


@torch.no_grad()
def replayed(step: Step, asked: Words, layers: Sequence[str], positions: Sequence[int]) -> torch.Tensor:
    """The maps of some positions of the text, (tokens, h, w), by replaying a step of one picture."""
    if isinstance(step.replay, ReplayError):
        raise step.replay
    (row,) = _half(asked.half, torch.arange(step.replay.copies)).tolist()
    found = LayerMean(_grid_of(step.sample), asked.heads, slice(row, row + 1), positions)

    hear = lambda call: found.hear(call.layer, call.probabilities)  # noqa: E731
    with attending(step.replay.denoiser, hear, wanted=lambda layer, cross: cross and layer in layers):
        step.repeat()
        maps = found.mean()
    return maps[0]


def _half(half: Half, copies: torch.Tensor) -> torch.Tensor:
    """One of the copies of the batch, first dim still there; without guidance there is the conditional one only."""
    if half == "unconditional" and len(copies) == 1:
        raise InputError(
            "The unconditional half was asked for, and this picture was made without guidance: there is only the "
            'conditional one. Use half="conditional", or make the picture with a guidance_scale above 1.'
        )
    return copies[HALVES[half][1]]


def _grid_of(sample: torch.Tensor) -> tuple[int, int]:
    if sample.ndim != 4:
        raise ModelError(
            f"The samples of this model have shape {tuple(sample.shape)} and not (pictures, channels, h, w), so that "
            "what attends to a word has no known place. Word maps need a model whose samples are not packed."
        )
    return sample.shape[-2], sample.shape[-1]


def chosen_layers(denoiser: torch.nn.Module, patterns: Sequence[str] | None) -> tuple[str, ...]:
    """The layers that attend and that patterns name, all of them for None.

    Raises `ModelError` where there are none at all, `InputError` for a pattern that names none, with near misses.
    """
    layers, owner = tuple(attention_layers(denoiser)), f"the attention of this {type(denoiser).__name__}"
    if not layers:
        raise ModelError(
            f"This {type(denoiser).__name__} has no attention layers, so there are no word maps. Use a text-to-image "
            "model with cross-attention, such as Stable Diffusion, or another method, such as df-rise."
        )
    return layers if patterns is None else matching(layers, patterns, owner)


def words_of(asked: Words, trace: Trace, tokens: int) -> tuple[Word, ...]:
    """What has a map: the words or phrases asked for, in the text of so many tokens that the half of guidance reads.

    Raises `InputError` where there is none, or one is not in the text.
    """
    name, text = HALVES[asked.half][0], prompt_of(trace.call, HALVES[asked.half][0])
    if text is None and name == "prompt":
        raise InputError(
            "This picture was made without a prompt as text (prompt_embeds?), so its words are not known. "
            "Make it with a prompt to have maps of its words."
        )
    prompt = read(trace.model.pipeline.tokenizer, text or "", tokens)
    phrases = [word.label for word in prompt.words if _is_word(word)] if asked.phrases is None else asked.phrases
    found = [Word(phrase, phrase, prompt.positions(phrase)) for phrase in phrases]
    specials = [Word(label, label, positions) for label, positions in prompt.special.items() if asked.special_tokens]
    if not found and not specials:
        raise InputError(
            f'The text "{prompt.text}" has no words that the model reads. Give special_tokens=True for the tokens at '
            "its start and end."
        )
    return (*found, *specials)


def _is_word(word: Word) -> bool:
    """Whether it is more than a sign such as a comma."""
    return any(letter.isalnum() for letter in word.text)


def _prompted(sequence: Trace | Frames) -> Trace:
    if not isinstance(sequence, Trace):
        raise InputError(
            "Word maps are of a picture made from a prompt, and frames were given. Give a trace: model.trace(prompt)."
        )
    _refuse_wordless(sequence.model)
    return sequence


def _tokens_of(trace: Trace) -> int:
    """How many tokens the denoiser reads the text in."""
    replay = trace[0].replay
    if isinstance(replay, ReplayError):
        raise replay
    return trace.model.pipeline.tokenizer.model_max_length if replay.context is None else replay.context.shape[1]


def _refuse_wordless(model: Model) -> None:
    if not model.takes_text:
        raise ModelError(
            f"{type(model.pipeline).__name__} takes no prompt, so there are no words to show. Load a text-to-image "
            "model, or use another method, such as df-rise."
        )


def _positions(words: Sequence[Word]) -> list[int]:
    return sorted({position for word in words for position in word.positions})


def _picture_size(trace: Trace) -> tuple[int, int]:
    """Height and width of what the pipeline returned: pictures, or samples where it was asked for these."""
    image = trace.image
    if isinstance(image, torch.Tensor):
        return image.shape[-2], image.shape[-1]
    width, height = image.size if hasattr(image, "convert") else np.shape(image)[1::-1]
    return int(height), int(width)
