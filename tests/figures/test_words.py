"""Curves and totals of words, on figures and on the page: what is drawn is what the arrays hold."""

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

from denoscope import Explanation
from denoscope.figures.words import has_words, plot_curves, plot_totals, word_keys
from denoscope.report.words import word_charts

WORDS = ["a", "red", "circle", "a (2)"]
STEPS = [1, 4]


@pytest.fixture
def method():
    rng = np.random.default_rng(0)
    relevance = rng.random((2, 4))
    low, high = relevance.min(axis=1, keepdims=True), relevance.max(axis=1, keepdims=True)
    return xr.Dataset(
        {
            "saliency": (("step", "token", "y", "x"), rng.random((2, 4, 3, 3))),
            "relevance": (("step", "token"), relevance),
            "relevance_scaled": (("step", "token"), (relevance - low) / (high - low)),
        },
        coords={"step": STEPS, "token": WORDS, "timestep": ("step", [900.0, 200.0]), "log_snr": ("step", [-4.0, 2.5])},
        attrs={"title": "Relevance of words"},
    )


@pytest.fixture
def trace():
    pictures = (("step", "row", "column", "channel"), np.full((6, 4, 4, 3), 128, np.uint8))
    return xr.Dataset(
        {
            "image": (("row", "column", "channel"), np.full((4, 4, 3), 128, np.uint8)),
            "sample": pictures,
            "pred_original_sample": pictures,
        },
        coords={
            "step": range(6),
            "timestep": ("step", np.linspace(999, 1, 6)),
            "log_snr": ("step", np.linspace(-4, 4, 6)),
        },
    )


def test_a_line_for_each_word(method):
    ax = plot_curves(method)
    assert isinstance(ax.figure, Figure)
    drawn = {line.get_label(): line.get_xydata() for line in ax.get_lines()}
    assert list(drawn) == WORDS == [text.get_text() for text in ax.get_legend().get_texts()]
    for word, points in drawn.items():
        expected = np.column_stack([STEPS, method["relevance_scaled"].sel(token=word)])
        np.testing.assert_array_equal(points, expected)
    (above,) = ax.child_axes
    assert above.get_xticks().tolist() == STEPS
    assert [text.get_text() for text in above.get_xticklabels()] == ["−4", "2.5"]
    own = Figure().subplots()
    assert plot_curves(method.isel(step=[0]), ax=own) is own


def test_a_bar_for_each_word_and_schedule(method):
    totals = {"uniform": method["relevance"].sum("step"), "early": 2 * method["relevance"].sum("step")}
    totals["early"] = totals["early"].isel(token=[3, 2, 1, 0])  # the words decide, not their order
    ax = plot_totals(totals)
    assert [text.get_text() for text in ax.get_xticklabels()] == WORDS
    uniform, early = ([bar.get_height() for bar in bars] for bars in ax.containers)
    np.testing.assert_allclose(uniform, totals["uniform"])
    np.testing.assert_allclose(early, 2 * totals["uniform"].values)


def test_eighteen_words_are_told_apart():
    keys = word_keys([f"word {i}" for i in range(18)])
    assert len({(key.hue, key.dash) for key in keys}) == 18


def test_the_page_has_a_chart_of_the_same_numbers(method, trace):
    (chart,) = word_charts(trace, {"relevance": method, "other": method[["saliency"]]})
    assert chart["title"] == "Relevance of words" and [line["key"].label for line in chart["lines"]] == WORDS
    for line in chart["lines"]:
        expected = method["relevance_scaled"].sel(token=line["key"].label).values
        points = [(100 * (step + 0.5) / 6, 100 * (1 - value)) for step, value in zip(STEPS, expected, strict=True)]
        np.testing.assert_allclose(line["points"], points)
    assert not has_words(method[["saliency"]])


def test_a_run_with_words_leaves_its_curves(method, trace, tmp_path):
    explanation = Explanation.of(trace, {"relevance": method}, {"prompt": "a red <circle> a", "methods": {}})
    folder = explanation.save(tmp_path / "run")
    assert {file.name for file in (folder / "figures").iterdir()} == {"relevance.png", "relevance_curves.png"}
    xr.testing.assert_equal(Explanation.load(folder).methods()["relevance"], method)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Relevance of words, 0 to 1 at each step" in page
    assert all(f"</svg>{word}</span>" in page for word in WORDS)


def test_a_run_without_words_has_no_such_chart(method, trace):
    assert word_charts(trace, {"other": method.drop_vars("relevance_scaled")}) == []
