"""What is explained: a score, or a map of scores, for each perturbed sample of a step.

A target is a frozen dataclass with one method, `at(step)`, that returns a function from samples (n, channels, h, w)
to scores (n,) or (n, h, w). What depends on the unperturbed step alone is computed there, once a step."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .errors import InputError, did_you_mean
from .recording.traces import Step
from .vision.classifiers import Classifier
from .vision.encoders import Features
from .vision.frames import Frame
from .vision.similarity import SIMILARITIES, LocalMoments, structure

Score = Callable[[torch.Tensor], torch.Tensor]
Judge = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Target(ABC):
    """`target(step, samples)` scores samples (n, channels, h, w) of a step as (n,) or (n, h, w)."""

    @abstractmethod
    def at(self, step: Any) -> Score:
        """The scoring function for one step."""

    def near(self, step: Any) -> Score | None:
        """The same scores, sooner, of samples that are in turn like the step's own but for a place in each.

        Without gradients. None where the target knows no sooner way.
        """
        return None

    def __call__(self, step: Step, samples: torch.Tensor) -> torch.Tensor:
        return self.at(step)(samples)


class PredictionTarget(Target):
    """A target that knows of a sample only what the denoiser says of it, so that several can judge one prediction."""

    @abstractmethod
    def of(self, step: Step) -> Judge:
        """The function from samples (n, channels, h, w) and their model outputs to scores, for one step."""

    def at(self, step: Step) -> Score:
        judge = self.of(step)
        return lambda samples: judge(samples, step.predict(samples))


# Where two samples are compared: the step and samples in, what the model says of them out.

SPACES: dict[str, Callable[[Step, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "noise": lambda step, samples, outputs: step.level.noise(samples, outputs),
    "clean": lambda step, samples, outputs: step.level.original(samples, outputs),
    "output": lambda step, samples, outputs: outputs,
    "image": lambda step, samples, outputs: step.decoder.decode(step.level.original(samples, outputs)),
}
"""Noise prediction, clean prediction (in the samples' space), the raw output, and the decoded clean prediction."""


def _in_space(space: str, step: Step, samples: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
    return SPACES[space](step, _wide(samples), _wide(outputs))


def _recorded(space: str, step: Step) -> torch.Tensor:
    """The unperturbed prediction, taken from the recording: no denoiser call."""
    return _in_space(space, step, step.sample, step.model_output)


def _wide(values: torch.Tensor) -> torch.Tensor:
    """In float32 at least: local variances of half precision are rounding errors."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


@dataclass(frozen=True)
class Similarity(PredictionTarget):
    """How much the prediction for a sample looks like the unperturbed one: maps (n, h, w) in about [−1, 1].

    Source: Park, Ju, Lee 2024, section on DF-RISE; `similarity` is the ablation of their figure 5. `space` says where
    predictions are compared ("noise", "clean", "output" or "image"). `next_sample=True` compares with x_{t−1} and
    `numerator=2` doubles the covariance, both as the published code does. `scalar=True` averages each map to a number.
    """

    similarity: str = "structure"
    space: str = "noise"
    next_sample: bool = False
    numerator: float = 1.0
    scalar: bool = False

    def __post_init__(self) -> None:
        for given, allowed, what in ((self.similarity, SIMILARITIES, "similarity"), (self.space, SPACES, "space")):
            if given not in allowed:
                raise InputError(f'There is no {what} "{given}". {did_you_mean(given, allowed)}')

    def of(self, step: Step) -> Judge:
        reference = step.prev_sample if self.next_sample else _recorded(self.space, step)
        known = LocalMoments.of(reference)

        def judge(samples: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
            seen = LocalMoments.of(_in_space(self.space, step, samples, outputs))
            maps = self._compared(known, seen).mean(dim=1)
            return maps.mean(dim=(1, 2)) if self.scalar else _on_grid(maps, samples)

        return judge

    def _compared(self, known: LocalMoments, seen: LocalMoments) -> torch.Tensor:
        if self.similarity == "structure":
            return structure(known, seen, self.numerator)
        return SIMILARITIES[self.similarity](known, seen)


def _on_grid(maps: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
    """Maps of pictures, averaged down to the samples' grid."""
    if maps.shape[-2:] == samples.shape[-2:]:
        return maps
    return torch.nn.functional.adaptive_avg_pool2d(maps, (samples.shape[-2], samples.shape[-1]))


@dataclass(frozen=True)
class Closeness(PredictionTarget):
    """Minus the mean squared change of the prediction, one number a sample, (n,), at most 0."""

    space: str = "clean"

    def of(self, step: Step) -> Judge:
        known = _recorded(self.space, step)
        return lambda samples, outputs: (
            -(_in_space(self.space, step, samples, outputs) - known).square().mean(dim=(1, 2, 3))
        )


@dataclass(frozen=True)
class FeatureCloseness(PredictionTarget):
    """Minus the squared distance of image features of the decoded clean predictions, (n,), at most 0.

    `encoder` maps pictures (n, 3, height, width) in [0, 1] to features (n, d): any function, or
    `denoscope.vision.encoders.load_encoder`.
    """

    encoder: Features

    def of(self, step: Step) -> Judge:
        known = self.encoder(_recorded("image", step))
        return lambda samples, outputs: (
            -(self.encoder(_in_space("image", step, samples, outputs)) - known).square().sum(dim=1)
        )


@dataclass(frozen=True)
class ClassScore(Target):
    """A classifier's score of one label, (n,): its logit, the score before softmax, as Captum explains it.

    Of a frame, the samples (n, 3, h, w) are what the classifier sees. Of a step of a trace, they are samples x_t, and
    what it sees is the clean picture that the denoiser predicts from them: the score goes **through the denoiser**.
    """

    classifier: Classifier
    label: str | int

    def __post_init__(self) -> None:
        self.classifier.index(self.label)

    def at(self, step: Step | Frame) -> Score:
        index, classifier = self.classifier.index(self.label), self.classifier
        if isinstance(step, Step):
            return lambda samples: classifier(classifier.normalise(step.clean(samples)))[:, index]
        if step.space == "image":
            return lambda samples: classifier(classifier.normalise(samples))[:, index]
        return lambda samples: classifier(samples)[:, index]

    def near(self, step: Step | Frame) -> Score | None:
        if isinstance(step, Step) or step.space == "image":
            return None
        logits, index = self.classifier.near(step.images), self.classifier.index(self.label)
        return logits and (lambda samples: logits(samples)[:, index])
