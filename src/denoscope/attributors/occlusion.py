"""Captum's Occlusion of a score: what covering a place does to it."""

import math
from dataclasses import dataclass

import torch

from ..errors import InputError
from ..recording.batches import Portions, call_portions, portions_of
from ..recording.steps import Step
from ..targets import Target
from ..vision.frames import Frame
from .base import Advance, StepResult, register
from .gradients import (
    CHUNK,
    Baselines,
    PictureAttributor,
    baselines_for,
    by_position,
    samples_of,
    side_by_side,
    threads_for,
)

WINDOWS_A_SIDE = 15
"""The number of windows beside each other by default: 15 pixels of 224, as in the study, and one cell of 16."""
SIDES = {3: "channels, height and width", 4: "channels, frames, height and width"}
"""The sides of a window, by their number: for pictures, and for clips."""
NEAR = 16
"""Covered samples at once through a score that computes only what a window changes."""
EVALUATED = 32
"""Covered samples that Captum makes at once where chunks of them are computed side by side."""


@register("occlusion")
@dataclass(frozen=True)
class Occlusion(PictureAttributor):
    """The fall of a score when a window of the sample is covered (Zeiler and Fergus 2014), by Captum.

    >>> maps = Occlusion(ClassScore(classifier, "tiger"), (3, 15, 15), (3, 8, 8))(frames)

    Captum's argument names. Windows and strides are (channels, height, width) in the samples' cells, and (channels,
    frames, height, width) for clips; None chooses all channels, a fifteenth of each side, and half of that as the
    stride. `saliency` is signed: a position has the mean
    fall of the windows that cover it, which Captum gives to each of a window's channels. `baselines` covers: a number,
    a tensor that broadcasts to the samples or a function of them. `perturbations_per_eval` None chooses what is
    fastest. Raises `InputError` for windows, strides and baselines that do not fit.
    """

    target: Target
    sliding_window_shapes: tuple[int, ...] | None = None
    strides: tuple[int, ...] | None = None
    baselines: Baselines = 0.0
    perturbations_per_eval: int | None = None

    title = "Occlusion"
    reading = (
        "Where the map is positive, covering the place lowers the score of the class: the place speaks for it. "
        "Where it is negative, covering the place helps the class."
    )

    def __post_init__(self) -> None:
        for name in ("sliding_window_shapes", "strides"):
            sides = getattr(self, name)
            if sides is not None and (len(sides) not in SIDES or any(not isinstance(n, int) or n < 1 for n in sides)):
                raise InputError(f"{name} is {sides!r}. Give channels, height and width, such as (3, 15, 15).")

    def windows(self, shape: torch.Size) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the window and the strides for samples of a shape (n, channels, [frames,] h, w)."""
        sides = [max(1, round(side / WINDOWS_A_SIDE)) for side in shape[2:]]
        window = self.sliding_window_shapes or (shape[1], *sides)
        for name, given in (("sliding_window_shapes", window), ("strides", self.strides)):
            if given is not None and len(given) != len(shape) - 1:
                wanted = SIDES[len(shape) - 1]
                raise InputError(f"{name} is {given!r}, and the samples are {tuple(shape[1:])}. Give {wanted}.")
        if any(part > whole for part, whole in zip(window, shape[1:], strict=True)):
            raise InputError(f"The window {window} is larger than the samples, {tuple(shape[1:])}. Give a smaller one.")
        strides = self.strides or (shape[1], *[math.ceil(side / 2) for side in window[1:]])
        if any(far > side for far, side in zip(strides, window, strict=True)):
            raise InputError(
                f"The strides {strides} are larger than the window {window}, so parts would never be covered. Give "
                "strides of at most the window's size."
            )
        return window, strides

    def work(self, step: Step | Frame) -> int:
        shape = samples_of(step).shape
        window, strides = self.windows(shape)
        places = [1 + math.ceil((s - w) / d) for s, w, d in zip(shape[1:], window, strides, strict=True)]
        return shape[0] * (1 + math.prod(places))

    def _portions(self, step: Step | Frame, samples: torch.Tensor, most: int, chosen: int | None) -> Portions:
        """Return how many covered samples go through the score at once."""
        if isinstance(step, Frame):
            return portions_of("occlusion", samples, chosen, lambda: (most, most))
        return call_portions(samples, chosen, "occlusion", most=most)

    @torch.no_grad()
    def explain(self, step: Step | Frame, advance: Advance) -> StepResult:
        from captum import attr

        samples, threads = samples_of(step), threads_for(step)
        window, strides = self.windows(samples.shape)
        near = self.target.near(step)
        score, chunk = (near, NEAR) if near else (self.target.at(step), CHUNK.get(samples.device.type, 32))
        windows_a_chunk = max(1, chunk // len(samples))
        chosen = None if self.perturbations_per_eval is None else len(samples) * self.perturbations_per_eval
        portions = self._portions(step, samples, len(samples) * windows_a_chunk, chosen)
        evaluated = 1 if threads == 1 else EVALUATED
        together = max(windows_a_chunk, evaluated // len(samples))

        def counted(covered: torch.Tensor) -> torch.Tensor:
            return torch.cat(list(side_by_side(torch.no_grad()(score), covered, portions, threads, advance)))

        attributions = attr.Occlusion(counted).attribute(
            samples,
            sliding_window_shapes=window,
            strides=strides,
            baselines=baselines_for(self.baselines, samples),
            perturbations_per_eval=self.perturbations_per_eval or together,
        )
        return {"saliency": by_position(attributions, step) / window[0]}
