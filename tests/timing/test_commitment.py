"""When attributes are decided: on worlds whose answer is known, and on small pipelines of every kind of scheduler."""

import functools

import numpy as np
import pytest
import torch
import xarray as xr
from small import PIPELINES, SCHEDULERS, refusal

import denoscope
from denoscope.errors import ModelError
from denoscope.timing.commitment import Clones, PromptSwitch, UTurn, finish
from denoscope.timing.windows import across_scenes, commitment, in_order
from denoscope.worlds.exact import MixtureWorld
from denoscope.worlds.readers import attributes_shown, reader_for, same_value
from denoscope.worlds.shapes.scenes import Scene, Thing, render


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def mixture() -> MixtureWorld:
    half = torch.full((1, 4, 4), 0.5)
    return MixtureWorld(torch.stack([half, -half]), 0.05)


def side(picture: np.ndarray) -> dict[str, str]:
    """Which of the two modes a picture is of, and whether its first pixel is bright."""
    return {
        "mode": "light" if picture.mean() > 0.5 else "dark",
        "corner": "on" if picture[0, 0].mean() > 0.5 else "off",
    }


@functools.cache
def traces(count: int = 80) -> tuple[denoscope.Trace, ...]:
    model = denoscope.load(mixture().pipeline())
    return tuple(model.trace(seed=seed, num_inference_steps=40, output_type="np") for seed in range(count))


def guided(stable_diffusion, prompt: str, **options) -> denoscope.Trace:
    return denoscope.load(stable_diffusion).trace(prompt, **dict(seed=1, num_inference_steps=4) | options)


# Finishing.


def test_finishing_from_the_first_step_is_a_run_of_ddim(stable_diffusion):
    """Oracle: the pipeline's own call with DDIM, guidance included; and from every step of it on."""
    stable_diffusion.scheduler = SCHEDULERS["ddim"]()
    trace = guided(stable_diffusion, "a red circle")
    ends = finish(trace, [(step.index, step.sample) for step in trace])
    for end in ends:
        assert relative(end[None], trace[-1].prev_sample) < 1e-4


@pytest.mark.parametrize("scheduler", ["ddpm", "dpm-solver++", "euler", "unipc"])
def test_finishing_is_ddim_whatever_the_scheduler(stable_diffusion, scheduler):
    """Oracle: a slow loop of single samples; the last sample of the run is where the last step leads."""
    stable_diffusion.scheduler = SCHEDULERS[scheduler]()
    trace = guided(stable_diffusion, "a red circle")
    entries = [(2, trace[2].sample), (0, trace[0].sample), (3, 0.5 * trace[3].sample), (0, -trace[0].sample)]
    for (start, sample), end in zip(entries, finish(trace, entries, batch_size=3), strict=True):
        for step in trace[start:]:
            with torch.no_grad():
                sample = step.next_sample(sample)
        assert relative(end[None], sample) < 1e-4


def test_noise_of_its_own_is_that_of_ddim_with_eta(stable_diffusion):
    """Oracle: DDIMScheduler.step with η and the same variance noise."""
    from denoscope.timing.commitment import next_sample

    stable_diffusion.scheduler = SCHEDULERS["ddim"]()
    trace = guided(stable_diffusion, "a red circle")
    for eta in (0.3, 1.0):
        for step in trace[:-1]:
            ours = next_sample(step, step.sample, eta, [torch.Generator().manual_seed(7)])
            z = torch.randn(step.sample.shape[1:], generator=torch.Generator().manual_seed(7))[None]
            theirs = stable_diffusion.scheduler.step(
                step.model_output, int(step.timestep), step.sample, eta=eta, variance_noise=z
            )
            assert relative(ours.detach(), theirs.prev_sample) < 1e-4


def test_batches_and_company_change_nothing(trace):
    entries = [(i % 4, (i + 1) * trace[i % 4].sample / 3) for i in range(5)]
    told: list[int] = []
    together = finish(trace, entries, eta=1.0, seed=3, advance=told.append)
    apart = finish(trace, entries, eta=1.0, seed=3, batch_size=2)
    assert relative(apart, together) < 1e-4 and sum(told) == 5
    assert not torch.allclose(finish(trace, entries, eta=1.0, seed=4), together)


# On the mixture the curves are known.


@pytest.mark.slow
def test_a_u_turn_crosses_where_the_mixture_says():
    """Truth: without noise of its own P is Φ(√r), ¾ where √r = 0.674; within 0.7 of log-SNR."""
    world, steps = mixture(), range(0, 40, 4)
    for eta, predicted in ((0.0, world.survival), (1.0, world.agreement)):
        experiment = UTurn(side, draws=2, eta=eta)
        found = commitment(across_scenes([experiment(trace, steps) for trace in traces()]), resamples=200)
        grid = np.linspace(-8, 2, 400)
        truth = np.interp(0.75, [predicted(x) for x in grid], grid)
        mode = found.sel(attribute="mode")
        assert float(mode["chance"]) == pytest.approx(0.5, abs=0.15)
        assert float(mode["commitment_log_snr"].sel(bound="estimate")) == pytest.approx(truth, abs=0.7)
        low, estimate, high = mode["commitment_log_snr"].values
        assert low <= estimate <= high and low - 0.3 < truth < high + 0.3
        curve = np.array([predicted(x) for x in found["log_snr"].values])
        assert np.abs(mode["probability"].sel(bound="estimate") - curve).max() < 0.16
        assert next(in_order(found)) == "mode"  # the corner alone is noisier than the whole


def test_clones_agree_as_the_mixture_says():
    """Truth: P(two clones in one mode), within 0.12 for 80 runs."""
    steps = [9, 21, 24, 27, 36]
    found = across_scenes([Clones(side, draws=4)(trace, steps) for trace in traces()])
    assert found.sizes["draw"] == 6
    agreed = found["decided"].sel(attribute="mode").mean(["scene", "draw"])
    expected = [mixture().agreement(x) for x in found["log_snr"].values]
    assert np.abs(agreed.values - expected).max() < 0.12
    assert float(found["chance"].sel(attribute="mode").mean()) == pytest.approx(0.5, abs=0.1)


# Prompt switches.


def shade(picture: np.ndarray) -> dict[str, float | None]:
    return {"shade": round(float(picture.mean()), 3), "always": "the same", "never": None}


def test_a_switch_at_the_first_step_is_the_other_prompt_and_none_is_the_first(stable_diffusion):
    """Identity: at step 0 all is the other's; what does not differ, or is not there, is not switched."""
    stable_diffusion.scheduler = SCHEDULERS["ddim"]()
    base, other = (
        guided(stable_diffusion, prompt) for prompt in ("a red circle", "a green cross on a black background")
    )
    found = PromptSwitch(shade, same=lambda a, b: a == b if isinstance(a, str) else abs(a - b) < 1e-3)(base, other)
    assert found["decided"].dims == ("attribute", "step", "draw") and found.sizes["draw"] == 1
    assert found["decided"].sel(attribute="shade", step=0).item() == 0
    assert found["decided"].sel(attribute=["always", "never"]).isnull().all()
    assert list(found["log_snr"].values) == [step.log_snr for step in base]
    pictures: list[np.ndarray] = []
    PromptSwitch(lambda picture: {"n": pictures.append(picture)})(base, other, [2])
    with torch.no_grad():
        sample = other[3].next_sample(other[2].next_sample(base[2].sample))
        expected = base[0].decode(sample)[0].movedim(0, -1)
    assert np.allclose(pictures[-1], expected, atol=1e-5)


def test_a_switch_is_what_the_pipeline_makes_of_it(stable_diffusion):
    """Oracle: one call of the pipeline with DDIM, whose callback exchanges the prompt's embedding in the middle."""
    stable_diffusion.scheduler = SCHEDULERS["ddim"]()
    base, other = (guided(stable_diffusion, prompt) for prompt in ("a red circle", "a green cross"))
    later = torch.cat(stable_diffusion.encode_prompt("a green cross", "cpu", 1, True)[::-1])

    def exchange(pipe, index, timestep, kwargs):
        return {"prompt_embeds": later} if index == 1 else {}

    options = dict(num_inference_steps=4, output_type="np", callback_on_step_end=exchange)
    made = stable_diffusion("a red circle", generator=torch.Generator().manual_seed(1), **options).images[0]
    pictures: list[np.ndarray] = []
    PromptSwitch(lambda picture: {"n": pictures.append(picture)})(base, other, [2])
    switched = pictures[2]
    assert np.allclose(switched, made, atol=1e-4)
    assert not np.allclose(switched, pictures[0], atol=1e-3) and not np.allclose(switched, pictures[1], atol=1e-3)


class Painted:
    """A reader whose pictures are judged by what was noted of them: a curve that is known."""

    def __init__(self, answers):
        self.answers = iter(answers)

    def __call__(self, picture):
        return {"colour": next(self.answers)}


def test_a_switch_counts_the_new_value_only(trace):
    """Truth: red and blue alternate as noted; green is neither, and the new one is gone all the same."""
    answers = ["red", "blue", "blue", "green", "blue", "red"]
    found = PromptSwitch(Painted(answers))(trace, trace)
    assert found["decided"].sel(attribute="colour", draw=0).values.tolist() == [0, 1, 0, 1]


def draws_of(experiment: UTurn, trace: denoscope.Trace) -> torch.Tensor:
    """The noises of an experiment: standard normal, the run's own, the same for every step."""
    noise = torch.cat(experiment._noise(trace))
    assert noise.shape[1:] == trace[0].sample.shape[1:]
    return noise


def test_every_run_has_noise_of_its_own(stable_diffusion):
    """Or scenes would err together. Truth: standard normal, uncorrelated between runs, the same again."""
    first, second = (guided(stable_diffusion, "a red circle", seed=seed) for seed in (1, 2))
    a, b = (draws_of(UTurn(shade, draws=16), trace) for trace in (first, second))
    again, other = (draws_of(UTurn(shade, draws=16, seed=seed), first) for seed in (0, 1))
    assert torch.equal(a, again) and not torch.equal(a, other)
    assert abs(float((a * b).mean())) < 0.1 and float(a.std()) == pytest.approx(1, abs=0.05)
    assert torch.equal(draws_of(UTurn(shade, draws=2), first), a[:2])


def test_another_run_finishes_a_u_turn(stable_diffusion):
    """Identity: under another prompt's steps, the U-turn from a step ends where that run leads the noisy sample."""
    base, other = (guided(stable_diffusion, prompt) for prompt in ("a red circle", "a green cross"))
    pictures: list[np.ndarray] = []
    UTurn(lambda picture: {"n": pictures.append(picture)}, draws=1, seed=5)(base, [3], under=other)
    step = base[3]
    assert len(pictures) == 3  # the result, what noise alone comes to, the U-turn
    noise = draws_of(UTurn(shade, draws=1, seed=5), base)
    noisy = step.level.noisy(base[-1].prev_sample, noise)
    with torch.no_grad():
        expected = base[0].decode(other[3].next_sample(noisy))[0].movedim(0, -1)
    assert np.allclose(pictures[2], expected, atol=1e-5)


@pytest.mark.parametrize("scheduler", ["dpm-solver++", "euler"])
def test_noise_is_in_the_schedulers_own_scale(stable_diffusion, scheduler):
    """Oracle: the scheduler's add_noise, also where it scales its samples."""
    stable_diffusion.scheduler = SCHEDULERS[scheduler]()
    trace = guided(stable_diffusion, "a red circle")
    clean, noise = trace[-1].prev_sample, torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for step in trace:
        time = torch.tensor([step.timestep]).to(stable_diffusion.scheduler.timesteps)
        expected = stable_diffusion.scheduler.add_noise(clean, noise, time)
        assert relative(step.level.noisy(clean, noise), expected) < 1e-4


@pytest.mark.parametrize("family", ["ddpm", "ddim", "latent-diffusion"])
def test_every_family_turns_round(family):
    prompt = ["a circle"] if family == "latent-diffusion" else []
    trace = denoscope.load(PIPELINES[family]()).trace(*prompt, seed=0, num_inference_steps=3)
    found = UTurn(shade)(trace, [1, 2])
    assert found.sizes == {"attribute": 3, "step": 2, "draw": 2} and found["chance"].dims == ("attribute", "draw")
    assert found["decided"].sel(attribute="always").all() and found["decided"].sel(attribute="never").isnull().all()


# Numbers over scenes.


def scenes_of(decided: np.ndarray, **more) -> xr.Dataset:
    """decided (scene, attribute, step) at the steps 0, 2, 4, …, log-SNR from −5 by one."""
    _, attributes, steps = decided.shape
    coords = {
        "attribute": list("abcdef")[:attributes],
        "step": 2 * np.arange(steps),
        "timestep": ("step", 999.0 - np.arange(steps)),
        "log_snr": ("step", np.arange(steps) - 5.0),
    }
    known = {name: (("attribute", "draw"), values) for name, values in more.items()}
    dims = ("attribute", "step", "draw")
    return across_scenes([xr.Dataset({"decided": (dims, one[..., None]), **known}, coords) for one in decided])


def thresholds(places: list[list[int]], steps: int = 10) -> np.ndarray:
    """Scenes (attribute) that are decided from a place on."""
    return (np.arange(steps) >= np.array(places)[..., None]).astype(float)


def test_the_crossing_and_the_width_are_those_of_the_curve():
    """Truth: four scenes decided at 2, 4, 6 and 8 have P = ¼, ½, ¾, 1 from there on."""
    found = commitment(scenes_of(thresholds([[2], [4], [6], [8]])), resamples=300)
    estimate = found.sel(bound="estimate", attribute="a")
    assert estimate["probability"].values.tolist() == [0, 0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1, 1]
    assert float(estimate["commitment"]) == 8 and float(estimate["commitment_log_snr"]) == -1
    assert float(estimate["width"]) == 8 and float(estimate["width_log_snr"]) == 4
    assert float(found["commitment"].sel(bound="low")[0]) < 8 < float(found["commitment"].sel(bound="high")[0])
    assert int(found["scenes"][0]) == 4


def test_the_interval_is_the_bootstraps():
    """Oracle: resampling the scenes one by one, with the same generator's counts."""
    from denoscope.timing.likelihood import crossing

    rng = np.random.default_rng(3)
    decided = thresholds(rng.integers(1, 9, (30, 1)).tolist())
    found = commitment(scenes_of(decided), resamples=400, seed=5)["commitment"].sel(attribute="a")
    drawn = np.random.default_rng(5).multinomial(30, np.full(30, 1 / 30), 400)
    slow = [2 * crossing(np.repeat(decided[:, 0], row, axis=0).mean(axis=0), 0.5, lasting=2) for row in drawn]
    assert found.values[[0, 2]] == pytest.approx(np.quantile(slow, [0.025, 0.975]), abs=0.25)


def test_chance_is_taken_off():
    """Truth: a curve from ½ to 1 crosses at ¾ when chance is ½; when none was measured, at ½, its beginning."""
    decided = np.stack([thresholds([[1]])[0], thresholds([[5]])[0], np.ones((1, 10)), np.ones((1, 10))])
    plain = commitment(scenes_of(decided), resamples=50)["commitment"].sel(bound="estimate")
    half = commitment(scenes_of(decided, chance=[[0.5]]), resamples=50)
    assert float(plain[0]) == 0
    assert half["commitment"].sel(bound="estimate").item() == pytest.approx(2 * 1.0)
    assert half["chance"].item() == 0.5


def test_the_order_is_told_with_its_certainty():
    early, late = [1, 2, 1, 2, 1, 2], [6, 7, 6, 7, 6, 7]
    found = commitment(scenes_of(thresholds(np.transpose([late, early]).tolist())), resamples=100)
    assert list(in_order(found)) == ["b", "a"]
    assert float(found["before"].sel(attribute="b", other="a")) == 1
    assert float(found["before"].sel(attribute="a", other="b")) == 0
    assert float(found["before"].sel(attribute="a", other="a")) == 0.5


def test_never_and_unknown_are_values():
    decided = thresholds([[3, 99, 0], [4, 99, 0], [5, 99, 0]])
    decided[:, 2] = np.nan
    decided[0, 0] = np.nan
    found = commitment(scenes_of(decided), resamples=50).sel(bound="estimate")
    assert found["scenes"].values.tolist() == [2, 3, 0]
    assert found["commitment"].isnull().values.tolist() == [False, True, True]
    assert list(in_order(found.expand_dims(bound=["estimate"]))) == ["a", "b", "c"]


def test_resamples_that_say_nothing_do_not_unbound_the_interval():
    """Truth: with one of three scenes known, many resamples hold none; the others all cross half-way from 4 to 5."""
    decided = thresholds([[5, 2], [5, 2], [5, 2]])
    decided[1:, 0] = np.nan
    found = commitment(scenes_of(decided), resamples=100)
    assert found["commitment"].sel(attribute="a").values.tolist() == [9, 9, 9]
    assert float(found["before"].sel(attribute="b", other="a")) == 1
    assert float(found["before"].sel(attribute="a", other="b")) == 0


# What is asked of a model without these attributes, and other mistakes.


def test_the_bundled_pictures_are_read():
    scene = Scene("cyan", (Thing("cross", "purple", "large", "striped", 24, 40, 13.0),))
    shown = attributes_shown(render(scene))
    names = dict(background="cyan", colour="purple", shape="cross", size="large", texture="striped")
    assert {name: shown[name] for name in names} == names
    assert same_value(shown["position"], (24, 40)) and not same_value(shown["position"], (29, 40))
    assert same_value("red", "red") and not same_value("red", "blue")
    empty = attributes_shown(np.ones((64, 64, 3)))
    assert empty["background"] == "white" and empty["shape"] is None and empty["position"] is None


def test_a_model_without_a_judge_is_refused(stable_diffusion):
    model = denoscope.load(stable_diffusion)
    assert "no judge" in refusal(reader_for, model, kind=ModelError)
    assert "64, 64, 3" in refusal(attributes_shown, np.zeros((32, 32, 3)))
    assert reader_for(denoscope.Model(stable_diffusion, "shapes")) is attributes_shown
    assert "reader" in refusal(UTurn, None)
    trace = guided(stable_diffusion, "a red circle")
    assert "has to return a dict" in refusal(UTurn(lambda picture: "red"), trace)


def test_runs_that_do_not_fit_are_refused(stable_diffusion):
    base = guided(stable_diffusion, "a red circle")
    switch = PromptSwitch(shade)
    assert "different schedules" in refusal(switch, base, guided(stable_diffusion, "a cross", num_inference_steps=5))
    assert "different schedules" in refusal(switch, base, guided(stable_diffusion, "a cross", schedule="late"))
    assert "same seed" in refusal(switch, base, guided(stable_diffusion, "a cross", seed=2))
    assert "one size" in refusal(switch, base, guided(stable_diffusion, "a cross", height=64, width=64))
    batch = guided(stable_diffusion, ["a circle", "a cross"])
    assert "2 pictures" in refusal(switch, base, batch) and "2 pictures" in refusal(UTurn(shade), batch)
    assert "no step 9" in refusal(switch, base, base, [9])


def test_options_that_cannot_be_are_refused():
    assert "draws" in refusal(UTurn, shade, draws=0)
    assert "eta" in refusal(UTurn, shade, eta=2.0)
    assert "every draw is the same" in refusal(PromptSwitch, shade, draws=3)
    assert "pairs" in refusal(Clones, shade, eta=0.0) and "pairs" in refusal(Clones, shade, draws=1)


def test_scenes_that_do_not_fit_are_refused(trace):
    experiment = UTurn(shade, draws=1)
    first, second = experiment(trace, [0, 1]), experiment(trace, [1, 2])
    assert "at least 2" in refusal(across_scenes, [first])
    assert "same steps" in refusal(across_scenes, [first, second])
