"""Exact worlds: denoisers against the gradient of the density, and what is measured on them against closed forms."""

import functools
import math

import diffusers
import numpy as np
import pytest
import torch
from places import ROOT
from small import refusal
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

import denoscope
from denoscope import DFRise
from denoscope.attributors.masks import BalancedMasks
from denoscope.evaluation import auroc
from denoscope.targets import Closeness
from denoscope.timing.commitment import finish
from denoscope.worlds.exact import GaussianWorld, MixtureWorld, measured_emergence, ou_time

SCHEDULERS = {
    "ddpm": lambda: diffusers.DDPMScheduler(clip_sample=False),
    "ddim": lambda: diffusers.DDIMScheduler(clip_sample=False),
    "dpm-solver++": diffusers.DPMSolverMultistepScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
}
VARIANCES = [16.0, 4.0, 1.0, 0.25]


def gaussian() -> GaussianWorld:
    return GaussianWorld.cosines(8, VARIANCES)


def mixture() -> MixtureWorld:
    half = torch.full((1, 4, 4), 0.5)
    return MixtureWorld(torch.stack([half, -half]), 0.05)


@functools.cache
def window() -> GaussianWorld:
    return GaussianWorld.window(region())


def region() -> np.ndarray:
    mask = np.zeros((16, 16), bool)
    mask[3:9, 6:13] = mask[9:12, 6:9] = True
    return mask


# The denoisers.


def tweedie(density: torch.distributions.Distribution, y: torch.Tensor, variance: float) -> torch.Tensor:
    """y + s² ∇ log p_s(y) (Robbins 1956), p_s being the density of y."""
    flat = y.flatten(1).double().requires_grad_()
    (score,) = torch.autograd.grad(density.log_prob(flat).sum(), flat)
    return (flat + variance * score).detach().reshape(y.shape)


@pytest.mark.parametrize("variance", [0.04, 1.0, 9.0])
def test_the_denoisers_follow_the_density(variance):
    """Oracle: Tweedie's formula on torch's own distributions."""
    rng = torch.Generator().manual_seed(0)
    root = torch.randn(12, 12, generator=rng).double()
    mean = torch.randn(3, 2, 2, generator=rng).double()
    y = torch.randn(5, 3, 2, 2, generator=rng).double()
    noise, s2 = variance * torch.eye(12).double(), torch.tensor(variance).double()
    world = GaussianWorld.of_covariance(root @ root.T, mean)
    expected = tweedie(MultivariateNormal(mean.flatten(), root @ root.T + noise), y, variance)
    assert torch.allclose(world.denoised(y, s2), expected, atol=1e-6)
    means, weights = torch.randn(3, 3, 2, 2, generator=rng).double(), (0.2, 0.5, 0.3)
    parts = MultivariateNormal(means.flatten(1), 0.3 * torch.eye(12).double() + noise)
    expected = tweedie(MixtureSameFamily(Categorical(torch.tensor(weights).double()), parts), y, variance)
    assert torch.allclose(MixtureWorld(means, 0.3, weights).denoised(y, s2), expected, atol=1e-6)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("world", [gaussian, mixture])
def test_every_scheduler_is_recorded_and_replayed(scheduler, world):
    """Identity: at every step the predicted clean sample is the world's own, for the sample itself and for others."""
    exact, pipeline = world(), world().pipeline(SCHEDULERS[scheduler]())
    trace = denoscope.load(pipeline).trace(seed=3, num_inference_steps=8)
    for step in trace:
        level = step.level
        others = step.sample * torch.tensor([1.0, 0.5, -0.2])[:, None, None, None]
        expected = exact.denoised(level.scale * others / level.alpha, torch.tensor((level.sigma / level.alpha) ** 2))
        assert torch.allclose(step.predict_original(others), expected, atol=1e-3, rtol=1e-3)


def test_pictures_are_where_the_flow_brings_them():
    """Truth: without noise of the sampler's, u_kᵀ y shrinks from √(λ_k + s²) to √λ_k (the probability flow)."""
    world = gaussian()
    pipeline = world.pipeline(SCHEDULERS["dpm-solver++"]())
    trace = denoscope.load(pipeline).trace(seed=0, batch_size=3, num_inference_steps=50, output_type="np")
    level, variances = trace[0].level, torch.tensor(VARIANCES)
    first, last = world.coefficients(trace[0].sample / level.alpha), world.coefficients(trace[-1].prev_sample)
    expected = (variances / (variances + (level.sigma / level.alpha) ** 2)).sqrt()
    assert torch.allclose(last / first, expected.expand(3, -1), rtol=0.06)
    assert trace.images.shape == (3, 8, 8, 1) and np.allclose(
        trace.images[..., 0], (trace[-1].prev_sample[:, 0] / 2 + 0.5).clamp(0, 1), atol=1e-6
    )


def test_draws_have_the_moments_of_the_world():
    pictures = gaussian().draw(4000, seed=1)
    assert torch.allclose(gaussian().coefficients(pictures).var(dim=0), torch.tensor(VARIANCES), rtol=0.1)
    modes = mixture().draw(4000, seed=1)
    chosen = mixture().nearest(modes)
    assert float(chosen.float().mean()) == pytest.approx(0.5, abs=0.03)
    assert float((modes - mixture().means[chosen]).var()) == pytest.approx(0.05, rel=0.05)


def test_pictures_come_as_pil_too():
    trace = denoscope.load(gaussian().pipeline()).trace(seed=0, num_inference_steps=2)
    assert trace.image.size == (8, 8)


# Coarse before fine.


@pytest.mark.parametrize("level", [math.sqrt(0.5), 0.5])
@pytest.mark.parametrize("scheduler, steps, tolerance", [("dpm-solver++", 50, 0.03), ("ddim", 400, 0.05)])
def test_modes_emerge_at_their_variance(scheduler, steps, tolerance, level):
    """Truth: half of a mode's power is there at s² = λ_k, half of its amplitude at 3 λ_k."""
    world = gaussian()
    trace = denoscope.load(world.pipeline(SCHEDULERS[scheduler]())).trace(seed=5, num_inference_steps=steps)
    expected = np.array(VARIANCES) * (1 if level > 0.6 else 3)
    assert world.emergence(level) == pytest.approx(expected)
    assert measured_emergence(trace, world, level) == pytest.approx(expected, rel=tolerance)


def test_a_mode_that_is_there_from_the_start_has_no_emergence():
    world = GaussianWorld.cosines(4, [1e7, 1.0])
    trace = denoscope.load(world.pipeline(SCHEDULERS["dpm-solver++"]())).trace(seed=0, num_inference_steps=30)
    found = measured_emergence(trace, world)
    assert np.isnan(found[0]) and np.isfinite(found[1])


# Speciation.


def test_the_speciation_time_is_where_the_density_gets_two_peaks():
    """Oracle: curvature of log p along m at the middle, by automatic differentiation, changes sign there."""
    world, direction = mixture(), (mixture().means[0]).flatten().double()
    assert world.speciation == pytest.approx(4 - 0.05)
    assert ou_time(world.speciation) == pytest.approx(0.5 * math.log(4 + 0.05), rel=0.2)  # ½ ln Λ of Biroli et al.

    def curvature(variance: float) -> float:
        parts = MultivariateNormal(
            torch.stack([direction, -direction]), (0.05 + variance) * torch.eye(16, dtype=torch.double)
        )
        density = MixtureSameFamily(Categorical(torch.ones(2)), parts)
        along = lambda q: density.log_prob(q * direction / direction.norm())  # noqa: E731
        return float(torch.autograd.functional.hessian(along, torch.zeros((), dtype=torch.double)))

    assert curvature(world.speciation * 1.01) < 0 < curvature(world.speciation * 0.99)


def test_clones_and_u_turns_agree_as_often_as_predicted():
    """Truth: within four standard errors of 600 pictures, and the crossing at the speciation time within 0.3."""
    world, count = mixture(), 600
    trace = denoscope.load(world.pipeline()).trace(seed=0, num_inference_steps=50)
    clean, noise = (
        world.draw(count, seed=3),
        torch.randn(count, *world.shape, generator=torch.Generator().manual_seed(4)),
    )
    truth, measured, log_snr = world.nearest(clean), [], []
    for step in trace[22:38:5]:
        entries = [(step.index, sample) for sample in step.level.noisy(clean, noise).split(1)]
        ends = [
            world.nearest(finish(list(trace), entries, eta=eta, seed=seed, batch_size=count))
            for eta, seed in ((0.0, 0), (1.0, 0), (1.0, 1))
        ]
        kept, turned, agreed = ((a == b).float().mean().item() for a, b in ((ends[0], truth), ends[:0:-1], ends[1:]))
        predicted = world.agreement(step.log_snr)
        error = 4 * math.sqrt(0.25 / count)
        assert kept == pytest.approx(world.survival(step.log_snr), abs=error)
        assert turned == pytest.approx(predicted, abs=error) and agreed == pytest.approx(predicted, abs=error)
        measured.append(agreed), log_snr.append(step.log_snr)
    speciation = -math.log(world.speciation)
    assert world.agreement(speciation) == pytest.approx(0.775, abs=0.001)  # as in Biroli et al.
    assert np.interp(0.775, measured, log_snr) == pytest.approx(speciation, abs=0.3)


def test_agreement_against_drawing():
    """Oracle: the integral by drawing x_t and asking for its class, twice."""
    world = mixture()
    for log_snr in (-3.0, -1.4, 0.0):
        s2 = torch.tensor(math.exp(-log_snr))
        y = world.draw(40_000, 1) + s2.sqrt() * torch.randn(40_000, 1, 4, 4, generator=torch.Generator().manual_seed(2))
        p = world.posterior(y, s2)[:, 0]
        assert world.agreement(log_snr) == pytest.approx(float((p**2 + (1 - p) ** 2).mean()), abs=0.005)
        assert world.survival(log_snr) == pytest.approx(float(torch.maximum(p, 1 - p).mean()), abs=0.005)
    assert world.agreement(-20) == pytest.approx(0.5, abs=1e-3) and world.agreement(20) == pytest.approx(1)


# A known receptive field.


def test_what_lies_outside_the_window_makes_no_difference():
    world, y = window(), torch.randn(1, 1, 16, 16)
    moved = torch.where(torch.from_numpy(region()), y, y + 1)
    assert torch.allclose(world.denoised(y, torch.tensor(0.5)), world.denoised(moved, torch.tensor(0.5)), atol=1e-6)
    assert not torch.allclose(world.denoised(y, torch.tensor(0.5)), world.denoised(2 * y, torch.tensor(0.5)), atol=0.01)


@pytest.mark.parametrize("seed", [1, 2])
def test_df_rise_finds_the_receptive_field(seed):
    """Truth: AUROC of the map's size ≥ 0.99 early and late, keep-against-mask contrast of balanced single positions.

    The target is the squared change of the clean prediction: in noise space a step depends on all of x_t, since
    ε = (x_t − alpha x0) / sigma. The sign tells whether masking a position alone adds to the change or makes up for
    what others did, so the size of the map, not the map, says that the denoiser looks there.
    """
    trace = denoscope.load(window().pipeline()).trace(seed=seed, num_inference_steps=20)
    rise = DFRise(1024, masks=BalancedMasks(), target=Closeness(space="clean"))
    for saliency in rise(trace, [2, 18]).saliency.values:
        assert auroc(np.abs(saliency), region()) >= 0.99
        assert np.abs(saliency)[~region()].max() < 1e-3 * np.abs(saliency)[region()].max()


# What cannot be.


def test_what_cannot_be_is_refused():
    message = refusal(gaussian().pipeline, diffusers.DDIMScheduler(prediction_type="v_prediction"))
    assert "v_prediction" in message and "epsilon" in message
    assert "modes" in refusal(GaussianWorld.cosines, 2, [1.0] * 5)
    near = MixtureWorld(0.01 * mixture().means, 0.5)
    assert "one peak" in refusal(lambda: near.speciation)
    three = MixtureWorld(torch.randn(3, 1, 4, 4), 0.1)
    assert "two equal modes" in refusal(three.agreement, 0.0)
    assert "two equal modes" in refusal(MixtureWorld(mixture().means, 0.1, (0.3, 0.7)).survival, 0.0)


def test_the_documented_example_says_what_the_page_says():
    text = (ROOT / "docs" / "exact-worlds.md").read_text(encoding="utf-8")
    said: list[tuple] = []
    exec(text.split("```python\n")[1].split("```")[0], {"print": lambda *values: said.append(values)})
    (expected, measured), (areas,), (speciation, agreement) = said
    assert measured == pytest.approx(expected, rel=0.03)
    assert min(areas) >= 0.99
    assert speciation == pytest.approx(3.95, abs=1e-3) and agreement == pytest.approx(0.775, abs=1e-3)
