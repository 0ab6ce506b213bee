"""Layouts: the place of each number of a sample on the picture, measured on real pipelines and on made ones."""

import itertools
import math

import pytest
import torch
from families.every import FAMILIES
from families.oracle import SEED
from small import refusal

import denoscope
from denoscope.recording.layout import Layout, measured, picture_frames

MEASURED = {
    "sd-text": ({"height": 32, "width": 48}, Layout("cyx", (8, 12))),
    "flux": ({}, Layout("pc", (4, 6))),
    "dit": ({}, Layout("cyx", (8, 8))),
    "ltx": ({}, Layout("pc", (8, 16), 3)),
    "wan": ({}, Layout("cfyx", (4, 6), 2)),
    "cogvideo": ({}, Layout("fcyx", (4, 6), 3)),
    "kandinsky-5": ({}, Layout("fyxc", (4, 6))),
    "kandinsky-5-video": ({}, Layout("fyxc", (4, 6), 2)),
    "video-text-to-video": ({}, Layout("cyx", (8, 8), 2, unit=2)),
    "video-animatediff": ({}, Layout("cfyx", (8, 8), 2)),
}


@pytest.mark.parametrize("name", MEASURED)
@torch.no_grad()
def test_layouts_of_pipelines(name):
    """Ground truth: a box of the maps is disturbed, and the pipeline's picture changes most in that box."""
    more, expected = MEASURED[name]
    pipeline = FAMILIES[name].build()
    pipeline.set_progress_bar_config(disable=True)
    trace = denoscope.load(pipeline).trace(**{**FAMILIES[name].call(), **more}, seed=SEED)
    layout, last = trace[0].layout, trace[-1].prev_sample
    assert layout == expected and trace.pictures == 1
    maps, before = layout.as_maps(last), trace.decode(last)
    assert maps.shape == (1, maps.shape[1], *expected.shape) and torch.equal(layout.as_samples(maps), last)
    (h, w), (height, width) = layout.grid, before.shape[-2:]
    rows, columns = slice(0, math.ceil(h / 4)), slice(w - math.ceil(w / 4), w)
    changed = maps.clone()
    changed[..., rows, columns] += 2 * maps.std()
    change = (trace.decode(layout.as_samples(changed)) - before).abs().flatten(0, -3).mean(dim=0)
    inside = torch.zeros(height, width, dtype=torch.bool)
    inside[: rows.stop * height // h, columns.start * width // w :] = True
    assert float(change[inside].mean()) > 1.5 * float(change[~inside].mean())


GRIDS = ((2, 3), (4, 4), (5, 1))
PICTURES = [Layout(order, grid) for order in ("cyx", "yxc", "pc", "cp", "fyxc", "fcyx") for grid in GRIDS]
CLIPS = [
    Layout(order, grid, frames)
    for order in ("pc", "cp", "cfyx", "fcyx", "fyxc", "yxfc")
    for grid in GRIDS
    for frames in (1, 3)
]
ROWS = [Layout("cyx", grid, frames, unit=frames) for grid in GRIDS for frames in (2, 3)]


def slow_maps(layout: Layout, samples: torch.Tensor) -> torch.Tensor:
    """Return maps number by number, each from the place that the order of axes says."""
    order, (h, w) = layout.order, layout.grid
    channels = samples.shape[1 + order.index("c")]
    maps = torch.empty(len(samples) // layout.unit, channels, layout.frames or 1, h, w)
    for n, c, f, y, x in itertools.product(*(range(size) for size in maps.shape)):
        place = {"c": c, "f": f, "y": y, "x": x, "p": (f * h + y) * w + x}
        row = n * layout.unit + (f if layout.unit > 1 else 0)
        maps[n, c, f, y, x] = samples[(row, *(place[axis] for axis in order))]
    return maps if layout.frames is not None else maps[:, :, 0]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("layout", [*PICTURES, *CLIPS, *ROWS], ids=str)
def test_maps_and_samples_are_inverse(layout, count):
    """Oracle: a loop over all places."""
    order, (h, w), frames = layout.order, layout.grid, layout.frames or 1
    sizes = {"c": 2, "f": frames, "y": h, "x": w, "p": frames * h * w}
    shape = (count * layout.unit, *(sizes[axis] for axis in order))
    samples = torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)
    maps = layout.as_maps(samples)
    assert maps.shape == (count, 2, *layout.shape) and layout.positions == math.prod(layout.shape)
    assert torch.equal(maps, slow_maps(layout, samples))
    assert torch.equal(layout.as_samples(maps), samples)
    assert layout.dims == (("y", "x") if layout.frames is None else ("frame", "y", "x"))


def decoder(layout: Layout, scale: int = 4, shuffled: torch.Tensor | None = None):
    """Return a decoder that shows each position as a square, of a sample whose positions may have been shuffled."""

    def decode(samples: torch.Tensor) -> torch.Tensor:
        samples = samples if shuffled is None else samples[:, shuffled]
        pictures = layout.as_maps(samples).mean(dim=1, keepdim=True).repeat_interleave(scale, -1)
        return pictures.repeat_interleave(scale, -2).sigmoid()

    return decode


PLACED = [
    (Layout("pc", (4, 6)), (1, 24, 8)),
    (Layout("cp", (6, 4)), (1, 8, 24)),
    (Layout("yxc", (5, 7)), (1, 5, 7, 8)),
    (Layout("pc", (4, 6), 3), (1, 72, 8)),
    (Layout("fcyx", (4, 6), 3), (1, 3, 8, 4, 6)),
    (Layout("yxfc", (4, 6), 3), (1, 4, 6, 3, 8)),
]


@pytest.mark.parametrize("layout, shape", PLACED)
def test_a_known_layout_is_measured(layout, shape):
    sample = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    picture = (*layout.shape[:-2], 4 * layout.grid[0], 4 * layout.grid[1])
    assert measured(sample, 1, picture, decoder(layout)) == layout


def test_positions_in_no_order_are_refused():
    layout, sample = Layout("pc", (4, 6)), torch.randn(1, 24, 8, generator=torch.Generator().manual_seed(0))
    shuffled = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    message = refusal(measured, sample, 1, (16, 24), decoder(layout, shuffled=shuffled))
    assert "(1, 24, 8) for 16 × 24 pixels" in message and "no known place" in message
    assert "no known place" in refusal(measured, torch.randn(1, 23, 8), 1, (16, 24), decoder(layout))


@pytest.mark.parametrize("frames, pictures", [(2, 5), (3, 9), (2, 8), (3, 3), (1, 1)])
def test_frames_of_a_sample_have_their_pictures(frames, pictures):
    """Identity: the pictures of all frames one by one are all pictures, each once."""
    parts = [picture_frames(slice(frame, frame + 1), frames, pictures) for frame in range(frames)]
    assert [one for part in parts for one in range(pictures)[part]] == list(range(pictures))


def test_a_view_of_a_panorama_has_no_place():
    """Its sample, 4 × 64, is one view of 4 × 72 positions: nearly of the picture's proportions, and not the picture."""
    family = FAMILIES["sd-panorama"]
    pipeline = family.build()
    pipeline.set_progress_bar_config(disable=True)
    trace = denoscope.load(pipeline).trace(seed=1, **family.call())
    assert trace[0].sample.shape[-2:] == (4, 64)
    assert "no known place on the picture" in refusal(lambda: trace[0].layout)
