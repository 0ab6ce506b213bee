"""Recorded pictures of the shapes world, drawn as their scenes say, with the masks of their objects."""

import functools

import numpy as np
import torch

import denoscope
from denoscope.worlds.shapes.judge import object_masks
from denoscope.worlds.shapes.scenes import Scene, caption

STEPS = 30
GUIDANCE = 3.0


@functools.cache
def model() -> denoscope.Model:
    torch.set_num_threads(1)
    loaded = denoscope.load("shapes")
    loaded.pipeline.set_progress_bar_config(disable=True)
    return loaded


def picture_of(scene: Scene) -> denoscope.Trace:
    """The trace of a scene's picture, from its caption and the scene's own seed."""
    options = dict(num_inference_steps=STEPS, guidance_scale=GUIDANCE, output_type="np")
    return model().trace(str(caption(scene)), seed=scene.seed, **options)


def drawn(scene: Scene) -> tuple[denoscope.Trace, np.ndarray] | None:
    """The trace of a scene's picture, and where in it the objects are, (64, 64).

    None where the picture does not show as many things as the scene has.
    """
    trace = picture_of(scene)
    masks = object_masks(trace.image)
    return (trace, masks.any(axis=0)) if len(masks) == len(scene.things) else None
