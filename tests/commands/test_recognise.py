"""The photograph study from end to end, on pictures of the shapes world and its own small classifier."""

import shlex

import numpy as np
import pytest
import torch
from PIL import Image

from denoscope import cli
from denoscope.attributors.gradients import GradientShap, IntegratedGradients
from denoscope.attributors.occlusion import Occlusion
from denoscope.commands.recognise import recognise
from denoscope.commands.requests import Request
from denoscope.commands.studies import Study, preset_of
from denoscope.errors import InputError, Interrupted, NumericsError
from denoscope.results.explanations import Explanation
from denoscope.results.folders import WRITTEN_TOGETHER
from denoscope.targets import ClassScore
from denoscope.vision import frames
from denoscope.vision.classifiers import load_classifier
from denoscope.worlds.shapes.scenes import Scene, render

TEXTS = ("a red background", "a green background")


class Brightness(torch.nn.Module):
    """Two classes, dark and bright, by the mean of the left half; NaN for pure black."""

    def forward(self, inputs):
        level = inputs[..., : inputs.shape[-1] // 2].mean(dim=(1, 2, 3))
        level = torch.where(level < -0.999, torch.nan, level)
        return 8 * torch.stack([-level, level], dim=1)


@pytest.fixture
def brightness():
    return load_classifier(Brightness(), ["dark", "bright"], size=16, mean=0.5, std=0.5)


def saved(picture, path):
    Image.fromarray((np.asarray(picture) * 255).round().astype(np.uint8)).save(path)
    return str(path)


@pytest.fixture
def bright(tmp_path):
    return saved(np.full((20, 20, 3), 0.9), tmp_path / "bright.png")


def short(photographs, **options):
    return Study(tuple(photographs), **{"frames": 8, "draws": 3, "at": (2, 6), **options})


def test_a_photograph_is_followed_timed_and_attributed(brightness, bright):
    found = recognise(short([bright], map_draws=2), classifier=brightness)
    explanation = found.explanations["bright"]
    assert explanation.likelihood.dims == ("step", "draw", "label")
    assert explanation.likelihood.shape == (8, 3, 1)
    assert explanation.timing.final.sel(quantile="median").item() > 0.95
    assert list(explanation.methods()) == ["integrated_gradients", "gradient_shap", "occlusion"]
    for name, method in explanation.methods().items():
        assert method.saliency.dims == ("step", "draw", "y", "x"), name
        assert method.saliency.shape == (2, 2, 16, 16), name
        assert list(method.step.values) == [2, 6], name
        left, right = np.abs(method.saliency.values[..., :7]), np.abs(method.saliency.values[..., 9:])
        assert left.mean() > 20 * max(right.mean(), 1e-9), f"{name}: only the left half is looked at"
        assert method.frequency.dims == ("step", "draw"), name


def test_the_first_draws_are_the_same_however_many_there_are(brightness, bright):
    one, three = (recognise(short([bright], draws=n), classifier=brightness).explanations["bright"] for n in (1, 3))
    assert np.array_equal(one.likelihood.values[:, 0], three.likelihood.values[:, 0])
    assert np.array_equal(one.methods()["occlusion"].saliency, three.methods()["occlusion"].saliency)


@pytest.mark.parametrize("make", [IntegratedGradients, GradientShap, Occlusion])
@pytest.mark.parametrize("draws", [1, 2])
def test_frames_together_get_the_maps_they_get_alone(brightness, make, draws):
    clean = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(1))
    sequence, attributor = frames.blend(clean, 6, draws), make(ClassScore(brightness, "bright"))
    together = attributor(sequence)
    assert len(attributor.groups(list(sequence))) == (2 if draws == 1 else 3)
    for index in range(6):
        alone = attributor(sequence, [index])
        for name in alone:
            assert np.allclose(together[name].sel(step=index), alone[name][0], atol=1e-6), (name, index)


def test_labels_are_those_given_or_what_each_clean_photograph_is_taken_for(brightness, bright, tmp_path):
    dark = saved(np.full((20, 20, 3), 0.2), tmp_path / "dark.png")
    both = recognise(short([bright, dark]), classifier=brightness).explanations
    assert list(both["dark"].likelihood.label.values) == ["bright", "dark"]
    assert (both["bright"].run["label"], both["dark"].run["label"]) == ("bright", "dark")
    given = recognise(short([bright], labels=("dark",)), classifier=brightness).explanations["bright"]
    assert given.run["label"] == "dark"
    assert given.timing.crossing.isnull().all(), "a label that is never reached is a value, not a failure"


def test_files_of_one_name_get_folders_of_their_own(brightness, bright, tmp_path):
    (tmp_path / "other").mkdir()
    again = saved(np.full((20, 20, 3), 0.8), tmp_path / "other" / "bright.png")
    assert list(recognise(short([bright, again]), classifier=brightness).explanations) == ["bright", "bright-2"]


def test_folders_are_told_apart_without_case_and_from_what_is_written_beside_them(brightness, tmp_path):
    names = ("one/cat.png", "two/Cat.png", "three/CAT-2.png", "REPORT.html.png", "run.json.png", "comparison.png")
    files = []
    for i, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        files.append(saved(np.full((20, 20, 3), 0.5 + i / 20), tmp_path / name))
    found = recognise(short(files, methods=("occlusion",), labels=("bright",)), classifier=brightness).explanations
    assert list(found) == ["cat", "Cat-2", "CAT-2-2", "REPORT.html-2", "run.json-2", "comparison"]
    assert len({name.casefold() for name in (*found, *WRITTEN_TOGETHER)}) == 6 + len(WRITTEN_TOGETHER)


def test_a_mask_goes_through_the_crop_of_its_photograph(brightness, tmp_path):
    wide = saved(np.random.default_rng(0).random((20, 40, 3)), tmp_path / "wide.png")
    drawn = np.zeros((20, 40))
    drawn[:, 10:20] = 1  # the left half of the square in the middle
    mask = saved(drawn, tmp_path / "mask.png")
    explanation = recognise(short([wide], masks=(mask,)), classifier=brightness).explanations["wide"]
    inside = explanation.methods()["integrated_gradients"].share_inside
    assert (inside > 0.99).all(), "the classifier looks at the left half alone, and that is the mask"


def test_what_a_later_photograph_fails_on_does_not_stop_the_others(brightness, bright, tmp_path):
    black = saved(np.zeros((20, 20, 3)), tmp_path / "black.png")
    grey = saved(np.full((20, 20, 3), 0.6), tmp_path / "grey.png")
    found = recognise(short([bright, black, grey], labels=("bright",)), classifier=brightness)
    assert list(found.explanations) == ["bright", "grey"]
    assert "NaN" in found.failures["black"]
    with pytest.raises(NumericsError):
        recognise(short([black], labels=("bright",)), classifier=brightness)


def stopping(calls, monkeypatch):
    """Ctrl-C at so manieth explanation of a step."""
    explain, count = Occlusion.explain, iter(range(100))

    def explain_or_stop(self, step, advance):
        if next(count) == calls:
            raise KeyboardInterrupt
        return explain(self, step, advance)

    monkeypatch.setattr(Occlusion, "explain", explain_or_stop)


def test_ctrl_c_keeps_what_was_finished_and_stops(brightness, bright, tmp_path, monkeypatch):
    stopping(1, monkeypatch)
    other = saved(np.full((20, 20, 3), 0.8), tmp_path / "other.png")
    found = recognise(short([bright, other], map_draws=3), classifier=brightness)
    assert found.interrupted
    assert list(found.explanations) == ["bright"], "the next photograph is not begun"
    methods = found.explanations["bright"].methods()
    assert methods["gradient_shap"].sizes["step"] == 2
    assert methods["occlusion"].sizes["step"] == 1


@pytest.mark.slow
def test_a_generation_is_attributed_through_the_denoiser():
    study = Study(
        trace=Request("a large plain red circle on a white background", steps=4, guidance=3.0),
        labels=("a white background", "a black background"),
        classifier="shapes",
        at=(1, 3),
        methods=("integrated-gradients",),
    )
    explanation = recognise(study).explanations["generation"]
    assert explanation.pictures.sizes["step"] == 4 and "pred_original_sample" in explanation.pictures
    assert explanation.likelihood.shape == (4, 1, 2)
    method = explanation.methods()["integrated_gradients"]
    assert method.saliency.dims == ("step", "y", "x") and method.saliency.shape == (2, 16, 16)
    assert explanation.run["mask"] and method.share_inside.dims == ("step",)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(photographs=()), "at least one photograph"),
        (dict(trace=Request("a red circle")), "not both"),
        (dict(noising="blnd"), 'Did you mean "blend"'),
        (dict(map_draws=4), "Give 1 to 3"),
        (dict(at=(2, 8)), "8 steps, 0"),
        (dict(at=(2, 2)), "each once"),
        (dict(frames=0), "frames is 0"),
        (dict(methods=("oclusion",)), 'Did you mean "occlusion"'),
        (dict(masks=("a.png", "b.png")), "2 masks and 1 pictures"),
        (dict(n_steps=1), "n_steps is 1"),
    ],
)
def test_what_cannot_be_done_as_asked_is_told_before_anything_is_computed(brightness, bright, options, says):
    with pytest.raises(InputError, match=says):
        recognise(short(**{"photographs": [bright], **options}), classifier=brightness)


def test_steps_that_a_generation_will_not_have_are_refused_before_it_is_made():
    with pytest.raises(InputError, match="12 steps, 0"):
        Study(trace=Request("a red circle", steps=12), at=(12,))


def test_masks_that_do_not_fit_are_refused(brightness, bright, tmp_path):
    square = saved(np.zeros((20, 20)), tmp_path / "empty.png")
    wide = saved(np.ones((20, 40)), tmp_path / "wide.png")
    for mask, says in ((square, "is empty"), (wide, "40 × 20 and its photograph 20 × 20")):
        with pytest.raises(InputError, match=says):
            recognise(short([bright], masks=(mask,)), classifier=brightness)


def job_of(words, monkeypatch):
    """The job that a command line makes, without running it."""
    jobs = []
    monkeypatch.setattr(cli, "_do", lambda job, *_: jobs.append(job))
    cli.app(words, standalone_mode=False)
    (job,) = jobs
    return job


def test_the_preset_is_the_study_and_an_option_replaces_its_setting(monkeypatch):
    words = ["recognise", "cat.png", "--preset", "study"]
    study = job_of(words, monkeypatch)
    assert (study.frames, study.noising, study.at, study.preset) == (100, "blend", "all", "study")
    assert (study.n_steps, Study(photographs=("cat.png",)).n_steps) == (20, 50)
    assert job_of([*words, "--frames", "10"], monkeypatch).frames == 10
    with pytest.raises(InputError, match='Did you mean "study"'):
        preset_of("studdy")


@pytest.mark.parametrize(
    "asked",
    [
        dict(photographs=("a cat.png", "b.png"), labels=("tiger", "285"), masks=("m.png", "n.png"), at=(3, 4), draws=2),
        dict(photographs=("a.png",), noising="ddpm", beta_schedule="scaled_linear", frames=20, at="all", seed=7),
        dict(trace=Request("a red circle", steps=12, guidance=3.0, seed=3), seed=3, classifier="shapes", labels=TEXTS),
    ],
)
def test_the_command_that_is_recorded_asks_for_the_same_again(asked, monkeypatch):
    study = Study(**asked)
    assert job_of(shlex.split(study.command())[1:], monkeypatch) == study


def test_one_photograph_and_several_are_written_whole_and_read_back(brightness, bright, tmp_path):
    dark = saved(np.full((20, 20, 3), 0.2), tmp_path / "dark.png")
    study = short([bright, dark])
    found = recognise(study, classifier=brightness)
    folder = found.save(tmp_path / "out")
    assert {path.name for path in folder.iterdir()} == {"report.html", "comparison.png", "run.json", "bright", "dark"}
    again = Explanation.load(folder / "dark")
    assert np.array_equal(again.likelihood, found.explanations["dark"].likelihood)
    assert again.run["label"] == "dark"
    assert {path.name for path in (folder / "dark" / "figures").iterdir()} >= {"likelihood.png", "occlusion.png"}
    with pytest.raises(InputError, match="earlier run"):
        found.save(folder)
    found.save(folder, overwrite=True)
    (folder / "mine.txt").write_text("keep me")
    with pytest.raises(InputError, match=r"mine\.txt"):
        found.save(folder, overwrite=True)


def test_the_command_line_tells_the_moments_and_where_the_report_is(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")  # where a label stands on one line
    photo = saved(render(Scene.random(3, count=1)), tmp_path / "scene.png")
    words = ["recognise", photo, "--classifier", "shapes", "--frames", "6", "--draws", "2", "--at", "4,5"]
    labels = [word for text in TEXTS for word in ("--label", text)]
    status = cli._run([*words, *labels, "--methods", "occlusion", "--out", str(tmp_path / "out")])
    told = capsys.readouterr()
    assert status == 0, told.err
    assert "a red background" in told.out and str(tmp_path / "out" / "report.html") in told.out.replace("\n", "")
    assert Explanation.load(tmp_path / "out").methods()["occlusion"].sizes["step"] == 2
    assert cli._run(["recognise", str(tmp_path / "none.png")]) == 2
    assert "none.png" in capsys.readouterr().err


def test_interrupted_before_anything_was_finished_says_so(brightness, bright, monkeypatch):
    monkeypatch.setattr(frames.NoisedFrame, "images", property(lambda self: (_ for _ in ()).throw(KeyboardInterrupt)))
    study = short([bright])
    with pytest.raises((Interrupted, KeyboardInterrupt)):
        recognise(study, classifier=brightness)
