"""The methods and baselines that an evaluation compares, set for a picture."""

import functools
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..attributors.base import Advance, Attributor, StepResult, list_methods, method, needs_of
from ..errors import InputError
from ..evaluation.baselines import BASELINES, Baseline, random_map
from ..recording.prompts import COUNTED
from ..recording.steps import Step
from ..recording.traces import Trace
from ..targets import ClassScore
from ..vision.frames import Frame, Frames
from .job import fitting
from .pictures import TrialSettings, shared_classifier
from .subjects import TrialSubject

OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "integrated-gradients": {"n_steps": 20},
    "gradient-shap": {"n_samples": 50},
}
"""Options of a method in an evaluation, where they are not the method's own defaults."""


def evaluated_methods() -> tuple[str, ...]:
    """Return the names of the methods that can be evaluated, without the baselines."""
    return (*list_methods(), *list_methods(needs="label"))


def attributor_for(name: str, settings: TrialSettings, subject: TrialSubject) -> Attributor:
    """Return a method or a baseline, set for a picture; raises `InputError` if it cannot explain this picture."""
    if name == "random":  # with a seed for each picture, or all pictures would share one random map
        return Baseline(functools.partial(random_map, seed=zlib.crc32(subject.name.encode())))
    if name in BASELINES:
        return Baseline(BASELINES[name])
    if needs_of(name) == "label":
        return _class_attributor(name, subject)
    if needs_of(name) == "concepts":
        return PhraseMean.of(method(name, concepts=(_concept_of(subject),)), None)
    options = {"num_masks": settings.num_masks, "num_samples": settings.num_masks}
    attributor = method(name, **fitting(name, options))
    return PhraseMean.of(attributor, subject.phrase) if needs_of(name) == "words" else attributor


def _concept_of(subject: TrialSubject) -> str:
    """Return the subject's phrase as a text of its own; raises `InputError` if it has none."""
    if subject.phrase is None:
        raise InputError("concepts explains a thing by its name, and this picture names none. Leave concepts out.")
    return " ".join(counted[1] if (counted := COUNTED.fullmatch(word)) else word for word in subject.phrase)


def _class_attributor(name: str, subject: TrialSubject) -> Attributor:
    if subject.label is None:
        raise InputError(f"{name} explains a class, and the class of this picture is not known. Leave {name} out.")
    target = ClassScore(shared_classifier(subject.labels), subject.label)
    return method(name, target=target, **OPTIONS.get(name, {}))


@dataclass(frozen=True)
class PhraseMean(Attributor):
    """A method with a map for every word, as a method with one map: the mean over a phrase, or over all words."""

    inner: Attributor
    phrase: tuple[str, ...] | None
    title: str
    reading: str
    signed: bool

    @classmethod
    def of(cls, inner: Attributor, phrase: tuple[str, ...] | None) -> "PhraseMean":
        """Return a method reduced to a phrase, described as the method is."""
        return cls(inner, phrase, inner.title, inner.reading, inner.signed)

    def options(self) -> dict[str, Any]:
        return self.inner.options()

    def networks(self) -> Sequence[torch.nn.Module]:
        return self.inner.networks()

    def work(self, step: Step | Frame) -> int:
        return self.inner.work(step)

    def prepared(self, sequence: Trace | Frames) -> Attributor:
        return replace(self, inner=self.inner.prepared(sequence))

    def explain(self, step: Step | Frame, advance: Advance) -> StepResult:
        saliency: Any = self.inner.explain(step, advance)["saliency"]  # an xarray.DataArray with the dim token
        if self.phrase is not None:
            _refuse_cut_off(self.phrase, saliency["token"].values.tolist())
            saliency = saliency.sel(token=list(self.phrase))
        return {"saliency": saliency.mean("token")}


def _refuse_cut_off(phrase: Sequence[str], words: Sequence[str]) -> None:
    for word in phrase:
        if word not in words:
            raise InputError(
                f'The word "{word}" of the phrase is not among the words that the model reads, which end in '
                f'"{words[-1]}": the end of a long prompt is cut off. Shorten the prompt.'
            )
