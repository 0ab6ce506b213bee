"""Curves of the relevance of words along a run, and bars of its totals under each schedule."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .theme import FAINT, HUES, INK, RULE, Key, readable

WORD_DASHES = ("none", "7 3", "2 3")
"""A pattern for each round of the hues: three times as many words as hues are told apart."""


def has_words(result: xr.Dataset) -> bool:
    """Return True if a result has the relevance of each word at each step."""
    return "relevance_scaled" in result and set(result["relevance_scaled"].dims) == {"step", "token"}


def word_keys(words: Sequence[str]) -> list[Key]:
    """Return the look of each word's line; the first six words, and words beyond eighteen, have full lines."""
    return [
        Key(word, HUES[i % len(HUES)], WORD_DASHES[i // len(HUES) % len(WORD_DASHES)], explained=False)
        for i, word in enumerate(words)
    ]


def plot_curves(result: xr.Dataset, *, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Draw `relevance_scaled` (step, token) against the step, a line for each word; above, the log-SNR of the steps.

    It is drawn on the axes given, or on new axes with their own figure (`ax.figure`).
    """
    ax = ax or Figure(figsize=(8.2, 3.9), layout="constrained", facecolor="white", dpi=110).subplots()
    steps = result["step"].values
    for key in word_keys([str(word) for word in result["token"].values]):
        values = result["relevance_scaled"].sel(token=key.label).values
        ax.plot(steps, values, color=key.hue, linestyle=_style(key), linewidth=1.6, label=key.label, marker=".")
    _plain(ax, title or result.attrs.get("title", "Relevance of words"))
    ax.set(xlabel="step", ylabel="relevance, 0 to 1 at each step", ylim=(-0.03, 1.03))
    _snr_above(ax, result)
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=7.5, frameon=False, handlelength=2.6)
    return ax


def plot_totals(totals: Mapping[str, xr.DataArray], *, ax: Axes | None = None, title: str = "") -> Axes:
    """Draw a bar for every word and schedule: Σ_t ρ_k(t), (token), by the schedule's name; all have the same words."""
    ax = ax or Figure(figsize=(8.2, 2.9), layout="constrained", facecolor="white", dpi=110).subplots()
    words = [str(word) for word in next(iter(totals.values()))["token"].values]
    places, width = np.arange(len(words)), 0.8 / len(totals)
    for i, (schedule, total) in enumerate(totals.items()):
        at = places + (i - (len(totals) - 1) / 2) * width
        ax.bar(at, total.sel(token=words).values, width, color=HUES[i % len(HUES)], label=schedule)
    _plain(ax, title or "Relevance of words, added up over the steps")
    ax.set_xticks(places, words, rotation=35, ha="right", rotation_mode="anchor")
    ax.legend(fontsize=7.5, frameon=False)
    return ax


def _plain(ax: Axes, title: str) -> None:
    """Give axes a title, quiet rules and no box."""
    ax.set_title(title, fontsize=9, color=INK, loc="left")
    ax.tick_params(labelsize=7.5, color=FAINT, labelcolor=INK, length=2)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(RULE)
    ax.grid(axis="y", color=RULE, linewidth=0.6)
    ax.set_axisbelow(True)
    for label in (ax.xaxis.label, ax.yaxis.label):
        label.set(fontsize=8, color=INK)


def _snr_above(ax: Axes, result: xr.Dataset) -> None:
    """Add an axis above with the log-SNR of a few steps: schedules share log-SNR, and not steps."""
    steps = result["step"].values
    marked = steps[np.unique(np.linspace(0, len(steps) - 1, min(6, len(steps))).round().astype(int))]
    above = ax.secondary_xaxis("top")
    above.set_xticks(marked, [readable(float(result["log_snr"].sel(step=step)), 2) for step in marked])
    above.tick_params(labelsize=7.5, color=FAINT, labelcolor=FAINT, length=2)
    above.set_xlabel("log-SNR", fontsize=8, color=FAINT)
    above.spines["top"].set_visible(False)


def _style(key: Key) -> Any:
    """Return the dash of a page as matplotlib has it."""
    return "-" if key.dash == "none" else (0, tuple(float(part) / 2 for part in key.dash.split()))
