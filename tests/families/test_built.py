"""Every small U-Net pipeline makes the same finite picture from the same noise, and another from another."""

from typing import Any

import numpy as np
import pytest
import torch

from families import unets, unets_embeddings, unets_extended, unets_pixels, unets_rare, unets_video

pytestmark = pytest.mark.slow  # `make families` builds and runs them all

MODULES = unets, unets_extended, unets_video, unets_pixels, unets_embeddings, unets_rare
FAMILIES = {name: family for module in MODULES for name, family in module.FAMILIES.items()}
GIVEN_NOISE = {"sd-diffedit", "sdxl-second-half"}
"""Families whose call gives the sample, so that the generator has nothing to draw."""

DRAWS_ASIDE = {"video-i2vgen", "video-animatediff-sparse"}
"""Families whose pipeline draws from torch's own generator too: they encode a picture without the call's."""


def numbers(pictures: Any) -> np.ndarray:
    """Everything shown, as one array: pictures lie in 0…1."""
    if isinstance(pictures, list | tuple):
        return np.stack([numbers(picture) for picture in pictures])
    if isinstance(pictures, torch.Tensor | np.ndarray):
        return np.asarray(pictures, dtype=np.float64)
    return np.asarray(pictures, dtype=np.float64) / 255


@pytest.mark.parametrize("name", FAMILIES)
# Several pipelines call a method of diffusers that diffusers has deprecated; the call is not ours to change.
@pytest.mark.filterwarnings("ignore:The decode_latents method is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:The preprocess method is deprecated:FutureWarning")
# The combined pipeline hands its prior an argument that diffusers has deprecated.
@pytest.mark.filterwarnings("ignore:`callback_steps` is deprecated:FutureWarning")
# The smoothing of Attend-and-Excite builds its kernel with meshgrid's old form.
@pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")
def test_family_repeats_and_follows_its_noise(name):
    family = FAMILIES[name]
    pipeline = family.build()
    pipeline.set_progress_bar_config(disable=True)

    def made(seed: int) -> np.ndarray:
        if name in DRAWS_ASIDE:
            torch.manual_seed(seed)
        return numbers(pipeline(**family.call(), generator=torch.Generator().manual_seed(seed))[0])

    first, second, other = made(0), made(0), made(1)
    assert np.isfinite(first).all()
    np.testing.assert_array_equal(first, second)
    assert first.std() > 0.02
    assert np.mean((first != 0) & (first != 1)) > 0.1, "almost every number is clipped"
    assert name in GIVEN_NOISE or not np.array_equal(first, other)
