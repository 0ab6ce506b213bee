"""Where, by gradients: Captum's Integrated Gradients and Gradient SHAP of a score, in bounded memory."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch

from ..errors import InputError
from ..recording.traces import Step
from ..targets import Score, Target
from ..vision.frames import Frame, FrameGroup
from .base import Advance, Attributor, Found

Baselines = float | torch.Tensor | Callable[[torch.Tensor], torch.Tensor]
"""A number, a tensor that broadcasts to the samples, or a function of the samples."""

CHUNK = {"cpu": 4}
"""Samples through the score at once by device; on a CPU small batches are the fastest, and others take 32."""
TOGETHER = 4
"""Pictures that are attributed in one go; so many frames share the calls of the score."""


Result = TypeVar("Result")


def threads_for(step: Step | Frame) -> int:
    """How many chunks of samples are computed side by side: as many as torch has threads, for frames on a CPU.

    One thread a chunk uses a processor better than all threads on one chunk after the other. Through a denoiser it is
    one: what listens to its calls expects one at a time.
    """
    alone = not isinstance(step, Frame) or step.images.device.type != "cpu"
    return 1 if alone else torch.get_num_threads()


def side_by_side(
    work: Callable[[torch.Tensor], Result], samples: torch.Tensor, size: int, threads: int, advance: Advance
) -> Iterator[Result]:
    """work(chunk) of every chunk of `size` samples, in their order, `threads` at once with one torch thread each."""
    chunks = samples.split(size)
    if threads == 1 or len(chunks) == 1:
        for chunk in chunks:
            yield work(chunk)
            advance(len(chunk))
        return
    with ThreadPoolExecutor(threads, initializer=partial(torch.set_num_threads, 1)) as pool:
        for chunk, found in zip(chunks, pool.map(work, chunks), strict=True):
            yield found
            advance(len(chunk))


def black_and_itself(samples: torch.Tensor) -> torch.Tensor:
    """The study's baselines of Gradient SHAP: zero and the sample itself, (2 n, channels, h, w)."""
    return torch.cat([0 * samples, samples])


class ChunkedScore(torch.autograd.Function):
    """score(x) whose gradient is taken chunk by chunk along with it: no graph outlives its chunk.

    Each chunk costs one forward and one backward pass, whatever the number of samples asked for at once.
    """

    @staticmethod
    def forward(
        ctx: Any, samples: torch.Tensor, score: Score, size: int, threads: int, advance: Advance
    ) -> torch.Tensor:
        def both(chunk: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            with torch.enable_grad():
                x = chunk.clone().requires_grad_()
                y = score(x)
                (gradient,) = torch.autograd.grad(y.sum(), x)
            return y.detach(), gradient

        found = list(side_by_side(both, samples.detach(), size, threads, advance))
        scores, gradients = zip(*found, strict=True)
        ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(scores)

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradients,) = ctx.saved_tensors
        return outer[0].reshape(-1, *[1] * (gradients.ndim - 1)) * gradients, None, None, None, None


def chunked(score: Score, size: int, threads: int, advance: Advance) -> Score:
    """The same score for any number of samples, `size` at a time in each of so many threads; differentiable."""

    def of(samples: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and samples.requires_grad:
            return ChunkedScore.apply(samples, score, size, threads, advance)
        return torch.cat(list(side_by_side(torch.no_grad()(score), samples, size, threads, lambda done: None)))

    return of


def samples_of(step: Step | Frame) -> torch.Tensor:
    """What is explained of a step: a frame's pictures (draws, 3, h, w), or the sample x_t (1, channels, h, w)."""
    return step.images if isinstance(step, Frame) else step.sample


def by_position(attributions: torch.Tensor, step: Step | Frame) -> np.ndarray:
    """Signed attributions (n, channels, h, w) summed over channels: (h, w), or (draws, h, w) for a frame."""
    maps = attributions.detach().sum(dim=1).float().cpu().numpy()
    return maps if isinstance(step, Frame) else maps[0]


class PictureAttributor(Attributor):
    """An attributor that explains several frames in one go; what it finds of a frame has the draws as first axis."""

    signed = True

    def groups(self, steps: Sequence[Any]) -> list[Sequence[Any]]:
        if not isinstance(steps[0], Frame):
            return super().groups(steps)
        size = max(1, TOGETHER // len(steps[0].images))
        return [steps[start : start + size] for start in range(0, len(steps), size)]

    def explain_group(self, steps: Sequence[Any], advance: Advance) -> list[Found]:
        if len(steps) == 1:
            return super().explain_group(steps, advance)
        found = self.explain(FrameGroup.of(steps), advance)
        parts = {name: np.split(np.asarray(values), len(steps)) for name, values in found.items()}
        return [{name: part[i] for name, part in parts.items()} for i in range(len(steps))]


@dataclass(frozen=True)
class _Gradients(PictureAttributor):
    """What Integrated Gradients and Gradient SHAP share: the score in chunks, the map, the convergence delta."""

    target: Target

    def explain(self, step: Step | Frame, advance: Advance) -> Mapping[str, np.ndarray | float]:
        samples = samples_of(step)
        size = self.internal_batch_size or CHUNK.get(samples.device.type, 32)
        score = chunked(self.target.at(step), size, threads_for(step), advance)
        attributions, *delta = self.attributed(score, samples)
        found: dict[str, np.ndarray | float] = {"saliency": by_position(attributions, step)}
        if delta:
            values = delta[0].detach().float().cpu().numpy()
            found["convergence_delta"] = values if isinstance(step, Frame) else float(values[0])
        return found

    @property
    @abstractmethod
    def internal_batch_size(self) -> int | None: ...

    @abstractmethod
    def attributed(self, score: Score, samples: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Attributions of the samples' shape; behind them, where there is one, each sample's convergence delta."""


def _resolved(baselines: Baselines, samples: torch.Tensor) -> Any:
    return baselines(samples) if callable(baselines) else baselines


@dataclass(frozen=True)
class IntegratedGradients(_Gradients):
    """Integrated Gradients (Sundararajan, Taly, Yan 2017) of a score, by Captum, with its argument names.

    >>> maps = IntegratedGradients(ClassScore(classifier, "tiger"), n_steps=20)(frames)   # doctest: +SKIP

    `saliency` is signed and adds up, over all positions, to score(sample) − score(baseline); `convergence_delta` is
    what is missing from that. `internal_batch_size` None chooses what is fastest.
    """

    n_steps: int = 50
    method: str = "gausslegendre"
    baselines: Baselines = 0.0
    internal_batch_size: int | None = None

    title = "Integrated Gradients"
    reading = (
        "Where the map is positive, the sample speaks for the class, seen from the baseline; where it is negative, "
        "against it. The map adds up to the score's difference between the two."
    )

    def __post_init__(self) -> None:
        if not isinstance(self.n_steps, int) or self.n_steps < 2:
            raise InputError(f"n_steps is {self.n_steps!r}. Give a whole number of at least 2; 20 to 50 are usual.")

    def work(self, step: Step | Frame) -> int:
        return self.n_steps * len(samples_of(step))

    def attributed(self, score: Score, samples: torch.Tensor) -> tuple[torch.Tensor, ...]:
        from captum import attr

        return attr.IntegratedGradients(score).attribute(
            samples,
            baselines=_resolved(self.baselines, samples),
            n_steps=self.n_steps,
            method=self.method,
            return_convergence_delta=True,
        )


@dataclass(frozen=True)
class GradientShap(_Gradients):
    """Gradient SHAP (Lundberg and Lee 2017) of a score, by Captum, with its argument names.

    Gradients at random places between noisy copies of the sample and randomly chosen `baselines`, from a random stream
    of its own that starts at `seed`; each draw of a frame gets the same.
    """

    n_samples: int = 50
    stdevs: float = 1e-4
    baselines: Baselines = black_and_itself
    seed: int = 0
    internal_batch_size: int | None = None

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
        """One sample at a time, so that a draw's map is the same alone as among others."""
        return (torch.cat([self._one(score, sample[None]) for sample in samples]),)

    def _one(self, score: Score, sample: torch.Tensor) -> torch.Tensor:
        from captum import attr

        baselines = _resolved(self.baselines, sample)
        if not isinstance(baselines, torch.Tensor):
            baselines = torch.full_like(sample, baselines)
        with seeded(self.seed):
            return attr.GradientShap(score).attribute(sample, baselines, n_samples=self.n_samples, stdevs=self.stdevs)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """While open, the global random streams that Captum draws from start at a seed; afterwards they go on as before."""
    state = np.random.get_state()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(state)
