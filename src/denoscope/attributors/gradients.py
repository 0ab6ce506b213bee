"""Gradients of a score: Captum's Integrated Gradients and Gradient SHAP, in bounded memory."""

import math
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch

from ..criteria import CONVERGENCE_DELTA
from ..errors import InputError, shown_value
from ..recording.batches import Portions, portions_of
from ..recording.comparing import lacks_memory
from ..recording.hooks.checkpointing import ALL, SOME, block_by_block, counting_saved, weights_without_gradients, wide
from ..recording.memory import room_for_saved
from ..recording.steps import Step
from ..targets import Score, Target
from ..vision.frames import Frame, FrameGroup
from . import Needs
from .base import Advance, Attributor, StepResult, register
from .quadrature import POINTS, integrated

Baselines = float | torch.Tensor | Callable[[torch.Tensor], torch.Tensor]
"""A number, a tensor that broadcasts to the samples, or a function of the samples."""

CHUNK = {"cpu": 4}
"""Most samples through the score at once by device; on a CPU small batches are the fastest, and others take 32."""
SAVED_ON_CPU = 2**30
"""Bytes that autograd may save on a CPU before blocks are computed again; larger portions are no faster there."""
BYTES_OF_GRADIENT = 2**18
"""Estimated need of a gradient through denoiser and decoder, in bytes for each position and each byte of a number.

Measured: Stable Diffusion's decoder behind a denoiser of half its channels, with guidance, at 256 pixels in float32."""
TOGETHER = 4
"""Pictures that are attributed in one go; so many frames share the calls of the score."""


Chunk = TypeVar("Chunk")


def threads_for(step: Step | Frame) -> int:
    """Return how many chunks of samples to compute side by side: as many as torch has threads, for frames on a CPU.

    One thread a chunk uses a processor better than all threads on one chunk after the other. Through a denoiser it is
    one: hooks on the denoiser expect one call at a time.
    """
    alone = not isinstance(step, Frame) or step.images.device.type != "cpu"
    return 1 if alone else torch.get_num_threads()


def side_by_side(
    work: Callable[[torch.Tensor], Chunk], samples: torch.Tensor, portions: Portions, threads: int, advance: Advance
) -> Iterator[Chunk]:
    """Yield work(chunk) of every portion of samples, in order, `threads` at once with one torch thread each.

    Where memory runs out, the rest goes one after the other, in smaller portions.
    """
    chunks, start = torch.split(samples, portions.size), 0
    if threads > 1 and len(chunks) > 1 and not portions.warned:
        with ThreadPoolExecutor(threads, initializer=partial(torch.set_num_threads, 1)) as pool:
            results = pool.map(work, chunks)
            for chunk in chunks:
                try:
                    result = next(results)
                except Exception as error:
                    pool.shutdown(cancel_futures=True)
                    if not lacks_memory(error):
                        raise
                    break
                yield result
                start += len(chunk)
                advance(len(chunk))
    rest = samples[start:]
    for part, result in portions.over(len(rest), lambda part: work(rest[part]), samples.device):
        yield result
        advance(part.stop - part.start)


def black_and_itself(samples: torch.Tensor) -> torch.Tensor:
    """Return the study's baselines of Gradient SHAP: zero and the sample itself, (2 n, channels, h, w)."""
    return torch.cat([0 * samples, samples])


class ChunkedScore(torch.autograd.Function):
    """score(x) whose gradient is taken chunk by chunk along with it: no graph outlives its chunk.

    Each chunk costs one forward and one backward pass, whatever the number of samples asked for at once; a second
    forward pass where its blocks are computed twice.
    """

    @staticmethod
    def forward(
        ctx: Any, samples: torch.Tensor, score: Score, passes: "Passes", threads: int, advance: Advance
    ) -> torch.Tensor:
        def both(chunk: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            with torch.enable_grad(), passes.planned(chunk):
                x = chunk.clone().requires_grad_()
                y = score(x)
                gradient = _gradient(y, x)
            return y.detach(), gradient

        pairs = list(side_by_side(both, samples.detach(), passes.portions, threads, advance))
        scores, gradients = zip(*pairs, strict=True)
        ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(scores)

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradients,) = ctx.saved_tensors
        return outer[0].reshape(-1, *[1] * (gradients.ndim - 1)) * gradients, None, None, None, None


def _gradient(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return ∂Σy/∂x; raises `InputError` where scores do not depend on the samples by a graph."""
    try:
        gradient = torch.autograd.grad(y.sum(), x, allow_unused=True)[0] if y.requires_grad else None
    except RuntimeError as error:
        if "inplace operation" not in str(error):
            raise
        raise InputError(
            "The target's scores have no gradient with respect to the samples: on the way to them, in the pipeline or "
            "in the target, a tensor that the gradient needs is written over. Occlusion needs no gradient."
        ) from error
    if gradient is None:
        raise InputError(
            "The target's scores have no gradient with respect to the samples: somewhere they are detached, rounded, "
            "taken to NumPy or do not depend on the samples. Integrated gradients and Gradient SHAP need a "
            "differentiable target; occlusion does not."
        )
    return gradient


@dataclass(frozen=True, eq=False)
class Passes:
    """Gradients through a step's networks in portions that fit in memory.

    Weights have no gradients. What autograd saves is counted: where it is more than the memory that is planned, the
    pass is broken off and the portion is smaller (`recording.batches`). Where even one sample's is more, cheap blocks
    are computed again, and where that is not enough all (`block_by_block`). Of frames, whose one network is the
    classifier, nothing is counted. `size` is the number of the picture's pixels, 0 if it is not known.
    """

    portions: Portions
    networks: Sequence[torch.nn.Module] = ()
    denoisers: Sequence[torch.nn.Module] = ()
    size: int = 0

    @classmethod
    def through(cls, step: Step | Frame, samples: torch.Tensor, chosen: int | None) -> "Passes":
        """Return the passes for samples of a step; `chosen` is a person's own number of samples at once."""
        most = CHUNK.get(samples.device.type, 32)
        if isinstance(step, Frame):
            return cls(portions_of("frames", samples, chosen, lambda: (most, most)))

        def at_once() -> tuple[int, int]:
            planned, positions = _planned(samples.device, 1), math.prod(samples.shape[2:])
            each = BYTES_OF_GRADIENT * positions * samples.element_size()
            return most if planned is None else int(np.clip(planned // each, 1, most)), most

        portions = portions_of("gradient", samples, chosen, at_once, again=0)
        run = step.run
        if run is None:
            return cls(portions, step.networks, step.networks)
        denoisers = [run.resumption.modules[name] for name in run.resumption.denoisers]
        picture = run.decoding.picture
        return cls(portions, step.networks, denoisers, 0 if picture is None else math.prod(picture.shape[2:]))

    @contextmanager
    def planned(self, chunk: torch.Tensor) -> Iterator[None]:
        """Compute the gradient of a chunk inside; `TooMuchSaved` is raised where it needs more than is planned."""
        portions, number = self.portions, len(chunk)
        with weights_without_gradients(self.networks):
            if portions.again is None:
                yield
            elif portions.again == ALL:
                with block_by_block(self.networks):
                    yield
            elif portions.again == SOME:
                cheap = block_by_block(self.networks, self.denoisers, self.size)
                with counting_saved(self.networks, _planned(chunk.device, None)), cheap:
                    yield
            else:
                most = None if portions.is_chosen and number > 1 else _planned(chunk.device, number)
                with counting_saved(self.networks, most) as saved:
                    yield
                if portions.needed is None:
                    portions.fit(saved.bytes / number, _planned(chunk.device, number))


def _planned(device: torch.device, number: int | None) -> int | None:
    """Return the bytes that autograd may save for so many samples together; None if there is no bound.

    On a CPU no more than `SAVED_ON_CPU`, as long as no block is computed again, which is `number` None.
    """
    free = room_for_saved(device)
    bounds = [] if free is None else [free]
    if device.type == "cpu" and number is not None:
        bounds.append(SAVED_ON_CPU)
    return min(bounds, default=None)


def chunked(score: Score, passes: Passes, threads: int, advance: Advance) -> Score:
    """Return the score computed a portion of samples at a time in each of so many threads; differentiable."""

    def of(samples: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and samples.requires_grad:
            apply: Any = ChunkedScore.apply
            scores: torch.Tensor = apply(samples, score, passes, threads, advance)
            return scores
        portions = passes.portions
        return torch.cat(list(side_by_side(torch.no_grad()(score), samples, portions, threads, lambda done: None)))

    return of


def in_dtype(score: Score, dtype: torch.dtype) -> Score:
    """Return a score of samples in single precision at least, which go through the network in its own dtype.

    Sums of gradients, small steps between points and Gradient SHAP's noise would be rounded off in half precision.
    """
    return lambda samples: score(samples.to(dtype))


def samples_of(step: Step | Frame) -> torch.Tensor:
    """Return the samples that are explained, as maps.

    A frame's pictures (draws, 3, h, w), or x_t (1, channels, h, w), which is (1, channels, frames, h, w) for clips.
    """
    return step.images if isinstance(step, Frame) else step.as_maps(step.sample)


def by_position(attributions: torch.Tensor, step: Step | Frame) -> np.ndarray:
    """Return signed attributions summed over channels: ([frames,] h, w) of a step, or (draws, h, w) for a frame."""
    maps = attributions.detach().sum(dim=1).float().cpu().numpy()
    return maps if isinstance(step, Frame) else maps[0]


def baselines_for(baselines: Baselines, samples: torch.Tensor, several: bool = False) -> float | torch.Tensor:
    """Return baselines as a number, or as a tensor (k, channels, h, w) like the samples (n, channels, h, w).

    A tensor broadcasts to a sample, so that (channels, h, w) and (channels, 1, 1) will do; k is 1 or n, or any number
    if several are allowed. Raises `InputError` for another kind or shape.
    """
    values = baselines(samples) if callable(baselines) else baselines
    if isinstance(values, (int, float)) and not isinstance(values, bool):
        return values
    if not isinstance(values, torch.Tensor) or values.is_complex() or values.dtype == torch.bool:
        raise InputError(
            f"The baselines are {shown_value(values)}. Give a number, a tensor that broadcasts to the samples, such as "
            f"{tuple(samples.shape[1:])}, or a function of the samples that returns one of these."
        )
    values = values.detach().to(samples)
    count = len(values) if values.ndim == samples.ndim else 1
    try:
        whole = values.broadcast_to(count, *samples.shape[1:])
    except RuntimeError:
        whole = None
    if whole is None or not (several or count in (1, len(samples))):
        raise InputError(
            f"The baselines have the shape {tuple(values.shape)}, which does not broadcast to the samples, "
            f"{tuple(samples.shape)}. Give a number, or a tensor such as {tuple(samples.shape[1:])}."
        )
    return whole


class PictureAttributor(Attributor):
    """An attributor of a label that explains several frames in one go; a frame's variables have a first axis of draws.

    Its `target` is a score.
    """

    needs: ClassVar[Needs | None] = "label"

    signed = True

    def groups(self, steps: Sequence[Step | Frame]) -> list[Sequence[Step | Frame]]:
        first = steps[0]
        if not isinstance(first, Frame):
            return super().groups(steps)
        size = max(1, TOGETHER // len(first.images))
        return [steps[start : start + size] for start in range(0, len(steps), size)]

    def explain_group(self, steps: Sequence[Step | Frame], advance: Advance) -> list[StepResult]:
        frames = [step for step in steps if isinstance(step, Frame)]
        if len(steps) == 1 or len(frames) < len(steps):
            return super().explain_group(steps, advance)
        together = self.explain(FrameGroup.of(frames), advance)
        parts = {name: np.split(np.asarray(values), len(frames)) for name, values in together.items()}
        return [{name: part[i] for name, part in parts.items()} for i in range(len(frames))]


@dataclass(frozen=True)
class _Gradients(PictureAttributor):
    """The common part of Integrated Gradients and Gradient SHAP: the score in chunks, the map, the convergence delta.

    `internal_batch_size` samples go through the score at once; None chooses what is fastest.
    """

    target: Target
    internal_batch_size: int | None = field(default=None, kw_only=True)

    def explain(self, step: Step | Frame, advance: Advance) -> StepResult:
        samples = samples_of(step)
        passes = Passes.through(step, samples, self.internal_batch_size)
        score = chunked(self.target.at(step), passes, threads_for(step), advance)
        attributions, *numbers = self.attributed(in_dtype(score, samples.dtype), wide(samples))
        result: dict[str, np.ndarray | float] = {"saliency": by_position(attributions, step)}
        for name, of_samples in zip(("convergence_delta", "points_used"), numbers, strict=False):
            values = of_samples.detach().float().cpu().numpy()
            result[name] = values if isinstance(step, Frame) else float(values[0])
        if "points_used" in result:
            advance(self.work(step) - int(np.sum(result["points_used"])))
        return result

    @abstractmethod
    def attributed(self, score: Score, samples: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return attributions of the samples' shape, and numbers of each sample, (n,), as far as the method has them.

        They are the convergence delta, and behind it the number of points that were used.
        """


@register("integrated-gradients")
@dataclass(frozen=True)
class IntegratedGradients(_Gradients):
    """Integrated Gradients (Sundararajan, Taly, Yan 2017) of a score, by Captum, with its argument names.

    >>> maps = IntegratedGradients(ClassScore(classifier, "tiger"), n_steps=20)(frames)

    `saliency` is signed and adds up, over all positions, to score(sample) − score(baseline); `convergence_delta` is
    the sum's error. `baselines` is a number, a tensor that broadcasts to the samples or a function of them.
    `n_steps` None takes as many points as a sample needs, 11 to 191 (Fejér's second rule, whatever `method` says):
    until the convergence delta is at most `tolerance` of the score's change, and twice the points move the map by at
    most `tolerance` of its summed magnitude. `points_used` then has their number.
    `internal_batch_size` None chooses what is fastest. Raises `InputError` for options out of range, baselines of
    another kind or shape, and a target without gradients.
    """

    n_steps: int | None = 50
    method: str = "gausslegendre"
    baselines: Baselines = 0.0
    tolerance: float = CONVERGENCE_DELTA

    title = "Integrated Gradients"
    reading = (
        "Where the map is positive, the sample speaks for the class, seen from the baseline; where it is negative, "
        "against it. The map adds up to the score's difference between the two."
    )

    def __post_init__(self) -> None:
        if self.n_steps is not None and (not isinstance(self.n_steps, int) or self.n_steps < 2):
            raise InputError(
                f"n_steps is {self.n_steps!r}. Give a whole number of at least 2, 20 to 50 are usual, or None for as "
                "many as a map needs."
            )
        if not 0 < self.tolerance < 1:
            raise InputError(f"tolerance is {self.tolerance!r}. Give a share between 0 and 1, such as 0.1.")

    def work(self, step: Step | Frame) -> int:
        return (self.n_steps or POINTS[-1]) * len(samples_of(step))

    def attributed(self, score: Score, samples: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if self.n_steps is None:
            return integrated(score, samples, baselines_for(self.baselines, samples), self.tolerance)
        from captum import attr

        attributions, delta = attr.IntegratedGradients(score).attribute(
            samples,
            baselines=baselines_for(self.baselines, samples),
            n_steps=self.n_steps,
            method=self.method,
            return_convergence_delta=True,
        )
        return attributions, delta


@register("gradient-shap")
@dataclass(frozen=True)
class GradientShap(_Gradients):
    """Gradient SHAP (Lundberg and Lee 2017) of a score, by Captum, with its argument names.

    Gradients at random places between noisy copies of the sample and randomly chosen `baselines`, from a random stream
    of its own that starts at `seed`; each draw of a frame gets the same. `baselines` may be several, (k, channels, h,
    w). Raises `InputError` as `IntegratedGradients` does.
    """

    n_samples: int = 50
    stdevs: float = 1e-4
    baselines: Baselines = black_and_itself
    seed: int = 0

    title = "Gradient SHAP"
    reading = (
        "Where the map is positive, the sample speaks for the class, seen from the baselines; where it is negative, "
        "against it. A baseline that is the sample itself adds nothing and halves the map."
    )

    def __post_init__(self) -> None:
        if not isinstance(self.n_samples, int) or self.n_samples < 1:
            raise InputError(f"n_samples is {self.n_samples!r}. Give a whole number of at least 1; 50 are usual.")
        if not self.stdevs >= 0:
            raise InputError(f"stdevs is {self.stdevs!r}. Give a standard deviation of at least 0, such as 1e-4.")

    def work(self, step: Step | Frame) -> int:
        return self.n_samples * len(samples_of(step))

    def attributed(self, score: Score, samples: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return attributions one sample at a time, so that a draw's map is the same alone as among others."""
        return (torch.cat([self._one(score, sample[None]) for sample in samples]),)

    def _one(self, score: Score, sample: torch.Tensor) -> torch.Tensor:
        from captum import attr

        baselines = baselines_for(self.baselines, sample, several=True)
        if not isinstance(baselines, torch.Tensor):
            baselines = torch.full_like(sample, baselines)
        shap = attr.GradientShap(score)
        with seeded(self.seed):
            attributions: torch.Tensor = shap.attribute(sample, baselines, n_samples=self.n_samples, stdevs=self.stdevs)
        return attributions


_STREAMS = threading.RLock()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Start the global random streams that Captum draws from at a seed; afterwards they go on as before.

    The streams belong to the whole process, so one thread at a time may be inside.
    """
    with _STREAMS, torch.random.fork_rng():
        state = np.random.get_state()
        torch.manual_seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(state)
