"""Signs of failure: against direct computation, known patterns, known masks, and results that are only half there."""

import json
from functools import partial

import numpy as np
import pytest
import xarray as xr
from pages import RUN, Page
from pictures import disc_method, disc_trace
from scipy import ndimage

from denoscope.commands import explain
from denoscope.commands.compare import compare, compared
from denoscope.commands.comparisons import Comparison
from denoscope.commands.requests import Request
from denoscope.criteria import ALIKE, RELIABLE
from denoscope.evaluation.diagnosis import Signature, diagnose, indistinguishable, morans_i, shuffled_level
from denoscope.evaluation.distances import distances
from denoscope.recording.models import Model
from denoscope.report import caveats, run
from denoscope.report.variants import render_variants
from denoscope.results.explanations import Explanation
from denoscope.worlds.shapes.scenes import Scene, Thing, outline_coverage, render

SCENE = Scene(
    "white",
    (
        Thing("circle", "red", "large", "plain", 18, 20, 13),
        Thing("square", "blue", "small", "plain", 46, 44, 8),
    ),
    "left of",
)
PROMPT = "a large red circle left of a small blue square on a white background"


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape or (16, 16))


def blob(side: int = 16) -> np.ndarray:
    y, x = np.mgrid[:side, :side]
    return np.exp(-((y - side / 3) ** 2 + (x - side / 2) ** 2) / side)


def method(saliency: np.ndarray, tokens: list[str] | None = None, **variables: object) -> xr.Dataset:
    """Maps (step, y, x), or (step, token, y, x) with tokens."""
    coords = {"step": list(range(len(saliency))), **({"token": tokens} if tokens else {})}
    dims = ("step", *(["token"] if tokens else []), "y", "x")
    return xr.Dataset({"saliency": (dims, saliency), **variables}, coords, {"title": "Maps"})


def found(methods: dict[str, xr.Dataset], *rest: object) -> dict[str, Signature]:
    return {each.name: each for each in diagnose(methods, RELIABLE, *rest)}


# No pattern


def direct(saliency: np.ndarray) -> float:
    """Moran's I as it is written, with the whole matrix of weights."""
    cells = [tuple(place) for place in np.argwhere(np.isfinite(saliency))]
    z = np.array([saliency[place] for place in cells])
    z = z - z.mean()
    w = np.array([[abs(a - c) + abs(b - d) == 1 for c, d in cells] for a, b in cells], dtype=float)
    return len(z) / w.sum() * (z @ w @ z) / (z @ z)


def test_morans_i_is_what_its_definition_says():
    checks = np.indices((6, 6)).sum(axis=0) % 2
    holes = noise(3, 7, 5)
    holes[1, 2], holes[4, 4], holes[0, 0] = np.nan, np.inf, np.nan
    for saliency in (noise(0, 6, 9), blob(), checks.astype(float), holes, 1e-30 * noise(1), 1e30 * noise(2)):
        assert float(morans_i(saliency)) == pytest.approx(direct(saliency), abs=1e-12)
    assert float(morans_i(checks.astype(float))) == pytest.approx(-1)
    stack = noise(4, 3, 2, 5, 5)
    np.testing.assert_allclose(morans_i(stack), [[direct(m) for m in row] for row in stack])


@pytest.mark.parametrize("saliency", [np.zeros((4, 4)), np.full((4, 4), 0.1), np.full((4, 4), np.nan), np.ones((1, 1))])
def test_a_flat_map_has_no_morans_i(saliency):
    assert np.isnan(morans_i(saliency)) and np.isnan(shuffled_level(saliency))


def test_shuffled_positions_agree_as_much_as_theory_says():
    """Under normality E(I) = −1 / (n − 1) and, for rook neighbours, the variance of Cliff and Ord 1981."""
    h = w = 12
    n, pairs = h * w, h * (w - 1) + w * (h - 1)
    degrees = np.full((h, w), 4) - (np.indices((h, w)) % (h - 1) == 0).sum(axis=0)
    s0, s1, s2 = 2 * pairs, 4 * pairs, 4 * (degrees**2).sum()
    variance = (n**2 * s1 - n * s2 + 3 * s0**2) / ((n**2 - 1) * s0**2) - 1 / (n - 1) ** 2
    median = shuffled_level(noise(0, h, w), 0.5, 2000)
    upper = shuffled_level(noise(0, h, w), 0.8413, 2000)
    assert median == pytest.approx(-1 / (n - 1), abs=0.01)
    assert upper - median == pytest.approx(np.sqrt(variance), rel=0.1)


@pytest.mark.parametrize("seed", range(6))
def test_noise_has_no_pattern_and_a_blob_has(seed):
    said = found({"a": method(noise(seed)[None])})["no pattern"]
    assert said.present is True and "Maps at step 0" in said.text
    numbers = said.numbers
    assert numbers["neighbours"]["Maps"]["step 0"] <= numbers["shuffled"]["Maps"]["step 0"] < 0.3
    shown = blob() + 0.1 * noise(seed)
    assert found({"a": method(shown[None])})["no pattern"].present is False
    scattered = np.random.default_rng(seed).permutation(blob().ravel()).reshape(1, 16, 16)
    assert found({"a": method(scattered)})["no pattern"].present is True


def test_the_level_is_the_same_again_and_a_large_map_is_shuffled_in_parts(monkeypatch):
    from denoscope.evaluation import diagnosis

    whole = shuffled_level(noise(0))
    assert whole == shuffled_level(noise(0)) != shuffled_level(noise(0), seed=1)
    monkeypatch.setattr(diagnosis, "BATCH", 1000)
    assert shuffled_level(noise(0)) == pytest.approx(whole, abs=1e-12)


def test_maps_are_told_by_step_and_word_and_the_flat_ones_apart():
    saliency = np.stack([[blob(), noise(0)], [np.zeros((16, 16)), blob()]])
    said = found({"a": method(saliency, ["red", "disc"])})["no pattern"]
    assert said.present is True
    assert "Maps, “disc” at step 0." in said.text and "Flat" in said.text and "“red” at step 1." in said.text
    assert said.numbers["neighbours"]["Maps, “red”"]["step 1"] is None


def test_cells_without_a_value_stay_where_they_are():
    """The direct way: shuffle the finite cells of the map, and ask for Moran's I of each."""
    holes = np.where(noise(1, 8, 8) > 0.5, np.nan, noise(0, 8, 8))
    random, known = np.random.default_rng(0), np.isfinite(holes)
    each = []
    for row in random.permuted(np.tile(holes[known], (199, 1)), axis=1):
        shuffled = holes.copy()
        shuffled[known] = row
        each.append(direct(shuffled))
    assert shuffled_level(holes) == pytest.approx(np.quantile(each, 0.99))


# Not reproducible


def test_reliability_is_held_against_what_is_reliable():
    maps = np.stack([blob()] * 3)
    said = found({"a": method(maps, reliability=("step", [0.9, 0.3, np.nan]))})["not reproducible"]
    assert said.present is True and "1 of 2" in said.text and "Maps at step 1" in said.text
    assert said.numbers == {"reliability": {"Maps": {"step 0": 0.9, "step 1": 0.3, "step 2": None}}}
    assert found({"a": method(maps, reliability=("step", [0.9, 0.8, np.nan]))})["not reproducible"].present is False
    assert found({"a": method(maps, reliability=("step", [np.nan] * 3))})["not reproducible"].present is None
    assert found({"a": method(maps)})["not reproducible"].present is None


# Words elsewhere


def on(thing: Thing, side: int = 16) -> np.ndarray:
    """A map that is high on a thing of a picture 64 × 64."""
    return outline_coverage(thing).reshape(side, 64 // side, side, 64 // side).mean(axis=(1, 3))


def picture() -> np.ndarray:
    return (render(SCENE) * 255).round().astype(np.uint8)


def test_word_maps_on_and_off_what_the_words_name():
    circle, square = SCENE.things
    words = ["a", "red", "circle", "square", "white"]
    right = method(np.stack([[blob(), on(circle), on(circle), on(square), blob()]] * 2), words)
    said = found({"a": right}, PROMPT, picture())["words elsewhere"]
    assert said.present is False and set(said.numbers["auroc"]) == {"Maps, “red”", "Maps, “circle”", "Maps, “square”"}
    assert min(value for row in said.numbers["auroc"].values() for value in row.values()) > 0.95
    wrong = method(np.stack([[blob(), on(circle), on(square), on(square), blob()]] * 2), words)
    said = found({"a": wrong}, PROMPT, picture())["words elsewhere"]
    assert said.present is True and "1 of 3" in said.text and "“circle”" in said.text
    assert said.numbers["auroc"]["Maps, “circle”"]["step 0"] < 0.5
    flat = method(np.zeros((1, 1, 16, 16)), ["red"])
    said = found({"a": flat}, PROMPT, picture())["words elsewhere"]
    assert said.present is True and said.numbers["auroc"]["Maps, “red”"]["step 0"] == pytest.approx(0.5)


def test_a_map_that_points_no_better_than_lying_elsewhere_is_found():
    """Random and smooth, so that its AUROC is above 0.5 half of the time: found nearly always, at any rate by 95 %."""
    rng, smoothed = np.random.default_rng(0), partial(ndimage.gaussian_filter, sigma=2, mode="wrap")
    maps = [method(smoothed(rng.normal(size=(16, 16)))[None, None], ["red"]) for _ in range(40)]
    present = [found({"a": each}, PROMPT, picture())["words elsewhere"].present for each in maps]
    assert 0.85 <= np.mean(present) <= 1
    level = found({"a": maps[0]}, PROMPT, picture())["words elsewhere"].numbers["shifted"]["Maps, “red”"]["by chance"]
    assert 0.6 < level < 1


def test_a_map_is_judged_by_its_median_over_the_steps():
    circle = SCENE.things[0]
    maps = np.stack([[-on(circle)], [on(circle)], [on(circle)], [np.full((16, 16), np.nan)]])
    assert found({"a": method(maps, ["red"])}, PROMPT, picture())["words elsewhere"].present is False
    assert found({"a": method(maps[[0, 0, 1]], ["red"])}, PROMPT, picture())["words elsewhere"].present is True


def test_where_the_places_are_not_known_that_is_said_and_no_warning():
    words = method(np.stack([[blob()]]), ["red"])
    for shown in (None, np.zeros((32, 32, 3), np.uint8)):
        said = found({"a": words}, PROMPT, shown)["words elsewhere"]
        assert said.present is None and said.text == "Not known: the objects’ places are not known for this model."
    assert found({"a": method(blob()[None])}, PROMPT, picture())["words elsewhere"].present is None
    assert found({"a": words}, None, picture())["words elsewhere"].present is None
    empty = np.full((64, 64, 3), 245, np.uint8)
    assert found({"a": words}, PROMPT, empty)["words elsewhere"].present is None


# Variants alike


def pairs_of(*pictures: np.ndarray) -> list[dict]:
    apart = distances({str(i): each for i, each in enumerate(pictures)})
    return [
        {"a": str(i), "b": str(j), "ssim": float(apart["ssim"][i, j])}
        for i in range(len(pictures))
        for j in range(i + 1, len(pictures))
    ]


def test_equal_pictures_are_indistinguishable_and_others_not():
    other = (render(Scene.random(5)) * 255).round().astype(np.uint8)
    said = indistinguishable(pairs_of(picture(), picture(), other), {}, ALIKE)
    assert said.present is True and "1 of 3" in said.text and "0 and 1: the pictures look the same" in said.text
    assert said.numbers["apart"]["0 and 1"] == {"ssim": pytest.approx(1), "words": None}
    assert indistinguishable(pairs_of(picture(), other), {}, ALIKE).present is False


def test_words_that_count_the_same_are_indistinguishable_whatever_the_number_of_steps():
    pairs = [{"a": "x", "b": "y", "ssim": 0.2}]
    few, many = [("red", 3.0), ("disc", 1.0)], [("red", 30.1), ("disc", 10.0)]
    said = indistinguishable(pairs, {"x": few, "y": many}, ALIKE)
    assert said.present is True and "x and y: each word has the same share" in said.text
    assert indistinguishable(pairs, {"x": few, "y": [("red", 2.0), ("disc", 2.0)]}, ALIKE).present is False
    assert said.numbers["apart"]["x and y"]["words"] == pytest.approx(abs(3 / 4 - 30.1 / 40.1))
    for others in ([("a", 1.0), ("disc", 1.0)], [("red", 0.0), ("disc", 0.0)], [("red", np.nan), ("disc", 1.0)], []):
        told = indistinguishable(pairs, {"x": few, "y": others}, ALIKE)
        assert told.present is False and told.numbers["apart"]["x and y"]["words"] is None


def test_what_cannot_be_compared_is_not_told():
    assert indistinguishable([], {}, ALIKE).present is None
    assert indistinguishable([{"a": "x", "b": "y", "ssim": np.nan}], {}, ALIKE).present is None


# Results that are only half there


HALF = {
    "nothing": {},
    "one step": {"a": method(blob()[None])},
    "all NaN": {"a": method(np.full((2, 8, 8), np.nan), reliability=("step", [np.nan, np.nan]))},
    "one unfinished": {"a": method(np.stack([blob(), np.full((16, 16), np.nan)]))},
    "flat": {"a": method(np.ones((2, 8, 8)))},
    "one cell": {"a": method(np.ones((1, 1, 1)))},
    "holes": {"a": method(np.where(noise(1) > 0.5, np.nan, noise(0))[None])},
    "infinite": {"a": method(np.where(noise(1) > 0.5, np.inf, noise(0))[None])},
    "words, unfinished": {"a": method(np.stack([[blob()], [np.full((16, 16), np.nan)]]), ["red"])},
    "another grid": {"a": method(noise(0, 1, 1, 4, 6), ["red"])},
    "layers": {"a": xr.Dataset({"saliency": (("layer", "step", "y", "x"), noise(0, 2, 1, 4, 4))}, {"step": [3]})},
    "the same title": {"a": method(blob()[None]), "b": method(noise(0)[None])},
    "whole numbers": {"a": method(np.arange(16).reshape(1, 4, 4))},
}


@pytest.mark.parametrize("methods", HALF.values(), ids=HALF)
@pytest.mark.parametrize("shown", [None, picture()], ids=["unknown", "known"])
def test_what_is_only_half_there_is_diagnosed_and_can_be_written(methods, shown):
    before = {name: each.copy(deep=True) for name, each in methods.items()}
    said = diagnose(methods, RELIABLE, PROMPT, shown)
    assert len(said) == 3 and all(each.present in (True, False, None) and each.text for each in said)
    plain = [each.plain() for each in said]
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    for name, each in methods.items():
        xr.testing.assert_identical(each, before[name])
    rows = [set(table) for each in said for table in each.numbers.values()]
    assert all("Maps (b)" in row for row in rows if len(row) > 1 and "b" in methods)


# On the page


def diagnosed(methods: dict[str, xr.Dataset]) -> Explanation:
    plain = [each.plain() for each in diagnose(methods, RELIABLE)]
    return Explanation.of(disc_trace(), methods, {**RUN, "diagnosis": plain})


def test_the_page_has_every_verdict_and_the_warnings_what_is_not_said_yet():
    saliency = noise(0, 3, 8, 8)
    explanation = diagnosed({"bump": disc_method().assign(saliency=(("step", "y", "x"), saliency))})
    said = Page(run.render_run(explanation)).said()
    assert "Can it be trusted?" in said and "Maps without a pattern: found" in said
    assert "Words’ maps away from what the words name: not known" in said
    titles = [warning.title for warning in caveats.warnings(explanation)]
    assert titles.count("Some maps have no clear pattern.") == 1
    assert len([title for title in titles if "reliable" in title]) == 1  # said by its method, not twice
    assert "do not come out the same again: found" in said
    calm = diagnosed({"bump": disc_method(steps=(4,)).assign(reliability=("step", [0.95]))})
    assert caveats.warnings(calm) == [] and "Maps without a pattern: not found" in Page(run.render_run(calm)).said()


def test_numbers_stand_in_the_order_of_their_steps():
    table = {"apart": {"a": {"step 2": 0.5, "step 10": None}, "b": {"step 9": 1.0}}}
    run = {"diagnosis": [{"name": "no pattern", "present": None, "text": "", "numbers": table}]}
    (shown,) = caveats.signatures(run)[0]["tables"]
    assert shown["columns"] == ["step 2", "step 9", "step 10"]
    assert shown["rows"] == {"a": ["0.5", "", "n/a"], "b": ["", "1", ""]}


def test_a_run_from_before_still_opens():
    explanation = Explanation.of(disc_trace(), {"bump": disc_method()}, dict(RUN))
    assert "Can it be trusted?" not in run.render_run(explanation)


# In a run


@pytest.fixture
def small(stable_diffusion) -> Model:
    stable_diffusion.set_progress_bar_config(disable=True)
    return Model(stable_diffusion, "small")


def test_every_run_is_diagnosed_and_keeps_it(small, tmp_path):
    asked = Request("a red circle", "small", steps=2, methods=("df-rise", "words"), masks=8)
    made = explain.explain(asked, model=small)
    said = {each["name"]: each for each in made.run["diagnosis"]}
    assert list(said) == ["no pattern", "not reproducible", "words elsewhere"]
    assert {"DF-RISE, paper", "Word maps, “red”"} <= set(said["no pattern"]["numbers"]["neighbours"])
    assert "not known for this model" in said["words elsewhere"]["text"]
    folder = made.save(tmp_path / "run")
    assert json.loads((folder / "run.json").read_text(encoding="utf-8"))["diagnosis"] == made.run["diagnosis"]
    assert Explanation.load(folder).run["diagnosis"] == made.run["diagnosis"]
    assert "Can it be trusted?" in (folder / "report.html").read_text(encoding="utf-8")


def test_variants_that_are_the_same_are_named_on_their_page(small):
    asked = Request("a red circle", "small", steps=2, masks=8)
    comparison = Comparison(asked, "seed", (0, 1), methods=("relevance",))
    found = compare(comparison, models={"small": small})
    (told,) = found.run["diagnosis"]
    assert told["name"] == "variants alike" and set(told["numbers"]["apart"]) == {"seed-0 and seed-1"}
    assert told["numbers"]["apart"]["seed-0 and seed-1"]["words"] > 0
    explanations = {name: found.explanations["seed-0"] for name in ("seed-0", "seed-1")}
    run = compared(comparison, explanations).run
    page = Page(render_variants(explanations, run)).said()
    assert "Variants that cannot be told apart: found" in page
    assert "seed-0 and seed-1: the pictures look the same and each word has the same share of the relevance." in page
    assert "The pictures look the same." in page and "Some variants cannot be told apart." not in page  # said once
    run["distances"][0]["ssim"] = 0.5
    assert "Some variants cannot be told apart." in Page(render_variants(explanations, run)).said()
    del run["diagnosis"]
    assert "cannot be told apart" not in Page(render_variants(explanations, run)).said()


def test_ctrl_c_while_it_is_diagnosed_loses_no_map(small, tmp_path, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("denoscope.evaluation.diagnosis.diagnose", stopped)
    made = explain.explain(Request("a red circle", "small", steps=4, methods=("df-cam",)), model=small)
    assert made.run["interrupted"] and "diagnosis" not in made.run and "df_cam" in made.methods()
    assert "the diagnosis was not" in made.run["interruption"] and made.save(tmp_path / "out").is_dir()
