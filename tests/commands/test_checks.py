"""A check is one registered function: the settings, the trials, the leaderboard and the help follow from it."""

import pytest
import xarray as xr
from small import refusal

from denoscope import cli
from denoscope.commands.checks.registry import CHECKS, check, measure_facts, usual_checks
from denoscope.commands.evaluate import Evaluation
from denoscope.errors import InputError
from denoscope.evaluation.metrics import METRICS, QUESTIONS, Metric


@pytest.fixture
def own_checks():
    """Remove the checks, the measures and the questions that a test registers."""
    before = [(registry, dict(registry)) for registry in (CHECKS, METRICS, QUESTIONS)]
    yield
    for registry, entries in before:
        registry.clear()
        registry.update(entries)


BRIGHTNESS = Metric("brightness", "mean brightness", "light", 0, 1, True, source="a test", text="A new measure.")


@pytest.mark.usefixtures("things_as_prompted", "own_checks")
def test_a_new_check_is_in_the_settings_the_table_and_the_page(tmp_path):
    @check(
        "light", question="Is the map bright?", at="middle", measures=[BRIGHTNESS], short=["brightness"], usual=False
    )
    def check_light(picture, maps, steps):
        return {"brightness": xr.ones_like(maps.saliency.sel(step=steps).mean(["y", "x"])) * picture.subject.scene}

    evaluation = Evaluation(steps=3, at=(0, 2), methods=("df-cam",), checks=("light",), scenes=2)
    result = evaluation.run(workers=1)
    row = result.table["measures"]["brightness"]["df-cam"]
    assert row["0"] is None and row["2"]["mean"] == 1.5  # scenes of one and of two things
    assert result.table["facts"]["brightness"]["question"] == "Is the map bright?"
    assert result.rows().head == ("method", "mean brightness")
    page = (result.save(tmp_path / "out") / "report.html").read_text()
    assert "Is the map bright?" in page and "A new measure." in page
    assert "light" not in usual_checks() and "light" not in Evaluation().checks_used


@pytest.mark.usefixtures("things_as_prompted", "own_checks")
def test_a_measure_that_is_not_declared_is_an_error():
    @check("light", question="Is the map bright?", measures=[BRIGHTNESS])
    def check_light(picture, maps, steps):
        return {"brihgtness": maps.saliency.mean(["y", "x"])}

    evaluation = Evaluation(steps=2, at=(1,), methods=("df-cam",), checks=("light",), scenes=2)
    with pytest.raises(InputError, match=r'"brihgtness", which it does not declare. Its measures are: brightness'):
        evaluation.run(workers=1)


@pytest.mark.usefixtures("own_checks")
def test_names_are_taken_once():
    def enter(name, *measures):
        check(name, question="?", measures=measures)(lambda picture, maps, steps: {})

    assert 'check "games" already' in refusal(enter, "games")
    assert 'measure "auroc" is there already' in refusal(
        enter, "light", Metric("auroc", "again", "localisation", 0, 1, True, "a test")
    )
    assert 'no measure "aurok"' in refusal(enter, "light", "aurok")
    assert "light" not in CHECKS


def test_facts_of_metrics_are_those_of_the_metrics():
    facts = measure_facts()
    assert {"auroc", "mass_inside", "infidelity_beyond_area", "weights, above chance"} <= set(facts) <= set(METRICS)
    for name, each in facts.items():
        metric = METRICS[name]
        assert (each.low, each.high, each.question) == (metric.low, metric.high, metric.question)
        assert (each.title, each.higher_is_better) == (metric.title, metric.higher_is_better)


def test_every_check_has_measures_with_titles_of_their_own():
    assert all(each.measures for each in CHECKS.values())
    titles = [facts.title for facts in measure_facts().values()]
    assert len(set(titles)) == len(titles)


def test_the_help_names_the_checks():
    usual = ", ".join(usual_checks())
    others = ", ".join(name for name in CHECKS if name not in usual_checks())
    (option,) = [p for p in _parameters("evaluate") if p.name == "checks"]
    assert f"{usual}: all if none; or {others}." in option.help


def _parameters(command):
    import typer.main

    return typer.main.get_command(cli.app).commands[command].params
