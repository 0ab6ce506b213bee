"""Small models and truths for the jobs."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from denoscope.commands import subjects
from denoscope.worlds.shapes.scenes import masks


@pytest.fixture
def things_as_prompted(monkeypatch):
    """Let every picture count, with its things where the scene says: a few steps draw no clear picture."""
    monkeypatch.setattr(subjects, "masks_of_things", lambda picture, scene: masks(scene))


@pytest.fixture
def own_model(tmp_path: Path, stable_diffusion) -> Path:
    """A folder with a saved small pipeline, prompts, and a mask for the first two of three."""
    (tmp_path / "prompts.txt").write_text(
        "first\ta red circle on a white background\tred circle\nsecond\ta blue cross\nthird\ta cross\n"
    )
    mask = np.zeros((32, 32), np.uint8)
    mask[8:20, 4:16] = 255
    (tmp_path / "masks").mkdir()
    for name in ("first", "second"):
        Image.fromarray(mask).save(tmp_path / "masks" / f"{name}.png")
    stable_diffusion.save_pretrained(tmp_path / "model")
    return tmp_path
