"""The recorded picture of a trial, and the networks that all pictures of an evaluation share."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import xarray as xr

from ..attributors import Needs
from ..attributors.base import Attributor
from ..recording.models import Model, load
from ..recording.traces import Trace
from ..vision.classifiers import Classifier, load_classifier
from ..vision.encoders import Features, load_encoder
from .attribution import refuse_clip
from .subjects import TrialSubject

Value = TypeVar("Value")


@dataclass(frozen=True)
class TrialSettings:
    """Settings that all pictures of an evaluation share; every choice is made.

    `steps_shown` are the steps that are explained, in order, of `steps` denoising steps. `guidance` None is the
    pipeline's own scale. `encoder` is the vision model that measures the games; None if the games are not played.
    """

    model: str
    methods: tuple[str, ...]
    checks: tuple[str, ...]
    steps: int
    steps_shown: tuple[int, ...]
    guidance: float | None
    num_masks: int
    encoder: str | None
    device: str | None = None
    dtype: str | None = None

    @property
    def middle(self) -> int:
        """The step of the checks that look at one step only."""
        return self.steps_shown[len(self.steps_shown) // 2]


@dataclass(frozen=True, eq=False)
class MethodMaps:
    """The maps of a method, (step, y, x), with the attributor that made them; `needs` as in `methods.needs_of`."""

    method: str
    needs: Needs | None
    attributor: Attributor
    saliency: xr.DataArray


@dataclass(eq=False)
class RecordedPicture:
    """A recorded picture with the places of its things, boolean (things, h, w); None if they are not known."""

    settings: TrialSettings
    subject: TrialSubject
    trace: Trace
    masks: np.ndarray | None
    _shared: dict[Callable[["RecordedPicture"], Any], Any] = field(default_factory=dict, repr=False)

    @classmethod
    def record(cls, settings: TrialSettings, subject: TrialSubject) -> "RecordedPicture":
        """Make the picture of a subject; raises `NotAsPrompted` if it shows something else."""
        trace = trace_of(settings, subject.prompt, subject.seed)
        refuse_clip(trace, "The checks of an evaluation compare maps with places on a picture")
        return cls(settings, subject, trace, subject.masks(np.asarray(trace.image, dtype=np.float64)))

    def mask_for(self, maps: "MethodMaps") -> np.ndarray | None:
        """Return the places that the maps should be high at: of the thing with the subject's label, or of all things.

        None if no place is known.
        """
        if self.masks is None:
            return None
        return np.asarray(self.masks[0] if maps.needs == "label" else self.masks.any(axis=0))

    def shared(self, make: Callable[["RecordedPicture"], Value]) -> Value:
        """Return `make(picture)`, which is computed once and then shared by the checks of all methods."""
        if make not in self._shared:
            self._shared[make] = make(self)
        value: Value = self._shared[make]
        return value


def trace_of(settings: TrialSettings, prompt: str, seed: int) -> Trace:
    """Record a run of the evaluated model."""
    model = shared_model(settings.model, settings.device, settings.dtype)
    options: dict[str, Any] = {}
    if settings.guidance is not None:
        options["guidance_scale"] = settings.guidance
    return model.trace(prompt, seed=seed, num_inference_steps=settings.steps, output_type="np", **options)


@functools.lru_cache(maxsize=1)
def shared_model(name: str, device: str | None, dtype: str | None) -> Model:
    """Load the model, or return it if this process has it already."""
    model = load(name, device=device, dtype=dtype)
    model.pipeline.set_progress_bar_config(disable=True)
    return model


@functools.lru_cache(maxsize=1)
def shared_encoder(name: str) -> Features:
    """Load the vision model that measures distances of pictures, or return it if this process has it already."""
    return load_encoder(name)


@functools.lru_cache(maxsize=8)
def shared_classifier(labels: tuple[str, ...]) -> Classifier:
    """Load the bundled classifier for these labels, or return it if this process has it already."""
    return load_classifier("shapes", list(labels))


def release_networks() -> None:
    """Let go of the networks that this process loaded, before other processes load their own."""
    for loaded in (shared_model, shared_encoder, shared_classifier):
        loaded.cache_clear()
