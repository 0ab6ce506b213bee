"""Relevance of words at each step: attention relevance, propagated from the text through the denoiser.

Sources: Chefer, Gur, Wolf 2021 (arXiv 2103.15679), "Generic attention-model explainability", equations 5 to 11;
Park, Ju, Lee 2024 (arXiv 2402.10404), relevance score.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr

from ..errors import InputError, ModelError, NumericsError
from ..recording.hooks.attention import AttentionCall, attending
from ..recording.hooks.layers import whole_graph
from ..recording.prompts import Prompt, Word, prompt_of, read
from ..recording.steps import Step
from ..recording.traces import Trace
from ..targets import trace_step
from ..vision.frames import Frame, Frames
from . import Needs
from .base import Advance, Attributor, StepResult, form_of, register

Matrix = Callable[[torch.Tensor], torch.Tensor]
"""A matrix as a function: it multiplies another from the left."""

# The propagation rules, as pure functions. A relevance R starts as the identity. These carry its excess R − I, which
# float32 holds exactly where R itself would round small relevance away.


def head_mean(A: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Return Ā = E_h[(∇A ⊙ A)⁺], (batch, heads, queries, keys) -> (queries, keys) in float32 (equation 5)."""
    return (gradient.float() * A.float()).clamp(min=0).flatten(0, -3).mean(dim=0)


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


def propagated(attentions: Sequence["Attention"], text: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return R_iq, (positions, tokens) of the largest attention, from the denoiser's attentions in their order.

    Self-attention: R_iq += Ā R_iq, R_ii += Ā R_ii, then unit rows of R_iq. Cross-attention: R_iq += R̂_iiᵀ Ā R̂_qq.
    `text` is R_qq − I, `size` the sample's (h, w).
    """
    largest = max((grid_of(len(attention.mean), *size) for attention in attentions), key=math.prod)
    R_qq, positions = normalised(text), math.prod(largest)
    ii, iq = text.new_zeros(positions, positions), text.new_zeros(positions, len(text))
    for attention in attentions:
        up, down = _between(grid_of(len(attention.mean), *size), largest, text)
        if attention.cross:
            iq = iq + normalised(ii).T @ up(attention.mean @ R_qq)
        else:
            iq = unit_rows(iq + up(attention.mean @ down(iq)))
            ii = ii + up(attention.mean @ down(ii + _identity(ii)))
    return iq


def _between(small: tuple[int, int], large: tuple[int, int], like: torch.Tensor) -> tuple[Matrix, Matrix]:
    """Return `resizing` as two products; a grid of full size is left alone."""
    if small == large:
        return (lambda R: R), (lambda R: R)
    up, down = (matrix.to(like) for matrix in resizing(small, large))
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
    """Ā of one attention of a layer, (queries, keys), and whether the keys are the text's."""

    layer: str
    cross: bool
    mean: torch.Tensor


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
        values = A.detach()  # a hook that held A would hold itself

        def reduce(gradient: torch.Tensor) -> None:
            means[place] = head_mean(values, gradient)

        on_gradient: Any = A.register_hook
        on_gradient(reduce)
        calls.append(call)

    with torch.enable_grad(), whole_graph(network):
        with attending(network, listen, through=True):
            y = output().float().sum()
        torch.autograd.grad(y, calls[0].probabilities, allow_unused=True)
    return [Attention(call.layer, call.cross, means.get(i, _unused(call))) for i, call in enumerate(calls)]


def _unused(call: AttentionCall) -> torch.Tensor:
    """Return Ā of an attention that the output does not depend on: zeros."""
    return torch.zeros(call.probabilities.shape[-2:], device=call.probabilities.device)


# The text side of a run.


@dataclass(frozen=True, eq=False)
class TextSide:
    """The prompt of a run, the guidance half of the denoiser's batch that is propagated, and R_qq − I of its text."""

    denoiser: torch.nn.Module
    prompt: Prompt
    half: int
    excess: torch.Tensor

    @classmethod
    def of(cls, trace: Trace, negative: bool, reduced: bool) -> "TextSide":
        """Read the text side off a recorded run; raises `InputError` or `ModelError` where there is none.

        The prompt's half is the one with the prompt's own embedding. `negative` takes the other half and its text,
        where guidance has one.
        """
        context, text = _context(trace), prompt_of(trace.call)
        if text is None:
            raise InputError(
                "The relevance of words needs the prompt that the picture was made of, and this run was made of "
                "prompt_embeds. Give the prompt as a text when recording."
            )

        def embed(text: str) -> torch.Tensor:
            embedding: torch.Tensor = trace.model.embedding(text, context.shape[1], trace.call.get("clip_skip"))
            return embedding

        half, propagated_text = trace.prompt_half(), text
        if negative and len(context) == 2:
            half, propagated_text = 1 - half, prompt_of(trace.call, "negative_prompt") or ""
        excess = []
        for encoder in trace.model.text_encoders:
            attentions = weighed(encoder, lambda: embed(propagated_text))
            excess.append(text_excess([attention.mean for attention in attentions], reduced))
        prompt = read(trace.model.pipeline.tokenizer, text, context.shape[1])
        return cls(trace.model.denoiser, prompt, half, torch.stack(excess).mean(dim=0))


def _context(trace: Trace) -> torch.Tensor:
    """Return what cross-attention reads, (halves, tokens, features); raises `ModelError` where nothing is read."""
    replay = trace[0].replay
    if not trace.model.text_encoders or not trace.model.takes_text or replay.context is None:
        raise ModelError(
            f"{type(trace.model.pipeline).__name__} has no words to give relevance to: its denoiser reads no text by "
            "cross-attention. Use df-rise, or a text-to-image model such as Stable Diffusion."
        )
    return replay.context


def refuse_packed_and_clips(trace: Trace) -> None:
    """Raise `ModelError` for samples that are packed or have frames: it is not known what place reads a word there."""
    layout = trace[0].layout
    if layout.frames is not None or "p" in layout.order:
        form = "packed" if layout.frames is None else "of a clip"
        raise ModelError(
            f"The samples of this model, {tuple(trace[0].sample.shape)}, are {form}, and the maps and the relevance of "
            "words need samples of a picture that are not packed: use another method, such as df-rise."
        )


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
        refuse_packed_and_clips(sequence)
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
        without_guidance = step.replay.copies == 1  # a callback may end guidance during the run
        predict, size = step.half(0 if without_guidance else self.text.half), step.grid
        attentions = weighed(self.text.denoiser, lambda: predict(step.sample))
        _refuse_joint(attentions, self.text)
        if self.settings.by_block:
            attentions.sort(key=_published_place)
        R_iq = propagated(attentions, self.text.excess, size)
        if not torch.isfinite(R_iq).all():
            raise NumericsError(
                f"The gradients at step {step.index} (time step {step.timestep:g}) have NaN or infinite values. Only "
                "finite ones can be explained. Load the model with dtype=torch.float32."
            )
        advance(1)
        return self._by_word(R_iq, grid_of(len(R_iq), *size), size)

    def _by_word(self, R_iq: torch.Tensor, grid: tuple[int, int], size: tuple[int, int]) -> StepResult:
        words = self.text.prompt.words
        columns = torch.stack([R_iq[:, list(word.positions)].sum(dim=1) for word in self._counted(words)])
        maps = torch.nn.functional.interpolate(columns.reshape(1, -1, *grid), size, mode="bilinear")[0]
        relevance = columns.sum(dim=1).cpu().numpy()
        labelled = partial(xr.DataArray, coords={"token": [word.label for word in words]})
        return {
            "saliency": labelled(maps.cpu().numpy(), dims=("token", "y", "x")),
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


def _refuse_joint(attentions: Sequence[Attention], text: TextSide) -> None:
    """Raise `ModelError` where no attention goes from places to the prompt's tokens."""
    crossing = [attention for attention in attentions if attention.cross]
    if not crossing or any(attention.mean.shape[1] != text.prompt.length for attention in crossing):
        raise ModelError(
            f"This {type(text.denoiser).__name__} has no cross-attention from places to the {text.prompt.length} "
            "tokens of the prompt: it reads the text in another way (joint attention, an image prompt), which "
            "relevance is not defined for. Use df-rise, or a model such as Stable Diffusion."
        )


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
