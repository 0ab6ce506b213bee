"""Attention maps of every token of a text, listened to while a picture is made.

No step is made a second time, but for one of packed samples and clips, whose grid is measured afterwards.
"""

import functools
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..errors import CaptureError, DenoscopeError, InputError, ModelError, in_short
from ..recording.components import DENOISERS, scheduler_of
from ..recording.hooks.attention import AttentionCall, attending, attention_layers
from ..recording.hooks.calls import StepArguments, stepping
from ..recording.hooks.layers import without_hooks
from ..recording.hooks.listened import TokenizerCall, listening_to_tokenizers
from ..recording.hooks.places import HandedOn, Measured, Places, kept_random, measured, number_of, sample_paths
from ..recording.hooks.resume import resuming
from ..recording.hooks.surroundings import own_network
from ..recording.hooks.trees import leaves, map_tensors, tensor_of, with_leaves
from ..recording.layout import halved, reduced
from ..recording.listening import Attended, listening
from ..recording.reading import Reading
from ..recording.shares import counted, of_the_other_half
from ..recording.steps import Step
from ..recording.traces import Trace
from .attention import NO_TEXT, FlatMean, Half, LayerMean, enlarged_clip

TRIALS = 4
"""Steps at which it is tried to find out which rows belong to which half of guidance."""
FAILED = (DenoscopeError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""Failures of listening that must not end the user's call: they are told when the maps are asked for."""


@dataclass(frozen=True, eq=False)
class HeardCall:
    """A mean for each row of one denoiser call's text; `changed` are arguments that differ from the first step's.

    `numbers` are the positions of the text that the means have maps of. Rows of the other half of guidance have none.
    """

    name: str
    places: Measured
    numbers: Sequence[int]
    means: tuple[LayerMean | FlatMean | None, ...]
    changed: frozenset[Any]

    def without(self, rows: Collection[int]) -> "HeardCall":
        """Return the call without the maps of some rows."""
        return replace(self, means=tuple(None if row in rows else mean for row, mean in enumerate(self.means)))


@dataclass(eq=False)
class RecordedMaps:
    """The maps of a recording, step by step and call by call.

    `others` are the rows of the other half of guidance in each call of a step, by its denoiser and place, as far as
    they are known by what `outputs`, those of the step's calls, count in the prediction.
    """

    half: Half = "conditional"
    steps: list[tuple[torch.Tensor, list[HeardCall]]] = field(default_factory=list)
    problem: str | None = None
    calls: list[HeardCall] = field(default_factory=list)
    grids: dict[int, "Grids"] = field(default_factory=dict)
    tokenized: list[TokenizerCall] = field(default_factory=list)
    outputs: list[torch.Tensor] = field(default_factory=list)
    others: dict[tuple[str, int], frozenset[int]] = field(default_factory=dict)
    trials: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the maps."""
        means = [mean for _, calls in self.steps for call in calls for mean in call.means]
        flat = [total for mean in means if isinstance(mean, FlatMean) for total in mean.totals.values()]
        return sum(
            tensor.nbytes
            for tensor in [*flat, *(m.total for m in means if isinstance(m, LayerMean))]
            if tensor is not None
        )

    def finish(self, passed: StepArguments) -> None:
        """Finish a step: the scheduler has made it of what it was passed."""
        if resuming():
            return
        if self.outputs and self.trials < TRIALS:
            self.trials += 1
            with suppress(*FAILED):  # both halves are kept then
                self._tell_halves(passed)
        self.steps.append((passed.sample, list(self.calls)))
        self.calls.clear()
        self.outputs.clear()

    def _tell_halves(self, passed: StepArguments) -> None:
        """Find out which rows of the step's calls belong to the other half of guidance, and let go of their maps."""
        if len(self.outputs) < len(self.calls):
            return
        counts = counted(self.outputs, passed.sample, passed.model_output)
        if counts is None:
            return
        names = [call.name for call in self.calls]
        for place, batches in enumerate(of_the_other_half(counts, self.half == "conditional")):
            call, copies = self.calls[place], len(counts[place])
            each, left = divmod(len(call.means), copies)
            rows = frozenset() if left else frozenset(row for row in range(len(call.means)) if row // each in batches)
            self.others[(call.name, names[:place].count(call.name))] = rows
            self.calls[place] = call.without(rows)

    def check(self, trace: Trace) -> None:
        """Raise `InputError` for another trace than the recorded one, `ModelError` if it could not be listened to."""
        for step in trace:
            self._heard(trace, step)
        if self.problem is not None:
            raise ModelError(
                f"The attention could not be listened to while the picture was made: {self.problem}. Replay it: "
                "Words()(trace)."
            )

    def _heard(self, trace: Trace, step: Step) -> list[HeardCall]:
        """Return the calls of a step, known by its sample: pipelines may step copies of their scheduler beside it."""
        first = int(trace.call.get("picture", 0)) * trace.unit
        for sample, calls in self.steps:
            if len(sample) >= first + len(step.sample) and sample[first : first + len(step.sample)].equal(step.sample):
                return calls
        raise InputError(
            f"This trace of {len(trace)} steps is not what was listened to: none of the {len(self.steps)} steps "
            f"heard has the sample of step {step.index}. Record one trace in each recording, and ask for its maps."
        )

    def maps(self, trace: Trace, step: Step, reading: Reading, numbers: Sequence[int]) -> torch.Tensor:
        """Return the maps of a step at some of the reading's positions, (tokens, [frames,] h, w).

        Raises `ModelError` if no layer attended to the text.
        """
        own = [call for call in self._heard(trace, step) if call.name == reading.name]
        if reading.ordinal >= len(own):
            raise CaptureError(f"The call of {reading.name} that reads the text was not heard at step {step.index}.")
        call = own[reading.ordinal]
        if any(_is_of(path, one.path) for path in call.changed for one in reading.inputs):
            raise ModelError(
                f"The text that the denoiser read at step {step.index} is another than at the first step, so its words "
                "are not known there. Ask about other steps."
            )
        wanted = [call.numbers.index(self._number(call, reading, number)) for number in numbers]
        means = [mean for row in reading.rows if (mean := call.means[row]) is not None]
        if len(means) < len(reading.rows):
            raise ModelError(
                f"The maps of the {self.half} half of guidance were not kept at step {step.index}: by what its rows "
                "count in the prediction they are of the other half, as with a guidance scale below 0. Replay it: "
                f'Words(half="{self.half}")(trace).'
            )
        first = means[0]
        if isinstance(first, LayerMean):
            return first.mean()[wanted]
        if id(reading) not in self.grids:
            self.grids[id(reading)] = measured_grids(step, reading)
        flat = [mean for mean in means if isinstance(mean, FlatMean)]
        return _on_grid(step.layout.shape, self.grids[id(reading)], flat, wanted)

    def has(self, trace: Trace, step: Step, reading: Reading, number: int) -> bool:
        """Return True if the maps of a reading's position were kept."""
        own = [call for call in self._heard(trace, step) if call.name == reading.name][reading.ordinal :]
        return bool(own) and self._number(own[0], reading, number) in own[0].numbers

    @staticmethod
    def _number(call: HeardCall, reading: Reading, number: int) -> int:
        """Return the number of a reading's position among all that were heard."""
        for one in reading.inputs:
            if number < one.length:
                return number_of(call.places.inputs, one.path, number)
            number -= one.length
        raise CaptureError("A position of the text was not heard.")


Grids = dict[tuple[int, ...], tuple[tuple[int, ...], tuple[int, ...]]]
"""The picture's queries and their grid, by the numbers of rows and queries of an attention."""


def measured_grids(step: Step, reading: Reading) -> Grids:
    """Return the grids of attentions that read a text, by making one step again."""
    grids: Grids = {}

    def hear(attended: Attended) -> None:
        if attended.grid is not None:
            grids[(len(attended.rows), len(attended.queries))] = (attended.queries, attended.grid)

    with torch.no_grad(), listening(step, reading, hear):
        step.again()
    return grids


def _on_grid(shape: tuple[int, ...], grids: Grids, means: Sequence[FlatMean], wanted: Sequence[int]) -> torch.Tensor:
    """Return sums over positions as maps of a shape, on their measured grids."""
    total, counts = None, None
    for mean in means:
        counts = mean.counts if counts is None else counts
    keys = list(dict.fromkeys(key for mean in means for key in mean.totals))
    for key in keys:
        parts = [mean.totals[key] for mean in means if key in mean.totals]
        summed = torch.cat(parts)[:, :, wanted] if len(parts) > 1 else parts[0][:, :, wanted]
        places = next(
            (pair for (rows, _), pair in grids.items() if rows == len(summed) and set(pair[0]) <= set(key[1])), None
        )
        if places is None:
            raise ModelError(
                "The places of the attention that was listened to are others than those that are measured now, so its "
                "maps cannot be laid out. Replay it: Words()(trace)."
            )
        chosen = [key[1].index(query) for query in places[0]]
        maps = enlarged_clip(summed[:, chosen], shape, places[1])
        total = maps if total is None else total + maps
    if total is None or counts is None:
        raise ModelError(NO_TEXT)
    return total / counts[wanted].clamp(min=1).reshape(-1, *[1] * len(shape)).to(total.device)


@contextmanager
def listening_while_recording(
    pipeline: Any,
    layers: Sequence[str] | None,
    heads: Sequence[int] | None,
    *,
    half: Half = "conditional",
    special_tokens: bool = False,
) -> Iterator[RecordedMaps]:
    """Listen at every denoiser of a pipeline while it is called. The pipeline's call is never ended by this.

    Without `special_tokens` only positions are kept that a word may lie at, if the pipeline's tokenizers tell them.
    Rows of the other half of guidance are let go of as soon as they are known, at the end of the first step.
    """
    recorded = RecordedMaps(half)
    with ExitStack() as undo:
        if not special_tokens:
            undo.enter_context(listening_to_tokenizers(pipeline, recorded.tokenized.append))
        for name in DENOISERS:
            denoiser = getattr(pipeline, name, None)
            if isinstance(denoiser, torch.nn.Module):
                listener = _Listener(
                    name, own_network(denoiser), recorded, None if layers is None else frozenset(layers), heads
                )
                undo.enter_context(listener.open())
        undo.enter_context(stepping(scheduler_of(pipeline), recorded.finish))
        yield recorded


class _Listener:
    """Listens at one denoiser: measures each kind of call once, and keeps a mean for each row of its text.

    `seen` is what is found out during the first call of a kind that may hand on its text as it is; if it does not, the
    places are measured behind that call, and it is made again.
    """

    def __init__(
        self,
        name: str,
        denoiser: torch.nn.Module,
        recorded: RecordedMaps,
        layers: frozenset[str] | None,
        heads: Sequence[int] | None,
    ):
        self.name, self.denoiser, self.recorded, self.layers, self.heads = name, denoiser, recorded, layers, heads
        self.known: dict[Any, Measured] = {}
        self.texts: dict[int, Mapping[Any, torch.Tensor]] = {}
        self.now: HeardCall | None = None
        self.seen: HandedOn | None = None
        self.tree: Any = None

    @contextmanager
    def open(self) -> Iterator[None]:
        with ExitStack() as undo:
            undo.callback(self.denoiser.register_forward_pre_hook(self.before, with_kwargs=True).remove)
            undo.callback(self.denoiser.register_forward_hook(self.after).remove)
            for path, layer in attention_layers(self.denoiser).items():
                look = functools.partial(self.look, path)
                undo.callback(layer.register_forward_pre_hook(look, with_kwargs=True).remove)
            try:
                undo.enter_context(self._attending())
            except CaptureError as error:
                self.recorded.problem = in_short(error, 200)
            yield

    def _attending(self) -> AbstractContextManager[Any]:
        return attending(
            self.denoiser,
            self.hear,
            wanted=self.is_wanted,
            once=False,
            required=False,
            on_unread=lambda path, refusal: self._refuse(path),
        )

    def before(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if resuming():
            return
        self.now = self.seen = None
        tree = map_tensors(lambda tensor: tensor, (args, kwargs))  # some denoisers empty their lists and dicts
        try:
            if _kind_of(tree) not in self.known:
                self.seen, self.tree = HandedOn.of(tree), tree
            self.now = self._begun(tree)
        except FAILED as error:
            self.seen = None
            self.recorded.problem = f"measuring its places failed ({in_short(error, 160)})"

    def _begun(self, tree: Any) -> HeardCall:
        places = Measured(self.seen.inputs, {}) if self.seen is not None else self._measured(tree)
        ordinal = sum(call.name == self.name for call in self.recorded.calls)
        tensors = leaves(tree)
        texts = {
            path: tensor for path, tensor in tensors.items() if any(_is_of(path, one.path) for one in places.inputs)
        }
        before = self.texts.setdefault(ordinal, {path: tensor.detach().clone() for path, tensor in texts.items()})
        changed = {path for path, tensor in before.items() if path not in texts or not torch.equal(texts[path], tensor)}
        rows, shape = max((one.rows for one in places.inputs), default=1), _shape_of(tree)
        numbers = word_numbers(places, self.recorded.tokenized)
        means = tuple(
            FlatMean(numbers, self.heads) if shape is None else LayerMean(shape, numbers, self.heads)
            for _ in range(rows)
        )
        heard = HeardCall(self.name, places, numbers, means, frozenset(changed))
        return heard if changed else heard.without(self.recorded.others.get((self.name, ordinal), ()))

    def _measured(self, tree: Any) -> Measured:
        key = _kind_of(tree)
        if key not in self.known:
            self.known[key] = measured(self.denoiser, tree)
        for path in self.known[key].unread:
            self._refuse(path)
        return self.known[key]

    def _refuse(self, path: str) -> None:
        if self.layers is None or path in self.layers:
            self.recorded.problem = f"the layer {path} works in a way of its own"

    def after(self, module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.now is None:
            return
        try:
            if self.seen is not None:
                self._settle(self.seen)
        except FAILED as error:
            self.recorded.problem = f"measuring its places failed ({in_short(error, 160)})"
        for mean in self.now.means:
            _to_cpu(mean)
        ordinal = sum(call.name == self.name for call in self.recorded.calls)
        given = tensor_of(output)
        if given is not None and (self.name, ordinal) not in self.recorded.others:
            self.recorded.outputs.append(given.detach().clone())
        self.recorded.calls.append(self.now)
        self.now = None

    def _settle(self, seen: HandedOn) -> None:
        """Keep the places that were seen; where the text is not handed on as it is, measure them and call again."""
        tree, self.seen, self.tree = self.tree, None, None
        places = seen.measured()
        if places is not None and self.now is not None:
            self.known[_kind_of(tree)] = places
            self.now = replace(self.now, places=places)
            for path in places.unread:
                self._refuse(path)
            return
        self.now = self._begun(tree)
        args, kwargs = with_leaves(tree, {})
        with without_hooks(self.denoiser), self._attending(), torch.no_grad(), kept_random(tree):
            self.denoiser.forward(*args, **kwargs)

    def look(self, path: str, layer: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.seen is not None:
            self.seen.look(path, layer, args, kwargs)

    def is_wanted(self, path: str, cross: bool) -> bool:
        if self.now is None or (self.layers is not None and path not in self.layers):
            return False
        if self.seen is not None:
            return self.seen.passed.get(path, False)
        return any(layer == path for layer, _ in self.now.places.sites)

    def hear(self, call: AttentionCall) -> None:
        if self.now is None:
            return
        if self.seen is None:
            places = self.now.places.sites.get(call.site)
        else:
            places = self.seen.places_of(call.site, call.rows, *call.size)
        if places is None:
            return
        try:
            self._add(call, places)
        except FAILED as error:
            self.recorded.problem = in_short(error, 200)

    def _add(self, call: AttentionCall, places: Places) -> None:
        assert self.now is not None
        for row, mean in enumerate(self.now.means):
            rows = places.rows[row] if row < len(places.rows) else ()
            if not rows or mean is None:
                continue
            grid = None
            if isinstance(mean, LayerMean):
                grid = _patches(mean.shape, len(places.queries))
            mean.hear(Attended(call, rows, places.of_text(row), places.queries, grid))


def _kind_of(tree: Any) -> Any:
    """Return the key of a kind of call: the shapes of its arguments, and the numbers of masks and positions."""
    return tuple((path, tuple(tensor.shape), _content(tensor)) for path, tensor in leaves(tree).items())


def word_numbers(places: Measured, tokenized: Sequence[TokenizerCall]) -> list[int]:
    """Return the positions of a text that may be words' by what was tokenized: all but special tokens and padding.

    An argument that is as long as a row of tokens has them in their order; one as long as two rows of two tokenizers
    has one behind the other, in either order. Of an argument of another length, all positions are returned.
    """
    words: dict[int, dict[int, set[int]]] = {}
    for call in tokenized:
        special = set(getattr(call.tokenizer, "all_special_ids", ()))
        for row in call.ids:
            own = words.setdefault(id(call.tokenizer), {}).setdefault(len(row), set())
            own |= {place for place, token in enumerate(row) if token not in special}
    numbers: list[int] = []
    before = 0
    for one in places.inputs:
        chosen = _words_of_length(one.length, list(words.values()))
        numbers += [before + place for place in (range(one.length) if chosen is None else sorted(chosen))]
        before += one.length
    return numbers


def _words_of_length(length: int, words: Sequence[Mapping[int, set[int]]]) -> set[int] | None:
    """Return the places of words in a text of some length, of each tokenizer's lengths; None if no rows fit it."""
    fitting = [by_length[length] for by_length in words if length in by_length]
    for first, second in itertools.permutations(words, 2):
        for one, places in first.items():
            if length - one in second:
                fitting.append(places | {one + place for place in second[length - one]})
    return set().union(*fitting) if fitting else None


def _content(tensor: torch.Tensor) -> bytes | None:
    """Return the numbers of a mask or of positions, by which the places of a text depend on its length."""
    return tensor.detach().float().cpu().numpy().tobytes() if tensor.ndim == 2 else None


def _is_of(path: Any, base: Any) -> bool:
    return bool(path == base or path[:-1] == base)


def _shape_of(tree: Any) -> tuple[int, ...] | None:
    """Return the map's shape (h, w) of samples (rows, channels, h, w); None for others, whose map is not known yet."""
    paths = sample_paths(tree)
    tensor = leaves(tree)[paths[0]] if len(paths) == 1 else None
    return None if tensor is None or tensor.ndim != 4 else (int(tensor.shape[-2]), int(tensor.shape[-1]))


def _patches(shape: tuple[int, ...], queries: int) -> tuple[int, ...] | None:
    """Return the grid of so many positions, by halving if that gives it."""
    for grid in [*halved(shape), *reduced(shape)]:
        if grid[0] * grid[1] == queries:
            return grid
    return None


def _to_cpu(mean: LayerMean | FlatMean | None) -> None:
    if isinstance(mean, LayerMean) and mean.total is not None:
        mean.total = mean.total.cpu()
    if isinstance(mean, FlatMean):
        mean.totals = {key: total.cpu() for key, total in mean.totals.items()}
