"""A trial measures what the functions of `evaluation` measure, and records what failed."""

import numpy as np
import pytest

from denoscope import DFCam
from denoscope.commands import pictures
from denoscope.commands.checks import attacks as attacks_module
from denoscope.commands.checks.registry import measure_facts
from denoscope.commands.evaluate import Evaluation
from denoscope.commands.methods import PhraseMean, attributor_for, evaluated_methods
from denoscope.commands.pictures import RecordedPicture
from denoscope.commands.subjects import bundled_subject
from denoscope.commands.trial import Trial, measure
from denoscope.evaluation import BASELINES, Attack, localisation, neighbour_agreement, noise_agreement

SETTINGS = Evaluation().trial_settings()


def measured(number: int = 0, **settings) -> tuple[Trial, dict[str, np.ndarray]]:
    return measure(Evaluation(**settings).trial_settings(), bundled_subject(number))


@pytest.mark.usefixtures("things_as_prompted")
def test_a_trial_has_the_figures_of_the_functions_themselves():
    chosen = dict(steps=6, at=(2, 4), methods=("df-cam", "words"), checks=("localisation", "stability"))
    trial, maps = measured(**chosen)
    picture = RecordedPicture.record(Evaluation(**chosen).trial_settings(), bundled_subject(0))
    saliency = DFCam()(picture.trace, [2, 4]).saliency
    expected = localisation(saliency, picture.masks.any(axis=0))
    assert trial.failures == {} and set(trial.scores) == {"df-cam", "words", *BASELINES}
    assert trial.scores["df-cam"]["auroc"] == pytest.approx(expected.auroc.values.tolist())
    beside = neighbour_agreement(DFCam()(picture.trace, [3, 4]).saliency).item()
    assert trial.scores["df-cam"]["neighbour agreement"] == pytest.approx([float("nan"), beside], nan_ok=True)
    noise = noise_agreement(DFCam(), picture.trace, [4], draws=1, seed=bundled_subject(0).seed).item()
    assert trial.scores["df-cam"]["noise agreement"] == pytest.approx([float("nan"), noise], nan_ok=True)
    np.testing.assert_allclose(maps["df-cam"], saliency.values, rtol=1e-5)


def test_a_trial_comes_back_from_json():
    trial = Trial(bundled_subject(1), {"words": {"auroc": [0.5, 1.0]}}, {"df-cam": "It broke."}, {"words": 0.1})
    skipped = Trial(bundled_subject(0), skipped="Something else is drawn.")
    for each in (trial, skipped):
        assert Trial.from_json(each.to_json()) == each
    assert Trial.from_json({"subject": bundled_subject(0).to_json(), "passed_over": "old"}) is None


def test_a_method_with_a_failed_check_is_not_complete():
    trial = Trial(bundled_subject(0), {"words": {}, "df-cam": {}}, {"words, games": "It broke.", "df-rise": "Too."})
    assert [trial.is_complete(method) for method in ("df-cam", "words", "df-rise")] == [True, False, False]


def test_every_picture_has_a_random_map_of_its_own(trace):
    first, second = (attributor_for("random", SETTINGS, bundled_subject(n))(trace, [1]).saliency for n in (0, 1))
    assert (first.values != second.values).any()
    again = attributor_for("random", SETTINGS, bundled_subject(0))(trace, [1]).saliency
    np.testing.assert_array_equal(first, again)


def test_a_phrase_s_map_is_the_mean_of_its_words(trace):
    inner = attributor_for("words", SETTINGS, bundled_subject(0)).inner
    every_word = inner(trace, [1]).saliency
    phrase = PhraseMean(inner, ("red", "circle"))(trace, [1]).saliency
    both = every_word.sel(token="red") + every_word.sel(token="circle")
    np.testing.assert_allclose(phrase.values, both.values / 2, rtol=1e-5)
    np.testing.assert_allclose(PhraseMean(inner, None)(trace, [1]).saliency, every_word.mean("token"), rtol=1e-5)


@pytest.mark.usefixtures("things_as_prompted")
@pytest.mark.parametrize(
    "methods, attacked",
    [
        pytest.param(("df-cam",), {"gradient"}, id="gradient"),
        pytest.param(("df-rise-contrast",), {"df-rise-contrast", "gradient"}, id="contrast", marks=pytest.mark.slow),
    ],
)
def test_attacks_are_of_the_maps_that_can_be_differentiated(monkeypatch, methods, attacked):
    monkeypatch.setattr(attacks_module, "Attack", lambda ball, iterations, seed: Attack(ball, 4, seed=seed))
    trial, _ = measured(methods=methods, checks=("attacks",), steps=3, at=(0, 1), num_masks=64)
    assert trial.failures == {}
    assert {name for name, values in trial.scores.items() if values} == attacked
    for name in attacked:
        values = trial.scores[name]
        assert np.isnan(values["attack, map"][0]) and values["attack, map"][1] < values["attack, random"][1] < 1
        assert values["attack, picture"][1] > 0


@pytest.mark.slow
@pytest.mark.usefixtures("things_as_prompted")
def test_every_check_runs_on_every_method_of_the_bundled_model():
    """With as few masks and steps as there can be; each check's figures are tested where they are computed."""
    trial, _ = measured(1, steps=3, at=(1,), num_masks=8)
    assert trial.failures == {}
    assert set(trial.scores) == {*evaluated_methods(), *BASELINES}
    expected = {"auroc", "deletion", "infidelity_beyond_area", "resampling, object", "noise agreement", "weights, all"}
    assert all(expected <= set(values) for values in trial.scores.values())
    assert set().union(*trial.scores.values()) <= set(measure_facts())
    assert "seed agreement" in trial.scores["df-rise"] and "seed agreement" not in trial.scores["df-cam"]


def test_a_picture_that_cannot_be_made_is_a_failure(monkeypatch):
    def record(settings, subject):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(pictures.RecordedPicture, "record", record)
    trial, maps = measured(methods=("df-cam",), checks=("localisation",))
    assert trial.failures == {"the picture": "RuntimeError: out of memory"} and maps == {}
    assert trial.skipped == "RuntimeError: out of memory"
