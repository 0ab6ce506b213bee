"""Sanity checks: on linear denoisers whose answers are exact, and that whatever is changed comes back bit for bit."""

import zlib
from functools import partial

import numpy as np
import pytest
import torch
import xarray as xr
from linear import linear_model, linear_trace
from scipy import ndimage
from small import refusal

import denoscope
from denoscope import DFCam, DFRise
from denoscope.errors import CaptureError, NumericsError
from denoscope.evaluation import (
    BASELINES,
    Baseline,
    ConstantTime,
    ShuffledTime,
    above_chance,
    agreement,
    has_fallen,
    noise_agreement,
    prompt_randomisation,
    record_with_other_times,
    stages_of,
    time_agreement,
    weight_randomisation,
)
from denoscope.evaluation.frequencies import band_agreement, band_powers, coarse_to_fine, emergence
from denoscope.evaluation.sanity import cascade, random_level
from denoscope.recording.hooks.layers import called_layers, other_times, randomised


def clean_magnitude(step):
    """What the denoiser says, as a map: the length of the clean prediction."""
    return step.pred_original_sample[0].detach().double().norm(dim=0).numpy()


CLEAN = Baseline(clean_magnitude)
BLIND = Baseline(BASELINES["|x_t|"])


def weights_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(before, model):
    return all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


# Random weights.


def test_random_weights_come_back_bit_for_bit(stable_diffusion):
    unet = stable_diffusion.unet
    before, layers = weights_of(unet), [path for path, module in unet.named_modules() if hasattr(module, "weight")]
    with randomised(unet, layers):
        changed = [name for name, tensor in unet.state_dict().items() if not torch.equal(tensor, before[name])]
        assert {name for name, tensor in before.items() if float(tensor.std(correction=0)) > 0} == set(changed)
    assert same(before, unet)
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), randomised(unet, layers):
            raise error
        assert same(before, unet)


def test_random_weights_are_normal_with_the_layers_own_mean_and_spread():
    layer = torch.nn.Sequential(torch.nn.Linear(50, 40), torch.nn.ReLU(), torch.nn.Linear(40, 3))
    with torch.no_grad():
        layer[0].weight.mul_(5).add_(2)
    before = layer[0].weight.detach().clone().numpy()
    with randomised(layer, ["0"], seed=3):
        found = layer[0].weight.detach().numpy().copy()
    draws = np.random.default_rng([3, zlib.crc32(b"0")]).standard_normal((40, 50), dtype=np.float32)
    assert np.allclose(found, before.mean() + before.std() * draws, rtol=1e-5)
    with randomised(layer, ["2", "0"], seed=3):
        assert np.array_equal(layer[0].weight.detach().numpy(), found)  # whatever else is random
    with randomised(layer, ["0"], seed=4):
        assert not np.allclose(layer[0].weight.detach().numpy(), found)
    for nothing in ([], ["1"]):
        with pytest.raises(CaptureError, match="no weights"), randomised(layer, nothing):
            pass


def test_layers_are_in_the_order_in_which_they_run(trace):
    stages = list(stages_of(trace))
    inner = [name for name in stages if "blocks" in name or name == "mid_block"]
    assert stages[:2] == ["conv_out", "conv_norm_out"] and {"conv_in", "time_embedding"} == set(stages[-2:])
    assert inner == ["up_blocks.1", "up_blocks.0", "mid_block", "down_blocks.1", "down_blocks.0"]
    weighty = {n.rpartition(".")[0] for n, _ in trace.model.denoiser.named_parameters()}
    assert set(list(stages_of(trace).values())[-1]) == weighty
    assert not trace.model.denoiser.conv_in._forward_hooks


def test_unused_layers_come_first_and_nothing_called_is_an_error():
    parts = torch.nn.ModuleDict({n: torch.nn.Linear(2, 2) for n in ("unused", "second", "first")})
    run = lambda: parts["second"](parts["first"](torch.zeros(1, 2)))  # noqa: E731
    assert called_layers(parts, run) == ["unused", "first", "second"]
    with pytest.raises(CaptureError, match="was called"):
        called_layers(parts, lambda: None)
    assert cascade(["in", "blocks.0.a", "blocks.0.b", "blocks.1.a"]) == {
        "blocks.1": ["blocks.1.a"],
        "blocks.0": ["blocks.1.a", "blocks.0.b", "blocks.0.a"],
        "in": ["blocks.1.a", "blocks.0.b", "blocks.0.a", "in"],
    }


def test_weight_randomisation_of_a_linear_denoiser_is_exact():
    trace = linear_trace()
    unet, before = trace.model.denoiser, weights_of(trace.model.denoiser)
    found = weight_randomisation(CLEAN, trace, [1, 2], seed=5)
    assert found.stage.values.tolist() == ["exit", "entry"] and found.agreement.dims == ("stage", "step")
    for stage, layers in {"exit": ["exit"], "entry": ["exit", "entry"]}.items():
        weights = dict(before)
        for path in layers:
            rng = np.random.default_rng([5, zlib.crc32(path.encode())])
            for part in ("weight", "bias"):
                own = before[f"{path}.{part}"]
                draws = torch.from_numpy(rng.standard_normal(own.shape, dtype=np.float32))
                weights[f"{path}.{part}"] = own.mean() + own.std(correction=0) * draws
        for step in (trace[1], trace[2]):
            hidden = torch.einsum("oc,nchw->nohw", weights["entry.weight"][..., 0, 0], step.sample)
            hidden = hidden + weights["entry.bias"][:, None, None]
            noise = torch.einsum("oc,nchw->nohw", weights["exit.weight"][..., 0, 0], hidden)
            clean = step.level.original(step.sample, noise + weights["exit.bias"][:, None, None])
            expected = agreement(clean_magnitude(step), clean[0].double().norm(dim=0).numpy())
            assert float(found.agreement.sel(stage=stage, step=step.index)) == pytest.approx(expected, abs=1e-3)
    assert same(before, unet) and float(found.random_level.max()) < 1


def test_a_map_that_ignores_the_network_fails_the_check(trace):
    found = weight_randomisation(BLIND, trace, [0, 2], stages=["conv_out", "mid_block"])
    assert (found.agreement > 1 - 1e-9).all() and (found.absolute > 1 - 1e-9).all() and found.sizes["stage"] == 2
    scenes = np.linspace(0.9, 1.0, 5)
    level = np.full(5, 0.4)
    assert above_chance(scenes, level).low > 0 and above_chance(-scenes, level).low > 0
    fallen = np.array([0.1, -0.3, 0.2, np.nan])
    assert above_chance(fallen, level[:4]).high < 0 and above_chance(fallen, level[:4]).count == 3
    assert has_fallen(scenes, level) is False and has_fallen(scenes, level - 0.6) is False
    assert has_fallen(fallen, level[:4]) is True and has_fallen(scenes, scenes - 0.09) is True
    assert above_chance(np.array([0.9, 0.1, 0.9, -0.1]), level[:4]).low < 0 < above_chance(scenes, level).high
    assert "at least 2" in refusal(above_chance, [1.0], [0.4])
    assert 'no stage "conv"' in refusal(weight_randomisation, BLIND, trace, [0], stages=["conv"])


@pytest.mark.parametrize("attributor", [DFRise(num_masks=8), DFCam()], ids=["df-rise", "df-cam"])
def test_maps_that_are_there_already_are_not_made_again(trace, monkeypatch, attributor):
    known, calls, inner = attributor(trace).saliency, [], type(attributor).explain
    monkeypatch.setattr(type(attributor), "explain", lambda *a: calls.append(a) or inner(*a))
    checks = {
        weight_randomisation: {"stages": ["conv_out"]},
        prompt_randomisation: {"other": trace},
        noise_agreement: {"draws": 1},
    }
    for check, options in checks.items():
        made = check(attributor, trace, steps=[1, 2], **options)
        with_known = check(attributor, trace, steps=[1, 2], **options, own=known)
        xr.testing.assert_allclose(made, with_known, atol=1e-6)
        assert len(calls) == 6, check  # two steps: own and changed, then changed alone
        calls.clear()
        assert "step 2 is missing" in refusal(check, attributor, trace, steps=[2], **options, own=known.sel(step=[1]))


def test_a_map_that_fails_under_random_weights_leaves_them_as_they_were(trace):
    before = weights_of(trace.model.denoiser)
    calls = []

    def breaks(step):
        calls.append(step)
        if len(calls) > 1:
            raise NumericsError("no map of this network.")
        return clean_magnitude(step)

    with pytest.raises(NumericsError):
        weight_randomisation(Baseline(breaks), trace, [1])
    assert same(before, trace.model.denoiser)
    again = trace[1].predict(trace[1].sample).detach()
    assert float((again - trace[1].model_output).abs().max()) < 1e-4


def test_the_random_level_is_the_mean_over_all_shifts():
    rng = np.random.default_rng(0)
    rough, other = rng.random((16, 16)), rng.random((16, 16))
    smooth = np.sin(np.linspace(0, np.pi, 16))[:, None] * np.cos(np.linspace(0, np.pi, 16))
    assert random_level(rough, other) == pytest.approx(np.sqrt(2 / np.pi / 255), rel=0.2)  # mean |r| of 256 by chance
    assert random_level(smooth, smooth) > 0.25 and np.isnan(random_level(np.ones((4, 4)), rough[:4, :4]))
    a, b = rough[:6, :5].round(1), other[:6, :5].round(1)  # with ties
    slow = [abs(agreement(np.roll(a, s, (0, 1)), b)) for s in np.ndindex(6, 5) if any(s)]
    assert random_level(a, b) == pytest.approx(np.mean(slow))


def test_maps_that_are_unrelated_have_fallen_and_maps_of_which_half_is_left_have_not():
    rng, smoothed = np.random.default_rng(1), partial(ndimage.gaussian_filter, sigma=2, mode="wrap")
    own, other = ([smoothed(rng.normal(size=(16, 16))) for _ in range(30)] for _ in range(2))
    mixed = [a + b for a, b in zip(own, other, strict=True)]
    for changed, expected in ((other, True), (mixed, False)):
        pairs = list(zip(own, changed, strict=True))
        agreements, levels = ([f(a, b) for a, b in pairs] for f in (agreement, random_level))
        assert has_fallen(np.array(agreements), np.array(levels)) is expected


# Another prompt.


def test_under_another_prompt(stable_diffusion):
    model = denoscope.load(stable_diffusion)
    options = dict(seed=1, num_inference_steps=3)
    own, other = model.trace("a red circle", **options), model.trace("a blue square", **options)
    same_prompt = prompt_randomisation(CLEAN, own, own, [1, 2])
    assert (same_prompt.agreement > 1 - 1e-6).all() and same_prompt.random_level.dims == ("step",)
    found = prompt_randomisation(CLEAN, own, other, [1])
    step = own[1]
    clean = other[1].predict_original(step.sample)[0].detach().double().norm(dim=0).numpy()
    assert float(found.agreement[0]) == pytest.approx(agreement(clean_magnitude(step), clean), abs=1e-3)
    assert float(found.agreement[0]) < float(same_prompt.agreement[0])
    for length in (2, 4):
        shorter = model.trace("a blue square", seed=1, num_inference_steps=length)
        assert "same schedule" in refusal(prompt_randomisation, CLEAN, own, shorter, [2])


# Another time.


def test_a_denoiser_that_ignores_the_time_makes_the_same(trace):
    deaf = linear_trace()
    for change in (ConstantTime(123), ShuffledTime.of(deaf, seed=1)):
        again = record_with_other_times(deaf, change)
        assert all(torch.equal(a.prev_sample, b.prev_sample) for a, b in zip(deaf, again, strict=True))
        found = time_agreement(CLEAN, deaf, {"other": change}, [1, 2])
        assert (found.agreement > 1 - 1e-9).all() and found.time.values.tolist() == ["other"]
    same = record_with_other_times(trace, lambda t: t)
    assert all(torch.equal(a.prev_sample, b.prev_sample) for a, b in zip(trace, same, strict=True))


def test_a_denoiser_that_hears_the_time_hears_another():
    trace = linear_trace(hears_time=True)
    again = record_with_other_times(trace, ConstantTime(250))
    assert not torch.equal(again[1].sample, trace[1].sample) and [s.direct.time for s in again] == [250.0] * 4
    assert [s.timestep for s in again] == [s.timestep for s in trace] == [s.direct.time for s in trace]
    with torch.no_grad():
        assert torch.allclose(again[0].model_output, trace.model.denoiser(trace[0].sample, 250).sample)
        assert torch.allclose(again[2].predict(again[2].sample), again[2].model_output)  # it replays what it was told
    found = time_agreement(CLEAN, trace, {"constant": ConstantTime(250)}, [0])
    with torch.no_grad():
        output = trace.model.denoiser(trace[0].sample, torch.tensor(250)).sample
    clean = trace[0].level.original(trace[0].sample, output)[0].double().norm(dim=0).numpy()
    assert float(found.agreement[0, 0]) == pytest.approx(agreement(clean_magnitude(trace[0]), clean), abs=1e-3)
    assert not trace.model.denoiser._forward_pre_hooks


def test_shuffled_times_are_the_runs_own():
    trace = linear_trace(steps=6)
    shuffled = ShuffledTime.of(trace, seed=2)
    given = [step.timestep for step in trace]
    assert sorted(map(shuffled, given), reverse=True) == given != [*map(shuffled, given)]
    assert ShuffledTime.of(trace, seed=2) == shuffled != ShuffledTime.of(trace, seed=3)
    assert "not among the shuffled" in refusal(shuffled, 7.5)
    assert "fewer than two" in refusal(ShuffledTime.of, linear_trace(steps=1))


def test_times_given_in_every_form_are_changed_and_only_while_open():
    heard = []

    class Hears(torch.nn.Module):
        def forward(self, sample, timestep, scale=1.0):
            heard.append(timestep)
            return sample

    module, x = Hears(), torch.zeros(2)
    with other_times(module, lambda t: t + 1):
        module(x, 5)
        module(x, timestep=2.5)
        module(x, torch.tensor([7, 8]), 3.0)
        module(sample=x, timestep=torch.tensor(0.5))
    module(x, 5)
    assert heard[0] == 6 and heard[1] == 3.5 and heard[4] == 5 and isinstance(heard[0], int)
    assert heard[2].tolist() == [8, 9] and heard[2].dtype == torch.int64 and heard[3].item() == 1.5
    with pytest.raises(ZeroDivisionError), other_times(module, lambda t: t / 0):
        module(x, 5)
    assert module(x, 1) is x and not module._forward_pre_hooks
    with pytest.raises(CaptureError, match="not called"), other_times(module, float):
        pass
    with pytest.raises(CaptureError, match="time step cannot be changed"), other_times(torch.nn.ReLU(), float):
        pass


def test_what_cannot_be_made_again_is_refused():
    trace = linear_model().trace(generator=torch.Generator().manual_seed(0), num_inference_steps=2)
    assert "without a seed" in refusal(record_with_other_times, trace, ConstantTime(1))
    two = linear_model().trace(seed=0, num_inference_steps=2, batch_size=2).picture(1)
    assert torch.equal(record_with_other_times(two, ConstantTime(1))[1].sample, two[1].sample)


# Coarse before fine.


def test_bands_add_up_to_the_energy_and_agree_with_a_slow_transform():
    pictures = np.random.default_rng(0).random((2, 8, 16, 3))
    powers = band_powers(pictures)
    assert powers.band.values.tolist() == [1, 2, 4]
    energy = (pictures**2).sum(axis=(1, 2)).mean(axis=-1)
    mean = (pictures.sum(axis=(1, 2)) ** 2 / 128).mean(axis=-1)
    assert np.allclose(powers.sum("band") + mean, energy)
    slow = {1: 0.0, 2: 0.0, 4: 0.0}
    y, x = np.mgrid[:8, :16]
    for k, m in np.ndindex(8, 16):
        wave = np.exp(-2j * np.pi * (k * y / 8 + m * x / 16))
        radius = np.hypot(min(k, 8 - k) * 2, min(m, 16 - m))
        if radius:
            power = np.mean(np.abs((pictures[0] * wave[..., None]).sum(axis=(0, 1))) ** 2) / 128
            slow[max(s for s in slow if s <= radius)] += power
    assert np.allclose(powers[0], list(slow.values()))
    assert np.allclose(band_agreement(pictures)[-1], powers[-1])


def test_the_order_in_which_octaves_come_is_found():
    rng = np.random.default_rng(0)
    noise = np.fft.fft2(rng.normal(size=(32, 32)))
    radius = np.hypot(*np.meshgrid(*[np.fft.fftfreq(32, 1 / 32)] * 2, indexing="ij"))
    octaves = [np.fft.ifft2(noise * ((radius >= b) & (radius < 2 * b))).real for b in (1, 2, 4)]
    octaves.append(np.fft.ifft2(noise * (radius >= 8)).real)
    comes = {"coarse first": [1, 3, 5, 7], "fine first": [7, 5, 3, 1]}
    for (name, starts), order in zip(comes.items(), (1, -1), strict=True):
        film = np.stack([sum(o * (t >= s) for o, s in zip(octaves, starts, strict=True)) for t in range(10)])
        for measured in (band_powers(film[..., None]), band_agreement(film[..., None])):
            assert emergence(measured).values == pytest.approx([s - 0.5 for s in starts]), name
            assert coarse_to_fine(emergence(measured)) == pytest.approx(order)
    other = np.concatenate([rng.normal(size=(9, 32, 32)), film[-1:]])[..., None]
    stays = band_agreement(other) / band_agreement(other)[-1]
    assert float(abs(stays[:-1, -1]).max()) < 0.2 < float((band_powers(other) / band_powers(other)[-1])[:-1, -1].min())
    assert np.isnan(coarse_to_fine(np.array([1.0, 1.0, 1.0]))) and np.isnan(coarse_to_fine(np.array([1, 2, np.nan])))
    assert "clean_decoded" in refusal(band_powers, film)
