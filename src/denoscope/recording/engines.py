"""The engines that answer for other samples of a step: which one, and whether it is right.

The **direct** engine calls the denoiser alone. The **resumed** one calls the pipeline again from the middle, several
samples at once ("resumed in batches") or one by one. An engine is taken once it has given the recorded prediction for
the recorded sample. The direct one must also do what the pipeline does with another sample: hand the denoiser the same
conditioning, and mix its outputs in the same way.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..errors import DenoscopeError, ModelError, ReplayError, in_short, sentence
from .comparing import (
    FAILURES,
    MOST_ROUNDING,
    TOLERANCE,
    difference,
    disturbed,
    refuse_memory,
    tolerance,
)
from .hooks.calls import ModuleCall, SchedulerStep
from .hooks.replay import Replay, alike, slope
from .hooks.resume import NOISE, PREPARES, Answer, Entry, Question, Resumption, expanded, rows_by_frames
from .hooks.surroundings import own_network
from .hooks.trees import layers_in, map_tensors, output_of

DIRECT, BATCHES, ONE_BY_ONE = "direct", "resumed in batches", "resumed one by one"
FROM_START = "resumed from the start"
"""The engines by their names."""

HALF, SUM_TO_ONE = 1e-4, 0.02
"""The unit of rounding from which on a dtype is half precision, and how far from 1 shares may add up then."""


@dataclass(frozen=True)
class Signature:
    """What is called for a step: the networks in their order, and the names of the denoiser's arguments."""

    networks: tuple[str, ...]
    arguments: tuple[str, ...]

    @classmethod
    def of(cls, networks: Sequence[str], calls: Sequence[ModuleCall]) -> "Signature":
        arguments = [f"{call.name}.{key}" for call in calls for key, value in call.kwargs.items() if value is not None]
        return cls(tuple(networks), tuple(arguments))


@dataclass(eq=False)
class Run:
    """One sampling of a recorded call, which can be asked again.

    `places` are its steps' places among all steps of the call, `unit` the rows of a sample that make one picture.
    `is_chain` is True if each step's sample is the result of the step before. `absent` is the reason why there are no
    networks, of a run that was loaded without its model; None as a rule.
    """

    resumption: Resumption
    places: list[int]
    unit: int
    directs: list[Replay | None]
    signatures: list[Signature]
    is_chain: bool = True
    decoding: Any = None
    layout: Any = None
    entries: dict[bool, Entry] = field(default_factory=dict)
    batched: dict[bool, bool] = field(default_factory=dict)
    verdicts: dict[Signature, str] = field(default_factory=dict)
    remembered: int = 0
    tokens: dict[int, Any] = field(default_factory=dict)
    computed: bool | None = None
    readings: dict[Any, Any] = field(default_factory=dict)
    measures: dict[Any, Any] = field(default_factory=dict)
    absent: str | None = None

    @property
    def rows(self) -> int:
        """The rows of the whole sample: `unit` for each picture."""
        return len(self.resumption.steps[self.places[0]].sample)

    def refuse_absent(self) -> None:
        """Raise `ModelError` if the run was loaded without its model, whose networks every replay needs."""
        if self.absent is not None:
            raise ModelError(self.absent)

    def moved(self, move: Callable[[torch.Tensor], torch.Tensor], directs: list[Replay | None]) -> "Run":
        """Return the run with its recorded tensors moved; what it has found out about the pipeline stays known."""
        resumption, home = self.resumption, self.home
        resumption = replace(resumption, steps=[step.moved(move) for step in resumption.steps], home=home)
        run = replace(self, resumption=resumption, directs=directs, tokens={}, readings={}, measures={})
        run.decoding = self.decoding.of_run(run)
        return run

    @property
    def home(self) -> torch.device:
        """The device on which the pipeline has its samples, wherever the recorded ones are kept."""
        home: torch.device = self.resumption.home or self.resumption.steps[self.places[0]].sample.device
        return home

    def denoiser(self, index: int) -> torch.nn.Module:
        """Return the denoiser that was called last for a step, without what compiles it; raises as its name does."""
        return own_network(self.resumption.modules[self.denoiser_name(index)])

    def denoiser_name(self, index: int) -> str:
        """Return the name of the denoiser that was called last for a step; raises `ReplayError` if none was."""
        self.refuse_absent()
        since = self.places[index - 1] + 1 if index else 0
        between = self.resumption.steps[since : self.places[index] + 1]
        called = [name for step in between for name, _ in step.blanks]
        names = [name for name in called if name in self.resumption.denoisers]
        if not names:
            raise ReplayError(f"No denoiser of the pipeline was called for step {index}.")
        return names[-1]

    def calls_before(self, index: int, name: str) -> int:
        """Return how many calls of a network a resumed call computes before a step; 0 if it computes none."""
        if not self.needs_computing(index):
            return 0
        before = self.resumption.steps[: self.places[index - 1] + 1] if index else []
        return sum(other == name for step in before for other, _ in step.blanks)

    def recorded(self, index: int) -> Any:
        """Return the recorded tensors of a step, all rows."""
        return self.resumption.recorded(self.places[index])

    def fingerprint(self) -> int:
        """Return a number that changes when weights of the pipeline are written to, moved, replaced or added."""
        layers = [layer for module in self.resumption.modules.values() for layer in layers_in(module)]
        weights = [weight for layer in layers for weight in layer._parameters.values() if weight is not None]
        value = hash(tuple([weight._version ^ weight.data_ptr() for weight in weights]))
        if value != self.remembered:
            self.remembered = value
            self.resumption.memory.clear()
        return value

    # The resumed engine.

    def predict(self, index: int, samples: torch.Tensor, row: int | None) -> torch.Tensor:
        """Return the pipeline's own prediction for samples of a step, (n · unit, ...) to the same.

        `row` is the picture that they are samples of, None for samples of all pictures. Raises `ReplayError` where
        the pipeline itself changes the sample before the step.
        """
        self.refuse_absent()
        gradient = torch.is_grad_enabled() and samples.requires_grad
        samples = samples.to(self.home, self.resumption.steps[self.places[index]].sample.dtype)
        try:
            return self._predicted(index, samples, row, gradient)
        except DenoscopeError:
            raise
        except FAILURES as error:
            refuse_memory(error)
            raise ReplayError(_failed(index, gradient, error)) from error

    def _predicted(self, index: int, samples: torch.Tensor, row: int | None, gradient: bool) -> torch.Tensor:
        if row is not None and self.rows > self.unit:
            return self._of_one_picture(index, samples, row, gradient)
        count = len(samples) // self.rows
        if count > 1 and not self.in_batches(index):
            parts = torch.split(samples, self.rows)
            return torch.cat([self._asked(index, part, 1, gradient) for part in parts])
        return self._asked(index, samples, count, gradient)

    def _of_one_picture(self, index: int, samples: torch.Tensor, row: int, gradient: bool) -> torch.Tensor:
        """Return predictions for one picture of a batch: the others keep their recorded samples."""
        whole, predictions = self.recorded(index).sample, []
        start, end = row * self.unit, (row + 1) * self.unit
        for part in torch.split(samples, self.unit):
            batch = torch.cat([whole[:start], part, whole[end:]])
            predictions.append(self._asked(index, batch, 1, gradient)[start:end])
        return torch.cat(predictions)

    def _asked(self, index: int, samples: torch.Tensor, count: int, gradient: bool) -> torch.Tensor:
        answer = self.answer(index, samples, count, gradient)
        assert answer.prediction is not None and answer.arrived is not None  # `Resumption.ask` refuses it
        if not alike(answer.arrived[: len(samples)], samples.detach()):
            raise ReplayError(
                f"Step {index} cannot be asked about this sample: between two steps the pipeline writes over a part of "
                "the sample, as inpainting does, so another sample than the one in question reaches the step. Ask "
                "about samples with the recorded values there."
            )
        return answer.prediction[: len(samples)]

    def answer(self, index: int, samples: torch.Tensor, count: int = 1, gradient: bool = False) -> Answer:
        """Make one resumed call for a step."""
        self.refuse_absent()
        before = self.places[index - 1] if index else None
        question = Question(samples, self.places[index], before, self.entry(index), count, gradient)
        return self.resumption.ask(replace(question, computed=self.needs_computing(index)))

    def needs_computing(self, index: int) -> bool:
        """Return True if what comes before a step has to be computed again, since its outputs are needed later.

        Found by trying at the first later step: without computing, the recorded prediction does not come out.
        """
        if self.computed is None and index > 0:
            self.computed = False
            if not self._reproduces(index):
                self.computed = True
                self.computed = self._reproduces(index)
        return bool(self.computed) and index > 0

    def _reproduces(self, index: int) -> bool:
        recorded = self.recorded(index)
        try:
            answer = self.answer(index, recorded.sample)
        except FAILURES as error:
            refuse_memory(error)
            return False
        assert answer.prediction is not None
        prediction = answer.prediction[: len(recorded.model_output)]
        allowed = TOLERANCE.get(prediction.dtype, MOST_ROUNDING)
        return difference(prediction, recorded.model_output) <= allowed

    def entry(self, index: int) -> Entry:
        """Return where samples enter, found by trying; raises `ReplayError` for a first step that has no entry."""
        first = index == 0
        if first not in self.entries:
            candidates = self._first_entries() if first else [Entry("step"), Entry("callback")]
            self.entries[first] = next((entry for entry in candidates if self._arrives(index, entry)), Entry("step"))
        entry = self.entries[first]
        if first and entry.kind == "step":
            raise ReplayError(
                "The first step cannot be asked again: the pipeline makes its first sample in a way that cannot be "
                f"listened to (no method {PREPARES}... of it returns the sample, nor {NOISE}). Ask about a later step."
            )
        return entry

    def _arrives(self, index: int, entry: Entry) -> bool:
        """Return True if another sample that enters there reaches the step as it is."""
        before = self.places[index - 1] if index else None
        sample = disturbed(self.recorded(index).sample)
        question = Question(sample, self.places[index], before, entry, computed=bool(self.computed) and index > 0)
        try:
            answer = self.resumption.ask(question)
        except FAILURES as error:
            refuse_memory(error)
            return False
        return answer.arrived is not None and alike(answer.arrived[: len(sample)], sample)

    def _first_entries(self) -> list[Entry]:
        """Return where the first sample was returned, the last such place first; raises as the pipeline does."""
        recorded = self.recorded(0).sample
        heard = self.resumption.ask(Question(recorded, self.places[0], None, Entry("none"))).firsts
        entries = [entry for place in heard for entry in self._entries_at(recorded, *place)]
        return sorted(entries, key=lambda entry: (entry.kind == NOISE, not entry.repeated))

    def _entries_at(
        self, recorded: torch.Tensor, kind: str, ordinal: int, path: tuple[int, ...], tensor: torch.Tensor
    ) -> list[Entry]:
        """Return the entry at a returned tensor, if the first sample is a multiple of it."""
        by_frames = tensor.ndim == 5 and recorded.ndim == 4
        returned = rows_by_frames(tensor) if by_frames else tensor
        for repeated in (True, False):
            whole = expanded(recorded, self.recorded(0).copies) if repeated else recorded
            factor = slope(returned, whole) if returned.shape == whole.shape else 0.0
            if factor and alike(factor * returned.to(whole.dtype), whole):
                factor = 1.0 if abs(factor - 1) < 1e-6 else factor
                return [Entry(kind, ordinal, path, factor, repeated, by_frames)]
        return []

    def in_batches(self, index: int) -> bool:
        """Return True if several samples in one call have the predictions that they have one by one."""
        first = index == 0
        if first not in self.batched:
            self.batched[first] = self._batches_agree(index)
        return self.batched[first]

    def _batches_agree(self, index: int) -> bool:
        recorded = self.recorded(index)
        if self.rows > self.unit or self.resumption.count_argument() is None:
            return False
        other = disturbed(recorded.sample)
        try:
            alone = self._asked(index, other, 1, False)
            together = self._asked(index, torch.cat([recorded.sample, other]), 2, False)
        except FAILURES as error:
            refuse_memory(error)
            return False
        if together.shape[0] != 2 * len(other):
            return False
        allowed = 10 * TOLERANCE.get(other.dtype, 1e-2)
        pairs = ((together[: len(other)], recorded.model_output), (together[len(other) :], alone))
        return all(difference(a, b) <= allowed for a, b in pairs)

    # The direct engine.

    def refusal_of_direct(self, index: int) -> str | None:
        """Return why the direct engine is not the pipeline's own code at a step; None if nothing speaks against it.

        Tried once for all steps that call the same networks in the same way.
        """
        self.refuse_absent()
        signature = self.signatures[index]
        if signature not in self.verdicts:
            self.verdicts[signature] = self._contradiction(index)
        return self.verdicts[signature] or None

    def _contradiction(self, index: int) -> str:
        direct = self.directs[index]
        if direct is None:
            return "it has another form"
        if self.resumption.home is not None:
            direct = direct.to(lambda tensor: tensor.to(self.home))
        sample = disturbed(self.recorded(index).sample)
        try:
            answer = self.answer(index, sample)
        except FAILURES as error:
            refuse_memory(error)
            return self._untried(index, direct, error)
        return contradiction(direct, answer, sample, self.unit == self.rows)

    def _untried(self, index: int, direct: Replay, error: Exception) -> str:
        """Return why a direct engine that could not be compared is not taken; "" if its denoiser works alone.

        Its outputs must be mixed as plain guidance does: other factors may depend on the sample.
        """
        names = {call.name for call in direct.calls}
        later = {name for signature in self.signatures[1:] for name in signature.networks}
        reason, total = in_short(error, 160), sum(direct.shares)
        if direct.mixture.own or abs(abs(total) - 1) > 1e-3:
            return f"its outputs may be mixed by the sample's numbers, and the pipeline could not be asked ({reason})"
        if later <= names and (index > 0 or len(self.signatures) > 1):
            return ""
        others = sorted(set(self.signatures[index].networks) - names)
        return f"{' and '.join(others)} may read the sample too, and the pipeline could not be asked ({reason})"


def contradiction(direct: Replay, answer: Answer, sample: torch.Tensor, alone: bool) -> str:
    """Return what the pipeline did with another sample that the direct engine does not; "" if they do the same."""
    assert answer.prediction is not None and answer.arrived is not None
    rows = len(sample)
    prediction, arrived = answer.prediction[:rows], answer.arrived[:rows]
    calls = [call for call in answer.calls if call.name in {own.name for own in direct.calls}]
    scale = direct.calls[0].scale
    taken = SchedulerStep(prediction, float("nan"), arrived, arrived, None, scale)
    if len(calls) != len(direct.calls):
        return "with another sample the pipeline calls its denoiser another number of times"
    try:
        again = Replay.of(calls, taken, None)
    except ReplayError as error:
        return f"with another sample it has another form ({in_short(error, 160)})"
    for own, other in zip(direct.calls, again.calls, strict=True):
        changed = _changed_argument((own.args, own.kwargs, own.beside), (other.args, other.kwargs, other.beside))
        if changed or (own.part.start, own.part.copies) != (other.part.start, other.part.copies):
            return (
                f"the pipeline computes {changed or 'an argument'} of its denoiser from the sample, as ControlNet does"
            )
    outputs: list[torch.Tensor] = []
    for call, own in zip(calls, direct.calls, strict=True):
        outputs += torch.split(own.taken.of(output_of(call.output)), rows)
    left = direct.mixture.left_over(outputs, arrived, prediction)
    unit = torch.finfo(prediction.dtype).eps
    if unit > HALF and abs(abs(sum(direct.mixture.shares)) - 1) > SUM_TO_ONE:
        return "in half precision only guidance whose shares add up to 1 can be told from one that rescales"
    if left > 3 * direct.mixture.rounding + unit / 10:
        return "the pipeline mixes the denoiser's outputs in another way for another sample, as guidance_rescale does"
    return _in_batches(direct, arrived, prediction) if alone and direct.batch == 1 else ""


def _in_batches(direct: Replay, arrived: torch.Tensor, prediction: torch.Tensor) -> str:
    """Return why the direct engine is wrong for several samples; "" if it is right."""
    try:
        with torch.no_grad():
            together = direct(torch.cat([arrived, arrived]))
            alone = direct(arrived)
    except FAILURES as error:
        refuse_memory(error)
        return f"its denoiser cannot be called with several samples ({in_short(error, 160)})"
    allowed = tolerance(direct, arrived, alone, difference(alone, prediction))
    if together.shape[0] != 2 or not all(difference(one[None], prediction) <= 2 * allowed for one in together):
        return "its denoiser gives other predictions for several samples than for one"
    return ""


def _changed_argument(own: Any, other: Any) -> str | None:
    """Return the name of the first argument of a denoiser that differs; None if none does."""
    (args, kwargs, beside), (other_args, other_kwargs, other_beside) = own, other
    if len(args) != len(other_args) or kwargs.keys() != other_kwargs.keys() or not _same(beside, other_beside):
        return "the input"
    for place, (a, b) in enumerate(zip(args, other_args, strict=True)):
        if not _same(a, b):
            return f"argument {place}"
    return next((name for name in kwargs if not _same(kwargs[name], other_kwargs[name])), None)


def _same(a: Any, b: Any) -> bool:
    first: list[torch.Tensor] = []
    second: list[torch.Tensor] = []
    map_tensors(first.append, a)
    map_tensors(second.append, b)
    return len(first) == len(second) and all(
        x.shape == y.shape and (torch.equal(x, y) or (x.is_floating_point() and alike(x, y)))
        for x, y in zip(first, second, strict=True)
    )


def _failed(index: int, gradient: bool, error: Exception) -> str:
    reason = sentence(f"{type(error).__name__}, {in_short(error, 200)}")
    remedy = (
        "With gradients switched on its code takes another way: use a method without gradients, such as df-rise."
        if gradient
        else "Make the same call without Denoscope to see whether it still runs."
    )
    return f"The pipeline, called again for step {index}, failed in its own code: {reason} {remedy}"
