"""The page of a clip: a frame control, and at every frame the pictures and maps that belong together."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import xarray as xr
from clips import FRAMES, MAP_FRAMES, STEPS, clip_method, clip_trace, clip_words
from pages import RUN, Page, picture_of, unpacked
from pictures import disc_method, disc_trace

from denoscope.figures.clips import map_frame
from denoscope.report import caveats, maps, run
from denoscope.report.variants import render_variants
from denoscope.results.explanations import Explanation


def explained(trace: xr.Dataset | None = None, **methods: xr.Dataset) -> Explanation:
    return Explanation.of(clip_trace() if trace is None else trace, methods or {"square": clip_method()}, RUN)


def data_of(explanation: Explanation) -> dict:
    return json.loads(run.payload(explanation))


def frame_map(data: dict, method: str, layer: int, step: int, place: int, what: str = "values") -> np.ndarray:
    """The map that the page shows with the frame at a place of its frame control."""
    carried = data["methods"][method]["layers"][layer][str(step)]["frames"][data["clip"]["maps"][method][place]]
    return unpacked(carried[what], data["methods"][method]["shape"])


def test_the_frame_control_is_there_for_clips_only():
    page = Page(run.render_run(explained()))
    (slider,) = [attributes for _, attributes in page.tags if attributes.get("id") == "frame"]
    assert (slider["aria-label"], slider["type"], slider["min"], slider["max"]) == ("frame", "range", "0", "8")
    assert "9 frames" in page.said() and "The clip has 9 frames." in page.said()
    assert "Maps have 3 frames" in page.said()
    picture = run.render_run(Explanation.of(disc_trace(), {"bump": disc_method()}, RUN))
    assert "clip" not in json.loads(re.search(r'id="payload">(.*?)</script>', picture, re.DOTALL)[1])
    assert 'id="frame"' not in picture and "clip." not in picture and "play-frames" not in picture


def test_every_frame_of_every_step_has_its_pictures():
    trace, data = clip_trace(), data_of(explained())
    assert data["clip"]["frames"] == list(range(FRAMES)) and len(data["steps"]) == STEPS
    for i, step in enumerate(data["steps"]):
        for frame in range(FRAMES):
            np.testing.assert_array_equal(picture_of(step["samples"][frame]), trace["sample"][i, frame])
            np.testing.assert_array_equal(picture_of(step["cleans"][frame]), trace["pred_original_sample"][i, frame])


@pytest.mark.parametrize("frame", range(FRAMES))
def test_every_frame_has_the_map_that_belongs_to_it(frame: int):
    method, data = clip_method(), data_of(explained(square=clip_method(), words=clip_words()))
    of_map = map_frame(frame, MAP_FRAMES, FRAMES)
    for step in (1, 3):
        here = method.sel(step=step).isel(frame=of_map)
        np.testing.assert_allclose(frame_map(data, "square", 0, step, frame), here["saliency"], atol=1e-3)
        np.testing.assert_allclose(
            frame_map(data, "square", 0, step, frame, "errors"), here["standard_error"], atol=1e-3
        )
        corner = clip_words()["saliency"].sel(step=step, token="corner").isel(frame=of_map)
        np.testing.assert_allclose(frame_map(data, "words", 1, step, frame), corner, atol=1e-3)


def test_scales_are_those_of_all_frames():
    square = data_of(explained())["methods"]["square"]
    assert square["limits"] == [0, 12] and square["layers"][0]["1"]["range"] == [0, 6]


def test_maps_are_carried_once():
    square = data_of(explained())["methods"]["square"]
    assert [len(maps_of_step["frames"]) for maps_of_step in square["layers"][0].values()] == [MAP_FRAMES] * 2


def test_the_page_opens_on_the_frame_with_the_largest_map():
    assert data_of(explained())["clip"]["start"] == 7
    assert data_of(Explanation.of(clip_trace(), {}, RUN))["clip"]["start"] == FRAMES // 2


def test_a_long_clip_is_shown_in_part_and_says_so():
    frames, sample_frames = 81, 21
    method = clip_method(map_frames=sample_frames, frames=frames)
    method["saliency"][:] = np.arange(sample_frames)[:, None, None]
    explanation = explained(clip_trace(9).isel(frame=np.arange(frames) % 9), square=method)
    data = data_of(explanation)
    chosen = data["clip"]["frames"]
    assert len(chosen) == maps.SHOWN_FRAMES and chosen[0] == 0 and chosen[-1] == 80
    assert max(np.diff(chosen)) - min(np.diff(chosen)) <= 1
    for place, frame in enumerate(chosen):
        expected = map_frame(frame, sample_frames, frames)
        np.testing.assert_allclose(frame_map(data, "square", 0, 3, place), expected, atol=1e-3)
    assert data["methods"]["square"]["limits"] == [0, 20]
    assert "81 frames; 16 of them, evenly chosen, are shown here" in Page(run.render_run(explanation)).said()


def test_many_maps_of_a_clip_are_carried_in_blocks():
    rng, side = np.random.default_rng(0), 48
    saliency = rng.random((16, 12, 9, side, side), dtype=np.float32)
    words = xr.Dataset(
        {"saliency": (("step", "token", "frame", "y", "x"), saliency)},
        {"step": np.arange(16), "token": [f"word {i}" for i in range(12)]},
    )
    explanation = explained(clip_trace(steps=16), words=words)
    data = data_of(explanation)
    block = data["methods"]["words"]["block"]
    rows, columns = data["methods"]["words"]["shape"]
    assert block > 1 and 16 * 12 * 9 * rows * columns <= maps.CLIP_MAPS * maps.CELLS**2
    expected = saliency[2, 5, 4].reshape(rows, block, columns, block).mean((1, 3))
    np.testing.assert_allclose(frame_map(data, "words", 5, 2, 4), expected, atol=1e-3)
    assert f"means of {block} × {block} cells" in Page(run.render_run(explanation)).said()


def test_a_result_without_frames_has_one_map_for_all():
    data = data_of(explained(square=clip_method().isel(frame=1, drop=True)))
    assert (
        data["clip"]["maps"]["square"] == [0] * FRAMES and "frames" not in data["methods"]["square"]["layers"][0]["1"]
    )


def test_missing_frames_survive():
    method = clip_method()
    method["saliency"][0, 1] = np.nan
    explanation = explained(square=method)
    assert np.isnan(frame_map(data_of(explanation), "square", 0, 1, 2)).all()
    assert "A square has cells without a value at step 1." in Page(run.render_run(explanation)).said()


def test_attributions_add_up_over_all_frames():
    method = clip_method()
    total = method["saliency"].sum(["frame", "y", "x"])
    fits, misses = (method.assign(convergence_delta=share * total) for share in (0.01, 0.5))
    assert caveats.warnings(explained(square=fits)) == []
    assert "A square does not add up at steps 1 and 3." in [
        each.title for each in caveats.warnings(explained(square=misses))
    ]


def test_a_notebook_shows_one_frame_and_names_it():
    summary = run.notebook_summary(explained(square=clip_method(), words=clip_words()))
    assert "frame 7 of 0–8, with the largest map mass" in summary and summary.count("<img") == 1 + 3 * 2


def test_a_page_of_variants_shows_the_middle_frame_and_says_so():
    facts = {"title": "one", "relevance": [], "coverage": {}, "log_snr": [0.0]}
    page = render_variants({"a": explained()}, {"variants": {"a": facts}})
    data = json.loads(re.search(r'id="payload">(.*?)</script>', page, re.DOTALL)[1])
    (variant,) = data["variants"]
    np.testing.assert_array_equal(picture_of(variant["pictures"][3]), clip_trace()["pred_original_sample"][3, 4])
    assert "the middle frame of each clip is shown" in Page(page).said()


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node to read scripts with")
def test_the_scripts_of_a_clip_can_be_read(tmp_path):
    """Every script is a program; the page's own templates leave nothing of theirs in it."""
    script = re.findall(r"<script>(.*?)</script>", run.render_run(explained()), re.DOTALL)[-1]
    assert "{%" not in script and "{{" not in script.replace("${{", "")
    (tmp_path / "page.js").write_text(script)
    subprocess.run(["node", "--check", tmp_path / "page.js"], check=True)
