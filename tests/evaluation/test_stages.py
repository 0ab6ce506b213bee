"""The measures of a map's stage, against closed forms."""

import numpy as np
import pytest
import xarray as xr

from denoscope.errors import InputError
from denoscope.evaluation import stages


def disc(radius: float, side: int = 64) -> np.ndarray:
    axis = np.arange(side) - side / 2 + 0.5
    return np.hypot(*np.meshgrid(axis, axis)) <= radius


def test_share_inside_counts_what_is_positive():
    mask, saliency = disc(10), np.where(disc(10), 3.0, 1.0)
    saliency[0, 0] = -100
    inside = 3 * mask.sum()
    assert stages.share_inside(saliency, mask) == pytest.approx(inside / (inside + (~mask).sum() - 1))


def test_contour_preference_tells_an_outline_from_a_filling():
    mask = disc(16)
    outline = (disc(17) & ~disc(15)).astype(float)
    assert stages.contour_preference(outline, mask) == 1
    assert stages.contour_preference(disc(12).astype(float), mask) == -1
    assert stages.contour_preference(np.ones((64, 64)), mask) == pytest.approx(0)


def test_the_contour_at_the_picture_border_is_not_an_edge():
    half = np.zeros((64, 64), bool)
    half[:, :32] = True
    band = stages.contour(half)
    assert band[:, 30:34].all() and not band[:, :28].any() and not band[:, 36:].any()


@pytest.mark.parametrize("cycles", [2, 5, 11])
def test_mean_frequency_of_a_wave_is_its_own(cycles):
    wave = np.sin(2 * np.pi * cycles * np.arange(64) / 64)
    assert stages.mean_frequency(np.tile(wave, (64, 1))) == pytest.approx(cycles)
    assert stages.mean_frequency(np.tile(wave[:, None], (1, 32))) == pytest.approx(cycles)
    assert np.isnan(stages.mean_frequency(np.ones((8, 8))))


def test_stages_expose_an_edge_detector_and_keep_the_draws():
    picture = np.where(disc(16)[..., None], [0.9, 0.2, 0.1], 0.5)
    edges = stages.edge_map(picture)
    rng = np.random.default_rng(0)
    maps = np.stack([[rng.normal(size=(64, 64)), edges], [edges, edges]])
    saliency = xr.DataArray(maps, {"step": [3, 9], "draw": [0, 1]}, ("step", "draw", "y", "x"))
    found = stages.stages(saliency, picture, disc(16))
    assert found["agreement_edges"].dims == ("step", "draw")
    assert found["agreement_edges"].values[1] == pytest.approx([1, 1])
    assert abs(float(found["agreement_edges"][0, 0])) < 0.05
    assert found["agreement_last"].values[1] == pytest.approx([1, 1])
    assert float(found["contour_preference"][0, 1]) == 1
    assert "share_inside" not in stages.stages(saliency, picture)


@pytest.mark.parametrize("mask", [np.zeros((64, 64)), np.ones((64, 64)), disc(5, 32)])
def test_masks_that_cannot_be(mask):
    saliency = xr.DataArray(np.ones((1, 64, 64)), {"step": [0]}, ("step", "y", "x"))
    with pytest.raises(InputError, match="mask"):
        stages.stages(saliency, np.zeros((64, 64, 3)), mask)
