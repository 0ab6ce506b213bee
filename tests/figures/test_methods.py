"""Figures: colours against matplotlib's own maps, resizing against SciPy's, and what must survive."""

from pathlib import Path

import matplotlib
import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from pictures import NUMBER_OF_STEPS, disc_method, disc_trace
from PIL import Image, ImageSequence
from scipy import ndimage

from denoscope.figures import methods, overlays, results, scales, theme, timeline


@pytest.fixture
def picture() -> np.ndarray:
    return disc_trace()["image"].values


@pytest.mark.parametrize("value", [0.0, 3.5, -2.0, np.nan])
def test_a_flat_map_leaves_the_picture(picture: np.ndarray, value: float):
    np.testing.assert_array_equal(overlays.overlay(picture, np.full((8, 8), value)), picture)


def test_an_opaque_map_has_the_colours_of_the_colour_map(picture: np.ndarray):
    saliency = np.random.default_rng(0).random((32, 32))
    limits = scales.Limits(-0.5, 2.0)
    expected = matplotlib.colormaps["viridis"]((saliency.astype(np.float32) + 0.5) / 2.5)[..., :3] * 255
    drawn = overlays.overlay(picture, saliency, limits, "viridis", alpha=1.0)
    np.testing.assert_allclose(drawn, expected, atol=0.51)


def test_a_transparent_map_leaves_a_grey_picture(picture: np.ndarray):
    drawn = overlays.overlay(picture, np.arange(64.0).reshape(8, 8), alpha=0.0)
    luminance = np.asarray(Image.fromarray(picture).convert("L"), dtype=float)
    np.testing.assert_allclose(drawn, np.repeat((128 + 0.7 * (luminance - 128))[..., None], 3, -1), atol=1)


def test_maps_are_enlarged_bilinearly_around_the_middles_of_cells():
    saliency = np.random.default_rng(1).random((4, 6))
    expected = ndimage.zoom(saliency, 8, order=1, mode="nearest", grid_mode=True)
    np.testing.assert_allclose(overlays.resized(saliency, (32, 48)), expected, atol=1e-6)


def test_a_missing_cell_shows_the_picture_and_spoils_no_other(picture: np.ndarray):
    saliency = np.ones((8, 8))
    saliency[0, 0], saliency[2, 3] = 2.0, np.nan
    drawn = overlays.overlay(picture, saliency)
    np.testing.assert_array_equal(drawn[8:12, 12:16], picture[8:12, 12:16])
    np.testing.assert_allclose(overlays.resized(saliency, (32, 32))[12:, 16:], 1.0)


@pytest.mark.parametrize("sign", [1, -1])
def test_limits_are_shared_over_the_steps_given(sign: int):
    method = sign * disc_method()
    largest = float(np.abs(method["saliency"]).max())
    assert scales.colour_limits(method) == (-largest, largest, True)
    own = float(np.abs(method["saliency"].sel(step=1)).max())
    assert scales.colour_limits(method.sel(step=1)) == (-own, own, True)


def test_a_method_may_say_that_its_sign_means_nothing():
    method = disc_method(signed=False)
    low, high = float(method["saliency"].min()), float(method["saliency"].max())
    assert scales.colour_limits(method) == (low, high, False)
    assert scales.colour_limits(method).cmap().name == theme.SEQUENTIAL


def test_the_middle_of_a_signed_scale_is_zero(picture: np.ndarray):
    limits = scales.Limits(-2.0, 2.0, signed=True)
    drawn = overlays.overlay(picture, np.zeros((8, 8)), limits, alpha=1.0)
    middle = np.array(matplotlib.colormaps[theme.DIVERGING](0.5)[:3]) * 255
    np.testing.assert_allclose(drawn, np.broadcast_to(middle, drawn.shape), atol=0.51)


def test_standard_errors_reach_to_half_of_the_range_of_the_map():
    method = disc_method()
    assert scales.error_limits(method)[:2] == (0.0, float(method["saliency"].max()) / 2)
    loud = method.assign(standard_error=method["standard_error"] * 100)
    assert scales.error_limits(loud)[:2] == (0.0, float(loud["standard_error"].max()))


@pytest.mark.parametrize("outlier_perc", [0, 1, 5, 50])
def test_the_scale_ends_at_the_smallest_magnitude_that_its_definition_allows(outlier_perc: float):
    values = np.random.default_rng(3).standard_t(2, (12, 15))
    magnitudes = sorted(abs(float(value)) for value in values.ravel())
    allowed = [m for m in magnitudes if sum(o for o in magnitudes if o > m) <= outlier_perc / 100 * sum(magnitudes)]
    assert scales.outlier_scale(values, outlier_perc) == pytest.approx(min(allowed))


def test_the_scale_passes_missing_values_over():
    values = np.arange(1.0, 101.0)
    assert scales.outlier_scale(np.concatenate([[np.nan, np.inf], -values])) == scales.outlier_scale(values) == 98
    assert scales.outlier_scale(np.full((3, 3), np.nan)) == scales.outlier_scale(np.zeros((3, 3))) == 0


def test_unfinished_steps_are_not_explained():
    method = disc_method()
    assert results.explained_steps(method) == [1, 3, 4]
    assert results.explained_steps(method.where(method.step != 3)) == [1, 4]


def shown(axes: list[Axes]) -> list[np.ndarray]:
    return [np.asarray(ax.get_images()[0].get_array()) for ax in axes if ax.get_images()]


def test_a_figure_shows_each_kind_in_a_row_and_each_explained_step_in_a_column():
    trace, method = disc_trace(), disc_method()
    figure = methods.plot_method(trace, method)
    pictures = shown(figure.axes)
    limits = scales.colour_limits(method)
    assert len(pictures) == 4 * 3
    for column, step in enumerate([1, 3, 4]):
        clean = trace["pred_original_sample"].sel(step=step).values
        np.testing.assert_array_equal(pictures[column], trace["sample"].sel(step=step))
        np.testing.assert_array_equal(pictures[3 + column], clean)
        np.testing.assert_array_equal(
            pictures[6 + column], overlays.overlay(clean, method["saliency"].sel(step=step).values, limits)
        )
    said = " ".join(text.get_text() for text in figure.texts)
    assert "step 3\nt = 399\nlog-SNR 0" in said and "shared by all steps" in said


def test_columns_are_straight():
    figure = methods.plot_method(disc_trace(), disc_method())
    corners = {tuple(np.round(ax.get_position().bounds[::2], 9)) for ax in figure.axes if ax.get_images()}
    assert len(corners) == 3


def test_own_scales_differ_from_the_shared_one():
    trace, method = disc_trace(), disc_method()
    figure = methods.plot_method(trace, method, shared_scale=False)
    own = overlays.overlay(trace["pred_original_sample"].sel(step=1).values, method["saliency"].sel(step=1).values)
    np.testing.assert_array_equal(shown(figure.axes)[6], own)
    assert "own colour scale" in figure.texts[-1].get_text()


@pytest.mark.parametrize("value, said", [(0.0, "flat"), (np.nan, "no step was finished")])
def test_a_figure_survives_a_map_that_shows_nothing(value: float, said: str, tmp_path: Path):
    method = disc_method()
    method["saliency"] = xr.full_like(method["saliency"], value)
    figure = methods.plot_method(disc_trace(), method)
    figure.savefig(tmp_path / "figure.png")
    assert said in figure.texts[-1].get_text()


def words_method() -> xr.Dataset:
    """A method with a further dimension: a bump, and another of twice its height at every step."""
    method = disc_method()[["saliency"]].expand_dims(token=["red", "disc"], axis=1)
    return (method * xr.DataArray([1.0, 2.0], dims="token")).assign_attrs(title="Words")


def test_each_word_has_its_column_and_each_explained_step_its_row():
    trace, method = disc_trace(), words_method()
    figure = methods.plot_method(trace, method)
    assert [ax.get_ylabel().split("\n")[0] for ax in figure.axes if ax.get_ylabel()] == ["step 1", "step 3", "step 4"]
    assert [text.get_text() for text in figure.texts][:3] == ["clean prediction", "red", "disc"]
    pictures, limits = shown(figure.axes), scales.colour_limits(method)
    clean, saliency = trace["pred_original_sample"].sel(step=3).values, method["saliency"].sel(step=3, token="disc")
    assert len(pictures) == 3 * 3
    np.testing.assert_array_equal(pictures[3], clean)
    np.testing.assert_array_equal(pictures[5], overlays.overlay(clean, saliency.values, limits))
    np.testing.assert_array_equal(results.layers(method)[1][1]["saliency"], method["saliency"].sel(token="disc"))


def test_the_time_line_has_a_small_map_of_each_word(tmp_path: Path):
    """Below the large pictures, 128 pixels each, beside one another."""
    trace, method = disc_trace(), words_method()
    found = frames(timeline.timeline_gif(tmp_path / "t.gif", trace, disc_method(), method))
    expected = overlays.overlay(
        overlays.grown(trace["pred_original_sample"].sel(step=3).values, 128),
        method["saliency"].sel(step=3, token="disc").values,
        scales.colour_limits(method),
    )
    top, left = 46 + 256 + 46, 16 + 128 + 16
    assert len(found) == NUMBER_OF_STEPS
    shown = found[3][top : top + 128, left : left + 128].astype(int)
    assert np.abs(shown - expected).mean() < 6  # a frame has 256 colours


def test_the_time_line_colours_every_map_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """However many steps show it, as the nearest map of most of them."""
    coloured, chosen = [], []
    one_map, quantize = timeline.coloured, Image.Image.quantize
    monkeypatch.setattr(timeline, "coloured", lambda *rest: coloured.append(rest) or one_map(*rest))
    counted = lambda image, *rest, **named: chosen.append("palette" in named) or quantize(image, *rest, **named)  # noqa: E731
    monkeypatch.setattr(Image.Image, "quantize", counted)
    words = words_method()
    timeline.timeline_gif(tmp_path / "t.gif", disc_trace(), disc_method(steps=(1, 4)), words)
    assert len(coloured) == 2 + words.sizes["token"] * words.sizes["step"]
    assert chosen.count(False) == 1 and chosen.count(True) == NUMBER_OF_STEPS  # one palette is searched for


def test_the_paper_of_a_time_line_is_white(tmp_path: Path):
    """Although all colours of the frames are close to white."""
    trace = disc_trace()
    trace["pred_original_sample"][:] = np.random.default_rng(0).integers(230, 255, trace["pred_original_sample"].shape)
    assert all((frame[2, 2] == 255).all() for frame in frames(timeline.timeline_gif(tmp_path / "t.gif", trace)))


def frames(path: Path) -> list[np.ndarray]:
    with Image.open(path) as gif:
        return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(gif)]


def test_the_time_line_has_a_frame_per_step_with_its_clean_prediction(tmp_path: Path):
    trace = disc_trace()
    trace["pred_original_sample"][:] = (40 * np.arange(NUMBER_OF_STEPS))[:, None, None, None]
    shades = [frame[46 + 128, 16 + 128] for frame in frames(timeline.timeline_gif(tmp_path / "t.gif", trace))]
    np.testing.assert_allclose(np.array(shades), np.repeat(40 * np.arange(6)[:, None], 3, axis=1), atol=3)


def test_the_time_line_shows_the_nearest_map_and_names_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    notes = []
    original = timeline._frame

    def noted(trace: xr.Dataset, step: int, marked: list[int], rows: list) -> Image.Image:
        notes.append((step, rows[0][1].note))
        return original(trace, step, marked, rows)

    monkeypatch.setattr(timeline, "_frame", noted)
    path = timeline.timeline_gif(tmp_path / "t.gif", disc_trace(64, 48), disc_method(steps=(1, 4)))
    assert min(frames(path)[0].shape[:2]) >= 256
    assert notes[0] == (0, "map of step 1, the nearest explained") and notes[4] == (4, "map of this step")


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_the_time_line_survives_a_map_that_shows_nothing(value: float, tmp_path: Path):
    method = disc_method()
    method["saliency"] = xr.full_like(method["saliency"], value)
    assert len(frames(timeline.timeline_gif(tmp_path / "t.gif", disc_trace(), method))) == NUMBER_OF_STEPS


def test_a_time_line_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def fails(*_: object, **__: object) -> None:
        raise OSError("no")

    monkeypatch.setattr(Image.Image, "save", fails)
    with pytest.raises(OSError, match="no"):
        timeline.timeline_gif(tmp_path / "t.gif", disc_trace())
    assert list(tmp_path.iterdir()) == []


def test_grey_pictures_become_three_channels():
    grey = np.arange(16, dtype=np.uint8).reshape(4, 4, 1)
    assert (overlays.rgb(grey) == grey).all() and overlays.rgb(grey).shape == (4, 4, 3)
