"""Several explanations in one folder, below a page that compares them.

    OUT/report.html         the page that compares them, with a link to each
        comparison.png      the comparison as a still picture
        cat/, tiger/, ...   a folder for each photograph or variant, as `Explanation.save` writes it
        run.json            the settings, and when each label was recognised, or how the variants differ

The folder appears whole or not at all."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr

from ..files.whole import whole_folder
from .explanations import Explanation
from .folders import check_output
from .records import ComparisonRecord, RecognitionRecord, json_of_record
from .tables import Table

Rendered = tuple[Any, str]
"""The still picture (a matplotlib figure) and the page (HTML) of several explanations."""


@dataclass(frozen=True, eq=False)
class Recognition:
    """The result of `recognise`: an explanation for each picture by its name, and the failures of others.

    `several` is true if several pictures were to be looked at; then their folder has a page that compares them.
    """

    explanations: Mapping[str, Explanation]
    record: RecognitionRecord
    several: bool = False

    @property
    def run(self) -> dict[str, Any]:
        """The record of all pictures together, as in run.json."""
        return self.record.plain()

    @property
    def failures(self) -> Mapping[str, str]:
        """The message of each picture that failed, by the picture's name."""
        return self.record.failures

    @property
    def interrupted(self) -> bool:
        """True if Ctrl-C stopped the work; the finished part of the last picture is here."""
        return self.record.interrupted

    @property
    def interruption(self) -> str | None:
        """A sentence for the user if the work was stopped."""
        return "Interrupted: the finished part is kept." if self.interrupted else None

    def rows(self) -> Table:
        """Return a row for each picture and label: the frames at which its likelihood reaches each level."""
        picture, label, *moments = self.record.columns
        rows = []
        for name, text, *cells in self.record.table:
            rows.append((f"{name}\n{text}", *map(_on_two_lines, cells)))
        return Table(
            title="Frame at which a likelihood is reached",
            head=(f"{picture}\n{label}", *moments),
            rows=tuple(rows),
            notes=("Median, and below it the interval that holds at least 90 % of the draws.",),
        )

    def save(self, folder: str | os.PathLike[str], overwrite: bool = False) -> Path:
        """Write the output folder and return its absolute path; a single picture is written as its explanation.

        Raises what `Explanation.save` raises.
        """
        if not self.several:
            (only,) = self.explanations.values()
            return only.save(folder, overwrite)
        return save_together(self.explanations, self.run, folder, overwrite, _of_photographs)


@dataclass(frozen=True, eq=False)
class Variants:
    """The result of `compare`: an explanation for each variant by its name, and how their pictures differ.

    `distances` has the measures between every two pictures: `ssim`, `mse` and `features`, dims (a, b).
    """

    explanations: Mapping[str, Explanation]
    record: ComparisonRecord
    distances: xr.Dataset

    @property
    def run(self) -> dict[str, Any]:
        """The record of all variants together, as in run.json."""
        return self.record.plain()

    @property
    def failures(self) -> Mapping[str, str]:
        """The message of each variant that failed, by the variant's title."""
        return self.record.failures

    @property
    def interrupted(self) -> bool:
        """True if Ctrl-C stopped the work."""
        return self.record.stamp.interrupted

    @property
    def interruption(self) -> str | None:
        """The reason why the work stopped early; None if it did not."""
        return self.record.stamp.interruption

    def rows(self) -> Table:
        """Return a row for each variant: its steps in each band of noise; the notes are the facts that changed."""
        variants = self.record.variants
        bands = next(iter(variants.values())).coverage
        rows = []
        for variant in variants.values():
            shares = [f"{100 * share:.0f} %" for share in variant.coverage.values()]
            rows.append((variant.title, str(len(variant.timesteps)), *shares))
        notes = []
        for fact in self.record.facts:
            if fact.changed:
                values = [f"{variants[name].title} {value}" for name, value in fact.values.items()]
                notes.append(f"{fact.name}: {', '.join(values)}")
        for explanation in self.explanations.values():
            notes += [note for note in explanation.rows().notes if note not in notes]
        title = "Share of the steps in each band of noise"
        return Table(title, ("variant", "steps", *bands), tuple(rows), tuple(notes))

    def save(self, folder: str | os.PathLike[str], overwrite: bool = False) -> Path:
        """Write the output folder and return its absolute path. Raises what `Explanation.save` raises."""
        return save_together(self.explanations, self.run, folder, overwrite, _of_variants)


def save_together(
    explanations: Mapping[str, Explanation],
    run: Mapping[str, Any],
    folder: str | os.PathLike[str],
    overwrite: bool,
    render: Callable[[Mapping[str, Explanation], Mapping[str, Any]], Rendered],
) -> Path:
    """Write each explanation into a folder of its own, and above them the page and the still picture of all.

    Returns the absolute path. Raises what `Explanation.save` raises, and leaves nothing half-written either.
    """
    place = check_output(folder, overwrite)
    with whole_folder(place) as temporary:
        for name, explanation in explanations.items():
            (temporary / name).mkdir()
            explanation.write(temporary / name)
        record = {**run, "folders": list(explanations)}
        figure, page = render(explanations, record)
        figure.savefig(temporary / "comparison.png")
        (temporary / "report.html").write_text(page, encoding="utf-8")
        (temporary / "run.json").write_text(json_of_record(record), encoding="utf-8")
        check_output(folder, overwrite)  # another program may have taken the place in the meantime
    return place


def _of_photographs(explanations: Mapping[str, Explanation], run: Mapping[str, Any]) -> Rendered:
    from ..figures.recognition import plot_photographs
    from ..report.photographs import render_photographs

    curves = {name: each.likelihood for name, each in explanations.items() if each.likelihood is not None}
    times = {name: each.timing for name, each in explanations.items() if each.timing is not None}
    labels = {name: str(each.run["label"]) for name, each in explanations.items()}
    return plot_photographs(curves, times, labels), render_photographs(explanations, run)


def _of_variants(explanations: Mapping[str, Explanation], run: Mapping[str, Any]) -> Rendered:
    from ..figures.variants import plot_variants
    from ..report.variants import render_variants

    return plot_variants(explanations, run), render_variants(explanations, run)


def _on_two_lines(cell: str) -> str:
    """Return a value and its interval on two lines.

    >>> _on_two_lines("51.0 [46.2, never]")
    '51.0\\n46.2–never'
    """
    return cell.replace(" [", "\n").replace(", ", "–").rstrip("]")
