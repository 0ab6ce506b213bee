"""LIME against a slow re-implementation with DDIM's own step, and on a step whose answer is known."""

import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.spatial import distance
from skimage.segmentation import quickshift
from small import SCHEDULERS, pixel_unet, refusal

import denoscope
from denoscope import Lime
from denoscope.attributors.base import method
from denoscope.attributors.lime import RidgeSums, proximity
from denoscope.recording.noise import NoiseLevel
from denoscope.recording.steps import Step
from denoscope.recording.traces import Trace

CLEAN = NoiseLevel(0.6, 0.8, 1.0, "sample")


@dataclass(frozen=True, eq=False)
class Plain:
    """A denoiser that is a function, as a replay, and a decoder that is one."""

    function: object

    def __call__(self, samples):
        return self.function(samples)

    decode = __call__


def striped(samples):
    """A picture of three flat stripes, 5 rows each, whatever the samples are."""
    colours = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.9, 0.1], [0.1, 0.1, 0.9]])
    return colours.T.repeat_interleave(5, dim=1)[None, :, :, None].expand(len(samples), 3, 15, 9)


def step_of(predict, decode=striped, height=15, width=9):
    """A last step, whose next sample is what `predict` says of the clean sample."""
    x = torch.randn(1, 2, height, width, generator=torch.Generator().manual_seed(4))
    return Trace([Step(0, 500.0, CLEAN, x, predict(x), x, Plain(predict), Plain(decode))], None, {}, None)


def slow_lime(step, scheduler, lime):
    """LIME, sample by sample: DDIM's step, SciPy's cosine distance, ridge as a least-squares problem."""
    sample, (h, w) = step.sample, step.sample.shape[-2:]
    picture = step.decode(step.prev_sample)[0].detach().numpy()
    block = picture.shape[1] // h
    colours = picture.reshape(3, h, block, w, block).mean(axis=(2, 4)).transpose(1, 2, 0).astype(float)
    found = quickshift(colours, kernel_size=lime.kernel_size or 1, max_dist=lime.max_dist, ratio=lime.ratio)
    segments = sorted(np.unique(found))
    draws = np.random.default_rng([lime.seed, len(segments)]).random((lime.num_samples, len(segments))) < 0.5
    rows, values, weights = [], [], []
    for draw in draws:
        kept = np.zeros((h, w), np.float32)
        for number, on in zip(segments, draw, strict=True):
            kept[found == number] = on
        masked = sample * torch.from_numpy(kept)
        after = scheduler.step(step.predict(masked).detach(), int(step.timestep), masked).prev_sample
        d = distance.cosine(1.0 * draw, np.ones(len(segments))) if draw.any() else 1.0
        rows.append([1, *draw])
        values.append(after[0].mean(dim=0).flatten().double().numpy())
        weights.append(np.sqrt(np.exp(-(d**2) / lime.kernel_width**2)))
    root = np.sqrt(weights)[:, None]
    shrink = np.sqrt(lime.alpha) * np.eye(1 + len(segments))[1:]
    x = np.concatenate([root * np.array(rows, float), shrink])
    y = np.concatenate([root * np.array(values), np.zeros((len(segments), h * w))])
    beta = np.linalg.lstsq(x, y, rcond=None)[0]
    saliency = np.zeros((h, w))
    for number, row in zip(segments, beta[1:], strict=True):
        saliency[found == number] = np.abs(row).sum()
    rest, mean = values - np.array(rows) @ beta, np.average(values, axis=0, weights=weights)
    explained = 1 - (root**2 * rest**2).sum() / (root**2 * (values - mean) ** 2).sum()
    return saliency, explained, found


@pytest.fixture
def ddim(stable_diffusion):
    stable_diffusion.scheduler = SCHEDULERS["ddim"]()
    trace = denoscope.load(stable_diffusion).trace("a red circle", seed=1, num_inference_steps=4)
    return trace, stable_diffusion.scheduler


@pytest.mark.parametrize("options", [{}, dict(alpha=0.1, kernel_width=0.6, seed=3, batch_size=3, ratio=1.0)])
def test_map_is_the_slow_one(ddim, options):
    trace, scheduler = ddim
    lime = Lime(num_samples=30, **options)
    maps = lime(trace, [1, 3])
    for index in (1, 3):
        saliency, explained, found = slow_lime(trace[index], scheduler, lime)
        here = maps.sel(step=index)
        assert len(np.unique(found)) > 1
        assert np.array_equal(np.unique(here.segment, return_inverse=True)[1], np.unique(found, return_inverse=True)[1])
        assert np.allclose(here.saliency, saliency, rtol=1e-4)
        assert float(here.r_squared) == pytest.approx(explained, abs=1e-4)


def test_pixel_models():
    import diffusers

    pipeline = diffusers.DDIMPipeline(pixel_unet(), SCHEDULERS["ddim"]())
    trace = denoscope.load(pipeline).trace(seed=1, num_inference_steps=3)
    lime = Lime(num_samples=30)
    saliency, explained, _ = slow_lime(trace[1], pipeline.scheduler, lime)
    result = lime(trace, [1])
    assert np.allclose(result.saliency[0], saliency, rtol=1e-4)
    assert float(result.r_squared[0]) == pytest.approx(explained, abs=1e-4)


def test_the_one_segment_that_matters_is_found():
    """x0 is 3 everywhere times whether the middle stripe is there: its coefficient is 3 at each of 135 positions."""
    there = lambda x: 3 * (x[:, :1, 5:10] != 0).any(dim=(1, 2, 3), keepdim=True).float().expand_as(x)  # noqa: E731
    result = Lime(alpha=1e-9, max_dist=10)(step_of(there))
    assert len(np.unique(result.segment)) == 3
    assert np.allclose(result.saliency[0, 5:10], 3 * 15 * 9, rtol=1e-5)
    assert np.abs(result.saliency[0, :5]).max() < 1e-4 and np.abs(result.saliency[0, 10:]).max() < 1e-4
    assert float(result.r_squared[0]) == pytest.approx(1)


def test_magnitudes_count_and_not_signs():
    """The upper stripe pushes half of the picture up and half of it down; both are change."""
    sign = torch.where(torch.arange(9) < 4, 1.0, -1.0)
    push = lambda x: sign * (x[:, :1, :1, :1] != 0).float().expand_as(x)  # noqa: E731
    result = Lime(alpha=1e-9, max_dist=10)(step_of(push))
    assert np.allclose(result.saliency[0, :5], 15 * 9, rtol=1e-5)


def test_sums_do_not_depend_on_chunks_and_repeated_masks_cost_one_call():
    sizes = []

    def predict(x):
        sizes.append(len(x))
        return x.cumsum(dim=-1).tanh()

    trace = step_of(predict)
    whole = Lime(max_dist=10)(trace)
    assert sum(sizes) - 2 == 2**3  # the prediction, its check, and every mask of three segments once
    one = Lime(max_dist=10, batch_size=1)(trace)
    assert sizes[-8:] == [1] * 8
    assert np.allclose(one.saliency, whole.saliency, rtol=1e-5)
    done = []
    assert Lime(max_dist=10)(trace, advance=done.append).identical(whole) and sum(done) == 1000 == Lime().work(trace[0])


def test_the_ridge_is_the_textbooks():
    """Oracle: centred by the weighted means, (Xᵀ W X + α I)⁻¹ Xᵀ W Y."""
    rng = np.random.default_rng(0)
    masks, values, w = rng.random((40, 5)) < 0.5, rng.normal(3, 1, (40, 7)), rng.random(40)
    sums = RidgeSums.zero(5, 7)
    for part in np.split(np.arange(40), [3, 20]):
        sums = sums.with_samples(masks[part], values[part], w[part])
    x, y = (part - np.average(part, axis=0, weights=w) for part in (masks.astype(float), values))
    expected = np.linalg.inv(x.T @ np.diag(w) @ x + 0.7 * np.eye(5)) @ x.T @ np.diag(w) @ y
    assert np.allclose(sums.coefficients(0.7)[1:], expected)
    assert np.isnan(RidgeSums.zero(5, 1).with_samples(masks, np.ones((40, 1)), w).explained(np.eye(6)[:, :1]))


def test_weights_are_those_of_the_cosine_distance():
    masks = np.array([[1, 1, 1, 1], [1, 0, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]])
    far = [distance.cosine(mask, np.ones(4)) for mask in masks[:3]]
    assert np.allclose(proximity(masks, 0.25), [np.exp(-((d / 0.25) ** 2) / 2) for d in [*far, 1]])


def test_a_constant_picture_gives_a_flat_map_and_a_warning():
    constant = step_of(torch.tanh, decode=lambda x: torch.full((len(x), 3, 30, 18), 0.5))
    for trace, kernel_size in ((constant, None), (step_of(torch.tanh), 9)):
        with pytest.warns(UserWarning, match=r"one segment there.*on a grid of 15 × 9") as warned:
            result = Lime(num_samples=20, kernel_size=kernel_size)(trace)
        assert "\n" not in str(warned[0].message) and warned[0].filename.endswith("lime.py")
        assert (
            np.ptp(result.saliency.values) == 0 and float(result.saliency.max()) > 0 and int(result.segment.max()) == 0
        )


def test_the_kernel_follows_the_grid(monkeypatch):
    """The published 4 cells belong to a grid of 64."""
    asked = []

    def record(colours, **options):
        asked.append(options)
        return np.arange(colours.shape[0] * colours.shape[1]).reshape(colours.shape[:2]) % 2

    monkeypatch.setattr("skimage.segmentation.quickshift", record)
    for side in (64, 96, 16):
        decode = lambda x: torch.linspace(0, 1, 8 * x.shape[3]).expand(len(x), 3, 8 * x.shape[2], -1)  # noqa: E731
        Lime(num_samples=4)(step_of(torch.tanh, decode, side, side))
    assert [options["kernel_size"] for options in asked] == [4, 6, 1]
    assert all(options["max_dist"] == 200 and options["ratio"] == 0.2 for options in asked)


def test_the_missing_extra_names_its_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    assert 'pip install "denoscope[lime]"' in refusal(method, "lime")


@pytest.mark.parametrize(
    "options, said",
    [
        (dict(num_samples=1), "num_samples of LIME is 1"),
        (dict(num_samples=10.0), "whole number"),
        (dict(kernel_size=0.5), "kernel_size of LIME is 0.5"),
        (dict(max_dist=0), "max_dist"),
        (dict(ratio=1.5), "ratio"),
        (dict(alpha=0), "alpha"),
        (dict(kernel_width=0), "kernel_width"),
        (dict(batch_size=0), "batch_size"),
    ],
)
def test_options_out_of_range_are_refused(options, said):
    assert said in refusal(Lime, **options)


def test_lime_by_its_name():
    assert method("lime") == Lime()
