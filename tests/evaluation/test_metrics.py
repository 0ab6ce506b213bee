"""Metrics against torchmetrics and scipy, and on maps whose figure is known."""

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.ndimage import zoom
from small import refusal
from torchmetrics.functional.classification import binary_auroc

from denoscope.errors import InputError
from denoscope.evaluation import METRICS, Metric, auroc, bootstrap, centre_prior, metric_named, metrics_of, on_grid
from denoscope.evaluation.metrics import QUESTIONS, add, with_facts
from denoscope.worlds.shapes.judge import masks_of_things
from denoscope.worlds.shapes.scenes import Scene, masks, render


def test_auroc_against_torchmetrics():
    rng = np.random.default_rng(0)
    for _ in range(5):
        saliency, mask = rng.integers(0, 32, (12, 9)) / 32, rng.random((12, 9)) < 0.2
        expected = binary_auroc(torch.from_numpy(saliency).flatten(), torch.from_numpy(mask).long().flatten())
        assert auroc(saliency, mask) == pytest.approx(float(expected), abs=1e-6)
        assert auroc(-saliency, mask) == pytest.approx(1 - auroc(saliency, mask))
    assert auroc(np.zeros((4, 4)), np.eye(4, dtype=bool)) == 0.5


def test_auroc_refuses_what_it_cannot_tell():
    for mask in (np.zeros((3, 3)), np.ones((3, 3)), np.eye(4)):
        with pytest.raises(InputError):
            auroc(np.zeros((3, 3)), mask)


def test_on_grid_against_scipy_zoom_and_keeps_planes():
    rng = np.random.default_rng(0)
    coarse = rng.normal(size=(5, 7))
    assert np.allclose(on_grid(coarse, 20, 28), zoom(coarse, 4, order=1, mode="nearest", grid_mode=True))
    plane = np.add.outer(np.arange(6.0), 2 * np.arange(8.0))
    fine = on_grid(plane, 12, 16)
    assert np.allclose(np.diff(fine[1:-1, 1:-1], axis=0), 0.5) and np.allclose(np.diff(fine[1:-1, 1:-1], axis=1), 1.0)


def test_centre_prior_prefers_the_centre():
    prior = centre_prior(7, 9)
    assert np.unravel_index(prior.argmax(), prior.shape) == (3, 4) and np.allclose(prior, prior[::-1, ::-1])


def test_masks_of_things_come_in_the_scenes_order():
    """Pictures drawn by rule, whose masks are known; the second thing may well be the larger."""
    drawn = [Scene.random(seed, count=2) for seed in range(12)]
    scenes = [scene for scene in drawn if len({thing.colour for thing in scene.things}) == 2]
    assert len(scenes) > 5
    for scene in scenes:
        for found, true in zip(masks_of_things(render(scene), scene), masks(scene), strict=True):
            assert (found & true).sum() > 0.75 * (found | true).sum()
    assert masks_of_things(render(scenes[0]), scenes[1]) is None
    assert masks_of_things(render(Scene.random(0, count=1)), scenes[0]) is None


def test_bootstrap_covers_the_mean():
    rng = np.random.default_rng(0)
    covered = [(i := bootstrap(rng.normal(3, 1, 40))).low <= 3 <= i.high for _ in range(100)]
    assert 0.87 <= np.mean(covered) <= 1
    assert str(bootstrap([0.5, 0.5])) == "0.50 [0.50, 0.50]"
    with pytest.raises(InputError):
        bootstrap([1.0, np.nan])


# The table of measures.


def test_facts_travel_with_the_numbers():
    attrs = with_facts(xr.DataArray([0.25, 0.75]), "auroc").attrs
    assert (attrs["metric"], attrs["title"], attrs["group"]) == ("auroc", "AUROC", "localisation")
    assert (attrs["question"], attrs["range"]) == ("Does the map point at the objects?", (0, 1))
    assert (attrs["higher_is_better"], attrs["chance"], attrs["source"]) == (True, 0.5, "Hanley and McNeil 1982")
    assert attrs["text"].startswith("Against the objects")


def test_every_measure_has_its_facts_under_its_own_name():
    assert len(METRICS) >= 13
    for name, measure in METRICS.items():
        assert measure.name == name and measure.title and measure.source and measure.group in QUESTIONS
        assert measure.chance is None or measure.low <= measure.chance <= measure.high


def test_an_unknown_measure_is_an_error_and_not_a_gap():
    assert '"auroc"' in refusal(with_facts, xr.DataArray([1.0]), "aurok")
    assert '"auroc"' in refusal(metric_named, "aurok")
    assert '"localisation"' in refusal(metrics_of, "localization")


def test_one_name_has_one_meaning(monkeypatch):
    monkeypatch.setattr("denoscope.evaluation.metrics.METRICS", dict(METRICS))
    same = Metric("seed overlap", "other masks", "stability", 0, 1, True, "a test")
    assert add(same) is add(same) is metric_named("seed overlap")
    other = Metric("seed overlap", "other masks", "stability", -1, 1, True, "a test")
    assert "other facts" in refusal(add, other)


def test_a_measure_of_a_check_has_facts_and_no_function():
    measure = Metric("seed overlap", "other masks", "stability", 0, 1, True, "a test")
    assert measure.facts["chance"] is None and "Run that check" in refusal(measure, np.eye(2))


def test_facts_that_cannot_be():
    assert '"stability"' in refusal(add, Metric("a", "b", "stabilty", 0, 1, True, "c"))
    assert "low end below" in refusal(Metric, "a", "b", "stability", 1, 1, True, "c")
