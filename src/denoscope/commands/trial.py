"""A trial: one picture, the maps of every method, and the numbers that the checks give them."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from ..attributors.base import needs_of
from ..errors import DenoscopeError, InputError, one_line
from ..evaluation.baselines import BASELINES
from ..recording.limits import memory_limit
from ..results.resumable import ResumableFolder
from .checks.registry import CHECKS
from .methods import attributor_for
from .pictures import MethodMaps, RecordedPicture, TrialSettings, shared_encoder, shared_model
from .subjects import NotAsPrompted, TrialSubject

Maps = dict[str, np.ndarray]
"""By method, its maps (step, y, x); by "mask", the places of the things (things, h, w), empty if they are not known."""

PICTURE = "the picture"
"""Name of the failure to make the picture at all."""


@dataclass(frozen=True)
class Trial:
    """The numbers of one picture: `scores` by method and measure, a value for each step.

    `failures` are the reasons by method, or by "method, check". `seconds` are the processor seconds of each method's
    maps. `skipped` is the reason why there is no picture to measure; None if there is one.
    """

    subject: TrialSubject
    scores: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    skipped: str | None = None

    def is_complete(self, method: str) -> bool:
        """Return True if the method, and every check of it, was measured."""
        failed = {name.partition(", ")[0] for name in self.failures}
        return method in self.scores and method not in failed

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain values; NaN stays NaN."""
        return {
            "subject": self.subject.to_json(),
            "scores": self.scores,
            "failures": self.failures,
            "seconds": self.seconds,
            "skipped": self.skipped,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Trial | None":
        """Return the trial that `to_json` gave these values of; None if they are not a trial's."""
        try:
            return cls(**{**values, "subject": TrialSubject.from_json(values["subject"])})
        except (KeyError, TypeError):
            return None


def measure(
    settings: TrialSettings, subject: TrialSubject, earlier: Trial | None = None, earlier_maps: Maps | None = None
) -> tuple[Trial, Maps]:
    """Make a picture, explain it by every method and run every check.

    A failure is recorded and the rest goes on. Methods that are complete in an `earlier` trial of the same subject are
    not measured again. Raises `InputError` for a picture that cannot be made with these settings.
    """
    try:
        picture = RecordedPicture.record(settings, subject)
    except NotAsPrompted as error:
        return Trial(subject, skipped=str(error)), {}
    except InputError:
        raise
    except Exception as error:
        reason = _reason(error)
        return Trial(subject, failures={PICTURE: reason}, skipped=reason), {}
    trial, maps = Trial(subject), Maps()
    for method in (*settings.methods, *BASELINES):
        if earlier is not None and earlier_maps is not None and earlier.is_complete(method):
            trial.scores[method], trial.seconds[method] = earlier.scores[method], earlier.seconds[method]
            maps[method] = earlier_maps[method]
        else:
            _measure_method(picture, method, trial, maps)
    maps["mask"] = np.zeros(0, bool) if picture.masks is None else picture.masks
    return trial, maps


def _measure_method(picture: RecordedPicture, method: str, trial: Trial, maps: Maps) -> None:
    """Explain the picture by a method and check it; enter the results into the trial and its maps."""
    began = time.process_time()
    try:
        attributor = attributor_for(method, picture.settings, picture.subject)
        saliency = attributor(picture.trace, picture.settings.steps_shown).saliency
    except Exception as error:
        trial.failures[method] = _reason(error)
        return
    trial.seconds[method] = time.process_time() - began
    maps[method] = saliency.values.astype(np.float32)
    trial.scores[method] = {}
    method_maps = MethodMaps(method, needs_of(method), attributor, saliency)
    for name in picture.settings.checks:
        check = CHECKS[name]
        try:
            scores = check.scores(picture, method_maps)
        except Exception as error:
            trial.failures[f"{method}, {name}"] = _reason(error)
            continue
        check.refuse_unknown(list(scores))
        for measure_name, values in scores.items():
            trial.scores[method][measure_name] = _by_step(values, picture.settings.steps_shown)


def _by_step(values: xr.DataArray, steps: Sequence[int]) -> list[float]:
    """Return the value of each step, NaN at a step that was not checked."""
    checked = set(values["step"].values.tolist())
    return [float(values.sel(step=step)) if step in checked else float("nan") for step in steps]


def _reason(error: Exception) -> str:
    """Return the message on one line; after its kind if the error is not one of Denoscope's own."""
    kind = "" if isinstance(error, DenoscopeError) else f"{type(error).__name__}: "
    return one_line(f"{kind}{error}", 600)


@dataclass(frozen=True)
class TrialInFolder:
    """Runs the trial of a subject and writes it to the folder, unless it is finished there.

    `memory` is the limit of one process in bytes, None for what is free.
    """

    settings: TrialSettings
    folder: ResumableFolder
    memory: int | None = None

    def __call__(self, subject: TrialSubject) -> Trial:
        earlier = self._earlier(subject)
        if earlier is not None and not earlier.failures:
            return earlier
        earlier_maps = None if earlier is None else self.folder.arrays(subject.name)
        with memory_limit(self.memory):
            trial, maps = measure(self.settings, subject, earlier, earlier_maps)
        self.folder.write(subject.name, trial.to_json(), maps)
        return trial

    def _earlier(self, subject: TrialSubject) -> Trial | None:
        """Return the trial in the folder; None if there is none, or if its prompt or mask was another."""
        values = self.folder.read(subject.name)
        trial = None if values is None else Trial.from_json(values)
        return trial if trial is not None and trial.subject == subject else None


def check_settings(settings: TrialSettings, subject: TrialSubject) -> None:
    """Load the networks and set every method, so that an error of all pictures shows before the first.

    Raises `InputError` for a wrong model, encoder or option.
    """
    for method in settings.methods:
        attributor_for(method, settings, subject)
    shared_model(settings.model, settings.device, settings.dtype)
    if settings.encoder is not None:
        shared_encoder(settings.encoder)
