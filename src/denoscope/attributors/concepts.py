"""Concept maps: where a picture has something that need not be in its prompt, without making it a second time.

Sources: Helbling et al. 2025, ConceptAttention (ICML, arXiv 2502.04320), for joint attention: concepts attend to the
picture, the picture not to them, and both are compared by what their attention hands on. Marcos-Manchón et al. 2024,
Open-Vocabulary Attention Maps (CVPR), for cross-attention: other keys for the same queries.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr

from ..errors import CaptureError, InputError, ModelError
from ..recording.hooks.attention import AttentionCall, Site, attention_instead, repeated_heads
from ..recording.hooks.blanks import same_tree
from ..recording.hooks.layers import without_hooks
from ..recording.hooks.places import Measured, Places, Tree
from ..recording.hooks.surroundings import Autocast
from ..recording.hooks.trees import Path, leaves, map_tensors, with_leaves
from ..recording.listening import Attended, Ear, inputs_in, listening, reading_of
from ..recording.reading import Reading, read_instead
from ..recording.steps import Step
from ..recording.traces import Trace
from ..targets import trace_step
from ..vision.frames import Frame, Frames
from . import Needs
from .attention import LayerMean, chosen_layers, enlarged_clip
from .base import Advance, Attributor, StepResult, picture_size, register
from .words import prompted

NOTHING = ""
"""The text of no concept, beside which concepts and the prompt are compared."""

TINY = 1e-12
"""The least product of two vectors that is divided by."""


@register("concepts")
@dataclass(frozen=True)
class Concepts(Attributor):
    """Maps of words that need not be in the prompt, for every step.

    >>> maps = Concepts(("sky", "fur"))(trace, steps=[6])                             # doctest: +SKIP
    >>> maps.saliency.sel(step=6, token="fur").plot()                                  # doctest: +SKIP

    Each concept is a text of its own, read by the pipeline's encoders in the prompt's place; the step is made again as
    it was, and beside it a call in which the concept stands for the prompt and the picture stays the recorded one, in
    every layer.

    Cross-attention (Stable Diffusion, PixArt, Wan): softmax(Q Kᵀ / √d) of the picture's queries and the concept's
    keys, mean over layers, heads and the concept's tokens, as word maps are, 0 to 1. Joint attention (Stable Diffusion
    3, Flux, Qwen-Image): the concept attends to the picture and itself, the picture never to the concept. In every
    layer the inner products of the picture's attention outputs with the concept's, softmax over the concepts at each
    place, mean over layers: shares that add up to 1, so at least two concepts are needed. The result's attribute
    `compared` says which.

    Attention weights alone do not say that a concept is *not* there: any name of a thing attends to things. So with
    cross-attention there are three variables more, ours. `agreement` (step, token, [frame,] y, x), −1 to 1, is the
    cosine between what attention hands a place for the concept and what it handed it for the prompt, both without what
    it hands for an empty text, the vectors of all layers side by side, each layer in units of its mean strength.
    `presence` (step, token) is the mean of its largest tenth. `absent` (step, token) is 1 where the presence is below
    `ABSENT`, or below the share `FAINT` of the strongest one's: nothing in the picture is read as the concept is. Of
    the others nothing is said. Longer descriptions have a higher presence: ask for concepts of like length together.

    `layers` are dotted paths or patterns. Raises `InputError` for no concept, an empty one or one that
    is given twice, `ModelError` for a denoiser that reads no text by attention.
    """

    needs: ClassVar[Needs | None] = "concepts"

    concepts: tuple[str, ...] = ()
    layers: tuple[str, ...] | None = None

    title = "Concept maps"
    reading = (
        "High where the picture goes with the concept at this step. Concepts are texts of their own and need not be in "
        "the prompt. A high place does not say that the concept is there: things are attended to under the name of "
        "other things too. The presence, given for each step, is lower for a concept that is not there."
    )

    def __post_init__(self) -> None:
        texts: Any = self.concepts
        if isinstance(texts, str) or not all(isinstance(text, str) and text.strip() for text in texts):
            raise InputError(f'concepts is {texts!r}. Give a tuple of texts, such as ("sky", "fur").')
        if len(set(texts)) < len(texts):
            raise InputError(f"concepts is {texts!r}. Give each concept once.")

    def prepared(self, sequence: Trace | Frames) -> Attributor:
        if not self.concepts:
            raise InputError('No concept was given. Name at least one: Concepts(("sky", "fur")).')
        trace = prompted(sequence, "Concept maps are")
        layers = frozenset(chosen_layers(trace[0].denoiser, self.layers))
        return _ConceptsOfRun(self, layers, picture_size(trace))


@dataclass(frozen=True, eq=False)
class _ConceptsOfRun(Attributor):
    settings: Concepts
    layers: frozenset[str]
    picture_size: tuple[int, int]
    notes: dict[str, Any] = field(default_factory=dict)

    title = Concepts.title
    reading = Concepts.reading

    def options(self) -> dict[str, Any]:
        return {**self.settings.options(), "picture_size": self.picture_size, **self.notes}

    @torch.no_grad()
    def explain(self, step: Step | Frame, advance: Advance) -> StepResult:
        step = trace_step(step)
        asking = Asking(step, self.settings.concepts, self.layers.__contains__)
        maps = asking.maps()
        self.notes["compared"] = "attention outputs" if asking.is_joint else "attention weights"
        advance(1)
        labelled = partial(xr.DataArray, coords={"token": list(self.settings.concepts)})
        dims = ("token", *step.layout.dims)
        results = {"saliency": labelled(maps.cpu().numpy(), dims=dims)}
        if not asking.is_joint:
            agreement = asking.agreement().cpu().numpy()
            presence = largest_tenth(agreement)
            results["agreement"] = labelled(agreement, dims=dims)
            results["presence"] = labelled(presence, dims="token")
            results["absent"] = labelled(absent(presence).astype(np.int8), dims="token")
        return results


ABSENT, FAINT = 0.25, 0.45
"""The presence, and the share of the strongest concept's, below which a concept is said not to be in the picture.

Chosen on 22 scenes of the bundled model. On 60 others, benchmarks/concepts.py, they told 68 to 88 % of the phrases of
objects that were not there, and wrongly none of the whole phrases of those that were and up to 3 % of short ones. Of
another model they are only known to be low.
"""


def absent(presence: np.ndarray) -> np.ndarray:
    """Return which concepts, asked for together, are said not to be in the picture: (concepts) of presence -> bool."""
    below: np.ndarray = presence < max(ABSENT, FAINT * float(presence.max()))
    return below


def largest_tenth(maps: np.ndarray) -> np.ndarray:
    """Return the mean of the largest tenth of each map's values, (concepts)."""
    flat = np.sort(maps.reshape(len(maps), -1), axis=1)
    largest: np.ndarray = flat[:, -max(1, flat.shape[1] // 10) :].mean(axis=1)
    return largest


@dataclass(eq=False)
class Asking:
    """Concepts asked about at one step: the recorded call's attention, and a call for each concept beside it."""

    step: Step
    concepts: Sequence[str]
    wanted: Callable[[str], bool]
    heard: dict[Site, Attended] = field(default_factory=dict)
    means: dict[str, LayerMean] = field(default_factory=dict)
    vectors: dict[Site, list[torch.Tensor]] = field(default_factory=dict)
    readings: dict[str, Reading] = field(default_factory=dict)
    empty: dict[Site, torch.Tensor] = field(default_factory=dict)
    products: dict[str, dict[tuple[int, ...], torch.Tensor]] = field(default_factory=dict)

    @property
    def is_joint(self) -> bool:
        """True if the concepts are compared by what attention hands on."""
        return any(attended.is_joint for attended in self.heard.values())

    def maps(self) -> torch.Tensor:
        """Return the concepts' maps, (concepts, [frames,] h, w)."""
        reading = reading_of(self.step)
        texts = self.concepts if self._has_joint_attention(reading) else (NOTHING, *self.concepts)
        for concept in texts:  # before listening: a resumed call cannot be made within another
            self.readings[concept] = concept_reading(self.step, concept)
        with listening(self.step, reading, self.hear, afterwards=self.beside):
            self.step.again()
        if not any(self.wanted(path) for path, _ in self.heard):
            raise ModelError(
                "None of the denoiser's layers that were asked for attends from the picture to the text, so concepts "
                "cannot be compared with it. Leave layers out, or use another method, such as df-rise."
            )
        if not self.is_joint:
            return torch.stack([self.means[concept].mean().mean(dim=0) for concept in self.concepts])
        return self._shares()

    def _has_joint_attention(self, reading: Reading) -> bool:
        """Return True if text and picture are one sequence in some layer; found once a run, by listening."""
        run = self.step.run
        assert run is not None
        key = ("joint", reading.name)
        if key not in run.measures:
            with listening(self.step, reading, self.hear):
                self.step.again()
            run.measures[key] = self.is_joint
            self.heard.clear()
        return bool(run.measures[key])

    def hear(self, attended: Attended) -> None:
        """Keep an attention of the recorded call."""
        if attended.call.output is None or attended.call.query is None:
            raise CaptureError(
                f"The attention of {attended.call.layer} is computed by an older processor, which concepts cannot be "
                "asked through. Use the default one for torch 2, AttnProcessor2_0."
            )
        self.heard[attended.call.site] = attended

    def beside(self, ear: Ear) -> None:
        """Call the denoiser once for each concept, while the pipeline is as it was for the recorded call."""
        if self.is_joint and len(self.concepts) < 2:
            raise InputError(
                f'One concept was given, "{self.concepts[0]}", and in joint attention concepts are compared with each '
                'other. Give at least two, such as ("fur", "background").'
            )
        for concept in self.readings:
            self._ask(ear, concept)

    def _ask(self, ear: Ear, concept: str) -> None:
        reading = self.readings[concept]
        tree = with_text_of(ear.tree, ear.reading, reading)
        asked = _Concept(self, reading, ear.measured_with(reading, tree), ear.rows_in(reading, tree), concept)
        args, kwargs = tree
        with without_hooks(ear.denoiser), attention_instead(ear.denoiser, asked.instead), torch.random.fork_rng([]):
            ear.denoiser.forward(*args, **kwargs)
        if not asked.count:
            raise CaptureError(f'The concept "{concept}" reached no attention that the prompt reaches.')

    def agreement(self) -> torch.Tensor:
        """Return the cosine between what a concept's text hands each place and what the prompt handed it.

        (concepts, [frames,] h, w), -1 to 1, of cross-attention; the vectors of all layers are one long vector.
        """
        shape = self.step.layout.shape
        maps = []
        for concept in self.concepts:
            layers = [
                enlarged_clip(total, shape, grid, mode="bilinear") for grid, total in self.products[concept].items()
            ]
            both, own, prompt = torch.stack(layers).sum(dim=0)
            maps.append((both / (own * prompt).sqrt().clamp(min=TINY)).clamp(-1, 1))
        return torch.stack(maps)

    def hand_out(self, concept: str, own: Attended, output: torch.Tensor) -> None:
        """Compare what a concept's text hands the picture, (rows, places, size), with what the prompt handed it."""
        site = own.call.site
        if concept == NOTHING:
            self.empty[site] = output
            return
        assert own.call.output is not None and own.grid is not None
        nothing = self.empty[site]
        handed, prompt = output - nothing, outputs_of(own.call, own.call.output, own.rows, own.queries) - nothing
        pairs = ((handed, prompt), (handed, handed), (prompt, prompt))
        products = torch.stack([(one * other).sum(dim=-1) for one, other in pairs], dim=-1)
        unit = products[..., 2].mean().clamp(min=TINY)  # so that every layer counts alike
        by_grid = self.products.setdefault(concept, {})
        by_grid[own.grid] = by_grid.get(own.grid, torch.zeros_like(products)) + products / unit

    def _shares(self) -> torch.Tensor:
        """Return softmax over concepts of the inner products of attention outputs, mean over layers."""
        summed: dict[tuple[int, ...], torch.Tensor] = {}
        count = 0
        for site, vectors in self.vectors.items():
            attended = self.heard[site]
            assert attended.call.output is not None
            if attended.grid is None or len(vectors) < len(self.concepts):
                continue
            own = outputs_of(attended.call, attended.call.output, attended.rows, attended.queries)
            shares = concept_shares(own, torch.stack(vectors, dim=1))
            before = summed.get(attended.grid)
            summed[attended.grid] = shares if before is None else before + shares
            count += 1
        if not count:
            raise ModelError("The picture's places have no known grid in any layer, so concepts have no maps.")
        maps = [enlarged_clip(total, self.step.layout.shape, grid) for grid, total in summed.items()]
        return torch.stack(maps).sum(dim=0) / count


@Autocast.off()
def concept_shares(picture: torch.Tensor, concepts: torch.Tensor) -> torch.Tensor:
    """Return softmax over concepts of ⟨o_picture, o_concept⟩: (rows, places, d), (rows, concepts, d) -> places' shares.

    The result is (rows, places, concepts), 0 to 1 (Helbling et al. 2025, section 3).
    """
    shares: torch.Tensor = torch.special.softmax(picture.float() @ concepts.float().mT, dim=-1)
    return shares


@Autocast.off()
def outputs_of(
    call: AttentionCall,
    output: torch.Tensor,
    rows: Sequence[int],
    places: Sequence[int],
    key: torch.Tensor | None = None,
    value: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return an attention's outputs at some rows and places, (rows, places, heads · size), float32 or better.

    `output` is (batch, heads, positions, size), of the call's own keys and values or of others. Of a model in half
    precision it is computed again in float32: differences and inner products of rounded outputs would be far off.
    """
    assert call.query is not None and call.key is not None and call.value is not None
    if output.dtype not in (torch.float16, torch.bfloat16):
        chosen = output[list(rows)][:, :, list(places)]
    else:
        keys, values = call.key if key is None else key, call.value if value is None else value
        beside = AttentionCall(call.layer, call.cross, call.ordinal, query=call.query, key=keys, masks=call.masks)
        probabilities = torch.cat(beside.of(list(rows), list(places), list(range(call.heads))), dim=1)
        chosen = probabilities @ repeated_heads(values, call.heads)[list(rows)].to(probabilities.dtype)
    side_by_side: torch.Tensor = chosen.transpose(1, 2).flatten(2)
    return side_by_side


def concept_reading(step: Step, concept: str) -> Reading:
    """Return how the denoiser would read a concept in the prompt's place; measured once a run."""
    run = step.run
    assert run is not None
    own = reading_of(step)
    key = ("concept", concept, step.row or 0, own.name)
    if key not in run.readings:
        frames = step.layout.frames or run.unit
        run.readings[key] = read_instead(run, own.index, step.row or 0, concept, frames)
    reading: Reading = run.readings[key]
    return reading


def with_text_of(recorded: Tree, own: Reading, concept: Reading) -> Tree:
    """Return a recorded call of the denoiser with a concept's text in the place of the prompt's.

    What differs between the prompt's and the concept's arguments at one step is the text: its vectors, masks, lengths.
    A pooled vector of it, (rows, features), stays the prompt's, since it would change the picture's stream.
    """
    before, now, tensors = leaves(own.tree), leaves(concept.tree), leaves(recorded)
    lengths = {one.length for one in (*own.inputs, *concept.inputs)}
    texts = {one.path for one in concept.inputs}
    others: dict[Path, torch.Tensor] = {}
    args, kwargs = recorded
    for name, value in concept.tree[1].items():  # an argument of another form, such as a mask for a shorter text
        if leaves(value).keys() != leaves(own.tree[1].get(name)).keys():
            kwargs = {**kwargs, name: _alone(value, concept, recorded)}
    for path, tensor in now.items():
        if path not in before or path not in tensors:
            continue
        is_text = path in texts or path[:-1] in texts
        is_mask = tensor.ndim == 2 and (not tensor.is_floating_point() or tensor.shape[1] in lengths)
        if same_tree(tensor, before[path]) or (tensor.ndim == 2 and not is_text and not is_mask):
            continue
        others[path] = _rows_in(tensor, len(before[path]), tensors[path], concept)
    args, kwargs = with_leaves((args, kwargs), others)
    plain = {name: value for name, value in concept.tree[1].items() if not leaves(value)}
    return args, {**kwargs, **{name: value for name, value in plain.items() if value != own.tree[1].get(name)}}


def _rows_in(tensor: torch.Tensor, rows: int, recorded: torch.Tensor, concept: Reading) -> torch.Tensor:
    """Return the rows of an argument that a recorded call has, which may be of one picture of a batch alone."""
    if not tensor.ndim or len(tensor) != rows or len(recorded) == rows:
        return tensor
    return tensor[concept.rows_alone(rows, len(recorded))]


def _alone(value: Any, concept: Reading, recorded: Tree) -> Any:
    """Return an argument of a concept's call in the rows of a recorded call."""
    own = inputs_in(concept, recorded)[0].rows if concept.inputs[0].path in leaves(recorded) else concept.total

    def chosen(tensor: torch.Tensor) -> torch.Tensor:
        has_rows = tensor.ndim and len(tensor) == concept.total != own
        return tensor[concept.rows_alone(concept.total, own)] if has_rows else tensor

    return map_tensors(chosen, value)


class _Concept:
    """One concept's call: its attentions hand the picture what the recorded ones did."""

    def __init__(self, asking: Asking, reading: Reading, measured: Measured, rows: tuple[int, ...], concept: str):
        self.asking, self.measured, self.rows, self.concept = asking, measured, rows, concept
        self.numbers = sorted({number for word in reading.prompt.words for number in word.positions})
        if not self.numbers and concept != NOTHING:
            raise InputError(f'The concept "{concept}" has no words that the model reads.')
        self.count = 0

    def instead(self, call: AttentionCall, compute: Callable[..., torch.Tensor]) -> torch.Tensor | None:
        attended, places = self.asking.heard.get(call.site), self.measured.sites.get(call.site)
        if attended is None or places is None:
            return None
        self.count += 1
        rows = [row for own in self.rows for row in places.rows[own]]
        if attended.is_joint:
            return self._joint(call, compute, attended, places, rows)
        return self._crossed(call, compute, attended, places, rows)

    def _crossed(
        self, call: AttentionCall, compute: Callable[..., torch.Tensor], own: Attended, places: Places, rows: list[int]
    ) -> torch.Tensor:
        """Compare the recorded queries with the concept's keys, if asked for, and return the recorded output.

        Where other layers have joint attention, those are compared and this one only keeps the picture as it was.
        """
        assert call.key is not None and own.call.query is not None and own.call.output is not None
        mask = call.masks.get("mask")
        if mask is not None and mask.ndim == 4 and len(mask) > 1:
            mask = mask[rows]
        masks = {**call.masks, "mask": mask}
        query = own.call.query[list(own.rows)]
        beside = AttentionCall(call.layer, True, call.ordinal, query=query, key=call.key[rows], masks=masks)
        handed = compute(call.key, call.value)
        if self.asking.wanted(call.layer) and not self.asking.is_joint:
            self.asking.hand_out(self.concept, own, outputs_of(call, handed, rows, own.queries))
            keys = places.of_text(self.rows[0])
            mean = self.asking.means.setdefault(self.concept, LayerMean(self.asking.step.layout.shape, self.numbers))
            everywhere = tuple(range(len(rows)))
            mean.hear(Attended(beside, everywhere, keys, own.queries, own.grid, own.is_plain))
        output = handed.clone()
        output[rows] = own.call.output[list(own.rows)]
        return output

    def _joint(
        self, call: AttentionCall, compute: Callable[..., torch.Tensor], own: Attended, places: Places, rows: list[int]
    ) -> torch.Tensor:
        """Let the concept attend to the recorded picture and to itself; return the picture's recorded output."""
        assert call.key is not None and call.value is not None
        recorded = own.call
        assert recorded.key is not None and recorded.value is not None and recorded.output is not None
        if len(places.queries) != len(own.queries):
            raise CaptureError(f"The picture has another length beside a concept in {call.layer}.")
        key, value = call.key.clone(), call.value.clone()
        for row, row_of_own in zip(rows, own.rows, strict=True):
            key[row][:, list(places.queries)] = recorded.key[row_of_own][:, list(own.queries)]
            value[row][:, list(places.queries)] = recorded.value[row_of_own][:, list(own.queries)]
        output = compute(key, value).clone()
        keys = places.of_text(self.rows[0])
        tokens = [place for number in self.numbers for place in keys.get(number, [])]
        if tokens and self.asking.wanted(call.layer):
            vector = outputs_of(call, output, rows, tokens, key, value).mean(dim=1)
            self.asking.vectors.setdefault(call.site, []).append(vector)
        for row, row_of_own in zip(rows, own.rows, strict=True):
            output[row][:, list(places.queries)] = recorded.output[row_of_own][:, list(own.queries)]
        return output
