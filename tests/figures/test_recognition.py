"""Sheets of a recognition study: colours where a known map has them, marks where known curves cross, nothing on top."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from pages import with_measures

from denoscope.evaluation.captions import CAPTIONS
from denoscope.evaluation.stages import stages
from denoscope.figures import overlays, recognition, results, scales
from denoscope.figures import tiles as sheets
from denoscope.timing import likelihood as timing

SIDE = 224
TIGER = "tiger, Panthera tigris"
PLACES = ("step", "row", "column", "channel")


def along(steps: np.ndarray, count: int) -> dict:
    """The coordinates of frames that are blended from noise: log-SNR is 0 in the middle and −∞ at the start."""
    kept = np.asarray(steps) / count
    with np.errstate(divide="ignore"):
        log_snr = 2 * np.log(kept / (1 - kept))
    return {"step": steps, "timestep": ("step", count - np.asarray(steps, float)), "log_snr": ("step", log_snr)}


def noised(count: int = 100, side: int = SIDE) -> xr.Dataset:
    """A red disc on white that comes out of noise."""
    rows, columns = np.mgrid[-1 : 1 : 1j * side, -1 : 1 : 1j * side]
    picture = np.where((np.hypot(rows, columns) < 0.5)[..., None], (220, 30, 30), (255, 255, 255))
    noise = np.random.default_rng(0).uniform(0, 255, (side, side, 3))
    samples = [(i * picture + (count - i) * noise) / count for i in range(count)]
    variables = {"image": (PLACES[1:], picture.astype(np.uint8)), "sample": (PLACES, np.array(samples, np.uint8))}
    return xr.Dataset(variables, along(np.arange(count), count))


def halves(steps: list[int], count: int = 100, draws: int = 2, side: int = SIDE) -> xr.Dataset:
    """Odd frames speak for the label in a square on the left, even ones against it in one on the right."""
    saliency = np.zeros((len(steps), draws, side, side))
    high = slice(side // 4, 3 * side // 4)
    for i, step in enumerate(steps):
        where, sign = (slice(side // 8, 3 * side // 8), 1) if step % 2 else (slice(5 * side // 8, 7 * side // 8), -1)
        saliency[i, :, high, where] = sign * (1 + step)
    attrs = {"title": "Halves", "reading": "Left for, right against.", "signed": True}
    return xr.Dataset({"saliency": (("step", "draw", "y", "x"), saliency)}, along(np.array(steps), count), attrs)


def logistic(
    middles: dict[str, list[float]], tops: dict[str, list[float]] | None = None, count: int = 100
) -> xr.DataArray:
    """By label the place where each draw's curve is at half of its top; every curve is 3 steps wide."""
    steps = np.arange(count)[:, None]
    tops = {label: [1.0] * len(at) for label, at in middles.items()} | (tops or {})
    curves = [np.array(tops[label]) / (1 + np.exp((np.array(at) - steps) / 3)) for label, at in middles.items()]
    coords = {**along(steps[:, 0], count), "draw": np.arange(curves[0].shape[1]), "label": list(middles)}
    attrs = {"classifier": "formula", "kind": "blend"}
    return xr.DataArray(np.stack(curves, axis=2), coords, ("step", "draw", "label"), "likelihood", attrs)


def timed(likelihood: xr.DataArray) -> xr.Dataset:
    return timing.over_draws(timing.moments(likelihood))


def place(middle: float, level: float, top: float = 1.0) -> float:
    return middle - 3 * np.log(top / level - 1)


def tiles(figure: Figure, rows: int, columns: int) -> np.ndarray:
    """The mosaic of a sheet cut at its white gaps of 4 pixels: (rows, columns, row, column, 3)."""
    mosaic = np.asarray(figure.axes[0].images[0].get_array())
    height, width = (mosaic.shape[0] + 4) // rows, (mosaic.shape[1] + 4) // columns
    assert mosaic.shape[:2] == (rows * height - 4, columns * width - 4)
    padded = np.pad(mosaic, ((0, 4), (0, 4), (0, 0)), constant_values=255)
    cut = padded.reshape(rows, height, columns, width, 3).swapaxes(1, 2)
    assert (cut[:, :, -4:] == 255).all() and (cut[:, :, :, -4:] == 255).all(), "the gaps are white"
    return cut[:, :, :-4, :-4].astype(int)


def redness(tile: np.ndarray) -> np.ndarray:
    """Red less blue of each pixel: 0 on grey."""
    return tile[..., 0] - tile[..., 2]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text)]


def marks(ax: Axes) -> dict[str, list[tuple[float, float, bool]]]:
    """Of single points by their marker: x, y and whether it is open."""
    found: dict[str, list[tuple[float, float, bool]]] = {}
    for line in ax.lines:
        if len(line.get_xdata()) == 1 and line.get_marker() != "None":
            x, y = float(line.get_xdata()[0]), float(line.get_ydata()[0])
            found.setdefault(str(line.get_marker()), []).append((x, y, line.get_markerfacecolor() == "white"))
    return found


def bars(ax: Axes) -> list[Line2D]:
    return [line for line in ax.lines if len(line.get_xdata()) == 2 and line.get_linewidth() == 1.6]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Text]]:
    """Every text that is really drawn."""
    found: list[Text] = []
    original = Text.draw

    def draw(self: Text, renderer, *args, **kwargs):
        if self.get_visible() and self.get_text().strip():
            found.append(self)
        return original(self, renderer, *args, **kwargs)

    monkeypatch.setattr(Text, "draw", draw)
    yield found


def assert_readable(figure: Figure, written: list[Text]) -> None:
    """Every text is inside the figure, and none touches another."""
    written.clear()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in written]
    width, height = canvas.get_width_height()
    for i, (text, box) in enumerate(boxes):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, f"{text!r} is cut off"
        for other, second in boxes[:i]:
            apart = min(box.x1, second.x1) <= max(box.x0, second.x0) or min(box.y1, second.y1) <= max(box.y0, second.y0)
            assert apart, f"{text!r} lies over {other!r}"
    assert len(boxes) > 3


# The blend


def test_full_colour_is_reached_at_the_end_of_the_scale_and_none_is_at_zero():
    picture = np.full((1, 5, 3), 128, np.uint8)
    drawn = sheets.blended(picture, np.array([[-9.0, -2.0, 0.0, 2.0, 9.0]]), 2.0)[0].astype(int)
    np.testing.assert_array_equal(drawn[0], drawn[1])
    np.testing.assert_array_equal(drawn[3], drawn[4])
    np.testing.assert_array_equal(drawn[2], [128] * 3)
    assert redness(drawn)[0] < -100 and redness(drawn)[4] > 100
    half = sheets.blended(picture[:, :1], np.array([[1.0]]), 2.0)[0, 0]
    np.testing.assert_allclose(half, (drawn[2] + drawn[3]) / 2, atol=1)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_a_map_of_nothing_is_the_grey_picture(value: float):
    picture = noised(2, 16)["image"].values
    drawn = sheets.blended(picture, np.full((4, 4), value), scales.outlier_scale(np.full((4, 4), value)))
    np.testing.assert_array_equal(drawn, overlays.overlay(picture, np.eye(4), alpha=0.0))


# The grid


def test_all_hundred_frames_are_ten_by_ten_tiles_coloured_where_their_maps_are():
    figure = sheets.plot_grid(noised(), halves(list(range(100))))
    cut = tiles(figure, 10, 10)
    side = cut.shape[2]
    assert 80 <= side <= 160 and cut.shape[3] == side
    rest = np.delete(np.arange(side), np.r_[side // 8 - 2 : side - side // 8 + 2])
    for step in range(100):
        colour = redness(cut[divmod(step, 10)])
        left, right = (colour[side // 3 : 2 * side // 3, at] for at in (side // 4, 3 * side // 4))
        if step % 2:
            assert (left > 60).all() and not right.any(), step
        else:
            assert not left.any() and (right < -60).all(), step
        assert not colour[:, rest].any() and not colour[rest].any(), step
    assert [text.get_text() for text in figure.axes[0].texts] == [str(step) for step in range(100)]


def test_each_number_stands_on_its_own_tile():
    figure = sheets.plot_grid(noised(), halves([4, 20, 31, 77, 90, 95, 99]))
    side = tiles(figure, 2, 5).shape[2]
    where = {text.get_text(): text.get_position() for text in figure.axes[0].texts}
    assert list(where) == ["4", "20", "31", "77", "90", "95", "99"]
    columns_and_rows = [(int(x // (side + 4)), int(y // (side + 4))) for x, y in where.values()]
    assert columns_and_rows == [(0, 0), (1, 0), (2, 0), (3, 0), (4, 0), (0, 1), (1, 1)]


def test_one_frame_is_one_tile_in_the_size_of_the_photograph():
    frames, method = noised(), halves([61])
    (tile,) = tiles(sheets.plot_grid(frames, method), 1, 1)[0]
    saliency = method["saliency"].values[0, 0]
    np.testing.assert_array_equal(tile, sheets.blended(frames["sample"].values[61], saliency, 62.0))


def test_draws_are_averaged():
    method = halves([1, 3], draws=2)
    method["saliency"][0, 1] *= -1
    cancelled, kept = tiles(sheets.plot_grid(noised(), method), 1, 2)[0]
    assert not redness(cancelled).any() and (redness(kept) > 60).any()


def test_every_tile_has_its_own_scale():
    weak, strong = tiles(sheets.plot_grid(noised(), halves([1, 99])), 1, 2)[0]
    assert redness(weak).max() == pytest.approx(redness(strong).max(), abs=3)


def test_outliers_do_not_pale_the_rest():
    method = halves([1])
    method["saliency"][0, :, 0, 0] = 200.0  # 2 on 6272 cells: 200 are 1.6 % of the sum
    (clipped,), (whole,) = (tiles(sheets.plot_grid(noised(), method, outlier_perc=perc), 1, 1)[0] for perc in (5, 0))
    at = (SIDE // 2, SIDE // 4)
    assert redness(clipped)[at] > 100 and redness(whole)[at] < 5


def test_zero_and_missing_maps_are_grey_and_counted(written: list[Text]):
    method = halves([1, 3, 5, 7])
    method["saliency"][1], method["saliency"][2] = 0.0, np.nan
    figure = sheets.plot_grid(noised(), method)
    coloured = [bool(redness(tile).any()) for tile in tiles(figure, 1, 4)[0]]
    assert coloured == [True, False, False, True]
    assert any("2 without colour" in text.replace("\n", " ") for text in texts(figure))
    assert_readable(figure, written)


def test_a_generation_shows_the_clean_prediction_under_its_small_maps():
    trace = noised(30, 64)
    trace["pred_original_sample"] = (PLACES, np.repeat(trace["image"].values[None], 30, axis=0))
    method = halves([3, 8], 30, 1, 16).isel(draw=0)
    method["saliency"][1] = 0
    figure = sheets.plot_grid(trace, method)
    coloured, grey = tiles(figure, 1, 2)[0]
    assert (redness(coloured)[90:130, 40:70] > 60).all() and not redness(coloured)[:, 120:].any()
    inside, outside = grey[112, 112, 0], grey[5, 112, 0]
    np.testing.assert_array_equal(
        [inside, outside], sheets.blended(trace["image"].values[[[32, 0]], 32], grey, 0)[0, :, 0]
    )
    assert any("per explained step" in text for text in texts(figure))


@pytest.mark.parametrize("signed, ends", [(True, {"against", "for"}), (False, {"0", "most"})])
def test_the_key_says_what_the_colours_mean(signed: bool, ends: set[str]):
    method = halves([1, 3]).assign_attrs(signed=signed)
    figure = sheets.plot_grid(noised(), method)
    key = figure.axes[1]
    assert {text.get_text() for text in key.texts} == ends
    colour = redness(np.asarray(key.images[0].get_array()).astype(int)[0])
    assert colour[-1] > 100 and (colour[0] < -100 if signed else colour[0] == 0)


# The likelihood


def test_the_marks_sit_where_the_curves_cross():
    middles = [44.0, 47.0, 50.0, 52.0, 59.0]
    likelihood = logistic({TIGER: middles, "tabby": [70.0] * 5})
    ax = recognition.plot_likelihood(likelihood, timed(likelihood), label=TIGER).axes[0]
    found = marks(ax)
    for shape, level in (("o", 0.05), ("s", 0.5), ("D", 0.9)):
        assert found[shape] == [(pytest.approx(place(50.0, level), abs=0.1), pytest.approx(level), False)]
        (bar,) = (line for line in bars(ax) if line.get_ydata()[0] == level)
        ends = [place(middle, level) for middle in (44.0, 59.0)]
        np.testing.assert_allclose(bar.get_xdata(), ends, atol=0.1)
    (window,) = (patch for patch in ax.patches if isinstance(patch, Rectangle))
    assert window.get_x() == pytest.approx(place(50.0, 0.05), abs=0.1)
    assert window.get_width() == pytest.approx(place(50.0, 0.9) - place(50.0, 0.05), abs=0.1)


def test_lines_are_medians_in_bands_over_the_draws():
    likelihood = logistic({TIGER: [44.0, 50.0, 59.0]})
    ax = recognition.plot_likelihood(likelihood, timed(likelihood)).axes[0]
    (curve,) = (line for line in ax.lines if len(line.get_xdata()) == 100)
    np.testing.assert_allclose(curve.get_ydata(), likelihood.values[:, 1, 0])
    (band,) = ax.collections
    edges = band.get_paths()[0].vertices
    at_fifty = sorted(edges[edges[:, 0] == 50][:, 1])
    np.testing.assert_allclose(at_fifty, [likelihood.values[50, 2, 0], likelihood.values[50, 0, 0]])


def test_the_band_of_many_draws_is_their_central_part():
    likelihood = logistic({TIGER: list(np.linspace(40, 60, 41))})
    ax = recognition.plot_likelihood(likelihood, timed(likelihood)).axes[0]
    edges = ax.collections[0].get_paths()[0].vertices
    at_fifty = sorted(edges[edges[:, 0] == 50][:, 1])
    expected = 1 / (1 + np.exp((np.array([59.0, 41.0]) - 50) / 3))
    np.testing.assert_allclose(at_fifty, expected, atol=1e-6)


def test_the_explained_label_comes_first_and_is_bold(written: list[Text]):
    likelihood = logistic({"tabby": [70.0], TIGER: [50.0], "sofa": [90.0]}, {"sofa": [0.3], "tabby": [0.02]})
    figure = recognition.plot_likelihood(likelihood, timed(likelihood))
    rows = figure.legends[0].get_texts()
    assert [text.get_text() for text in rows] == [
        "tiger: 0.05 at 41.1, 0.5 at 50.0, 0.9 at 56.6",
        "tabby: never reaches 0.05",
        "sofa: 0.05 at 85.2, never reaches 0.5",
    ]
    assert [text.get_fontweight() for text in rows] == ["bold", "normal", "normal"]
    assert_readable(figure, written)


def test_a_level_that_is_never_reached_has_no_mark_and_no_window(written: list[Text]):
    likelihood = logistic({TIGER: [50.0, 52.0]}, {TIGER: [0.8, 0.85]})
    figure = recognition.plot_likelihood(likelihood, timed(likelihood))
    ax = figure.axes[0]
    assert set(marks(ax)) == {"o", "s"} and not ax.patches
    assert "never reaches 0.9" in figure.legends[0].get_texts()[0].get_text()
    assert_readable(figure, written)


def test_a_bar_goes_on_to_the_end_where_some_draws_never_cross():
    likelihood = logistic({TIGER: [50.0] * 5}, {TIGER: [1.0, 1.0, 1.0, 1.0, 0.8]})
    ax = recognition.plot_likelihood(likelihood, timed(likelihood)).axes[0]
    (bar,) = (line for line in bars(ax) if line.get_ydata()[0] == 0.9)
    np.testing.assert_allclose(bar.get_xdata(), [place(50.0, 0.9), 99.0], atol=0.1)
    assert marks(ax)[">"] == [(99.0, 0.9, False)]
    few = logistic({TIGER: [50.0] * 5}, {TIGER: [1.0, 1.0, 0.8, 0.8, 0.8]})
    told = recognition.plot_likelihood(few, timed(few)).legends[0].get_texts()[0].get_text()
    assert told.endswith("reaches 0.9 in only 40 % of the draws")


def test_a_curve_that_starts_above_a_level_crosses_it_from_the_start(written: list[Text]):
    likelihood = logistic({"$\\alpha$ _": [-5.0]})
    figure = recognition.plot_likelihood(likelihood, timed(likelihood))
    found = marks(figure.axes[0])
    assert (found["o"][0][0], found["s"][0][0]) == (0.0, 0.0) and found["D"][0][0] == pytest.approx(
        place(-5.0, 0.9), abs=0.1
    )
    (row,) = figure.legends[0].get_texts()
    assert row.get_text() == "$\\alpha$ _: 0.05 from the start, 0.5 from the start, 0.9 at 1.6"
    assert not any(text.get_parse_math() for text in figure.findobj(Text) if "alpha" in text.get_text())
    assert_readable(figure, written)


def test_the_axis_above_has_log_snr_where_the_frames_have_it():
    likelihood = logistic({TIGER: [50.0]})
    figure = recognition.plot_likelihood(likelihood, timed(likelihood))
    FigureCanvasAgg(figure).draw()
    (above,) = figure.axes[0].child_axes
    where = {
        label.get_text(): float(place) for label, place in zip(above.get_xticklabels(), above.get_xticks(), strict=True)
    }
    assert where["0"] == pytest.approx(50.0)
    assert where["−2"] == pytest.approx(100 / (1 + np.e), abs=0.05)
    assert where["2"] == pytest.approx(100 / (1 + 1 / np.e), abs=0.05)


@pytest.mark.parametrize("count", [1, 2])
def test_a_frame_or_two_have_no_axis_above(count: int, written: list[Text]):
    likelihood = logistic({TIGER: [0.0, 0.5]}, count=count)
    figure = recognition.plot_likelihood(likelihood, timed(likelihood))
    assert not figure.axes[0].child_axes
    assert_readable(figure, written)


def test_labels_that_share_their_first_synonym_stay_whole():
    likelihood = logistic({"crane, bird": [50.0], "crane, machine": [60.0]})
    rows = recognition.plot_likelihood(likelihood, timed(likelihood), label="crane, machine").legends[0].get_texts()
    assert [text.get_text().split(":")[0] for text in rows] == ["crane, machine", "crane, bird"]


# The zooms


def test_zooms_are_the_explained_frames_nearest_to_the_moments(written: list[Text]):
    frames, likelihood = noised(), logistic({TIGER: [50.0]})  # 41.1, 50.0, 56.6
    method = halves([30, 41, 48, 53, 57, 99])
    figure = sheets.plot_zooms(frames, {"a": method, "b": method.sel(step=[41, 57])}, timed(likelihood), TIGER)
    cut = tiles(figure, 3, 4)
    for column, step in enumerate((41, 48, 57, 99)):
        np.testing.assert_array_equal(cut[0, column], frames["sample"].values[step])
        saliency = method["saliency"].sel(step=step).values[0]
        expected = sheets.blended(frames["sample"].values[step], saliency, 1.0 + step)
        np.testing.assert_array_equal(cut[1, column], expected)
        assert np.array_equal(cut[2, column], expected) == (step in (41, 57))
    said = texts(figure)
    assert "onset: 0.05 at 41.1\nframe 41, log-SNR −0.73" in said
    assert "last explained; in the end 1\nframe 99, log-SNR 9.2" in said
    assert said.count("not explained") == 2
    assert_readable(figure, written)


def test_moments_that_share_a_frame_share_a_column_and_a_level_never_reached_has_none(written: list[Text]):
    likelihood = logistic({TIGER: [50.0]}, {TIGER: [0.8]})
    figure = sheets.plot_zooms(noised(), {"a": halves([45, 99])}, timed(likelihood), TIGER)
    tiles(figure, 2, 2)
    (shared,) = (text for text in texts(figure) if "onset" in text)
    assert [line.split(":")[0] for line in shared.split("\n")] == ["onset", "half", "frame 45, log-SNR −0.4"]
    assert not any("ninety" in text for text in texts(figure))
    assert_readable(figure, written)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_zooms_survive_maps_of_nothing_and_a_label_never_seen(value: float, written: list[Text]):
    likelihood, method = logistic({TIGER: [50.0]}, {TIGER: [0.01]}), halves([10, 60])
    method["saliency"][:] = value
    figure = sheets.plot_zooms(noised(), {"a": method}, timed(likelihood), TIGER)
    frame, grey = tiles(figure, 2, 1)[:, 0]
    np.testing.assert_array_equal(frame, noised()["sample"].values[60])
    assert not redness(grey).any()
    assert_readable(figure, written)


def test_an_unfinished_frame_is_not_zoomed_in_on():
    likelihood, method = logistic({TIGER: [50.0]}), halves([41, 50, 57, 99])
    method["saliency"][1] = np.nan
    figure = sheets.plot_zooms(noised(), {"a": method}, timed(likelihood), TIGER)
    assert any(text.startswith("half: 0.5 at 50.0\n") or "\nhalf" in text for text in texts(figure))
    assert not any("frame 50" in text for text in texts(figure))


# The stages


def measured(**measures: np.ndarray) -> xr.Dataset:
    return with_measures(halves([10, 40, 70, 90], draws=3, side=8), **measures)


def test_stages_have_a_panel_per_measure_and_a_line_per_method(written: list[Text]):
    rising = np.array([[0.1, 0.2, 0.6], [0.3, 0.3, 0.3], [np.nan] * 3, [0.5, np.nan, 0.7]])
    both = {"a": measured(frequency=rising, agreement_edges=rising / 2), "b": measured(frequency=1 - rising)}
    figure = recognition.plot_stages(both)
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["Fineness", "Agreement with the picture's edges"]
    first, second = figure.axes[0].lines, figure.axes[1].lines
    np.testing.assert_allclose(first[0].get_ydata(), [0.2, 0.3, np.nan, 0.6])
    np.testing.assert_allclose(first[1].get_ydata(), [0.8, 0.7, np.nan, 0.4])
    np.testing.assert_allclose(second[0].get_ydata(), [0.1, 0.15, np.nan, 0.3])
    assert len(first) == 2 and len(second) == 1
    edges = figure.axes[0].collections[0].get_paths()[0].vertices
    assert (edges[edges[:, 0] == 10][:, 1].min(), edges[edges[:, 0] == 10][:, 1].max()) == (0.1, 0.6)
    assert_readable(figure, written)


@pytest.mark.parametrize("number", range(1, len(CAPTIONS) + 1))
def test_stages_are_readable_however_many_measures_there_are(number: int, written: list[Text]):
    values = np.random.default_rng(number).uniform(-1, 1, (4, 3))
    figure = recognition.plot_stages({"a": measured(**dict.fromkeys(list(CAPTIONS)[:number], values))})
    assert len(figure.axes) == number
    assert_readable(figure, written)


def test_captions_travel_with_the_measures(tmp_path: Path):
    """Through a mean over draws and a file; a variable without a caption has no panel."""
    saliency = np.random.default_rng(0).normal(size=(2, 3, 8, 8))
    maps = xr.DataArray(saliency, {"step": [1, 2]}, ("step", "draw", "y", "x"))
    mask = np.zeros((8, 8), bool)
    mask[2:6, 2:6] = True
    measures = stages(maps, np.full((8, 8, 3), 0.5), mask).assign(plain=("step", [1.0, 2.0]))
    assert results.captions_of([measures]) == CAPTIONS
    averaged = measures.mean("draw", keep_attrs=True)
    averaged.to_zarr(tmp_path / "measures.zarr", zarr_format=2)
    assert results.captions_of([xr.open_zarr(tmp_path / "measures.zarr", chunks=None)]) == CAPTIONS


def test_panels_that_need_an_object_come_last():
    figure = recognition.plot_stages({"a": measured(**dict.fromkeys(CAPTIONS, 0.5))})
    headings = [ax.get_title(loc="left") for ax in figure.axes]
    assert headings[-2:] == ["Share inside the object", "Contour or interior of the object"]


def test_a_measure_without_any_value_says_so():
    figure = recognition.plot_stages({"a": measured(frequency=np.full((4, 3), np.nan)).isel(step=[0])})
    assert "no value" in texts(figure)
    FigureCanvasAgg(figure).draw()


def test_a_generation_has_steps_and_no_bands():
    method = measured(frequency=np.full((4, 3), 0.5)).isel(draw=0)
    figure = recognition.plot_stages({"a": method})
    assert figure.axes[0].get_xlabel().startswith("step") and not figure.axes[0].collections


# Several photographs


def several() -> dict[str, xr.DataArray]:
    return {
        "late": logistic({"tabby": [70.0, 72.0, 74.0]}),
        "never": logistic({"sofa": [20.0] * 3}, {"sofa": [0.01] * 3}),
        "_early$": logistic({"other": [90.0] * 3, TIGER: [30.0, 33.0, 40.0]}, {TIGER: [0.8] * 3}),
    }


def test_photographs_are_compared_in_the_order_of_their_onset(written: list[Text]):
    curves = several()
    labels = {"late": "tabby", "never": "sofa", "_early$": TIGER}
    figure = recognition.plot_photographs(curves, {name: timed(c) for name, c in curves.items()}, labels)
    above, below = figure.axes
    lines = [line for line in above.lines if len(line.get_xdata()) == 100]
    np.testing.assert_allclose(lines[0].get_ydata(), curves["_early$"].values[:, 1, 1])
    assert [tick.get_text() for tick in below.get_yticklabels()] == ["_early$\ntiger", "late\ntabby", "never\nsofa"]
    assert not any(tick.get_parse_math() for tick in below.get_yticklabels())
    found = marks(below)
    onsets = [(x, open_) for x, _, open_ in found["o"]]
    assert onsets == [
        (pytest.approx(place(33.0, 0.05, 0.8), abs=0.1), False),
        (pytest.approx(place(72.0, 0.05), abs=0.1), False),
        (99.0, True),
    ]
    assert [x for x, _, open_ in found["D"] if open_] == [99.0, 99.0]
    assert [round(y) for _, y, _ in found["s"]] == [0, 1, 2]
    said = [text.get_text() for text in below.texts]
    assert said == ["never"] * 4
    spans = [tuple(bar.get_xdata()) for bar in bars(below)]
    assert len(spans) == 5 and spans[0] == pytest.approx([place(m, 0.05, 0.8) for m in (30.0, 40.0)], abs=0.1)
    assert_readable(figure, written)


def test_one_photograph_can_be_compared_with_nothing(written: list[Text]):
    curves = logistic({TIGER: [50.0] * 4}, {TIGER: [1.0, 0.8, 0.8, 0.8]})
    figure = recognition.plot_photographs({"tiger": curves}, {"tiger": timed(curves)}, {"tiger": TIGER})
    below = figure.axes[1]
    assert marks(below)["D"] == [(99.0, pytest.approx(0.26), True)]
    assert [text.get_text() for text in below.texts] == ["in some draws"]
    np.testing.assert_allclose(bars(below)[2].get_xdata(), [place(50.0, 0.9), 99.0], atol=0.1)
    assert_readable(figure, written)


# All of them


def test_all_that_the_data_allow_are_drawn_one_at_a_time(monkeypatch: pytest.MonkeyPatch):
    made: list[str] = []

    def counted(name: str):
        original = getattr(recognition, name)
        return lambda *args, **kwargs: made.append(name) or original(*args, **kwargs)

    for name in ("plot_likelihood", "plot_grid", "plot_zooms", "plot_stages"):
        monkeypatch.setattr(recognition, name, counted(name))
    likelihood = logistic({TIGER: [50.0]})
    methods = {"first": halves([40, 60]), "second": halves([60])}
    methods["first"] = with_measures(methods["first"], frequency=0.5)
    pages = recognition.drawn(noised(), methods, likelihood, timed(likelihood), TIGER)
    assert next(pages)[0] == "likelihood" and made == ["plot_likelihood"]
    assert [name for name, _ in pages] == ["first", "second", "zooms", "stages"]
    assert made == ["plot_likelihood", "plot_grid", "plot_grid", "plot_zooms", "plot_stages"]


def test_without_measures_or_maps_there_are_fewer_pictures():
    likelihood = logistic({TIGER: [50.0]})
    rest = (likelihood, timed(likelihood), TIGER)
    assert [name for name, _ in recognition.drawn(noised(), {"a": halves([50])}, *rest)] == ["likelihood", "a", "zooms"]
    assert [name for name, _ in recognition.drawn(noised(), {}, *rest)] == ["likelihood"]
