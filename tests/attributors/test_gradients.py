"""Integrated Gradients, Gradient SHAP and Occlusion: closed forms, identities, and Captum called directly."""

import threading
import time
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from captum import attr
from small import PIPELINES, refusal

import denoscope
from denoscope.attributors.gradients import GradientShap, IntegratedGradients, black_and_itself, seeded
from denoscope.attributors.occlusion import Occlusion
from denoscope.attributors.quadrature import POINTS, fejer
from denoscope.errors import InputError
from denoscope.targets import ClassScore, Target
from denoscope.vision import frames
from denoscope.vision.classifiers import load_classifier

SIDE = 16
PLAIN = dict(size=(SIDE, SIDE), mean=(0.0,) * 3, std=(1.0,) * 3)


def classifier_of(module: torch.nn.Module):
    return load_classifier(module.eval(), labels=["one", "two", "three"], **PLAIN)


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return classifier_of(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * SIDE * SIDE, 3)))


@pytest.fixture
def curved():
    torch.manual_seed(1)
    layers = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Tanh(), torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten()
    return classifier_of(
        torch.nn.Sequential(*layers, torch.nn.Linear(128, 16), torch.nn.SiLU(), torch.nn.Linear(16, 3))
    )


@pytest.fixture
def sequence():
    picture = torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    return frames.blend(picture, count=5, draws=2, seed=3)


def weights(classifier, index: int) -> torch.Tensor:
    return classifier.module[1].weight[index].reshape(3, SIDE, SIDE)


def test_a_linear_score_has_its_closed_form(linear, sequence):
    target, images = ClassScore(linear, "two"), sequence[3].images
    truth = (weights(linear, 1) * (images - 0.25)).sum(1).detach().numpy()
    integrated = IntegratedGradients(target, n_steps=3, baselines=0.25)(sequence, [3])["saliency"].values[0]
    assert integrated == pytest.approx(truth, abs=1e-5)
    quarter = lambda x: torch.full_like(x, 0.25)  # noqa: E731
    shap = GradientShap(target, n_samples=2, stdevs=0.0, baselines=quarter)(sequence, [3])["saliency"].values[0]
    assert shap == pytest.approx(truth, abs=1e-5)


def test_disjoint_windows_of_a_linear_score_add_up_to_it(linear, sequence):
    target, images = ClassScore(linear, 0), sequence[3].images
    saliency = Occlusion(target, (3, 4, 4), (3, 4, 4))(sequence, [3])["saliency"].values[0]
    blocks = (weights(linear, 0) * images).sum(1).detach().unfold(1, 4, 4).unfold(2, 4, 4).sum((-1, -2)).numpy()
    assert saliency[:, ::4, ::4] == pytest.approx(blocks, abs=1e-4)
    assert saliency[:, 1::4, 2::4] == pytest.approx(saliency[:, ::4, ::4])


def test_integrated_gradients_are_complete(curved, sequence):
    maps = IntegratedGradients(ClassScore(curved, "one"), n_steps=60)(sequence)
    for frame in sequence:
        score = curved(frame.images)[:, 0] - curved(torch.zeros(1, 3, SIDE, SIDE))[:, 0]
        assert maps["saliency"].sel(step=frame.index).sum(("y", "x")).values == pytest.approx(
            score.detach().numpy(), abs=1e-4
        )
    assert maps["convergence_delta"].dims == ("step", "draw") and np.abs(maps["convergence_delta"]).max() < 1e-4


def test_the_convergence_delta_is_what_is_missing(curved, sequence):
    maps = IntegratedGradients(ClassScore(curved, "one"), n_steps=2, method="riemann_left")(sequence, [4])
    score = curved(sequence[4].images)[:, 0] - curved(torch.zeros(1, 3, SIDE, SIDE))[:, 0]
    missing = maps["saliency"].sum(("y", "x")).values[0] - score.detach().numpy()
    assert maps["convergence_delta"].values[0] == pytest.approx(missing, abs=1e-5) and np.abs(missing).max() > 1e-3


@pytest.mark.parametrize("number", POINTS[:4])
def test_the_points_of_an_integral_are_exact_for_polynomials_and_those_of_the_rule_before_are_among_them(number: int):
    places, rule = fejer(number)
    for power in range(number):
        assert rule @ places**power == pytest.approx(1 / (power + 1), abs=1e-12)
    further, _ = fejer(2 * number + 1)
    assert further[1::2] == pytest.approx(places, abs=1e-15)


def test_as_many_points_as_a_map_needs_agree_with_many_points(curved, sequence):
    target, tolerance = ClassScore(curved, "one"), 1e-3
    truth = IntegratedGradients(target, n_steps=200)(sequence)["saliency"]
    maps = IntegratedGradients(target, n_steps=None, tolerance=tolerance)(sequence)
    apart = abs(maps["saliency"] - truth).sum(("y", "x")) / abs(truth).sum(("y", "x"))
    assert float(apart.max()) <= tolerance
    zero = curved(torch.zeros(1, 3, SIDE, SIDE))[:, 0]
    change = np.stack([(curved(frame.images)[:, 0] - zero).detach().numpy() for frame in sequence])
    assert (np.abs(maps["convergence_delta"].values) <= tolerance * np.abs(change) + 1e-5).all()
    assert set(np.unique(maps["points_used"])) <= set(map(float, POINTS))


def test_points_are_computed_once_and_the_bar_is_full(curved, sequence):
    """A sample that is finished costs no more, and a finer rule computes its own points alone."""
    target, done = Counted(ClassScore(curved, "one")), []
    method = IntegratedGradients(target, n_steps=None, tolerance=0.05)
    used = method(sequence, [4], advance=done.append)["points_used"].values
    ends = 2 * len(sequence[4].images)  # the samples and their baselines
    assert target.rows == [used.sum() + ends] and sum(done) == method.work(sequence[4])


def test_a_linear_score_needs_two_rules_and_a_score_with_a_kink_needs_more(linear, sequence):
    assert (IntegratedGradients(ClassScore(linear, "two"), n_steps=None)(sequence, [3])["points_used"] == 11).all()
    kinked = ClassScore(classifier_of(Kinked(linear.module)), "two")
    maps = IntegratedGradients(kinked, n_steps=None, tolerance=1e-3)(sequence, [3])
    assert (maps["points_used"] > 11).all()


class Kinked(torch.nn.Module):
    """A score whose gradient falls to a tenth after a third of the way from black to a picture."""

    def __init__(self, linear: torch.nn.Module):
        super().__init__()
        self.linear = linear

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        logits = self.linear(pictures) - self.linear(torch.zeros_like(pictures))
        return torch.where(pictures.flatten(1).norm(dim=1, keepdim=True) < LENGTH / 3, logits, 0.1 * logits)


LENGTH = (3 * SIDE * SIDE) ** 0.5
"""About the length of a picture of noise."""


@dataclass(frozen=True)
class Counted(Target):
    """A target that counts the samples that are scored."""

    target: Target
    rows: list[float] = field(default_factory=lambda: [0])

    def at(self, step):
        score = self.target.at(step)

        def counted(samples: torch.Tensor) -> torch.Tensor:
            self.rows[0] += len(samples)
            return score(samples)

        return counted


def test_gradient_shap_without_noise_and_with_one_baseline_tends_to_integrated_gradients(curved, sequence):
    target = ClassScore(curved, "three")
    truth = IntegratedGradients(target, n_steps=60)(sequence, [4])["saliency"].values
    zero = torch.zeros_like
    errors = [
        np.abs(GradientShap(target, n, stdevs=0.0, baselines=zero)(sequence, [4])["saliency"].values - truth).mean()
        for n in (20, 2000)
    ]
    assert errors[1] < 0.2 * errors[0] and errors[1] < 0.02 * np.abs(truth).mean()


def test_every_method_is_captums(curved, sequence):
    target, x = ClassScore(curved, 2), sequence[2].images[:1]
    alone = frames.blend(sequence.clean, count=5, draws=1, seed=3)
    module, zero = curved.module, torch.zeros(1, 3, SIDE, SIDE)
    np.random.seed(7)
    torch.manual_seed(7)
    direct = {
        GradientShap(target, n_samples=11, stdevs=0.1, seed=7): attr.GradientShap(module).attribute(
            x, black_and_itself(x), n_samples=11, stdevs=0.1, target=2
        ),
        IntegratedGradients(target, n_steps=7): attr.IntegratedGradients(module).attribute(x, zero, 2, n_steps=7),
        Occlusion(target, (3, 5, 4), (3, 2, 3)): attr.Occlusion(module).attribute(
            x, (3, 5, 4), strides=(3, 2, 3), target=2, baselines=0
        ),
    }
    for attributor, attributions in direct.items():
        own, summed = attributor(alone, [2])["saliency"].values[0, 0], attributions.detach()[0].sum(0).numpy()
        # Captum gives the fall of a window to each of its three channels.
        assert own == pytest.approx(summed / (3 if isinstance(attributor, Occlusion) else 1), abs=1e-5)


@pytest.mark.parametrize("size", [1, 3, 64])
def test_the_batch_does_not_change_the_map(curved, sequence, size):
    target = ClassScore(curved, 1)
    for one, other in (
        (IntegratedGradients(target, 9), IntegratedGradients(target, 9, internal_batch_size=size)),
        (GradientShap(target, 9), GradientShap(target, 9, internal_batch_size=size)),
        (Occlusion(target), Occlusion(target, perturbations_per_eval=size)),
    ):
        assert one(sequence, [1, 4])["saliency"].values == pytest.approx(
            other(sequence, [1, 4])["saliency"].values, abs=1e-5
        )


def test_work_is_what_is_done(curved, sequence):
    target = ClassScore(curved, 1)
    for attributor in (
        IntegratedGradients(target, 9),
        GradientShap(target, 9),
        Occlusion(target, (3, 5, 4), (3, 2, 3)),
    ):
        done = []
        attributor(sequence, [2], advance=done.append)
        assert attributor.work(sequence[2]) <= sum(done) <= attributor.work(sequence[2]) + 4


def test_random_streams_go_on_as_if_nothing_had_happened(curved, sequence):
    torch.manual_seed(5)
    np.random.seed(5)
    truth = torch.rand(1).item(), np.random.rand()
    torch.manual_seed(5)
    np.random.seed(5)
    GradientShap(ClassScore(curved, 1), 3)(sequence, [1])
    assert (torch.rand(1).item(), np.random.rand()) == truth


@pytest.mark.parametrize("number", [0, 14])
def test_through_the_denoiser_the_map_adds_up_to_the_score(stable_diffusion, curved, number):
    trace = denoscope.load(stable_diffusion).trace("a red circle", seed=1, num_inference_steps=15)
    target, step = ClassScore(curved, "two"), trace[number]
    half = lambda x: x / 2  # noqa: E731  (a random U-Net's normalisation layers jump at the zero sample)
    maps = IntegratedGradients(target, n_steps=60, baselines=half)(trace, [number])
    assert maps["saliency"].dims == ("step", "y", "x")
    with torch.no_grad():
        score = [
            curved(curved.normalise(step.clean(sample)))[0, 1].item() for sample in (step.sample, half(step.sample))
        ]
    assert float(maps["saliency"].sum()) == pytest.approx(score[0] - score[1], rel=0.02, abs=1e-4)
    for attributor in (GradientShap(target, 4), Occlusion(target)):
        found = attributor(trace, [number])["saliency"]
        assert found.shape == (1, *step.sample.shape[-2:]) and np.ptp(found.values) > 0


def test_options_are_kept_as_plain_values(curved):
    from denoscope.attributors.base import options_of

    kept = options_of(GradientShap(ClassScore(curved, 1), 9))
    assert kept["n_samples"] == 9 and kept["baselines"] == "black_and_itself" and kept["target_label"] == 1
    assert all(isinstance(value, (int, float, str, tuple, list)) for value in kept.values())


@pytest.mark.parametrize(
    "make",
    [
        lambda t: IntegratedGradients(t, n_steps=1),
        lambda t: GradientShap(t, n_samples=0),
        lambda t: GradientShap(t, stdevs=-1.0),
        lambda t: Occlusion(t, (3, 0, 4)),
        lambda t: Occlusion(t, (3, 4)),
        lambda t: ClassScore(t.classifier, "four"),
    ],
)
def test_options_that_cannot_be(curved, make):
    with pytest.raises(InputError) as caught:
        make(ClassScore(curved, 1))
    assert "\n" not in str(caught.value)


def test_a_window_larger_than_the_picture(curved, sequence):
    with pytest.raises(InputError, match="larger"):
        Occlusion(ClassScore(curved, 1), (3, 17, 4))(sequence, [1])


class Watched(torch.nn.Module):
    """A network that notes which threads call it, and with how many of torch's own."""

    def __init__(self, network: torch.nn.Module):
        super().__init__()
        self.network, self.calls = network, set()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.add((threading.get_ident(), torch.get_num_threads()))
        return self.network(x)


@pytest.mark.parametrize(
    "made", [lambda t: IntegratedGradients(t, 20), lambda t: GradientShap(t, 20), Occlusion], ids=["ig", "shap", "occ"]
)
def test_chunks_side_by_side_give_the_same_maps(curved, sequence, made):
    watched = Watched(curved.module)
    target = ClassScore(classifier_of(watched), 1)
    alone = made(target)(sequence, [1, 4])
    usual = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        watched.calls.clear()
        together = made(target)(sequence, [1, 4])
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(usual)
    own = threading.get_ident()
    assert {threads for ident, threads in watched.calls if ident != own} == {1}
    assert together["saliency"].values == pytest.approx(alone["saliency"].values, abs=1e-6)


def test_what_fails_in_a_chunk_is_raised(curved, sequence):
    class Failing(torch.nn.Module):
        def forward(self, x):
            if len(x) > 1:
                raise RuntimeError("a fault of the network")
            return curved.module(x)

    usual = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(RuntimeError, match="a fault of the network"):
            GradientShap(ClassScore(classifier_of(Failing()), 1), 20)(sequence, [1])
    finally:
        torch.set_num_threads(usual)


def test_baselines_broadcast_to_the_samples(linear, sequence):
    """(3, h, w), (3, 1, 1) and a function are the number that they spell out."""
    target = ClassScore(linear, "two")
    spellings = [0.25, torch.full((3, SIDE, SIDE), 0.25), torch.full((3, 1, 1), 0.25, dtype=torch.float64)]
    spellings += [torch.full((1, 3, SIDE, SIDE), 0.25), lambda samples: torch.full_like(samples, 0.25)]
    for attributor in (IntegratedGradients(target, n_steps=3), GradientShap(target, 2, stdevs=0.0), Occlusion(target)):
        maps = [replace(attributor, baselines=spelling)(sequence, [1, 2]).saliency for spelling in spellings]
        for other in maps[1:]:
            np.testing.assert_allclose(other, maps[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "baselines", ["black", None, True, np.zeros(3), torch.zeros(3, 5, 5), torch.zeros(7), lambda samples: "black"]
)
def test_baselines_of_another_kind_or_shape_are_refused(linear, sequence, baselines):
    target = ClassScore(linear, "two")
    for kind in (IntegratedGradients, GradientShap, Occlusion):
        assert "The baselines" in refusal(kind(target, baselines=baselines), sequence, [1])
    too_many = IntegratedGradients(target, baselines=torch.zeros(5, 3, SIDE, SIDE))
    assert "does not broadcast" in refusal(too_many, sequence)


@dataclass(frozen=True)
class Without(Target):
    """A score that has no gradient with respect to the samples."""

    score: object

    def at(self, step):
        return self.score


def test_a_target_without_gradients_is_refused(linear, sequence):
    linear.module.requires_grad_(True)
    detached, constant = (
        Without(lambda x: x.detach().sum((1, 2, 3))),
        Without(lambda x: linear.module(0 * x.detach())[:, 0]),
    )
    for target in (detached, constant):
        for kind in (IntegratedGradients, GradientShap):
            assert "no gradient" in refusal(kind(target), sequence, [1])
        assert np.isfinite(Occlusion(target)(sequence, [1]).saliency).all()


def test_inference_mode_of_the_caller_changes_nothing(curved, sequence):
    for attributor in (IntegratedGradients(ClassScore(curved, 1), 4), GradientShap(ClassScore(curved, 1), 2)):
        with torch.inference_mode():
            inside = attributor(sequence, [2])
        np.testing.assert_array_equal(inside.saliency, attributor(sequence, [2]).saliency)


def test_random_draws_in_several_threads_are_those_of_one():
    """The random streams are the whole process's: a thread that draws must not disturb another, nor the user."""
    with seeded(3):
        expected = torch.rand(4)
    before = torch.get_rng_state()
    draws: list[torch.Tensor] = []

    def draw() -> None:
        for _ in range(50):
            with seeded(3):
                time.sleep(0)
                draws.append(torch.rand(4))

    threads = [threading.Thread(target=draw) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(draws) == 200 and all(torch.equal(each, expected) for each in draws)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_maps_are_those_of_the_same_weights_in_single(curved, dtype):
    """Samples and their gradients are summed in float32; only the networks compute in half precision."""
    maps, target = {}, ClassScore(curved, "one")
    for wide in (torch.float32, dtype):
        pipeline = PIPELINES["stable-diffusion"]().to(dtype).to(wide)
        pipeline.set_progress_bar_config(disable=True)
        latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)).to(wide)
        trace = denoscope.load(pipeline).trace(
            "a red circle", latents=latents, num_inference_steps=2, height=64, width=64
        )
        for method in (IntegratedGradients(target, n_steps=8), GradientShap(target, 8)):
            found = method(trace, [0])
            maps.setdefault(method.title, []).append(found.saliency.values.ravel())
    for title, (single, half) in maps.items():
        assert np.corrcoef(single, half)[0, 1] > 0.97, title
