"""Crossings of curves with known answers, and the published table from the published curves."""

import csv

import numpy as np
import pytest
import torch
import xarray as xr
from places import shared

from denoscope.errors import InputError, Interrupted
from denoscope.timing import likelihood as timing
from denoscope.vision import frames
from denoscope.vision.classifiers import load_classifier

TABLE = {  # crossing at 0.05, 0.5, 0.9 as the study's two plots have them
    "repo_283": (50.6, 55.9, 60.4),
    "repo_284": (49.7, 58.6, 65.8),
    "repo_285": (41.9, 47.5, 55.8),
    "repo_292": (31.5, 38.5, None),
    "poster_283": (49.5, 53.3, 56.3),
    "poster_284": (44.7, 52.4, 57.0),
    "poster_285": (37.9, 45.0, 53.2),
    "poster_292": (32.3, 55.0, None),
}


def logistic(middle: float, width: float, top: float = 1.0, count: int = 100) -> np.ndarray:
    return top / (1 + np.exp(-(np.arange(count) - middle) / width))


@pytest.mark.parametrize("level", [0.05, 0.5, 0.9])
def test_a_logistic_curve_crosses_where_its_formula_says(level):
    truth = 47.3 + 3.0 * np.log(level / (1 - level))
    assert timing.crossing(logistic(47.3, 3.0), level) == pytest.approx(truth, abs=0.05)


def test_a_short_peak_does_not_last_and_the_end_counts_as_lasting():
    curve = np.zeros(40)
    curve[10:13] = 0.8
    curve[38:] = 0.8
    assert timing.crossing(curve, 0.5) == pytest.approx(37 + 0.5 / 0.8)
    assert timing.crossing(curve, 0.5, lasting=3) == pytest.approx(9 + 0.5 / 0.8)


def test_never_and_always_are_values():
    assert np.isnan(timing.crossing(np.full(20, 0.4), 0.5))
    assert timing.crossing(np.full(20, 0.6), 0.5) == 0
    assert np.isnan(timing.steepest(np.full(20, 0.4)))


def test_gaps_are_interpolated_over():
    curve = logistic(20.0, 2.0, count=40)
    gappy = curve.copy()
    gappy[[18, 19, 21]] = np.nan
    assert timing.crossing(gappy, 0.5) == pytest.approx(timing.crossing(curve, 0.5), abs=0.3)


@pytest.mark.parametrize("name", TABLE)
def test_the_published_curves_give_the_published_table(name):
    rows = list(csv.DictReader(shared("data", "published_softmax.csv").read_text().splitlines()))
    curve = np.array([float(row[name]) for row in rows])
    for level, published in zip(timing.LIKELIHOOD_LEVELS, TABLE[name], strict=True):
        found = timing.crossing(curve, level)
        assert np.isnan(found) if published is None else found == pytest.approx(published, abs=0.15)


def test_the_steepest_rise_of_a_logistic_is_its_middle():
    assert timing.steepest(logistic(62.0, 2.5)) == pytest.approx(62, abs=1)


@pytest.fixture
def curves() -> xr.DataArray:
    """Two labels, five draws: middles 40..44, and one that is crossed in three draws only."""
    tops = (0.4, 0.4, 1.0, 1.0, 1.0)
    sure = [logistic(40.0 + k, 2.0) for k in range(5)]
    unsure = [logistic(60.0 + k, 2.0, top) for k, top in enumerate(tops)]
    values = np.stack([sure, unsure]).transpose(2, 1, 0)
    coords = {"step": np.arange(100), "draw": np.arange(5), "label": ["cat", "dog"]}
    return xr.DataArray(values, coords, ("step", "draw", "label"), "likelihood")


def test_the_interval_over_draws_is_of_the_draws(curves):
    half = timing.over_draws(timing.moments(curves))["crossing"].sel(label="cat", level=0.5)
    assert half.sel(quantile=["low", "median", "high"]).values == pytest.approx([40, 42, 44], abs=0.05)


def test_a_draw_that_never_crosses_is_later_than_all(curves):
    table = timing.over_draws(timing.moments(curves))
    dog = table.sel(label="dog")
    assert float(dog["crossed"].sel(level=0.5)) == pytest.approx(3 / 5)
    half = dog["crossing"].sel(level=0.5)
    assert float(half.sel(quantile="median")) == pytest.approx(64, abs=0.05)
    assert np.isnan(half.sel(quantile="high"))
    window = table["window"].sel(label="cat", quantile="median")
    assert float(window) == pytest.approx(2.0 * (np.log(9) + np.log(19)), abs=0.1)


def test_photographs_stand_side_by_side_with_their_own_labels(curves):
    other = curves.sel(label=["dog"]).assign_coords(label=["tiger"])
    rows = list(timing.rows_of(timing.comparison({"a": curves, "b": other})))
    assert [(row["photograph"], row["label"]) for row in rows] == [("a", "cat"), ("a", "dog"), ("b", "tiger")]
    assert rows[0]["0.5"] == pytest.approx((40, 42, 44), abs=0.05)


@pytest.mark.parametrize("levels", [(0.5, 0.05), (0.0, 0.5), (0.5, 0.5)])
def test_levels_that_cannot_be(curves, levels):
    with pytest.raises(InputError, match="levels"):
        timing.moments(curves, levels)


def test_chosen_frames_surround_the_window_and_end_with_the_clean_one(curves):
    chosen = timing.around_window(curves, 10)
    assert len(chosen) == 10 and chosen[-1] == 99 and chosen == sorted(set(chosen))
    assert chosen[0] < 36 and any(46 <= step <= 52 for step in chosen) and chosen[-2] < 60
    flat = curves * 0
    assert timing.around_window(flat, 10)[0] == 0 and timing.around_window(flat, 200) == list(range(100))


class Brightness(torch.nn.Module):
    """Logits (4 m, 0) for a mean brightness m."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bright = 4 * x.mean(dim=(1, 2, 3))
        return torch.stack([bright, torch.zeros_like(bright)], dim=1)


@pytest.fixture
def classifier():
    size = dict(size=(8, 8), mean=(0.0,) * 3, std=(1.0,) * 3)
    return load_classifier(Brightness().eval(), labels=["bright", "dark"], **size)


def test_likelihood_is_the_softmax_of_every_frame_and_draw(classifier):
    sequence = frames.blend(torch.ones(3, 8, 8), count=6, draws=3, seed=1)
    curves = timing.likelihood(classifier, sequence, ["bright", 1], batch_size=2)
    assert curves.dims == ("step", "draw", "label") and list(curves["label"].values) == ["bright", "dark"]
    for frame in sequence:
        truth = torch.sigmoid(4 * frame.images.mean(dim=(1, 2, 3))).numpy()
        assert curves.sel(step=frame.index, label="bright").values == pytest.approx(truth, abs=1e-6)
    assert curves.sum("label").values == pytest.approx(np.ones((6, 3)), abs=1e-6)


def test_an_interruption_keeps_the_frames_that_are_done(classifier):
    sequence, seen = frames.blend(torch.ones(3, 8, 8), count=6), []

    def stop(done: int) -> None:
        seen.append(done)
        if sum(seen) >= 4:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="4 of 6") as caught:
        timing.likelihood(classifier, sequence, ["bright"], advance=stop)
    assert caught.value.partial.sizes["step"] == 4


def test_no_label_is_refused(classifier):
    with pytest.raises(InputError, match="label"):
        timing.likelihood(classifier, frames.blend(torch.ones(3, 8, 8), count=2), [])
