"""The recording of a run: the steps that pass by while a pipeline is called, as a `Trace`.

Whatever cannot be read is recorded with the reason, which is told at the first question. The user's call goes on.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch

from ..errors import DenoscopeError, ModelError, RecordingError, ReplayError, in_short
from .components import DENOISERS, networks_of, schedulers_of
from .decoding import Decoding
from .engines import Run, Signature
from .hooks.calls import Heard, ModuleCall, SchedulerStep, recording
from .hooks.recorded import RecordedCall, RecordedStep
from .hooks.replay import Replay
from .hooks.restoring import restored
from .hooks.resume import Resumption
from .hooks.schedulers import TimeSteps
from .keeping import Keeper
from .noise import NoiseLevel, noise_level
from .pictures import pictures_in
from .steps import Step, refuse_non_finite
from .traces import Trace


class SecondSamplingWarning(UserWarning):
    """One call of a pipeline sampled several times; the trace is of the last time."""


@dataclass(eq=False)
class _Sampling:
    """The steps of one sampling while they pass by: places among all steps of the call, and what was read of each.

    `keeper` moves their tensors to where they are kept; None leaves them where they are.
    """

    scheduler: Any
    places: list[int] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    directs: list[Replay | None] = field(default_factory=list)
    signatures: list[Signature] = field(default_factory=list)
    latest: Step | None = None
    keeper: Keeper | None = None

    def take(self, step: Step) -> None:
        """Store a step, in the keeper's memory if there is one; the `latest` stays on its device for the next."""
        self.latest = step
        if self.keeper is not None:
            self.keeper.next_step()
            step = step.moved(self.keeper, None if step.direct is None else step.direct.to(self.keeper), None)
        self.steps.append(step)
        self.directs.append(step.direct)


class _Recorder:
    """Everything that one recorded call leaves, collected while it runs."""

    def __init__(
        self, denoisers: frozenset[str], advance: Callable[[int], None] | None, keep: torch.device | None = None
    ):
        self.denoisers, self.advance, self.keep = denoisers, advance, keep
        self.samplings: list[_Sampling] = []
        self.recorded: list[RecordedStep] = []
        self.heard: Heard | None = None

    def on_step(self, calls: list[ModuleCall], taken: SchedulerStep, scheduler: Any) -> None:
        sampling = self._sampling(taken, scheduler)
        refuse_non_finite(taken.model_output, len(sampling.steps), taken.timestep)
        names = tuple(call.name for call in calls)
        asked = [call for call in calls if call.name in self.denoisers]
        before = sampling.latest
        taken = _sharing(taken, before)
        direct, refusal = _direct(asked, taken, None if before is None else before.direct)
        sampling.take(_step(scheduler, taken, direct, refusal, before))
        sampling.signatures.append(Signature.of(names, asked))
        sampling.places.append(len(self.recorded))
        recorded = RecordedStep.of(calls, taken)
        self.recorded.append(recorded if sampling.keeper is None else recorded.moved(sampling.keeper))
        if self.advance is not None:
            self.advance(1)

    def repeated(self) -> frozenset[str]:
        """Return the networks that are called again at later steps of a sampling."""
        later = [self.recorded[place] for sampling in self.samplings for place in sampling.places[1:]]
        return self.denoisers | {name for step in later for name, _ in step.blanks}

    def _sampling(self, taken: SchedulerStep, scheduler: Any) -> _Sampling:
        """Return the sampling of a step: that of its scheduler and shape, or a new one if it starts again."""
        shape = taken.sample.shape
        own = [s for s in self.samplings if s.scheduler is scheduler and s.steps[-1].sample.shape == shape]
        begins = self.heard is not None and len(self.recorded) in self.heard.beginnings
        last = own[-1].latest if own else None
        if last is not None:
            follows = last.prev_sample.shape == taken.sample.shape and torch.equal(last.prev_sample, taken.sample)
            if follows or not (begins or taken.timestep > last.timestep):
                return own[-1]
        self.samplings.append(_Sampling(scheduler, keeper=None if self.keep is None else Keeper(self.keep)))
        return self.samplings[-1]


def record(
    model: Any,
    scheduler: Any,
    run: Callable[[], Any],
    timesteps: Sequence[int] | None,
    call: dict[str, Any],
    arguments: tuple[tuple[Any, ...], Mapping[str, Any]],
    advance: Callable[[int], None] | None = None,
    keep: torch.device | None = None,
) -> Trace:
    """Run a pipeline once and record its networks and its schedulers; `advance(1)` is called after each step.

    `run` calls the pipeline with `arguments`. Recorded tensors are moved to the device `keep`, if any. Raises
    `NumericsError` at the step where a prediction is not finite and `RecordingError` if no step was recorded. Warns
    of a call that samples several times, and of a picture that is not the one that the last sample decodes to.
    """
    pipeline = model.pipeline
    networks, schedulers = networks_of(pipeline), schedulers_of(pipeline)
    denoisers, set_steps = frozenset(name for name in networks if name in DENOISERS), TimeSteps(scheduler, timesteps)
    recorder, recorded_call = _Recorder(denoisers, advance, keep), RecordedCall.of(pipeline, *arguments)
    with (
        restored(pipeline, after_failure_only=True),
        set_steps(),
        recording(networks, schedulers, recorder.on_step) as heard,
    ):
        recorder.heard = heard
        result = run()
    if not recorder.samplings:
        raise RecordingError(
            f"The pipeline ran, but its {type(scheduler).__name__}.step was never called with a prediction and a "
            "sample, so there is nothing to explain. Record a pipeline that denoises in its own call, with at least "
            "one inference step."
        )
    for other in recorder.samplings:
        for place in () if _follows(other) else other.places:
            recorder.recorded[place] = replace(recorder.recorded[place], beside=True)
    sampling = _of_the_picture(recorder.samplings)
    resumption = Resumption(
        recorded_call, recorder.recorded, networks, schedulers, denoisers, recorder.repeated(), set_steps
    )
    if keep is not None and sampling.latest is not None:
        resumption.home = sampling.latest.sample.device
    with torch.inference_mode(False), torch.no_grad():  # what is computed here has gradients asked of it later
        return _finished(model, sampling, resumption, heard, result, call)


def _finished(
    model: Any, sampling: _Sampling, resumption: Resumption, heard: Heard, result: Any, call: dict[str, Any]
) -> Trace:
    rows, pictures = len(sampling.steps[0].sample), pictures_in(result)
    copies = _copies(sampling.steps, pictures)
    for place in sampling.places if copies > 1 else ():
        resumption.steps[place] = resumption.steps[place].folded(copies)
    batch = rows // copies
    unit = batch // pictures if pictures and batch % pictures == 0 else 1
    chained = all(before.prev_sample is after.sample for before, after in pairwise(sampling.steps))
    run = Run(resumption, sampling.places, unit, sampling.directs, sampling.signatures, chained)
    run.fingerprint()  # what resumed calls remember is forgotten when weights change from now on
    run.decoding = Decoding(run, result, tuple(heard.decodings))
    steps = [
        step.of_run(run, batch, level)
        for step, level in zip(sampling.steps, [*(step.noise for step in sampling.steps[1:]), None], strict=True)
    ]
    run.directs = [step.direct for step in steps]
    steps = _of_one_form(steps)
    model.remember(run.decoding)
    trace = Trace(steps, result, call, model)
    run.decoding.warn()
    return trace


def _of_the_picture(samplings: Sequence[_Sampling]) -> _Sampling:
    """Return the last sampling; of several side by side, a clip and its sound, the first.

    Warns of earlier ones by the same scheduler. A stage with a scheduler of its own, as a prior has, is none of them.
    """
    last = next((sampling for sampling in reversed(samplings) if _follows(sampling)), samplings[-1])
    overlapping = [sampling for sampling in samplings if sampling.places[-1] > last.places[0]]
    beside = [sampling for sampling in overlapping if _follows(sampling)] or [last]
    earlier = [sampling for sampling in samplings if sampling.places[-1] < last.places[0]]
    before = [sampling for sampling in earlier if sampling.scheduler is last.scheduler]
    if before:
        lengths = " and ".join(str(len(sampling.steps)) for sampling in (*before, beside[0]))
        warnings.warn(
            f"This call sampled {len(before) + 1} times, in {lengths} steps. The trace is of the last time, which the "
            "picture comes from. To explain another, call the pipeline for it alone.",
            SecondSamplingWarning,
            stacklevel=4,
        )
    return beside[0]


def _of_one_form(steps: list[Step]) -> list[Step]:
    """Return the steps without noise levels if the scheduler contradicts one of them: all are of one form."""
    contradicted = next((step for step in steps if step.contradicted), None)
    if contradicted is None:
        return steps
    refusal = contradicted.level_refusal
    return [replace(step, noise=None, next_level=None, level_refusal=refusal) for step in steps]


def _follows(sampling: _Sampling) -> bool:
    """Return True if a sampling goes on from its own results, and is no calculation beside another."""
    return len(sampling.steps) == 1 or any(
        torch.equal(before.prev_sample, after.sample) for before, after in pairwise(sampling.steps)
    )


def _copies(steps: Sequence[Step], pictures: int | None) -> int:
    """Return how often the pipeline repeats each sample for guidance, as DiT does; 1 as a rule."""
    rows = len(steps[0].sample)
    if not pictures or rows <= pictures or rows % pictures:
        return 1
    copies = rows // pictures
    for step in (steps[0], steps[-1]):
        first, *others = torch.split(step.sample, pictures)
        if not all(torch.equal(first, other) for other in others):
            return 1
    return copies


def _sharing(taken: SchedulerStep, before: Step | None) -> SchedulerStep:
    """Return a step whose sample, if it is the step before's result, is that very tensor, so that it is stored once."""
    if before is not None and torch.equal(before.prev_sample, taken.sample):
        return replace(taken, sample=before.prev_sample)
    return taken


def _step(
    scheduler: Any,
    taken: SchedulerStep,
    direct: Replay | None,
    refusal: ReplayError | None,
    before: Step | None,
) -> Step:
    """Build a step from what was heard of it."""
    noise, level_refusal = _noise(scheduler, taken)
    return Step(
        index=0 if before is None else before.index + 1,
        timestep=taken.timestep,
        noise=noise,
        sample=taken.sample,
        model_output=taken.model_output,
        prev_sample=taken.prev_sample,
        direct=direct,
        refusal=refusal,
        level_refusal=level_refusal,
        contradicted=noise is not None and level_refusal is not None,
    )


def _direct(
    calls: list[ModuleCall], taken: SchedulerStep, earlier: Replay | None
) -> tuple[Replay | None, ReplayError | None]:
    """Return the direct replay of a step, or the reason why there is none: a recording must not end the user's call."""
    try:
        return Replay.of(calls, taken, earlier), None
    except ReplayError as error:
        return None, error.with_traceback(None)


def _noise(scheduler: Any, taken: SchedulerStep) -> tuple[NoiseLevel | None, DenoscopeError | None]:
    """Return the noise level of a step, or the reason why it is not known."""
    if taken.problem is not None:
        return None, ModelError(
            f"The noise level of this step is not known: {taken.problem}. Give the pipeline a DDPM, DDIM, DPM-Solver, "
            "Euler or flow-match scheduler."
        )
    try:
        level = noise_level(scheduler, taken.timestep, taken.sigma_index, taken.scale)
    except DenoscopeError as error:
        return None, error.with_traceback(None)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        return None, ModelError(
            f"The noise level of {type(scheduler).__name__} at time step {taken.timestep:g} is not known: "
            f"{in_short(error, 120)} Give the pipeline a DDPM, DDIM, DPM-Solver, Euler or flow-match scheduler."
        )
    try:
        level.refuse_other_than(taken.sample, taken.model_output, taken.original, scheduler)
    except ModelError as error:
        return level, error.with_traceback(None)  # `_of_one_form` takes the levels of all steps away
    return level, None
