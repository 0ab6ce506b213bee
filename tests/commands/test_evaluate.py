"""The evaluation measures pictures until there are enough, goes on where it was stopped, and says what failed."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import xarray as xr
from PIL import Image
from small import refusal

from denoscope import cli
from denoscope.commands import methods, subjects, trial
from denoscope.commands.checks.registry import usual_checks
from denoscope.commands.evaluate import Evaluation, SkippedWarning
from denoscope.commands.scores import gather
from denoscope.commands.subjects import bundled_subject
from denoscope.commands.trial import Trial
from denoscope.errors import InputError, Interrupted, RecordingError
from denoscope.recording.limits import limit_in_effect
from denoscope.results.resumable import ResumableFolder

pytestmark = pytest.mark.filterwarnings("ignore::denoscope.commands.evaluate.SkippedWarning")

FAST = dict(steps=6, at=(2, 4), methods=("df-cam",), checks=("localisation",))
FLAGS = "--steps 6 --at 2,4 --methods df-cam,words --checks localisation,sanity --workers 1".split()


def evaluation_of(folder, **settings) -> Evaluation:
    """The evaluation of the small model in a folder of `own_model`."""
    paths = dict(model=str(folder / "model"), prompts=str(folder / "prompts.txt"), masks=str(folder / "masks"))
    return Evaluation(**{**paths, "steps": 4, "methods": ("df-cam", "words"), "at": (1, 2), **settings})


def run(evaluation: Evaluation, folder, **options):
    return evaluation.run(folder=folder, **{"workers": 1, **options})


def measures(result) -> str:
    """The figures of the leaderboard as text, in which NaN equals NaN."""
    return json.dumps(result.table["measures"])


def command(folder, out, *more) -> list[str]:
    paths = ["--model", folder / "model", "--prompts", folder / "prompts.txt", "--masks", folder / "masks"]
    settings = "--steps 4 --at 1,2 --methods df-cam,words,df-rise --num-masks 8 --workers 1".split()
    words = ["evaluate", *paths, *settings, *more, "--out", out]
    return [sys.executable, "-m", "denoscope", *map(str, words)]


def status_of(monkeypatch, words) -> int:
    """The exit status of a command line, run in this process."""
    monkeypatch.setattr(sys, "argv", ["denoscope", *words])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return left.value.code


# Settings.


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"methods": ("df-rize",)}, 'Did you mean "df-rise"'),
        ({"methods": ("words", "words")}, "each once"),
        ({"checks": ()}, "--checks is empty"),
        ({"checks": ("sanety",)}, 'Did you mean "sanity"'),
        ({"scenes": 1}, "at least 2"),
        ({"prompts": "p.txt"}, "for other models"),
        ({"model": "someone/model"}, "--prompts FILE"),
        ({"at": (30,)}, "0 (the noisiest) to 29"),
        ({"at": (3, 3)}, "each once"),
        ({"at": ()}, "(none)"),
        ({"steps": 0}, "--steps is 0. Give at least 1"),
        ({"num_masks": 0}, "--num-masks is 0. Give at least 4"),
        ({"seed": 1}, "seeds of their own"),
        ({"seed": -1}, "seed is -1"),
        ({"model": "m", "prompts": "p.txt", "checks": ("games",)}, "--encoder"),
        ({"model": "m", "prompts": "p.txt", "checks": ("localisation",)}, "--masks FOLDER"),
        ({"model": "m", "prompts": "p.txt", "methods": ("occlusion", "df-cam")}, "explains a class"),
    ],
)
def test_bad_settings_are_refused_before_any_work(settings, message):
    assert message in refusal(Evaluation, **settings)


@pytest.mark.parametrize("words", [("--steps", "0"), ("--seed", "-1"), ("--scenes", "1"), ("--at", "30")])
def test_impossible_numbers_are_refused_without_torch(words):
    script = """
import sys
from denoscope.cli import main
sys.argv = ["denoscope", "evaluate", *sys.argv[1:]]
try:
    main()
except SystemExit as left:
    print("STATUS", left.code, "torch" in sys.modules)
"""
    ran = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, timeout=120)
    assert ran.stdout.splitlines()[-1] == "STATUS 2 False", ran.stderr


def test_the_steps_are_early_middle_and_late():
    assert Evaluation().steps_shown == (6, 15, 24) and Evaluation().trial_settings().middle == 15
    assert Evaluation(steps=3, at="all").steps_shown == (0, 1, 2)


def test_how_many_scenes_is_no_setting_of_the_results():
    assert Evaluation(scenes=3).settings() == Evaluation(scenes=50).settings()
    assert Evaluation(num_masks=8).settings() != Evaluation().settings()


def test_the_command_asks_for_the_same_again():
    evaluation = Evaluation(scenes=3, at=(1, 2), methods=("words",), num_masks=8)
    assert evaluation.command() == "denoscope evaluate --scenes 3 --methods words --at 1,2 --num-masks 8"


def test_checks_that_do_not_apply_to_ones_own_model_are_skipped(own_model):
    evaluation = evaluation_of(own_model, methods=None, masks=None)
    assert set(evaluation.skipped_checks) == {"localisation", "games"} and evaluation.count is None
    assert "occlusion" not in evaluation.methods_used
    assert set(evaluation.checks_used) == set(usual_checks()) - {"localisation", "games"}


# Measured pictures.


def test_the_clean_colours_show_where_things_are_and_random_numbers_do_not(tmp_path):
    evaluation = Evaluation(methods=("df-cam",), checks=("localisation",), at=(20,), scenes=3)
    rows = run(evaluation, tmp_path / "out").table["measures"]["auroc"]
    auroc = {name: row["20"]["mean"] for name, row in rows.items()}
    assert auroc["clean colours"] > 0.9 and auroc["random"] < 0.65 and auroc["constant"] == 0.5
    assert rows["clean colours"]["20"]["count"] == rows["random"]["20"]["count"] == 3


def test_a_picture_that_is_not_as_prompted_is_skipped(monkeypatch, tmp_path):
    def masks_of_things(picture, scene):
        return None if scene.seed % 2 else picture[None, ..., 0] > 0.5

    monkeypatch.setattr(subjects, "masks_of_things", masks_of_things)
    result = run(Evaluation(**FAST, scenes=2), tmp_path / "out")
    names = [int(trial.subject.name) for trial in result.trials]
    assert len(names) == 2 and all(name % 2 == 0 for name in names) and result.failures == {}
    odd = Trial.from_json(ResumableFolder(result.folder).read(bundled_subject(1).name))
    assert "does not show the things" in odd.skipped


@pytest.mark.slow
def test_a_model_of_ones_own_is_measured_by_ones_own_masks(own_model):
    result = run(evaluation_of(own_model, scenes=3), own_model / "out")
    rows = result.table["measures"]
    assert result.table["scenes"] == 3 and result.failures == {} and not result.interrupted
    assert rows["auroc"]["words"]["1"]["count"] == 2  # the third has no mask
    assert rows["weights, all"]["words"]["2"]["count"] == 3
    assert "weights, above chance" in rows
    assert "deletion" not in rows  # no encoder was named


def test_skipped_checks_and_unused_masks_are_warned_of(own_model, monkeypatch, capsys):
    (own_model / "masks" / "thrid.png").write_bytes((own_model / "masks" / "first.png").read_bytes())
    words = command(own_model, own_model / "out", "--checks", "localisation")[3:]
    assert status_of(monkeypatch, words) == 0
    printed = capsys.readouterr()
    assert "masks that belong to no prompt: thrid.png" in printed.err
    assert "] of 2" in printed.out  # of three pictures two have a mask
    assert "3 pictures" in printed.out
    chosen = evaluation_of(own_model, methods=("df-cam",), scenes=2)
    with pytest.warns(SkippedWarning, match=r"games is skipped: .*--encoder"):
        chosen._warn_of_skipped([])


def test_masks_of_another_size_than_the_picture_are_refused_at_the_first(own_model):
    for name in ("first", "second"):
        Image.fromarray(np.eye(5, dtype=np.uint8) * 255).save(own_model / "masks" / f"{name}.png")
    with pytest.raises(InputError, match="5 × 5 and its picture"):
        run(evaluation_of(own_model, scenes=3), own_model / "out")


def test_masks_that_are_empty_or_differ_in_size_are_refused_before_any_work(own_model):
    Image.fromarray(np.eye(5, dtype=np.uint8) * 255).save(own_model / "masks" / "second.png")
    assert "is 5 × 5 and" in refusal(evaluation_of(own_model).read_subjects)
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(own_model / "masks" / "second.png")
    message = refusal(evaluation_of(own_model).read_subjects)
    assert "second.png" in message and "is empty" in message


@pytest.mark.slow
@pytest.mark.usefixtures("things_as_prompted")
def test_a_method_that_fails_on_one_picture_is_recorded_and_tried_again(monkeypatch, tmp_path):
    right, explained = methods.attributor_for, []

    def sometimes(name, settings, subject):
        if name == "words" and subject.scene == 2:
            raise KeyError("lost") if subject.seed % 4 == 1 else RecordingError("The words were lost.")
        return right(name, settings, subject)

    def watched(name, settings, subject):
        explained.append((name, subject.scene))
        return right(name, settings, subject)

    evaluation = Evaluation(**{**FAST, "methods": ("df-cam", "words")}, scenes=4)
    with monkeypatch.context() as broken:
        broken.setattr(trial, "attributor_for", sometimes)
        first = run(evaluation, tmp_path / "out")
    assert first.failures == {"words": "failed 2 times: KeyError: 'lost'"}
    assert first.record()["failures"] == {"words": {"times": 2, "first": "KeyError: 'lost'"}}
    assert first.table["measures"]["auroc"]["words"]["2"]["count"] == 2
    assert first.table["measures"]["auroc"]["df-cam"]["2"]["count"] == 4
    monkeypatch.setattr(trial, "attributor_for", watched)
    again = run(evaluation, tmp_path / "out")
    settled = [(name, 1) for name in evaluation.methods]  # before the first picture
    assert explained == settled + [("words", 2)] * 2 and again.failures == {}
    assert again.table["measures"]["auroc"]["words"]["2"]["count"] == 4
    assert measures(again) == measures(run(evaluation, tmp_path / "whole"))


def test_a_picture_that_cannot_be_made_is_recorded_and_the_rest_goes_on(monkeypatch, own_model):
    from denoscope.commands import pictures

    right = pictures.trace_of

    def traced(settings, prompt, seed):
        if prompt == "a blue cross":
            raise RuntimeError("out of memory")
        return right(settings, prompt, seed)

    monkeypatch.setattr(pictures, "trace_of", traced)
    evaluation = evaluation_of(own_model, methods=("df-cam",), checks=("localisation",))
    result = run(evaluation, own_model / "out")
    assert [each.subject.name for each in result.trials] == ["first", "third"]
    assert result.failures == {"the picture": "failed once: RuntimeError: out of memory"}


@pytest.mark.filterwarnings("ignore::denoscope.recording.models.TruncatedPromptWarning")
def test_a_phrase_that_is_cut_off_is_a_failure_and_the_rest_goes_on(own_model):
    long = " ".join(["a red circle"] * 30)
    (own_model / "prompts.txt").write_text(f"first\t{long} left of a cross\tcross\nsecond\ta blue cross\n")
    result = run(evaluation_of(own_model, checks=("localisation",)), own_model / "out")
    assert "cut off" in result.failures["words"]
    assert result.table["measures"]["auroc"]["df-cam"]["1"]["count"] == 2


# The scores of all trials.


@pytest.mark.parametrize(
    "method, measure, low, high",
    [("deletion", "deletion gain", 0.5, 0.75), ("insertion", "insertion gain", 0.25, 0.5)],
)
def test_a_gain_is_above_zero_where_a_map_beats_the_random_one(method, measure, low, high):
    own, random = {"deletion": [0.75], "insertion": [0.25]}, {"deletion": [0.5], "insertion": [0.5]}
    score = score_of({"df-cam": own, "random": random})
    assert score.sel(attributor="df-cam", measure=measure).item() == pytest.approx(high - low)
    assert score.sel(attributor="random", measure=measure).item() == 0


def test_the_rest_of_a_map_counts_above_the_random_level():
    own, random = {"weights, all": [-0.5], "chance": [0.2]}, {"weights, all": [1.0], "chance": [0.1]}
    rest = score_of({"df-cam": own, "random": random}).sel(measure="weights, above chance")
    assert rest.sel(attributor="df-cam").item() == pytest.approx(0.3)
    assert rest.sel(attributor="random").item() == pytest.approx(0.9)


def score_of(scores) -> xr.DataArray:
    """The scores (measure, attributor) of a scene in which the methods have these values at the only step."""
    trials = [Trial(bundled_subject(number), scores) for number in (0, 1)]
    maps = {each.subject.name: {} for each in trials}
    settings = Evaluation(methods=("df-cam",), at=(3,)).trial_settings()
    return gather(settings, trials, maps).score.sel(step=3).isel(scene=0)


# Stopped and continued.


@pytest.mark.usefixtures("things_as_prompted")
def test_finished_pictures_are_not_measured_again_and_the_table_is_the_same(monkeypatch, tmp_path):
    evaluation = Evaluation(**FAST, scenes=3)
    whole = run(evaluation, tmp_path / "out")
    (tmp_path / "out" / "trials" / f"{bundled_subject(1).name}.json").unlink()
    names = measured_names(monkeypatch)
    again = run(evaluation, tmp_path / "out")
    assert names == [bundled_subject(1).name]
    assert measures(again) == measures(whole)


@pytest.mark.usefixtures("things_as_prompted")
def test_more_scenes_go_on_from_fewer(monkeypatch, tmp_path):
    run(Evaluation(**FAST, scenes=2), tmp_path / "out")
    names = measured_names(monkeypatch)
    assert run(Evaluation(**FAST, scenes=3), tmp_path / "out").table["scenes"] == 3 and len(names) == 1


def measured_names(monkeypatch) -> list[str]:
    """The names of the subjects that are measured from now on."""
    names, right = [], trial.measure

    def measure(settings, subject, *earlier):
        names.append(subject.name)
        return right(settings, subject, *earlier)

    monkeypatch.setattr(trial, "measure", measure)
    return names


def test_a_prompt_that_has_changed_is_measured_again(own_model):
    evaluation = evaluation_of(own_model, methods=("df-cam",), checks=("localisation",), scenes=2)
    run(evaluation, own_model / "out")
    (own_model / "prompts.txt").write_text("first\ta red circle\nsecond\ta green cross\n")
    result = run(evaluation, own_model / "out")
    assert result.table["scenes"] == 2
    assert ResumableFolder(result.folder).read("second")["subject"]["prompt"] == "a green cross"


def test_a_mask_that_has_changed_is_measured_again(own_model):
    evaluation = evaluation_of(own_model, methods=("df-cam",), checks=("localisation",))
    first = run(evaluation, own_model / "out")
    mask = np.zeros((32, 32), np.uint8)
    mask[20:30, 20:30] = 255
    Image.fromarray(mask).save(own_model / "masks" / "first.png")
    again, fresh = run(evaluation, own_model / "out"), run(evaluation, own_model / "new")
    assert measures(again) == measures(fresh) != measures(first)


def test_an_error_of_every_picture_is_told_before_anything_is_replaced(own_model, monkeypatch, capsys):
    out = own_model / "out"
    run(evaluation_of(own_model, methods=("df-cam",), checks=("localisation",)), out)
    before = sorted(path.name for path in (out / "trials").iterdir())
    for wrong, message in ((["--model", "shapez/model"], "shapez"), (["--num-masks", "0"], "--num-masks")):
        assert status_of(monkeypatch, command(own_model, out, *wrong, "--overwrite")[3:]) == 2
        assert message in capsys.readouterr().err
        assert sorted(path.name for path in (out / "trials").iterdir()) == before


@pytest.mark.usefixtures("things_as_prompted")
def test_ctrl_c_keeps_the_finished_pictures(monkeypatch, tmp_path):
    right, calls = trial.measure, []

    def measure(settings, subject, *earlier):
        calls.append(subject.name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return right(settings, subject, *earlier)

    monkeypatch.setattr(trial, "measure", measure)
    evaluation = Evaluation(**FAST, scenes=3)
    message = refusal(run, evaluation, tmp_path / "out", kind=Interrupted)
    assert "are kept in" in message and len(list((tmp_path / "out" / "trials").glob("*.json"))) == 2
    calls.clear()
    result = evaluation.run(workers=1)
    assert result.interrupted and len(result.trials) == 2 and result.folder is None


@pytest.mark.slow
def test_killed_in_the_middle_and_called_again_it_gives_the_identical_table(own_model):
    out, whole = own_model / "killed", own_model / "whole"
    (own_model / "prompts.txt").write_text("".join(f"first{i}\ta red circle\n" for i in range(4)))
    for i in range(4):
        (own_model / "masks" / f"first{i}.png").write_bytes((own_model / "masks" / "second.png").read_bytes())
    checks = ["--checks", "localisation,stability"]
    process = subprocess.Popen(command(own_model, out, *checks), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not (out / "trials" / "first0.json").exists() and time.monotonic() < until:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finished = len(list((out / "trials").glob("*.json")))
    assert 1 <= finished < 4 and not (out / "leaderboard.json").exists()
    for place in (out, whole):
        ran = subprocess.run(command(own_model, place, *checks), capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0, ran.stderr
    assert (out / "leaderboard.json").read_bytes() == (whole / "leaderboard.json").read_bytes()
    other = [*command(own_model, out, *checks), "--seed", "1"]
    ran = subprocess.run(other, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 2 and "seed was 0 and is now 1" in ran.stderr


# Files.


@pytest.mark.usefixtures("things_as_prompted")
def test_the_command_writes_table_page_and_arrays(monkeypatch, capsys, tmp_path):
    assert status_of(monkeypatch, ["evaluate", "--scenes", "2", *FLAGS, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    assert "df-cam" in printed.out and "report.html" in printed.out
    saved = xr.open_zarr(tmp_path / "out" / "evaluation.zarr")
    assert saved.score.dims == ("measure", "scene", "attributor", "step") and saved.saliency.shape[0] == 2
    table = json.loads((tmp_path / "out" / "leaderboard.json").read_text())
    assert table["sanity"]["centre prior"] == "FAILS"
    assert "Which explanation is true?" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.usefixtures("things_as_prompted")
def test_a_result_without_a_folder_is_saved_as_one_with_a_folder(tmp_path):
    evaluation = Evaluation(**FAST, scenes=2)
    for folder in (None, tmp_path / "work"):
        place = evaluation.run(folder=folder, workers=1).save(tmp_path / ("work" if folder else "saved"))
        assert {path.name for path in place.iterdir()} == {
            *("evaluation.zarr", "leaderboard.json", "report.html", "run.json", "settings.json", "trials")
        }
    tables = [(tmp_path / name / "leaderboard.json").read_bytes() for name in ("work", "saved")]
    assert tables[0] == tables[1]
    again = evaluation.run(folder=tmp_path / "saved", workers=1)
    assert [each.seconds for each in again.trials] == [
        Trial.from_json(ResumableFolder(tmp_path / "saved").read(each.subject.name)).seconds for each in again.trials
    ]


def test_the_limit_of_memory_holds_for_every_picture_and_changes_no_result(own_model, tmp_path, monkeypatch):
    """The same work goes on with another limit: no result depends on it."""
    limits, measure = [], trial.measure

    def measured(*args):
        limits.append(limit_in_effect())
        return measure(*args)

    monkeypatch.setattr(trial, "measure", measured)
    limited = evaluation_of(own_model, memory="8GB", methods=("df-cam",), checks=("localisation",))
    first = run(limited, tmp_path / "out")
    assert limits and set(limits) == {8 * 10**9}
    assert "--memory 8GB" in limited.command() and "memory" not in limited.settings()
    again = run(evaluation_of(own_model, methods=("df-cam",), checks=("localisation",)), tmp_path / "out")
    assert measures(again) == measures(first) and limit_in_effect() is None


@pytest.mark.parametrize("words", [["demo"], ["evaluate"]])
def test_a_limit_of_memory_without_a_unit_is_refused_before_anything(words, monkeypatch, capsys, tmp_path):
    assert status_of(monkeypatch, [*words, "--memory", "8", "--out", str(tmp_path / "out")]) == 2
    assert "Give a size of at least 1MB with its unit" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()
