"""Phrases, halves, special tokens and concepts: on the command line, in a request, and in what they write."""

import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from small import refusal, stable_diffusion

import denoscope
from denoscope import Request, cli
from denoscope.attributors import attention
from denoscope.attributors.base import METHODS
from denoscope.attributors.concepts import Concepts
from denoscope.attributors.words import Words
from denoscope.commands.comparisons import Comparison
from denoscope.commands.explain import explain
from denoscope.commands.job import written_texts
from denoscope.commands.names import HALVES, methods_with
from denoscope.commands.options import texts_in
from denoscope.errors import InputError
from denoscope.recording.models import Model

PROMPT = "a red circle left of a blue square"
SHORT = ("--steps", 4, "--at", "1,2", "--masks", 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small pipeline as a folder."""
    made = tmp_path_factory.mktemp("small") / "model"
    stable_diffusion().save_pretrained(made)
    return made


@pytest.fixture
def run(monkeypatch, capsys, tmp_path, folder):
    """Run a command line in this process with the small pipeline."""

    def run(*words: object) -> tuple[int, str, str]:
        model = () if "--model" in words else ("--model", folder)
        monkeypatch.setattr(sys, "argv", ["denoscope", *map(str, (*words, *model))])
        monkeypatch.chdir(tmp_path)
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        return left.value.code or 0, *capsys.readouterr()

    return run


def record_of(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def result_of(folder: Path, name: str) -> xr.Dataset:
    return xr.open_datatree(folder / "explanation.zarr", engine="zarr")[name].to_dataset()


# Whole runs.


def test_maps_are_those_of_the_attributors_and_the_command_makes_them_again(run, tmp_path, folder):
    words = ("--phrases", "red circle; blue square", "--concepts", "a green cross; a circle, or a cross")
    status, out, err = run("explain", PROMPT, *SHORT, "--methods", "words", *words, "--out", "one")
    assert status == 0, err
    assert "Word maps: step 1" in out and "Concept maps: presence at step 1" in out
    maps = {name: result_of(tmp_path / "one", name) for name in ("words", "concepts")}
    assert maps["words"]["token"].values.tolist() == ["red circle", "blue square"]
    assert maps["concepts"]["token"].values.tolist() == ["a green cross", "a circle, or a cross"]
    trace = denoscope.load(str(folder)).trace(PROMPT, seed=0, num_inference_steps=4)
    again = {
        "words": Words(phrases=("red circle", "blue square"))(trace, steps=[1, 2]),
        "concepts": Concepts(("a green cross", "a circle, or a cross"))(trace, steps=[1, 2]),
    }
    for name, own in again.items():
        np.testing.assert_allclose(maps[name]["saliency"], own["saliency"], atol=1e-6)

    record = record_of(tmp_path / "one")
    assert record["methods"]["words"]["phrases"] == ["red circle", "blue square"]
    assert record["methods"]["concepts"]["concepts"] == ["a green cross", "a circle, or a cross"]
    assert run(*shlex.split(record["command"])[1:], "--out", "two")[0] == 0
    assert record_of(tmp_path / "two")["command"] == record["command"]
    for name, result in maps.items():
        assert np.array_equal(result["saliency"], result_of(tmp_path / "two", name)["saliency"])


def test_half_and_special_tokens_reach_the_maps(run, tmp_path):
    words = ("--half", "unconditional", "--special-tokens", "--negative-prompt", "a green cross")
    status, _, err = run("explain", PROMPT, *SHORT, *words, "--out", "one")
    assert status == 0, err
    record = record_of(tmp_path / "one")
    assert list(record["methods"]) == ["words", "df_rise_contrast", "df_rise"], "words is added to the default ones"
    assert (record["methods"]["words"]["half"], record["methods"]["words"]["special_tokens"]) == ("unconditional", True)
    tokens = result_of(tmp_path / "one", "words")["token"].values.tolist()
    assert {"green", "cross"} <= set(tokens) and not {"red", "blue"} & set(tokens), "of the negative prompt"
    assert len(tokens) > len(["a", "green", "cross"]), "with the tokens at its start and end"
    line = shlex.split(record["command"])
    assert "--special-tokens" in line and line[line.index("--half") + 1] == "unconditional"
    assert run(*line[1:], "--out", "two")[0] == 0


def test_a_page_names_its_only_phrase_and_its_only_concept(run, tmp_path):
    words = ("--methods", "words", "--phrases", "red circle", "--concepts", "a green cross")
    assert run("explain", PROMPT, *SHORT, *words, "--out", "one")[0] == 0
    page = (tmp_path / "one" / "report.html").read_text()
    assert "Of “red circle”." in page and "Of “a green cross”." in page
    assert {path.name for path in (tmp_path / "one" / "figures").iterdir()} == {"words.png", "concepts.png"}


def test_words_of_a_concept_that_the_model_cannot_read_are_named(run, tmp_path):
    words = ("--methods", "concepts", "--concepts", "a red circle; blue fur", "--model", "shapes")
    status, out, err = run("explain", PROMPT, "--steps", 4, "--at", 2, *words, "--out", "one")
    assert status == 0, err
    assert record_of(tmp_path / "one")["unknown_words"] == ["fur"]
    assert 'cannot read "fur"' in out


def test_a_comparison_takes_the_same(run, tmp_path):
    words = ("--seeds", "0,1", "--phrases", "red circle", "--concepts", "a green cross;a blue square")
    status, _, err = run("compare", PROMPT, *SHORT, *words, "--out", "one")
    assert status == 0, err
    record = record_of(tmp_path / "one")
    variant = json.loads(next((tmp_path / "one").rglob("*/run.json")).read_text())
    assert list(variant["methods"]) == ["words", "concepts", "relevance"]
    again = shlex.split(record["command"])
    assert again[again.index("--phrases") + 1] == "red circle"
    assert again[again.index("--concepts") + 1] == "a green cross; a blue square"


# Refusals.

REFUSED = {
    "no concept": (["--methods", "concepts"], 'Give them as option "--concepts"'),
    "phrases without words": (["--methods", "df-rise", "--phrases", "red"], 'The option "--phrases" belongs to'),
    "half without words": (["--methods", "df-cam", "--half", "conditional"], 'The option "--half" belongs to'),
    "tokens without words": (
        ["--methods", "lime,relevance", "--concepts", "a cross", "--special-tokens"],
        'The option "--special-tokens" belongs to the method words, and the methods given are: lime, relevance.',
    ),
    "half": (["--half", "unconditonal"], '--half is "unconditonal". Did you mean "unconditional"?'),
    "no phrase": (["--phrases", " ; "], "--phrases is (). Give at least one text"),
    "a concept twice": (["--concepts", "sky; sky"], "--concepts is ('sky', 'sky')"),
}


@pytest.mark.parametrize("words, said", REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("command", [("explain",), ("compare", "--seeds", "0,1")], ids=["explain", "compare"])
def test_refusals_come_before_a_model_is_loaded(run, tmp_path, monkeypatch, command, words, said):
    monkeypatch.setattr("denoscope.recording.models.load", lambda *_, **__: pytest.fail("the model was loaded"))
    status, out, err = run(*command[:1], PROMPT, *command[1:], *words)
    assert (status, out) == (2, "") and said in err
    assert len(err.splitlines()) == 1 and list(tmp_path.iterdir()) == []


def test_a_phrase_that_is_not_there_is_refused_before_the_slow_methods(run, tmp_path, monkeypatch):
    monkeypatch.setattr("denoscope.attributors.rise.DFRise.explain", lambda *_: pytest.fail("masks were drawn"))
    status, _, err = run("explain", PROMPT, *SHORT, "--phrases", "green circle", "--out", "one")
    assert status == 2 and '"green circle" is not in the prompt' in err and list(tmp_path.iterdir()) == []


# Requests.


def test_the_methods_that_run():
    assert Request("a").running_methods == ("df-rise-contrast", "df-rise")
    assert Request("a", methods=("words",), phrases=("a",)).running_methods == ("words",)
    assert Request("a", half="conditional").running_methods == ("words", "df-rise-contrast", "df-rise")
    assert Request("a", methods=("concepts", "words"), concepts=("b",)).running_methods == ("concepts", "words")
    varied = replace(Request("a"), phrases=("a",))
    assert varied.running_methods[0] == "words", "the default methods are not taken for chosen ones"
    assert methods_with([], (), ("df-rise",)) == ()


def test_options_go_to_the_method_that_has_them():
    request = Request("a", phrases=("a",), special_tokens=True, half="unconditional", concepts=("b", "c"))
    made = request.attributors()
    assert made["words"] == Words(phrases=("a",), special_tokens=True, half="unconditional")
    assert made["concepts"] == Concepts(("b", "c"))
    assert Request("a", methods=("words",)).attributors() == {"words": Words()}


def test_a_method_of_ones_own_may_take_the_phrases(monkeypatch):
    monkeypatch.setitem(METHODS, "own-words", lambda phrases=None: Words(phrases=phrases))
    request = Request("a red circle", methods=("own-words",), phrases=("red circle",))
    assert request.attributors() == {"own_words": Words(phrases=("red circle",))}
    with pytest.raises(InputError, match='option "half" belongs to'):
        Request("a red circle", methods=("own-words",), half="conditional")


def test_a_comparison_of_a_request_with_phrases(stable_diffusion):
    request = Request("a red circle", phrases=("red circle",))
    model = Model(stable_diffusion, "small")
    made = Comparison(request).attributors(model)
    assert list(made) == ["words", "relevance"] and made["words"] == Words(phrases=("red circle",))
    assert "belongs to the method words" in refusal(lambda: Comparison(request, methods=("relevance",)))
    assert "no name was given" in refusal(lambda: Comparison(Request("a"), methods=("concepts",)))


@pytest.mark.parametrize("wrong", ["a red circle", (), ("",), ("a", 3), ("a", "a"), ("a; b",)], ids=str)
def test_texts_that_are_none(wrong):
    for name in ("phrases", "concepts"):
        with pytest.raises(InputError, match=f"^{name} is "):
            Request("a red circle", **{name: wrong})


@pytest.mark.parametrize("texts", [("a",), ("a", "b"), ("a, b",), ("a, b", "c"), ("it's red",)], ids=str)
def test_texts_are_written_as_they_are_read(texts):
    assert texts_in(written_texts(texts)) == texts
    line = shlex.split(Request("a", phrases=texts, concepts=texts).command())
    assert [texts_in(line[line.index(option) + 1]) for option in ("--phrases", "--concepts")] == [texts, texts]


def test_the_halves_are_those_of_the_attention():
    assert HALVES == attention.HALVES


def test_an_explanation_in_python(stable_diffusion):
    request = Request(PROMPT, steps=3, at=(1,), methods=("words",), phrases=("red circle",))
    explanation = explain(request, model=Model(stable_diffusion, "small"))
    assert explanation.methods()["words"]["token"].values.tolist() == ["red circle"]
