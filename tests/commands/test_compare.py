"""The same picture several ways: one thing varies, all else is the same, and what differs is told as it is."""

import itertools
import json
import math
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from oracles import EARLY_60, LATE_60
from pages import Page, data_of, picture_of, unpacked
from pictures import disc_trace
from scipy import ndimage
from small import PIPELINES, SCHEDULERS, refusal

import denoscope
from denoscope import cli
from denoscope.commands import attribution, explain, requests
from denoscope.commands.compare import compare, compared
from denoscope.commands.comparisons import AXES, Comparison
from denoscope.commands.requests import Request
from denoscope.errors import InputError, ModelError, RecordingError, ScheduleError
from denoscope.evaluation.distances import distances, ssim
from denoscope.figures.noise_axis import Axis
from denoscope.figures.variants import plot_variants, shared_levels
from denoscope.recording import schedules
from denoscope.recording.hooks import schedulers
from denoscope.recording.models import Model
from denoscope.report.variants import render_variants
from denoscope.results.explanations import Explanation
from denoscope.results.folders import folder_names
from denoscope.worlds.facts import scene_facts
from denoscope.worlds.shapes.scenes import Scene, Thing, render

PROMPT = "a red circle"


def asked(**settings) -> Request:
    return Request(**{"prompt": PROMPT, "model": "small", "steps": 4, "masks": 8, **settings})


@pytest.fixture
def small(stable_diffusion) -> dict[str, Model]:
    stable_diffusion.set_progress_bar_config(disable=True)
    return {"small": Model(stable_diffusion, "small")}


def variants_of(along, values, small, **settings):
    comparison = Comparison(asked(), along, values, **{"methods": (), **settings})
    return comparison, compare(comparison, models=small)


# What is asked for.


def test_one_thing_varies_and_nothing_else():
    base = asked(seed=7, schedule="early", shift=30.0)
    values = {"shift": (10.0, 60.0), "seed": (0, 1), "guidance": (1.0, 7.5), "scheduler": ("ddpm", "euler"),
              "model": ("a", "b/c"), "lora": (None, "x")}  # fmt: skip
    for along, two in values.items():
        made = Comparison(base, along, two).variants()
        assert [getattr(request, along) for request in made.values()] == list(two)
        for request in made.values():
            others = {name: value for name, value in vars(request).items() if name != along}
            assert others == {name: value for name, value in vars(base).items() if name != along}
    assert set(values) | {"schedule"} == set(AXES)


def test_a_shift_goes_to_the_schedules_that_have_one():
    made = Comparison(asked(), values=("uniform", "early", "band:600", [900, 100]), shift=30.0).variants()
    assert [request.shift for request in made.values()] == [None, 30.0, None, None]
    assert list(made) == ["uniform", "early", "band-600", "2-time-steps"]


TYPED = {
    "nothing": ({}, "schedule", ("uniform", "early", "late")),
    "schedules": ({"schedules": "early, late", "shift": 60.0}, "schedule", ("early", "late")),
    "lists": ({"schedules": "early;999,500,2"}, "schedule", ("early", "999,500,2")),
    "shifts": ({"shifts": "10,60", "schedule": "late"}, "shift", (10.0, 60.0)),
    "seeds": ({"seeds": "0,1,2"}, "seed", (0, 1, 2)),
    "guidances": ({"guidances": "1,7.5", "seed": 3}, "guidance", (1.0, 7.5)),
    "schedulers": ({"schedulers": "ddpm,euler"}, "scheduler", ("ddpm", "euler")),
    "models": ({"models": "a,b/c"}, "model", ("a", "b/c")),
    "lora": ({"lora": "some/folder"}, "lora", (None, "some/folder")),
}


def job_of(words, monkeypatch) -> Comparison:
    """The comparison that a command line makes, without running it."""
    jobs = []
    monkeypatch.setattr(cli, "_do", lambda job, *_: jobs.append(job))
    monkeypatch.setattr(Comparison, "check", lambda *_: None)
    cli.app(["compare", *words], standalone_mode=False)
    (job,) = jobs
    return job


def words_of(typed: dict) -> list[str]:
    words = [PROMPT]
    for name, value in typed.items():
        words += [f"--{name}", str(value)]
    return words


@pytest.mark.parametrize("typed, along, values", TYPED.values(), ids=TYPED)
def test_what_is_typed_is_read_and_written_again(typed, along, values, monkeypatch):
    """Identity: the command that a comparison is recorded with asks for the very same one."""
    words = words_of({"steps": 9, **typed})
    comparison = job_of([*words, "--label", "a cat", "--label", "a dog"], monkeypatch)
    assert (comparison.along, comparison.values, comparison.labels) == (along, values, ("a cat", "a dog"))
    assert job_of(shlex.split(comparison.command())[2:], monkeypatch) == comparison


WRONG = {
    "two axes": (dict(seeds="0,1", guidances="1,2"), "One thing varies at a time"),
    "value and values": (dict(seeds="0,1", seed=3), "--seeds and --seed were given"),
    "one value": (dict(seeds="0"), "at least 2"),
    "twice": (dict(schedules="early,early"), "each once"),
    "no number": (dict(guidances="1,high"), '--guidances is "1,high"'),
    "no whole number": (dict(seeds="0,1.5"), "0,1,2"),
    "unknown schedule": (dict(schedules="erly,late"), 'Did you mean "early"'),
    "shifts of uniform": (dict(shifts="10,60"), '"uniform" has none'),
    "shift of none": (dict(schedules="uniform,band:600", shift=60.0), "has none"),
    "too long": (dict(schedules="uniform,late", steps=990), "fewer steps"),
    "same steps": (dict(schedules="uniform;999,500,500"), "fall strictly"),
    "steps below zero": (dict(at="-1"), "count from 0"),
    "method": (dict(methods="relevanse"), 'Did you mean "relevance"'),
    "scheduler": (dict(scheduler="eulr"), 'Did you mean "euler"'),
    "seed": (dict(seeds="0,-1"), "seed is -1"),
}


@pytest.mark.parametrize("typed, said", WRONG.values(), ids=WRONG)
def test_what_cannot_be_compared(small, typed, said, monkeypatch):
    def call():
        compare(job_of(words_of({"model": "small", **typed}), monkeypatch), models=small)

    assert said in refusal(call)


def test_what_python_can_get_wrong():
    assert 'Did you mean "seed"' in refusal(Comparison, asked(), "seeds", (0, 1))
    assert "at least 2" in refusal(Comparison, asked(), labels=("a cat",))
    assert "but the seeds vary" in refusal(Comparison, asked(), "seed", (0, 1), shift=3.0)


def test_two_scales_without_guidance_are_one_run(small, monkeypatch):
    monkeypatch.setattr(Model, "trace", lambda *args, **kwargs: pytest.fail("a picture was made"))
    message = refusal(compare, Comparison(asked(), "guidance", (0.0, 1.0, 3.0)), models=small)
    assert "The guidance scales 0, 1 are one and the same run" in message


def test_the_record_says_that_guidance_is_off(small):
    """Ground truth: the two runs without guidance are the same, bit for bit."""
    runs = {}
    for scale in (0.0, 1.0, 3.0):
        runs[scale] = explain.explain(asked(guidance=scale, methods=("df-cam",), at=(1,)), model=small["small"])
    assert [each.run["guidance_scale"] for each in runs.values()] == [0, 1, 3]
    assert [each.run["guidance"] for each in runs.values()] == ["off", "off", 3]
    assert np.array_equal(runs[0].pictures["sample"], runs[1].pictures["sample"])
    assert not np.array_equal(runs[1].pictures["sample"], runs[3].pictures["sample"])


def test_a_fixed_grid_is_refused_before_anything_is_made(small, monkeypatch):
    small["small"].pipeline.scheduler = SCHEDULERS["ddim"]()
    monkeypatch.setattr(Model, "trace", lambda *args, **kwargs: pytest.fail("a picture was made"))
    assert "scheduler='dpm-solver++'" in refusal(compare, Comparison(asked()), models=small, kind=ScheduleError)


# What comes of it.


def test_a_variant_is_the_run_alone(small):
    """Oracle: the same request recorded by itself."""
    comparison, found = variants_of("schedule", ("uniform", "early", "late"), small, shift=30.0, methods=("df-rise",))
    for name, request in comparison.variants().items():
        alone = small["small"].trace(**request.arguments())
        assert np.array_equal(found.explanations[name].pictures["image"], np.asarray(alone.image))
        maps = found.explanations[name].methods()["df_rise"]
        again = denoscope.DFRise.paper(num_masks=8)(alone, maps["step"].values.tolist())
        np.testing.assert_array_equal(maps["saliency"], again["saliency"])


def test_the_record_has_the_published_vectors():
    """Ground truth: the published vectors, through the whole record."""
    with torch.device("cpu"):
        pipeline = PIPELINES["stable-diffusion"]()
    pipeline.set_progress_bar_config(disable=True)
    comparison = Comparison(asked(steps=30), values=("early", "late"), shift=60.0, methods=())
    run = compare(comparison, models={"small": Model(pipeline, "small")}).run
    for name, published in (("early", EARLY_60), ("late", LATE_60)):
        told = json.loads(json.dumps(run["variants"][name]))
        assert told["timesteps"] == [int(word) for word in published.split()]
        assert all(isinstance(step, int) for step in told["timesteps"])
        assert told["coverage"] == schedules.coverage(told["log_snr"])
    assert run["variants"]["early"]["coverage"]["clean-up"] < run["variants"]["late"]["coverage"]["clean-up"]


def test_relevance_is_taken_at_every_step_and_others_at_a_few(small):
    _, found = variants_of("seed", (0, 1), small, methods=None)
    assert found.explanations["seed-0"].methods()["relevance"].sizes["step"] == 4
    comparison = Comparison(asked(steps=30), "seed", (0, 1))
    steps = comparison.steps(30, ["relevance", "df_rise"])
    assert list(steps["relevance"]) == list(range(30)) and steps["df_rise"] == requests.early_to_late(30)
    named = Comparison(asked(at=(1, 3)), "seed", (0, 1)).steps(4, ["relevance", "df_rise"])
    assert named == {"relevance": (1, 3), "df_rise": (1, 3)}


def test_swapped_schedulers_are_recorded(small):
    _, found = variants_of("scheduler", ("ddpm", "euler"), small)
    told = found.run["variants"]
    assert [told[name]["scheduler"] for name in ("ddpm", "euler")] == ["DDPMScheduler", "EulerDiscreteScheduler"]
    assert {each["swapped_from"] for each in told.values()} == {"DPMSolverMultistepScheduler"}
    own = small["small"].trace(**asked().arguments())
    assert own.call["scheduler"] is None and found.explanations["ddpm"].run["scheduler"] == "DDPMScheduler"


def test_models_are_loaded_one_after_the_other(small, monkeypatch):
    names = []
    monkeypatch.setattr(explain, "load", lambda name, **_: names.append(name) or Model(small["small"].pipeline, name))
    comparison = Comparison(asked(), "model", ("some/one", "some/two"), methods=())
    found = compare(comparison)
    assert names == ["some/one", "some/two"] and float(found.distances["mse"].max()) == 0


def failing(monkeypatch, error, at=1):
    """Model.trace that fails the second time."""
    trace, calls = Model.trace, itertools.count()

    def sometimes(self, *args, **kwargs):
        if next(calls) == at:
            raise error
        return trace(self, *args, **kwargs)

    monkeypatch.setattr(Model, "trace", sometimes)


def test_what_fails_is_told_and_the_others_go_on(small, monkeypatch):
    failing(monkeypatch, RecordingError("The cable was pulled."))
    _, found = variants_of("seed", (0, 1, 2), small)
    assert list(found.explanations) == ["seed-0", "seed-2"] and found.interruption is None
    run = found.run
    assert run["failures"] == {"seed 1": "The cable was pulled."} and run["interrupted"] is False
    assert "seed 1 is not here. The cable was pulled." in Page(render_variants(found.explanations, run)).said()


def test_nothing_made_is_the_first_failure(small, monkeypatch):
    monkeypatch.setattr(Model, "trace", lambda *_, **__: (_ for _ in ()).throw(RecordingError("No.")))
    with pytest.raises(RecordingError, match="No"):
        variants_of("seed", (0, 1), small)


def test_ctrl_c_keeps_what_was_finished(small, monkeypatch):
    failing(monkeypatch, KeyboardInterrupt())
    _, found = variants_of("seed", (0, 1, 2), small)
    assert list(found.explanations) == ["seed-0"] and "1 of 3 variants" in found.interruption
    run = found.run
    assert run["interrupted"] is True and run["distances"] == []
    assert "There is only one picture" in Page(render_variants(found.explanations, run)).said()
    failing(monkeypatch, KeyboardInterrupt(), at=0)
    with pytest.raises(KeyboardInterrupt):
        variants_of("seed", (0, 1), small)


def test_ctrl_c_in_the_middle_of_a_method_keeps_its_variant(small, monkeypatch):
    from denoscope.attributors.rise import DFRise

    explain, explained = DFRise.explain, []

    def stopped(self, step, advance):
        explained.append(step.index)
        if len(explained) == 2:
            raise KeyboardInterrupt
        return explain(self, step, advance)

    monkeypatch.setattr(DFRise, "explain", stopped)
    _, found = variants_of("seed", (0, 1, 2), small, methods=("df-rise",))
    assert list(found.explanations) == ["seed-0"] and "seed-0: Interrupted: 1 of 4 steps" in found.interruption


# How far apart pictures are.


def noise(seed: int, size=(40, 56)) -> np.ndarray:
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).random((*size, 3)), (2, 2, 0))
    return (255 * (smooth - smooth.min()) / np.ptp(smooth)).round().astype(np.uint8)


def test_ssim_against_scikit_image():
    from skimage.metrics import structural_similarity

    pictures = {"a": noise(0), "b": noise(1), "c": (0.7 * noise(0) + 0.3 * noise(1)).astype(np.uint8)}
    found = distances(pictures)
    for a, b in itertools.product(pictures, repeat=2):
        x, y = pictures[a] / 255, pictures[b] / 255
        options = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0, channel_axis=2)
        whole = structural_similarity(x, y, full=True, **options)[1]
        assert float(found["ssim"].sel(a=a, b=b)) == pytest.approx(whole[7:-7, 7:-7].mean(), abs=2e-3)
        assert float(found["mse"].sel(a=a, b=b)) == pytest.approx(np.mean((x - y) ** 2), rel=1e-9)


def test_equal_pictures_are_no_distance_apart():
    found = distances({"a": noise(0), "b": noise(0)}, lambda pictures: pictures.flatten(1).float())
    assert float(abs(found["mse"]).max()) == 0 and float(abs(1 - found["ssim"]).max()) < 1e-9
    assert float(found["features"].max()) < 1e-6


def test_features_are_compared_by_their_angle():
    """Ground truth: mean colours at right angles, and one that is only brighter."""
    colours = {"red": (200, 0, 0), "blue": (0, 0, 90), "bright": (255, 0, 0)}
    pictures = {name: np.full((8, 8, 3), colour, np.uint8) for name, colour in colours.items()}
    found = distances(pictures, lambda pictures: pictures.float().mean(dim=(2, 3)))["features"]
    assert float(found.sel(a="red", b="blue")) == pytest.approx(1) and float(found.sel(a="red", b="bright")) < 1e-6


def test_other_sizes_have_features_alone():
    found = distances({"a": noise(0), "b": noise(1, (64, 64))}, lambda pictures: pictures.float().mean(dim=(2, 3)))
    assert math.isnan(found["ssim"].values[0, 1]) and math.isfinite(found["features"].values[0, 1])


def test_a_small_picture_has_a_similarity_too():
    one = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    assert ssim(one, one) == pytest.approx(1) and ssim(one, 1 - one) < 0.5


# What each picture shows.

RED = Thing("circle", "red", "large", "plain", 20, 20, 13.0)
BLUE = Thing("square", "blue", "small", "striped", 48, 44, 8.0)


def changed(*scenes: Scene) -> dict[str, dict[str, str]]:
    """What differs from the first, by fact and scene."""
    found = scene_facts({str(i): render(scene) for i, scene in enumerate(scenes)})
    return {fact.name: {name: fact.values[name] for name in fact.changed} for fact in found if fact.changed}


def vary(thing: Thing, **attributes) -> Thing:
    return Thing(**{**vars(thing), **attributes})


@pytest.mark.parametrize(
    "attributes, said",
    [
        (dict(colour="green"), {"red circle: colour": {"1": "green"}}),
        (dict(texture="dotted"), {"red circle: texture": {"1": "dotted"}}),
        (dict(shape="square"), {"red circle: shape": {"1": "square"}}),
        (dict(x=20 + 4), {}),
        (dict(y=20 + 8), {"red circle: position": {"1": "20 across, 28 down"}}),
    ],
)
def test_a_changed_attribute_is_named(attributes, said):
    """Ground truth: rendered scenes that differ in one attribute."""
    scenes = [Scene("white", (thing, BLUE)) for thing in (RED, vary(RED, **attributes))]
    assert changed(*scenes) == said


def test_backgrounds_and_missing_things_are_named():
    alone = changed(Scene("white", (RED, BLUE)), Scene("pink", (BLUE,)), Scene("white", (BLUE, RED)))
    assert alone["background"] == {"1": "pink"} and alone["number of things"] == {"1": "1"}
    assert {name for name in alone if name.startswith("red circle")} == {
        f"red circle: {attribute}" for attribute in ("shape", "colour", "size", "texture", "position")
    }
    assert not any(name.startswith("blue square") for name in alone)
    more = changed(Scene("white", (BLUE,)), Scene("white", (BLUE, RED)))
    assert more["what else there is"] == {"1": "large plain red circle"}
    assert changed(Scene("white", ()), Scene("white", ())) == {}


def test_alike_things_are_matched_by_where_they_are():
    two = (vary(BLUE, x=12), BLUE)
    assert changed(Scene("white", two), Scene("white", two[::-1])) == {}


# The page and the still picture.


def ramped(levels, title="relevance", words=("red", "disc"), seed=0) -> Explanation:
    """A recorded run at these noise levels, with a map and a relevance for each word at every step."""
    trace = disc_trace().isel(step=slice(0, len(levels))).assign_coords(log_snr=("step", np.asarray(levels, float)))
    rng = np.random.default_rng(seed)
    values = xr.Dataset(
        {
            "saliency": (("step", "token", "y", "x"), rng.random((len(levels), len(words), 4, 4))),
            "relevance_scaled": (("step", "token"), rng.random((len(levels), len(words)))),
        },
        {**trace.drop_vars(list(trace.data_vars)).coords, "token": list(words)},
        {"title": title},
    )
    return Explanation.of(trace, {"relevance": values}, {"model": "small", "seconds": {}, "interrupted": False})


def two() -> tuple[dict[str, Explanation], dict]:
    explanations = {"early": ramped([-5, -4, -3]), "late": ramped([-5, 1, 2, 3], seed=1)}
    comparison = Comparison(asked(prompt='a <b>"red"</b> disc'), values=("early", "late"))
    return explanations, compared(comparison, explanations).run


def test_every_step_of_every_variant_is_shown_at_its_own_noise():
    explanations, run = two()
    data = data_of(render_variants(explanations, run))
    levels = [-5, -4, -3, 1, 2, 3]
    assert [step["log_snr"] for step in data["steps"]] == [str(level).replace("-", "−") for level in levels]
    assert [variant["places"] for variant in data["variants"]] == [[0, 1, 2, 2, 2, 2], [0, 0, 0, 1, 2, 3]]
    for variant, explanation in zip(data["variants"], explanations.values(), strict=True):
        for place, picture in enumerate(variant["pictures"]):
            shown = explanation.pictures["pred_original_sample"].values[place]
            np.testing.assert_array_equal(picture_of(picture), shown)


def test_places_are_the_last_step_no_less_noisy():
    """Oracle: a slow search, on random grids with repeated and infinite levels."""
    rng = np.random.default_rng(0)
    grids = [np.sort(rng.normal(0, 3, n)) for n in (1, 5, 9)] + [np.array([-np.inf, -1, -1, 4, np.inf])]
    traces = [xr.Dataset(coords={"log_snr": ("step", g), "timestep": ("step", g)}) for g in grids]
    axis = Axis.of(traces)
    assert len(axis.levels) == len(np.unique(np.round(np.concatenate(grids), 3)))
    for grid, trace in zip(grids, traces, strict=True):
        slow = [max([i for i, level in enumerate(grid) if level <= at + 1e-9], default=0) for at in axis.levels]
        assert axis.places(trace) == slow
    assert axis.across(-np.inf) == 0 and axis.across(np.inf) == 100
    assert [axis.levels[i] for i in shared_levels(axis, 2)] == [-np.inf, np.inf] or len(shared_levels(axis, 2)) == 2


def test_the_maps_of_a_word_share_one_scale():
    explanations, run = two()
    page = render_variants(explanations, run)
    data = data_of(page)
    raw = {name: each.methods()["relevance"] for name, each in explanations.items()}
    for i in range(2):
        largest = max(float(each["saliency"].isel(token=i).max()) for each in raw.values())
        for variant, each in zip(data["variants"], raw.values(), strict=True):
            carried = variant["maps"][i]
            assert carried["limits"][1] == pytest.approx(largest)
            found = unpacked(carried["maps"]["1"], carried["shape"])
            np.testing.assert_allclose(found, each["saliency"].isel(token=i).sel(step=1), atol=1e-4)
    best = max(run["variants"]["early"]["relevance"], key=lambda entry: entry[1])[0]
    (chosen,) = [tag for tag, attributes in Page(page).tags if tag == "option" and "selected" in attributes]
    assert f"relevance: {best}" in Page(page).said() and chosen


def test_totals_are_sums_over_the_steps():
    explanations, run = two()
    for name, each in explanations.items():
        values = each.methods()["relevance"]["relevance_scaled"].values
        assert [word for word, _ in run["variants"][name]["relevance"]] == ["red", "disc"]
        told = [total for _, total in run["variants"][name]["relevance"]]
        assert told == pytest.approx([sum(column) for column in values.T])
        assert all(f">{total:.1f}<" in render_variants(explanations, run) for total in told)


def test_the_page_is_self_contained_and_everything_is_text():
    page = render_variants(*two())
    without_pictures = re.sub(r"data:image/\w+;base64,[\w+/=]+", "", page)
    assert "http" not in without_pictures and "url(" not in page and 'a <b>"red"</b> disc' in Page(page).said()
    links = {a["href"] for tag, a in Page(page).tags if tag == "a"}
    assert links == {"early/report.html", "late/report.html"}


def test_bands_lie_where_the_snr_says():
    explanations, run = two()
    (content,) = re.findall(
        r'class="region even" style="left: ([\d.]+)%; width: ([\d.]+)%', render_variants(explanations, run)
    )
    assert float(content[0]) == pytest.approx(100 * (math.log(0.01) + 5) / 8, abs=0.01)
    assert sum(map(float, content)) == pytest.approx(100 * 5 / 8, abs=0.01)


def test_pictures_that_look_the_same_are_a_warning():
    explanations, run = two()
    assert run["distances"][0]["ssim"] == pytest.approx(1)
    assert "The pictures look the same." in Page(render_variants(explanations, run)).said()
    run["distances"][0]["ssim"] = 0.9
    assert "The pictures look the same." not in Page(render_variants(explanations, run)).said()


def test_other_words_have_no_shared_chart():
    explanations, run = two()
    other = ramped([-5, 0], words=("blue", "disc"))
    explanations["late"] = other
    comparison = Comparison(asked(), values=("early", "late"))
    run = compared(comparison, explanations).run
    page = render_variants(explanations, run)
    assert page.count('class="curve"') == 2 and "blue" in page  # its maps are still there


def test_the_still_picture_has_a_row_for_each_variant():
    """Ground truth: the shown pictures are those of the steps no less noisy than the column."""
    explanations, run = two()
    figure = plot_variants(explanations, run)
    strips = figure.subfigs[0].axes
    assert len(strips) == 2 * 9 and len(figure.subfigs) == 3
    shown = strips[9 + 8].get_images()[0].get_array()
    np.testing.assert_array_equal(shown, explanations["late"].pictures["image"])
    first = strips[9].get_images()[0].get_array()
    np.testing.assert_array_equal(first, explanations["late"].pictures["pred_original_sample"][0])


def test_nothing_cannot_be_shown():
    with pytest.raises(InputError, match="at least one variant"):
        render_variants({}, {})


# The folder and the command line.


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["denoscope", *map(str, words)])
        monkeypatch.chdir(tmp_path)
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        return left.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("pipelines") / "text"
    PIPELINES["stable-diffusion"]().save_pretrained(place)
    return place


def test_a_comparison_is_whole_and_can_be_run_again(run, folder, tmp_path):
    words = ("compare", PROMPT, "--model", folder, "--steps", 3, "--guidances", "1,3", "--methods", "df-rise")
    status, out, err = run(*words, "--masks", 4, "--label", "a red circle", "--label", "a blue square", "--out", "one")
    assert status == 0, err
    assert {path.name for path in (tmp_path / "one").iterdir()} == {
        "report.html", "comparison.png", "run.json", "guidance-1", "guidance-3"
    }  # fmt: skip
    told = json.loads((tmp_path / "one" / "run.json").read_text())
    assert [each["guidance_scale"] for each in told["variants"].values()] == [1, 3] and told["facts"] == []
    assert sum(told["ratings"]["guidance-1"].values()) == pytest.approx(1) and "clean-up" in out
    assert run(*shlex.split(told["command"])[1:], "--out", "two")[0] == 0
    for name in ("guidance-1", "guidance-3"):
        one, two = (Explanation.load(tmp_path / place / name) for place in ("one", "two"))
        assert one.pictures.equals(two.pictures) and one.methods()["df_rise"].equals(two.methods()["df_rise"])
    assert "an earlier run is there" in run(*words, "--out", "one")[2]
    assert run(*words, "--out", "one", "--masks", 4, "--overwrite")[0] == 0


def test_a_failure_is_told_and_what_was_made_is_written(run, folder, tmp_path, monkeypatch):
    failing(monkeypatch, RecordingError("The cable was pulled."))
    words = ("compare", PROMPT, "--model", folder, "--steps", 2, "--seeds", "0,1", "--methods", "df-rise", "--masks", 4)
    status, out, err = run(*words)
    assert status == 1 and "denoscope: seed 1: The cable was pulled." in err and "Report: " in out
    assert {path.name for path in (tmp_path / "denoscope-out").iterdir()} == {
        "report.html", "comparison.png", "run.json", "seed-0"
    }  # fmt: skip


@pytest.mark.parametrize(
    "words, said",
    [
        (("--seeds", "0,1", "--seed", 2), "--seeds and --seed were given"),
        (("--schedules", "early,erly"), 'Did you mean "early"'),
        (("--schedules", "uniform,band:990"), "from 990 to 1040"),
        (("--models", "a,b"), "--models and --model were given"),
    ],
)
def test_bad_input_is_one_paragraph(run, folder, tmp_path, words, said):
    status, out, err = run("compare", PROMPT, "--model", folder, "--steps", 2, *words)
    assert (status, out, list(tmp_path.iterdir())) == (2, "", []) and said in err.splitlines()[-1]
    assert len([line for line in err.splitlines() if line.startswith("denoscope: ")]) == 1 and "Traceback" not in err


def test_folders_are_told_apart_whatever_the_case():
    assert folder_names(["a", "A", "run.json", "a-2"]) == ["a", "A-2", "run.json-2", "a-2-2"]


# LoRA: peft is no dependency of the tests, so what is asked of the pipeline is what is tested.


class Adapted:
    """What a pipeline with diffusers' LoRA mixin does, as far as it is asked."""

    def __init__(self, active=()):
        self.told, self.active = [], list(active)

    def get_active_adapters(self):
        return list(self.active)

    def load_lora_weights(self, folder, adapter_name, use_safetensors):
        if folder == "bad":
            raise OSError("no file\nof weights")
        self.told.append(("load", folder, adapter_name, use_safetensors))
        self.active = [adapter_name]

    def unload_lora_weights(self):
        self.told.append("unload")
        self.active = []

    def delete_adapters(self, names):
        self.told.append(("delete", *names))

    def set_adapters(self, names):
        self.told.append(("set", *names))
        self.active = list(names)


@pytest.mark.parametrize("before", [(), ("theirs",)])
@pytest.mark.parametrize("folder", ["good", "bad"])
def test_a_lora_is_gone_afterwards_and_others_are_back(monkeypatch, before, folder):
    monkeypatch.setattr(schedulers, "find_spec", lambda name: True)
    pipeline = Adapted(before)
    with (
        pytest.raises(KeyboardInterrupt if folder == "good" else ModelError) as stopped,
        schedulers.lora(pipeline, folder),
    ):
        assert pipeline.active == [schedulers.LORA] and pipeline.told == [("load", "good", schedulers.LORA, True)]
        raise KeyboardInterrupt
    assert pipeline.active == list(before) and (before or pipeline.told[-1] == "unload")
    assert folder == "good" or '"bad" could not be loaded: no file of weights.' in str(stopped.value)


def test_a_missing_peft_is_said_before_anything_is_made(small, monkeypatch):
    monkeypatch.setattr(schedulers, "find_spec", lambda name: None)
    monkeypatch.setattr(Model, "trace", lambda *args, **kwargs: pytest.fail("a picture was made"))
    message = refusal(compare, Comparison(asked(), "lora", (None, "x")), models=small, kind=ModelError)
    assert "pip install peft" in message


def test_a_lora_lasts_while_its_variant_is_explained(small, monkeypatch):
    """Relevance calls the denoiser again: it must be the one that made the picture."""
    monkeypatch.setattr(schedulers, "find_spec", lambda name: True)
    now = []
    for name in ("get_active_adapters", "unload_lora_weights"):
        monkeypatch.setattr(small["small"].pipeline, name, lambda name=name: now.append(name) or [])
    monkeypatch.setattr(small["small"].pipeline, "load_lora_weights", lambda folder, **_: now.append(folder))
    attribute = attribution.attribute
    monkeypatch.setattr(explain, "attribute", lambda *args: now.append("explained") or attribute(*args))
    comparison, found = variants_of("lora", (None, "some/lora"), small, methods=("df-rise",))
    assert now == ["explained", "get_active_adapters", "some/lora", "explained", "unload_lora_weights"]
    assert [each["lora"] for each in found.run["variants"].values()] == [None, "some/lora"]
    assert comparison.titles() == ["without LoRA", "with lora"]


def test_a_pipeline_that_takes_no_lora_says_so():
    def opened():
        with schedulers.lora(PIPELINES["ddpm"](), "x"):
            pass

    assert "takes no LoRA" in refusal(opened, kind=ModelError)
