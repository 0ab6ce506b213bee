"""Clips: every frame has its own map, figures show the frame that they name, and files play all of it."""

import io
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from clips import FRAMES, MAP_FRAMES, SQUARE, STEPS, TOP, clip_method, clip_trace, clip_words, left
from matplotlib import pyplot
from matplotlib.axes import Axes
from pages import rising
from PIL import Image, ImageSequence

import denoscope
from denoscope.errors import InputError
from denoscope.figures import clips, methods, overlays, scales, tiles, timeline
from denoscope.figures.clip_files import clip_gif, clip_mp4
from denoscope.figures.variants import plot_variants
from denoscope.results.explanations import Explanation
from denoscope.timing import likelihood


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    pyplot.close("all")


def image_of(ax: Axes) -> np.ndarray:
    return np.asarray(ax.get_images()[0].get_array())


def hot(overlaid: np.ndarray) -> tuple[int, int, int, int]:
    """The box (top, bottom, left, right) of the pixels with a warm colour: where a map over grey is high."""
    colour = overlaid.astype(int)
    rows, columns = np.nonzero(colour[..., 0] - colour[..., 2] > 30)
    return int(rows.min()), int(rows.max()) + 1, int(columns.min()), int(columns.max()) + 1


# Frames of maps and of clips


@pytest.mark.parametrize("joined", [2, 4, 8])
@pytest.mark.parametrize("sample_frames", [2, 3, 5, 21])
def test_a_causal_autoencoder_makes_its_first_frame_alone(joined: int, sample_frames: int):
    frames = 1 + joined * (sample_frames - 1)
    expected = [0, *np.repeat(np.arange(1, sample_frames), joined)]
    assert [clips.map_frame(i, sample_frames, frames) for i in range(frames)] == expected


@pytest.mark.parametrize("joined", [1, 2, 4, 8])
@pytest.mark.parametrize("sample_frames", [1, 2, 3, 4, 16])
def test_another_autoencoder_joins_equal_numbers_of_frames(joined: int, sample_frames: int):
    frames = joined * sample_frames
    expected = np.repeat(np.arange(sample_frames), joined).tolist()
    assert [clips.map_frame(i, sample_frames, frames) for i in range(frames)] == expected


def test_the_maps_of_a_clip_that_was_cut_are_spread_over_it():
    places = [clips.map_frame(i, 4, 14) for i in range(14)]
    assert places == sorted(places) and set(places) == set(range(4))


def test_the_frame_with_the_largest_map_mass_stands_for_the_clip():
    method = clip_method()
    chosen = clips.chosen_frame(FRAMES, [method])
    masses = [float(abs(method["saliency"].isel(frame=clips.map_frame(i, MAP_FRAMES, FRAMES))).sum()) for i in range(9)]
    assert masses[chosen.index] == max(masses) and chosen.index == 7 and "largest map mass" in str(chosen)
    flat = clip_method()
    flat["saliency"][:] = 0
    for results in ([], [flat], [flat * np.nan]):
        assert str(clips.chosen_frame(FRAMES, results)) == "frame 4 of 0–8, the middle one"


def test_a_picture_is_left_as_it_is():
    picture = xr.Dataset({"image": (("row", "column", "channel"), np.zeros((2, 2, 3), np.uint8))})
    assert clips.still(picture) is picture and clips.still_maps(picture, 0, 1) is picture


# Figures


@pytest.mark.parametrize("frame", range(FRAMES))
def test_the_map_of_a_frame_lies_over_that_frame(frame: int):
    ax = denoscope.plot(clip_trace(), clip_method(), step=3, frame=frame, beneath="step")
    shown, method = image_of(ax), clip_method()
    clean = clip_trace()["pred_original_sample"].sel(step=3).values[frame]
    saliency = method["saliency"].sel(step=3).values[clips.map_frame(frame, MAP_FRAMES, FRAMES)]
    np.testing.assert_array_equal(shown, overlays.overlay(clean, saliency, scales.colour_limits(method)))
    assert ax.get_title() == f"A square, frame {frame} of 0–8, step 3"


@pytest.mark.parametrize("frame", [0, 3, 7])
def test_the_colours_are_where_the_square_is(frame: int):
    """0, 3 and 7 are in the middle of the frames that a sample frame stands for: there the map is on the square."""
    ax = denoscope.plot(clip_trace(), clip_method(), step=3, frame=frame, scale="each")
    top, bottom, first, last = hot(image_of(ax))
    expected = np.array([TOP, TOP + SQUARE, left(frame), left(frame) + SQUARE])
    assert np.abs(np.array([top, bottom, first, last]) - expected).max() <= 3, "as far as bilinear colours reach"


def test_the_frame_that_was_chosen_is_named():
    figure = denoscope.plot(clip_trace(), clip_method())
    assert figure.get_suptitle() == "A square, frame 7 of 0–8, with the largest map mass"
    corner = denoscope.plot(clip_trace(), clip_words(), step=1, token="corner")
    assert corner.get_title() == "Words, frame 7 of 0–8, with the largest map mass, step 1, “corner”"


def test_several_frames_are_drawn_beside_each_other():
    figure = denoscope.plot(clip_trace(), clip_method(), step=3, frame=[0, 7])
    first, second = figure.axes[:2]
    assert [first.get_title(), second.get_title()] == ["step 3, frame 0", "step 3, frame 7"]
    np.testing.assert_array_equal(
        image_of(second), image_of(denoscope.plot(clip_trace(), clip_method(), step=3, frame=7))
    )


def test_a_clip_may_be_plain():
    clip = clip_trace()["image"].values
    expected = image_of(denoscope.plot(clip_trace(), clip_method(), step=3, frame=2))
    tensor = torch.from_numpy(clip / 255).movedim(-1, 1)
    for plain in (clip, list(clip), [Image.fromarray(frame) for frame in clip], clip / 255, tensor):
        np.testing.assert_array_equal(image_of(denoscope.plot(plain, clip_method(), step=3, frame=2)), expected)


def test_over_one_picture_the_frames_are_those_of_the_map():
    picture = clip_trace()["image"].values[0]
    ax = denoscope.plot(picture, clip_method(), step=3, frame=1)
    assert ax.get_title() == "A square, frame 1 of 0–2, step 3"
    _, _, first, last = hot(image_of(ax))
    assert abs(first - left(3)) <= 3 and abs(last - left(3) - SQUARE) <= 3


@pytest.mark.parametrize("frame", [-1, FRAMES, 1.0, "2", True])
def test_a_frame_that_is_not_there_is_refused(frame: object):
    with pytest.raises(InputError, match="whole number from 0 to 8"):
        denoscope.plot(clip_trace(), clip_method(), frame=frame)


def test_a_frame_of_a_picture_is_refused():
    with pytest.raises(InputError, match="maps are of a picture"):
        denoscope.plot(np.zeros((8, 8, 3), np.uint8), clip_method().isel(frame=0, drop=True), frame=0)


def shown(axes: list[Axes]) -> list[np.ndarray]:
    return [image_of(ax) for ax in axes if ax.get_images()]


def test_a_figure_has_a_strip_of_frames():
    trace, method = clip_trace(), clip_method()
    figure = methods.plot_method(trace, method)
    labels = [ax.get_ylabel() for ax in figure.axes if ax.get_ylabel()]
    strip = [0, 2, 4, 7, 8]
    assert labels == [
        "sample\nframe 7", "clean prediction\nframe 7", *(f"heat map\nframe {i}" for i in strip),
        "standard error\nframe 7",
    ]  # fmt: skip
    pictures, limits = shown(figure.axes), scales.colour_limits(method)
    np.testing.assert_array_equal(pictures[1], trace["sample"].sel(step=3).values[7])
    for row, frame in enumerate(strip, 2):
        clean = trace["pred_original_sample"].sel(step=3).values[frame]
        saliency = method["saliency"].sel(step=3).values[clips.map_frame(frame, 3, 9)]
        np.testing.assert_array_equal(pictures[2 * row + 1], overlays.overlay(clean, saliency, limits))
    assert "frame 7 of 0–8, with the largest map mass" in figure.texts[-1].get_text()
    assert "heat map\nframe 1" in [ax.get_ylabel() for ax in methods.plot_method(trace, method, frame=1).axes]


def test_words_have_one_frame_each():
    trace, method = clip_trace(), clip_words()
    pictures = shown(methods.plot_method(trace, method, frame=3).axes)
    clean = trace["pred_original_sample"].sel(step=1).values[3]
    np.testing.assert_array_equal(pictures[0], clean)
    saliency = method["saliency"].sel(step=1, token="square").values[1]
    np.testing.assert_array_equal(pictures[1], overlays.overlay(clean, saliency, scales.colour_limits(method)))


def test_a_grid_and_a_strip_of_variants_say_which_frame_they_show():
    assert "frame 2 of 0–8" in tiles.plot_grid(clip_trace(), clip_method(), frame=2).texts[0].get_text()
    explanation = Explanation.of(clip_trace(), {}, {})
    variants = {"variants": {"a": {"title": "one", "relevance": []}}}
    figure = plot_variants({"a": explanation}, variants)
    assert "the middle frame of each clip" in figure.get_suptitle()
    np.testing.assert_array_equal(shown(figure.subfigs[0].axes)[-1], clip_trace()["image"].values[4])
    figure = plot_variants({"a": explanation}, variants, frame=8)
    assert "frame 8 of each clip" in figure.get_suptitle()
    np.testing.assert_array_equal(shown(figure.subfigs[0].axes)[-1], clip_trace()["image"].values[8])


def test_zooms_are_of_one_frame():
    curves = rising(STEPS, middle=2.0)
    timing = likelihood.over_draws(likelihood.moments(curves))
    figure = tiles.plot_zooms(clip_trace(), {"square": clip_method(signed=True)}, timing, "tiger", frame=0)
    assert figure.texts[0].get_text() == "“tiger”, moment by moment, frame 0 of 0–8"
    mosaic = shown(figure.axes)[0].astype(int)
    reddish = np.nonzero((mosaic[..., 0] - mosaic[..., 2] > 60).any(axis=0))[0]
    assert reddish.min() == 0, "the square is at the left edge of the first frame"


# Files that play


def frames(gif: bytes | Path) -> list[np.ndarray]:
    with Image.open(io.BytesIO(gif) if isinstance(gif, bytes) else gif) as image:
        return [np.asarray(frame.convert("RGB")).astype(int) for frame in ImageSequence.Iterator(image)]


@pytest.mark.parametrize("asked, frame", [(None, FRAMES // 2), (8, 8)])
def test_the_time_line_shows_the_middle_frame_or_another(asked: int | None, frame: int, tmp_path: Path):
    found = frames(timeline.timeline_gif(tmp_path / "t.gif", clip_trace(), clip_method(), frame=asked))
    assert len(found) == clip_trace().sizes["step"]
    large = overlays.grown(clip_trace()["pred_original_sample"].values[3, frame])
    height, width = large.shape[:2]
    assert np.abs(found[3][46 : 46 + height, 16 : 16 + width] - large).mean() < 6  # a frame has 256 colours


def test_a_clip_plays_every_frame():
    clip = clip_trace()["image"].values
    found = frames(clip_gif(clip_trace()))
    assert len(found) == FRAMES
    for picture, frame in zip(found, clip, strict=True):
        large = overlays.grown(frame)
        assert picture.shape == large.shape and np.abs(picture - large).max() <= 4


def test_the_speed_of_a_clip_is_that_of_its_pictures():
    with Image.open(io.BytesIO(clip_gif(clip_trace().assign_attrs(frames_per_second=20)))) as image:
        assert image.info["duration"] == 50


def test_no_video_is_written_without_an_encoder(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    assert clip_mp4(clip_trace()) is None


def test_a_video_has_every_frame_with_even_sides(monkeypatch: pytest.MonkeyPatch):
    written: list[np.ndarray] = []

    def write_frames(path: str, size: tuple[int, int], **options: object) -> Iterator[None]:
        assert size == (282, 258) and options == {"fps": 8.0, "macro_block_size": 2}
        Path(path).write_bytes(b"video")
        while True:
            written.append((yield))

    encoder = types.ModuleType("imageio_ffmpeg")
    encoder.write_frames = write_frames
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", encoder)
    odd = clip_trace().isel(row=slice(43), column=slice(47))
    assert clip_mp4(odd) == b"video" and len(written) == FRAMES
    assert all(frame.shape == (258, 282, 3) and frame.flags.c_contiguous for frame in written)


def test_an_encoder_that_does_not_run_writes_no_video(monkeypatch: pytest.MonkeyPatch):
    def write_frames(*_: object, **__: object) -> Iterator[None]:
        raise RuntimeError("No ffmpeg exe could be found.")
        yield

    encoder = types.ModuleType("imageio_ffmpeg")
    encoder.write_frames = write_frames
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", encoder)
    assert clip_mp4(clip_trace()) is None
