"""Targets: a score, or a map of scores, for each perturbed sample of a step.

A target is a frozen dataclass with one method, `at(step)`, that returns a function from samples to scores (n,) or
(n, h, w). Samples are maps, (n, channels, h, w), whatever shape the pipeline's own have (`Step.as_maps`); those of
clips are (n, channels, frames, h, w), and their maps of scores (n, frames, h, w). Values of the unperturbed step alone
are computed in `at`, once a step.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch

from .errors import InputError, did_you_mean
from .recording.steps import Step
from .vision.classifiers import Classifier
from .vision.clips import averaged_to, by_frame
from .vision.encoders import Features
from .vision.frames import Frame
from .vision.similarity import SIMILARITIES, LocalMoments, structure

Score = Callable[[torch.Tensor], torch.Tensor]
"""Samples as maps (n, channels, [frames,] h, w) to scores (n,) or (n, [frames,] h, w)."""
Judge = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Samples and their model outputs, both as maps, to scores."""


class Target(ABC):
    """`target(step, samples)` scores samples (n, channels, [frames,] h, w) of a step as (n,) or (n, [frames,] h, w)."""

    @abstractmethod
    def at(self, step: Step | Frame) -> Score:
        """Return the scoring function for one step."""

    def near(self, step: Step | Frame) -> Score | None:
        """Return a faster function with the same scores, for samples that each differ from the step's in one place.

        It has no gradients. None if the target has no faster way.
        """
        return None

    def networks(self) -> Sequence[torch.nn.Module]:
        """Return the networks, besides the denoiser, that scoring calls."""
        return ()

    def __call__(self, step: Step | Frame, samples: torch.Tensor) -> torch.Tensor:
        return self.at(step)(samples)


class PredictionTarget(Target):
    """A target that scores a sample by the denoiser's prediction for it, so that several can share one prediction."""

    @abstractmethod
    def of(self, step: Step) -> Judge:
        """Return the function from samples and model outputs, (n, channels, [frames,] h, w) both, to scores."""

    def at(self, step: Step | Frame) -> Score:
        denoising = trace_step(step)
        judge = self.of(denoising)
        return lambda samples: judge(samples, denoising.as_maps(denoising.predict(denoising.as_samples(samples))))


def trace_step(step: Step | Frame) -> Step:
    """Return a step of a trace as it is; raises `InputError` for a frame, which no denoiser can be asked about."""
    if isinstance(step, Frame):
        raise InputError(
            "Frames were given to a question about the denoiser, which a picture alone does not have. Give a trace: "
            "model.trace(...). Frames are explained by integrated gradients, Gradient SHAP and occlusion of a class."
        )
    return step


SPACES: dict[str, Callable[[Step, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "noise": lambda step, samples, outputs: step.level.noise(samples, outputs),
    "clean": lambda step, samples, outputs: step.level.original(samples, outputs),
    "output": lambda step, samples, outputs: outputs,
    "image": lambda step, samples, outputs: step.decode(step.as_samples(step.level.original(samples, outputs))),
}
"""Spaces in which predictions are compared: noise, clean sample, the raw output, and the decoded clean prediction."""


def _in_space(space: str, step: Step, samples: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
    return SPACES[space](step, _wide(samples), _wide(outputs))


def _recorded(space: str, step: Step) -> torch.Tensor:
    """Return the unperturbed prediction from the recording, without a denoiser call."""
    return _in_space(space, step, step.as_maps(step.sample), step.as_maps(step.model_output))


def _wide(values: torch.Tensor) -> torch.Tensor:
    """Return values in float32 at least: local variances of half precision are rounding errors."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


@dataclass(frozen=True)
class Similarity(PredictionTarget):
    """Likeness of the prediction for a sample to the unperturbed one: maps (n, [frames,] h, w) in about [−1, 1].

    Source: Park, Ju, Lee 2024, section on DF-RISE; `similarity` is the ablation of their figure 5. `space` is where
    predictions are compared ("noise", "clean", "output" or "image"). `next_sample=True` compares with x_{t−1} and
    `numerator=2` doubles the covariance, both as the published code does. `scalar=True` averages each map to a number.
    Every frame of a clip is compared with its own counterpart. Raises `InputError` for an unknown similarity or space.
    """

    similarity: str = "structure"
    space: str = "noise"
    next_sample: bool = False
    numerator: float = 1.0
    scalar: bool = False

    def __post_init__(self) -> None:
        _check_name("similarity", self.similarity, SIMILARITIES)
        _check_name("space", self.space, SPACES)

    def of(self, step: Step) -> Judge:
        reference = step.as_maps(step.prev_sample) if self.next_sample else _recorded(self.space, step)
        unperturbed, shape = LocalMoments.of(reference), step.layout.shape

        def judge(samples: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
            perturbed = LocalMoments.of(_in_space(self.space, step, samples, outputs))
            maps = self._compared(unperturbed, perturbed).mean(dim=1)
            return maps.mean(dim=_behind_first(maps)) if self.scalar else averaged_to(maps, shape)

        return judge

    def _compared(self, unperturbed: LocalMoments, perturbed: LocalMoments) -> torch.Tensor:
        if self.similarity == "structure":
            return structure(unperturbed, perturbed, self.numerator)
        return SIMILARITIES[self.similarity](unperturbed, perturbed)


def _check_name(kind: str, name: str, allowed: Collection[str]) -> None:
    if name not in allowed:
        raise InputError(f'There is no {kind} "{name}". {did_you_mean(name, allowed)}')


def _behind_first(values: torch.Tensor) -> tuple[int, ...]:
    """Return all dims but the first."""
    return tuple(range(1, values.ndim))


@dataclass(frozen=True)
class Closeness(PredictionTarget):
    """Minus the mean squared change of the prediction, one number a sample, (n,), at most 0."""

    space: str = "clean"

    def of(self, step: Step) -> Judge:
        unperturbed = _recorded(self.space, step)

        def judge(samples: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
            change = _in_space(self.space, step, samples, outputs) - unperturbed
            return -change.square().mean(dim=_behind_first(change))

        return judge


@dataclass(frozen=True)
class FeatureCloseness(PredictionTarget):
    """Minus the squared distance of image features of the decoded clean predictions, (n,), at most 0.

    `encoder` maps pictures (n, 3, height, width) in [0, 1] to features (n, d): any function, or
    `denoscope.vision.encoders.load_encoder`. Of a clip it is the mean over frames.
    """

    encoder: Features

    def of(self, step: Step) -> Judge:
        unperturbed = by_frame(self.encoder, _recorded("image", step))

        def judge(samples: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
            change = by_frame(self.encoder, _in_space("image", step, samples, outputs)) - unperturbed
            distances = change.square().sum(dim=-1)
            return -(distances if distances.ndim == 1 else distances.mean(dim=1))

        return judge

    def networks(self) -> Sequence[torch.nn.Module]:
        return (self.encoder,) if isinstance(self.encoder, torch.nn.Module) else ()


@dataclass(frozen=True)
class ClassScore(Target):
    """A classifier's score of one label, (n,): its logit, the score before softmax, as Captum explains it.

    Of a frame, the samples (n, 3, h, w) are the classifier's inputs. Of a step of a trace, they are samples x_t, and
    the classifier's input is the clean picture that the denoiser predicts from them: the score goes **through the
    denoiser**. A clip has the mean of its frames' scores. Raises `InputError` for a label that the classifier does not
    have.
    """

    classifier: Classifier
    label: str | int

    def __post_init__(self) -> None:
        self.classifier.index(self.label)

    def at(self, step: Step | Frame) -> Score:
        index, classifier = self.classifier.index(self.label), self.classifier
        if isinstance(step, Step):
            return lambda samples: self._of_clean(step.clean(step.as_samples(samples)), index)
        if step.space == "image":
            return lambda samples: classifier(classifier.normalise(samples))[:, index]
        return lambda samples: classifier(samples)[:, index]

    def _of_clean(self, pictures: torch.Tensor, index: int) -> torch.Tensor:
        scores = by_frame(lambda each: self.classifier(self.classifier.normalise(each))[:, index], pictures)
        return scores if scores.ndim == 1 else scores.mean(dim=1)

    def near(self, step: Step | Frame) -> Score | None:
        if isinstance(step, Step) or step.space == "image":
            return None
        logits, index = self.classifier.near(step.images), self.classifier.index(self.label)
        if logits is None:
            return None
        return lambda samples: logits(samples)[:, index]

    def networks(self) -> Sequence[torch.nn.Module]:
        return (self.classifier.module,)
