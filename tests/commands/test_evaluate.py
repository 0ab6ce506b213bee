"""The trust bench measures what its functions measure, goes on where it was stopped, and tells what failed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small import refusal

from denoscope import DFCam, cli
from denoscope.commands import evaluate as command
from denoscope.commands.evaluate import (
    USUAL,
    Case,
    Evaluation,
    OfPhrase,
    attributor_of,
    collected,
    evaluate,
    record,
    summary,
)
from denoscope.commands.subjects import bundled_subject, read_mask, subjects_of
from denoscope.errors import InputError, RecordingError
from denoscope.evaluation import BASELINES, Attack, localisation, neighbour_agreement, noise_agreement
from denoscope.report.leaderboard import MEASURES
from denoscope.results.resumable import Ledger

FAST = dict(steps=6, at=(2, 4), methods=("df-cam", "words"), checks=("localisation", "sanity"))
FLAGS = "--steps 6 --at 2,4 --methods df-cam,words --checks localisation,sanity --workers 1".split()


@pytest.fixture(autouse=True)
def drawn_anyhow(monkeypatch, request):
    """Six steps draw no clear picture, so every picture counts, and the things are where the scene says.

    Tests called `_as_it_is` have the judge's masks.
    """
    if request.node.name.endswith("_as_it_is"):
        return
    from denoscope.commands import subjects
    from denoscope.worlds.shapes.scenes import masks

    monkeypatch.setattr(subjects, "masks_of_things", lambda picture, scene: masks(scene))


@pytest.fixture
def folder(tmp_path, stable_diffusion):
    """A saved small pipeline, prompts, and a mask for the first two of three."""
    (tmp_path / "prompts.txt").write_text(
        "first\ta red circle on a white background\tred circle\nsecond\ta blue cross\nthird\ta cross\n"
    )
    mask = np.zeros((32, 32), np.uint8)
    mask[8:20, 4:16] = 255
    (tmp_path / "masks").mkdir()
    for name in ("first", "second"):
        Image.fromarray(mask).save(tmp_path / "masks" / f"{name}.png")
    stable_diffusion.save_pretrained(tmp_path / "model")
    return tmp_path


def own(folder, **settings) -> Evaluation:
    asked = dict(model=str(folder / "model"), prompts=str(folder / "prompts.txt"), masks=str(folder / "masks"), steps=4)
    return Evaluation(**{**asked, "methods": ("df-cam", "words"), "at": (1, 2), **settings})


def run(evaluation: Evaluation, folder, **options) -> dict:
    ledger = Ledger.opened(folder, evaluation.settings())
    found = evaluate(evaluation, ledger, **options)
    return summary(collected(evaluation, ledger, found))[1] | {"record": record(evaluation, found)}


# What is asked.


@pytest.mark.parametrize(
    "asked, said",
    [
        ({"methods": ("df-rize",)}, 'Did you mean "df-rise"'),
        ({"methods": ("words", "words")}, "each once"),
        ({"checks": ("sanety",)}, 'Did you mean "sanity"'),
        ({"scenes": 1}, "at least 2"),
        ({"prompts": "p.txt"}, "for other models"),
        ({"model": "someone/model"}, "--prompts FILE"),
        ({"at": (30,)}, "0 (the noisiest) to 29"),
        ({"at": (3, 3)}, "each once"),
        ({"steps": 0}, "at least 1"),
        ({"seed": 1}, "seeds of their own"),
        ({"model": "m", "prompts": "p.txt", "checks": ("games",)}, "--encoder"),
        ({"model": "m", "prompts": "p.txt", "checks": ("localisation",)}, "--masks FOLDER"),
        ({"model": "m", "prompts": "p.txt", "methods": ("occlusion", "df-cam")}, "explains a class"),
    ],
)
def test_bad_settings_are_refused_before_any_work(asked, said):
    assert said in refusal(Evaluation, **asked)


def test_the_steps_are_early_middle_and_late():
    assert Evaluation().shown == (6, 15, 24) and Evaluation().middle == 15


def test_how_many_scenes_is_no_setting_of_the_results():
    assert Evaluation(scenes=3).settings() == Evaluation(scenes=50).settings()
    assert Evaluation(num_masks=3).settings() != Evaluation().settings()


def test_the_command_asks_for_the_same_again():
    asked = Evaluation(scenes=3, at=(1, 2), methods=("words",), num_masks=8)
    assert asked.command() == "denoscope evaluate --scenes 3 --methods words --at 1,2 --num-masks 8"


# What a trial is about.


def test_a_bundled_subject_names_its_things():
    one, two = bundled_subject(0), bundled_subject(1)
    assert (one.scene, two.scene) == (1, 2) and one.seed + 1 == two.seed
    assert set(two.phrase) <= set(trials_words(two.prompt)) and two.label in two.labels


def trials_words(prompt: str) -> list[str]:
    from denoscope.recording.prompts import numbered

    return numbered(prompt.split())


def test_lines_are_prompts_with_names_and_phrases(folder):
    first, second, third = subjects_of(folder / "prompts.txt", folder / "masks", seed=5)
    assert (first.name, first.phrase, first.seed) == ("first", ("red", "circle"), 5)
    assert second.phrase is None and second.mask.endswith("second.png") and third.mask is None
    (folder / "plain.txt").write_text("a red circle\n\na cross\n")
    assert [s.name for s in subjects_of(folder / "plain.txt", None)] == ["0001", "0002"]


@pytest.mark.parametrize(
    "text, said",
    [("", "empty"), ("a\tx\na\ty", "twice"), ("../a\tx", "Line 1"), ("a\ta red cross\tblue", '"blue" is not in')],
)
def test_bad_lines_are_refused(folder, text, said):
    (folder / "prompts.txt").write_text(text)
    assert said in refusal(subjects_of, folder / "prompts.txt", None)


def test_masks_that_belong_to_no_line_are_refused(folder):
    (folder / "prompts.txt").write_text("a cross\na circle")
    assert "0001.png" in refusal(subjects_of, folder / "prompts.txt", folder / "masks")
    assert "no folder" in refusal(subjects_of, folder / "prompts.txt", folder / "nowhere")


def test_a_mask_of_another_size_or_without_an_object_is_refused(folder):
    assert read_mask(folder / "masks" / "first.png", (32, 32)).sum() == 144
    assert "32 × 32 and its picture 64 × 64" in refusal(read_mask, folder / "masks" / "first.png", (64, 64))
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(folder / "masks" / "first.png")
    assert "is empty" in refusal(read_mask, folder / "masks" / "first.png", (32, 32))
    Image.fromarray(np.full((32, 32), 255, np.uint8)).save(folder / "masks" / "first.png")
    assert "bright everywhere" in refusal(read_mask, folder / "masks" / "first.png", (32, 32))


# What is measured.


def test_a_trial_has_the_figures_of_the_functions_themselves():
    evaluation = Evaluation(**{**FAST, "checks": ("localisation", "stability")})
    found, maps = command.trial(evaluation, bundled_subject(0))
    case = Case.of(evaluation, bundled_subject(0))
    saliency = DFCam()(case.trace, [2, 4]).saliency
    expected = localisation(saliency, case.masks.any(axis=0))
    assert found["failures"] == {} and set(found["scores"]) == {"df-cam", "words", *BASELINES}
    assert set().union(*found["scores"].values()) <= set(MEASURES)
    assert found["scores"]["df-cam"]["auroc"] == pytest.approx(expected.auroc.values.tolist())
    beside = neighbour_agreement(DFCam()(case.trace, [3, 4]).saliency).item()
    assert found["scores"]["df-cam"]["neighbour agreement"] == pytest.approx([float("nan"), beside], nan_ok=True)
    noise = noise_agreement(DFCam(), case.trace, [4], draws=1, seed=bundled_subject(0).seed).item()
    assert found["scores"]["df-cam"]["noise agreement"] == pytest.approx([float("nan"), noise], nan_ok=True)
    np.testing.assert_allclose(maps["df-cam"], saliency.values, rtol=1e-5)


def test_the_bench_as_it_is(tmp_path):
    """Truth: the clean prediction's colours show where the things are, and random numbers do not."""
    evaluation = Evaluation(methods=("df-cam",), checks=("localisation",), at=(20,), scenes=3)
    table = run(evaluation, tmp_path / "out")
    auroc = {name: row["20"]["mean"] for name, row in table["measures"]["auroc"].items()}
    assert auroc["clean colours"] > 0.9 and auroc["random"] < 0.65 and auroc["constant"] == 0.5
    for name in ("clean colours", "random"):
        assert table["measures"]["auroc"][name]["20"]["count"] == 3


def test_every_picture_has_a_random_map_of_its_own(trace):
    first, second = (attributor_of("random", Evaluation(), bundled_subject(n))(trace, [1]).saliency for n in (0, 1))
    assert (first.values != second.values).any()
    again = attributor_of("random", Evaluation(), bundled_subject(0))(trace, [1]).saliency
    np.testing.assert_array_equal(first, again)


def test_a_phrase_s_map_is_the_mean_of_its_words(trace):
    inner = attributor_of("words", Evaluation(), bundled_subject(0)).inner
    whole = inner(trace, [1]).saliency
    phrase = OfPhrase(inner, ("red", "circle"))(trace, [1]).saliency
    np.testing.assert_allclose(
        phrase.values, (whole.sel(token="red") + whole.sel(token="circle")).values / 2, rtol=1e-5
    )
    np.testing.assert_allclose(OfPhrase(inner, None)(trace, [1]).saliency, whole.mean("token"), rtol=1e-5)


@pytest.mark.parametrize(
    "methods, attacked",
    [
        pytest.param(("df-cam",), {"gradient"}, id="gradient"),
        pytest.param(("df-rise-contrast",), {"df-rise-contrast", "gradient"}, id="contrast", marks=pytest.mark.slow),
    ],
)
def test_attacks_are_of_the_maps_that_can_be_differentiated(monkeypatch, methods, attacked):
    monkeypatch.setattr(command, "Attack", lambda ball, iterations, seed: Attack(ball, 4, seed=seed))
    asked = dict(methods=methods, checks=("attacks",), steps=3, at=(0, 1), num_masks=64)
    found, _ = command.trial(Evaluation(**asked), bundled_subject(0))
    assert found["failures"] == {}
    measured = {name: values for name, values in found["scores"].items() if values}
    assert set(measured) == attacked
    for values in measured.values():
        assert np.isnan(values["attack, map"][0]) and values["attack, map"][1] < values["attack, random"][1] < 1
        assert values["attack, picture"][1] > 0


@pytest.mark.slow
def test_every_check_runs_on_every_method_of_the_bundled_model():
    """With as few masks and steps as there can be: what is told of each is tested where it is made."""
    evaluation = Evaluation(steps=3, at=(1,), num_masks=8)
    found, _ = command.trial(evaluation, bundled_subject(1))
    assert found["failures"] == {}
    assert set(found["scores"]) == {*command.known_methods(), *BASELINES}
    expected = {"auroc", "deletion", "infidelity_beyond_area", "resampling, object", "noise agreement", "weights, all"}
    assert all(expected <= set(values) for values in found["scores"].values())
    assert set().union(*found["scores"].values()) <= set(MEASURES)
    assert "seed agreement" in found["scores"]["df-rise"] and "seed agreement" not in found["scores"]["df-cam"]


def test_a_picture_that_is_not_as_told_is_passed_over(monkeypatch, tmp_path):
    from denoscope.commands import subjects

    odd = lambda picture, scene: None if scene.seed % 2 else picture[None, ..., 0] > 0.5  # noqa: E731
    monkeypatch.setattr(subjects, "masks_of_things", odd)
    evaluation = Evaluation(**{**FAST, "methods": ("df-cam",), "checks": ("localisation",)}, scenes=2)
    ledger = Ledger.opened(tmp_path / "out", evaluation.settings())
    names = [found["subject"]["name"] for found in evaluate(evaluation, ledger)]
    assert len(names) == 2 and all(int(name) % 2 == 0 for name in names)
    assert "passed_over" in ledger.read(bundled_subject(1).name)


def test_a_model_of_ones_own_is_measured_by_ones_own_masks(folder):
    table = run(own(folder, scenes=3), folder / "out")
    assert table["scenes"] == 3 and table["record"]["failures"] == {}
    assert table["measures"]["auroc"]["words"]["1"]["count"] == 2  # the third has no mask
    assert table["measures"]["weights, all"]["words"]["2"]["count"] == 3
    assert "weights, above chance" in table["measures"]
    assert "deletion" not in table["measures"]  # no encoder was named


def test_what_does_not_apply_to_ones_own_model_is_left_out_and_told(folder, monkeypatch, capsys):
    evaluation = own(folder, methods=None, masks=None)
    assert set(evaluation.left_out) == {"localisation", "games"} and evaluation.wanted == 3
    assert "occlusion" not in evaluation.chosen and set(evaluation.checked) == set(USUAL) - {"localisation", "games"}
    (folder / "masks" / "thrid.png").write_bytes((folder / "masks" / "first.png").read_bytes())
    asked = [*words(folder, folder / "out")[3:], "--checks", "localisation"]
    monkeypatch.setattr(sys, "argv", ["denoscope", *asked])
    with pytest.raises(SystemExit) as left:
        cli.main()
    said = capsys.readouterr()
    assert left.value.code == 0 and "masks that belong to no prompt: thrid.png" in said.err
    assert "] of 2" in said.out  # of three pictures two have a mask
    assert "3 pictures" in said.out


def test_masks_of_another_size_than_the_picture_are_told_at_the_first(folder):
    for name in ("first", "second"):
        Image.fromarray(np.eye(5, dtype=np.uint8) * 255).save(folder / "masks" / f"{name}.png")
    with pytest.raises(InputError, match="5 × 5 and its picture"):
        run(own(folder, scenes=3), folder / "out")


def test_masks_that_are_empty_or_differ_in_size_are_refused_before_any_work(folder):
    Image.fromarray(np.eye(5, dtype=np.uint8) * 255).save(folder / "masks" / "second.png")
    assert "is 5 × 5 and" in refusal(own(folder).subjects)
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(folder / "masks" / "second.png")
    assert "second.png" in refusal(own(folder).subjects) and "is empty" in refusal(own(folder).subjects)


def test_a_method_that_fails_on_one_picture_is_told_the_rest_goes_on_and_it_is_tried_again(monkeypatch, tmp_path):
    right, explained = command.attributor_of, []

    def sometimes(name, evaluation, subject):
        explained.append((name, subject.scene))
        if name == "words" and subject.scene == 2:
            raise KeyError("lost") if subject.seed % 4 == 1 else RecordingError("The words were lost.")
        return right(name, evaluation, subject)

    evaluation = Evaluation(**{**FAST, "checks": ("localisation",)}, scenes=4)
    with monkeypatch.context() as broken:
        broken.setattr(command, "attributor_of", sometimes)
        table = run(evaluation, tmp_path / "out")
    assert table["record"]["failures"] == {"words": {"times": 2, "first": "KeyError: 'lost'"}}
    assert table["measures"]["auroc"]["words"]["2"]["count"] == 2
    assert table["measures"]["auroc"]["df-cam"]["2"]["count"] == 4
    explained.clear()
    monkeypatch.setattr(command, "attributor_of", lambda *a: (explained.append((a[0], a[2].scene)), right(*a))[1])
    again = run(evaluation, tmp_path / "out")
    assert explained == [("words", 2)] * 2 and again["record"]["failures"] == {}
    assert again["measures"]["auroc"]["words"]["2"]["count"] == 4
    whole = run(evaluation, tmp_path / "whole")
    assert json.dumps(again["measures"]) == json.dumps(whole["measures"])


def test_a_picture_that_cannot_be_made_is_told_and_the_rest_goes_on(monkeypatch, folder):
    right = command._traced

    def traced(evaluation, prompt, seed):
        if prompt == "a blue cross":
            raise RuntimeError("out of memory")
        return right(evaluation, prompt, seed)

    monkeypatch.setattr(command, "_traced", traced)
    evaluation = own(folder, methods=("df-cam",), checks=("localisation",))
    ledger = Ledger.opened(folder / "out", evaluation.settings())
    found = evaluate(evaluation, ledger)
    assert [each["subject"]["name"] for each in found] == ["first", "third"]
    told = record(evaluation, found, command.unmade(evaluation, ledger))["failures"]
    assert told == {"the picture": {"times": 1, "first": "RuntimeError: out of memory"}}


@pytest.mark.filterwarnings("ignore::denoscope.recording.models.TruncatedPromptWarning")
def test_a_phrase_that_is_cut_off_is_told_and_the_rest_goes_on(folder):
    long = " ".join(["a red circle"] * 30)
    (folder / "prompts.txt").write_text(f"first\t{long} left of a cross\tcross\nsecond\ta blue cross\n")
    table = run(own(folder, checks=("localisation",)), folder / "out")
    assert "cut off" in table["record"]["failures"]["words"]["first"]
    assert table["measures"]["auroc"]["df-cam"]["1"]["count"] == 2


# Stopped and taken up again.


def test_what_is_finished_is_not_done_again_and_the_table_is_the_same(monkeypatch, tmp_path):
    evaluation = Evaluation(**{**FAST, "checks": ("localisation",)}, scenes=3)
    whole = run(evaluation, tmp_path / "out")
    (tmp_path / "out" / "trials" / f"{bundled_subject(1).name}.json").unlink()
    done, right = [], command.trial
    monkeypatch.setattr(command, "trial", lambda *asked: (done.append(asked[1].name), right(*asked))[1])
    again = run(evaluation, tmp_path / "out")
    assert done == [bundled_subject(1).name]
    assert json.dumps(again["measures"]) == json.dumps(whole["measures"])


def test_a_prompt_that_has_changed_is_measured_anew(monkeypatch, folder):
    evaluation = own(folder, methods=("df-cam",), checks=("localisation",), scenes=2)
    run(evaluation, folder / "out")
    (folder / "prompts.txt").write_text("first\ta red circle\nsecond\ta green cross\n")
    table = run(evaluation, folder / "out")
    kept = Ledger.opened(folder / "out", evaluation.settings()).read("second")
    assert kept["subject"]["prompt"] == "a green cross" and table["scenes"] == 2


def test_a_gain_is_above_zero_where_a_map_beats_the_random_one_in_either_game(monkeypatch, tmp_path):
    monkeypatch.setattr(command, "_maps", lambda *_: {})
    areas = {"df-cam": {"deletion": [0.75], "insertion": [0.25]}, "random": {"deletion": [0.5], "insertion": [0.5]}}
    made = [{"subject": {"name": name}, "scores": areas} for name in "ab"]
    evaluation = Evaluation(methods=("df-cam",), at=(3,))
    score = collected(evaluation, Ledger(tmp_path), made).score.sel(step=3, scene="a")
    for game in ("deletion", "insertion"):
        assert score.sel(attributor="df-cam", measure=f"{game} gain").item() == pytest.approx(0.25)
        assert score.sel(attributor="random", measure=f"{game} gain").item() == 0


def test_a_mask_that_has_changed_is_measured_anew(folder):
    evaluation = own(folder, methods=("df-cam",), checks=("localisation",))
    first = run(evaluation, folder / "out")
    mask = np.zeros((32, 32), np.uint8)
    mask[20:30, 20:30] = 255
    Image.fromarray(mask).save(folder / "masks" / "first.png")
    again, fresh = (run(own(folder, methods=("df-cam",), checks=("localisation",)), folder / n) for n in ("out", "new"))
    assert json.dumps(again["measures"]) == json.dumps(fresh["measures"]) != json.dumps(first["measures"])


def test_what_is_wrong_at_every_picture_is_told_before_anything_is_replaced(folder, monkeypatch, capsys):
    out = folder / "out"
    run(own(folder, methods=("df-cam",), checks=("localisation",)), out)
    kept = sorted(path.name for path in (out / "trials").iterdir())
    for wrong, said in ((["--model", "shapez/model"], "shapez"), (["--num-masks", "0"], "num_masks")):
        monkeypatch.setattr(sys, "argv", ["denoscope", *words(folder, out, *wrong, "--overwrite")[3:]])
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert left.value.code == 2 and said in capsys.readouterr().err
        assert sorted(path.name for path in (out / "trials").iterdir()) == kept


def test_settings_of_which_nothing_was_measured_bind_nobody(tmp_path):
    Ledger.opened(tmp_path / "out", {"a": 1})
    assert Ledger.opened(tmp_path / "out", {"a": 2}).settings == {"a": 2}
    Ledger(tmp_path / "out").write("one", {}, {})
    assert "a was 2 and is now 3" in refusal(Ledger.opened, tmp_path / "out", {"a": 3})


def workers_of(process: subprocess.Popen) -> list[int]:
    """The processes that measure pictures for another."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == process.pid and b"spawn_main" in (place / "cmdline").read_bytes():
                found.append(int(place.name))
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are found in /proc")
def test_side_by_side_gives_the_same_table_and_a_process_that_is_killed_is_told(folder, monkeypatch):
    alone, beside = folder / "alone", folder / "beside"
    (folder / "prompts.txt").write_text("".join(f"first{i}\ta red circle\n" for i in range(6)))
    for i in range(6):
        (folder / "masks" / f"first{i}.png").write_bytes((folder / "masks" / "second.png").read_bytes())
    only = ["--methods", "df-cam", "--checks", "localisation"]
    two = words(folder, beside, *only)
    two[two.index("--workers") + 1] = "2"
    process = subprocess.Popen(two, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while not list((beside / "trials").glob("*.json")) and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(workers_of(process)[0], signal.SIGKILL)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1 and "ended from outside" in said
    ran = subprocess.run(two, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    monkeypatch.setattr(sys, "argv", ["denoscope", *words(folder, alone, *only)[3:]])
    with pytest.raises(SystemExit):
        cli.main()
    assert (beside / "leaderboard.json").read_bytes() == (alone / "leaderboard.json").read_bytes()


def test_what_is_left_of_a_map_is_told_above_the_random_level(monkeypatch, tmp_path):
    monkeypatch.setattr(command, "_maps", lambda *_: {})
    found = {"df-cam": {"weights, all": [-0.5], "chance": [0.2]}, "random": {"weights, all": [1.0], "chance": [0.1]}}
    made = [{"subject": {"name": name}, "scores": found} for name in "ab"]
    score = collected(Evaluation(methods=("df-cam",), at=(3,)), Ledger(tmp_path), made).score
    left = score.sel(step=3, scene="a", measure="weights, above chance")
    assert left.sel(attributor="df-cam").item() == pytest.approx(0.3)
    assert left.sel(attributor="random").item() == pytest.approx(0.9)


def test_more_scenes_go_on_from_fewer(monkeypatch, tmp_path):
    few = Evaluation(**{**FAST, "methods": ("df-cam",), "checks": ("localisation",)}, scenes=2)
    run(few, tmp_path / "out")
    done, right = [], command.trial
    monkeypatch.setattr(command, "trial", lambda *asked: (done.append(asked[1].name), right(*asked))[1])
    more = Evaluation(**{**FAST, "methods": ("df-cam",), "checks": ("localisation",)}, scenes=3)
    assert run(more, tmp_path / "out")["scenes"] == 3 and len(done) == 1


def words(folder, out, *more) -> list[str]:
    asked = [
        "--model",
        str(folder / "model"),
        "--prompts",
        str(folder / "prompts.txt"),
        "--masks",
        str(folder / "masks"),
    ]
    settings = [
        "--steps",
        "4",
        "--at",
        "1,2",
        "--methods",
        "df-cam,words,df-rise",
        "--num-masks",
        "8",
        "--workers",
        "1",
    ]
    return [sys.executable, "-m", "denoscope", "evaluate", *asked, *settings, *more, "--out", str(out)]


def test_killed_in_the_middle_and_called_again_it_gives_the_identical_table(folder):
    out, whole = folder / "killed", folder / "whole"
    (folder / "prompts.txt").write_text("".join(f"first{i}\ta red circle\n" for i in range(4)))
    for i in range(4):
        (folder / "masks" / f"first{i}.png").write_bytes((folder / "masks" / "second.png").read_bytes())
    checks = ["--checks", "localisation,stability"]
    process = subprocess.Popen(words(folder, out, *checks), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not (out / "trials" / "first0.json").exists() and time.monotonic() < until:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finished = len(list((out / "trials").glob("*.json")))
    assert 1 <= finished < 4 and not (out / "leaderboard.json").exists()
    for place in (out, whole):
        ran = subprocess.run(words(folder, place, *checks), capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0, ran.stderr
    assert (out / "leaderboard.json").read_bytes() == (whole / "leaderboard.json").read_bytes()
    other = subprocess.run(words(folder, out, *checks, "--seed", "1"), capture_output=True, text=True, timeout=300)
    assert other.returncode == 2 and "seed was 0 and is now 1" in other.stderr


def test_the_command_writes_table_page_and_arrays(monkeypatch, capsys, tmp_path):
    import xarray as xr

    asked = ["denoscope", "evaluate", "--scenes", "2", *FLAGS, "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", asked)
    with pytest.raises(SystemExit) as left:
        cli.main()
    told = capsys.readouterr()
    assert left.value.code == 0, told.err
    assert "df-cam" in told.out and "report.html" in told.out
    found = xr.open_zarr(tmp_path / "out" / "evaluation.zarr", consolidated=False)
    assert found.score.dims == ("measure", "scene", "attributor", "step") and found.saliency.shape[0] == 2
    table = json.loads((tmp_path / "out" / "leaderboard.json").read_text())
    assert table["sanity"]["centre prior"] == "FAILS"
    assert "Which explanation is true?" in (tmp_path / "out" / "report.html").read_text()
