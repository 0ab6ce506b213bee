"""Relevance of words at each step: attention relevance, propagated from the text through the denoiser.

Sources: Chefer, Gur, Wolf 2021 (arXiv 2103.15679), "Generic attention-model explainability", equations 5 to 11;
Park, Ju, Lee 2024 (arXiv 2402.10404), relevance score.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr

from ..errors import InputError, ModelError, NumericsError
from ..recording.comparing import FAILURES, difference, refuse_memory, tolerance
from ..recording.hooks.attention import AttentionCall, attending
from ..recording.hooks.checkpointing import Blocks
from ..recording.hooks.layers import whole_graph
from ..recording.hooks.places import number_of
from ..recording.hooks.surroundings import weights_kept
from ..recording.hooks.trees import Path, leaves, map_tensors, output_of
from ..recording.layout import Layout
from ..recording.listening import Attended, Ear, listening, reading_of
from ..recording.prompts import Prompt, Word
from ..recording.reading import Reading, tensors_read
from ..recording.steps import Step
from ..recording.texts import EncodedText
from ..recording.traces import Trace
from ..targets import trace_step
from ..vision.frames import Frame, Frames
from . import Needs
from .attention import NO_TEXT, Half
from .base import Advance, Attributor, StepResult, form_of, register
from .graphs import in_room

BEYOND_SAVED = 2.0
"""The whole need, by the bytes that autograd saves: the gradient of a large attention takes several of its size."""

Matrix = Callable[[torch.Tensor], torch.Tensor]
"""A matrix as a function: it multiplies another from the left."""

# The propagation rules, as pure functions. A relevance R starts as the identity. These carry its excess R − I, which
# float32 holds exactly where R itself would round small relevance away.


def head_mean(A: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Return Ā = E_h[(∇A ⊙ A)⁺], (batch, heads, queries, keys) -> (queries, keys) in float32 (equation 5)."""
    heads = zip(gradient.flatten(0, -3), A.flatten(0, -3), strict=True)
    total = torch.zeros(A.shape[-2:], dtype=torch.float32, device=A.device)
    for of_head, probabilities in heads:  # one by one: at real size all of them together are gigabytes
        total += (of_head.float() * probabilities.float()).clamp_(min=0)
    return total / math.prod(A.shape[:-2])


def normalised(excess: torch.Tensor) -> torch.Tensor:
    """Return R̂ = (R − I) / rowsum(R − I) + I with 0/0 = 0, from the excess R − I (equations 8 and 9)."""
    total = excess.sum(dim=1, keepdim=True)
    return torch.where(total > 0, excess / total, 0) + _identity(excess)


def unit_rows(R: torch.Tensor) -> torch.Tensor:
    """Divide every row by its Euclidean length; rows of zeros stay."""
    length = torch.linalg.vector_norm(R, dim=1, keepdim=True)
    return torch.where(length > 0, R / length, 0)


def text_excess(attentions: Sequence[torch.Tensor], reduced: bool = False) -> torch.Tensor:
    """Return R_qq − I after every layer's R_qq += Ā R_qq, (tokens, tokens); `reduced`: Ā's rows are their mean."""
    excess = torch.zeros_like(attentions[0])
    for mean in attentions:
        A = mean.mean(dim=0, keepdim=True).expand_as(mean) if reduced else mean
        excess = excess + A @ (excess + _identity(excess))
    return excess


def propagated(attentions: Sequence["Attention"], text: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """Return R_iq, (positions, tokens) of the largest attention, from the denoiser's attentions in their order.

    Self-attention: R_iq += Ā R_iq, R_ii += Ā R_ii, then unit rows of R_iq. Cross-attention: R_iq += R̂_iiᵀ Ā R̂_qq.
    A layer whose keys are the text and the picture itself does both, the picture first. `text` is R_qq − I, `size` the
    sample's (h, w).
    """
    largest = max((attention.grid_in(size) for attention in attentions), key=math.prod)
    R_qq, positions = normalised(text), math.prod(largest)
    ii, iq = text.new_zeros(positions, positions), text.new_zeros(positions, len(text))
    for attention in attentions:
        up, down = _between(attention.grid_in(size), largest, text)
        if attention.own is not None:
            iq = unit_rows(iq + up(attention.own @ down(iq)))
            ii = ii + up(attention.own @ down(ii + _identity(ii)))
        if attention.cross:
            iq = iq + normalised(ii).T @ up(attention.mean @ R_qq)
        elif attention.own is None:
            iq = unit_rows(iq + up(attention.mean @ down(iq)))
            ii = ii + up(attention.mean @ down(ii + _identity(ii)))
    return iq


def propagated_joint(attentions: Sequence["Attention"], text: torch.Tensor, positions: int) -> torch.Tensor:
    """Return R_iq, (positions, tokens), where text and picture are one sequence, the text first.

    Chefer, Gur and Wolf's rule for self-attention over one sequence, R += Ā R from the identity; the picture's rows and
    the text's columns of R, times R̂_qq of the text encoders. `text` is R_qq − I.
    """
    tokens = len(text)
    R = text.new_zeros(tokens + positions, tokens + positions)  # R − I
    for attention in attentions:
        R = R + attention.mean @ (R + _identity(R))
    return R[tokens:, :tokens] @ normalised(text)


def _between(small: tuple[int, ...], large: tuple[int, ...], like: torch.Tensor) -> tuple[Matrix, Matrix]:
    """Return `resizing` as two products; a grid of full size is left alone."""
    if small == large:
        return (lambda R: R), (lambda R: R)
    if len(small) == 3:
        raise ModelError(
            f"This denoiser attends on the grids {small} and {large} of a clip, and relevance between grids of clips "
            "is not defined here. Use the maps of words, or another method."
        )
    up, down = (matrix.to(like) for matrix in resizing((small[0], small[1]), (large[0], large[1])))
    return (lambda R: up @ R), (lambda R: down @ R)


def grid_of(positions: int, height: int, width: int) -> tuple[int, int]:
    """Return the grid of so many positions in a network that halves samples (height, width), rounding up.

    >>> grid_of(24, 16, 24)
    (4, 6)

    Raises `ModelError` where no halving has so many positions.
    """
    rows, columns = height, width
    while rows * columns > positions:
        rows, columns = math.ceil(rows / 2), math.ceil(columns / 2)
    if rows * columns != positions:
        raise ModelError(
            f"An attention over {positions} positions is on no grid of a sample of {height} × {width}, halved or not, "
            "so what it attends to has no place. Only layers that attend from grids of the sample can be read."
        )
    return rows, columns


@lru_cache(maxsize=16)
def resizing(small: tuple[int, int], large: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `up` (large, small) and `down` (small, large), by which attention on a small grid acts on a large one.

    `up` interpolates bilinearly, for the positions that attend; `down` is its transpose, for those attended to: a small
    position's weight is shared out among the large ones that it is interpolated to. The rows of both sum to one, so
    `up @ Ā @ down` has the row sums of Ā: a layer weighs the same at any resolution.
    """
    cells = torch.eye(math.prod(small), dtype=torch.float32).reshape(-1, 1, *small)
    spread = torch.nn.functional.interpolate(cells, large, mode="bilinear", align_corners=False).flatten(1)
    return spread.T.contiguous(), spread / spread.sum(dim=1, keepdim=True)


def _identity(like: torch.Tensor) -> torch.Tensor:
    return torch.eye(len(like), dtype=like.dtype, device=like.device)


# Ā of a live network.


@dataclass(frozen=True, eq=False)
class Attention:
    """Ā of one attention of a layer, (queries, keys), and whether the keys are the text's.

    `grid` is the map's form that the queries have, None where it follows from their number. `own` is Ā from the picture
    to itself where the keys are the text and the picture. `joint` is True for one sequence of both, the text first.
    """

    layer: str
    cross: bool
    mean: torch.Tensor
    grid: tuple[int, ...] | None = None
    own: torch.Tensor | None = None
    joint: bool = False

    def grid_in(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Return the grid of the queries, in a sample of this size; raises `ModelError` if there is none."""
        return self.grid if self.grid is not None else grid_of(len(self.mean), size[-2], size[-1])


def weighed(network: torch.nn.Module, output: Callable[[], torch.Tensor]) -> list[Attention]:
    """Return Ā of every attention in the order of execution, for y = the sum of `output()`.

    A layer's heads are reduced to Ā as soon as their gradient is there: no more than one layer's gradients are held.
    """
    calls: list[AttentionCall] = []
    means: dict[int, torch.Tensor] = {}

    def listen(call: AttentionCall) -> None:
        A, place = call.probabilities, len(calls)
        if not A.requires_grad:
            A.requires_grad_()
        held = [A.detach()]  # a hook that held A would hold itself

        def reduce(gradient: torch.Tensor) -> None:
            means[place] = head_mean(held.pop(), gradient)
            call.release()

        on_gradient: Any = A.register_hook
        on_gradient(reduce)
        calls.append(call)

    with torch.enable_grad(), whole_graph(network):
        with weights_kept(network), attending(network, listen, through=True):
            y = output().float().sum()
        torch.autograd.grad(y, calls[0].probabilities, allow_unused=True)
    return [
        Attention(call.layer, call.cross, means[i] if i in means else _unused(call)) for i, call in enumerate(calls)
    ]


def _unused(call: AttentionCall) -> torch.Tensor:
    """Return Ā of an attention that the output does not depend on: zeros."""
    return torch.zeros(call.size, device=call.device)


def heard(step: Step, reading: Reading) -> list[Attention]:
    """Return Ā of the denoiser's attentions in the call that reads a text, in the order of execution.

    y is the sum of that call's output, in the rows of the text. Where the whole graph does not fit in memory, the
    denoiser's blocks are computed again on the way back, and one block's attention is held at a time. Raises
    `ModelError` where the text is not attended to, or a layer cannot be listened to.
    """
    predict = _alone(step, reading)

    def work(blocks: Blocks) -> list[Attention]:
        with whole_graph(step.denoiser):
            return _heard(step, reading, predict, blocks)

    return in_room("relevance", step, work, beyond=BEYOND_SAVED)


def _heard(step: Step, reading: Reading, predict: Callable[[], Any], blocks: Blocks) -> list[Attention]:
    calls: list[Attended] = []
    first: list[torch.Tensor] = []
    means: dict[int, torch.Tensor] = {}
    again: dict[int, torch.Tensor] = {}
    """Attention that was computed again, until its gradient is there."""

    def listen(attended: Attended) -> None:
        A, place, rows = attended.call.probabilities, len(calls), list(attended.rows)
        if not A.requires_grad:
            A.requires_grad_()
        # A hook that held A would hold itself; and of what is computed again nothing is held.
        held = [] if blocks.inside else [(A.detach(), attended.call)]

        def reduce(gradient: torch.Tensor) -> None:
            values, call = held.pop() if held else (again.pop(place), None)
            means[place] = head_mean(values[rows], gradient[rows])
            if call is not None:
                call.release()

        on_gradient: Any = A.register_hook
        on_gradient(reduce)
        if not calls:
            first.append(A)
        calls.append(replace(attended, call=attended.call.bare()) if blocks.inside else attended)

    with _let_go_after_failure(calls), listening(step, reading, listen, through=True, every=True) as ear:
        predict()
    if not any(attended.keys for attended in calls):
        raise ModelError(NO_TEXT)
    _refuse_silent(ear)
    places = {attended.call.site: place for place, attended in enumerate(calls)}

    def hear_again(call: AttentionCall) -> None:
        if call.site in places:
            again[places[call.site]] = call.probabilities.detach()

    y = torch.stack([tensor.float().sum() for tensor in _rows_of(ear.output, ear.rows)]).sum()
    ear.output = None

    def is_heard(path: str, cross: bool) -> bool:
        return path in ear.paths

    options = partial(attending, through=True, wanted=is_heard, once=False, required=False, entered=False)
    with options(ear.denoiser, hear_again) as blocks.around:
        torch.autograd.grad(y, first, allow_unused=True)
    used = [means[i] if i in means else _unused(attended.call) for i, attended in enumerate(calls)]
    return _in_places(calls, used, reading)


@contextmanager
def _let_go_after_failure(calls: Sequence[Attended]) -> Iterator[None]:
    """Let go of attention where the way there fails: the hooks hold it, and only run on the way back."""
    try:
        yield
    except BaseException:
        for attended in calls:
            attended.call.release()
        raise


def _rows_of(output: Any, rows: Sequence[int]) -> list[torch.Tensor]:
    """Return a denoiser's output in the rows of a text; of a list of samples, those of its places."""
    first = output[0] if isinstance(output, (tuple, list)) and len(output) else getattr(output, "sample", None)
    if isinstance(first, (tuple, list)):
        return [first[row] for row in rows]
    y = output_of(output)
    return [y[list(rows)] if len(y) > max(rows) else y]


def _alone(step: Step, reading: Reading) -> Callable[[], Any]:
    """Return the way to make the call that reads a text: alone where the denoiser can be asked so, else the step."""
    if step.hears_directly and len(step.replay.calls) == 1:
        copies = step.replay.copies
        unit = len(reading.rows)
        copy = reading.rows_of(copies * unit)[0] // unit
        if works_alone(step, copy):
            half = step.half(copy)
            return lambda: half(step.sample.detach().clone().requires_grad_())
    return step.again


@torch.no_grad()
def works_alone(step: Step, copy: int) -> bool:
    """Return True if a guidance half alone gives what it gives beside the others, as perturbed attention does not.

    Tried once a run.
    """
    run, replay = step.run, step.replay
    assert run is not None
    key = ("alone", copy, replay.copies, replay.single.name)
    if key not in run.measures:
        together = replay.single(step.sample, replay.batch)[copy]
        try:
            apart = difference(replay.half(copy)(step.sample), together)
            run.measures[key] = apart <= tolerance(replay.half(copy), step.sample, together, apart)
        except FAILURES as error:
            refuse_memory(error)
            run.measures[key] = False
    return bool(run.measures[key])


def _refuse_silent(ear: Ear) -> None:
    """Raise `ModelError` where a layer of the denoiser has no probabilities that relevance could go through."""
    silent = () if ear.measured is None else ear.measured.silent
    if silent:
        kind = type(ear.denoiser).__name__
        raise ModelError(
            f"Relevance goes through every attention, and {len(silent)} layers of this {kind}, such as {silent[0]}, "
            "have no probabilities to go through (linear attention, or a processor of its own). Use the maps of words."
        )


def _in_places(calls: Sequence[Attended], means: Sequence[torch.Tensor], reading: Reading) -> list[Attention]:
    """Return Ā with the text's columns by their numbers, and the picture's places in their order."""
    tokens = reading.prompt.length
    joint = any(attended.is_joint for attended in calls)
    attentions: list[Attention] = []
    for attended, mean in zip(calls, means, strict=True):
        if len(attended.rows) > 1:
            raise ModelError(
                f"The layer {attended.call.layer} attends within each frame of the clip, and relevance between frames "
                "is not defined here: what one frame draws from another would be missing. Use the maps of words."
            )
        attentions += _in_sequence(attended, mean, tokens) if joint else _in_grid(attended, mean, tokens)
    return attentions


def _in_grid(attended: Attended, mean: torch.Tensor, tokens: int) -> list[Attention]:
    """Return Ā of the picture to itself or to the text; nothing for keys that are neither, such as a sound's."""
    layer, queries = attended.call.layer, torch.tensor(attended.queries, device=mean.device)
    own, text = mean[queries], _text_places(attended, tokens).to(mean.device)
    if not attended.keys:
        itself = mean.shape[0] == mean.shape[1]
        return [Attention(layer, False, own[:, queries], attended.grid)] if itself else []
    of_text = {key for keys in attended.keys.values() for key in keys}
    others = [key for key in range(mean.shape[1]) if key not in of_text]
    to_itself = own[:, others] if len(others) == len(queries) else None
    return [Attention(layer, True, _columns(own, text), attended.grid, to_itself)]


def _in_sequence(attended: Attended, mean: torch.Tensor, tokens: int) -> list[Attention]:
    """Return Ā over one sequence, the text first; a layer of the picture alone leaves the text's rows at zero.

    Nothing for an attention from places that are not the map's.
    """
    if attended.grid is None:
        return []
    queries = torch.tensor(attended.queries, device=mean.device)
    text = _text_places(attended, tokens).to(mean.device)
    nowhere = torch.full_like(text, -1)
    if attended.is_joint:
        order = torch.cat([text, queries])
        sequence = _ordered(mean, order, order)
    elif mean.shape[0] == mean.shape[1]:
        sequence = _ordered(mean, torch.cat([nowhere, queries]), torch.cat([nowhere, queries]))
    else:  # to the text, or to something else than text and picture
        columns = torch.cat([text, torch.full_like(queries, -1)])
        sequence = _ordered(mean, torch.cat([nowhere, queries]), columns)
    return [Attention(attended.call.layer, False, sequence, attended.grid, joint=True)]


def _text_places(attended: Attended, tokens: int) -> torch.Tensor:
    """Return the key of each number of the text, −1 for those that are not read there."""
    return torch.tensor([attended.keys.get(number, [-1])[0] for number in range(tokens)])


def _columns(mean: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Return columns by their places, zeros for −1."""
    return torch.where(places >= 0, mean[:, places.clamp(min=0)], 0)


def _ordered(mean: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Return rows and columns by their places, zeros for −1."""
    chosen = _columns(mean, columns)[rows.clamp(min=0)]
    return torch.where(rows[:, None] >= 0, chosen, 0)


# The text side of a run.


@dataclass(frozen=True, eq=False)
class TextSide:
    """The prompt of a run, how the denoiser reads the text that is propagated, and R_qq − I of its positions."""

    prompt: Prompt
    reading: Reading
    half: Half
    excess: torch.Tensor

    @classmethod
    def of(cls, trace: Trace, negative: bool, reduced: bool) -> "TextSide":
        """Read the text side off a recorded run; raises `InputError` or `ModelError` where there is none.

        `negative` takes the other half and its text, where guidance has one. A position that several encoders fill has
        the mean of their relevance.
        """
        if not trace.model.text_encoders or not trace.model.takes_text:
            raise ModelError(
                f"{type(trace.model.pipeline).__name__} has no words to give relevance to: its denoiser reads no text. "
                "Use df-rise, or a text-to-image model such as Stable Diffusion."
            )
        prompt_side = propagated_side = reading_of(trace[0])
        half: Half = "conditional"
        if negative and reading_has_halves(trace[0]):  # without guidance there is only the prompt's
            half, propagated_side = "unconditional", reading_of(trace[0], "unconditional")
        if propagated_side.prompt.length != prompt_side.prompt.length:
            raise ModelError(
                "The negative prompt is read in another length than the prompt, so the words of the prompt have no "
                "places in it. Use relevance in place of relevance-reference."
            )
        return cls(prompt_side.prompt, propagated_side, half, _excess_of(trace[0], propagated_side, reduced))


def reading_has_halves(step: Step) -> bool:
    """Return True if the denoiser reads a negative prompt beside the prompt."""
    try:
        reading_of(step, "unconditional")
    except InputError:
        return False
    return True


def _excess_of(step: Step, reading: Reading, reduced: bool) -> torch.Tensor:
    """Return R_qq − I over the numbered positions of a text, from its encoders' own attention."""
    run, numbers = step.run, reading.prompt.length
    assert run is not None
    total, counts = torch.zeros(2, numbers, numbers, dtype=torch.float32)
    for text in reading.texts:
        if text.call is None:
            continue  # embeddings: nothing is known of the way from the words to them
        encoder = run.resumption.modules[text.call.name]
        paths = tensors_read(run, step.index, step.row or 0, text)
        output = partial(_encoded, encoder, text, paths)
        means = [attention.mean for attention in weighed(encoder, output)]
        square = [mean for mean in means if mean.shape[0] == mean.shape[1] == len(text.spans)]
        if not square:
            continue
        excess = text_excess(square, reduced).cpu()
        for one in reading.inputs:
            pairs = [
                (token, number_of(reading.inputs, path, position))
                for token, places in text.places.items()
                for path, position in places
                if path == one.path
            ]
            if not pairs:
                continue
            tokens, places = [token for token, _ in pairs], torch.tensor([place for _, place in pairs])
            total[places[:, None], places] += excess[tokens][:, tokens]
            counts[places[:, None], places] += 1
    mean: torch.Tensor = total / counts.clamp(min=1)
    return mean.to(step.sample.device)


def _encoded(encoder: torch.nn.Module, text: EncodedText, paths: Sequence[Path]) -> torch.Tensor:
    """Return the vectors that an encoder gives a text and the denoiser depends on, with their graph."""
    assert text.call is not None
    rows = len(text.call.ids)

    def own(tensor: torch.Tensor) -> torch.Tensor:
        return tensor[text.row : text.row + 1] if tensor.ndim and len(tensor) == rows else tensor

    args, kwargs = map_tensors(own, (text.call.args, text.call.kwargs))
    tensors = leaves(encoder(*args, **kwargs))
    return torch.cat([tensors[path].flatten() for path in paths])


# The method.

_PAPER_READING = (
    "High where the prediction of this step draws on the word. The map is the share of each place in the "
    "word's relevance; compare places, and words at the same step. Magnitudes of different steps are those of "
    "different gradients: the curves are scaled at every step."
)
_REFERENCE_READING = (
    "The published code's arithmetic, which reads the empty prompt instead of the prompt: what it says of "
    "a word is what is said of its place in the prompt. It is here to compare with published figures."
)


@register("relevance")
@dataclass(frozen=True, kw_only=True)
class Relevance(Attributor):
    """The relevance of each word of the prompt at each step, propagated through every attention layer.

    >>> words = Relevance()(trace)
    >>> lines = words.relevance_scaled.sel(token="circle").plot()

    Variables: `relevance` (step, token), ρ_k(t) = Σ_i R_iq[i, k], raw; `relevance_scaled`, ρ min–max over the prompt's
    words at every step (0 where all are the same); `saliency` (step, token, y, x), the column R_iq[:, k] on the
    sample's grid. `token` are the prompt's words, a repeated one with its count, "a (2)".

    `Relevance.paper()`, which `Relevance()` is too, is the definition: the half of the denoiser that reads the prompt,
    its attentions in the order in which they run, whole matrices, a word at a time. `Relevance.reference()` is the
    published code's arithmetic. `negative`: the half that reads the negative prompt, and the text side of that prompt
    (without guidance there is only the prompt's). `reduced`: the mean of Ā over the tokens that attend in place of each
    row of text Ā. `by_block`: blocks from up to down to mid. `last_repetition`: of repeated words the last counts for
    all.

    Chosen where the sources are silent: Ā is resized bilinearly on the grid with its row sums kept (`resizing`);
    each encoder of a pipeline with two has its own R_qq and their mean is used; the relevance of word pieces is added
    up before it is scaled; special tokens and padding take part without a map, words that were cut off do not.
    Raises `ModelError` for models without a text encoder or without cross-attention.
    """

    needs: ClassVar[Needs | None] = "words"
    every_step: ClassVar[bool] = True

    negative: bool = False
    reduced: bool = False
    by_block: bool = False
    last_repetition: bool = False
    title: str = "Relevance of words"
    reading: str = field(default=_PAPER_READING, repr=False)

    @classmethod
    def paper(cls) -> "Relevance":
        """Return the definition."""
        return cls()

    @classmethod
    def reference(cls) -> "Relevance":
        """Return the published code's arithmetic."""
        return cls(
            negative=True,
            reduced=True,
            by_block=True,
            last_repetition=True,
            title="Relevance of words, reference",
            reading=_REFERENCE_READING,
        )

    def options(self) -> dict[str, Any]:
        return {**super().options(), "form": form_of(self.title) or "paper"}

    def prepared(self, sequence: Trace | Frames) -> "Attributor":
        if not isinstance(sequence, Trace):
            raise InputError("Photographs have no prompt, so there are no words to give relevance to. Give a trace.")
        text = TextSide.of(sequence, self.negative, self.reduced)
        return _RelevanceOfRun(self, text, self.title, self.reading)


@dataclass(frozen=True, eq=False)
class _RelevanceOfRun(Attributor):
    """`Relevance` for the steps of a run whose text side is read."""

    settings: Relevance
    text: TextSide
    title: str
    reading: str

    def options(self) -> dict[str, Any]:
        return self.settings.options()

    def explain(self, step: Step | Frame, advance: Advance) -> StepResult:
        step = trace_step(step)
        reading = reading_of(step, self.text.half)  # another denoiser's, where several take turns
        own = reading is self.text.reading
        excess = self.text.excess if own else _excess_of(step, reading, self.settings.reduced)
        attentions, shape = heard(step, reading), step.layout.shape
        if self.settings.by_block:
            attentions.sort(key=_published_place)
        grid = max((attention.grid_in(shape) for attention in attentions), key=math.prod)
        if attentions[0].joint:
            R_iq = propagated_joint(attentions, excess, math.prod(grid))
        else:
            R_iq = propagated(attentions, excess, shape)
        if not torch.isfinite(R_iq).all():
            raise NumericsError(
                f"The gradients at step {step.index} (time step {step.timestep:g}) have NaN or infinite values. Only "
                "finite ones can be explained. Load the model with dtype=torch.float32."
            )
        if self.settings.negative:
            self._refuse_masked(R_iq)
        advance(1)
        return self._by_word(R_iq, grid, step.layout)

    def _refuse_masked(self, R_iq: torch.Tensor) -> None:
        """Raise `ModelError` where the negative prompt is masked padding at the places of a word."""
        for word in self.text.prompt.words:
            if not R_iq[:, list(word.positions)].any():
                raise ModelError(
                    f"The published arithmetic reads the negative prompt, which is masked padding at the place of "
                    f'"{word.label}", so it has nothing to say of that word. Use relevance.'
                )

    def _by_word(self, R_iq: torch.Tensor, grid: tuple[int, ...], layout: Layout) -> StepResult:
        words = self.text.prompt.words
        columns = torch.stack([R_iq[:, list(word.positions)].sum(dim=1) for word in self._counted(words)])
        maps = columns.reshape(1, -1, *grid)
        if grid != layout.shape:
            mode = "bilinear" if len(grid) == 2 else "trilinear"
            maps = torch.nn.functional.interpolate(maps, list(layout.shape), mode=mode)
        relevance = columns.sum(dim=1).cpu().numpy()
        labelled = partial(xr.DataArray, coords={"token": [word.label for word in words]})
        return {
            "saliency": labelled(maps[0].cpu().numpy(), dims=("token", *layout.dims)),
            "relevance": labelled(relevance, dims="token"),
            "relevance_scaled": labelled(scaled(relevance), dims="token"),
        }

    def _counted(self, words: Sequence[Word]) -> list[Word]:
        """Return, for each word, the word whose relevance it gets."""
        last = {word.text: word for word in words}
        return [last[word.text] if self.settings.last_repetition else word for word in words]


def scaled(values: np.ndarray) -> np.ndarray:
    """Return values brought to 0..1 by their smallest and largest; zeros where all are the same."""
    result: np.ndarray = (values - values.min()) / (np.ptp(values) or 1.0)
    return result


def _published_place(attention: Attention) -> int:
    """Return the place of an attention's block in the published order: up, down, mid, others."""
    parts = ("up", "down", "mid")
    return next((i for i, part in enumerate(parts) if attention.layer.startswith(part)), len(parts))


def totals(result: xr.Dataset) -> xr.DataArray:
    """Return Σ_t ρ_k(t), ρ scaled to 0..1 over the words at every step, (token).

    Raw relevance is not added up: gradients have other sizes at other steps, and the largest would decide.
    """
    return result["relevance_scaled"].sum("step")


register("relevance-reference")(Relevance.reference)
