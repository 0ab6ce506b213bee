"""One explained run: record, explain step by step, assemble the labelled result."""

import time
from collections.abc import Callable, Mapping, Sequence

import xarray as xr

from ..attributors.base import Attributor
from ..criteria import RELIABLE
from ..evaluation.diagnosis import diagnose
from ..recording.hooks.schedulers import lora
from ..recording.models import Model, load
from ..recording.traces import Trace
from ..results.explanations import Explanation
from ..results.records import RunRecord
from ..worlds.shapes.judge import is_shapes_model
from .attribution import Attributed, attribute, image_of, pictured
from .job import Watch
from .requests import Request

StepsOf = Callable[[int], Sequence[int] | Mapping[str, Sequence[int]]]
"""Takes the number of steps of a run, and returns the steps to explain: the same for all methods, or by method."""


def explain(request: Request | str, *, model: Model | None = None, watch: Watch | None = None) -> Explanation:
    """Record a run and explain it.

    >>> explain(Request("a red circle", steps=10, masks=64)).save("out")                  # doctest: +SKIP

    A text is short for `Request(prompt=text)`. `model` is the request's model, if it is loaded already. Raises
    `InputError` for settings that cannot be used, before any work where that can be known. On Ctrl-C while explaining,
    the finished part is in the result.
    """
    if isinstance(request, str):
        request = Request(request)
    attributors = request.attributors()
    model = model or load_quietly(request)
    return explained(model, request, attributors, request.steps_to_explain, request.command(), watch)


def load_quietly(request: Request) -> Model:
    """Load the model of a request, without the pipeline's own progress bar."""
    model = load(request.model, device=request.device, dtype=request.dtype)
    model.pipeline.set_progress_bar_config(disable=True)
    return model


def explained(
    model: Model,
    request: Request,
    attributors: Mapping[str, Attributor],
    steps: StepsOf,
    command: str,
    watch: Watch | None = None,
    variant: str | None = None,
) -> Explanation:
    """Record a run and put these methods to it, as one of several variants if that has a name."""
    before = "" if variant is None else f"{variant}: "
    began = time.perf_counter()
    with lora(model.pipeline, request.lora):
        trace = recorded(model, request, watch, before)
        pictures = pictured(trace)
        seconds = round(time.perf_counter() - began, 3)
        attributed = attribute(trace, attributors, steps(len(trace)), watch, before)
    diagnosis, interruption = _diagnosis(model, request, attributed, pictures)
    record = RunRecord(
        command=command,
        model=model.name,
        prompt=request.prompt,
        seed=request.seed,
        schedule=request.schedule if isinstance(request.schedule, str) else list(request.schedule),
        shift=request.shift,
        num_inference_steps=request.steps,
        timesteps=[step.timestep for step in trace],
        guidance_scale=scale_of(model, request),
        guidance=guidance_of(trace, scale_of(model, request)),
        lora=request.lora,
        scheduler=model.scheduler_name(request.scheduler),
        swapped_from=None if request.scheduler is None else model.scheduler_name(),
        pipeline=type(model.pipeline).__name__,
        image_size=[int(side) for side in image_of(trace).shape[-3:-1]],
        methods={name: attributor.options() for name, attributor in attributors.items()},
        trace_bytes=trace.nbytes,
        unknown_words=model.unknown_words(request.prompt) if request.prompt and model.takes_text else [],
        cut_off=model.cut_off(request.prompt) if request.prompt and model.takes_text else "",
        vocabulary=model.vocabulary() if model.takes_text else None,
        stamp=attributed.stamp({"trace": seconds}, interruption),
        diagnosis=diagnosis,
        variant=variant,
    )
    return Explanation.of(pictures, attributed.results, record.plain())


def _diagnosis(
    model: Model, request: Request, attributed: Attributed, pictures: xr.Dataset
) -> tuple[list[dict[str, object]] | None, str | None]:
    """Return the diagnosis of the results, and the interruption if Ctrl-C stopped it."""
    picture = pictures["image"].values if is_shapes_model(model.name) else None
    try:
        findings = diagnose(attributed.results, RELIABLE, request.prompt, picture)
    except KeyboardInterrupt:
        return None, "Interrupted: the methods were finished, the diagnosis was not."
    return [finding.plain() for finding in findings], None


def recorded(model: Model, request: Request, watch: Watch | None = None, before: str = "") -> Trace:
    """Record the run of a request; steps that it will not have are refused before it is made."""
    grid = (request.schedule, request.shift, request.scheduler)
    expected = model.step_count(request.steps, *grid) if request.steps else None
    if expected:
        request.steps_to_explain(expected)
    advance = watch(f"{before}Generating the picture", expected or 0) if watch else None
    return model.trace(**request.call(), advance=advance)


def scale_of(model: Model, request: Request) -> float | None:
    """Return the guidance scale of a request, which is the pipeline's own if none is given."""
    scale: float | None = model.default("guidance_scale") if request.guidance is None else request.guidance
    return scale


def guidance_of(trace: Trace, scale: float | None) -> float | str | None:
    """Return the guidance scale that counted in a run, or "off" if the run had no guidance."""
    counted = trace.guidance_in_effect(scale)
    return "off" if counted == 1 else counted


def guidance_is_off(model: Model, scale: float) -> bool:
    """Return True if the pipeline runs without classifier-free guidance at this scale.

    diffusers' pipelines with the property `do_classifier_free_guidance` switch guidance off at 1 and below. Other
    pipelines have a rule of their own.
    """
    return scale <= 1 and hasattr(type(model.pipeline), "do_classifier_free_guidance")
