"""Localisation and intervals: against scikit-learn, scikit-image and scipy, and on maps whose figure is known."""

import numpy as np
import pytest
import xarray as xr
from scipy import ndimage, stats
from skimage import metrics as image_metrics
from sklearn import metrics as learned
from small import refusal

from denoscope.evaluation import (
    METRICS,
    Baseline,
    auroc,
    average_precision,
    best_iou,
    iou,
    localisation,
    mass_inside,
    metrics_of,
    on_grid,
    over_scenes,
    paired,
    pointing,
    spearman,
)
from denoscope.evaluation.baselines import BASELINES, clean_edges, gradient_magnitude, magnitude_map, random_map
from denoscope.evaluation.localisation import auroc_of_shifts
from denoscope.evaluation.stages import edge_map


def cases():
    """Maps with and without ties, masks of several sizes."""
    rng = np.random.default_rng(0)
    for levels in (4, 32, 10**6):
        for share in (0.05, 0.3, 0.7):
            mask = rng.random((12, 9)) < share
            mask[3, 4], mask[0, 0] = True, False
            yield rng.integers(0, levels, (12, 9)) / levels - 0.3, mask


def test_areas_against_scikit_learn():
    for saliency, mask in cases():
        truth, scores = mask.ravel(), saliency.ravel()
        assert auroc(saliency, mask) == pytest.approx(learned.roc_auc_score(truth, scores))
        assert average_precision(saliency, mask) == pytest.approx(learned.average_precision_score(truth, scores))


def test_overlap_against_scikit_learn_at_every_threshold():
    for saliency, mask in cases():
        overlaps = {t: learned.jaccard_score(mask.ravel(), (saliency >= t).ravel()) for t in np.unique(saliency)}
        assert best_iou(saliency, mask) == pytest.approx(max(overlaps.values()))
        assert iou(saliency, mask) == pytest.approx(overlaps[np.sort(saliency, axis=None)[-mask.sum()]])


def test_overlap_at_the_masks_area_against_scikit_image():
    """Without ties, the chosen region has the mask's size, and its overlap follows from its adapted Rand precision."""
    saliency, mask = np.random.default_rng(1).random((10, 10)), np.zeros((10, 10), bool)
    mask[2:6, 3:8] = True
    chosen = saliency >= np.sort(saliency, axis=None)[-mask.sum()]
    _, precision, recall = image_metrics.adapted_rand_error(mask.astype(int), chosen.astype(int), ignore_labels=[])
    both = image_metrics.contingency_table(mask.astype(int), chosen.astype(int)).toarray() * mask.size
    assert both[1].sum() == pytest.approx(both[:, 1].sum()) and precision == pytest.approx(recall)
    assert iou(saliency, mask) == pytest.approx(both[1, 1] / (both[1, 1] + both[0, 1] + both[1, 0]))


def test_pointing_and_its_tolerance_against_a_slow_distance():
    mask = np.zeros((9, 9), bool)
    mask[4:6, 4:6] = True
    for y, x in np.ndindex(9, 9):
        saliency = np.zeros((9, 9))
        saliency[y, x] = 1
        nearest = min(np.hypot(y - a, x - b) for a, b in np.argwhere(mask))
        assert pointing(saliency, mask) == float(mask[y, x])
        assert pointing(saliency, mask, tolerance=2) == float(nearest <= 2)
    assert pointing(np.zeros((9, 9)), mask) == pytest.approx(mask.mean())


def test_rank_correlation_against_scipy_and_mass_by_hand():
    for saliency, mask in cases():
        expected = stats.spearmanr(saliency.ravel(), mask.ravel()).statistic
        assert spearman(saliency, mask) == pytest.approx(expected)
        positive = [v for v in saliency.ravel() if v > 0]
        inside = [v for v, m in zip(saliency.ravel(), mask.ravel(), strict=True) if v > 0 and m]
        assert mass_inside(saliency, mask) == pytest.approx(sum(inside) / sum(positive))


@pytest.mark.parametrize("name", list(metrics_of("localisation")))
def test_the_facts_of_a_metric_hold(name):
    """A perfect map is at the good end, an opposite one is not better, and every value lies in the range."""
    metric = METRICS[name]
    for saliency, mask in cases():
        perfect, opposite = (metric(m.astype(float), mask) for m in (mask, ~mask))
        assert metric.low <= metric(saliency, mask) <= metric.high and metric.source
        assert perfect == pytest.approx(1) and metric.higher_is_better and opposite < 1
        if metric.chance is not None:
            rng = np.random.default_rng(0)
            random = [metric(rng.random(mask.shape), mask) for _ in range(400)]
            assert abs(np.mean(random) - metric.chance) < 4 * np.std(random) / 20


ORDERED = [n for n in metrics_of("localisation") if n != "mass_inside"]


@pytest.mark.parametrize("name", ORDERED)
def test_only_the_order_of_values_counts(name):
    for saliency, mask in cases():
        assert METRICS[name](saliency, mask) == pytest.approx(METRICS[name](np.exp(3 * saliency) - 7, mask))


def test_a_flat_map_is_at_chance():
    mask = np.zeros((8, 8), bool)
    mask[1:4, 2:5] = True
    flat, share = np.full((8, 8), 0.3), mask.mean()
    assert auroc(flat, mask) == 0.5 and np.isnan(spearman(flat, mask))
    for function in (average_precision, best_iou, iou, pointing, mass_inside):
        assert function(flat, mask) == pytest.approx(share)


@pytest.mark.parametrize("name", list(metrics_of("localisation")))
def test_what_cannot_be_compared_is_refused(name):
    good, mask = np.random.default_rng(0).random((4, 4)), np.eye(4, dtype=bool)
    gaps = np.where(mask, np.nan, good)
    assert "4 of its 16" in refusal(METRICS[name], gaps, mask)
    assert "on_grid" in refusal(METRICS[name], good, np.eye(5, dtype=bool))
    for empty in (np.zeros((4, 4), bool), np.ones((4, 4), bool)):
        assert "empty or covers everything" in refusal(METRICS[name], good, empty)
    assert "one map at a time" in refusal(METRICS[name], good[None], mask)


def test_localisation_scores_every_step_and_labels_it():
    rng = np.random.default_rng(0)
    coords = {"step": [2, 5], "timestep": ("step", [900.0, 400.0])}
    maps = xr.DataArray(rng.random((2, 4, 4)), coords, ("step", "y", "x"))
    mask = ndimage.zoom(np.eye(4), 3, order=0) > 0
    found = localisation(maps, mask)
    assert set(found) == set(metrics_of("localisation")) and found.auroc.dims == ("step",)
    for i, name in np.ndindex(2, len(found)):
        expected = METRICS[list(found)[name]](on_grid(maps.values[i], 12, 12), mask)
        assert found[list(found)[name]].values[i] == pytest.approx(expected)
    assert found.timestep.values.tolist() == [900, 400] and found.iou.attrs["higher_is_better"] is True
    assert found.spearman.attrs["range"] == (-1, 1)
    assert "other proportions" in refusal(localisation, maps, np.zeros((12, 9), bool))


def test_questions_have_near_misses():
    assert 'Did you mean "localisation"?' in refusal(metrics_of, "localization")


# Intervals.


def test_paired_differences_are_narrower_where_scenes_share_their_difficulty():
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 1, 40)
    a, b = hard + 0.2 + rng.normal(0, 0.05, 40), hard + rng.normal(0, 0.05, 40)
    found = paired(a, b)
    expected = stats.ttest_rel(a, b).confidence_interval()
    assert found.low == pytest.approx(expected.low, abs=0.01) and found.high == pytest.approx(expected.high, abs=0.01)
    assert found.excludes(0) and not found.excludes(0.2)
    assert "same order" in refusal(paired, a, b[:-1])
    assert "at least 2" in refusal(paired, [1.0, np.nan], [1.0, 1.0])


def test_over_scenes_is_bootstrap_at_every_place():
    from denoscope.evaluation import bootstrap

    values = xr.DataArray(np.random.default_rng(0).random((12, 3)), dims=("scene", "step"), attrs={"range": (0, 1)})
    values[1:, 2] = np.nan
    found = over_scenes(values)
    for step in (0, 1):
        one = bootstrap(values.values[:, step])
        got = [float(found[name][step]) for name in ("mean", "low", "high", "count")]
        assert got == pytest.approx([one.mean, one.low, one.high, 12])
    assert np.isnan(found["mean"][2]) and found["count"][2] == 1 and found.attrs["range"] == (0, 1)
    for too_few in (values[:1], values.rename(scene="picture")):
        assert "at least 2" in refusal(over_scenes, too_few)


# Baselines.


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_are_methods(trace, name):
    found = Baseline(BASELINES[name])(trace, [1, 3])
    assert found.saliency.dims == ("step", "y", "x") and found.saliency.shape == (2, 8, 8)
    assert np.isfinite(found.saliency).all() and name in found.attrs["title"]
    again = Baseline(BASELINES[name])(trace, [3]).saliency
    assert (again.values == found.saliency.sel(step=[3]).values).all()


def test_baselines_by_hand(trace):
    step = trace[1]
    x = step.sample[0].double().numpy()
    assert np.allclose(magnitude_map(step), np.sqrt((x**2).sum(axis=0)))
    picture = step.clean()[0].detach().movedim(0, -1).double().numpy()
    assert np.allclose(clean_edges(step), edge_map(picture).reshape(8, 4, 8, 4).mean(axis=(1, 3)))
    assert (random_map(step) != random_map(step, seed=1)).all() and (random_map(step) != random_map(trace[2])).all()


def test_gradient_magnitude_against_differences(trace):
    step = trace[2]
    rng, h = np.random.default_rng(0), 1e-2
    found = gradient_magnitude(step)
    for y, x in rng.integers(0, 8, (3, 2)):
        slopes = []
        for channel in range(4):
            moved = step.sample.repeat(2, 1, 1, 1)
            moved[0, channel, y, x] += h
            moved[1, channel, y, x] -= h
            up, down = step.predict_original(moved).double().sum(dim=(1, 2, 3)).tolist()
            slopes.append((up - down) / (2 * h))
        assert found[y, x] == pytest.approx(np.linalg.norm(slopes), rel=0.02)
    weights = np.arange(4.0)
    linear = gradient_magnitude(step, lambda x: x.sum(dim=(2, 3)) @ x.new_tensor(weights))
    assert np.allclose(linear, np.linalg.norm(weights))


def test_every_shift_has_its_auroc():
    rng = np.random.default_rng(0)
    saliency, mask = rng.random((5, 7)).round(1), rng.random((5, 7)) > 0.7
    every = auroc_of_shifts(saliency, mask)
    for shift in np.ndindex(5, 7):
        assert every[shift] == pytest.approx(auroc(np.roll(saliency, shift, (0, 1)), mask))
