"""Infidelity and resampling: against Captum, a slow loop, and linear denoisers whose answers are exact."""

import numpy as np
import pytest
import torch
import xarray as xr
from captum.metrics import infidelity as captums
from linear import linear_trace
from small import refusal

from denoscope.evaluation import (
    GaussianNoise,
    OfFeatures,
    Probe,
    Resampling,
    Squares,
    WithinMask,
    infidelities,
    infidelity,
    resampling,
    root_mean_square,
)
from denoscope.evaluation.infidelity import infidelity_beyond_area, optimal_scale, relative_infidelity
from denoscope.evaluation.resampling import advantage, elsewhere, top_region
from denoscope.targets import Closeness, Similarity, Target


class Weighted(Target):
    """Σ w x̂0 of fixed weights w: linear in the sample where the denoiser is."""

    def at(self, step):
        weights = torch.arange(step.sample[0].numel()).reshape(step.sample.shape).to(step.sample).cos()
        return lambda samples: (weights * step.predict_original(samples)).sum(dim=(1, 2, 3))


def gradient_of(step, target):
    x = step.sample.detach().clone().requires_grad_()
    return torch.autograd.grad(target.at(step)(x).sum(), x)[0][0].numpy()


def test_the_gradient_of_a_linear_target_is_faithful():
    step = linear_trace()[1]
    gradient = gradient_of(step, Weighted())
    for perturbation, phi in (
        (GaussianNoise(0.3), gradient),
        (Squares(fill=0.2), (gradient * (step.sample[0].numpy() - 0.2)).sum(axis=0)),
    ):
        found = Probe.of(step, Weighted(), perturbation, count=32).infidelity(phi)
        size = np.mean(Probe.of(step, Weighted(), perturbation, count=32).measured ** 2)
        assert found["infidelity"] < 1e-8 * size and found["relative_infidelity"] < 1e-8
        assert found["scale"] == pytest.approx(1, abs=1e-4)
        halved = Probe.of(step, Weighted(), perturbation, count=32).infidelity(phi / 2)
        assert halved["scale"] == pytest.approx(2, abs=1e-4) and halved["relative_infidelity"] < 1e-8
        assert halved["infidelity"] == pytest.approx(size / 4, rel=1e-4)
        wrong = Probe.of(step, Weighted(), perturbation, count=32).infidelity(-phi)
        assert wrong["relative_infidelity"] == 1 and wrong["scale"] == 0


@pytest.mark.parametrize("normalize", [False, True])
def test_infidelity_against_captum(trace, normalize):
    step, target, count = trace[1], Closeness(), 16
    phi = np.random.default_rng(0).normal(size=step.sample.shape[1:])
    rng = np.random.default_rng([0, step.index])
    taken, _ = GaussianNoise(0.5).draw(step.sample, count, rng)
    expected = captums(
        target.at(step),
        lambda inputs: (taken, inputs - taken),
        step.sample,
        torch.from_numpy(phi)[None],
        n_perturb_samples=count,
        max_examples_per_batch=count,
        normalize=normalize,
    )
    probe = Probe.of(step, target, GaussianNoise(0.5), count=count)
    predicted = probe.predicted(phi)
    beta = np.mean(predicted * probe.measured) / np.mean(predicted**2) if normalize else 1.0
    assert infidelity(beta * predicted, probe.measured) == pytest.approx(float(expected), rel=1e-4)


def test_the_scale_is_the_best_there_is():
    rng = np.random.default_rng(0)
    predicted, measured = rng.normal(size=50), rng.normal(size=50) + 1
    predicted += measured
    best = relative_infidelity(predicted, measured)
    slow = min(infidelity(b * predicted, measured) for b in np.linspace(0, 2, 20_001)) / np.mean(measured**2)
    assert best == pytest.approx(slow, rel=1e-6) and 0 < best < 1
    assert relative_infidelity(np.zeros(5), np.ones(5)) == 1 and np.isnan(relative_infidelity(np.ones(5), np.zeros(5)))
    assert optimal_scale(np.zeros(5), np.ones(5)) == 0


def test_the_predictions_of_the_area_are_taken_out():
    rng = np.random.default_rng(0)
    area, more = rng.random(40) + 0.5, rng.normal(size=40)
    measured = 3 * area + more
    residual = measured - area * np.linalg.lstsq(area[:, None], measured, rcond=None)[0]
    assert infidelity_beyond_area(more, measured, area) < 1e-6
    assert infidelity_beyond_area(more - 7 * area, measured, area) < 1e-6  # whatever constant the map has
    for constant in (area, -2 * area, 0 * area):
        assert infidelity_beyond_area(constant, measured, area) == 1
    assert infidelity_beyond_area(-more, measured, area) == 1 and np.isnan(infidelity_beyond_area(more, area, area))
    partly = more + rng.normal(size=40)
    _, left, *_ = np.linalg.lstsq(np.stack([area, partly], 1), measured, rcond=None)
    assert infidelity_beyond_area(partly, measured, area) == pytest.approx(left.item() / (residual @ residual))


def test_squares_are_squares_of_every_size():
    sample = torch.randn(1, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    taken, weights = Squares(fill=0.5).draw(sample, 200, np.random.default_rng(0))
    sides = set()
    for mask in weights[:, 0].numpy():
        rows, columns = np.nonzero(mask)
        side = np.ptp(rows) + 1
        assert side == np.ptp(columns) + 1 and mask.sum() == side**2
        sides.add(int(side))
    assert sides == {1, 2, 3} and torch.equal(taken, weights * (sample - 0.5))
    assert (weights.sum(dim=0) > 0).all()


def test_infidelities_of_every_step(trace):
    maps = xr.DataArray(np.random.default_rng(0).random((2, 8, 8)), {"step": [1, 3]}, ("step", "y", "x"))
    found = infidelities(trace, maps, Closeness(), count=8, batch_size=3)
    for step in (1, 3):
        one = Probe.of(trace[step], Closeness(), count=8).infidelity(maps.sel(step=step).values)
        got = {name: float(value) for name, value in found.sel(step=step).items()}
        assert got == pytest.approx(one, rel=1e-4)
    assert found.relative_infidelity.attrs["higher_is_better"] is False
    assert "scalar=True" in refusal(infidelities, trace, maps, Similarity(), count=4)
    assert "at least 2" in refusal(infidelities, trace, maps, Closeness(), count=1)
    assert "NaN" in refusal(infidelities, trace, maps.where(maps > 0.1), Closeness(), count=4)
    assert "sample's grid" in refusal(infidelities, trace, maps[:, :4], Closeness(), count=4)
    assert "largest is 0" in refusal(Squares, largest=0)


# Resampling.


def test_only_the_region_is_resampled_and_the_clean_prediction_stays(trace):
    step, saliency = trace[1], np.random.default_rng(3).random((8, 8))
    options = Resampling(share=0.25, draws=3)
    samples = options.samples(step, saliency)
    moved = (samples - step.sample).abs().amax(dim=1).numpy() > 1e-4
    region = top_region(saliency, 0.25)
    assert samples.shape == (6, 4, 8, 8) and (moved[:3] == region).all()
    assert (moved.sum(axis=(1, 2)) == 16).all() and all((moved[i] & region).sum() <= 4 for i in (3, 4, 5))
    noise = (step.level.scale * samples - step.level.alpha * step.pred_original_sample) / step.level.sigma
    assert float(noise[:3, :, region].std()) == pytest.approx(1, abs=0.15) and noise[:3, :, region].mean().abs() < 0.2
    both = region & moved[3]
    assert torch.allclose(noise[0][:, both], noise[3][:, both], atol=1e-4)  # one field of noise for both
    assert torch.equal(samples, options.samples(step, saliency))


def test_elsewhere_is_the_same_form_at_a_place_that_overlaps_little():
    rng = np.random.default_rng(0)
    region = np.zeros((8, 8), bool)
    region[1:4, 2:5] = True
    places = {elsewhere(region, rng).tobytes() for _ in range(200)}
    shifts = {np.roll(region, shift, (0, 1)).tobytes(): (np.roll(region, shift, (0, 1)) & region).sum()
              for shift in np.ndindex(8, 8)}  # fmt: skip
    assert places <= {form for form, overlap in shifts.items() if overlap == 0}
    assert len(places) > 30  # of 39 that there are: every place has its chance
    large = rng.random((8, 8)) < 0.8
    least = np.sort([(np.roll(large, s, (0, 1)) & large).sum() for s in np.ndindex(8, 8)])
    assert all((elsewhere(large, rng) & large).sum() <= least[15] for _ in range(50))


def test_resampling_against_a_slow_loop(trace):
    saliency = np.random.default_rng(1).random((8, 8))
    maps = xr.DataArray(saliency[None], {"step": [2]}, ("step", "y", "x"))
    mask = np.zeros((32, 32), bool)
    mask[5:15, 10:25] = True
    distances = {"picture": root_mean_square, "object": WithinMask(mask), "mean": OfFeatures(lambda p: p.mean((2, 3)))}
    options = Resampling(draws=2, batch_size=2)
    found = resampling(trace, maps, distances, options)
    with torch.no_grad():
        pictures = []
        for sample in [*trace[2].sample, *options.samples(trace[2], saliency)]:
            x = trace[3].next_sample(trace[2].next_sample(sample[None]))
            pictures.append(trace.model.decode(x)[0].movedim(0, -1).numpy())
    for i in range(4):
        difference = pictures[1 + i] - pictures[0]
        expected = [
            np.sqrt(np.mean(difference**2)),
            np.sqrt(np.mean(difference[mask] ** 2)),
            np.linalg.norm(difference.mean(axis=(0, 1))),
        ]
        got = found.change.isel(step=0, region=i // 2, draw=i % 2).values
        assert got == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert found.advantage.dims == ("distance", "step")
    assert float(found.advantage[1, 0]) == pytest.approx(advantage(*found.change[1, 0].values))


def test_a_map_of_what_is_kept_of_the_noise_has_the_advantage():
    """A linear denoiser of single positions: what is resampled changes there alone, so the mask tells."""
    trace = linear_trace(steps=6)
    mask = np.zeros((8, 8))
    mask[2:5, 3:6] = 1
    maps = xr.DataArray(np.stack([mask, -mask]), {"step": [1, 2]}, ("step", "y", "x"))
    found = resampling(trace, maps, {"object": WithinMask(mask > 0)}, Resampling(share=9 / 64, draws=4))
    assert float(found.advantage.sel(step=1)[0]) == pytest.approx(1) and float(found.advantage.sel(step=2)[0]) < 0


def test_advantage_is_balanced():
    assert advantage(np.array([3.0, 1.0]), np.array([1.0, 0.0])) == pytest.approx(0.6)
    assert advantage(np.ones(3), np.ones(3)) == 0 and np.isnan(advantage(np.zeros(2), np.zeros(2)))


def test_what_cannot_be_resampled_is_refused(trace):
    maps = xr.DataArray(np.zeros((1, 8, 8)), {"step": [9]}, ("step", "y", "x"))
    assert "no step 9" in refusal(resampling, trace, maps)
    maps = maps.assign_coords(step=[1])
    for mask in (np.zeros((32, 32)), np.ones((8, 8))):
        assert "pictures' size" in refusal(resampling, trace, maps, {"object": WithinMask(mask)}, Resampling(draws=1))
    assert "NaN" in refusal(resampling, trace, maps.where(maps > 1))
    assert "share is 1" in refusal(Resampling, share=1) and "draws is 0" in refusal(Resampling, draws=0)


# What interventions stand on: a step of another sample, and the way on from it.


def test_going_on_from_a_step(trace):
    x = trace[1].sample
    for step in trace.steps[1:]:
        x = step.next_sample(x)
    assert torch.equal(trace.continued(1, trace[1].sample), x)
    assert "no step 4" in refusal(trace.continued, 4, x)


def test_ddim_goes_on_to_the_recorded_picture():
    trace = linear_trace(steps=5)
    last = trace[-1].pred_original_sample
    assert torch.allclose(trace.continued(0, trace[0].sample), last, atol=1e-4 * float(last.abs().max()))


def test_a_step_of_another_sample(trace):
    step, other = trace[1], trace[1].sample.flip(-1).requires_grad_()
    moved = step.with_sample(other)
    assert torch.equal(moved.sample, other) and torch.equal(moved.model_output, step.predict(other))
    assert torch.equal(moved.prev_sample, step.next_sample(other)) and moved.next_level == step.next_level
    (gradient,) = torch.autograd.grad(moved.pred_original_sample.sum(), other)
    assert float(gradient.abs().max()) > 0
    again = trace.with_steps([moved])
    assert [s is t for s, t in zip(again, trace, strict=True)] == [True, False, True, True] and again[1] is moved
