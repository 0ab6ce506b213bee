"""The methods and baselines that an evaluation compares, set for a picture."""

import functools
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import xarray as xr

from ..attributors.base import Advance, Attributor, Found, list_methods, method
from ..attributors.gradients import GradientShap, IntegratedGradients
from ..attributors.occlusion import Occlusion
from ..errors import InputError
from ..evaluation.baselines import BASELINES, Baseline, random_map
from ..recording.traces import Trace
from ..targets import ClassScore
from ..vision.frames import Frames
from .job import fitting
from .pictures import Needs, TrialSettings, shared_classifier
from .subjects import TrialSubject

CLASS_METHODS: dict[str, Callable[[ClassScore], Attributor]] = {
    "integrated-gradients": functools.partial(IntegratedGradients, n_steps=20),
    "gradient-shap": functools.partial(GradientShap, n_samples=50),
    "occlusion": Occlusion,
}
"""Methods that explain a class, through the denoiser."""

WORD_METHODS = ("words", "relevance", "relevance-reference")
"""Methods with a map for every word; the map that is checked is the mean over a phrase."""


def evaluated_methods() -> tuple[str, ...]:
    """Return the names of the methods that can be evaluated, without the baselines."""
    return (*list_methods(), *CLASS_METHODS)


def needs_of(name: str) -> Needs:
    """Return what a method must know of a picture."""
    if name in CLASS_METHODS:
        return "label"
    return "words" if name in WORD_METHODS else None


def attributor_for(name: str, settings: TrialSettings, subject: TrialSubject) -> Attributor:
    """Return a method or a baseline, set for a picture; raises `InputError` if it cannot explain this picture."""
    if name == "random":  # with a seed for each picture, or all pictures would share one random map
        return Baseline(functools.partial(random_map, seed=zlib.crc32(subject.name.encode())))
    if name in BASELINES:
        return Baseline(BASELINES[name])
    if name in CLASS_METHODS:
        return _class_attributor(name, subject)
    options = {"num_masks": settings.num_masks, "num_samples": settings.num_masks}
    attributor = method(name, **fitting(name, options))
    return PhraseMean(attributor, subject.phrase) if name in WORD_METHODS else attributor


def _class_attributor(name: str, subject: TrialSubject) -> Attributor:
    if subject.label is None:
        raise InputError(f"{name} explains a class, and the class of this picture is not known. Leave {name} out.")
    target = ClassScore(shared_classifier(subject.labels), subject.label)
    return CLASS_METHODS[name](target)


@dataclass(frozen=True)
class PhraseMean(Attributor):
    """A method with a map for every word, as a method with one map: the mean over a phrase, or over all words."""

    inner: Attributor
    phrase: tuple[str, ...] | None

    @property
    def title(self) -> str:  # type: ignore[override]
        """The title of the inner method."""
        return self.inner.title

    def explain(self, step: Any, advance: Advance) -> Found:
        raise InputError("A step does not know the words of its prompt. Call this with the trace.")

    def __call__(
        self,
        sequence: Trace | Frames,
        steps: Sequence[int] | None = None,
        *,
        show_progress: bool = False,
        advance: Advance | None = None,
    ) -> xr.Dataset:
        """Explain steps by the mean map of the phrase's words; raises `InputError` for a word that is cut off."""
        result = self.inner(sequence, steps, show_progress=show_progress, advance=advance)
        words = result.saliency.token.values.tolist()
        saliency = result.saliency
        if self.phrase is not None:
            _refuse_cut_off(self.phrase, words)
            saliency = saliency.sel(token=list(self.phrase))
        return xr.Dataset({"saliency": saliency.mean("token")}, attrs=result.attrs)


def _refuse_cut_off(phrase: Sequence[str], words: Sequence[str]) -> None:
    for word in phrase:
        if word not in words:
            raise InputError(
                f'The word "{word}" of the phrase is not among the words that the model reads, which end in '
                f'"{words[-1]}": the end of a long prompt is cut off. Shorten the prompt.'
            )
