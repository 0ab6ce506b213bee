"""What a reader must know before reading a map: what is missing, flat, unreliable, or says less than it seems to."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from ..criteria import CONVERGENCE_DELTA, EDGE_AGREEMENT, RELIABLE
from ..figures.results import Explained, explained_steps, unit_of
from ..figures.scales import is_flat
from ..figures.theme import readable
from .likelihood import crossings, explained_label, interval, likely
from .maps import Shown, shown_methods
from .page import in_words, is_series

AGAIN = "Run the command below again for the rest."
FAILED = {
    "no pattern": "Some maps have no clear pattern.",
    "words elsewhere": "Some words’ maps are not where the words’ things are.",
    "variants alike": "Some variants cannot be told apart.",
}
"""What is said above all else where a signature of failure is there; of the others each method has a warning."""
SIGNS = {
    "no pattern": "Maps without a pattern",
    "not reproducible": "Maps that do not come out the same again",
    "words elsewhere": "Words’ maps away from what the words name",
    "variants alike": "Variants that cannot be told apart",
}
VERDICTS = {True: "found", False: "not found", None: "not known"}
NUMBERS = {
    "neighbours": "Moran’s I: agreement of cells that share an edge",
    "shuffled": "Moran’s I that shuffled positions seldom exceed",
    "reliability": "Reliability: rank correlation of maps from two halves of the masks",
    "auroc": "AUROC with the place of what the word names",
    "shifted": "AUROC that the same maps reach by chance, lying elsewhere: 95 % of all places",
    "apart": "How far apart",
}
COLUMNS = {"ssim": "structural similarity of the pictures", "words": "largest difference of a word’s share, 0 to 1"}


class Warn(NamedTuple):
    """Something a reader must know before reading a map: what, and what to do about it."""

    title: str
    text: str


def warnings(explanation: Explained, shown: Sequence[Shown] | None = None) -> list[Warn]:
    """What is missing, flat or not reliable in these results, as they are `shown`; a page has it above all else."""
    shown = shown_methods(explanation) if shown is None else shown
    found, unit = [], unit_of(explanation.pictures)
    if explanation.run.get("interrupted"):
        found.append(Warn("This run was stopped before it was finished.", "What was finished is here. " + AGAIN))
    if not shown:
        found.append(Warn("Nothing was explained.", f"The recorded {unit}s are here, without any map. {AGAIN}"))
    found += _unrecognised(explanation)
    raw = explanation.methods()
    for each in shown:
        found += _doubts(each.title, each.result, unit)
        found += _incomplete(each.title, raw[each.name], unit)
        found += _only_edges(each.title, each.result, unit)
    return [*found, *failures(explanation.run)]


# The signatures of failure that a run was diagnosed with


def failures(run: Mapping[str, Any]) -> Iterator[Warn]:
    """A warning for each signature that is there and that no other warning tells of; none for a run without any."""
    for each in run.get("diagnosis") or []:
        if each["present"] and each["name"] in FAILED:
            yield Warn(FAILED[each["name"]], each["text"])


def signatures(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For a page: every signature's name, verdict, text and tables of numbers; none for a run without a diagnosis."""
    return [
        {**each, "title": SIGNS.get(each["name"], in_words(each["name"])), "verdict": VERDICTS[each["present"]],
         "tables": [_tabled(name, table) for name, table in each["numbers"].items() if table]}
        for each in run.get("diagnosis") or []
    ]  # fmt: skip


def _tabled(name: str, table: Mapping[str, Mapping[str, float | None]]) -> dict[str, Any]:
    """Rows and columns in words; a row that lacks a column has nothing there."""
    columns = sorted(dict.fromkeys(column for row in table.values() for column in row), key=_in_order)
    rows = {row: ["" if column not in values else _cell(values[column]) for column in columns]
            for row, values in table.items()}  # fmt: skip
    return {"title": NUMBERS.get(name, in_words(name)), "columns": [COLUMNS.get(c, c) for c in columns], "rows": rows}


def _in_order(column: str) -> tuple[int, str]:
    """Steps by their number."""
    number = column.rpartition(" ")[2]
    return (int(number) if number.isdecimal() else 0, column)


def _cell(value: float | None) -> str:
    return readable(float("nan") if value is None else value, 3)


def _unrecognised(explanation: Explained) -> Iterator[Warn]:
    """Whether the explained label is one that the classifier comes to at all."""
    likelihood, timing, label = explanation.likelihood, explanation.timing, explained_label(explanation)
    if likelihood is None or label is None:
        return
    last = interval(likelihood).sel(quantile="median").isel(step=-1)
    best = str(last["label"].values[int(last.argmax("label"))])
    if int(last["step"]) == int(explanation.pictures["step"][-1]) and best != label:
        own, other = (likely(float(last.sel(label=name))) for name in (label, best))
        text = (
            f"At the clean {unit_of(explanation.pictures)} “{best}” has {other} and “{label}” {own}: the maps explain "
        )
        yield Warn(f"“{label}” is not the most likely label in the end.", f"{text}what the classifier does not choose.")
    if timing is not None and 0.5 in timing["level"].values and not crossings(timing.sel(level=[0.5]), label, 1):
        text = "Its likelihood rises to that in no lasting way, so there is no moment at which it was recognised."
        yield Warn(f"“{label}” never reaches 0.5.", text)


def _incomplete(title: str, result: xr.Dataset, unit: str) -> Iterator[Warn]:
    """Attributions of a completeness method add up to the score's change; the delta is what they miss of it."""
    if "convergence_delta" not in result:
        return
    delta, total = result["convergence_delta"], result["saliency"].sum(["y", "x"], min_count=1)
    largest = xr.where(abs(total) > abs(total - delta), abs(total), abs(total - delta))
    share = abs(delta) / largest
    share = share.median("draw") if "draw" in share.dims else share
    yield from _at_steps(
        share.where(share > CONVERGENCE_DELTA),
        f"{title} does not add up at {{}}.",
        f"More than {CONVERGENCE_DELTA:.0%} of the score’s change is missing from the map or too much in it. Use more "
        "steps of the integral (n_steps).",
        unit,
    )


def _only_edges(title: str, result: xr.Dataset, unit: str) -> Iterator[Warn]:
    if not is_series(result, "agreement_edges"):
        return
    agreement = result["agreement_edges"]
    yield from _at_steps(
        agreement.where(agreement > EDGE_AGREEMENT),
        f"{title} looks like the picture’s edges at {{}}.",
        f"Its ranks correlate above {EDGE_AGREEMENT} with those of a plain edge map: it may only be an edge detector.",
        unit,
    )


def _at_steps(values: xr.DataArray, title: str, text: str, unit: str) -> Iterator[Warn]:
    """A warning that names the steps where there is a value; none where there is nowhere one."""
    if steps := values["step"].values[values.notnull().values].tolist():
        yield Warn(title.format(_steps_named(steps, unit=unit)), text)


def _doubts(title: str, result: xr.Dataset, unit: str) -> Iterator[Warn]:
    finished = explained_steps(result)
    if missing := sorted(set(result["step"].values.tolist()) - set(finished)):
        yield Warn(f"{title} has no map for {_steps_named(missing, unit=unit)}.", "It was not finished there.")
    maps = {step: result["saliency"].sel(step=step).values for step in finished}
    if holes := [step for step, values in maps.items() if not np.isfinite(values).all()]:
        text = "They are left without colour."
        yield Warn(f"{title} has cells without a value at {_steps_named(holes, unit=unit)}.", text)
    if flat := [step for step, values in maps.items() if is_flat(values)]:
        text = "Every cell has the same value, so the map says nothing about where. "
        text += f"Try another {unit}, target or method."
        yield Warn(f"{title} is flat at {_steps_named(flat, unit=unit)}.", text)
    yield from _unreliable(title, result)


def _unreliable(title: str, result: xr.Dataset) -> Iterator[Warn]:
    if "reliability" not in result or result["reliability"].dims != ("step",):
        return
    finished = explained_steps(result)
    told = result["reliability"].sel(step=finished)
    unknown = [step for step in finished if np.isnan(told.sel(step=step)) and not _flat_at(result, step)]
    if unknown:
        text = "There were too few masks for two halves whose maps could be compared. Use many more masks."
        yield Warn(f"How reliable {title} is cannot be told at {_steps_named(unknown)}.", text)
    low = told.where(told < RELIABLE).dropna("step")
    if not low.size:
        return
    values = [f"{step} ({readable(float(low.sel(step=step)), 2)})" for step in low["step"].values]
    text = (
        f"Two halves of the masks give maps whose ranks correlate below {RELIABLE}: read only their coarsest features. "
        f"{_more_masks(result.sel(step=low['step'][int(low.values.argmin())]))}"
    )
    yield Warn(f"{title} is not reliable at {_steps_named(values)}.", text)


def _flat_at(result: xr.Dataset, step: int) -> bool:
    return is_flat(result["saliency"].sel(step=step).values)


def _more_masks(worst: xr.Dataset) -> str:
    """Spearman and Brown's prophecy: k times the masks turn a reliability r into k r / (1 + (k − 1) r)."""
    used = int(worst["masks_used"]) if "masks_used" in worst else worst.attrs.get("num_masks")
    r = float(worst["reliability"])
    if used is None or r < 0.05:
        return "Use many more masks."
    k = RELIABLE * (1 - r) / (r * (1 - RELIABLE))
    return f"Use more masks: there were {used}, and about {math.ceil(k * used / 100) * 100} would do at the worst."


def _steps_named(steps: Sequence[Any], most: int = 8, unit: str = "step") -> str:
    """
    >>> _steps_named([2]), _steps_named([2, 8, 16])
    ('step 2', 'steps 2, 8 and 16')
    """
    names = [str(step) for step in steps]
    if len(names) > most:
        names = [*names[: most - 1], f"{len(names) - most + 1} more"]
    if len(names) == 1:
        return f"{unit} {names[0]}"
    return f"{unit}s {', '.join(names[:-1])} and {names[-1]}"
