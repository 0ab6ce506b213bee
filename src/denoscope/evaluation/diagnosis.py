"""Signs that an explanation failed: no pattern, not reproducible, words elsewhere, variants alike.

Everything here is arithmetic on finished results. Maps with NaN, flat maps, single steps and further dims such as
`token` are allowed. A sign that cannot be decided is None, never an error.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from ..criteria import BY_CHANCE, PERMUTATIONS, QUANTILE, SAME_WORDS
from ..worlds.facts import named_thing
from ..worlds.shapes.judge import find, is_readable, object_masks
from .localisation import auroc_of_shifts, on_grid

ROUNDING = 1e-6
"""The smallest difference that is not rounding, as a share of the largest magnitude."""
BATCH = 2**20
"""Cells that are shuffled at once."""
MOST_NAMES = 4
"""Maps named in a text; the tables of numbers have all."""

NumbersByRow = dict[str, dict[str, float | None]]
"""Numbers by row and column, None where there is none."""


@dataclass(frozen=True)
class Signature:
    """One sign of failure: True if it is present, None if it cannot be decided; in plain words, and with its numbers.

    `numbers` are tables by their titles, each {row: {column: number or None}}.
    """

    name: str
    present: bool | None
    text: str
    numbers: dict[str, NumbersByRow]

    def plain(self) -> dict[str, Any]:
        """Return the fields as plain values, for run.json."""
        return asdict(self)


def diagnose(
    methods: Mapping[str, xr.Dataset],
    reliable: float,
    prompt: str | None = None,
    picture: np.ndarray | None = None,
) -> list[Signature]:
    """Return the signatures of one run, from its methods' results by their ids, with `saliency` (step, ..., y, x).

    `reliable` is the reliability from which a map is the same again. `picture` (64, 64, 3) uint8 is the final one of
    the bundled model, in which things can be located; None for other models.
    """
    results = _by_title(methods)
    return [no_pattern(results), not_reproducible(results, reliable), words_elsewhere(results, prompt, picture)]


# No pattern


def morans_i(saliency: np.ndarray) -> np.ndarray:
    """Return Moran's I of maps (..., h, w): how much neighbouring cells agree, about −1 to 1, (...).

    I = (n / Σ w_ij) Σ w_ij z_i z_j / Σ z_i², with z the values less their mean and w_ij = 1 for cells that share an
    edge (rook neighbours), else 0. Shuffled positions give −1 / (n − 1) on average. Cells that are not finite are left
    out, with their neighbourhoods; NaN for a flat map or one without neighbours. Source: Moran 1950, Notes on
    continuous stochastic phenomena (Biometrika 37).
    """
    z, finite = _centred(saliency)
    n, pairs = finite.sum(axis=(-2, -1)), _of_neighbours(finite.astype(np.float64))
    defined = (np.abs(z).max(axis=(-2, -1), initial=0) > ROUNDING) & (pairs > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(defined, n * _of_neighbours(z) / (pairs * (z**2).sum(axis=(-2, -1))), np.nan)


def _centred(saliency: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return z of maps (..., h, w) in units of the largest magnitude, 0 where not finite, and the finite cells."""
    values = np.asarray(saliency, dtype=np.float64)
    finite = np.isfinite(values)
    size = np.max(np.abs(values), axis=(-2, -1), keepdims=True, initial=0, where=finite)
    values = np.divide(values, size, out=np.zeros_like(values), where=finite & (size > 0))
    n = finite.sum(axis=(-2, -1), keepdims=True)
    return np.where(finite, values - values.sum(axis=(-2, -1), keepdims=True) / np.maximum(n, 1), 0), finite


def _of_neighbours(z: np.ndarray) -> np.ndarray:
    """Sum z_i z_j over all pairs of cells that share an edge, each once: (..., h, w) -> (...)."""
    across = np.einsum("...yx,...yx->...", z[..., :, 1:], z[..., :, :-1])
    return np.asarray(across + np.einsum("...yx,...yx->...", z[..., 1:, :], z[..., :-1, :]))


def shuffled_level(
    saliency: np.ndarray, quantile: float = QUANTILE, permutations: int = PERMUTATIONS, seed: int = 0
) -> float:
    """Return the quantile of Moran's I of a map (h, w) over shuffles of its finite cells; NaN for a flat map.

    A map at this level or below has no more pattern than its own values in random places. Source: the permutation test
    of Cliff and Ord 1981, Spatial Processes.
    """
    if np.isnan(morans_i(saliency)):
        return float("nan")
    z, finite = _centred(saliency)
    random, sums, batch = np.random.default_rng(seed), [], max(1, BATCH // z.size)
    for first in range(0, permutations, batch):
        shuffled = np.zeros((min(batch, permutations - first), *z.shape))
        shuffled[:, finite] = random.permuted(np.tile(z[finite], (len(shuffled), 1)), axis=1)
        sums.append(_of_neighbours(shuffled))
    pairs = _of_neighbours(finite.astype(np.float64))
    return float(np.quantile(np.concatenate(sums), quantile) * finite.sum() / (pairs * (z**2).sum()))


def no_pattern(methods: Mapping[str, xr.Dataset]) -> Signature:
    """Return the sign that some map's neighbouring cells agree no more than shuffled cells, from results by title.

    Present means that a map shows no region; its values may still be reliable. Absent means little: a map that was
    enlarged from a coarser grid or made of large smooth masks (word maps of small layers, relevance, DF-RISE) agrees
    from cell to cell whatever it holds, noise too. Absent means a pattern in the map, not in the model.
    """
    neighbours: NumbersByRow = {}
    shuffled: NumbersByRow = {}
    without, flat = [], []
    for each in _maps(methods):
        agreement, level = float(morans_i(each.values)), shuffled_level(each.values)
        neighbours.setdefault(each.row, {})[each.column] = _number(agreement)
        shuffled.setdefault(each.row, {})[each.column] = _number(level)
        if np.isnan(agreement):
            flat.append(each)
        elif agreement <= level:
            without.append(each)
    numbers = {"neighbours": neighbours, "shuffled": shuffled}
    count = sum(map(len, neighbours.values())) - len(flat)
    if without:
        text = (
            f"Maps without a pattern from cell to cell: {len(without)} of {count}. Their cells that share an edge "
            f"agree (Moran’s I) no more than with positions shuffled: {_named(without)}. "
            "Where such a map comes out the same again (reliability), its values are no chance, but show no region."
        )
    elif count:
        text = (
            f"Maps without a pattern from cell to cell: none of {count}. Cells that share an edge agree (Moran’s I) "
            "more than with positions shuffled. Maps that were enlarged from a coarser grid, "
            "or made of smooth masks, do so whatever they hold."
        )
    else:
        text = "Not known: there is no map with different values."
    if count and flat:
        text += f" Flat, so without any pattern to ask for: {_named(flat)}."
    return Signature("no pattern", bool(without) if count else None, text, numbers)


# Not reproducible


def not_reproducible(methods: Mapping[str, xr.Dataset], reliable: float) -> Signature:
    """Return the sign that some map's `reliability` is too low: the rank correlation of two halves of the masks."""
    reliability: NumbersByRow = {}
    low, count = [], 0
    for each in _maps(methods, "reliability"):
        value = float(each.values)
        reliability.setdefault(each.row, {})[each.column] = _number(value)
        if np.isfinite(value):
            count += 1
        if value < reliable:
            low.append(each)
    numbers = {"reliability": reliability}
    if low:
        text = f"Maps with a reliability below {reliable}: {len(low)} of {count}. Two halves of the masks give maps "
        text += f"that differ: {_named(low)}."
    elif count:
        text = (
            f"Two halves of the masks give maps whose ranks correlate with {reliable} or more, where this is measured."
        )
    else:
        text = "Not known: no method here gives the reliability of its maps."
    return Signature("not reproducible", bool(low) if count else None, text, numbers)


# Words elsewhere


def words_elsewhere(
    methods: Mapping[str, xr.Dataset], prompt: str | None, picture: np.ndarray | None = None
) -> Signature:
    """Return the sign that some colour or shape word's map is unrelated to the thing it names in the final picture.

    Present where the median over the steps of a word's AUROC is no better than that of 95 % of the shifts of its maps
    across the picture: smooth maps point well by chance now and then. A word that names no thing of the picture, or
    several that its phrase does not tell apart, is left out. Above chance is not yet a good map.
    """
    name = "words elsewhere"
    worded = {title: result for title, result in methods.items() if "token" in result["saliency"].dims}
    if picture is None or not is_readable(picture):
        return Signature(name, None, "Not known: the objects’ places are not known for this model.", {})
    if not worded or not prompt:
        return Signature(name, None, "Not known: no method here has a map for each word.", {})
    scores, shifted = _scores_of_words(worded, prompt, picture)
    if not scores:
        return Signature(name, None, "Not known: no word of the prompt names one thing of the picture alone.", {})
    medians = {row: np.median(every, axis=0).ravel() for row, every in shifted.items()}
    levels = {row: float(np.quantile(every[1:], BY_CHANCE)) for row, every in medians.items()}
    unshifted = {row: float(every[0]) for row, every in medians.items()}
    off = [row for row in unshifted if unshifted[row] <= levels[row] + ROUNDING]
    text = (
        "Colour and shape words whose maps do not point at what they name in the final picture: "
        f"{len(off) or 'none'} of {len(unshifted)}, by the median AUROC over the steps (1 is exactly there) against "
        "the maps lying elsewhere. "
    )
    if off:
        text += _some([f"{row} ({unshifted[row]:.2f}, by chance {levels[row]:.2f})" for row in off]) + "."
    else:
        lowest = min(unshifted, key=lambda row: unshifted[row])
        text += f"The lowest is {lowest} ({unshifted[lowest]:.2f}, by chance {levels[lowest]:.2f})."
    by_chance: NumbersByRow = {row: {"by chance": level} for row, level in levels.items()}
    return Signature(name, bool(off), text, {"auroc": scores, "shifted": by_chance})


def _scores_of_words(
    methods: Mapping[str, xr.Dataset], prompt: str, picture: np.ndarray
) -> tuple[NumbersByRow, dict[str, list[np.ndarray]]]:
    """Return the AUROC of each map of a word that names one thing, and by row the AUROC of all its shifts, (h, w)."""
    words = {str(word) for result in methods.values() for word in result["token"].values}
    masks = _masks(prompt, picture, words)
    scores: NumbersByRow = {}
    shifted: dict[str, list[np.ndarray]] = {}
    for each in _maps(methods):
        mask = masks.get(each.token or "")
        if mask is not None and np.isfinite(each.values).all() and _same_proportions(each.values, mask):
            every = auroc_of_shifts(on_grid(each.values, *mask.shape), mask)
            scores.setdefault(each.row, {})[each.column] = float(every[0, 0])
            shifted.setdefault(each.row, []).append(every)
    return scores, shifted


def _masks(prompt: str, picture: np.ndarray, labels: set[str]) -> dict[str, np.ndarray]:
    """Return a mask (64, 64) for each word that names one thing of a picture (64, 64, 3) uint8."""
    pixels = picture / 255
    things, thing_masks = find(pixels).things, object_masks(pixels)
    masks = {}
    for label in labels:
        index = named_thing(label, prompt, things)
        if index is not None and thing_masks[index].any() and not thing_masks[index].all():
            masks[label] = thing_masks[index]
    return masks


def _same_proportions(saliency: np.ndarray, mask: np.ndarray) -> bool:
    same: bool = saliency.shape[0] * mask.shape[1] == saliency.shape[1] * mask.shape[0]
    return same


# Variants alike


def indistinguishable(
    pairs: Sequence[Mapping[str, Any]], totals: Mapping[str, Sequence[tuple[str, float]]], alike: float
) -> Signature:
    """Return the sign that two variants of a run made the same picture to the eye, or used the words in equal shares.

    `pairs` have the names `a` and `b` and their pictures' structural similarity, `ssim`; from `alike` on they look the
    same. `totals` are each variant's words with their relevance summed over the steps; different words are not
    compared. The similarity is a mean over the picture: a small thing that is missing in a large one hardly counts.
    """
    apart: NumbersByRow = {}
    same = []
    for pair in pairs:
        ssim, words = _number(pair.get("ssim")), _words_apart(totals.get(pair["a"], ()), totals.get(pair["b"], ()))
        both = f"{pair['a']} and {pair['b']}"
        apart[both] = {"ssim": ssim, "words": words}
        reasons = []
        if ssim is not None and ssim >= alike:
            reasons.append("the pictures look the same")
        if words is not None and words <= SAME_WORDS:
            reasons.append("each word has the same share of the relevance")
        if reasons:
            same.append(f"{both}: {' and '.join(reasons)}")
    numbers = {"apart": apart} if apart else {}
    if all(number is None for row in apart.values() for number in row.values()):
        return Signature("variants alike", None, "Not known: there are no two variants to compare.", numbers)
    text = (
        f"Pairs that cannot be told apart: {len(same) or 'none'} of {len(apart)}, by a structural similarity of "
        f"{alike} or more of their pictures, or by the words’ shares of the relevance where none differs by more "
        f"than {100 * SAME_WORDS:g} percentage point."
    )
    if same:
        text += f" {_some(same, '; ')}."
    return Signature("variants alike", bool(same), text, numbers)


def _words_apart(a: Sequence[tuple[str, float]], b: Sequence[tuple[str, float]]) -> float | None:
    """Return the largest difference of a word's share in the sum over all words, 0 to 1; None for different words."""
    if not a or [word for word, _ in a] != [word for word, _ in b]:
        return None
    first, second = (np.array([total for _, total in words], dtype=np.float64) for words in (a, b))
    if not (first.sum() > 0 and second.sum() > 0):
        return None
    return _number(np.abs(first / first.sum() - second / second.sum()).max())


# The maps of results


class _Map(NamedTuple):
    """A map, or a number, of a method: the row and column of its table, and its word, None without one."""

    row: str
    column: str
    token: str | None
    values: np.ndarray


def _maps(methods: Mapping[str, xr.Dataset], variable: str = "saliency") -> Iterator[_Map]:
    """Yield every map with a finite value, one at a time, in the order of the methods; numbers without y and x too.

    The map of a clip is that of all its frames, one below the other.
    """
    for title, result in methods.items():
        if variable not in result or "step" not in result[variable].dims:
            continue
        array = result[variable]
        plane = [dim for dim in ("frame", "y", "x") if dim in array.dims] if "y" in array.dims else []
        further = [str(dim) for dim in array.dims if dim not in ("step", *plane)]
        array = array.transpose(*further, "step", *plane)
        for place in np.ndindex(*(array.sizes[dim] for dim in (*further, "step"))):
            values = _one_plane(array.values[place])
            if np.isfinite(values).any() or not plane:
                at = {dim: str(array[dim].values[i]) for dim, i in zip((*further, "step"), place, strict=True)}
                row = ", ".join([title, *(_label(dim, at[dim]) for dim in further)])
                yield _Map(row, f"step {at['step']}", at.get("token"), values)


def _one_plane(values: np.ndarray) -> np.ndarray:
    """Return the frames of a map (frame, y, x) below one another, with a row of NaN between two; others as they are."""
    if values.ndim < 3:
        return values
    apart = np.pad(values.astype(np.float64), ((0, 0), (0, 1), (0, 0)), constant_values=np.nan)
    return np.asarray(apart.reshape(-1, values.shape[-1])[:-1])


def _label(dim: str, value: str) -> str:
    return f"“{value}”" if dim == "token" else f"{dim} {value}"


def _by_title(methods: Mapping[str, xr.Dataset]) -> dict[str, xr.Dataset]:
    """Return results by their titles, with their ids where two have the same."""
    titles = {name: str(result.attrs.get("title", name)) for name, result in methods.items()}
    counts = Counter(titles.values())
    results = {}
    for name, title in titles.items():
        results[title if counts[title] == 1 else f"{title} ({name})"] = methods[name]
    return results


def _number(value: Any) -> float | None:
    """Return a plain number, None for NaN or None: JSON has no NaN."""
    return float(value) if value is not None and np.isfinite(value) else None


def _named(maps: Sequence[_Map]) -> str:
    """Name some maps by their rows and columns."""
    return _some([f"{each.row} at {each.column}" for each in maps])


def _some(names: Sequence[str], between: str = ", ") -> str:
    """Join the first names and count the rest.

    >>> _some(["a", "b", "c", "d", "e", "f"])
    'a, b, c, d and 2 more'
    """
    rest = len(names) - MOST_NAMES
    return between.join(names[:MOST_NAMES]) + (f" and {rest} more" if rest > 0 else "")
