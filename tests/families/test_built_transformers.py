"""The small transformer pipelines run, repeat themselves under a seed, and heed all that their calls say."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from families import transformers, videos
from families.family import Family

FAMILIES = {**transformers.FAMILIES, **videos.FAMILIES}
OTHER_WORDS = "a tiny yellow square above"

# Mochi's attention asks torch for an autocast to float32, which no CPU has.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:In CPU autocast, but the target dtype is not supported:UserWarning"),
]


def frames(output: Any) -> np.ndarray:
    """The first picture or video of an output, with values from 0 to 1."""
    first = output[0][0]
    stack = np.stack([np.asarray(frame) for frame in first]) if isinstance(first, list) else np.asarray(first)
    return stack / 255 if stack.dtype == np.uint8 else stack


def painted(pipeline: Any, family: Family, seed: int = 0, **changes: Any) -> np.ndarray:
    if "global-noise" in family.layouts:  # part of its noise comes from torch's own generator
        torch.manual_seed(seed)
    return frames(pipeline(**{**family.call(), **changes}, generator=torch.Generator().manual_seed(seed)))


def built(family: Family) -> Any:
    pipeline = family.build()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def another(value: Any) -> Any:
    """Other words, or the pictures with their colours turned round."""
    if isinstance(value, str):
        return OTHER_WORDS
    return [another(part) for part in value] if isinstance(value, list) else ImageOps.invert(value)


def says_something(value: Any) -> bool:
    return isinstance(value[0] if isinstance(value, list) else value, str | Image.Image)


@pytest.fixture(params=FAMILIES, scope="module")
def family(request) -> Family:
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def pipeline(family) -> Any:
    return built(family)


def test_a_small_pipeline_paints_the_same_picture_twice_and_another_from_another_seed(family, pipeline):
    call = family.call()
    first = painted(pipeline, family)
    assert np.isfinite(first).all()
    assert first.std() > 0.02
    assert ((first > 0.002) & (first < 0.998)).mean() > 0.5  # most of it is neither black nor white
    assert first.ndim == (4 if "video" in family.layouts else 3)
    assert first.shape[-3:-1] == (call.get("height", first.shape[-3]), call.get("width", first.shape[-2]))
    np.testing.assert_array_equal(first, painted(pipeline, family))
    assert np.abs(first - painted(pipeline, family, seed=1)).mean() > 0.005


def test_it_is_the_same_pipeline_each_time_it_is_built(family, pipeline):
    torch.full((2**20,), 7.0)  # numbers that an uninitialised weight would pick up
    np.testing.assert_array_equal(painted(built(family), family), painted(pipeline, family))


def test_its_picture_depends_on_each_text_and_each_picture_of_its_call(family, pipeline):
    exact = painted(pipeline, family, output_type="np")
    spoken = {name: value for name, value in family.call().items() if says_something(value)}
    assert spoken or "no-text" in family.layouts
    for name, value in spoken.items():
        changed = painted(pipeline, family, output_type="np", **{name: another(value)})
        assert np.abs(changed - exact).max() > 1e-3, name


def test_its_arguments_are_fresh(family):
    assert family.call() is not family.call()
