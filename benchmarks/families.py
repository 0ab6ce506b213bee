"""Every small pipeline of tests/families: recorded, replayed, decoded and explained, beside what is right.

    python benchmarks/families.py                    # all, about 20 minutes on two quiet cores
    python benchmarks/families.py wan sd-controlnet  # those whose names have one of these words
    python benchmarks/families.py --questions words,concepts,relevance
    python benchmarks/families.py --readme           # those of README's table, which is printed

The pipelines have random weights, so a map says nothing about a picture; that there is one is the question. What is
right comes from the pipeline itself, run again with a disturbed sample: its prediction, and its picture. The clean
sample is the scheduler's own, with clipping off. OUT has table.md and table.json, whole or not at all. The exit status
is 1 if an answer is wrong, if a recorded picture differs or the next plain call does, and for every exception that is
none of Denoscope's own.
"""

import argparse
import concurrent.futures
import functools
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import torch
from families.family import Family
from families_questions import QUESTIONS, Cell, Subject, asked
from families_table import README, Row, check_place, of_users, one_row, summary, write

OUT = Path("out/families")


def measured(name: str, columns: Sequence[str] = tuple(QUESTIONS)) -> Row:
    """Return the row of a family; `columns` are the questions that are put. No exception leaves it."""
    from families.every import FAMILIES

    family, began = FAMILIES[name], time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        subject, cells = subject_of(family)
        if subject is not None:
            cells["recorded"] = asked(functools.partial(QUESTIONS["recorded"], subject))
        for column in columns:
            if subject is None or cells["recorded"].kind in ("refused", "raw"):
                cells.setdefault(column, Cell("none", "not recorded"))
            elif column not in cells:
                cells[column] = asked(functools.partial(QUESTIONS[column], subject))
    layouts = tuple(sorted(family.layouts))
    pipeline = "" if subject is None else type(subject.pipe).__name__
    return Row(name, pipeline, layouts, cells, time.perf_counter() - began)


def subject_of(family: Family) -> tuple[Subject | None, dict[str, Cell]]:
    """Return a family's pipeline, run once; or None, and the exception as the answer of "recorded"."""
    subjects: list[Subject] = []

    def build() -> Cell:
        subjects.append(Subject(family))
        return Cell("answered", "built")

    cell = asked(build)
    return (subjects[0], {}) if subjects else (None, {"recorded": cell})


def rows_of(names: Sequence[str], workers: int, columns: Sequence[str]) -> Iterator[Row]:
    """Yield the rows of families in their order, measured in several processes."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, context, initializer=quiet) as pool:
        yield from pool.map(functools.partial(measured, columns=columns), names)


def quiet() -> None:
    """Keep libraries quiet, and this process on one core."""
    import diffusers
    import transformers

    transformers.logging.set_verbosity_error()
    diffusers.utils.logging.set_verbosity(50)
    torch.set_num_threads(1)


def chosen_names(words: Sequence[str], readme: bool, parser: argparse.ArgumentParser) -> list[str]:
    """Return the names of the families that have one of the words, or of README's table."""
    quiet()
    from families.every import FAMILIES

    if readme:
        return list(README)
    if unknown := [word for word in words if not any(word in name for name in FAMILIES)]:
        parser.error(f"no family has {', '.join(unknown)} in its name; there are {', '.join(FAMILIES)}")
    return [name for name in FAMILIES if not words or any(word in name for word in words)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="families whose names have one of these; all if none is given")
    parser.add_argument("--readme", action="store_true", help="the families of README's table, which is printed")
    parser.add_argument("--questions", help="columns, with commas between; all if none is given")
    parser.add_argument("--workers", type=int, default=2, help="families side by side")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the table")
    options = parser.parse_args()
    place = check_place(options.out, parser)
    columns = tuple(QUESTIONS) if options.questions is None else tuple(options.questions.split(","))
    if unknown := [column for column in columns if column not in QUESTIONS]:
        parser.error(f"there is no column {unknown[0]}; there are {', '.join(QUESTIONS)}")
    rows = []
    for row in rows_of(chosen_names(options.words, options.readme, parser), options.workers, columns):
        rows.append(row)
        print(one_row(row), flush=True)
    write(rows, place)
    print(f"\n{of_users(rows) if options.readme else summary(rows)}\n{place}/table.md")
    return int(any(row.fails for row in rows))


if __name__ == "__main__":
    sys.exit(main())
