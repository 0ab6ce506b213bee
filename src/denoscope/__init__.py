"""Denoscope shows how a diffusion model makes a picture, step by step, and how far the explanation can be trusted.

The four jobs are one sentence each; settings go in, a result that can be saved comes out:

    denoscope.explain(denoscope.Request(prompt="a red circle")).save("out")
    denoscope.recognise(denoscope.Study(photographs=("cat.png",))).save("out")
    denoscope.compare(denoscope.Comparison(denoscope.Request(prompt="a red circle"), "seed", (0, 1))).save("out")
    denoscope.evaluate(denoscope.Evaluation(scenes=4, checks=("localisation",))).save("out")
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers; a test holds these lines and `_HOMES` together
    from .attributors.base import list_methods as list_methods
    from .attributors.base import register as register
    from .attributors.cam import DFCam as DFCam
    from .attributors.concepts import Concepts as Concepts
    from .attributors.gradients import GradientShap as GradientShap
    from .attributors.gradients import IntegratedGradients as IntegratedGradients
    from .attributors.lime import Lime as Lime
    from .attributors.occlusion import Occlusion as Occlusion
    from .attributors.relevance import Relevance as Relevance
    from .attributors.rise import DFRise as DFRise
    from .attributors.words import Words as Words
    from .attributors.words import words_at as words_at
    from .commands.compare import compare as compare
    from .commands.comparisons import Comparison as Comparison
    from .commands.evaluate import Evaluation as Evaluation
    from .commands.evaluate import evaluate as evaluate
    from .commands.explain import explain as explain
    from .commands.recognise import recognise as recognise
    from .commands.requests import Request as Request
    from .commands.studies import Study as Study
    from .errors import DenoscopeError as DenoscopeError
    from .errors import InputError as InputError
    from .figures.maps import plot as plot
    from .recording.limits import memory_limit as memory_limit
    from .recording.models import Model as Model
    from .recording.models import load as load
    from .recording.steps import Step as Step
    from .recording.traces import Trace as Trace
    from .results.explanations import Explanation as Explanation
    from .results.together import Recognition as Recognition
    from .results.together import Variants as Variants
    from .targets import ClassScore as ClassScore
    from .timing.likelihood import likelihood as likelihood
    from .vision.classifiers import Classifier as Classifier
    from .vision.classifiers import load_classifier as load_classifier
    from .vision.frames import blend as blend
    from .vision.frames import ddpm as ddpm
    from .vision.frames import frames_of as frames_of
    from .vision.photographs import load_photograph as load_photograph

try:
    __version__ = version("denoscope")
except PackageNotFoundError:  # run from a folder that was never installed
    __version__ = "0+unknown"

_HOMES = {
    "attributors.base": "list_methods register",
    "attributors.cam": "DFCam",
    "attributors.gradients": "GradientShap IntegratedGradients",
    "attributors.lime": "Lime",
    "attributors.occlusion": "Occlusion",
    "attributors.relevance": "Relevance",
    "attributors.rise": "DFRise",
    "attributors.concepts": "Concepts",
    "attributors.words": "Words words_at",
    "commands.compare": "compare",
    "commands.comparisons": "Comparison",
    "commands.evaluate": "Evaluation evaluate",
    "commands.explain": "explain",
    "commands.recognise": "recognise",
    "commands.requests": "Request",
    "commands.studies": "Study",
    "errors": "DenoscopeError InputError",
    "figures.maps": "plot",
    "recording.limits": "memory_limit",
    "recording.models": "Model load",
    "recording.steps": "Step",
    "recording.traces": "Trace",
    "results.explanations": "Explanation",
    "results.together": "Recognition Variants",
    "targets": "ClassScore",
    "timing.likelihood": "likelihood",
    "vision.classifiers": "Classifier load_classifier",
    "vision.frames": "blend ddpm frames_of",
    "vision.photographs": "load_photograph",
}
"""The module of each public name."""

_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names.split()}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: torch and diffusers take seconds, `--help` should not."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'denoscope' has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
