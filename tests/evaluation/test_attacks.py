"""Attacks: on maps and pictures whose best attack is known, and maps against the methods they stand for."""

import numpy as np
import pytest
import torch
from linear import linear_trace
from small import refusal

from denoscope import DFRise
from denoscope.attributors.estimators import keep_contrast
from denoscope.attributors.masks import GridMasks
from denoscope.errors import NumericsError
from denoscope.evaluation import Attack, EuclideanBall, MaximumBall, attacks, contrast_map, gradient_map
from denoscope.evaluation.baselines import gradient_magnitude
from denoscope.targets import Closeness

MASKS = GridMasks()


def masks_for(step, count=32):
    return np.concatenate(list(MASKS.stream(step.layout.shape, 0, count, count)))


@pytest.mark.parametrize("ball", [MaximumBall(0.3), EuclideanBall(0.3)], ids=["L∞", "L2"])
def test_balls_against_a_slow_search(ball):
    """The projection is the nearest point, and the steepest direction the best of many of the same length."""
    rng = np.random.default_rng(0)

    def length(delta):
        return float(delta.abs().max() if isinstance(ball, MaximumBall) else delta.square().mean().sqrt())

    delta = torch.from_numpy(rng.normal(size=(1, 1, 2, 2)))
    nearest = ball.project(delta, 0.3)
    assert length(nearest) == pytest.approx(0.3) and torch.equal(ball.project(nearest, 0.31), nearest)
    gradient = torch.from_numpy(rng.normal(size=(1, 1, 2, 2)))
    steepest = ball.steepest(gradient)
    assert length(steepest) == pytest.approx(1)
    for _ in range(500):
        other = torch.from_numpy(rng.normal(size=(1, 1, 2, 2)))
        other = other / length(other)
        assert float((gradient * other).sum()) <= float((gradient * steepest).sum()) + 1e-9
        assert float((delta - 0.3 * other).norm()) >= float((delta - nearest).norm()) - 1e-9


@pytest.mark.parametrize("ball", [MaximumBall(0.2), EuclideanBall(0.2)], ids=["L∞", "L2"])
def test_the_best_attack_on_a_linear_map_is_found(ball):
    """The map is one channel and the picture another, so all of the change can go into the map."""
    sample = torch.randn(1, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    attack = Attack(ball, iterations=60, tolerance=0.01)
    delta = attack(sample, lambda x: x[:, 0], lambda x: x[:, 1:])
    radius = 0.2 * float(sample.std())
    if isinstance(ball, MaximumBall):
        assert torch.allclose(delta[:, 0].abs(), torch.full((1, 6, 6), radius), rtol=0.02)
    else:
        assert float(delta.square().mean().sqrt()) == pytest.approx(radius, rel=1e-3)
        assert float(delta[:, 0].square().sum() / delta.square().sum()) > 0.95
    spread = (sample[:, 1:] - sample[:, 1:].mean()).square().sum()
    assert float(delta[:, 1].square().sum() / spread) <= 0.01**2 * 1.001


def test_nothing_is_moved_where_map_and_picture_are_the_same():
    sample = torch.randn(1, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    delta = Attack(MaximumBall(0.2), tolerance=1e-3)(sample, lambda x: x[:, 0], lambda x: x[:, 0])
    assert float(delta[:, 0].abs().max()) < 0.01
    assert torch.equal(Attack(tolerance=1e-9, iterations=3)(sample, lambda x: x[:, 0], lambda x: x), 0 * sample)


def test_contrast_map_is_df_rises(trace):
    step = trace[1]
    method = DFRise(num_masks=32, target=Closeness(), masks=MASKS, estimator=keep_contrast)
    found = contrast_map(step, Closeness(), masks_for(step))(step.sample)
    expected = method(trace, [1]).saliency.values[0]
    assert np.allclose(found[0].detach(), expected, atol=1e-4 * np.ptp(expected))
    assert "Give more masks" in refusal(contrast_map, step, Closeness(), np.ones((3, 8, 8)))


def test_gradient_map_is_the_square_of_the_baseline_and_has_a_gradient(trace):
    step = trace[1]
    assert np.allclose(gradient_map(step)(step.sample)[0].detach() ** 0.5, gradient_magnitude(step), rtol=1e-3)
    score = Closeness().at(step)
    moved = step.sample.flip(-1)
    found = gradient_map(step, Closeness())(moved)[0].detach() ** 0.5
    assert np.allclose(found, gradient_magnitude(step.with_sample(moved), score), rtol=1e-3)


def test_attacks_move_more_than_chance_and_keep_what_they_should(trace):
    """Through attention, whose fast kernels have no second derivative."""
    step, attack = trace[1], Attack(MaximumBall(0.1), iterations=8, tolerance=0.1)
    counts = []
    found = attacks(step, gradient_map(step), attack=attack, advance=counts.append)
    assert sum(counts) == 2 * 9 and found.saliency.shape == (3, 8, 8)
    by = {name: found.sel(attack=name) for name in found.attack.values}
    assert float(by["move the map"].picture_change) <= 0.1001 and float(by["move the picture"].map_change) <= 0.1001
    assert (found.change_maximum <= 0.1001).all() and float(by["random"].change_maximum) == pytest.approx(0.1)
    assert float(by["move the map"].map_change) > 0 and float(by["move the picture"].picture_change) > 0
    assert found.map_agreement.attrs["range"] == (-1, 1)
    again = attacks(step, gradient_map(step), attack=attack)
    assert np.allclose(again.map_change, found.map_change) and not trace.model.denoiser.conv_in.weight.grad


def test_a_final_picture_can_be_kept(trace):
    step = trace[2]
    picture = lambda samples: trace.continued(2, samples)  # noqa: E731
    found = attacks(step, contrast_map(step, Closeness(), masks_for(step, 16)), picture, Attack(iterations=4))
    moved = found.sel(attack="move the map")
    assert float(moved.picture_change) <= 0.0501 and np.isfinite(found.map_change).all()


def test_what_cannot_be_attacked_is_refused():
    step = linear_trace()[1]
    assert "above 0" in refusal(Attack, MaximumBall(0)) and "above 0" in refusal(Attack, iterations=0)
    assert "the same everywhere" in refusal(attacks, step, lambda x: 0 * x[:, 0])
    rooted = lambda x: (x[:, 0] - x[:, 0].detach()).sqrt() + x[:, 0].detach()  # noqa: E731
    assert "Closeness()" in refusal(attacks, step, rooted, attack=Attack(iterations=2), kind=NumericsError)
