"""The command line: what goes wrong is one paragraph and an exit status, and what is written is whole."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import safetensors.torch
import torch
import xarray as xr
from small import PIPELINES, SCHEDULERS

import denoscope
from denoscope import cli
from denoscope.attributors.base import METHODS, Attributor
from denoscope.attributors.rise import DFRise
from denoscope.commands.methods import evaluated_methods
from denoscope.targets import Closeness, Target

PROMPT = "a red circle"
SHORT = ("--steps", "4", "--masks", "8", "--at", "0,2")
WRITTEN = {"report.html", "image.png", "timeline.gif", "figures", "explanation.zarr", "run.json"}


class Ran(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Small pipelines as folders: `text`, `ddim` and `pndm` with other schedulers, `pixels`, `nan`, `pickles`."""
    root = tmp_path_factory.mktemp("pipelines")
    made = {name: root / name for name in ("text", "ddim", "pndm", "pixels", "nan", "pickles")}
    for name, folder in made.items():
        pipeline = PIPELINES["stable-diffusion" if name in ("text", "ddim", "pndm") else "ddpm"]()
        if name in ("ddim", "pndm"):
            pipeline.scheduler = SCHEDULERS[name]()
        pipeline.save_pretrained(folder)
    weights = made["nan"] / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = safetensors.torch.load_file(weights)
    safetensors.torch.save_file({**tensors, "conv_out.bias": tensors["conv_out.bias"] * float("nan")}, weights)
    os.rename(made["pickles"] / "unet" / weights.name, made["pickles"] / "unet" / "diffusion_pytorch_model.bin")
    return made


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run a command line in this process, its output folder being `out` in the test's own folder."""

    def run(*words: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["denoscope", *map(str, words)])
        monkeypatch.chdir(tmp_path)
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        return Ran(left.value.code or 0, *capsys.readouterr())

    return run


def paragraph(ran: Ran, status: int) -> str:
    """The one paragraph of a failure."""
    assert ran.status == status and ran.out == "", ran
    assert "Traceback" not in ran.err
    lines = [line for line in ran.err.splitlines() if line.startswith("denoscope: ")]
    assert len(lines) == 1 and ran.err.splitlines()[-1] == lines[0], ran.err
    return lines[0]


BAD = {
    "near miss": (["--model", "shape"], 'Did you mean "shapes"?'),
    "hub id offline": (["--model", "someone/model"], "cannot be reached"),
    "empty model": (["--model", ""], "cannot be empty"),
    "no pipeline": (["--model", "."], "without model_index.json"),
    "a file": (["--model", __file__], "it is a file"),
    "pickles": (["--model", "{pickles}"], "pickles"),
    "fixed grid": (["--model", "{ddim}", "--schedule", "early"], "DPMSolverMultistepScheduler"),
    "schedule": (["--schedule", "erly"], 'Did you mean "early"?'),
    "shift without schedule": (["--shift", "30"], '"uniform" has none'),
    "shift": (["--schedule", "late", "--shift", "-40"], "shift -40"),
    "shift nan": (["--schedule", "late", "--shift", "nan"], "shift nan"),
    "method": (["--methods", "df-rize"], 'Did you mean "df-rise"?'),
    "no method": (["--methods", " ,"], "none"),
    "method twice": (["--methods", "df-rise,df-rise"], "each once"),
    "step out of range": (["--at", "2,30"], "Step 30 cannot be explained: this run has 30 steps"),
    "step below zero": (["--at", "-1"], "-1"),
    "step is text": (["--at", "abc"], '--at is "abc"'),
    "step is empty": (["--at", ""], '--at is ""'),
    "step twice": (["--at", "2,8,2"], "2,8,2"),
    "no masks": (["--masks", "0"], "--masks is 0"),
    "masks below zero": (["--masks", "-5"], "--masks is -5"),
    "masks are text": (["--masks", "abc"], "'--masks'"),
    "no steps": (["--steps", "0"], "--steps is 0"),
    "steps below zero": (["--steps", "-1"], "--steps is -1"),
    "too many steps": (["--steps", "2000"], "--steps is 2000"),
    "height": (["--height", "60"], "height 60"),
    "no height": (["--height", "0"], "--height is 0"),
    "height below zero": (["--height", "-8"], "--height is -8"),
    "device": (["--device", "cpuu"], 'Did you mean "cpu"?'),
    "dtype": (["--dtype", "float61"], 'Did you mean "float16"?'),
    "until": (["--until", "2"], "--until is 2"),
    "guidance": (["--guidance", "inf"], "--guidance is inf"),
    "seed below zero": (["--seed", "-1"], "--seed is -1"),
    "seed too big": (["--seed", str(2**64)], "--seed is 18446744073709551616"),
    "seed is text": (["--seed", "1.5"], "'--seed'"),
    "unknown option": (["--mask", "3"], "--masks"),
    "missing value": (["--model"], "'--model' requires an argument"),
    "two prompts": (["a blue square"], "a blue square"),
}


@pytest.mark.parametrize("words, said", BAD.values(), ids=BAD)
def test_bad_input(run, folders, tmp_path, words, said):
    words = [word.format(**folders) if word.startswith("{") else word for word in words]
    model = [] if "--model" in words else ["--model", folders["text"]]
    assert said in paragraph(run("explain", PROMPT, *model, *words), 2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "model, words, said",
    [
        ("text", ["", *SHORT], "The prompt is empty"),
        ("text", [*SHORT], "No prompt was given"),
        ("pixels", [PROMPT, *SHORT], "without text"),
        ("pixels", [*SHORT, "--guidance", "3"], 'has no option "--guidance"'),
        ("pixels", [*SHORT, "--height", "64"], "height"),
    ],
)
def test_prompts_and_options_that_the_model_does_not_have(run, folders, tmp_path, model, words, said):
    assert said in paragraph(run("explain", "--model", folders[model], *words), 2)
    assert list(tmp_path.iterdir()) == []


def test_steps_are_checked_before_the_picture_is_made(run, folders, monkeypatch):
    """PNDM makes one call more than it is asked for steps, so its step 4 of 4 is there."""
    made = run("explain", PROMPT, "--model", folders["pndm"], "--steps", 4, "--at", 4, "--masks", 4)
    assert made.status == 0 and "step 4 " in made.out
    monkeypatch.setattr(denoscope.Model, "trace", lambda *args, **kwargs: pytest.fail("the picture was made"))
    ran = run("explain", PROMPT, "--model", folders["pndm"], "--steps", 4, "--at", 5, "--out", "other")
    assert "Step 5" in paragraph(ran, 2)


@pytest.mark.parametrize("words", [["exlpain", "x"], ["--shift", "3"], ["explain", "--seed"]])
def test_usage(run, words):
    message = paragraph(run(*words), 2)
    assert " ".join(words) in message and "--help" in message


def test_the_help_names_every_method():
    assert sorted(f"{cli.RUN_METHODS}, {cli.OF_LABEL}".split(", ")) == sorted(evaluated_methods())


def test_nothing_asked_is_help(run):
    ran = run()
    assert ran.status == 0 and "explain" in ran.out and ran.err == ""
    assert run("--version").out == f"denoscope {denoscope.__version__}\n"


def test_debug_shows_where(monkeypatch, folders):
    monkeypatch.setattr(sys, "argv", ["denoscope", "explain", "", "--debug", "--model", str(folders["text"])])
    with pytest.raises(denoscope.InputError):
        cli.main()


def test_a_run_is_whole_and_can_be_run_again(run, folders, tmp_path):
    """Identity: the command in run.json makes the same maps."""
    ran = run("explain", PROMPT, "--model", folders["text"], *SHORT, "--seed", 3, "--out", "one")
    assert ran.status == 0 and {path.name for path in (tmp_path / "one").iterdir()} == WRITTEN
    assert ran.out.splitlines()[-1] == f"Report: {tmp_path / 'one' / 'report.html'}"
    assert [line.split(":")[0] for line in ran.out.splitlines()] == ["DF-RISE, contrast", "DF-RISE, paper", "Report"]
    record = json.loads((tmp_path / "one" / "run.json").read_text())
    assert record["interrupted"] is False and record["seconds"].keys() == {"trace", "df_rise_contrast", "df_rise"}
    import shlex

    again = run(*shlex.split(record["command"])[1:], "--out", "two")
    assert again.status == 0
    one, two = (xr.open_datatree(tmp_path / name / "explanation.zarr", engine="zarr") for name in ("one", "two"))
    for name in ("df_rise", "df_rise_contrast"):
        assert np.array_equal(one[name]["saliency"], two[name]["saliency"])


def test_a_model_without_text(run, folders, tmp_path):
    ran = run(
        "explain", "--model", folders["pixels"], "--steps", 3, "--masks", 8, "--at", "all", "--methods", "df-rise"
    )
    assert ran.status == 0 and "step 0 " in ran.out and "step 2 " in ran.out
    record = json.loads((tmp_path / "denoscope-out" / "run.json").read_text())
    assert record["prompt"] is None and record["steps"] == [0, 1, 2] and "--at all" in record["command"]


def test_a_long_prompt_is_one_line_of_warning(run, folders, caplog):
    words = " ".join(f"word{i}" for i in range(40))
    ran = run("explain", words, "--model", folders["text"], *SHORT, "--methods", "df-rise")
    lines = [line for line in ran.err.splitlines() if line.startswith("denoscope: ")]
    assert ran.status == 0 and len(lines) == 1 and "was cut off" in lines[0] and "word" in lines[0]
    assert [record.getMessage() for record in caplog.records] == []  # the libraries say it too, each in its own way


def test_words_that_the_model_cannot_read_are_named(run, folders, tmp_path):
    ran = run("explain", "a cat on a red sofa", "--model", folders["text"], *SHORT, "--methods", "df-rise")
    assert ran.status == 0 and 'The model cannot read "cat", "sofa"' in ran.out and "circle" in ran.out
    record = json.loads((tmp_path / "denoscope-out" / "run.json").read_text())
    assert record["unknown_words"] == ["cat", "sofa"] and record["cut_off"] == "" and "circle" in record["vocabulary"]
    listed = run("words", "--model", folders["text"])
    assert listed.status == 0 and listed.out.split() == record["vocabulary"]
    assert run("words", "--model", folders["pixels"]).out.endswith("takes no text.\n")


def test_the_end_of_a_prompt_that_was_cut_off_is_recorded(run, folders, tmp_path):
    words = " ".join(["red"] * 40)
    run("explain", words, "--model", folders["text"], *SHORT, "--methods", "df-rise")
    record = json.loads((tmp_path / "denoscope-out" / "run.json").read_text())
    assert set(record["cut_off"].split()) == {"red"} and record["unknown_words"] == []


def test_of_two_runs_into_one_folder_the_second_is_refused_before_a_model_is_loaded(run, tmp_path, monkeypatch):
    from denoscope.files.claims import claimed

    held, go = threading.Event(), threading.Event()

    def other():
        with claimed(tmp_path / "out"):
            held.set()
            go.wait(60)

    thread = threading.Thread(target=other)
    thread.start()
    held.wait(60)
    monkeypatch.setattr("denoscope.recording.models.load", lambda *_, **__: pytest.fail("a model was loaded"))
    message = paragraph(run("explain", PROMPT, "--out", "out"), 2)
    go.set()
    thread.join()
    assert "another run is writing there" in message


def test_nan_names_the_step(run, folders, tmp_path):
    message = paragraph(run("explain", "--model", folders["nan"], *SHORT), 1)
    assert "step 0 " in message and "NaN" in message and list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written_to(run, folders, tmp_path):
    explain = ("explain", PROMPT, "--model", folders["text"], *SHORT, "--methods", "df-rise", "--out")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    for place, said in [("file", "it is a file"), ("file/run", "is a file"), ("full", "not the output of a run")]:
        assert said in paragraph(run(*explain, place), 2)
        assert said in paragraph(run(*explain, place, "--overwrite"), 2)
    assert (tmp_path / "file").read_text() == (tmp_path / "full" / "thesis.tex").read_text() == "mine"
    assert run(*explain, "run").status == 0
    before = (tmp_path / "run" / "run.json").read_bytes()
    refused = paragraph(run(*explain, "run"), 2)
    assert "an earlier run is there" in refused and "replacing it with --overwrite." in refused
    assert (tmp_path / "run" / "run.json").read_bytes() == before
    assert run(*explain, "run", "--overwrite", "--seed", 5).status == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["seed"] == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full", "run"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_without_permission(run, folders, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "may not write" in paragraph(run("explain", PROMPT, "--model", folders["text"], "--out", "locked/run"), 2)


def test_a_full_disk(run, folders, tmp_path, monkeypatch):
    from PIL import Image

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Image.Image, "save", full)
    message = paragraph(run("explain", PROMPT, "--model", folders["text"], *SHORT, "--methods", "df-rise"), 1)
    assert "No space left" in message and list(tmp_path.iterdir()) == []


def test_a_failure_nobody_foresaw_is_a_paragraph_too(run, folders, tmp_path, monkeypatch):
    monkeypatch.setattr(DFRise, "explain", lambda self, step, advance: {}["a\nkey"])
    message = paragraph(run("explain", PROMPT, "--model", folders["text"], *SHORT), 1)
    assert "KeyError" in message and "--debug" in message and list(tmp_path.iterdir()) == []


def test_libraries_speak_again_afterwards(run, folders):
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    run("explain", PROMPT, "--model", folders["text"], "--at", 99)
    assert before == [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]


def test_ctrl_c_keeps_what_was_finished(run, folders, tmp_path, monkeypatch):
    """Identity: the kept maps are those of the whole run."""
    words = ("explain", PROMPT, "--model", folders["text"], *SHORT)
    assert run(*words, "--out", "whole").status == 0
    explain, explained = DFRise.explain, []

    def stopped(self, step, advance):
        explained.append(step.index)
        if len(explained) == 4:
            raise KeyboardInterrupt
        return explain(self, step, advance)

    monkeypatch.setattr(DFRise, "explain", stopped)
    ran = run(*words, "--out", "part")
    assert ran.status == 1 and "Interrupted: 1 of 2 steps of DF-RISE, paper" in ran.err and "report.html" in ran.out
    whole, part = (xr.open_datatree(tmp_path / name / "explanation.zarr", engine="zarr") for name in ("whole", "part"))
    assert part["df_rise_contrast"].equals(whole["df_rise_contrast"])
    assert part["df_rise"]["step"].values.tolist() == [0]
    assert np.array_equal(part["df_rise"]["saliency"][0], whole["df_rise"]["saliency"][0])
    assert json.loads((tmp_path / "part" / "run.json").read_text())["interrupted"] is True


def test_a_failure_in_the_middle_keeps_what_was_finished(run, folders, tmp_path, monkeypatch):
    explain, explained = DFRise.explain, []

    def failing(self, step, advance):
        explained.append(step.index)
        if len(explained) == 2:
            raise RuntimeError("out of memory")
        return explain(self, step, advance)

    monkeypatch.setattr(DFRise, "explain", failing)
    ran = run("explain", PROMPT, "--model", folders["text"], *SHORT)
    assert ran.status == 1 and "out of memory. Because of that, 1 of 2 steps" in ran.err
    tree = xr.open_datatree(tmp_path / "denoscope-out" / "explanation.zarr", engine="zarr")
    assert tree["df_rise_contrast"].sizes["step"] == 1


@dataclass(frozen=True)
class Gradient(Attributor):
    """CONTRIBUTING's example of a method."""

    target: Target = Closeness()  # noqa: RUF009
    title = "Gradient"

    def explain(self, step, advance):
        x = (0.9 * step.sample).requires_grad_()
        (gradient,) = torch.autograd.grad(self.target(step, x).sum(), x)
        advance(1)
        return {"saliency": gradient.abs().sum(dim=1)[0].cpu().numpy()}


def test_a_method_of_ones_own_has_a_name_on_the_command_line(run, folders, tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "gradient", Gradient)
    ran = run("explain", PROMPT, "--model", folders["text"], "--steps", "3", "--at", "1", "--methods", "gradient")
    assert ran.status == 0, ran.err
    tree = xr.open_datatree(tmp_path / "denoscope-out" / "explanation.zarr", engine="zarr")
    assert float(tree["gradient"]["saliency"].max()) > 0


def test_ctrl_c_before_anything_was_finished(run, folders, tmp_path, monkeypatch):
    def stopped(self, step, advance):
        raise KeyboardInterrupt

    monkeypatch.setattr(DFRise, "explain", stopped)
    assert run("explain", PROMPT, "--model", folders["text"], *SHORT).status == 1
    assert {path.name for path in (tmp_path / "denoscope-out").iterdir()} == WRITTEN
    monkeypatch.setattr(denoscope.Model, "trace", stopped)
    ran = run("explain", PROMPT, "--model", folders["text"], *SHORT, "--out", "nothing")
    assert ran.status == 1 and not (tmp_path / "nothing").exists()


def test_ctrl_c_between_two_methods(run, folders, tmp_path, monkeypatch):
    work, asked = DFRise.work, []

    def stopped(self, step):
        asked.append(self.title)
        if asked[-1] == "DF-RISE, paper":
            raise KeyboardInterrupt
        return work(self, step)

    monkeypatch.setattr(DFRise, "work", stopped)
    ran = run("explain", PROMPT, "--model", folders["text"], *SHORT)
    assert ran.status == 1 and "Interrupted: 1 of 2 methods were finished." in ran.err
    tree = xr.open_datatree(tmp_path / "denoscope-out" / "explanation.zarr", engine="zarr")
    assert set(tree.children) == {"trace", "df_rise_contrast"}


def test_ctrl_c_while_writing(run, folders, tmp_path, monkeypatch):
    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("denoscope.report.run.render_run", stopped)
    message = paragraph(run("explain", PROMPT, "--model", folders["text"], *SHORT, "--methods", "df-rise"), 1)
    assert "nothing was written" in message and list(tmp_path.iterdir()) == []


# From here on in a process of its own, on a terminal where that matters.


def on_a_terminal(folder: Path, *words: object, stop_at: str | None = None) -> tuple[int, list[str]]:
    """Exit status and the screen's last state of each line; Ctrl-C is pressed when a pattern first appears."""
    pty = pytest.importorskip("pty", reason="no terminals to open here")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "denoscope", *map(str, words)]
    process = subprocess.Popen(command, cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 4096):
            shown += chunk
            if stop_at is not None and re.search(stop_at.encode(), shown):
                process.send_signal(signal.SIGINT)
                stop_at = None
    except OSError:  # what Linux says when the other end is closed
        pass
    finally:
        os.close(ours)
    return process.wait(60), screen(shown.decode())


def screen(text: str) -> list[str]:
    """The lines that are left on a terminal: carriage returns, "one up" and "erase the line" are followed."""
    lines, row = [""], 0
    for part in re.split(r"(\x1b\[1A|\x1b\[2K|\x1b\[[0-9;?]*[a-zA-Z]|\r|\n)", text):
        if part == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif part == "\x1b[1A":
            row -= 1
        elif part == "\x1b[2K":
            lines[row] = ""
        elif part and not part.startswith(("\x1b", "\r")):
            lines[row] += part
    return [line for line in lines if line]


def test_ctrl_c_on_a_terminal_in_the_middle_of_explaining(folders, tmp_path):
    words = ("--steps", 4, "--masks", 1000, "--methods", "df-rise-contrast", "--out", "out")
    command = ("explain", PROMPT, "--model", folders["text"], *words)
    status, lines = on_a_terminal(tmp_path, *command, stop_at=r"contrast[^%]* [3-7]\d%")
    assert status == 1
    first = ["Loading", "Generating", "DF-RISE,", "Writing", "DF-RISE,", "denoscope", "Report"]
    assert [re.split("[ :]", line)[0] for line in lines] == first
    assert "100%" in lines[1] and "step 0 (t " in lines[4] and "step 3 (t " not in lines[4]
    assert json.loads((tmp_path / "out" / "run.json").read_text())["interrupted"] is True
    tree = xr.open_datatree(tmp_path / "out" / "explanation.zarr", engine="zarr")
    maps = tree["df_rise_contrast"].to_dataset()
    assert 0 in maps.step and 3 not in maps.step and np.isfinite(maps.saliency).all()


def test_ctrl_c_on_a_terminal_while_loading(folders, tmp_path):
    words = ("explain", PROMPT, "--model", folders["text"], "--out", "out")
    status, lines = on_a_terminal(tmp_path, *words, stop_at="Loading")
    assert status == 1 and "nothing was written" in lines[-1] and list(tmp_path.iterdir()) == []
    assert [line.split()[0] for line in lines] == ["Loading", "denoscope:"]


@pytest.mark.parametrize("words", [["--help"], ["explain", "--help"], ["demo", "--help"], ["--version"]])
def test_help_loads_nothing_heavy(words):
    """Also on a terminal that knows ASCII only."""
    command = [sys.executable, "-X", "importtime", "-m", "denoscope", *words]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert ran.returncode == 0 and ran.stdout
    loaded = {line.rpartition("|")[2].strip() for line in ran.stderr.splitlines()}
    assert "typer" in loaded and not loaded & {"torch", "diffusers", "transformers", "matplotlib", "xarray", "numpy"}


def test_a_process_leaves_with_the_status(tmp_path):
    command = [sys.executable, "-m", "denoscope", "explain", PROMPT, "--seed", "abc"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert "--seed abc" in paragraph(Ran(ran.returncode, ran.stdout, ran.stderr), 2)
