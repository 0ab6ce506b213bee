"""Schedules are the paper's; what cannot be a schedule is said in one paragraph."""

import math
from fractions import Fraction

import pytest
from oracles import EARLY_30, EARLY_60, LATE_30, LATE_60

from denoscope.errors import ScheduleError
from denoscope.recording.schedules import BANDS, band, coverage, early, late, resolve, takes_shift, uniform

# Made by the published code (arXiv 2402.10404), 30 steps of 1000.


@pytest.mark.parametrize(
    "made, published",
    [(early(30), EARLY_60), (late(30), LATE_60), (early(30, 30), EARLY_30), (late(30, 30), LATE_30)],
    ids=["early 60", "late 60", "early 30", "late 30"],
)
def test_published_time_steps(made, published):
    assert made == [int(word) for word in published.split()]


@pytest.mark.parametrize("steps, shift, T", [(1, 60.0, 1000), (7, 3.5, 1000), (50, 200.0, 1000), (12, 20.0, 400)])
def test_early_mirrors_late(steps, shift, T):
    """Identity: both walk the same powers of δ, one from T downwards by them, the other along them."""
    if steps > 1:
        assert [T - t for t in early(steps, shift, T)][1:] == sorted(late(steps, shift, T))[:-1]
    assert early(steps, shift, T)[0] == late(steps, shift, T)[0] == T - 1


@pytest.mark.parametrize("steps", [1, 3, 7, 30, 1000])
def test_uniform_is_even(steps):
    """Oracle: exact fractions."""
    exact = [Fraction(1000) - Fraction(1000 * i, steps) - 1 for i in range(steps)]
    assert all(abs(t - e) <= Fraction(1, 2) for t, e in zip(uniform(steps), exact, strict=True))


def test_band_is_dense_inside_its_window():
    steps = band(400)
    assert sum(400 <= t <= 450 for t in steps) == 25
    assert set(uniform(6)) <= set(steps) and steps == sorted(set(steps), reverse=True)


def test_resolve_reads_what_a_user_types():
    assert resolve("uniform", 30) is None
    assert resolve("early", 30) == early(30) and resolve("late", 30, 30) == late(30, 30)
    assert (
        resolve([900, 500, 100], 30) == resolve("900,500, 100", 30) == [900, 500, 100] == resolve((900.0, 500, 100), 30)
    )
    assert resolve("band:600", 7) == band(600) and resolve("band:600-700", 7) == band(600, 100)
    assert [takes_shift(each) for each in ("uniform", "early", "late", "band:600", [9, 8])] == [0, 1, 1, 0, 0]


@pytest.mark.parametrize("start, width, T", [(0, 50, 1000), (950, 50, 1000), (333, 24, 1000), (120, 60, 400)])
def test_a_band_against_a_slow_count(start, width, T):
    """Oracle: exact fractions; what both parts have counts once, and T itself is T − 1."""
    inside = [Fraction(start) + Fraction(width * i, 24) for i in range(25)]
    outside = [Fraction(T) - Fraction(T * i, 6) - 1 for i in range(6)]
    expected = sorted({min(round(t), T - 1) for t in (*inside, *outside)}, reverse=True)
    assert band(start, width, T=T) == expected


def test_coverage_counts_the_steps_in_each_band():
    """Ground truth: SNR 1/100 and 1 are the edges; the uniform grid of a linear ramp has the bands' own lengths."""
    edges = [math.log(0.0099), math.log(0.0101), math.log(0.99), math.log(1.01)]
    assert coverage(edges) == {"coarse": 0.25, "content": 0.5, "clean-up": 0.25}
    assert coverage([-math.inf, math.inf]) == {"coarse": 0.5, "content": 0.0, "clean-up": 0.5}
    low, high = math.log(BANDS["coarse"]), math.log(BANDS["content"])
    ramp = [-8 + 12 * i / 9999 for i in range(10000)]
    shares = coverage(ramp)
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["content"] == pytest.approx((high - low) / 12, abs=1e-3)
    assert shares["coarse"] == pytest.approx((low + 8) / 12, abs=1e-3)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("unifrom", 30), 'Did you mean "uniform"'),
        (("", 30), "Allowed: uniform, early, late, band:600"),
        (("band", 30), 'Did you mean "band:600"'),
        (("band:990", 30), "from 990 to 1040"),
        (("band:600-610", 30), "wide enough"),
        (("band:600-500", 30), "from 600 to 500"),
        (("band:600", 30, 60.0), '"band:600" has none'),
        (("999,500,500", 30), "fall strictly"),
        (("999,abc", 30), 'no schedule "999,abc"'),
        (([999.5, 500], 30), "no whole number"),
        (([500, 400], 30, 60.0), "a list of time steps has none"),
        (("early", 1100), "fewer steps"),
        (("early", 0), "0 steps"),
        (("early", 30, -30.0), "shift -30"),
        (("early", 30, float("nan")), "shift nan"),
        (("late", 30, float("inf")), "shift inf"),
        (("late", 900), "fewer steps or a larger shift"),
        (("uniform", 30, 60.0), '"uniform" has none'),
        (([100, 500], 30), "fall strictly"),
        (([500, 500], 30), "fall strictly"),
        (([1000, 500], 30), "1000 is outside 0..999"),
        (([500, -1], 30), "-1 is outside"),
        (([], 30), "at least one"),
    ],
)
def test_what_is_no_schedule(arguments, said):
    with pytest.raises(ScheduleError) as refused:
        resolve(*arguments)
    assert said in str(refused.value) and "\n" not in str(refused.value)
