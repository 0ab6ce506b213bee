"""Recorded pictures of the shapes world that show their scenes, with the masks of their objects."""

import functools

import numpy as np
import torch

import denoscope
from denoscope.worlds.shapes.judge import object_masks
from denoscope.worlds.shapes.scenes import Scene, caption

STEPS = 30
GUIDANCE = 3.0
FIRST_SEED = 8_000_000
"""Seed of the first scene of benchmarks that need other scenes than `denoscope evaluate`."""


@functools.cache
def model() -> denoscope.Model:
    """Load the bundled model once a process, which computes with one thread."""
    torch.set_num_threads(1)
    loaded = denoscope.load("shapes")
    loaded.pipeline.set_progress_bar_config(disable=True)
    return loaded


def scene_of(seed: int) -> Scene:
    """Return the scene of a seed: one small object if the seed is even, two objects if it is odd."""
    return Scene.random(seed, count=2) if seed % 2 else Scene.random(seed, count=1, size="small")


def picture_of(scene: Scene) -> denoscope.Trace:
    """Record a scene's picture, from its caption and the scene's own seed."""
    options = dict(num_inference_steps=STEPS, guidance_scale=GUIDANCE, output_type="np")
    return model().trace(str(caption(scene)), seed=scene.seed, **options)


def drawn(scene: Scene) -> tuple[denoscope.Trace, np.ndarray] | None:
    """Record a scene's picture, and return it with the places of its objects, (64, 64).

    None if the picture does not show as many things as the scene has.
    """
    trace = picture_of(scene)
    masks = object_masks(trace.image)
    return (trace, masks.any(axis=0)) if len(masks) == len(scene.things) else None
