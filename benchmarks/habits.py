"""What people do to their pipelines beside every question: right, one sentence, or a fault.

    python benchmarks/habits.py                         # all, about 10 minutes on two quiet cores
    python benchmarks/habits.py compile offload         # habits whose names have one of these words
    python benchmarks/habits.py --families sd-text,wan

The pipelines are those of tests/families, small and with random weights, and the habits those of tests/habits.py. Each
answer is compared with the same question about a pipeline that the habit was not done to: "right" if the numbers are
the same within the habit's limit, which the table gives. Predictions and pictures of other samples are compared with
the pipeline's own second run. Where the library alone makes another picture with a habit, "another picture" says so,
and its maps are compared with nothing, as those of a habit that changes the numbers are not: "map" says that they are
finite and not flat. The last column is the pipeline afterwards: its hooks, modes, devices and next picture.
A refusal is numbered, and its sentence stands below the table. Packages that are not installed leave their rows out,
and are named. The exit status is 1 for a wrong answer, and for an exception that is none of Denoscope's own.
"""

import argparse
import functools
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import numpy as np
import torch
from families import oracle
from families.every import FAMILIES
from families_questions import Cell, asked, score
from habits import HABITS, Habit, quiet, state

import denoscope
from denoscope import Concepts, DFCam, DFRise, IntegratedGradients, Relevance, Words

DEFAULT = ("sd-text", "sdxl-text", "sd3", "flux", "wan")
MASKS = 8
PICTURE = "picture"
OTHER = 0.05
"""The relative difference of two pictures from which on they are others."""


class Asked:
    """A pipeline of a family with a habit, its own run, and its recording."""

    def __init__(self, family: str, habit: Habit, apply: Callable[[Any, ExitStack], Any], undo: ExitStack):
        self.habit, self.call = habit, FAMILIES[family].call
        self.pipe = FAMILIES[family].build()
        self.pipe.set_progress_bar_config(disable=True)
        self.pipe = apply(self.pipe, undo)
        self.pipe.set_progress_bar_config(disable=True)
        with habit.around():
            self.plain = oracle.run(self.pipe, self.call())
        self.before = state(self.pipe)

    @functools.cached_property
    def trace(self) -> denoscope.Trace:
        torch.manual_seed(oracle.SEED)
        generator = torch.Generator().manual_seed(oracle.SEED)
        with self.habit.around():
            return denoscope.load(self.pipe).trace(generator=generator, **self.call())

    def alone(self) -> denoscope.Trace:
        return self.trace.picture(0) if self.trace.pictures > 1 else self.trace

    def map_of(self, attributor: Any) -> np.ndarray:
        return np.asarray(attributor(self.alone(), [1]).saliency.values)


# The questions: arrays of numbers.


def recorded(subject: Asked) -> Cell:
    """Return "right" for the picture that the same call makes without Denoscope, bit for bit."""
    own, heard = (oracle.numbers(oracle.finished(each)) for each in (subject.plain.result, subject.trace.result))
    return of_difference(own, heard, 0.0)


def predict(subject: Asked) -> Cell:
    with subject.habit.around():
        seen = oracle.run(subject.pipe, subject.call(), 0)
    with torch.no_grad():
        return of_difference(seen.outputs[1], subject.trace[1].predict(seen.samples[1]), limit_of(subject, 1e-4))


def decode(subject: Asked) -> Cell:
    last = len(subject.trace) - 1
    with torch.no_grad():
        subject.trace.decode(subject.trace[last].prev_sample)
    with subject.habit.around():
        expected, seen = oracle.exact_pictures(subject.pipe, subject.call(), last)
    with torch.no_grad():
        return of_difference(expected, subject.trace.decode(seen.returned[last]), limit_of(subject, 2e-3))


def limit_of(subject: Asked, least: float) -> float:
    half = any(output.dtype in (torch.float16, torch.bfloat16) for output in subject.plain.outputs)
    return max(0.05 if half or subject.habit.around.__name__ == "autocast" else least, subject.habit.limit)


def of_difference(expected: Any, values: Any, limit: float) -> Cell:
    apart = oracle.relative(torch.as_tensor(values).detach().double(), torch.as_tensor(expected).double())
    if apart <= limit:
        return Cell("answered", "right", error=apart)
    return Cell("wrong", f"WRONG {apart:.0e}", f"{apart:.2g} away, {limit:.0e} allowed", apart)


def words(subject: Asked) -> np.ndarray:
    """Return maps listened to while the picture is made; raises `ValueError` where the replayed ones are others."""
    generator, model, listened = torch.Generator().manual_seed(oracle.SEED), denoscope.load(subject.pipe), Words()
    with subject.habit.around(), listened.recording(model) as heard:
        torch.manual_seed(oracle.SEED)
        trace = model.trace(generator=generator, **subject.call())
    alone = trace.picture(0) if trace.pictures > 1 else trace
    maps, kept = listened(alone, [1]).saliency.values, heard.maps(alone, [1]).saliency.values
    apart = oracle.relative(kept, maps)
    if apart > max(1e-4, subject.habit.limit):
        raise ValueError(f"the maps listened to are {apart:.2g} away from the replayed ones")
    own, made = (oracle.numbers(oracle.finished(each)) for each in (subject.plain.result, trace.result))
    if oracle.relative(made, own) > (8e-3 if "compile" in str(subject.habit.apply) else 0):
        raise ValueError("the picture made while listening is another")
    return np.asarray(maps)


MAPS: dict[str, Callable[[Asked], np.ndarray]] = {
    "DF-RISE": lambda subject: subject.map_of(DFRise.contrast(MASKS)),
    "IG": lambda subject: subject.map_of(IntegratedGradients(score(), n_steps=3)),
    "DF-CAM": lambda subject: subject.map_of(DFCam.paper()),
    "words": words,
    "relevance": lambda subject: subject.map_of(Relevance()),
    "concepts": lambda subject: subject.map_of(Concepts(("a blue square", "red"))),
}
QUESTIONS = ("recorded", "predict", "decode", *MAPS, "afterwards")


def compared(question: str, subject: Asked, expected: np.ndarray | Cell | None) -> Cell:
    """Return the cell of a map beside the reference's; None if there is nothing to compare with."""
    values = MAPS[question](subject)
    if not np.isfinite(values).all() or values.min() == values.max():
        return Cell("wrong", "WRONG flat or not finite", "flat or not finite")
    if expected is None:
        return Cell("answered", "map")
    if isinstance(expected, Cell):
        return Cell("answered", "map", "the plain pipeline refuses this question")
    return of_difference(expected, values, max(subject.habit.limit, 2e-5))


def afterwards(subject: Asked) -> Cell:
    subject.trace  # noqa: B018  (what is not recorded leaves nothing behind)
    now = state(subject.pipe)
    changed = [name for name in {**subject.before, **now} if subject.before.get(name) != now.get(name)]
    if changed:
        names = f"changed: {', '.join(changed[:3])}: {subject.before.get(changed[0])} {now.get(changed[0])}"
        return Cell("wrong", "WRONG changed", names)
    with subject.habit.around():
        again = oracle.run(subject.pipe, subject.call()).result
    own, again = (oracle.numbers(oracle.finished(each)) for each in (subject.plain.result, again))
    return of_difference(own, again, 0.0)


# The table.


@functools.cache
def reference(family: str, name: str) -> dict[str, np.ndarray | Cell]:
    """Return the maps of a family without the habit, or with what gives the same numbers in another way."""
    habit = HABITS[name]
    assert habit.reference is not None
    with ExitStack() as undo:
        subject = Asked(family, Habit(habit.apply), habit.reference, undo)
        own = {question: _values(question, subject) for question in MAPS}
        return {PICTURE: oracle.numbers(oracle.finished(subject.plain.result)), **own}


def _values(question: str, subject: Asked) -> np.ndarray | Cell:
    values: list[np.ndarray] = []

    def ask() -> Cell:
        values.append(MAPS[question](subject))
        return Cell("answered", "")

    cell = asked(ask)
    if cell.kind == "raw":
        raise RuntimeError(cell.message)
    return values[0] if values else cell


def measured(family: str, name: str) -> dict[str, Cell]:
    """Return the cells of a habit on a family."""
    habit = HABITS[name]
    plain = HABITS["nothing"].reference
    of = "nothing" if habit.reference is plain or _is_plain(habit) else name
    expected = {} if habit.reference is None else dict(reference(family, of))
    with ExitStack() as undo:
        try:
            subject = Asked(family, habit, habit.apply, undo)
        except Exception as error:  # any: the library itself does not do it to this pipeline
            return {"recorded": Cell("none", f"not possible: {str(error).splitlines()[0][:90] if str(error) else ''}")}
        is_other = PICTURE in expected and not _same_picture(subject, expected.pop(PICTURE))
        expected = {} if is_other else expected
        first = {"recorded": recorded, "predict": predict, "decode": decode}
        cells: dict[str, Cell] = {}
        for question in QUESTIONS[:-1]:
            ask = functools.partial(first[question], subject) if question in first else None
            run = ask or functools.partial(compared, question, subject, expected.get(question))
            with habit.around() if habit.whole else nullcontext():
                cells[question] = asked(run)
        cells["afterwards"] = asked(functools.partial(afterwards, subject))
    if is_other and not cells["recorded"].fails:
        cells["recorded"] = Cell("answered", f"{cells['recorded'].text}, another picture")
    return cells


def _same_picture(subject: Asked, expected: Any) -> bool:
    """Return True if the pipeline by itself makes the reference's picture; else the library changed its numbers."""
    own = oracle.numbers(oracle.finished(subject.plain.result))
    apart = oracle.relative(torch.as_tensor(own), torch.as_tensor(expected))
    return apart <= max(OTHER, subject.habit.limit)


def _is_plain(habit: Habit) -> bool:
    return habit.reference is not None and habit.reference.__code__ is HABITS["nothing"].reference.__code__


def table(rows: dict[tuple[str, str], dict[str, Cell]]) -> str:
    """Return the rows as Markdown, with numbered refusals below."""
    sentences: list[str] = []

    def text(cell: Cell | None) -> str:
        if cell is None:
            return ""
        if cell.kind != "refused":
            return cell.text
        if cell.message not in sentences:
            sentences.append(cell.message)
        return f"({sentences.index(cell.message) + 1})"

    lines = [f"| habit | pipeline | {' | '.join(QUESTIONS)} | limit |", f"|{'---|' * (len(QUESTIONS) + 3)}"]
    for (name, family), cells in rows.items():
        values = " | ".join(text(cells.get(question)) for question in QUESTIONS)
        lines.append(f"| {name} | {family} | {values} | {HABITS[name].limit:.0e} |")
    lines += ["", *[f"{number}. {sentence}" for number, sentence in enumerate(sentences, 1)]]
    fails = [
        f"- {name}, {family}, {question}: {cell.message}"
        for (name, family), cells in rows.items()
        for question, cell in cells.items()
        if cell.fails
    ]
    return "\n".join([*lines, "", "Wrong, or no exception of Denoscope's own:", *(fails or ["- nothing"])])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="habits whose names have one of these; all if none is given")
    parser.add_argument("--families", default=",".join(DEFAULT), help="names of tests/families, with commas between")
    options = parser.parse_args(arguments)
    families = options.families.split(",")
    if unknown := [name for name in families if name not in FAMILIES]:
        parser.error(f"there is no family {unknown[0]}; there are {', '.join(FAMILIES)}")
    names = [name for name in HABITS if not options.words or any(word in name for word in options.words)]
    rows, absent = {}, dict[str, str]()
    for name in names:
        missing = HABITS[name].missing()
        if missing is not None:
            absent[name] = missing
            continue
        for family in families:
            if not HABITS[name].fits(FAMILIES[family].build()):
                continue
            with quiet():
                try:
                    rows[name, family] = measured(family, name)
                except Exception:  # any: one row must not stop the table
                    rows[name, family] = {"recorded": Cell("raw", "RAW", traceback.format_exc())}
            cells = rows[name, family]
            print(f"{name}, {family}: {', '.join(f'{q} {c.text}' for q, c in cells.items())}", flush=True)
    print(f"\n{table(rows)}")
    for name, package in absent.items():
        print(f"Left out: {name}, as {package} is not installed.")
    return int(any(cell.fails for cells in rows.values() for cell in cells.values()))


if __name__ == "__main__":
    sys.exit(main())
