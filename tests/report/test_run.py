"""The page: everything inline, everything escaped, and what a reader points at is what the array holds."""

import json
import re
from itertools import accumulate

import numpy as np
import pytest
import xarray as xr
from pages import (
    LABELS,
    PROMPT,
    RUN,
    Page,
    attribution,
    photograph,
    picture_of,
    recognised,
    rising,
    unpacked,
    with_measures,
)
from pictures import NUMBER_OF_STEPS, disc_method, disc_trace

from denoscope.figures import overlays
from denoscope.report import caveats, run
from denoscope.report import likelihood as curves
from denoscope.report.maps import in_blocks, packed, page_results
from denoscope.report.page import picture_uri, span
from denoscope.results.explanations import Explanation
from denoscope.timing import likelihood as timing


def explained(method: xr.Dataset | None = None, **run: object) -> Explanation:
    return Explanation.of(disc_trace(), {"bump": disc_method() if method is None else method}, {**RUN, **run})


def data_of(explanation: Explanation) -> dict:
    return json.loads(run.payload(explanation))


def test_nothing_comes_from_elsewhere():
    page = run.render_run(explained())
    for tag, attributes in Page(page).tags:
        for name in ("src", "href", "data", "action", "srcset"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#")), (tag, attributes)
    without_pictures = re.sub(r"data:image/\w+;base64,[\w+/=]+", "", page)
    assert "http" not in without_pictures and "@import" not in page and "url(" not in page


def test_what_a_run_says_is_text_and_never_markup():
    method = disc_method(title="<i>t</i>", reading='"><script>alert(2)</script>')
    page = Page(run.render_run(explained(method)))
    assert [tag for tag, _ in page.tags].count("script") == 2
    assert not {"b", "i"} & {tag for tag, attributes in page.tags if not attributes} - {"b"}
    assert PROMPT in page.said() and "<i>t</i>" in page.said() and '"><script>alert(2)</script>' in page.said()


def test_the_data_cannot_leave_its_script():
    explanation = explained(disc_method().assign({"<script> & more": ("step", [1.0, 2.0, 3.0])}))
    assert not {"<", "&"} & set(run.payload(explanation))
    assert data_of(explanation)["methods"]["bump"]["numbers"]["1"][1] == ["<script> & more", "1"]


def test_every_step_has_its_pictures_and_numbers():
    explanation = explained()
    pictures, steps, strip = explanation.pictures, data_of(explanation)["steps"], Page(run.render_run(explanation)).tags
    thumbnails = [
        attributes["src"]
        for tag, attributes in strip
        if (attributes.get("alt") or "").startswith("Clean prediction at s")
    ]
    assert [step["index"] for step in steps] == list(range(NUMBER_OF_STEPS)) and len(thumbnails) == NUMBER_OF_STEPS
    for i, step in enumerate(steps):
        np.testing.assert_array_equal(picture_of(step["sample"]), pictures["sample"][i])
        np.testing.assert_array_equal(picture_of(str(thumbnails[i])), pictures["pred_original_sample"][i])
    assert steps[0]["timestep"] == "999" and steps[0]["log_snr"] == "−9"


def test_hovering_reads_the_array():
    method = disc_method()
    bump = data_of(explained(method))["methods"]["bump"]
    assert set(bump["layers"][0]) == {"1", "3", "4"}
    for step, content in bump["layers"][0].items():
        here = method.sel(step=int(step))
        for key, name in (("values", "saliency"), ("errors", "standard_error")):
            values = np.array(content[key]).reshape(bump["shape"])
            np.testing.assert_allclose(values, here[name], rtol=5e-4)
    assert bump["limits"] == [-bump["limits"][1], float(f"{float(method.saliency.max()):.4g}")]


def test_transposed_results_are_read_the_same():
    method = disc_method(height=3, width=5)
    turned = method.transpose("x", "y", "step")
    assert data_of(explained(turned))["methods"] == data_of(explained(method))["methods"]


def test_missing_values_are_null_and_unfinished_steps_are_absent():
    method = disc_method()
    method["saliency"][0, 2, 3] = np.nan
    method["saliency"][1] = np.nan
    bump = data_of(explained(method))["methods"]["bump"]
    assert set(bump["layers"][0]) == {"1", "4"}
    missing = [i for i, value in enumerate(bump["layers"][0]["1"]["values"]) if value is None]
    assert missing == [2 * 8 + 3]


def test_the_page_opens_on_an_explained_step():
    assert data_of(explained())["start"] == 3
    assert data_of(Explanation.of(disc_trace(), {}, RUN))["start"] == NUMBER_OF_STEPS - 1


def test_every_further_entry_has_its_maps():
    words = xr.concat([disc_method(), disc_method() * 2], xr.Variable("token", ["red", "disc"]))
    words["saliency"] = words["saliency"].transpose("step", "token", "y", "x")
    explanation = explained(words[["saliency"]].assign_attrs(title="Words"))
    first, second = data_of(explanation)["methods"]["bump"]["layers"]
    first, second = (unpacked(layer["3"]["values"], [8, 8]) for layer in (first, second))
    np.testing.assert_allclose(first, words["saliency"].sel(step=3, token="red"), atol=1e-3)
    np.testing.assert_allclose(second, 2 * first, atol=1e-3)
    page = Page(run.render_run(explanation))
    assert [attributes["data-at"] for tag, attributes in page.tags if "Show “" in (attributes.get("title") or "")] == [
        "0",
        "1",
    ]
    assert [attributes["data-layer"] for _, attributes in page.tags if "data-layer" in attributes] == ["1"]
    assert "Words · red" in run.notebook_summary(explanation) and "Words · disc" in run.notebook_summary(explanation)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda method: method, "A bump is not reliable at step 1 (0.7)."),
        (
            lambda method: method.assign(reliability=method["reliability"] * np.nan),
            "How reliable A bump is cannot be told at steps 1, 3 and 4.",
        ),
        (lambda method: method * 0, "A bump is flat at steps 1, 3 and 4."),
        (lambda method: method.where(method.step != 3), "A bump has no map for step 3."),
        (lambda method: method.where(method.saliency < 1), "A bump has cells without a value at steps 1, 3 and 4."),
    ],
)
def test_doubts_are_said(change, said: str):
    method = change(disc_method()).assign_attrs(disc_method().attrs)
    assert said in Page(run.render_run(explained(method))).said()


def test_as_many_masks_are_advised_as_spearman_and_brown_ask_for():
    (doubt,) = caveats.warnings(explained())
    advised = int(re.search(r"about (\d+)", doubt.text).group(1))
    stepped_up = lambda k: k * 0.7 / (1 + (k - 1) * 0.7)  # noqa: E731
    assert stepped_up(advised / 500) >= 0.8 > stepped_up((advised - 100) / 500)


def test_a_reliable_whole_run_warns_of_nothing():
    method = disc_method()
    assert caveats.warnings(explained(method.assign(reliability=method.reliability * 0 + 0.9))) == []


def test_words_that_the_model_cannot_read_are_named():
    run_record = {
        "unknown_words": ["cat", "<b>sofa</b>"],
        "vocabulary": ["red", "circle"],
        "cut_off": "in the <i>sky</i>",
    }
    page = Page(run.render_run(explained(**run_record))).said()
    assert "The model cannot read “cat” and “<b>sofa</b>”." in page and "It knows these words: red, circle." in page
    assert "The end of the prompt was cut off." in page and "It did not read “in the <i>sky</i>”." in page
    assert page.count("sofa") == page.count("sky") == 1, "told once, not again among the facts"
    alone = Page(run.render_run(explained(unknown_words=["cat"]))).said()
    assert "The model cannot read “cat”." in alone and "knows these words" not in alone


def test_a_prompt_that_was_read_whole_is_not_mentioned():
    for record in ({}, {"unknown_words": [], "vocabulary": ["red"], "cut_off": ""}, {"cut_off": None}):
        page = Page(run.render_run(explained(**record))).said()
        assert "cannot read" not in page and "cut off" not in page


def test_an_interrupted_run_says_so():
    titles = [warning.title for warning in caveats.warnings(explained(interrupted=True))]
    assert titles[0] == "This run was stopped before it was finished."


def test_a_run_without_a_method_still_has_a_page():
    page = Page(run.render_run(Explanation.of(disc_trace(), {}, {}))).said()
    assert "Nothing was explained." in page and "What matters at this step" not in page


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_the_chart_leaves_out_what_is_not_finite(value: float):
    trace = disc_trace()
    trace["log_snr"] = ("step", [*trace["log_snr"].values[:-1], value])
    chart = run._chart(trace, [])
    assert len(chart["snr"]["points"]) == NUMBER_OF_STEPS - 1 and "nan" not in chart["snr"]["path"]
    assert "NaN" not in run.payload(Explanation.of(trace, {}, RUN))


def test_the_chart_is_the_series():
    trace = disc_trace()
    low, high = span(trace["log_snr"].values)
    x, y = np.array(run._chart(trace, [])["snr"]["points"]).T
    np.testing.assert_allclose(x, 100 * (np.arange(NUMBER_OF_STEPS) + 0.5) / NUMBER_OF_STEPS)
    np.testing.assert_allclose(high - y / 100 * (high - low), trace["log_snr"])


def test_large_pictures_shrink_and_small_ones_are_exact():
    large = np.random.default_rng(0).integers(0, 255, (600, 1024, 3), dtype=np.uint8)
    assert picture_of(picture_uri(large)).shape == (300, 512, 3)
    np.testing.assert_array_equal(picture_of(picture_uri(large[:64, :128])), large[:64, :128])


def test_a_usual_report_is_small():
    methods = {name: disc_method(steps=(2, 8, 16, 28), height=16, width=16) for name in ("a", "b")}
    explanation = Explanation.of(disc_trace(64, 64, steps=30), methods, RUN)
    assert len(run.render_run(explanation)) < 3e6


def test_the_command_is_a_line_for_a_shell():
    assert "denoscope explain 'a red disc'" in Page(run.render_run(explained())).said()


def test_the_numbers_of_a_step_are_named():
    numbers = data_of(explained(disc_method().assign(masks_used=("step", [500, 400, 300]))))["methods"]["bump"][
        "numbers"
    ]
    assert numbers["3"] == [["reliability", "0.825"], ["masks used", "400"]]


# A photograph, noised forward, that a classifier looks at


def carried_map(explanation: Explanation, step: int, what: str = "values") -> np.ndarray:
    method = data_of(explanation)["methods"]["gradients"]
    return unpacked(method["layers"][0][str(step)][what], method["shape"])


def test_the_page_of_a_photograph_speaks_of_frames():
    said = Page(run.render_run(recognised())).said()
    for words in ("cat.jpg", "classifier imagenet", "60 frames", "explained label tiger", "noising: blend"):
        assert words in said
    assert "Explained frame" in said and "What matters at this frame" in said
    assert "Clean prediction" not in said and "this step" not in said


def test_every_frame_is_under_the_control():
    explanation = recognised()
    frames, page = data_of(explanation)["steps"], Page(run.render_run(explanation))
    for i, frame in enumerate(frames):
        np.testing.assert_array_equal(picture_of(frame["sample"]), explanation.pictures["sample"][i])
    (slider,) = [attributes for _, attributes in page.tags if attributes.get("id") == "step"]
    thumbs = [attributes for _, attributes in page.tags if "data-span" in attributes]
    spans = [int(thumb["data-span"] or 0) for thumb in thumbs]
    assert slider["max"] == "59" and len(frames) == 60
    assert [int(thumb["data-at"] or 0) for thumb in thumbs] == [sum(spans[:i]) for i in range(len(spans))]
    assert sum(spans) == 60 and len(spans) <= run.THUMBNAILS


def test_the_likelihoods_of_a_frame_are_its_draws():
    likelihood = rising()
    for step, frame in enumerate(data_of(recognised())["steps"]):
        for i in range(len(LABELS)):
            drawn = np.sort(likelihood.values[step, :, i])
            found = [frame["likelihood"][i][name] for name in ("low", "median", "high")]
            np.testing.assert_allclose(found, drawn[[0, 2, 4]], rtol=1e-3)


def test_frames_that_the_classifier_has_not_seen_have_no_likelihood():
    frames = data_of(recognised(likelihood=rising().isel(step=slice(40))))["steps"]
    assert [frame["likelihood"] is None for frame in frames] == [False] * 40 + [True] * 20


def test_a_likelihood_never_looks_like_a_certainty_that_it_is_not():
    assert [curves.likely(value) for value in (0.0, 0.0004, 0.5, 0.9996, 1.0)] == [
        "0", "< 0.001", "0.500", "> 0.999", "1"
    ]  # fmt: skip


def test_the_cells_of_a_large_map_are_means_of_blocks():
    method = attribution(side=224)
    method["saliency"][0, 0, 0, 0] = np.nan
    explanation = recognised(method)
    carried, raw = carried_map(explanation, 20), method["saliency"].values[0, 0]
    slow = [[np.nanmean(raw[4 * i : 4 * i + 4, 4 * j : 4 * j + 4]) for j in range(56)] for i in range(56)]
    np.testing.assert_allclose(carried, slow, atol=np.abs(slow).max() / 30000)
    assert "means of 4 × 4 cells, 56 × 56 in all" in Page(run.render_run(explanation)).said()


def test_a_small_map_has_every_cell():
    method, explanation = attribution(), recognised()
    raw = method["saliency"].values[1, 0]
    np.testing.assert_allclose(carried_map(explanation, 30), raw, atol=np.abs(raw).max() / 30000)
    assert "means of" not in Page(run.render_run(explanation)).said()


def test_blocks_that_do_not_divide_the_map_are_smaller_at_its_edge():
    whole = xr.Dataset({"saliency": (("y", "x"), np.arange(12.0).reshape(3, 4))})
    np.testing.assert_allclose(in_blocks(whole, 2)["saliency"], [[2.5, 4.5], [8.5, 10.5]])


def test_several_draws_are_a_mean_and_its_standard_error():
    method = attribution(draws=4)
    method["saliency"][0, 1, 5, 5] = np.nan
    method["convergence_delta"] = (("step", "draw"), np.arange(12.0).reshape(3, 4))
    explanation, drawn = recognised(method), method["saliency"].values[0]
    number = np.isfinite(drawn).sum(axis=0)
    mean, error = np.nanmean(drawn, axis=0), np.nanstd(drawn, axis=0, ddof=1) / np.sqrt(number)
    np.testing.assert_allclose(carried_map(explanation, 20), mean, atol=np.abs(mean).max() / 30000)
    np.testing.assert_allclose(carried_map(explanation, 20, "errors"), error, atol=error.max() / 30000)
    assert ["convergence delta", "5.5"] in data_of(explanation)["methods"]["gradients"]["numbers"]["30"]
    assert "the mean over 4 draws" in Page(run.render_run(explanation)).said()


def test_one_draw_has_no_standard_error_and_says_so():
    explanation = recognised()
    assert data_of(explanation)["methods"]["gradients"]["layers"][0]["20"]["errors"] is None
    assert "One draw of the noise was explained" in Page(run.render_run(explanation)).said()


def test_the_ends_of_a_signed_scale_leave_out_the_outliers():
    method, gradients = attribution(), data_of(recognised())["methods"]["gradients"]
    for values, limits in [
        (method["saliency"].values, gradients["limits"]),
        (method["saliency"].values[0], gradients["layers"][0]["20"]["limits"]),
    ]:
        sizes = sorted(np.abs(values).ravel().tolist())
        reach = next(size for size, so_far in zip(sizes, accumulate(sizes), strict=True) if so_far >= 0.95 * sum(sizes))
        np.testing.assert_allclose(limits, [-reach, reach], rtol=1e-3)
        assert reach < 0.5 * sizes[-1]
    assert "clipped: 5 % of the summed magnitude" in Page(run.render_run(recognised())).said()


def test_an_unsigned_scale_is_whole():
    method = attribution(signed=False)
    method["saliency"] = abs(method["saliency"])
    explanation = recognised(method)
    assert data_of(explanation)["methods"]["gradients"]["limits"][1] == pytest.approx(
        float(method["saliency"].max()), rel=1e-3
    )
    assert "clipped" not in Page(run.render_run(explanation)).said()


def test_packing_keeps_values_and_holes():
    values = np.array([[0.0, -3.5], [np.nan, 1e-3]])
    np.testing.assert_allclose(unpacked(packed(values), [2, 2]), values, atol=3.5 / 65534)
    np.testing.assert_array_equal(unpacked(packed(values * 0), [2, 2]), values * 0)
    assert np.isnan(unpacked(packed(np.full((2, 2), np.inf)), [2, 2])).all()


def test_empty_and_missing_attributions_survive():
    method = attribution(draws=2)
    method["saliency"][0] = 0
    method["saliency"][1] = np.nan
    explanation = recognised(method)
    assert not carried_map(explanation, 20).any() and set(data_of(explanation)["methods"]["gradients"]["numbers"]) == {
        "20", "59"
    }  # fmt: skip
    said = Page(run.render_run(explanation)).said()
    assert "Gradients is flat at frame 20." in said and "Gradients has no map for frame 30." in said


def test_moments_are_in_words_and_never_is_one():
    explanation = recognised()
    assert explanation.timing is not None
    lines = curves.keys(LABELS, "tiger")
    first, second = (row["cells"] for row in curves._moments(explanation.timing, lines)["rows"])
    half = explanation.timing["crossing"].sel(label="tiger", level=0.5).values
    assert first[1] == "{:.3g} [{:.3g}, {:.3g}]".format(*half[[1, 0, 2]])
    assert second[1:3] == ["never", "never"]
    assert "never never" in Page(run.render_run(explanation)).said()


@pytest.mark.parametrize(
    "values, said",
    [
        ([53.21, 55.94, np.nan], "55.9 [53.2, never]"),
        ([53.21, np.nan, np.nan], "never [53.2, never]"),
        ([55.94] * 3, "55.9"),
        ([np.nan] * 3, "never"),
    ],
)
def test_a_moment_that_some_draws_lack_says_so(values: list[float], said: str):
    assert curves.spread(values) == said


def test_the_marks_are_at_the_crossings():
    explanation = recognised()
    assert explanation.timing is not None
    marks = curves.crossings(explanation.timing, "tiger", 60)
    for level, mark in zip((0.05, 0.5, 0.9), marks, strict=True):
        expected = explanation.timing["crossing"].sel(label="tiger", level=level).values
        found = np.array([mark[name] for name in ("low", "median", "high")])
        np.testing.assert_allclose(found / 100 * 60 - 0.5, expected)
        assert mark["y"] == pytest.approx(100 * (1 - level))
    area = curves.window(explanation.timing, "tiger", 60)
    assert area["left"] == marks[0]["median"] and area["left"] + area["width"] == pytest.approx(marks[-1]["median"])


def test_a_label_without_all_levels_has_no_critical_window():
    explanation = recognised(likelihood=rising(top=0.7))
    assert len(curves.crossings(explanation.timing, "tiger", 60)) == 2
    assert curves.window(explanation.timing, "tiger", 60) is None
    assert (
        "There is no critical window: “tiger” does not reach every level." in Page(run.render_run(explanation)).said()
    )


def test_the_band_and_the_line_are_the_draws():
    likelihood, steps = rising(frames=4, middle=1.0, draws=3), np.arange(4)
    drawn = curves.curve(curves.interval(likelihood).sel(label="tiger"), steps)
    numbers = lambda path: np.array(re.findall(r"[\d.]+", path), dtype=float).reshape(-1, 2)  # noqa: E731
    values = 100 * (1 - np.sort(likelihood.values[:, :, 0], axis=1))
    np.testing.assert_allclose(numbers(drawn["path"]), np.stack([[12.5, 37.5, 62.5, 87.5], values[:, 1]], 1), atol=0.01)
    np.testing.assert_allclose(numbers(drawn["band"])[:, 1], [*values[:, 2], *values[::-1, 0]], atol=0.01)


def test_lines_of_labels_are_told_apart_without_colours():
    lines = curves.keys([f"label {i}" for i in range(6)], "label 3")
    assert [line.explained for line in lines] == [i == 3 for i in range(6)]
    assert len({(line.hue, line.dash) for line in lines}) == len({line.dash for line in lines}) == 6
    many = curves.keys([f"label {i}" for i in range(20)], "label 3")
    assert len({(line.hue, line.dash) for line in many}) == 20


def test_the_measures_of_the_maps_are_charts_with_their_meaning():
    method = with_measures(attribution(), frequency=[[0.2], [0.4], [0.3]], agreement_edges=[[0.5], [np.nan], [0.1]])
    explanation = recognised(method)
    first, second = run._measures(explanation.pictures, page_results(explanation))
    x, y = np.array(first["lines"][0]["points"]).T
    np.testing.assert_allclose(x, 100 * (np.array([20, 30, 59]) + 0.5) / 60)
    np.testing.assert_allclose((y[1] - y[0]) / (y[2] - y[0]), 2)
    assert len(second["lines"][0]["points"]) == 2
    said = Page(run.render_run(explanation)).said()
    assert "may be only an edge detector" in said and "Agreement with the last map" not in said
    assert ["Mean frequency", "0.4"] in data_of(explanation)["methods"]["gradients"]["numbers"]["30"]


def with_delta(share: float) -> xr.Dataset:
    """Maps that miss or add a share of what they add up to."""
    method = attribution()
    return method.assign(convergence_delta=share * method["saliency"].sum(["y", "x"]))


@pytest.mark.parametrize(
    "explanation, title",
    [
        (recognised(label=LABELS[1]), f"“{LABELS[1]}” is not the most likely label in the end."),
        (recognised(likelihood=rising(top=0.4)), "“tiger” never reaches 0.5."),
        (recognised(with_delta(0.2)), "Gradients does not add up at frames 20, 30 and 59."),
        (
            recognised(with_measures(attribution(), agreement_edges=[[0.61], [0.59], [0.7]])),
            "Gradients looks like the picture’s edges at frames 20 and 59.",
        ),
    ],
)
def test_what_a_reader_of_a_recognition_must_know_is_said(explanation: Explanation, title: str):
    assert title in [warning.title for warning in caveats.warnings(explanation)]
    assert title in Page(run.render_run(explanation)).said()


def test_a_good_recognition_warns_of_nothing():
    method = with_measures(with_delta(0.05), agreement_edges=[[0.5], [0.59], [0.1]])
    assert caveats.warnings(recognised(method)) == []


def test_an_unfinished_likelihood_is_not_held_against_its_label():
    unfinished = rising().isel(step=slice(25))
    assert "not the most likely" not in " ".join(w.title for w in caveats.warnings(recognised(likelihood=unfinished)))


def test_names_of_labels_and_files_are_text():
    name = 'a"><script>alert(3)</script>.jpg'
    page = Page(run.render_run(recognised(photograph=name, label=LABELS[1])))
    assert [tag for tag, _ in page.tags].count("script") == 2 and "cat" not in {tag for tag, _ in page.tags}
    assert name in page.said() and LABELS[1] in page.said()


def test_a_record_without_words_still_has_a_page():
    likelihood = rising()
    explanation = Explanation.of(photograph(), {"gradients": attribution()}, {}, likelihood)
    said = Page(run.render_run(explanation)).said()
    assert "A recorded run" in said and "tiger, explained" in said and "When each label is recognised" not in said


def test_a_single_frame_has_a_page():
    explanation = Explanation.of(photograph(1), {"gradients": attribution((0,))}, {}, rising(1))
    assert len(data_of(explanation)["steps"]) == 1
    paths = [a["d"] for tag, a in Page(run.render_run(explanation)).tags if tag == "path" and a.get("class") == "curve"]
    assert all(re.fullmatch(r"M0\.00 ([\d.]+)L100\.00 \1", path or "") for path in paths) and paths


def test_a_generated_picture_that_was_recognised_keeps_its_page():
    likelihood = rising(NUMBER_OF_STEPS, middle=2.0)
    method = disc_method(signed=True).drop_vars(["standard_error", "reliability"])
    moments = timing.over_draws(timing.moments(likelihood))
    page = Page(run.render_run(Explanation.of(disc_trace(), {"bump": method}, RUN, likelihood, moments))).said()
    for words in ("Clean prediction", "What matters at this step", "Likelihood at this step", "When each label"):
        assert words in page


def test_a_page_without_a_classifier_says_nothing_of_likelihoods():
    assert "ikelihood" not in Page(run.render_run(explained())).said()


def test_a_notebook_shows_the_maps_of_a_noised_photograph_over_the_photograph():
    explanation = recognised(attribution(draws=2))
    ((_, first), *_) = next(run._rows(explanation.pictures, page_results(explanation)[0]))["maps"]
    shown = page_results(explanation)[0]
    expected = overlays.overlay(
        explanation.pictures["image"].values, shown.data["saliency"].sel(step=20).values, shown.limits
    )
    np.testing.assert_array_equal(picture_of(first), expected)


@pytest.mark.parametrize("steps, most", [(range(40, 50), 4e6), (range(100), 8e6)])
def test_the_page_of_a_photograph_is_small(steps: range, most: float):
    maps = attribution(tuple(steps), side=224).astype(np.float32)
    likelihood = rising(100)
    explanation = Explanation.of(photograph(100, 224), {name: maps for name in "abc"}, {}, likelihood)
    assert len(run.render_run(explanation).encode()) < most


def test_more_maps_and_frames_do_not_make_a_larger_page():
    maps = attribution(tuple(range(400)), side=70)
    explanation = Explanation.of(photograph(400, 70), {"a": maps}, {}, rising(400))
    assert data_of(explanation)["methods"]["a"]["shape"] == [35, 35]
    large = run._frame_uri(np.zeros((300, 300, 3), np.uint8), 400)
    assert picture_of(large).shape == (128, 128, 3)
