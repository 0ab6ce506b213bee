"""The questions that are put to a small pipeline, and the right answers: a second run of the pipeline itself."""

import functools
import inspect
import math
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from families import oracle
from families.family import Family
from families.spelled import word_positions

import denoscope
from denoscope import ClassScore, Concepts, DFCam, DFRise, IntegratedGradients, Occlusion, Relevance, Words
from denoscope.attributors.base import Attributor
from denoscope.errors import DenoscopeError, one_line
from denoscope.recording.listening import reading_of
from denoscope.recording.steps import Step
from denoscope.recording.traces import Trace

LIMITS = {"predict": 1e-3, "decode": 2e-3, "clean": 1e-3}
"""Largest error of an answer: relative for predictions and clean samples, of values in [0, 1] for pictures."""
MASKS = 16
PARTS = 4
"""Windows of Occlusion beside each other, on each side."""
PACKAGE = Path(denoscope.__file__).parent


@dataclass(frozen=True)
class Cell:
    """One answer. `kind` is "answered", "refused", "none" (nothing to ask), "wrong" or "raw" (another exception)."""

    kind: str
    text: str
    message: str = ""
    error: float | None = None

    @property
    def fails(self) -> bool:
        """True if the table must not have this."""
        return self.kind in ("wrong", "raw")


def asked(question: Callable[[], Cell]) -> Cell:
    """Return the answer to a question, or the exception in its place."""
    try:
        return question()
    except DenoscopeError as error:
        return Cell("refused", f"refused: {one_line(error, 60)}", " ".join(str(error).split()))
    except Exception as error:  # any: one family must not stop the table
        message = f"{type(error).__name__}: {one_line(error, 600)} ({place_of(error)})"
        return Cell("raw", f"RAW {one_line(message, 80)}", message)


def place_of(error: BaseException) -> str:
    """Return the last line of the package that an exception passed through, or the last line at all."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if PACKAGE in Path(frame.filename).parents]
    frame = (own or frames)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}"


def of_error(question: str, error: float, text: str = "") -> Cell:
    """Return the cell of an answer that is so far from the right one."""
    kind = "answered" if error <= LIMITS[question] else "wrong"
    return Cell(kind, f"{error:.0e}{text}", f"{question} is {error:.2g} away" if kind == "wrong" else "", error)


class Subject:
    """A pipeline of a family, its plain run and its recording."""

    def __init__(self, family: Family):
        self.pipe: Any = family.build()
        self.pipe.set_progress_bar_config(disable=True)
        self.call = family.call
        self.plain = oracle.run(self.pipe, self.call())

    @functools.cached_property
    def trace(self) -> Trace:
        torch.manual_seed(oracle.SEED)  # some pipelines draw noise without the generator
        generator = torch.Generator().manual_seed(oracle.SEED)
        return denoscope.load(self.pipe).trace(generator=generator, **self.call())

    @functools.cached_property
    def alone(self) -> Trace:
        """The recording of the first picture."""
        return self.trace.picture(0) if self.trace.pictures > 1 else self.trace

    @property
    def later(self) -> int:
        """The step that is explained: the second one, if there is one."""
        return min(1, len(self.trace) - 1)

    def place(self, index: int) -> int:
        """Return the place of a step among all steps of the call."""
        run = self.trace[0].run
        assert run is not None
        return run.places[index]

    def first_copy(self, values: torch.Tensor, index: int) -> torch.Tensor:
        """Return the rows that are left of a scheduler's tensor: some pipelines hand it every row several times."""
        run = self.trace[0].run
        assert run is not None
        return values[: len(values) // run.resumption.steps[self.place(index)].copies]


# The recording.


def recorded(subject: Subject) -> Cell:
    return _same(subject, subject.trace.result, "the recorded picture is another")


def afterwards(subject: Subject) -> Cell:
    subject.trace  # noqa: B018  (what is not recorded leaves nothing behind)
    return _same(subject, oracle.run(subject.pipe, subject.call()).result, "the next plain call gives another picture")


def _same(subject: Subject, result: Any, problem: str) -> Cell:
    before, now = (oracle.numbers(oracle.finished(each)) for each in (subject.plain.result, result))
    same = np.array_equal(before, now)
    return Cell("answered" if same else "wrong", "yes" if same else "NO", "" if same else problem)


def steps(subject: Subject) -> Cell:
    """Return the number of recorded steps, and of all scheduler steps where that is another."""
    recorded, taken = len(subject.trace), len(subject.plain.outputs)
    return Cell("answered", str(recorded) if recorded == taken else f"{recorded} of {taken}")


# The engines.


def first_engine(subject: Subject) -> Cell:
    return Cell("answered", subject.trace[0].engine)


def later_engine(subject: Subject) -> Cell:
    return Cell("answered", subject.trace[subject.later].engine) if len(subject.trace) > 1 else NOTHING


NOTHING = Cell("none", "–")


def predict(subject: Subject) -> Cell:
    """Return the largest error of predictions for other samples of step 1, the last one and, if it can be, step 0."""
    trace, errors = subject.trace, {}
    others = {index: _disturbed(subject, index) for index in sorted({subject.later, len(trace) - 1}) if index > 0}
    first = _from_latents(subject) if asked(lambda: first_engine(subject)).kind == "answered" else None
    for index, seen in {**({0: first} if first else {}), **others}.items():
        sample, output = (
            subject.first_copy(part[subject.place(index)], index) for part in (seen.samples, seen.outputs)
        )
        with torch.no_grad():
            errors[index] = oracle.relative(trace[index].predict(sample), output)
    if not errors:
        return NOTHING
    return of_error("predict", max(errors.values()), f" at {', '.join(map(str, errors))}")


def _disturbed(subject: Subject, index: int) -> oracle.Seen:
    return oracle.run(subject.pipe, subject.call(), subject.place(index - 1))


def _from_latents(subject: Subject) -> oracle.Seen | None:
    """Return a run from another first sample; None where the pipeline takes none, or draws other noise with one."""
    call, place = subject.call(), subject.place(0)
    if "latents" not in inspect.signature(type(subject.pipe).__call__).parameters:
        return None
    scheduler = next(iter(oracle.schedulers(subject.pipe)))
    sample, prediction = subject.plain.samples[place], subject.plain.outputs[place]
    latents = subject.first_copy(sample, 0) / float(getattr(scheduler, "init_noise_sigma", 1))
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(5)).to(latents)
    try:
        control = oracle.run(subject.pipe, call, latents=latents.clone())
        other = oracle.run(subject.pipe, subject.call(), latents=latents + 0.25 * latents.float().std() * noise)
    except Exception:  # any: latents of another form are asked for
        return None
    repeats = oracle.relative(control.samples[place], sample) < 1e-5
    return other if repeats and oracle.relative(control.outputs[place], prediction) < 1e-4 else None


# Pictures and clean samples.


def decode_engine(subject: Subject) -> Cell:
    run = subject.trace[0].run
    assert run is not None
    if run.decoding.problem:
        return Cell("refused", f"refused: {one_line(run.decoding.problem, 60)}", run.decoding.problem)
    return Cell("answered", run.decoding.engine)


def decode(subject: Subject) -> Cell:
    """Return the largest difference of the pictures of another last sample from the pipeline's own."""
    last = len(subject.trace) - 1
    with torch.no_grad():
        subject.trace.decode(subject.trace[last].prev_sample)  # a refusal comes before the pipeline is asked
    expected, seen = oracle.exact_pictures(subject.pipe, subject.call(), subject.place(last))
    sample = subject.first_copy(seen.returned[subject.place(last)], last)
    with torch.no_grad():
        pictures = subject.trace.decode(sample).double()
    if pictures.shape != expected.shape:
        shapes = f"pictures are {tuple(pictures.shape)}, the pipeline's {tuple(expected.shape)}"
        return Cell("wrong", f"WRONG {shapes}", shapes)
    return of_error("decode", float((pictures - expected).abs().max()))


def clean(subject: Subject) -> Cell:
    """Return the largest error of the recorded steps' clean samples, beside the scheduler's own without clipping."""
    errors = []
    for step in subject.trace:
        own = subject.plain.originals[subject.place(step.index)]
        mine = step.pred_original_sample
        if own is not None:
            finite = torch.isfinite(own[: len(mine)])
            errors.append(oracle.relative(mine.where(finite, 0), own[: len(mine)].where(finite, 0)))
    return of_error("clean", max(errors)) if errors else Cell("none", "not told")


# Explanations.


@functools.cache
def score() -> ClassScore:
    """Return a score of a small classifier."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 3))
    labels = ["one", "two", "three"]
    return ClassScore(denoscope.load_classifier(module, labels, size=32, mean=0.5, std=0.5), "two")


def occlusion(step: Step) -> Occlusion:
    """Return Occlusion with few windows, that lie side by side."""
    channels, *sides = step.as_maps(step.sample).shape[1:]
    window = (channels, *[math.ceil(side / PARTS) for side in sides])
    return Occlusion(score(), window, window)


METHODS: dict[str, Callable[[Step], Attributor]] = {
    "DF-RISE": lambda step: DFRise.contrast(MASKS),
    "DF-RISE, paper": lambda step: DFRise.paper(MASKS),
    "Occlusion": occlusion,
    "Integrated Gradients": lambda step: IntegratedGradients(score(), n_steps=4),
    "DF-CAM": lambda step: DFCam.paper(),
}


def explained(method: Callable[[Step], Attributor], subject: Subject) -> Cell:
    """Return "map" if a method explains a step with a map that is finite, not flat and of the layout's shape."""
    trace, index = subject.alone, subject.later
    layout = trace[index].layout
    saliency = method(trace[index])(trace, [index]).saliency
    values = saliency.values
    problems = {
        f"dims {saliency.dims} for {layout.dims}": saliency.dims != ("step", *layout.dims),
        f"shape {values.shape} for {layout.shape}": values.shape != (1, *layout.shape),
        "values that are not finite": not np.isfinite(values).all(),
        "a flat map": values.min() == values.max(),
    }
    wrong = [problem for problem, found in problems.items() if found]
    return Cell("wrong", f"WRONG {wrong[0]}", wrong[0]) if wrong else Cell("answered", "map")


# Words.

EXCHANGED = {"red": "blue", "circle": "square", "a": "a"}
"""Words of the small pipelines' prompts, and others of as many tokens."""


def words(subject: Subject) -> Cell:
    """Return "map" if every word has a finite map, listened to and replayed alike, and two lie where the oracle says.

    The picture that is made while attention is listened to has to be the plain one, bit for bit.
    """
    generator = torch.Generator().manual_seed(oracle.SEED)
    model, listened = denoscope.load(subject.pipe), Words()
    with listened.recording(model) as heard:
        torch.manual_seed(oracle.SEED)
        trace = model.trace(generator=generator, **subject.call())
    same = _same(subject, trace.result, "the picture made while listening is another")
    if same.fails:
        return same
    alone = trace.picture(0) if trace.pictures > 1 else trace
    index = min(1, len(alone) - 1)
    maps, kept = listened(alone, [index]).saliency, heard.maps(alone, [index]).saliency
    dims = ("step", "token", *alone[index].layout.dims)
    problems = {
        f"dims {maps.dims} for {dims}": maps.dims != dims,
        "values that are not finite": not np.isfinite(maps.values).all(),
        "flat maps": maps.values.min() == maps.values.max(),
        "the maps listened to are others": float(abs(maps - kept).max()) > 1e-5,
        "values outside 0 to 1": maps.values.min() < 0 or maps.values.max() > 1.5,
    }
    wrong = [problem for problem, found in problems.items() if found]
    if not wrong:
        wrong = _elsewhere(subject, alone)
    return Cell("wrong", f"WRONG {wrong[0]}", wrong[0]) if wrong else Cell("answered", "map")


def _elsewhere(subject: Subject, trace: Trace) -> list[str]:
    """Return what the oracle says of the places of two words, where it is something else."""
    reading, call = reading_of(trace[0]), dict(subject.call())
    labels = [word for word in ("red", "circle") if word in reading.prompt.labels]
    if len(labels) < 2 or not isinstance(call.get("prompt"), str):
        return ["the two words of the prompt are not there"]
    wrong, start = [], 0
    for one in reading.inputs:
        row = reading.rows[0]
        path = (*one.path, row) if one.is_list else one.path
        for label in labels:
            (word,) = reading.prompt.find(label)
            mine = {place - start for place in word.positions if start <= place < start + one.length}
            rows = word_positions(subject.pipe, call, reading.name, reading.ordinal, path, label, EXCHANGED[label])
            expected = rows[0 if one.is_list else row][: max(len(mine), 1)]
            if mine != set(expected):
                wrong.append(f"{label} at {sorted(mine)} of {one.path[-1]}, the oracle {expected}")
        start += one.length
    return wrong


def concepts(subject: Subject) -> Cell:
    """Return "map" if two texts that are not the prompt have finite maps."""
    explain = functools.partial(Concepts, ("a blue square", "red"))
    return _of_words(subject, explain())


def relevance(subject: Subject) -> Cell:
    """Return "map" if the words have relevance."""
    return _of_words(subject, Relevance())


def _of_words(subject: Subject, attributor: Attributor) -> Cell:
    trace, index = subject.alone, subject.later
    saliency = attributor(trace, [index]).saliency
    problems = {
        f"dims {saliency.dims}": saliency.dims != ("step", "token", *trace[index].layout.dims),
        "values that are not finite": not np.isfinite(saliency.values).all(),
        "flat maps": saliency.values.min() == saliency.values.max(),
    }
    wrong = [problem for problem, found in problems.items() if found]
    return Cell("wrong", f"WRONG {wrong[0]}", wrong[0]) if wrong else Cell("answered", "map")


QUESTIONS: dict[str, Callable[[Subject], Cell]] = {
    "recorded": recorded,
    "steps": steps,
    "engine of step 0": first_engine,
    "of a later step": later_engine,
    "predict": predict,
    "decoded by": decode_engine,
    "decode": decode,
    "clean": clean,
    **{name: functools.partial(explained, method) for name, method in METHODS.items()},
    "words": words,
    "concepts": concepts,
    "relevance": relevance,
    "plain afterwards": afterwards,
}
"""The columns of the table, in the order in which they are asked."""
