"""Denoscope shows how a diffusion model makes a picture, step by step, and how far the explanation can be trusted."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

try:
    __version__ = version("denoscope")
except PackageNotFoundError:  # run from a folder that was never installed
    __version__ = "0+unknown"

_HOMES = {
    "load": "recording.models",
    "Model": "recording.models",
    "Trace": "recording.traces",
    "Step": "recording.traces",
    "DFCam": "attributors.cam",
    "DFRise": "attributors.rise",
    "Lime": "attributors.lime",
    "Words": "attributors.words",
    "words_at": "attributors.words",
    "IntegratedGradients": "attributors.gradients",
    "GradientShap": "attributors.gradients",
    "Occlusion": "attributors.occlusion",
    "Relevance": "attributors.relevance",
    "ClassScore": "targets",
    "Classifier": "vision.classifiers",
    "load_classifier": "vision.classifiers",
    "load_photograph": "vision.photographs",
    "blend": "vision.frames",
    "ddpm": "vision.frames",
    "frames_of": "vision.frames",
    "likelihood": "timing.likelihood",
    "list_methods": "attributors.base",
    "plot": "figures.maps",
    "register": "attributors.base",
    "Explanation": "results.explanations",
    "Request": "commands.explain",
    "Comparison": "commands.compare",
    "compare": "commands.compare",
    "DenoscopeError": "errors",
    "InputError": "errors",
}

__all__ = [
    "ClassScore",
    "Classifier",
    "Comparison",
    "DFCam",
    "DFRise",
    "DenoscopeError",
    "Explanation",
    "GradientShap",
    "InputError",
    "IntegratedGradients",
    "Lime",
    "Model",
    "Occlusion",
    "Relevance",
    "Request",
    "Step",
    "Trace",
    "Words",
    "blend",
    "compare",
    "ddpm",
    "frames_of",
    "likelihood",
    "list_methods",
    "load",
    "load_classifier",
    "load_photograph",
    "plot",
    "register",
    "words_at",
]

if TYPE_CHECKING:
    from .attributors.base import list_methods, register
    from .attributors.cam import DFCam
    from .attributors.gradients import GradientShap, IntegratedGradients
    from .attributors.lime import Lime
    from .attributors.occlusion import Occlusion
    from .attributors.relevance import Relevance
    from .attributors.rise import DFRise
    from .attributors.words import Words, words_at
    from .commands.compare import Comparison, compare
    from .commands.explain import Request
    from .errors import DenoscopeError, InputError
    from .figures.maps import plot
    from .recording.models import Model, load
    from .recording.traces import Step, Trace
    from .results.explanations import Explanation
    from .targets import ClassScore
    from .timing.likelihood import likelihood
    from .vision.classifiers import Classifier, load_classifier
    from .vision.frames import blend, ddpm, frames_of
    from .vision.photographs import load_photograph


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: torch and diffusers take seconds, `--help` should not."""
    if name not in _HOMES:
        raise AttributeError(f"module 'denoscope' has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
