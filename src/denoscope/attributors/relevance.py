"""Which words a step serves: attention relevance, propagated from the text through the denoiser.

Sources: Chefer, Gur, Wolf 2021 (arXiv 2103.15679), "Generic attention-model explainability", equations 5 to 11;
Park, Ju, Lee 2024 (arXiv 2402.10404), relevance score.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr

from ..errors import InputError, ModelError, NumericsError, did_you_mean
from ..recording.hooks.attention import AttentionCall, attending
from ..recording.hooks.replay import Replay
from ..recording.prompts import Prompt, Word, prompt_of, read
from ..recording.traces import Step, Trace
from ..vision.frames import Frames
from .base import Advance, Attributor, Found, choose, register

Matrix = Callable[[torch.Tensor], torch.Tensor]
"""A matrix by what it does to another."""

# The propagation rules, as pure functions. A relevance R starts as the identity; what is carried here is its excess
# R − I, which float32 holds exactly where R itself would round small relevance away.


def head_mean(A: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Ā = E_h[(∇A ⊙ A)⁺], (batch, heads, queries, keys) -> (queries, keys) in float32 (equation 5)."""
    return (gradient.float() * A.float()).clamp(min=0).flatten(0, -3).mean(dim=0)


def normalised(excess: torch.Tensor) -> torch.Tensor:
    """R̂ = (R − I) / rowsum(R − I) + I with 0/0 = 0, from the excess R − I (equations 8 and 9)."""
    total = excess.sum(dim=1, keepdim=True)
    return torch.where(total > 0, excess / total, 0) + _identity(excess)


def unit_rows(R: torch.Tensor) -> torch.Tensor:
    """Every row divided by its Euclidean length; rows of zeros stay."""
    length = torch.linalg.vector_norm(R, dim=1, keepdim=True)
    return torch.where(length > 0, R / length, 0)


def text_excess(attentions: Sequence[torch.Tensor], reduced: bool = False) -> torch.Tensor:
    """R_qq − I after every layer's R_qq += Ā R_qq, (tokens, tokens); `reduced` replaces Ā's rows by their mean."""
    excess = torch.zeros_like(attentions[0])
    for mean in attentions:
        A = mean.mean(dim=0, keepdim=True).expand_as(mean) if reduced else mean
        excess = excess + A @ (excess + _identity(excess))
    return excess


def propagated(attentions: Sequence["Attention"], text: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """R_iq, (positions, tokens) of the largest attention, from the denoiser's attentions in the order given.

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
    """`resizing` as two products; what is of full size already is left alone."""
    if small == large:
        return (lambda R: R), (lambda R: R)
    up, down = (matrix.to(like) for matrix in resizing(small, large))
    return (lambda R: up @ R), (lambda R: down @ R)


def grid_of(positions: int, height: int, width: int) -> tuple[int, int]:
    """The grid of so many positions in a network that halves samples (height, width), rounding up.

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
    """How attention on a small grid acts on a large one: `up` (large, small) and `down` (small, large).

    `up` interpolates bilinearly, for the positions that attend; `down` is its transpose, for those attended to: a small
    position's weight is shared out among the large ones that it is interpolated to. The rows of both sum to one, so
    `up @ Ā @ down` has the row sums of Ā: a layer weighs the same at any resolution.
    """
    cells = torch.eye(math.prod(small)).reshape(-1, 1, *small)
    spread = torch.nn.functional.interpolate(cells, large, mode="bilinear", align_corners=False).flatten(1)
    return spread.T.contiguous(), spread / spread.sum(dim=1, keepdim=True)


def _identity(like: torch.Tensor) -> torch.Tensor:
    return torch.eye(len(like), device=like.device)


# Ā of a live network.


@dataclass(frozen=True, eq=False)
class Attention:
    """Ā of one attention of a layer, (queries, keys), and whether the keys are the text's."""

    layer: str
    cross: bool
    mean: torch.Tensor


def weighed(network: torch.nn.Module, output: Callable[[], torch.Tensor]) -> list[Attention]:
    """Ā of every attention in the order of execution, for y = the sum of what `output()` gives.

    What a head has is reduced to Ā as soon as its gradient is known: no more than one layer's gradients are held.
    """
    heard: list[AttentionCall] = []
    means: dict[int, torch.Tensor] = {}

    def listen(call: AttentionCall) -> None:
        A, place = call.probabilities, len(heard)
        if not A.requires_grad:
            A.requires_grad_()
        known = A.detach()  # a hook that held A would hold itself
        A.register_hook(lambda gradient: means.update({place: head_mean(known, gradient)}))
        heard.append(call)

    with torch.enable_grad():
        with attending(network, listen, through=True):
            y = output().float().sum()
        torch.autograd.grad(y, heard[0].probabilities, allow_unused=True)
    return [Attention(call.layer, call.cross, means.get(i, _unused(call))) for i, call in enumerate(heard)]


def _unused(call: AttentionCall) -> torch.Tensor:
    """Ā of an attention that the output does not depend on."""
    return torch.zeros(call.probabilities.shape[-2:], device=call.probabilities.device)


# What a run was told.


@dataclass(frozen=True, eq=False)
class Told:
    """The prompt of a run, which guidance half of the denoiser's batch is propagated, and R_qq − I of its text."""

    denoiser: torch.nn.Module
    prompt: Prompt
    half: int
    excess: torch.Tensor

    @classmethod
    def of(cls, trace: Trace, conditional: bool, reduced: bool) -> "Told":
        """Read the text side off a recorded run; raises `InputError` or `ModelError` where there is none.

        Which half is the prompt's is not assumed: it is the one with the prompt's own embedding.
        """
        context, text = _context(trace), prompt_of(trace.call)
        if text is None:
            raise InputError(
                "The relevance of words needs the prompt that the picture was made of, and this run was made of "
                "prompt_embeds. Give the prompt as a text when recording."
            )
        embed = lambda text: trace.model.embedding(text, context.shape[1], trace.call.get("clip_skip"))  # noqa: E731
        half = _own_half(context, embed(text))
        if not conditional and len(context) == 2:
            half, said = 1 - half, prompt_of(trace.call, "negative_prompt") or ""
        else:
            said = text
        excess = [
            text_excess([attention.mean for attention in weighed(encoder, lambda: embed(said))], reduced)
            for encoder in trace.model.text_encoders
        ]
        prompt = read(trace.model.pipeline.tokenizer, text, context.shape[1])
        return cls(trace.model.denoiser, prompt, half, torch.stack(excess).mean(dim=0))


def _context(trace: Trace) -> torch.Tensor:
    replay = trace[0].replay
    if not isinstance(replay, Replay):
        raise replay
    if not trace.model.text_encoders or not trace.model.takes_text or replay.context is None:
        raise ModelError(
            f"{type(trace.model.pipeline).__name__} has no words to give relevance to: its denoiser reads no text by "
            "cross-attention. Use df-rise, or a text-to-image model such as Stable Diffusion."
        )
    return replay.context


@torch.no_grad()
def _own_half(context: torch.Tensor, embedding: torch.Tensor) -> int:
    """Which of the halves has the prompt's embedding; raises `ModelError` when none has it."""
    scale = embedding.abs().max().clamp(min=1e-12)
    apart = [
        float((own - embedding).abs().max() / scale) if own.shape == embedding.shape else math.inf
        for own in context.chunk(len(context))
    ]
    nearest = min(range(len(apart)), key=lambda half: apart[half])
    if not apart[nearest] <= EMBEDDING_TOLERANCE:
        raise ModelError(
            "The text that the denoiser read is not what the pipeline's text encoder makes of the prompt now: they are "
            f"{apart[nearest]:.2g} (relative) apart. Was it changed, by prompt_embeds, a second prompt, weights that "
            "were loaded since? Relevance needs a denoiser that reads the encoded prompt and nothing else."
        )
    return nearest


EMBEDDING_TOLERANCE = 1e-2
"""Of half precision; another text is about one away."""


# The method.

VariantName = Literal["paper", "reference"]
READINGS = {
    "paper": "High where the prediction of this step draws on the word. The map is the share of each place in the "
    "word's relevance; compare places, and words at the same step. Magnitudes of different steps are those of "
    "different gradients: the curves are scaled at every step.",
    "reference": "The published code's arithmetic, which reads the empty prompt instead of the prompt: what it says of "
    "a word is what is said of its place in the prompt. It is here to compare with published figures.",
}


@register("relevance")
@dataclass(frozen=True)
class Relevance(Attributor):
    """How much each word of the prompt counts at each step, by relevance propagated through every attention layer.

    >>> words = Relevance()(trace)                          # doctest: +SKIP
    >>> words.relevance_scaled.sel(token="circle").plot()   # doctest: +SKIP

    Variables: `relevance` (step, token), ρ_k(t) = Σ_i R_iq[i, k], raw; `relevance_scaled`, ρ min–max over the prompt's
    words at every step (0 where all are the same); `saliency` (step, token, y, x), the column R_iq[:, k] on the
    sample's grid. `token` are the prompt's words, a repeated one with its count, "a (2)".

    "paper" is the definition: the half of the denoiser that reads the prompt, its attentions in the order in which
    they run, whole matrices, a word at a time. "reference" is the published code's arithmetic: the half that reads the
    negative prompt, and the text side of that prompt (without guidance there is only the prompt's); the mean of Ā over
    the tokens that attend in place of each row of text Ā; blocks from up to down to mid; of repeated words the last
    counts for all.

    Chosen where the sources are silent: Ā is resized bilinearly on the grid with its row sums kept (`resizing`);
    each encoder of a pipeline with two has its own R_qq and their mean is used; the relevance of word pieces is added
    up before it is scaled; special tokens and padding take part and are not shown, words that were cut off neither.
    Raises `ModelError` for models without a text encoder or without cross-attention, `InputError` for other options.
    """

    variant: VariantName = "paper"
    _told: Told | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.variant not in READINGS:
            raise InputError(f'Relevance has no variant "{self.variant}". {did_you_mean(self.variant, READINGS)}')

    @property
    def title(self) -> str:  # type: ignore[override]
        return "Relevance of words" if self.variant == "paper" else "Relevance of words, reference"

    @property
    def reading(self) -> str:  # type: ignore[override]
        return READINGS[self.variant]

    def options(self) -> dict[str, Any]:
        return {"variant": self.variant}

    def __call__(
        self,
        sequence: Trace | Frames,
        steps: Sequence[int] | None = None,
        *,
        show_progress: bool = False,
        advance: Advance | None = None,
    ) -> xr.Dataset:
        """Explain the chosen steps; the text side is worked out once for all of them. Raises as every attributor."""
        choose(sequence, steps)
        knowing = replace(self, _told=self._told or self._read(sequence))
        return Attributor.__call__(knowing, sequence, steps, show_progress=show_progress, advance=advance)

    def _read(self, sequence: Trace | Frames) -> Told:
        if not isinstance(sequence, Trace):
            raise InputError("Photographs have no prompt, so there are no words to give relevance to. Give a trace.")
        return Told.of(sequence, conditional=self.variant == "paper", reduced=self.variant == "reference")

    def explain(self, step: Step, advance: Advance) -> Found:
        told = self._told
        assert told is not None  # since __call__
        predict, size = step.half(told.half), (step.sample.shape[-2], step.sample.shape[-1])
        attentions = weighed(told.denoiser, lambda: predict(step.sample))
        _refuse_joint(attentions, told)
        if self.variant == "reference":
            attentions.sort(key=_visited)
        R_iq = propagated(attentions, told.excess, size)
        if not torch.isfinite(R_iq).all():
            raise NumericsError(
                f"The gradients at step {step.index} (time step {step.timestep:g}) have NaN or infinite values. Only "
                "finite ones can be explained. Load the model with dtype=torch.float32."
            )
        advance(1)
        return self._by_word(R_iq, told.prompt.words, grid_of(len(R_iq), *size), size)

    def _by_word(
        self, R_iq: torch.Tensor, words: Sequence[Word], grid: tuple[int, int], size: tuple[int, int]
    ) -> Found:
        counted = words if self.variant == "paper" else [{w.text: w for w in words}[word.text] for word in words]
        columns = torch.stack([R_iq[:, list(word.positions)].sum(dim=1) for word in counted])
        maps = torch.nn.functional.interpolate(columns.reshape(1, -1, *grid), size, mode="bilinear")[0]
        relevance = columns.sum(dim=1).cpu().numpy()
        coords = {"token": [word.label for word in words]}
        labelled = partial(xr.DataArray, coords=coords)
        return {
            "saliency": labelled(maps.cpu().numpy(), dims=("token", "y", "x")),
            "relevance": labelled(relevance, dims="token"),
            "relevance_scaled": labelled(scaled(relevance), dims="token"),
        }


def scaled(values: np.ndarray) -> np.ndarray:
    """Min–max to 0 and 1; zeros where all are the same."""
    return (values - values.min()) / (np.ptp(values) or 1.0)


def _refuse_joint(attentions: Sequence[Attention], told: Told) -> None:
    crossing = [attention for attention in attentions if attention.cross]
    if not crossing or any(attention.mean.shape[1] != told.prompt.length for attention in crossing):
        raise ModelError(
            f"This {type(told.denoiser).__name__} has no cross-attention from places to the {told.prompt.length} "
            "tokens of the prompt: it reads the text in another way (joint attention, an image prompt), which "
            "relevance is not defined for. Use df-rise, or a model such as Stable Diffusion."
        )


def _visited(attention: Attention) -> int:
    """The published order of blocks: up, down, mid."""
    return next((i for i, part in enumerate(("up", "down", "mid")) if attention.layer.startswith(part)), 3)


def totals(result: xr.Dataset) -> xr.DataArray:
    """Σ_t ρ_k(t), ρ scaled to 0..1 over the words at every step, (token): how much each word counted over the steps.

    Raw relevance is not added up: gradients have other sizes at other steps, and the largest would decide.
    """
    return result["relevance_scaled"].sum("step")


register("relevance-reference")(partial(Relevance, variant="reference"))
