"""`denoscope.plot`: the map lies on its picture as the array says, on one scale, and a wrong choice is refused."""

from collections.abc import Iterator

import matplotlib
import numpy as np
import pytest
import torch
import xarray as xr
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pages import attribution, photograph
from pictures import disc_method, disc_trace
from PIL import Image

import denoscope
from denoscope.errors import InputError
from denoscope.figures.overlays import overlay
from denoscope.figures.scales import Limits, outlier_scale
from denoscope.results.explanations import Explanation
from denoscope.vision.frames import blend, frames_of

GREY = np.full((32, 48, 3), 128, np.uint8)


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    pyplot.close("all")


def bright_corner(height: int = 8, width: int = 12, **coords: object) -> xr.Dataset:
    """A map that is 1 in the four cells of the top left corner and 0 elsewhere."""
    saliency = np.zeros((1, height, width))
    saliency[0, :2, :2] = 1
    return xr.Dataset({"saliency": (("step", "y", "x"), saliency)}, {"step": [3], **coords}, {"title": "Corner"})


def rendered(ax: Axes) -> np.ndarray:
    """The pixels of the axes as a screen shows them, from the top."""
    canvas = FigureCanvasAgg(ax.figure)
    canvas.draw()
    box = ax.get_window_extent()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].astype(int)
    top = pixels.shape[0] - round(box.y1)
    return pixels[top : top + round(box.height), round(box.x0) : round(box.x1)]


def image_of(ax: Axes) -> np.ndarray:
    return np.asarray(ax.get_images()[0].get_array())


@pytest.mark.parametrize(
    "coords", [{}, {"y": np.arange(8) * 4 + 2.0, "x": np.arange(12) * 4 + 2.0}], ids=["cells", "pixels"]
)
def test_a_map_is_the_right_way_up(coords: dict):
    ax = denoscope.plot(GREY, bright_corner(**coords))
    assert isinstance(ax, Axes) and ax.get_title() == "Corner, step 3"
    brightness = rendered(ax).sum(axis=-1)
    rows, columns = np.nonzero(brightness > 0.9 * brightness.max())
    height, width = brightness.shape
    assert rows.mean() < height / 4 and columns.mean() < width / 4
    bottom, top = ax.get_ylim()
    assert (bottom, top) == (32, 0) and ax.get_xlim() == (0, 48), "axes count pixels of the picture from the top"


def test_a_map_that_was_turned_over_lies_as_its_coordinates_say():
    maps = bright_corner(y=np.arange(8) * 4 + 2.0)
    turned = maps.isel(y=slice(None, None, -1)).transpose("x", "step", "y")
    np.testing.assert_array_equal(image_of(denoscope.plot(GREY, turned)), image_of(denoscope.plot(GREY, maps)))


def test_all_steps_have_one_colour_scale():
    maps, picture = disc_method(), disc_trace()["image"].values
    largest = float(np.abs(maps["saliency"]).max())
    limits = Limits(-largest, largest, signed=True)
    figure = denoscope.plot(picture, maps)
    assert isinstance(figure, Figure)
    *panels, bar = figure.axes
    assert [ax.get_title() for ax in panels] == ["step 1", "step 3", "step 4"]
    for ax, step in zip(panels, (1, 3, 4), strict=True):
        expected = overlay(picture, maps["saliency"].sel(step=step).values, limits)
        np.testing.assert_array_equal(image_of(ax), expected)
        np.testing.assert_array_equal(image_of(denoscope.plot(picture, maps, step=step)), expected)
    assert bar.get_ylim() == pytest.approx((-largest, largest))


def test_each_map_can_have_its_own_scale():
    maps, picture = disc_method(), disc_trace()["image"].values
    figure = denoscope.plot(picture, maps, step=[1, 4], scale="each")
    np.testing.assert_array_equal(image_of(figure.axes[0]), overlay(picture, maps["saliency"].sel(step=1).values))
    assert len(figure.axes) == 4, "a bar for each"
    with pytest.raises(InputError, match='Did you mean "shared"'):
        denoscope.plot(picture, maps, scale="share")


@pytest.mark.parametrize("value, note", [(0.0, "flat"), (3.5, "flat"), (np.nan, "no value")])
def test_a_map_that_shows_nothing_leaves_the_picture(value: float, note: str):
    maps = xr.full_like(bright_corner(), value).assign_attrs(title="Corner")
    ax = denoscope.plot(GREY, maps)
    np.testing.assert_array_equal(image_of(ax), GREY)
    assert ax.get_title() == f"Corner, step 3, {note}" and rendered(ax).size
    assert len(ax.figure.axes) == 1, "no bar"


def test_the_axes_given_are_drawn_on():
    figure, (left, right) = pyplot.subplots(1, 2)
    maps = disc_method()
    assert denoscope.plot(GREY, maps, step=1, ax=left) is left
    assert len(left.get_images()) == 1 and not right.get_images() and len(figure.axes) == 3
    with pytest.raises(InputError, match=r"3 maps cannot be drawn on one ax.*step 1, step 3, step 4"):
        denoscope.plot(GREY, maps, ax=right)


def words() -> xr.Dataset:
    both = xr.concat([disc_method(), disc_method() * 2], xr.Variable("token", ["red", "circle"]))
    return both[["saliency"]].transpose("step", "token", "y", "x").assign_attrs(title="Word maps")


def test_words_are_chosen_by_name():
    ax = denoscope.plot(GREY, words(), step=3, token="circle")
    assert ax.get_title() == "Word maps, step 3, “circle”"
    reach = float(np.abs(words()["saliency"]).max())
    doubled = 2 * disc_method()["saliency"].sel(step=3).values
    np.testing.assert_array_equal(image_of(ax), overlay(GREY, doubled, Limits(-reach, reach, signed=True)))
    figure = denoscope.plot(GREY, words(), step=[1, 3])
    assert [ax.get_title() for ax in figure.axes[:4]] == [
        f"step {step}, “{word}”" for step in (1, 3) for word in ("red", "circle")
    ]


@pytest.mark.parametrize(
    "choice, message",
    [
        ({"token": "circel"}, "no map of the token 'circel'.*Did you mean \"circle\"\\? Allowed: red, circle"),
        ({"step": 2}, "no map of step 2.*steps 1, 3, 4"),
        ({"layer": "mid"}, "have no layer"),
        ({"method": "words"}, "only one result"),
        ({"beneath": "stepp"}, 'Did you mean "step"'),
        ({"beneath": "step"}, "Give the trace"),
    ],
)
def test_a_wrong_choice_is_refused(choice: dict, message: str):
    with pytest.raises(InputError, match=message):
        denoscope.plot(GREY, words(), **choice)


def test_one_of_several_results_is_chosen_by_its_method():
    explanation = Explanation.of(disc_trace(), {"bump": disc_method(), "words": words()}, {})
    ax = denoscope.plot(explanation, method="bump", step=3)
    assert ax.get_title() == "A bump, step 3"
    expected = image_of(denoscope.plot(disc_trace(), disc_method(), step=3))
    np.testing.assert_array_equal(image_of(ax), expected)
    np.testing.assert_array_equal(image_of(denoscope.plot(explanation, {"bump": disc_method()}, step=3)), expected)
    with pytest.raises(InputError, match="2 methods: bump, words"):
        denoscope.plot(explanation)
    with pytest.raises(InputError, match='Did you mean "bump"'):
        denoscope.plot(explanation, method="bum")
    with pytest.raises(InputError, match="no maps to draw in a Dataset"):
        denoscope.plot(GREY, disc_trace())


def empty(step: int, side: int) -> xr.Dataset:
    """A flat map, which leaves the picture beneath as it is."""
    return xr.Dataset({"saliency": (("step", "y", "x"), np.zeros((1, side, side)))}, {"step": [step]})


def test_beneath_a_map_of_a_trace_lies_its_picture_or_the_clean_prediction(trace: denoscope.Trace):
    maps = empty(2, 4)
    np.testing.assert_array_equal(image_of(denoscope.plot(trace, maps)), np.asarray(trace.image.convert("RGB")))
    clean = (trace.clean_decoded()[2] * 255).round().astype(np.uint8)
    np.testing.assert_array_equal(image_of(denoscope.plot(trace, maps, beneath="step")), clean)


def test_beneath_a_map_of_frames_lies_the_frame_of_the_step(trace: denoscope.Trace):
    frames = frames_of(trace)
    shown = image_of(denoscope.plot(frames, empty(1, 4)))
    np.testing.assert_array_equal(shown, (trace.clean_decoded()[1] * 255).round().astype(np.uint8))
    clean = torch.linspace(-2, 2, 3 * 8 * 8).reshape(3, 8, 8)
    noised = blend(clean, count=4, draws=2)
    finished = image_of(denoscope.plot(noised, empty(3, 8), beneath="final"))
    assert (
        finished.min() == 0
        and finished.max() == 255
        and denoscope.plot(noised, empty(3, 8)).get_title() == ("Saliency, frame 3, flat")
    )
    np.testing.assert_allclose(finished, (np.moveaxis(clean.numpy(), 0, -1) + 2) / 4 * 255, atol=0.51)
    sample = image_of(denoscope.plot(photograph(), attribution(draws=2) * 0, step=20))
    np.testing.assert_array_equal(sample, photograph()["sample"].sel(step=20))


@pytest.mark.parametrize("form", ["grey", "float", "alpha", "pil"])
def test_a_plain_picture_may_have_any_form(form: str):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    forms = {
        "grey": (pixels[..., 0], np.repeat(pixels[..., :1], 3, axis=-1)),
        "float": (pixels / 255, pixels),
        "alpha": (np.concatenate([pixels, pixels[..., :1]], axis=-1), pixels),
        "pil": (Image.fromarray(pixels), pixels),
    }
    picture, expected = forms[form]
    np.testing.assert_array_equal(image_of(denoscope.plot(picture, empty(0, 2))), expected)


@pytest.mark.parametrize("picture", ["a.png", np.zeros((3, 8, 8)), np.full((8, 8, 3), 2.0), None])
def test_what_is_no_picture_is_refused(picture: object):
    with pytest.raises(InputError, match="picture"):
        denoscope.plot(picture, bright_corner())


def test_outliers_may_be_clipped():
    maps = attribution(draws=3)
    clipped = outlier_scale(maps["saliency"].mean("draw").values, 10)
    *_, bar = denoscope.plot(GREY, maps, outlier_perc=10).axes
    assert bar.get_ylim() == pytest.approx((-clipped, clipped)) and clipped < 30


def test_draws_are_averaged_and_colours_may_be_chosen():
    maps = attribution(draws=3)
    ax = denoscope.plot(GREY, maps, step=30, cmap="viridis", alpha=1.0)
    mean = maps["saliency"].mean("draw")
    reach = float(np.abs(mean).max())
    expected = overlay(GREY, mean.sel(step=30).values, Limits(-reach, reach, signed=True), "viridis", 1.0)
    np.testing.assert_array_equal(image_of(ax), expected)
    assert ax.figure.axes[-1].collections[0].cmap == matplotlib.colormaps["viridis"]


@pytest.mark.parametrize(
    "choice, message",
    [
        ({"step": 3.5}, "The step to draw is 3.5"),
        ({"step": "3"}, "The step to draw is '3'"),
        ({"step": True}, "The step to draw is True"),
        ({"step": slice(0, 4)}, "whole numbers, among 3"),
        ({"cmap": "nope"}, 'no colour map "nope"'),
        ({"outlier_perc": float("nan")}, "outlier_perc is nan"),
        ({"ax": np.zeros(2)}, "Give matplotlib axes"),
    ],
)
def test_a_choice_of_another_kind_is_refused(choice: dict, message: str):
    with pytest.raises(InputError) as refused:
        denoscope.plot(GREY, bright_corner(), **choice)
    assert message in str(refused.value)


@pytest.mark.parametrize("token, message", [([], "No token is chosen"), (3, "no map of the token 3")])
def test_words_of_another_kind_are_refused(token: object, message: str):
    with pytest.raises(InputError, match=message):
        denoscope.plot(GREY, words(), token=token)


def test_maps_of_a_picture_of_another_shape_are_refused():
    maps = bright_corner(y=np.arange(8) * 8 + 4.0, x=np.arange(12) * 4 + 2.0)
    with pytest.raises(InputError, match="48 × 64 pixels, and the picture given has 48 × 32"):
        denoscope.plot(GREY, maps)
