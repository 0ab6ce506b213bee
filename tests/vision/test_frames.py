"""Frames are the formulas they say they are."""

import math
from itertools import pairwise
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from small import SCHEDULERS, refusal

import denoscope
from denoscope.recording.noise import noise_level
from denoscope.vision.frames import blend, ddpm, draw_noise, frames_of
from denoscope.vision.noising import BETA_SCHEDULES

CLEAN = torch.linspace(-2, 2.5, 3 * 6 * 5).reshape(3, 6, 5)


# The noise.


def test_a_draw_is_the_same_whatever_the_number_of_draws():
    five = draw_noise((3, 8, 8), 5, seed=7)
    for draws in (1, 2, 4):
        assert torch.equal(draw_noise((3, 8, 8), draws, seed=7), five[:draws])
    assert torch.corrcoef(five.flatten(1)).fill_diagonal_(0).abs().max() < 0.3  # 192 values: 4 standard errors


def test_neighbouring_seeds_share_no_draw():
    draws = torch.cat([draw_noise((3, 8, 8), 3, seed=seed) for seed in range(4)])
    assert len(draws.unique(dim=0)) == 12


def test_noise_is_standard_normal_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    noise = draw_noise((3, 64, 64), 4, seed=0).flatten().double()
    assert torch.equal(torch.get_rng_state(), before)
    n = len(noise)
    assert noise.mean().abs() < 4 / math.sqrt(n) and (noise.var() - 1).abs() < 4 * math.sqrt(2 / n)
    assert ((noise.abs() < 1).double().mean() - math.erf(1 / math.sqrt(2))).abs() < 0.01


@pytest.mark.parametrize("seed", [-1, 2**64, 0.5, None, "0", True])
def test_what_is_no_seed(seed):
    assert "The seed is" in refusal(draw_noise, (3, 2, 2), 1, seed)


# The blend.


@pytest.mark.parametrize("count, draws", [(1, 1), (7, 3), (100, 2)])
def test_blend_is_the_formula(count, draws):
    """Oracle: the published line, in float64, element by element."""
    noise = draw_noise(CLEAN.shape, draws, seed=3).double()
    made = blend(CLEAN, count, draws, seed=3)
    assert (len(made), made.draws, made.kind, made.space) == (count, draws, "blend", "input")
    assert torch.equal(made.clean, CLEAN) and torch.equal(made[0].images, noise.float())
    for i, frame in enumerate(made):
        tau = (count - i) / count
        assert frame.images.shape == (draws, *CLEAN.shape)
        torch.testing.assert_close(frame.images.double(), (1 - tau) * CLEAN + tau * noise, atol=1e-6, rtol=0)
        assert (frame.index, frame.timestep, frame.space) == (i, count - i, "input")
        expected = 2 * math.log(i / (count - i)) if i else -math.inf
        assert frame.log_snr == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("make", [blend, ddpm], ids=["blend", "ddpm"])
def test_one_noise_per_draw_is_reused_at_every_frame(make):
    """Identity: any two frames, solved for the picture and the noise, give the same two back."""
    made = make(CLEAN.double(), count=20, draws=2, seed=5)
    noise = draw_noise(CLEAN.shape, 2, seed=5).double()
    for i, j in [(0, 10), (3, 4), (12, 19)]:
        first, second = made[i], made[j]
        determinant = first.a * second.b - first.b * second.a
        torch.testing.assert_close(
            (first.a * second.images - second.a * first.images) / determinant, noise, atol=1e-9, rtol=0
        )
        clean = (second.b * first.images - first.b * second.images) / determinant
        torch.testing.assert_close(clean, CLEAN.double().expand(2, 3, 6, 5), atol=1e-9, rtol=0)


def test_more_draws_extend_fewer():
    one, five = blend(CLEAN, 4, 1, seed=2), blend(CLEAN, 4, 5, seed=2)
    assert all(torch.equal(a.images, b.images[:1]) for a, b in zip(one, five, strict=True))


@pytest.mark.parametrize("make", [blend, ddpm], ids=["blend", "ddpm"])
def test_frames_hold_the_picture_and_the_noise_once(make):
    clean = torch.rand(3, 64, 64)
    made = make(clean, count=100, draws=5)
    held = [value for frame in made for value in vars(frame).values() if isinstance(value, torch.Tensor)]
    held += [value for value in vars(made).values() if isinstance(value, torch.Tensor)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in held}
    assert sum(storages.values()) == (1 + 5) * clean.nbytes
    assert clean.untyped_storage().data_ptr() in storages
    before = clean.clone()
    made[1].images.zero_()
    assert torch.equal(made.clean, before) and made[1].images.abs().sum() > 0


def test_frames_are_a_sequence():
    made = blend(CLEAN, 10, 2)
    assert made[-1] is made[9] and made[2:4] == (made[2], made[3]) and list(made) == [made[i] for i in range(10)]
    assert repr(made) == (
        'Frames "blend": 10, time steps 10 to 1, log-SNR -inf to 4.39, 2 draw(s) of (3, 6, 5), space "input"'
    )
    statistics = dict(noise_mean=[0.0] * 3, noise_std=[1.0] * 3)
    assert made.options == dict(kind="blend", count=10, draws=2, seed=0, **statistics)
    assert "tensor" not in repr(made[3])


def test_a_picture_that_asks_for_gradients_gives_frames_that_do_not():
    made = blend(CLEAN.clone().requires_grad_(), 3)
    assert not made[1].images.requires_grad


def test_the_noise_has_the_mean_and_std_it_is_given():
    plain, made = blend(CLEAN, 4, 2, seed=2), blend(CLEAN, 4, 2, seed=2, mean=(0.1, 0.2, 0.3), std=(0.5, 1, 2))
    noise = plain[0].images
    expected = torch.tensor([0.1, 0.2, 0.3])[:, None, None] + torch.tensor([0.5, 1, 2])[:, None, None] * noise
    torch.testing.assert_close(made[0].images, expected)
    torch.testing.assert_close(made[3].images, 0.75 * CLEAN + 0.25 * expected)
    assert made[1].log_snr == plain[1].log_snr


@pytest.mark.parametrize(
    "options, said",
    [
        (dict(std=0.0), "std of the noise is 0.0"),
        (dict(std=(1, -1, 1)), "std of the noise is (1, -1, 1)"),
        (dict(mean=(0, 0)), "mean of the noise is (0, 0)"),
        (dict(mean="white"), "mean of the noise is 'white'"),
        (dict(std=float("nan")), "std of the noise is nan"),
    ],
)
def test_noise_that_cannot_be(options, said):
    assert said in refusal(blend, CLEAN, **options)


@pytest.mark.parametrize("make", [blend, ddpm], ids=["blend", "ddpm"])
@pytest.mark.parametrize(
    "options, said",
    [
        (dict(count=0), "count of frames is 0"),
        (dict(count=-5), "count of frames is -5"),
        (dict(count=2.5), "count of frames is 2.5"),
        (dict(count=True), "count of frames is True"),
        (dict(count=np.zeros((9, 9))), "count of frames is array"),
        (dict(draws=0), "number of draws is 0"),
        (dict(draws="two"), "number of draws is 'two'"),
        (dict(seed=-1), "seed is -1"),
    ],
)
def test_what_cannot_be_asked_for(make, options, said):
    assert said in refusal(make, CLEAN, **options)


@pytest.mark.parametrize(
    "clean, said",
    [
        (CLEAN[None], "shape (1, 3, 6, 5)"),
        (CLEAN[:1], "shape (1, 6, 5)"),
        (CLEAN.to(torch.int64), "int64"),
        (CLEAN[:, :0], "empty"),
        (CLEAN / 0, "NaN or infinite"),
        (CLEAN.numpy(), "ndarray"),
        (None, "NoneType"),
    ],
)
def test_what_cannot_be_noised(clean, said):
    assert said in refusal(blend, clean)


def test_numpy_integers_are_integers():
    made = blend(CLEAN, np.int64(3), np.int32(2), np.uint8(1))
    assert len(made) == 3 and all(type(made.options[key]) is int for key in ("count", "draws", "seed"))


# Schedulers.


def on_a_grid(scheduler, timesteps):
    scheduler.set_timesteps(timesteps=timesteps)
    return scheduler


def same(scheduler, timesteps):
    return scheduler


BETAS = {name: (lambda name=name: diffusers.DDPMScheduler(beta_schedule=name)) for name in BETA_SCHEDULES}
PLACED = {name: (make, same) for name, make in BETAS.items()} | {
    "ddpm": (SCHEDULERS["ddpm"], same),
    "ddim": (SCHEDULERS["ddim"], same),
    "pndm": (SCHEDULERS["pndm"], same),
    "euler": (SCHEDULERS["euler"], on_a_grid),
    "dpm-solver++": (SCHEDULERS["dpm-solver++"], on_a_grid),
}
"""A scheduler, and how one gets it to take free time steps in add_noise."""


@pytest.mark.parametrize("count", [7, 100])
@pytest.mark.parametrize("name", PLACED)
def test_ddpm_is_the_schedulers_own_add_noise(name, count):
    """Oracle: another instance of the same scheduler, asked with the picture and the noise."""
    make, place = PLACED[name]
    made = ddpm(CLEAN, make(), count, draws=2, seed=4)
    timesteps = [round(frame.timestep) for frame in made]
    reference, noise = place(make(), timesteps), draw_noise(CLEAN.shape, 2, seed=4)
    for frame, timestep in zip(made, timesteps, strict=True):
        expected = reference.add_noise(CLEAN.expand(2, 3, 6, 5), noise, torch.tensor([timestep, timestep]))
        torch.testing.assert_close(frame.images, expected, atol=1e-6, rtol=1e-6)


WALKERS = {
    **SCHEDULERS,
    "euler ancestral": diffusers.EulerAncestralDiscreteScheduler,
    "heun": diffusers.HeunDiscreteScheduler,
    "deis": diffusers.DEISMultistepScheduler,
    "single step": diffusers.DPMSolverSinglestepScheduler,
    "lms": diffusers.LMSDiscreteScheduler,
    "karras": lambda: SCHEDULERS["dpm-solver++"](use_karras_sigmas=True, algorithm_type="sde-dpmsolver++"),
    "karras euler": lambda: SCHEDULERS["euler"](use_karras_sigmas=True),
}


@pytest.mark.parametrize("name", WALKERS)
def test_log_snr_is_the_noise_level_of_the_time_step(name):
    """Oracle: ᾱ of the training schedule, read by `noise_level` as in a trace; closed form log(ᾱ / (1 − ᾱ))."""
    scheduler = WALKERS[name]()
    made = ddpm(CLEAN, scheduler, 40)
    reference = diffusers.DDPMScheduler(
        **{key: scheduler.config[key] for key in ("beta_start", "beta_end", "beta_schedule")}
    )
    for frame in made:
        level = noise_level(reference, frame.timestep, None, 1.0)
        assert frame.log_snr == pytest.approx(level.log_snr, abs=1e-5)
        product = float(reference.alphas_cumprod[int(frame.timestep)])
        assert frame.log_snr == pytest.approx(math.log(product / (1 - product)), abs=1e-5)


@pytest.mark.parametrize("count", [1, 3, 48, 80, 100, 999, 1000])
def test_time_steps_are_even_and_fall(count):
    timesteps = [frame.timestep for frame in ddpm(CLEAN, count=count)]
    assert timesteps[0] == 999 and all(a > b for a, b in pairwise(timesteps)) and timesteps[-1] >= 0
    for i, timestep in enumerate(timesteps):
        exact = (1 - i / count) * 1000
        assert abs(timestep - max(exact - 1, 0)) <= 0.5 + 1e-9
        if abs(exact % 1 - 0.5) > 1e-6:
            assert timestep == max(round(exact) - 1, 0)


def test_a_name_is_a_ddpm_scheduler():
    for name in BETA_SCHEDULES:
        named, given = ddpm(CLEAN, name, 5), ddpm(CLEAN, BETAS[name](), 5)
        assert all(torch.equal(a.images, b.images) for a, b in zip(named, given, strict=True))
        assert named.options["scheduler"] == "DDPMScheduler" and named.options["scheduler_beta_schedule"] == name
    assert ddpm(CLEAN, None, 5).options == ddpm(CLEAN, "linear", 5).options


def test_the_scheduler_is_left_as_it_is():
    """In the middle of a run, on a grid of its own."""
    scheduler = SCHEDULERS["euler"](use_karras_sigmas=True)
    scheduler.set_timesteps(7)
    scheduler.set_begin_index(3)
    timesteps, sigmas = scheduler.timesteps.clone(), scheduler.sigmas.clone()
    used, fresh = ddpm(CLEAN, scheduler, 10), ddpm(CLEAN, SCHEDULERS["euler"](), 10)
    assert all(torch.equal(a.images, b.images) for a, b in zip(used, fresh, strict=True))
    assert torch.equal(scheduler.timesteps, timesteps) and torch.equal(scheduler.sigmas, sigmas)
    assert scheduler.begin_index == 3 and scheduler.config.use_karras_sigmas


class Broken(diffusers.DDPMScheduler):
    def add_noise(self, original_samples, noise, timesteps):
        raise RuntimeError("no\nnoise here")


class Curved(diffusers.DDPMScheduler):
    def add_noise(self, original_samples, noise, timesteps):
        return super().add_noise(original_samples, noise, timesteps) + original_samples * noise


class Level(diffusers.DDPMScheduler):
    def add_noise(self, original_samples, noise, timesteps):
        return super().add_noise(original_samples, noise, torch.full_like(timesteps, 500))


@pytest.mark.parametrize(
    "scheduler, said",
    [
        ("liner", 'Did you mean "linear"'),
        ("", "Allowed: linear, scaled_linear, squaredcos_cap_v2"),
        (5, "int cannot noise"),
        (diffusers.FlowMatchEulerDiscreteScheduler(), "use the blend"),
        (SimpleNamespace(add_noise=max), "SimpleNamespace cannot noise"),
        (SimpleNamespace(add_noise=max, config=SimpleNamespace(num_train_timesteps=200)), "add_noise failed"),
        (diffusers.RePaintScheduler(), "add_noise failed, NotImplementedError"),
        (Broken(), "add_noise failed, RuntimeError: no noise here"),
        (Curved(), "not a x + b ε"),
        (Level(), "does not fall"),
        (diffusers.DDPMScheduler(num_train_timesteps=50), "a count from 1 to 50"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_is_no_scheduler(scheduler, said):
    assert said in refusal(ddpm, CLEAN, scheduler)


# A trace.


@pytest.fixture(scope="module")
def two_pictures(components):
    """One recording for this file: three steps, two pictures."""
    components.scheduler = SCHEDULERS["dpm-solver++"]()
    return denoscope.load(components).trace(["a circle", "a square"], seed=0, num_inference_steps=3)


@pytest.fixture
def trace(two_pictures):
    return two_pictures.picture(0)


def test_clean_frames_are_the_steps_clean_predictions(trace):
    made = frames_of(trace)
    assert (made.kind, made.space, made.draws, made.options) == ("clean", "image", 1, {"kind": "clean"})
    for frame, step in zip(made, trace, strict=True):
        assert torch.equal(frame.images, step.clean()) and not frame.images.requires_grad
        assert (frame.index, frame.timestep, frame.log_snr) == (step.index, step.timestep, step.log_snr)
        assert frame.space == "image" and frame.images.min() >= 0 and frame.images.max() <= 1


def test_sample_frames_are_the_decoded_samples(trace):
    made = frames_of(trace, "sample")
    decoded = torch.from_numpy(trace.samples_decoded()).movedim(-1, 1)
    assert torch.equal(torch.cat([frame.images for frame in made]), decoded)
    finished = np.asarray(trace.image, dtype=np.float32) / 255
    assert np.abs(made.clean.movedim(0, -1).numpy() - finished).max() <= 0.5 / 255 + 1e-4


def test_frames_of_a_trace_are_decoded_when_asked_for(trace, monkeypatch):
    decoded = []
    original = denoscope.Step.decode
    monkeypatch.setattr(denoscope.Step, "decode", lambda self, x: decoded.append(1) or original(self, x))
    made = frames_of(trace)
    assert len(decoded) == 1  # the finished picture
    assert torch.equal(made[2].images, made[2].images) and len(decoded) == 3


def test_a_grey_sample_is_shown_in_three_channels(trace, monkeypatch):
    monkeypatch.setattr(denoscope.Step, "decode", lambda self, x: x[:, :1].sigmoid())
    made = frames_of(trace, "sample")
    assert torch.equal(made[0].images, trace[0].sample[:, :1].sigmoid().repeat(1, 3, 1, 1))
    assert made.clean.shape == (3, *trace[0].sample.shape[2:])


def test_frames_are_of_one_picture(two_pictures):
    assert "frames_of(trace.picture(0))" in refusal(frames_of, two_pictures)
    second = frames_of(two_pictures.picture(1))[1].images
    assert torch.equal(second, two_pictures[1].picture(1).clean())
    assert not torch.equal(second, frames_of(two_pictures.picture(0))[1].images)


def test_what_a_trace_does_not_show(trace):
    assert 'Did you mean "sample"' in refusal(frames_of, trace, "samples")
