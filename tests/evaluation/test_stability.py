"""Stability: against scipy, and methods that are known to be stable, or not."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import xarray as xr
from linear import linear_trace
from scipy import stats
from small import refusal

from denoscope import DFRise
from denoscope.attributors.base import Attributor
from denoscope.evaluation import BASELINES, Baseline, agreement, neighbour_agreement, noise_agreement, seed_agreement
from denoscope.evaluation.stability import remade, with_noise


@dataclass(frozen=True)
class Drawn(Attributor):
    """A map that is the same for every seed but for noise of a known share."""

    seed: int = 0
    noise: float = 0.0

    def explain(self, step, advance):
        fixed = np.random.default_rng(step.index).normal(size=(20, 20))
        return {"saliency": fixed + self.noise * np.random.default_rng([self.seed, 1]).normal(size=(20, 20))}


def test_agreement_against_scipy():
    a, b = np.random.default_rng(0).random((2, 6, 7))
    assert agreement(a, b) == pytest.approx(stats.spearmanr(a.ravel(), b.ravel()).statistic)
    assert agreement(a, a**3) == pytest.approx(1) and agreement(a, -a) == pytest.approx(-1)
    assert np.isnan(agreement(a, np.ones_like(a)))
    assert "on_grid" in refusal(agreement, a, b[:5]) and "NaN" in refusal(agreement, a, np.where(b < 0.1, np.nan, b))


def test_agreement_over_seeds_is_that_of_the_noise_in_a_map(trace):
    same = seed_agreement(Drawn(), trace, [0, 2])
    assert same.dims == ("step", "pair") and np.allclose(same, 1) and same.pair.values.tolist() == [
        "0, 1", "0, 2", "1, 2"]  # fmt: skip
    noisy = seed_agreement(Drawn(noise=1.0), trace, [0, 2], seeds=(3, 4))
    assert np.allclose(noisy, 6 / np.pi * np.arcsin(0.25), atol=0.1)  # Spearman's figure for a correlation of 1/2
    maps = [Drawn(seed, 1.0)(trace, [0]).saliency.values[0] for seed in (3, 4)]
    assert float(noisy.sel(step=0)[0]) == pytest.approx(agreement(*maps))
    assert "no seed" in refusal(seed_agreement, Baseline(BASELINES["|x_t|"]), trace)
    assert "no two" in refusal(seed_agreement, Drawn(), trace, seeds=(1, 1))


def test_more_masks_agree_better(trace):
    few, many = (float(seed_agreement(DFRise.paper(num_masks=n), trace, [1], seeds=(0, 1))[0, 0]) for n in (16, 256))
    assert many > few


def test_agreement_of_neighbours():
    rng = np.random.default_rng(0)
    maps = rng.random((3, 5, 5))
    maps[2] = 2 * maps[1]
    coords = {"step": [2, 4, 8], "timestep": ("step", [9.0, 5.0, 1.0])}
    found = neighbour_agreement(xr.DataArray(maps, coords, ("step", "y", "x")))
    assert found.values == pytest.approx([agreement(maps[0], maps[1]), 1])
    assert found.step.values.tolist() == [4, 8] and found.timestep.values.tolist() == [5, 1]
    assert "fewer than two" in refusal(neighbour_agreement, xr.DataArray(maps[:1], dims=("step", "y", "x")))


def test_noise_moves_a_map_as_far_as_it_should():
    """|x_t| of a sample with noise: the agreement of a sample with itself falls as noise grows."""
    trace, magnitude = linear_trace(), Baseline(BASELINES["|x_t|"])
    found = [float(noise_agreement(magnitude, trace, [1], amount=amount).mean()) for amount in (1e-4, 0.05, 0.5, 50)]
    assert found[0] > 0.999 and found[0] > found[1] > found[2] > found[3] and abs(found[3]) < 0.3
    step = trace[1]
    noisy = with_noise(step, 0.1, [0, 0])
    assert float((noisy.sample - step.sample).std() / step.sample.std()) == pytest.approx(0.1, rel=0.15)
    assert torch.equal(noisy.model_output, step.predict(noisy.sample)) and not noisy.model_output.requires_grad
    assert (noise_agreement(Baseline(BASELINES["centre prior"]), trace, [1, 2], draws=2).values > 1 - 1e-9).all()
    for wrong in (dict(amount=0), dict(draws=0)):
        assert "above 0" in refusal(noise_agreement, magnitude, trace, **wrong)


def test_remade_steps_say_what_was_recorded(trace):
    again = remade(trace, [1, 3])
    for step, before in zip(again, trace, strict=True):
        apart = (step.model_output - before.model_output).abs().max() / before.model_output.abs().max()
        assert float(apart) < 1e-5 and torch.equal(step.sample, before.sample)
    assert again[0] is trace[0] and again[1] is not trace[1]
