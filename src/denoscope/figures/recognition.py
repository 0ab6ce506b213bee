"""Still pictures of a recognition study: likelihood curves, grids of heat maps, zooms, stages, several photographs.

A heat map lies over the frame in grey, red where a position speaks for the label and blue where against it, and no
colour where it says nothing. Bands and bars are intervals over noise draws."""

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from .results import captions_of, three
from .theme import ACCENT, FAINT, HUES, INK, RULE, readable, short_labels, shortened
from .tiles import plot_grid, plot_zooms

LINE_HUES = (*HUES, "#000000")
"""The hues of lines; on white paper black is one more."""
STROKES = ("-", "--", ":", "-.")
MANY_DRAWS = 20
"""Draws above which a band is the central 90 %, and not from the lowest to the highest."""
MARKERS = ("o", "s", "D", "^", "v")
"""The markers of the levels."""


def plot_likelihood(likelihood: xr.DataArray, timing: xr.Dataset, *, label: str | None = None) -> Figure:
    """Draw the likelihood of each label along the frames, and mark when the explained one is recognised.

    `likelihood` (step, draw, label) in [0, 1]; `timing` with `crossing` (quantile, label, level). `label` is the one
    that was explained; without it, the one that is likeliest in the end. Its crossings are marked, with bars for the
    interval over draws, and its critical window is shaded.
    """
    label = _likeliest(likelihood) if label is None else label
    labels = [label, *(str(other) for other in likelihood["label"].values if other != label)]
    names, word = short_labels(labels), _word(likelihood)
    figure = Figure(figsize=(8, 4.4 + 0.18 * len(labels)), facecolor="white", dpi=120)
    ax = _likelihood_axes(figure.subplots(), likelihood, timing["level"].values)
    handles = [_curve(ax, likelihood.sel(label=name), i, i == 0) for i, name in enumerate(labels)]
    crossing = timing["crossing"].sel(label=label)
    _mark_window(ax, crossing)
    _mark_crossings(ax, crossing, float(likelihood["step"].values[-1]))
    _add_log_snr(ax, likelihood)
    texts = [f"{names[name]}: {_reached(timing.sel(label=name))}" for name in labels]
    legend = _legend(figure, handles, texts)
    legend[0].set_fontweight("bold")
    ax.set_xlabel(f"{word} (0 is pure noise)", fontsize=9, color=INK)
    _headline(figure, f"How likely the classifier finds “{names[label]}”", _likelihood_note(likelihood, crossing))
    return figure


def _likeliest(likelihood: xr.DataArray) -> str:
    """Return the label with the highest mean likelihood at the last step."""
    final = likelihood.isel(step=-1).mean("draw").fillna(-1.0)
    return str(likelihood["label"].values[int(final.values.argmax())])


def _word(likelihood: xr.DataArray) -> str:
    """Return the word for a place along the sequence: frames of a photograph, steps of a generation."""
    return "step" if likelihood.attrs.get("kind") in ("sample", "clean") else "frame"


def _likelihood_axes(ax: Axes, likelihood: xr.DataArray, levels: np.ndarray) -> Axes:
    """Prepare axes from 0 to 1, with a line at each level that counts as a moment."""
    ax.set_ylim(-0.015, 1.015)
    ax.set_yticks([0, *levels, 1], ["0", *(f"{level:g}" for level in levels), "1"])
    ax.set_ylabel("likelihood", fontsize=9, color=INK)
    return _ruled(ax, likelihood["step"].values)


def _ruled(ax: Axes, steps: np.ndarray) -> Axes:
    """Prepare axes along the steps: horizontal rules, no box, whole numbers below."""
    spare = max(0.5, 0.012 * float(steps[-1] - steps[0]))
    ax.set_xlim(float(steps[0]) - spare, float(steps[-1]) + spare)
    ax.xaxis.set_major_locator(MaxNLocator(12, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    ax.tick_params(labelsize=8, color=RULE, labelcolor=INK)
    ax.grid(axis="y", color=RULE, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[:].set_visible(False)
    return ax


def _curve(ax: Axes, curves: xr.DataArray, number: int, emphasised: bool = True) -> Line2D:
    """Draw the median over draws of curves (step[, draw]) in the hue of its number, and the band over them."""
    steps = curves["step"].values
    low, middle, high = _spread(curves)
    style = _style(number)
    if curves.sizes.get("draw", 1) > 1:
        opacity = 0.2 if emphasised else 0.1
        ax.fill_between(steps, low, high, color=style["color"], alpha=opacity, linewidth=0)
    width, marker = (2.2 if emphasised else 1.2), ("o" if len(steps) <= 20 else None)
    (line,) = ax.plot(
        steps, middle, **style, linewidth=width, marker=marker, markersize=3, zorder=3 if emphasised else 2
    )
    return line


def _style(number: int) -> dict[str, Any]:
    """Return the hue and stroke of line `number`."""
    return {"color": LINE_HUES[number % len(LINE_HUES)], "linestyle": STROKES[number // len(LINE_HUES) % len(STROKES)]}


def _spread(curves: xr.DataArray) -> np.ndarray:
    """Return (3, step) of (step[, draw]): the band's lower edge, the median, its upper edge; NaN without any value."""
    values = curves.transpose("step", ...).values.reshape(curves.sizes["step"], -1)
    tail = 0.05 if values.shape[1] > MANY_DRAWS else 0.0
    finite = [row[np.isfinite(row)] for row in values]
    missing = np.full(3, np.nan)
    return np.stack([np.quantile(row, [tail, 0.5, 1 - tail]) if row.size else missing for row in finite], axis=1)


def _mark_window(ax: Axes, crossing: xr.DataArray) -> None:
    """Shade from the median onset to the median crossing of the last level, if both were reached."""
    first, last = _ends(crossing)
    if math.isfinite(last - first):
        ax.axvspan(first, last, color=ACCENT, alpha=0.08, linewidth=0, zorder=0)


def _ends(crossing: xr.DataArray) -> tuple[float, float]:
    """Return the median crossings of the first and the last level."""
    middle = crossing.sel(quantile="median").values
    return float(middle[0]), float(middle[-1])


def _mark_crossings(ax: Axes, crossing: xr.DataArray, end: float) -> None:
    """Draw at each level a point at the median crossing, and a bar over the draws; to the end if some never cross."""
    for level, shape in zip(crossing["level"].values, _shapes(crossing["level"].values), strict=True):
        low, middle, high = three(crossing.sel(level=level))
        if math.isfinite(middle):
            _mark(ax, (low, middle, high), float(level), shape, {"color": INK}, end)


def _shapes(levels: np.ndarray) -> list[str]:
    """Return the marker of each level."""
    return [MARKERS[i % len(MARKERS)] for i in range(len(levels))]


def _mark(
    ax: Axes, interval: tuple[float, float, float], y: float, shape: str, style: Mapping[str, Any], end: float
) -> None:
    """Draw a point with a bar; the bar ends in an arrow at `end` if the interval has no upper end."""
    low, middle, high = interval
    never, colour = math.isnan(middle), style["color"]
    stop = end if math.isnan(high) else high
    if math.isfinite(low):
        ax.plot([low, stop], [y, y], **style, linewidth=1.6, solid_capstyle="butt", zorder=4)
        if math.isnan(high) and not never:
            ax.plot(end, y, marker=">", color=colour, markersize=5, zorder=4, clip_on=False)
    ax.plot(
        end if never else middle, y, marker=shape, markersize=6.5, color="white" if never else colour, zorder=5,
        markeredgecolor=colour if never else "white", markeredgewidth=1.3 if never else 0.9, clip_on=False,
    )  # fmt: skip


def _add_log_snr(ax: Axes, likelihood: xr.DataArray) -> None:
    """Add an axis above with round values of log-SNR, if they are known and rise; no two of them touch."""
    if "log_snr" not in likelihood.coords:
        return
    steps, log_snr = likelihood["step"].values.astype(float), likelihood["log_snr"].values.astype(float)
    finite = np.isfinite(log_snr)
    steps, log_snr = steps[finite], log_snr[finite]
    if len(steps) < 2 or not (np.diff(log_snr) > 0).all():
        return
    values = np.asarray(MaxNLocator(12).tick_values(log_snr[0], log_snr[-1]))
    values = values[(values >= log_snr[0]) & (values <= log_snr[-1])]
    values, places = _apart(values, np.interp(values, log_snr, steps), 0.05 * (ax.get_xlim()[1] - ax.get_xlim()[0]))
    above = ax.secondary_xaxis("top")
    above.set_xticks(places, [readable(value) for value in values])
    above.tick_params(labelsize=8, color=RULE, labelcolor=FAINT)
    above.set_xlabel("log-SNR", fontsize=8, color=FAINT)
    above.spines[:].set_visible(False)


def _apart(values: np.ndarray, places: np.ndarray, distance: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the ticks that are at least `distance` apart, from ticks at rising places."""
    chosen: list[int] = []
    for i, place in enumerate(places):
        if not chosen or place - places[chosen[-1]] >= distance:
            chosen.append(i)
    return values[chosen], places[chosen]


def _legend(figure: Figure, handles: Sequence[Line2D], texts: Sequence[str], columns: int = 1) -> Sequence[Any]:
    """Draw a legend below everything and return its texts; no sign of a label is read as mathematics."""
    legend = figure.legend(
        handles, [str(i) for i in range(len(texts))], loc="outside lower left", ncols=columns, fontsize=8,
        frameon=False, labelcolor=INK, handlelength=2.2,
    )  # fmt: skip
    for drawn, text in zip(legend.get_texts(), texts, strict=True):
        drawn.set_parse_math(False)
        drawn.set_text(text)
    return legend.get_texts()


def _reached(timing: xr.Dataset) -> str:
    """Return the places at which a label reaches each level, in words, up to the first level that it never reaches.

    Places are medians over draws.
    """
    parts: list[str] = []
    for level in timing["level"].values:
        middle = float(timing["crossing"].sel(level=level, quantile="median"))
        if math.isnan(middle):
            share = float(timing["crossed"].sel(level=level)) if "crossed" in timing else 0.0
            some = (
                f"reaches {level:g} in only {100 * share:.0f} % of the draws" if share else f"never reaches {level:g}"
            )
            return ", ".join([*parts, some])
        parts.append(f"{level:g} at {middle:.1f}" if middle > 0 else f"{level:g} from the start")
    return ", ".join(parts)


def _likelihood_note(likelihood: xr.DataArray, crossing: xr.DataArray) -> str:
    """Return the note about the critical window, lines, bands and bars."""
    first, last = _ends(crossing)
    low, high = (f"{level:g}" for level in crossing["level"].values[[0, -1]])
    word, draws = _word(likelihood), likelihood.sizes["draw"]
    window = f"Shaded: its critical window, {low} to {high}, {word}s {first:.1f} to {last:.1f}. "
    if not math.isfinite(last - first):
        window = f"No critical window: the median never reaches {low if math.isnan(first) else high}. "
    if draws == 1:
        return f"{window}One noise draw." if word == "frame" else window
    band = f"the central 90 % of {draws}" if draws > MANY_DRAWS else f"the lowest to the highest of {draws}"
    return f"{window}Lines are medians, bands {band} noise draws, bars at least 90 % of the draws."


def _headline(figure: Figure, title: str, note: str) -> None:
    """Write title and note above everything, the note wrapped to the figure's width; the layout keeps clear of both."""
    width, height = figure.get_size_inches()
    lines = textwrap.wrap(note, int(width * 17.5))
    x, y = 0.1 / width, 1 - 0.1 / height
    figure.text(x, y, title, fontsize=11, color=INK, va="top", parse_math=False)
    figure.text(x, y - 0.25 / height, "\n".join(lines), fontsize=8, color=FAINT, va="top", linespacing=1.35)
    figure.set_layout_engine("constrained", rect=(0, 0, 1, y - (0.32 + 0.15 * len(lines)) / height))


def plot_stages(results: Mapping[str, xr.Dataset]) -> Figure:
    """Draw the change of the maps along the frames: a panel per captioned measure (step[, draw]), a line per method."""
    captions = captions_of(results.values())
    present = sorted(captions, key=lambda name: bool(captions[name]["of_object"]))
    columns = min(3, len(present)) if len(present) != 4 else 2
    rows = math.ceil(len(present) / columns)
    figure = Figure(figsize=(max(4.5, 3.3 * columns), 0.9 + 2.2 * rows), facecolor="white", dpi=120)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    steps = np.unique(np.concatenate([result["step"].values for result in results.values()]))
    word = "frame" if _draws(results) else "step"
    for ax, measure in zip(panels, present, strict=False):
        _draw_stage(_ruled(ax, steps), measure, captions[measure], results)
    for ax in panels[len(present) :]:
        ax.remove()
    for ax in panels[(rows - 1) * columns : len(present)]:
        ax.set_xlabel(f"{word} (0 is pure noise)", fontsize=8, color=INK)
    handles = [Line2D([], [], **_style(i), linewidth=2) for i in range(len(results))]
    titles = [str(result.attrs.get("title", name)) for name, result in results.items()]
    _legend(figure, handles, titles, columns=min(len(titles), columns + 1))
    note = "Lines are medians, bands the range over noise draws. " if _draws(results) > 1 else ""
    note += "The positive part of a map is what speaks for the label."
    _headline(figure, f"How the maps change from {word} to {word}", note)
    return figure


def _draws(results: Mapping[str, xr.Dataset]) -> int:
    """Return the most noise draws that a result has; 0 if none has any, as in a generation."""
    return max(result.sizes.get("draw", 0) for result in results.values())


def _draw_stage(ax: Axes, measure: str, caption: Mapping[str, Any], results: Mapping[str, xr.Dataset]) -> None:
    """Draw one measure; its axis has the range of the values, to zero at least."""
    for number, result in enumerate(results.values()):
        if measure in result:
            _curve(ax, result[measure], number)
    low, high = ax.dataLim.intervaly
    if not math.isfinite(high - low):
        low, high = 0.0, 1.0
        ax.text(0.5, 0.61, "no value", fontsize=8, color=FAINT, ha="center", va="center", transform=ax.transAxes)
    low, high = min(low, 0.0), max(high, 0.0)
    spare = 0.06 * ((high - low) or 1.0)
    ax.set_ylim(low - spare, high + spare)
    ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.set_title(caption["heading"], fontsize=9, color=INK, loc="left", pad=17)
    ax.text(0, 1.03, caption["scale"], fontsize=7.5, color=FAINT, transform=ax.transAxes, va="bottom")


def plot_photographs(
    likelihoods: Mapping[str, xr.DataArray], timings: Mapping[str, xr.Dataset], explained: Mapping[str, str]
) -> Figure:
    """Draw the likelihood of each photograph's own label, and below it when the label is recognised.

    All by the photograph's name: `likelihoods` (step, draw, label), `timings` as in `plot_likelihood`, and the label
    that was `explained`. Photographs are in the order of their onset; a level that is never reached is an open marker
    at the right edge.
    """
    crossings = {name: timings[name]["crossing"].sel(label=explained[name]) for name in likelihoods}
    order = sorted(crossings, key=lambda name: _onset(crossings[name]))
    longest = max(likelihoods.values(), key=lambda curves: curves.sizes["step"])
    figure = Figure(figsize=(8, 4.6 + 0.62 * len(order)), facecolor="white", dpi=120)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 0.3 + 0.55 * len(order)))
    levels = next(iter(crossings.values()))["level"].values
    _likelihood_axes(above, longest, levels)
    for number, name in enumerate(order):
        _curve(above, likelihoods[name].sel(label=explained[name]), number)
    _draw_crossings(below, [crossings[name] for name in order], float(longest["step"].values[-1]))
    _label_rows(below, [_row_label(name, explained[name]) for name in order])
    below.set_xlabel(f"{_word(longest)} (0 is pure noise)", fontsize=9, color=INK)
    shapes = [Line2D([], [], marker=shape, color=FAINT, linewidth=1.6) for shape in _shapes(levels)]
    _legend(figure, shapes, [f"likelihood {level:g}" for level in levels], columns=len(levels))
    note = (
        "Above the likelihood of each photograph's own label, below when it is reached. Bands and bars are over draws."
    )
    _headline(figure, "When each photograph is recognised", note)
    return figure


def _onset(crossing: xr.DataArray) -> float:
    """Return the median crossing of the first level, infinite if it is never crossed."""
    first = _ends(crossing)[0]
    return math.inf if math.isnan(first) else first


def _draw_crossings(ax: Axes, crossings: Sequence[xr.DataArray], end: float) -> None:
    """Draw a row per photograph from the top, its levels one below the other, so that no bar covers another."""
    _ruled(ax, np.array([0, end])).grid(False)
    ax.grid(axis="x", color=RULE, linewidth=0.8)
    for row, crossing in enumerate(crossings):
        levels = crossing["level"].values
        for level, shape, offset in zip(levels, _shapes(levels), np.linspace(-0.26, 0.26, len(levels)), strict=True):
            interval = three(crossing.sel(level=level))
            _mark(ax, interval, row + offset, shape, _style(row), end)
            if math.isnan(interval[1]):
                _write_never(ax, end, row + offset, "never" if math.isnan(interval[0]) else "in some draws")
        ax.axhline(row + 0.5, color=RULE, linewidth=0.8)
    ax.set_ylim(len(crossings) - 0.5, -0.5)


def _write_never(ax: Axes, end: float, y: float, text: str) -> None:
    """Write a text beside the marker of a level that is never reached."""
    away: dict[str, Any] = dict(xytext=(7, 0), textcoords="offset points", annotation_clip=False)
    ax.annotate(text, (end, y), fontsize=7.5, color=FAINT, va="center", **away)


def _row_label(name: str, label: str) -> str:
    """Return a photograph's name and label, each on a line."""
    return f"{shortened(name, 24)}\n{shortened(label.split(',')[0], 24)}"


def _label_rows(ax: Axes, texts: Sequence[str]) -> None:
    """Write names beside the rows, each with a sample of its line between it and the axes."""
    ax.set_yticks(range(len(texts)), texts, fontsize=8)
    ax.tick_params(axis="y", length=0, pad=32)
    for number, tick in enumerate(ax.get_yticklabels()):
        tick.set_parse_math(False)
        sample = Line2D([-0.042, -0.005], [number] * 2, **_style(number), linewidth=2.2, clip_on=False)
        sample.set_transform(ax.get_yaxis_transform())
        ax.add_artist(sample)


def drawn(
    frames: xr.Dataset, results: Mapping[str, xr.Dataset], likelihood: xr.DataArray, timing: xr.Dataset, label: str
) -> Iterator[tuple[str, Figure]]:
    """Yield (file stem, figure) of everything that the data of one picture allow, each made when it is asked for.

    "likelihood", each method's name with its grid, "zooms" and, where a method has measures of its maps, "stages".
    """
    yield "likelihood", plot_likelihood(likelihood, timing, label=label)
    explained = {name: result for name, result in results.items() if result.sizes["step"]}
    for name, result in explained.items():
        yield name, plot_grid(frames, result)
    if explained:
        yield "zooms", plot_zooms(frames, explained, timing, label)
    if captions_of(explained.values()):
        yield "stages", plot_stages(explained)
