"""One explained run: record, explain step by step, assemble the labelled result."""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import xarray as xr

from ..attributors.base import Attributor
from ..criteria import RELIABLE
from ..errors import InputError
from ..recording.arguments import OF_TRACE, parameters_of, refuse_untaken
from ..recording.hooks.schedulers import lora
from ..recording.limits import memory_limit
from ..recording.models import Model, load
from ..recording.tasks import for_task
from ..recording.traces import Trace
from ..results.explanations import Explanation
from ..results.records import RunRecord
from ..worlds.shapes.judge import is_shapes_model
from .attribution import Attributed, attribute, image_of, pictured
from .inputs import InputPicture, named_for, read_pictures
from .job import Watch
from .requests import Request

OF_GRID = ("timesteps", "sigmas")
"""Arguments of a pipeline's call by which it runs other steps than its scheduler sets."""
OF_ENDS = ("denoising_start", "denoising_end")
"""Arguments of a pipeline's call by which it runs a part of its steps."""
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
    read_pictures(request.files)
    model = model_for(request, model)
    return explained(model, request, attributors, request.steps_to_explain, request.command(), watch)


def model_for(request: Request, loaded: Model | None = None) -> Model:
    """Return the model of a request, with the pipeline that it names made of the same parts; load it if it is not yet.

    Raises `InputError` for an option that the pipeline's call does not take, and for layers that it does not have.
    """
    model = load_quietly(request) if loaded is None else loaded
    if request.pipeline is not None:
        model = replace(model, pipeline=for_task(model.pipeline, request.pipeline))
    call_of(model, request)
    if request.layers:
        model.layers(*request.layers)
    return model


def load_quietly(request: Request) -> Model:
    """Load the model of a request, without the pipeline's own progress bar."""
    model = load(request.model, device=request.device, dtype=request.dtype)
    model.pipeline.set_progress_bar_config(disable=True)
    return model


def call_of(model: Model, request: Request) -> dict[str, Any]:
    """Return the keyword arguments of `Model.trace`; raises `InputError` for one that the pipeline does not take."""
    pipeline, call = model.pipeline, request.arguments()
    named = named_for(type(pipeline).__name__, parameters_of(pipeline), read_pictures_again(request))
    twice = [name for name in named if name in call]
    if twice:
        raise InputError(f"call has {twice[0]}, which a picture given is already. Give one of both.")
    _refuse_untaken(pipeline, [*named, *call], request.pipeline)
    if "seed" in parameters_of(pipeline):  # of its own, for something else
        call["generator"] = torch.Generator("cpu").manual_seed(call.pop("seed"))
    return call | named


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
    with memory_limit(request.memory), lora(model.pipeline, request.lora):
        trace = recorded(model, request, watch, before)
        pictures = pictured(trace)
        seconds = round(time.perf_counter() - began, 3)
        attributed = attribute(trace, attributors, steps(len(trace)), watch, before)
    diagnosis, interruption = _diagnosis(model, request, attributed, pictures)
    record = RunRecord(
        command=command,
        model=model.name,
        prompt=request.prompt,
        **_ways_in(model, request),
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
        unknown_words=_unknown_words(model, request),
        cut_off=model.cut_off(request.prompt) if request.prompt and model.takes_text else "",
        vocabulary=model.vocabulary() if model.takes_text else None,
        stamp=attributed.stamp({"trace": seconds}, interruption),
        diagnosis=diagnosis,
        variant=variant,
    )
    return Explanation.of(pictures, attributed.results, record.plain())


def _ways_in(model: Model, request: Request) -> dict[str, Any]:
    """Return the part of a run's record that only some runs have: its files, and the further settings of its call."""
    files = {name: each.facts() for name, each in read_pictures_again(request).items()}
    return {
        "negative_prompt": request.negative_prompt,
        **files,
        "strength": strength_of(model, request),
        "task": request.pipeline,
        "call": request.arguments_of_call or None,
    }


def _unknown_words(model: Model, request: Request) -> list[str]:
    """Return the words of the prompt and of the concepts that the model cannot read, each once."""
    texts = [request.prompt or "", *(request.concepts or ())] if model.takes_text else []
    return list(dict.fromkeys(word for text in texts for word in model.unknown_words(text)))


def _diagnosis(
    model: Model, request: Request, attributed: Attributed, pictures: xr.Dataset
) -> tuple[list[dict[str, object]] | None, str | None]:
    """Return the diagnosis of the results, and the interruption if Ctrl-C stopped it."""
    from ..evaluation.diagnosis import diagnose

    picture = pictures["image"].values if is_shapes_model(model.name) else None
    try:
        findings = diagnose(attributed.results, RELIABLE, request.prompt, picture)
    except KeyboardInterrupt:
        return None, "Interrupted: the methods were finished, the diagnosis was not."
    return [finding.plain() for finding in findings], None


def _refuse_untaken(pipeline: Any, names: Sequence[str], task: str | None) -> None:
    """Raise `InputError` for an argument that the call does not take, with the way to a pipeline that may."""
    read_by_trace = {*OF_TRACE, "prompt"}  # `Model.trace` has a better word for a prompt that is not taken
    try:
        refuse_untaken(pipeline, [name for name in names if name not in read_by_trace])
    except InputError as error:
        if task is not None or not set(names) & {"image", "mask_image", "strength"}:
            raise
        others = "pipeline='img2img' and pipeline='inpaint' make pipelines that start from a picture of its parts."
        raise InputError(f"{error} If the model is of a usual family, {others}") from None


def read_pictures_again(request: Request) -> dict[str, InputPicture]:
    """Read the pictures of a request without the warnings, which were given when they were read first."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read_pictures(request.files)


def recorded(model: Model, request: Request, watch: Watch | None = None, before: str = "") -> Trace:
    """Record the run of a request; steps that it will not have are refused before it is made."""
    most = most_steps(model, request)
    if most is not None:
        request.steps_to_explain(most)
    expected = most if _runs_whole(model, request) else None
    advance = watch(f"{before}Generating the picture", expected or 0) if watch else None
    return model.trace(**call_of(model, request), advance=advance)


def most_steps(model: Model, request: Request) -> int | None:
    """Return the most steps that a run can have; None if only the run can tell."""
    grid = (request.schedule, request.shift, request.scheduler)
    if not request.steps or set(request.arguments_of_call) & set(OF_GRID):
        return None
    return model.step_count(request.steps, *grid)


def _runs_whole(model: Model, request: Request) -> bool:
    """Return True if a run has all of its schedule's steps; a strength below 1 leaves out the first ones."""
    strength = strength_of(model, request)
    is_whole = not isinstance(strength, (int, float)) or strength == 1
    return is_whole and not set(request.arguments_of_call) & set(OF_ENDS)


def strength_of(model: Model, request: Request) -> Any:
    """Return the strength of a request, which is the pipeline's own if none is given; None if it has none."""
    return model.default("strength") if request.strength is None else request.strength


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
