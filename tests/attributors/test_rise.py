"""DF-RISE against a slow re-implementation, against all masks of a tiny latent, and on models whose answer is known."""

import math
from dataclasses import dataclass, replace
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from oracles import slow_terms
from scipy import stats
from small import PIPELINES

import denoscope
from denoscope import DFRise
from denoscope.attributors import estimators
from denoscope.attributors.estimators import MaskMoments
from denoscope.attributors.masks import BalancedMasks, GridMasks, Masks, PixelMasks
from denoscope.errors import InputError, Interrupted
from denoscope.recording.noise import NoiseLevel
from denoscope.recording.steps import Step
from denoscope.recording.traces import Trace
from denoscope.targets import Similarity, Target

FORMS = {"contrast": DFRise.contrast, "paper": DFRise.paper, "reference": DFRise.reference}


def slow_df_rise(step, masks, denoise, next_sample=False, numerator=1.0):
    """The paper's sum, one mask and one position at a time; also Σ M."""
    reference = step.prev_sample if next_sample else denoise(step.sample)
    total, kept = np.zeros(masks.shape[1:]), np.zeros(masks.shape[1:])
    for mask in masks:
        predicted = denoise(step.sample * torch.from_numpy(mask))
        pairs = zip(reference[0].double().numpy(), predicted[0].double().numpy(), strict=True)
        total += mask * np.mean([slow_terms(a, b, numerator=numerator)[2] for a, b in pairs], axis=0)
        kept += mask
    return total, kept


def slow_maps(step, masks, denoise):
    """The similarity map of every mask, (n, h, w)."""
    reference, out = denoise(step.sample)[0].double().numpy(), []
    for mask in masks:
        predicted = denoise(step.sample * torch.from_numpy(mask))[0].double().numpy()
        out.append(np.mean([slow_terms(a, b)[2] for a, b in zip(reference, predicted, strict=True)], axis=0))
    return np.array(out)


def slow_surrogates(sample, prediction, masks, keep=0.5):
    """Shares of energy and covariance that a mask keeps around each position, and the position's own, one by one."""
    reach = np.arange(-7, 8)
    weight = dict(zip(reach, np.exp(-(reach**2) / 4.5) / np.exp(-(reach**2) / 4.5).sum(), strict=True))
    channels, height, width = sample.shape
    shares, own = np.zeros((2, *masks.shape)), np.zeros((2, height, width))
    for i, j in np.ndindex(height, width):
        near = [(k, m) for k in range(height) for m in range(width) if abs(k - i) <= 7 and abs(m - j) <= 7]
        w = {(k, m): weight[k - i] * weight[m - j] for k, m in near}
        for c in range(channels):
            x, e = sample[c], prediction[c]
            mean, square = (sum(w[at] * e[at] ** power for at in near) for power in (1, 2))
            scale = np.sqrt((square - mean**2) * sum(w[at] * x[at] ** 2 for at in near))
            total = sum(w[at] * (sample[:, at[0], at[1]] ** 2).sum() for at in near)
            for at in near:
                parts = np.array([w[at] * x[at] ** 2 / total, w[at] * (e[at] - mean) * x[at] / scale / channels])
                shares[:, :, i, j] += parts[:, None] * (masks[:, at[0], at[1]] - keep)
                own[:, i, j] += parts if at == (i, j) else 0
    return shares, own


def slow_regression(masks, s, g, own, keep=0.5):
    """c + (1 − p)(β g_own + u) by least squares: the slopes over all positions, the rest at each, u shrunk."""
    centred = [v - v.mean(axis=0) for v in (*g, s)]
    slopes = np.linalg.lstsq(np.stack([v.ravel() for v in centred[:2]], 1), centred[2].ravel(), rcond=None)[0]
    rest, n = s - np.tensordot(slopes, g, 1), len(masks)
    fits, variances = np.zeros((*masks.shape[1:], 2)), np.zeros(masks.shape[1:])
    for at in np.ndindex(*masks.shape[1:]):
        line = stats.linregress(masks[(slice(None), *at)] - keep, rest[(slice(None), *at)])
        fits[at], variances[at] = (line.intercept, line.slope), line.stderr**2
    noise, effect = variances.mean(), fits[..., 1]
    signal = max(effect.var() - noise, 0)
    drawn = effect.mean() + signal / (signal + noise) * (effect - effect.mean())
    level = rest.mean(axis=0) - drawn * (masks.mean(axis=0) - keep)
    assert n > 2
    return level + (1 - keep) * (drawn + np.tensordot(slopes, own, 1))


def test_surrogates_are_their_formulas_and_their_means_are_known_where_a_position_is_kept():
    sample, prediction = np.random.default_rng(0).normal(size=(2, 2, 3, 3))
    masks = next(AllMasks().blocks((3, 3), 0))
    surrogates = estimators.Surrogates(sample, prediction, 0.5)
    expected, own = slow_surrogates(sample, prediction, masks)
    assert np.allclose(surrogates(masks), expected, atol=1e-9) and np.allclose(surrogates.itself, own, atol=1e-9)
    kept = (masks * surrogates(masks)).sum(axis=1) / masks.sum(axis=0)
    assert np.allclose(kept, 0.5 * own, atol=1e-9) and surrogates(masks).std() > 0.05


def guided(trace):
    """The pipeline's own guidance, written out: one call for each half."""
    unet, step = trace.model.pipeline.unet, trace[1]
    text = step.replay.kwargs["encoder_hidden_states"]

    def denoise(sample):
        with torch.no_grad():
            u, c = (unet(sample, int(step.timestep), encoder_hidden_states=half[None]).sample for half in text)
        return u + 7.5 * (c - u)

    return denoise


@pytest.mark.parametrize("form", ["paper", "reference"])
def test_against_a_slow_implementation(trace, form):
    attributor = replace(FORMS[form](num_masks=12, batch_size=5), masks=PixelMasks())
    maps = attributor(trace, steps=[1])
    masks = next(PixelMasks().stream((8, 8), 0, 12, 12))
    options = dict(next_sample=True, numerator=2.0) if form == "reference" else {}
    total, kept = slow_df_rise(trace[1], masks, guided(trace), **options)
    expected = total
    if form == "paper":
        sample, output = (values[0].double().numpy() for values in (trace[1].sample, trace[1].model_output))
        maps_of = slow_maps(trace[1], masks, guided(trace))
        expected = slow_regression(masks, maps_of, *slow_surrogates(sample, output, masks))
        ratio = replace(attributor, estimator=estimators.kept_ratio)(trace, steps=[1])
        assert np.allclose(ratio.saliency[0], total / kept, rtol=1e-3, atol=1e-4, equal_nan=True)
    assert np.allclose(maps.saliency[0], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("fill", [None, "zero", "mean"])
def test_contrast_is_a_difference_of_weighted_means(trace, fill):
    attributor = DFRise(num_masks=20, seed=3, estimator=estimators.keep_contrast)
    attributor = attributor if fill is None else replace(attributor, fill=fill)
    maps = attributor(trace, steps=[2])
    masks = next(GridMasks().stream((8, 8), 3, 20, 20)).astype(np.float64)
    score, sample = attributor.target.at(trace[2]), trace[2].sample.numpy()
    means = [[[[float(channel.mean())]] for channel in sample[0]]] if fill != "zero" else 0.0
    with torch.no_grad():
        s = np.array([float(score(torch.from_numpy(means + (sample - means) * m).float())) for m in masks])
    for i, j in np.ndindex(8, 8):
        m = masks[:, i, j]
        expected = (m * s).sum() / m.sum() - ((1 - m) * s).sum() / (1 - m).sum()
        assert float(maps.saliency[0, i, j]) == pytest.approx(expected, abs=1e-5)


def test_batch_size_and_order_of_steps_change_nothing(trace):
    maps = [form(num_masks=30, batch_size=b)(trace, steps=[3]) for form in FORMS.values() for b in (1, 7, 30)]
    for one, seven, thirty in zip(*[iter(maps)] * 3, strict=True):
        assert np.allclose(one.saliency, seven.saliency, rtol=1e-4) and np.allclose(
            one.saliency, thirty.saliency, rtol=1e-4
        )
    stopped = [
        DFRise.paper(num_masks=2000, until=0.9, batch_size=b)(trace, steps=[3]).masks_used.item() for b in (1, 7, 64)
    ]
    assert stopped[0] == stopped[1] == stopped[2] < 2000
    both = DFRise.paper(num_masks=30)(trace, steps=[3, 0])
    assert np.array_equal(both.sel(step=3).saliency, DFRise.paper(num_masks=30)(trace, steps=[3]).saliency[0])


# A world small enough to enumerate: a 3×3 latent has 512 masks.


class Small:
    """A denoiser on 3×3 that mixes neighbours nonlinearly."""

    def __init__(self, side=3, reach=1.0):
        rng = np.random.default_rng(0)
        place = np.stack(np.meshgrid(range(side), range(side), indexing="ij"), -1).reshape(-1, 2)
        near = np.exp(-((place[:, None] - place[None]) ** 2).sum(-1) / reach)
        self.weights = torch.tensor(near * rng.normal(size=(side * side,) * 2), dtype=torch.float32)

    def __call__(self, x):
        return torch.tanh(x.flatten(1) @ self.weights.T).reshape(x.shape)


def trace_of(denoiser, side=3, channels=1):
    """A trace of one step of a denoiser that is a plain function."""
    x = torch.randn(1, channels, side, side, generator=torch.Generator().manual_seed(4))
    level = NoiseLevel(0.6, 0.8, 1.0, "epsilon")
    replay = Plain(denoiser)
    step = Step(0, 500.0, level, x, denoiser(x), x, replay, Plain(denoiser))
    return Trace([step], None, {}, None)


@dataclass(frozen=True, eq=False)
class Plain:
    denoiser: object

    def __call__(self, samples):
        return self.denoiser(samples)

    def decode(self, samples):
        return samples


@dataclass(frozen=True)
class AllMasks(Masks):
    """Every mask there is, once a round."""

    def blocks(self, shape, seed):
        while True:
            yield np.array(list(product((0, 1), repeat=math.prod(shape))), np.float32).reshape(-1, *shape)


@pytest.mark.parametrize("form", ["paper", "contrast"])
@pytest.mark.parametrize("masks", [PixelMasks(), BalancedMasks()], ids=["independent", "balanced"])
def test_against_all_masks_and_coverage_of_the_standard_error(form, masks):
    """Within two standard errors of the exact map in 95 % of the places, over 60 seeds; balanced masks do no worse."""
    trace = trace_of(Small())
    exact = replace(FORMS[form](num_masks=512), masks=AllMasks())(trace).saliency.values
    inside = []
    for seed in range(60):
        maps = replace(FORMS[form](num_masks=128, seed=seed), masks=masks)(trace)
        inside.append(np.abs(maps.saliency.values - exact) <= 2 * maps.standard_error.values)
    coverage = np.mean(inside)
    assert coverage > 0.92 if isinstance(masks, PixelMasks) else coverage > 0.95
    if isinstance(masks, PixelMasks):
        assert coverage < 0.985  # and it is not merely wide


@pytest.mark.parametrize("shape_of", [(12, 1), (8, 2)])
def test_many_masks_give_the_contrast_of_means_within_its_error(shape_of):
    side, channels = shape_of
    trace = trace_of(Small(side, 2.0) if channels == 1 else lambda x: torch.tanh(3 * x), side=side, channels=channels)
    regressed, means = (
        DFRise(2048, estimator=estimator)(trace)
        for estimator in (estimators.regressed_contrast, estimators.keep_contrast)
    )
    apart = (regressed.saliency - means.saliency) / means.standard_error
    assert float((apart**2).mean()) < 1.5 and np.abs(apart).max() < 4
    assert float((regressed.standard_error**2).mean() / (means.standard_error**2).mean()) < 0.8


@dataclass(frozen=True)
class Chance(Target):
    """Noise: a number of each sample that has nothing to do with any place."""

    def at(self, step):
        return lambda samples: torch.sin(1e5 * samples.double().sum(dim=(1, 2, 3)))


def test_a_score_of_chance_is_not_called_reliable():
    trace = trace_of(lambda x: x, side=12)
    for seed in range(4):
        maps = DFRise(256, until=0.9, target=Chance(), seed=seed)(trace)
        assert maps.masks_used[0] == 256 and maps.reliability[0] < 0.6


def test_until_of_the_contrast_form_asks_for_fewer_masks_than_means_need():
    trace = trace_of(Small(12, 2.0), side=12)
    used = [
        int(DFRise(4096, until=0.98, estimator=estimator)(trace).masks_used[0])
        for estimator in (estimators.regressed_contrast, estimators.keep_contrast)
    ]
    assert used[0] < used[1]


@pytest.fixture(scope="module")
def coarse():
    """Forty contrast maps of a 12×12 denoiser from 500 coarse masks each, by their own seeds."""
    trace = trace_of(Small(12, 2.0), side=12)
    return [DFRise(num_masks=500, seed=seed)(trace) for seed in range(40)]


def test_the_standard_error_of_coarse_masks_is_their_spread(coarse):
    """Their blocks balance, so the error of independent masks would be more than half again as wide."""
    spread = np.std([maps.saliency.values for maps in coarse], axis=0, ddof=1)
    stated = np.mean([maps.standard_error.values for maps in coarse], axis=0)
    assert 0.85 < np.median(stated / spread) < 1.15


def test_the_reliability_of_coarse_masks_is_what_other_masks_agree_to(coarse):
    pairs = list(pairwise(coarse))
    agreement = np.mean([stats.spearmanr(a.saliency.values.ravel(), b.saliency.values.ravel())[0] for a, b in pairs])
    assert np.mean([maps.reliability[0] for maps in coarse]) == pytest.approx(agreement, abs=0.04)


def test_reliability_says_when_there_are_too_few_masks_for_two_halves():
    trace = trace_of(Small(12, 2.0), side=12)
    assert np.isnan(DFRise(num_masks=63)(trace).reliability[0])
    assert np.isfinite(DFRise(num_masks=64)(trace).reliability[0])
    grid = np.arange(12.0).reshape(3, 4)
    assert estimators.reliability(grid, -grid) == -1 and estimators.reliability(grid, grid) == 1


def test_classic_rise_is_its_equation():
    """S = 1 / (N E[M]) Σ s M with one score a mask (Petsiuk et al. 2018, equation 6)."""
    trace = trace_of(Small(6, 1.0), side=6)
    given = dict(num_masks=40, masks=GridMasks(3), target=Similarity(scalar=True))
    maps = DFRise(**given, fill="zero", estimator=estimators.classic)(trace)
    masks = next(GridMasks(3).stream((6, 6), 0, 40, 40))
    score = given["target"].at(trace[0])
    total = sum(float(score(trace[0].sample * torch.from_numpy(m))) * m.astype(float) for m in masks)
    assert np.allclose(maps.saliency[0], total / masks.mean() / 40, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_similarity_is_computed_in_full_precision_whatever_the_model_is_in(dtype):
    """A latent with flat areas, whose local variances are far below the rounding of half precision."""
    generator = torch.Generator().manual_seed(0)
    x = 0.8 + 0.02 * torch.randn(1, 4, 16, 16, generator=generator)
    masks = torch.from_numpy(next(GridMasks().stream((16, 16), 0, 64, 64)))[:, None]
    scores = {}
    for kind in (torch.float32, dtype):
        sample = x.to(dtype).to(kind)
        step = Step(0, 500.0, NoiseLevel(0.6, 0.8, 1.0, "epsilon"), sample, sample, sample, Plain(lambda v: v), None)
        scores[kind] = Similarity(scalar=True)(step, sample * masks.to(kind)).float().numpy()
    assert np.corrcoef(scores[torch.float32], scores[dtype])[0, 1] > 0.99


def errors_of(trace, exact, **asked):
    """Root mean squared error over a hundred seeds, and the mean map's distance from the exact one."""
    maps = np.stack([replace(DFRise.paper(seed=seed), **asked)(trace).saliency.values for seed in range(100)])
    return float(np.sqrt(((maps - exact) ** 2).mean())), np.abs(maps.mean(0) - exact), maps.std(0).max() / 10


def test_balanced_masks_are_unbiased_and_closer():
    trace = trace_of(Small())
    exact = replace(DFRise.paper(num_masks=512), masks=AllMasks())(trace).saliency.values
    asked = dict(num_masks=32, estimator=estimators.kept_ratio)
    independent, _, _ = errors_of(trace, exact, masks=PixelMasks(), **asked)
    balanced, bias, error = errors_of(trace, exact, masks=BalancedMasks(), **asked)
    assert bias.max() < 4 * error
    assert balanced < 0.8 * independent


def test_the_regression_is_closer_than_the_ratio_and_has_its_limit():
    trace = trace_of(Small(8, 2.0), side=8)
    exact = replace(DFRise.paper(40_000, seed=1), masks=PixelMasks(), estimator=estimators.kept_ratio)(trace)
    asked = dict(num_masks=32, masks=PixelMasks())
    ratio, _, _ = errors_of(trace, exact.saliency.values, estimator=estimators.kept_ratio, **asked)
    regression, _, _ = errors_of(trace, exact.saliency.values, **asked)
    assert regression < 0.8 * ratio
    many = replace(DFRise.paper(40_000), masks=PixelMasks())(trace)
    apart = (many.saliency - exact.saliency) / exact.standard_error
    assert np.abs(apart).max() < 5 and float((apart**2).mean()) < 1.5


@dataclass(frozen=True)
class RegionSum(Target):
    """Depends on one region of the sample only."""

    region: tuple[slice, slice]

    def at(self, step):
        return lambda samples: (
            (samples[(slice(None), slice(None), *self.region)] - step.sample.mean()).abs().sum((1, 2, 3))
        )


def test_a_target_of_one_region_gives_a_map_on_that_region():
    trace = trace_of(lambda x: x, side=12)
    trace[0].sample.fill_(1.0)
    trace[0].model_output.fill_(1.0)
    region = (slice(2, 6), slice(7, 11))
    asked = dict(num_masks=4000, masks=PixelMasks(), target=RegionSum(region))
    maps = DFRise(**asked, fill="zero")(trace)
    inside = np.zeros((12, 12), bool)
    inside[region] = True
    saliency = -maps.saliency.values[0]  # |masked − mean| is large where it is masked
    assert saliency[inside].min() > saliency[~inside].max()
    same = DFRise(**asked, fill="mean")(trace)  # nothing is lost where every position is the mean
    assert np.allclose(same.saliency, 0, atol=1e-6)


@dataclass(frozen=True)
class Constant(Target):
    def at(self, step):
        return lambda samples: torch.full((len(samples),), 2.5)


@dataclass(frozen=True)
class Ones(Masks):
    def blocks(self, shape, seed):
        while True:
            yield np.ones((16, *shape), np.float32)


def test_identities(trace):
    flat = replace(DFRise.paper(num_masks=64), target=Constant())(trace, steps=[0])
    assert np.allclose(flat.saliency, 2.5) and np.allclose(flat.standard_error, 0, atol=1e-6)
    assert np.isnan(flat.reliability[0])
    none = DFRise(num_masks=64, target=Constant())(trace, steps=[0])
    assert np.allclose(none.saliency, 0, atol=1e-12)
    whole = replace(DFRise.paper(num_masks=16), masks=Ones())(trace, steps=[0])
    assert np.allclose(whole.saliency, 1, atol=1e-3)
    total = replace(DFRise.paper(num_masks=16), masks=Ones(), estimator=estimators.plain_sum)(trace, steps=[0])
    assert np.allclose(total.saliency, 16, atol=0.02)


def test_moments_add_up():
    rng = np.random.default_rng(0)
    masks, scores = rng.random((40, 3, 4)), rng.random((40, 3, 4))
    whole = MaskMoments.zero((3, 4)).with_masks(masks, scores)
    parts = MaskMoments.zero((3, 4)).with_masks(masks[:13], scores[:13]) + MaskMoments.zero((3, 4)).with_masks(
        masks[13:], scores[13:]
    )
    assert np.allclose(whole.sums, parts.sums) and whole.count == parts.count
    surrogates = rng.random((2, 40, 3, 4))
    zero = MaskMoments.zero((3, 4), estimators.Surrogates(*rng.random((2, 1, 3, 4)), 0.5))
    whole = zero.with_masks(masks, scores, surrogates)
    values = [np.ones_like(scores), scores, *surrogates]
    for power, a, b in product(range(3), range(4), range(4)):
        assert np.allclose(whole.sums[power, a, b], (masks**power * values[a] * values[b]).sum(0))


@pytest.mark.parametrize("masks", [PixelMasks(), PixelMasks(0.3), BalancedMasks(), GridMasks(), GridMasks(5, 0.7)])
def test_masks_have_their_mean_and_their_own_stream(masks):
    first, second = (np.concatenate(list(masks.stream((12, 20), 7, 3000, chunk))) for chunk in (64, 1000))
    assert np.array_equal(first, second) and first.shape == (3000, 12, 20) and 0 <= first.min() <= first.max() <= 1
    keep = getattr(masks, "keep", 0.5)
    assert np.allclose(first.mean(0), keep, atol=0.05)
    assert not np.array_equal(first, np.concatenate(list(masks.stream((12, 20), 8, 3000, 64))))
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    next(masks.stream((4, 4), 0, 4, 4))
    assert torch.equal(before, torch.random.get_rng_state())


def test_grid_masks_are_smooth_and_balanced_masks_balance():
    grid = next(GridMasks(4).stream((16, 16), 0, 200, 200))
    assert np.abs(np.diff(grid, axis=1)).max() < 0.5
    block = next(BalancedMasks().stream((4, 4), 0, 64, 64)).reshape(64, -1)
    signs = 2 * block - 1
    assert np.array_equal(signs.T @ signs, 64 * np.eye(16))


def test_a_result_says_how_it_was_made(trace):
    attrs = DFRise(num_masks=8)(trace, steps=[0]).attrs
    assert attrs["target_space"] == "clean" and attrs["target_similarity"] == "structure"
    assert (attrs["masks"], attrs["masks_cells"], attrs["estimator"]) == ("GridMasks", 4, "regressed_contrast")
    assert attrs["fill"] == "mean" and DFRise.paper(num_masks=8)(trace, steps=[0]).attrs["fill"] == "zero"


def test_until_stops_early_and_says_how_many(trace):
    maps = DFRise.paper(num_masks=2000, until=0.6)(trace, steps=[0, 2])
    assert (maps.masks_used < 2000).all() and (maps.reliability >= 0.6).all()


def test_interruption_keeps_the_finished_steps(trace):
    done = []

    def advance(masks):
        done.append(masks)
        if sum(done) > 100:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="1 of 3") as caught:
        DFRise(num_masks=64)(trace, steps=[0, 1, 2], advance=advance)
    assert list(caught.value.partial.step.values) == [0]


def test_unconditional_pixels_and_non_square(stable_diffusion):
    pixels = denoscope.load(PIPELINES["ddpm"]()).trace(seed=0, num_inference_steps=3)
    assert DFRise.paper(num_masks=8)(pixels).saliency.shape == (3, 16, 16)
    wide = denoscope.load(stable_diffusion).trace("a circle", seed=0, num_inference_steps=2, height=32, width=64)
    assert DFRise(num_masks=8)(wide, steps=[1]).saliency.shape == (1, 8, 16)


@pytest.mark.parametrize(
    "options",
    [
        dict(num_masks=0),
        dict(batch_size=0),
        dict(until=1.0),
        dict(num_masks=2.5),
        dict(fill="0"),
    ],
)
def test_bad_options_are_refused(options):
    with pytest.raises(InputError):
        DFRise(**options)


def test_bad_steps_are_refused(trace, stable_diffusion):
    for steps in ([4], [-1], [1, 1], []):
        with pytest.raises(InputError, match="steps"):
            DFRise(num_masks=4)(trace, steps=steps)
    several = denoscope.load(stable_diffusion).trace("a", seed=0, num_inference_steps=1, num_images_per_prompt=2)
    with pytest.raises(InputError, match=r"trace\.picture"):
        DFRise(num_masks=4)(several)
    assert DFRise(num_masks=4)(several.picture(1)).saliency.shape == (1, 8, 8)
