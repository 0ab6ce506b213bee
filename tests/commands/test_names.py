"""Names that are known without torch, and values that are refused before it is imported."""

import subprocess
import sys

import pytest

from denoscope.attributors import BUILT_IN
from denoscope.attributors.base import METHODS, explains_every_step, list_methods, needs_of
from denoscope.commands.job import LARGEST_SEED
from denoscope.commands.names import BUNDLED_MODELS, DTYPES
from denoscope.commands.studies import BETA_SCHEDULES
from denoscope.recording import loading, models
from denoscope.vision import noising


def test_the_built_in_names_are_those_of_the_registry():
    assert set(BUILT_IN) == set(list_methods(needs="any"))
    for name, facts in BUILT_IN.items():
        assert (facts.needs, facts.every_step) == (needs_of(name), explains_every_step(name)), name
        factory = METHODS[name]
        assert getattr(factory, "__module__", "").rpartition(".")[2] == facts.module, name
    assert (DTYPES, BETA_SCHEDULES) == (loading.PRECISIONS, noising.BETA_SCHEDULES)
    assert BUNDLED_MODELS == loading.BUNDLED and LARGEST_SEED == models.LARGEST_SEED


REFUSED = {
    "steps": ["explain", "a red circle", "--steps", "0"],
    "seed": ["explain", "a red circle", "--seed", "-1"],
    "large seed": ["explain", "a red circle", "--seed", str(2**64)],
    "masks": ["explain", "a red circle", "--masks", "0"],
    "until": ["explain", "a red circle", "--until", "2"],
    "method": ["explain", "a red circle", "--methods", "df-rize"],
    "at": ["explain", "a red circle", "--at", "abc"],
    "twice at": ["explain", "a red circle", "--at", "2,2"],
    "model": ["explain", "a red circle", "--model", "shape"],
    "schedule": ["explain", "a red circle", "--schedule", "erly"],
    "demo": ["demo", "--masks", "0"],
    "second model": ["compare", "a red circle", "--models", "shapes,shaped"],
    "second seed": ["compare", "a red circle", "--seeds", "0,-1"],
    "two axes": ["compare", "a red circle", "--seeds", "0,1", "--guidances", "1,3"],
    "method of compare": ["compare", "a red circle", "--methods", "relevanse"],
    "class method": ["recognise", "cat.png", "--methods", "oclusion"],
    "frames": ["recognise", "cat.png", "--frames", "0"],
    "preset": ["recognise", "cat.png", "--preset", "studdy"],
    "trace steps": ["recognise", "--trace", "a red circle", "--steps", "0"],
    "words": ["words", "--model", "shape"],
    "evaluate": ["evaluate", "--steps", "0"],
    "scenes": ["evaluate", "--scenes", "1"],
    "workers": ["evaluate", "--workers", "0"],
    "dtype": ["explain", "a red circle", "--dtype", "float8"],
    "scheduler": ["explain", "a red circle", "--scheduler", "eulr"],
    "second scheduler": ["compare", "a red circle", "--schedulers", "euler,DDIM"],
    "beta schedule": ["recognise", "cat.png", "--noising", "ddpm", "--beta-schedule", "cosine"],
    "no such photograph": ["recognise", "cat.png"],
    "guidance": ["evaluate", "--guidance", "nan"],
    "few masks": ["evaluate", "--num-masks", "2"],
    "large seed of evaluate": ["evaluate", "--seed", str(2**64)],
}


def test_values_that_need_no_model_are_refused_without_torch(tmp_path):
    """One interpreter for all commands: whatever loads torch first is seen."""
    script = """
import sys
from denoscope.cli import _run
for line in sys.argv[1:]:
    status = _run(line.split("|"))
    heavy = sorted({"torch", "diffusers", "transformers", "matplotlib"} & set(sys.modules))
    print(status, *heavy, "|", line)
"""
    lines = ["|".join(words) for words in REFUSED.values()]
    ran = subprocess.run(
        [sys.executable, "-c", script, *lines], capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    wrong = [line for line in ran.stdout.splitlines() if not line.startswith("2 | ")]
    assert wrong == [] and len(ran.stdout.splitlines()) == len(REFUSED), ran.stderr
    assert list(tmp_path.iterdir()) == []


MESSAGES = {
    "start": ("num_masks is 0. Give 4.", "--masks is 0. Give 4."),
    "advice": ("Load it with dtype=torch.float32.", "Load it with --dtype float32."),
    "text": ("Swap it: scheduler='dpm-solver++'.", "Swap it: --scheduler 'dpm-solver++'."),
    "flag": ("replacing it with overwrite=True.", "replacing it with --overwrite."),
    "option": ('X has no option "guidance_scale".', 'X has no option "--guidance".'),
    "no option": ("clip_skip is 3, or clip_skip=2.", "clip_skip is 3, or clip_skip=2."),
    "typed by the user": ('The prompt is "seed=3".', 'The prompt is "seed=3".'),
}


@pytest.mark.parametrize("message, printed", MESSAGES.values(), ids=MESSAGES)
def test_messages_on_the_command_line_speak_of_options(message, printed):
    from denoscope.cli import _in_options

    assert _in_options(message, ["explain"]) == printed


def test_a_list_becomes_an_option_for_each_entry():
    from denoscope.cli import _in_options

    message = _in_options('Give labels=["a red circle", "a blue square"].', ["compare"])
    assert message == 'Give --label "a red circle" --label "a blue square".'
