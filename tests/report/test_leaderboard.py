"""The leaderboard says what the scores say: order, intervals, verdicts, and nothing where there is nothing."""

import numpy as np
import pytest
import xarray as xr
from small import refusal

from denoscope.commands.checks.sanity import verdicts
from denoscope.commands.scores import summarise
from denoscope.criteria import FAILED, PASSED, UNSURE
from denoscope.evaluation import bootstrap
from denoscope.report.leaderboard import cell_text, render_leaderboard, short_rows

METHODS = ["good", "poor", "<i>broken</i>", "random"]
RUN = {
    "model": "shapes", "steps": 30, "num_masks": 8, "guidance": 3.0, "checks": ["localisation"], "seed": 0,
    "failures": {"<i>broken</i>": {"times": 2, "first": "It broke & fell."}}, "seconds": {"good": 1.5},
    "command": "denoscope evaluate --scenes 6", "versions": {"torch": "2"},
}  # fmt: skip


def scores(measures: dict[str, dict[str, list[float]]], scenes: int = 6, steps: int = 2) -> xr.Dataset:
    """Per measure and method, the values of the scenes, the same at both steps."""
    values = np.full((len(measures), scenes, len(METHODS), steps), np.nan)
    for i, of in enumerate(measures.values()):
        for name, each in of.items():
            values[i, :, METHODS.index(name)] = np.asarray(each)[:, None]
    coords = {
        "measure": list(measures),
        "scene": [str(i) for i in range(scenes)],
        "attributor": METHODS,
        "step": [6, 15],
    }
    baseline = xr.DataArray([name == "random" for name in METHODS], {"attributor": METHODS}, ("attributor",))
    score = xr.DataArray(values, coords, ("measure", "scene", "attributor", "step"))
    return xr.Dataset({"score": score, "baseline": baseline})


@pytest.fixture
def known() -> xr.Dataset:
    rng = np.random.default_rng(0)
    auroc = {"good": 0.9 + 0.05 * rng.random(6), "poor": rng.random(6), "random": rng.random(6) / 2}
    weights = {"good": rng.normal(0, 0.02, 6), "poor": 0.9 + 0.02 * rng.random(6), "random": np.ones(6)}
    return scores({"auroc": auroc, "weights, all": weights, "chance": {n: np.full(6, 0.2) for n in weights}})


def test_the_best_is_first_and_what_is_unknown_last(known):
    _, table = summarise(known)
    assert table["methods"][0] == "good" and table["methods"][-1] == "<i>broken</i>"
    assert table["baselines"] == ["random"] and table["scenes"] == 6 and table["steps"] == [6, 15]


def test_a_measure_of_which_less_is_better_is_ordered_so():
    infidelity = {"good": np.full(6, 0.1), "poor": np.full(6, 0.9), "random": np.full(6, 0.95)}
    assert summarise(scores({"infidelity_beyond_area": infidelity}))[1]["methods"][:3] == ["good", "poor", "random"]


def test_cells_are_bootstrap_intervals(known):
    _, table = summarise(known)
    expected = bootstrap(known.score.sel(measure="auroc", attributor="poor", step=6).values)
    assert table["measures"]["auroc"]["poor"]["6"] == pytest.approx(vars(expected))
    assert table["measures"]["auroc"]["<i>broken</i>"]["6"] is None


def test_the_verdict_is_that_of_the_agreement_over_scenes(known):
    assert verdicts(known) == {"good": PASSED, "poor": FAILED, "<i>broken</i>": UNSURE, "random": FAILED}


def test_a_map_that_turns_round_with_the_weights_fails_too(known):
    known["score"].loc[{"measure": "weights, all", "attributor": "good"}] = -0.9
    assert verdicts(known)["good"] == FAILED


def test_a_few_scenes_that_disagree_tell_nothing(known):
    known["score"].loc[{"measure": "weights, all", "attributor": "good"}] = np.array([0.0, 0.9] * 3)[:, None]
    assert verdicts(known)["good"] == UNSURE


def test_without_a_sanity_check_there_is_no_verdict():
    assert verdicts(scores({"auroc": {"good": np.ones(6)}})) == {}


def test_the_page_has_every_figure_and_no_markup_of_others(known):
    _, table = summarise(known)
    page = render_leaderboard(table, RUN)
    assert cell_text(table["measures"]["auroc"]["good"]["15"]) in page
    assert "<i>broken</i>" not in page and "It broke &amp; fell." in page and 'class="fails"' in page
    assert "denoscope evaluate --scenes 6" in page


def test_the_short_table_has_a_line_a_step(known):
    head, rows = short_rows(summarise(known)[1])
    assert head == ["method", "AUROC", "sanity check"]
    assert rows[0][0] == "good" and rows[0][1].count("\n") == 1 and rows[0][-1] == PASSED
    assert [row[0] for row in rows if row[0].startswith("(")] == ["(random)"]


def test_bars_stay_on_their_scale(known):
    known["score"].loc[{"measure": "auroc", "attributor": "good"}] = 7.0
    assert "left: 100.0%" in render_leaderboard(summarise(known)[1], RUN)


def test_a_measure_without_facts_is_an_error(known):
    wrong = known.assign_coords(measure=["aurok", "weights, all", "chance"])
    assert 'The measure "aurok" has no facts. Did you mean "auroc"?' in refusal(summarise, wrong)


def test_the_facts_of_the_measures_are_in_the_table(known):
    _, table = summarise(known)
    assert set(table["facts"]) == set(table["measures"])
    assert table["facts"]["auroc"]["higher_is_better"] and table["facts"]["auroc"]["chance"] == 0.5
