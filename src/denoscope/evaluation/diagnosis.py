"""Signs that an explanation failed, computed for every run from what it left: no pattern, no likeness, no difference.

Everything here is arithmetic on results that are there already: maps with NaN, flat maps, one step, further dims such
as `token` are all read for what they have, and what cannot be told is None, never an error."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from ..criteria import BY_CHANCE, PERMUTATIONS, QUANTILE, SAME_WORDS
from ..worlds.facts import named_thing
from ..worlds.shapes.judge import find, is_readable, object_masks
from .localisation import auroc_of_shifts, on_grid

FLAT = 1e-6  # of the largest magnitude: what differs by less does so by rounding
BATCH = 2**20  # cells that are shuffled at once
TOLD = 4  # maps named in a text; the numbers have all

Table = dict[str, dict[str, float | None]]
"""Numbers by row and column, None where there is none."""


@dataclass(frozen=True)
class Signature:
    """One way to fail: whether it is there (None: cannot be told), in plain words, and the tables of numbers behind it.

    `numbers` are tables by what is in them, each {row: {column: number or None}}.
    """

    name: str
    present: bool | None
    text: str
    numbers: dict[str, Table]

    def plain(self) -> dict[str, Any]:
        """As run.json has it."""
        return asdict(self)


def diagnose(
    methods: Mapping[str, xr.Dataset],
    reliable: float,
    prompt: str | None = None,
    picture: np.ndarray | None = None,
) -> list[Signature]:
    """The signatures of one run, from the results of its methods by their ids, each with `saliency` (step, ..., y, x).

    `reliable` is the reliability from which a map is the same again. `picture` (64, 64, 3) uint8 is the final one of a
    model whose things can be found in it, the bundled one; None where their places are not known.
    """
    titled = _titled(methods)
    return [no_pattern(titled), not_reproducible(titled, reliable), words_elsewhere(titled, prompt, picture)]


# No pattern


def morans_i(saliency: np.ndarray) -> np.ndarray:
    """Moran's I of maps (..., h, w): how much neighbouring cells agree, about −1 to 1, (...).

    I = (n / Σ w_ij) Σ w_ij z_i z_j / Σ z_i², with z the values less their mean and w_ij = 1 for cells that share an
    edge (rook neighbours), else 0. Shuffled positions give −1 / (n − 1) on average. Cells that are not finite are left
    out, with their neighbourhoods; NaN for a flat map or one without neighbours. Source: Moran 1950, Notes on
    continuous stochastic phenomena (Biometrika 37).
    """
    z, known = _centred(saliency)
    n, pairs = known.sum(axis=(-2, -1)), _of_neighbours(known.astype(np.float64))
    told = (np.abs(z).max(axis=(-2, -1), initial=0) > FLAT) & (pairs > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(told, n * _of_neighbours(z) / (pairs * (z**2).sum(axis=(-2, -1))), np.nan)


def _centred(saliency: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """z of maps (..., h, w) in units of the largest magnitude, 0 where a cell is not finite, and which ones are."""
    values = np.asarray(saliency, dtype=np.float64)
    known = np.isfinite(values)
    size = np.max(np.abs(values), axis=(-2, -1), keepdims=True, initial=0, where=known)
    values = np.divide(values, size, out=np.zeros_like(values), where=known & (size > 0))
    n = known.sum(axis=(-2, -1), keepdims=True)
    return np.where(known, values - values.sum(axis=(-2, -1), keepdims=True) / np.maximum(n, 1), 0), known


def _of_neighbours(z: np.ndarray) -> np.ndarray:
    """Σ z_i z_j over all pairs of cells that share an edge, each once: (..., h, w) -> (...)."""
    across = np.einsum("...yx,...yx->...", z[..., :, 1:], z[..., :, :-1])
    return across + np.einsum("...yx,...yx->...", z[..., 1:, :], z[..., :-1, :])


def shuffled_level(
    saliency: np.ndarray, quantile: float = QUANTILE, permutations: int = PERMUTATIONS, seed: int = 0
) -> float:
    """The quantile of Moran's I of a map (h, w) over so many shuffles of its finite cells; NaN for a flat map.

    A map at this level or below has no more pattern than its own values anywhere else would have. Source: the
    permutation test of Cliff and Ord 1981, Spatial Processes.
    """
    if np.isnan(morans_i(saliency)):
        return float("nan")
    z, known = _centred(saliency)
    random, sums, batch = np.random.default_rng(seed), [], max(1, BATCH // z.size)
    for first in range(0, permutations, batch):
        shuffled = np.zeros((min(batch, permutations - first), *z.shape))
        shuffled[:, known] = random.permuted(np.tile(z[known], (len(shuffled), 1)), axis=1)
        sums.append(_of_neighbours(shuffled))
    pairs = _of_neighbours(known.astype(np.float64))
    return float(np.quantile(np.concatenate(sums), quantile) * known.sum() / (pairs * (z**2).sum()))


def no_pattern(methods: Mapping[str, xr.Dataset]) -> Signature:
    """Whether some map's neighbouring cells agree no more than shuffled ones, from results by their titles.

    Present means that a map shows no region; one that is reliable has values that are no chance all the same.
    Absent means little: a map that was enlarged from a coarser grid or made of large smooth masks (word maps of
    small layers, relevance, DF-RISE) agrees with itself from cell to cell whatever it holds, noise too. So absent
    says that the map has a pattern, not that the model has one there.
    """
    neighbours: Table = {}
    shuffled: Table = {}
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
    told = sum(map(len, neighbours.values())) - len(flat)
    if without:
        text = (
            f"Maps without a pattern from cell to cell: {len(without)} of {told}. Their cells that share an edge "
            f"agree (Moran’s I) no more than with positions shuffled: {_named(without)}. "
            "Where such a map comes out the same again (reliability), its values are no chance, but show no region."
        )
    elif told:
        text = (
            f"Maps without a pattern from cell to cell: none of {told}. Cells that share an edge agree (Moran’s I) "
            "more than with positions shuffled. Maps that were enlarged from a coarser grid, "
            "or made of smooth masks, do so whatever they hold."
        )
    else:
        text = "Not known: there is no map with different values."
    if told and flat:
        text += f" Flat, so without any pattern to ask for: {_named(flat)}."
    return Signature("no pattern", bool(without) if told else None, text, numbers)


# Not reproducible


def not_reproducible(methods: Mapping[str, xr.Dataset], reliable: float) -> Signature:
    """Whether some map's `reliability`, the rank correlation of maps from two halves of the masks, is too low."""
    reliability: Table = {}
    low, told = [], 0
    for each in _maps(methods, "reliability"):
        value = float(each.values)
        reliability.setdefault(each.row, {})[each.column] = _number(value)
        told += bool(np.isfinite(value))
        if value < reliable:
            low.append(each)
    numbers = {"reliability": reliability}
    if low:
        text = f"Maps with a reliability below {reliable}: {len(low)} of {told}. Two halves of the masks give maps "
        text += f"that differ: {_named(low)}."
    elif told:
        text = f"Two halves of the masks give maps whose ranks correlate with {reliable} or more, where that is told."
    else:
        text = "Not known: no method here gives the reliability of its maps."
    return Signature("not reproducible", bool(low) if told else None, text, numbers)


# Words elsewhere


def words_elsewhere(
    methods: Mapping[str, xr.Dataset], prompt: str | None, picture: np.ndarray | None = None
) -> Signature:
    """Whether some colour or shape word's map is unrelated to the thing it names in the final picture, by AUROC.

    Present where the median over the steps of a word's AUROC is no better than that of its maps shifted across the
    picture, 95 % of the shifts: by chance smooth maps point well now and then. A word that names no thing that was
    found, or several that its phrase does not tell apart, is left out. Above chance is not yet a good map.
    """
    name = "words elsewhere"
    worded = {title: method for title, method in methods.items() if "token" in method["saliency"].dims}
    if picture is None or not is_readable(picture):
        return Signature(name, None, "Not known: the objects’ places are not known for this model.", {})
    if not worded or not prompt:
        return Signature(name, None, "Not known: no method here has a map for each word.", {})
    scores: Table = {}
    shifted: dict[str, list[np.ndarray]] = {}
    masks = _masks(prompt, picture, {str(word) for each in worded.values() for word in each["token"].values})
    for each in _maps(worded):
        mask = masks.get(each.token or "")
        if mask is not None and np.isfinite(each.values).all() and _same_proportions(each.values, mask):
            every = auroc_of_shifts(on_grid(each.values, *mask.shape), mask)
            scores.setdefault(each.row, {})[each.column] = float(every[0, 0])
            shifted.setdefault(each.row, []).append(every)
    if not scores:
        return Signature(name, None, "Not known: no word of the prompt names one thing of the picture alone.", {})
    medians = {row: np.median(every, axis=0).ravel() for row, every in shifted.items()}
    levels = {row: float(np.quantile(every[1:], BY_CHANCE)) for row, every in medians.items()}
    own = {row: float(every[0]) for row, every in medians.items()}
    off = [f"{row} ({own[row]:.2f}, by chance {levels[row]:.2f})" for row in own if own[row] <= levels[row] + FLAT]
    text = (
        f"Colour and shape words whose maps do not point at what they name in the final picture: {len(off) or 'none'} "
        f"of {len(own)}, by the median AUROC over the steps (1 is exactly there) against the maps lying elsewhere. "
    )
    lowest = min(own, key=lambda row: own[row])
    text += f"{_some(off)}." if off else f"The lowest is {lowest} ({own[lowest]:.2f}, by chance {levels[lowest]:.2f})."
    by_chance: Table = {row: {"by chance": level} for row, level in levels.items()}
    return Signature(name, bool(off), text, {"auroc": scores, "shifted": by_chance})


def _masks(prompt: str, picture: np.ndarray, labels: set[str]) -> dict[str, np.ndarray]:
    """For each word that names one thing of a picture (64, 64, 3) uint8 its mask (64, 64)."""
    seen = picture / 255
    things = find(seen).things
    masks = object_masks(seen)
    named = {label: named_thing(label, prompt, things) for label in labels}
    return {label: masks[i] for label, i in named.items() if i is not None and masks[i].any() and not masks[i].all()}


def _same_proportions(saliency: np.ndarray, mask: np.ndarray) -> bool:
    return saliency.shape[0] * mask.shape[1] == saliency.shape[1] * mask.shape[0]


# Variants alike


def indistinguishable(
    pairs: Sequence[Mapping[str, Any]], totals: Mapping[str, Sequence[tuple[str, float]]], alike: float
) -> Signature:
    """Whether two variants of a run made the same picture to the eye, or drew on the words in the same shares.

    `pairs` have the names `a` and `b` and their pictures' structural similarity, `ssim`; from `alike` on they look the
    same. `totals` are each variant's words with their relevance summed over the steps; words that are not the same are
    not compared. The similarity is a mean over the picture: a small thing that is missing in a large one hardly counts.
    """
    apart: Table = {}
    said = []
    for pair in pairs:
        ssim, words = _number(pair.get("ssim")), _words_apart(totals.get(pair["a"], ()), totals.get(pair["b"], ()))
        both = f"{pair['a']} and {pair['b']}"
        apart[both] = {"ssim": ssim, "words": words}
        looks, counts = ssim is not None and ssim >= alike, words is not None and words <= SAME_WORDS
        if looks or counts:
            how = " and ".join(
                ["the pictures look the same"] * looks + ["each word has the same share of the relevance"] * counts
            )
            said.append(f"{both}: {how}")
    told = any(number is not None for row in apart.values() for number in row.values())
    if told:
        text = (
            f"Pairs that cannot be told apart: {len(said) or 'none'} of {len(apart)}, by a structural similarity of "
            f"{alike} or more of their pictures, or by the words’ shares of the relevance where none differs by more "
            f"than {100 * SAME_WORDS:g} percentage point. "
        ) + (f"{_some(said, '; ')}." if said else "")
    else:
        text = "Not known: there are no two variants to compare."
    return Signature("variants alike", bool(said) if told else None, text.strip(), {"apart": apart} if apart else {})


def _words_apart(a: Sequence[tuple[str, float]], b: Sequence[tuple[str, float]]) -> float | None:
    """Largest difference of a word's share in the sum over all words, 0 to 1; None where that cannot be told."""
    if not a or [word for word, _ in a] != [word for word, _ in b]:
        return None
    first, second = (np.array([total for _, total in told], dtype=np.float64) for told in (a, b))
    if not (first.sum() > 0 and second.sum() > 0):
        return None
    return _number(np.abs(first / first.sum() - second / second.sum()).max())


# What all share


class _Map(NamedTuple):
    """A map, or a number, of a method: the row and column of its table, and the word that it is of, if it is of one."""

    row: str
    column: str
    token: str | None
    values: np.ndarray


def _maps(methods: Mapping[str, xr.Dataset], variable: str = "saliency") -> Iterator[_Map]:
    """Every map with a finite value, one at a time, in the order of the methods; numbers where they have no y and x."""
    for title, method in methods.items():
        if variable not in method or "step" not in method[variable].dims:
            continue
        array = method[variable]
        plane = [dim for dim in array.dims if dim in ("y", "x")]
        further = [dim for dim in array.dims if dim not in ("step", *plane)]
        array = array.transpose(*further, "step", *plane)
        for place in np.ndindex(*(array.sizes[dim] for dim in (*further, "step"))):
            values = array.values[place]
            if np.isfinite(values).any() or not plane:
                at = {dim: str(array[dim].values[i]) for dim, i in zip((*further, "step"), place, strict=True)}
                row = ", ".join([title, *(f"“{at[dim]}”" if dim == "token" else f"{dim} {at[dim]}" for dim in further)])
                yield _Map(row, f"step {at['step']}", at.get("token"), values)


def _titled(methods: Mapping[str, xr.Dataset]) -> dict[str, xr.Dataset]:
    """Results by their titles, with their ids where two have the same."""
    titles = {name: str(method.attrs.get("title", name)) for name, method in methods.items()}
    several = list(titles.values())
    return {
        title if several.count(title) == 1 else f"{title} ({name})": methods[name] for name, title in titles.items()
    }


def _number(value: Any) -> float | None:
    """A plain number, None where it is none: JSON knows no NaN."""
    return float(value) if value is not None and np.isfinite(value) else None


def _named(maps: Sequence[_Map]) -> str:
    return _some([f"{each.row} at {each.column}" for each in maps])


def _some(names: Sequence[str], between: str = ", ") -> str:
    """
    >>> _some(["a", "b", "c", "d", "e", "f"])
    'a, b, c, d and 2 more'
    """
    more = len(names) - TOLD
    return between.join(names[:TOLD]) + (f" and {more} more" if more > 0 else "")
