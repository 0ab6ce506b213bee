"""LIME on the sample: which segments of the picture a step's next sample depends on, by a local linear model.

Sources: Ribeiro, Singh, Guestrin 2016, LIME; Park, Ju, Lee 2024 (arXiv 2402.10404), which compares DF-RISE with it;
segments by quickshift, Vedaldi and Soatto 2008.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from ..errors import InputError
from ..recording.batches import Portions, call_portions
from ..recording.steps import Step
from ..targets import trace_step
from ..vision.clips import is_clip
from ..vision.frames import Frame
from .base import Advance, Attributor, StepResult, register

EXTRA = 'pip install "denoscope[lime]"'
PUBLISHED_GRID = 64
"""The side of the samples for which the published kernel of quickshift, 4 cells, was chosen."""

LEVEL = 1 / 255
"""The smallest difference of colours: on a constant picture quickshift finds segments in rounding errors."""


@dataclass(frozen=True, eq=False)
class RidgeSums:
    """Weighted sums over samples, enough for a linear model of many outputs, whatever the number of samples.

    With z = (1, mask), `gram` = Σ w z zᵀ, `cross` = Σ w z yᵀ, (1 + segments, outputs), and `square` = Σ w y².
    """

    gram: np.ndarray
    cross: np.ndarray
    square: np.ndarray

    @classmethod
    def zero(cls, segments: int, outputs: int) -> "RidgeSums":
        width = 1 + segments
        return cls(np.zeros((width, width)), np.zeros((width, outputs)), np.zeros(outputs))

    def with_samples(self, masks: np.ndarray, values: np.ndarray, weights: np.ndarray) -> "RidgeSums":
        """Return the sums with masks (n, segments), values (n, outputs) and weights (n,) added."""
        z, w = np.insert(masks.astype(float), 0, 1, axis=1), weights[:, None]
        return RidgeSums(
            self.gram + z.T @ (w * z),
            self.cross + z.T @ (w * values),
            self.square + (w * values**2).sum(axis=0),
        )

    def coefficients(self, alpha: float) -> np.ndarray:
        """Return intercept and coefficients, (1 + segments, outputs): min Σ w ‖y − zᵀβ‖² + α ‖β‖², intercept free."""
        penalty = alpha * np.eye(len(self.gram))
        penalty[0, 0] = 0
        return np.linalg.solve(self.gram + penalty, self.cross)

    def explained(self, beta: np.ndarray) -> float:
        """Return R², the share of the weighted variance over all outputs that the model explains; NaN without any."""
        rest = self.square - 2 * (beta * self.cross).sum(axis=0) + (beta * (self.gram @ beta)).sum(axis=0)
        total = self.square - self.cross[0] ** 2 / self.gram[0, 0]
        return float(1 - rest.sum() / total.sum()) if total.sum() > 1e-12 * self.square.sum() else float("nan")


ALLOWED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "num_samples": (lambda n: isinstance(n, int) and n >= 2, "a whole number of at least 2; 1000 are usual"),
    "kernel_size": (lambda size: size is None or size >= 1, "at least 1, in cells of the sample's grid"),
    "max_dist": (lambda distance: distance > 0, "a distance above 0; 200 is the published one"),
    "ratio": (lambda ratio: 0 <= ratio <= 1, "a number from 0 (place alone) to 1 (colour as much)"),
    "alpha": (lambda alpha: alpha > 0, "a number above 0; 1 is usual"),
    "kernel_width": (lambda width: width > 0, "a cosine distance above 0; 0.25 is usual"),
    "batch_size": (lambda size: size is None or size >= 1, "at least 1, or leave it out to have it chosen"),
}
"""The options of LIME: a test of the value, and the values that it lets pass."""


@register("lime")
@dataclass(frozen=True)
class Lime(Attributor):
    """LIME: switch segments of the sample off at random and fit a linear model of the next sample to what is on.

    >>> maps = Lime(num_samples=1000)(trace, steps=[2, 8, 16])   # doctest: +SKIP

    Segments are quickshift's (`kernel_size`, `max_dist`, `ratio`) on the decoded x_{t−1}, averaged down to the sample's
    grid; None for the kernel is the published 4 cells of a grid of 64, scaled to other grids, at least 1. Each segment
    is on with probability ½, off is 0. The model is a ridge regression (`alpha`) of the channel mean of x_{t−1} at
    every position, computed by `Step.next_sample`, with weights √exp(−d² / `kernel_width`²), d the cosine distance of
    what is on to all being on. `seed` is the masks' own stream. Masks that come several times cost one denoiser call;
    `batch_size` changes speed and memory only.

    Variables: `saliency` (step, y, x), Σ |coefficient| over the positions of x_{t−1} for the segment at each position;
    `segment` (step, y, x), its number; `r_squared` (step), how much of what happened the linear model explains.
    A clip has the segments of the mean of its frames, each the same place in all of them: its maps, with a dim
    `frame`, are the same in every frame.
    A picture that is one segment, a constant one for instance, gives a flat map and a warning. Raises `InputError` for
    options out of range, and where scikit-image is missing.
    """

    num_samples: int = 1000
    kernel_size: float | None = None
    max_dist: float = 200
    ratio: float = 0.2
    alpha: float = 1.0
    kernel_width: float = 0.25
    seed: int = 0
    batch_size: int | None = None

    title = "LIME"
    reading = (
        "High where switching a segment of the sample off changes the next sample, anywhere in it. A segment has one "
        "value, summed over the whole of the next sample, so large segments tend to have large ones; r_squared says "
        "how far a sum of segments describes the step at all."
    )

    def __post_init__(self) -> None:
        if find_spec("skimage") is None:
            raise InputError(f"LIME needs scikit-image for its segments, and it is not installed. Install it: {EXTRA}.")
        for name, (is_right, text) in ALLOWED.items():
            value = getattr(self, name)
            if not is_right(value):
                raise InputError(f"{name} of LIME is {value!r}. Give {text}.")

    def work(self, step: Step | Frame) -> int:
        return self.num_samples

    @torch.no_grad()
    def explain(self, step: Step | Frame, advance: Advance) -> StepResult:
        step = trace_step(step)
        segments = self.segments(step)
        masks, times = self._drawn(1 + int(segments.max()))
        sums = RidgeSums.zero(masks.shape[1], step.layout.positions)
        weights = times * proximity(masks, self.kernel_width)
        portions, device = self._portions(step), step.sample.device
        for part, means in portions.over(len(masks), lambda part: next_means(step, masks[part][:, segments]), device):
            sums = sums.with_samples(masks[part], means, weights[part])
            advance(int(times[part].sum()))
        beta = sums.coefficients(self.alpha)
        saliency = np.abs(beta[1:]).sum(axis=1)[segments].astype(np.float32)
        maps = {"saliency": saliency, "segment": segments}
        in_every_frame = {name: np.broadcast_to(values, step.layout.shape) for name, values in maps.items()}
        return {**in_every_frame, "r_squared": sums.explained(beta)}

    def segments(self, step: Step) -> np.ndarray:
        """Return the number of the segment at each position of the sample's grid, (h, w), counted from 0."""
        from skimage import segmentation

        quickshift: Any = segmentation.quickshift
        height, width = step.grid
        decoded = step.decode(step.prev_sample)
        decoded = decoded.mean(dim=2) if is_clip(decoded) else decoded
        picture = torch.nn.functional.adaptive_avg_pool2d(decoded, (height, width))
        colours = picture[0].detach().movedim(0, -1).double().cpu().numpy()
        size = self.kernel_size or max(1.0, 4 * min(height, width) / PUBLISHED_GRID)
        if np.ptp(colours, axis=(0, 1)).max() < LEVEL:
            labels = np.zeros((height, width), int)
        else:
            labels = quickshift(colours, kernel_size=size, max_dist=self.max_dist, ratio=self.ratio)
        names, segments = np.unique(labels, return_inverse=True)
        if len(names) == 1:
            warnings.warn(
                f"LIME cannot tell places apart at step {step.index}: the picture is one segment there, so the map is "
                f"flat. Its colours are too much alike, at a kernel_size of {size:g} on a grid of {height} × {width}. "
                "Give a smaller one (at least 1), or explain a step where there is something to see.",
                stacklevel=2,
            )
        return segments.reshape(height, width)

    def _drawn(self, segments: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the different masks (n, segments) among the random ones, and how often each came."""
        drawn = np.random.default_rng([self.seed, segments]).random((self.num_samples, segments)) < 0.5
        return np.unique(drawn, axis=0, return_counts=True)

    def _portions(self, step: Step) -> Portions:
        """Return how many samples go into a call."""
        return call_portions(step.as_maps(step.sample), self.batch_size)


def proximity(masks: np.ndarray, width: float) -> np.ndarray:
    """Return √exp(−d² / width²) of masks (n, segments), d = 1 − cos(mask, all on); with nothing on, d is 1.

    >>> proximity(np.array([[1, 1], [1, 0], [0, 0]]), 0.25).round(3)
    array([1.   , 0.503, 0.   ])
    """
    cosine = np.sqrt(masks.mean(axis=1))  # k of n on: k / (√k √n)
    weights: np.ndarray = np.sqrt(np.exp(-((1 - cosine) ** 2) / width**2))
    return weights


def next_means(step: Step, masks: np.ndarray) -> np.ndarray:
    """Return the channel mean of x_{t−1}, (n, positions), for the sample under masks (n, h, w), in every frame."""
    sample = step.as_maps(step.sample)
    M = torch.from_numpy(masks).to(sample).reshape(len(masks), *[1] * (sample.ndim - 3), *masks.shape[1:])
    following = step.as_maps(step.next_sample(step.as_samples(sample * M)))
    return following.mean(dim=1).flatten(1).cpu().double().numpy()
