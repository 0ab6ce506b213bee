"""The section "Read with care": results that are missing, flat or unreliable, or say less than they seem to."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from ..criteria import CONVERGENCE_DELTA, EDGE_AGREEMENT, RECOGNISED, RELIABLE
from ..figures.results import Explained, explained_steps, unit_of
from ..figures.scales import is_flat
from ..figures.theme import readable
from .likelihood import crossings, explained_label, interval, likely
from .maps import PageResult, page_results
from .page import in_words, is_series

AGAIN = "Run the command below again for the rest."
LEAST_EXTRAPOLATED = 0.05
"""Reliability below which no number of masks is advised: the advice would be a guess."""
FAILURE_TITLES = {
    "no pattern": "Some maps have no clear pattern.",
    "words elsewhere": "Some words’ maps are not where the words’ things are.",
    "variants alike": "Some variants cannot be told apart.",
}
"""Titles of the signatures of failure that have no other warning, by their names."""
SIGNATURE_TITLES = {
    "no pattern": "Maps without a pattern",
    "not reproducible": "Maps that do not come out the same again",
    "words elsewhere": "Words’ maps away from what the words name",
    "variants alike": "Variants that cannot be told apart",
}
VERDICTS = {True: "found", False: "not found", None: "not known"}
TABLE_TITLES = {
    "neighbours": "Moran’s I: agreement of cells that share an edge",
    "shuffled": "Moran’s I that shuffled positions seldom exceed",
    "reliability": "Reliability: rank correlation of maps from two halves of the masks",
    "auroc": "AUROC with the place of what the word names",
    "shifted": "AUROC that the same maps reach by chance, lying elsewhere: 95 % of all places",
    "apart": "How far apart",
}
COLUMN_TITLES = {
    "ssim": "structural similarity of the pictures",
    "words": "largest difference of a word’s share, 0 to 1",
}


class Caveat(NamedTuple):
    """A fact that a reader must know before reading a map, and what to do about it."""

    title: str
    text: str


def warnings(explanation: Explained, results: Sequence[PageResult] | None = None) -> list[Caveat]:
    """Return the caveats of an explanation, in the order of the page; `results` are its maps as the page has them."""
    results = page_results(explanation) if results is None else results
    caveats, unit = [], unit_of(explanation.pictures)
    if explanation.run.get("interrupted"):
        caveats.append(Caveat("This run was stopped before it was finished.", "What was finished is here. " + AGAIN))
    if not results:
        caveats.append(Caveat("Nothing was explained.", f"The recorded {unit}s are here, without any map. {AGAIN}"))
    caveats += unread_prompt(explanation.run)
    caveats += _unrecognised(explanation)
    raw = explanation.methods()
    for each in results:
        caveats += _incomplete_maps(each.title, each.data, unit)
        caveats += _incomplete_sums(each.title, raw[each.name], unit)
        caveats += _only_edges(each.title, each.data, unit)
    return [*caveats, *failures(explanation.run)]


def unread_prompt(run: Mapping[str, Any]) -> Iterator[Caveat]:
    """Yield a caveat for words that the model cannot read, and one for the part of the prompt that was cut off.

    The run names them as `unknown_words` (a list), `vocabulary` (all words that the model knows, if they are few) and
    `cut_off` (a text).
    """
    words = [f"“{word}”" for word in run.get("unknown_words") or []]
    vocabulary = [str(word) for word in run.get("vocabulary") or []]
    if words:
        text = "It made the picture without knowing what they mean, and no map says anything about them. "
        text += f"It knows these words: {', '.join(vocabulary)}." if vocabulary else "Use other words."
        yield Caveat(f"The model cannot read {_listed(words)}.", text)
    if run.get("cut_off"):
        text = f"The prompt is longer than the model reads. It did not read “{run['cut_off']}”. Use a shorter prompt."
        yield Caveat("The end of the prompt was cut off.", text)


# The signatures of failure that a run was diagnosed with


def failures(run: Mapping[str, Any]) -> Iterator[Caveat]:
    """Yield a caveat for each signature of failure that is present and has no other warning."""
    for signature in run.get("diagnosis") or []:
        if signature["present"] and signature["name"] in FAILURE_TITLES:
            yield Caveat(FAILURE_TITLES[signature["name"]], signature["text"])


def signatures(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return every signature's name, title, verdict, text and tables; an empty list for a run without a diagnosis."""
    return [
        {
            **signature,
            "title": SIGNATURE_TITLES.get(signature["name"], in_words(signature["name"])),
            "verdict": VERDICTS[signature["present"]],
            "tables": [_table(name, table) for name, table in signature["numbers"].items() if table],
        }
        for signature in run.get("diagnosis") or []
    ]


def _table(name: str, table: Mapping[str, Mapping[str, float | None]]) -> dict[str, Any]:
    """Return a table of numbers in words; a row that lacks a column has an empty cell."""
    names = {column for row in table.values() for column in row}
    columns = sorted(names, key=_number)
    rows = {}
    for name_of_row, row in table.items():
        rows[name_of_row] = [_cell(row[column]) if column in row else "" for column in columns]
    titles = [COLUMN_TITLES.get(column, column) for column in columns]
    return {"title": TABLE_TITLES.get(name, in_words(name)), "columns": titles, "rows": rows}


def _number(column: str) -> tuple[int, str]:
    """Return the key that sorts columns of steps by their number."""
    number = column.rpartition(" ")[2]
    return (int(number) if number.isdecimal() else 0, column)


def _cell(value: float | None) -> str:
    """Return a number in words; None is a number that is not known."""
    return readable(float("nan") if value is None else value, 3)


# Recognition


def _unrecognised(explanation: Explained) -> Iterator[Caveat]:
    """Yield a caveat if the explained label is not the most likely in the end, or is never recognised."""
    likelihood, timing, label = explanation.likelihood, explanation.timing, explained_label(explanation)
    if likelihood is None or label is None:
        return
    last = interval(likelihood).sel(quantile="median").isel(step=-1)
    best = str(last["label"].values[int(last.argmax("label"))])
    if int(last["step"]) == int(explanation.pictures["step"][-1]) and best != label:
        unit = unit_of(explanation.pictures)
        likely_best, likely_label = likely(float(last.sel(label=best))), likely(float(last.sel(label=label)))
        yield Caveat(
            f"“{label}” is not the most likely label in the end.",
            f"At the clean {unit} “{best}” has {likely_best} and “{label}” {likely_label}: the maps explain what the "
            "classifier does not choose.",
        )
    if timing is None or RECOGNISED not in timing["level"].values:
        return
    if not crossings(timing.sel(level=[RECOGNISED]), label, 1):
        text = "Its likelihood rises to that in no lasting way, so there is no moment at which it was recognised."
        yield Caveat(f"“{label}” never reaches {RECOGNISED:g}.", text)


# The maps of one method


def _incomplete_sums(title: str, result: xr.Dataset, unit: str) -> Iterator[Caveat]:
    """Yield a caveat where the attributions of a completeness method do not add up to the change of the score.

    `convergence_delta` is the part of the change that the map misses or has too much.
    """
    if "convergence_delta" not in result:
        return
    sides = [dim for dim in ("frame", "y", "x") if dim in result["saliency"].dims]
    delta, total = result["convergence_delta"], result["saliency"].sum(sides, min_count=1)
    share = abs(delta) / np.maximum(abs(total), abs(total - delta))
    share = share.median("draw") if "draw" in share.dims else share
    yield from _at_steps(
        share.where(share > CONVERGENCE_DELTA),
        f"{title} does not add up at {{}}.",
        f"More than {CONVERGENCE_DELTA:.0%} of the score’s change is missing from the map or too much in it. Use more "
        "steps of the integral (n_steps).",
        unit,
    )


def _only_edges(title: str, result: xr.Dataset, unit: str) -> Iterator[Caveat]:
    """Yield a caveat where a map has nearly the ranks of a plain edge map."""
    if not is_series(result, "agreement_edges"):
        return
    agreement = result["agreement_edges"]
    yield from _at_steps(
        agreement.where(agreement > EDGE_AGREEMENT),
        f"{title} looks like the picture’s edges at {{}}.",
        f"Its ranks correlate above {EDGE_AGREEMENT} with those of a plain edge map: it may only be an edge detector.",
        unit,
    )


def _at_steps(values: xr.DataArray, title: str, text: str, unit: str) -> Iterator[Caveat]:
    """Yield a caveat that names the steps where there is a value; nothing if there is none."""
    if steps := values["step"].values[values.notnull().values].tolist():
        yield Caveat(title.format(_steps_named(steps, unit=unit)), text)


def _incomplete_maps(title: str, result: xr.Dataset, unit: str) -> Iterator[Caveat]:
    """Yield a caveat for steps without a map, maps with holes, flat maps, and unreliable maps."""
    finished = explained_steps(result)
    if missing := sorted(set(result["step"].values.tolist()) - set(finished)):
        yield Caveat(f"{title} has no map for {_steps_named(missing, unit=unit)}.", "It was not finished there.")
    maps = {step: result["saliency"].sel(step=step).values for step in finished}
    if holes := [step for step, values in maps.items() if not np.isfinite(values).all()]:
        text = "They are left without colour."
        yield Caveat(f"{title} has cells without a value at {_steps_named(holes, unit=unit)}.", text)
    if flat := [step for step, values in maps.items() if is_flat(values)]:
        text = "Every cell has the same value, so the map says nothing about where. "
        text += f"Try another {unit}, target or method."
        yield Caveat(f"{title} is flat at {_steps_named(flat, unit=unit)}.", text)
    if "reliability" in result and result["reliability"].dims == ("step",):
        yield from _unreliable(title, result.sel(step=finished), flat)


def _unreliable(title: str, result: xr.Dataset, flat: Sequence[int]) -> Iterator[Caveat]:
    """Yield a caveat for finished steps whose reliability is not known, and for those where it is too low."""
    reliability = result["reliability"]
    missing = reliability["step"].values[reliability.isnull().values].tolist()
    if unknown := [step for step in missing if step not in flat]:
        text = "There were too few masks for two halves whose maps could be compared. Use many more masks."
        yield Caveat(f"How reliable {title} is cannot be told at {_steps_named(unknown)}.", text)
    low = reliability.where(reliability < RELIABLE).dropna("step")
    if not low.size:
        return
    values = [f"{step} ({readable(float(low.sel(step=step)), 2)})" for step in low["step"].values]
    worst = low["step"][int(low.values.argmin())]
    text = (
        f"Two halves of the masks give maps whose ranks correlate below {RELIABLE}: read only their coarsest features. "
        f"{_more_masks(result.sel(step=worst))}"
    )
    yield Caveat(f"{title} is not reliable at {_steps_named(values)}.", text)


def _more_masks(worst: xr.Dataset) -> str:
    """Return the number of masks to advise, from Spearman and Brown's formula.

    k times the masks turn a reliability r into k r / (1 + (k − 1) r).
    """
    used = int(worst["masks_used"]) if "masks_used" in worst else worst.attrs.get("num_masks")
    r = float(worst["reliability"])
    if used is None or r < LEAST_EXTRAPOLATED:
        return "Use many more masks."
    k = RELIABLE * (1 - r) / (r * (1 - RELIABLE))
    return f"Use more masks: there were {used}, and about {math.ceil(k * used / 100) * 100} would do at the worst."


def _steps_named(steps: Sequence[Any], most: int = 8, unit: str = "step") -> str:
    """Return the steps as part of a sentence; of more than `most`, the first and the number of the others.

    >>> _steps_named([2]), _steps_named([2, 8, 16])
    ('step 2', 'steps 2, 8 and 16')
    """
    names = [str(step) for step in steps]
    if len(names) > most:
        names = [*names[: most - 1], f"{len(names) - most + 1} more"]
    noun = unit if len(names) == 1 else f"{unit}s"
    return f"{noun} {_listed(names)}"


def _listed(names: Sequence[str]) -> str:
    """Return the names as a list in a sentence.

    >>> _listed(["cat"]), _listed(["a", "cat", "sofa"])
    ('cat', 'a, cat and sofa')
    """
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
