"""One explained run from what was asked to the labelled result: record, explain step by step, assemble."""

import math
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..attributors.base import Attributor, method
from ..criteria import RELIABLE
from ..errors import InputError
from ..evaluation.diagnosis import diagnose
from ..recording import schedules
from ..recording.hooks.schedulers import lora
from ..recording.models import Model
from ..recording.traces import Trace
from ..results.explanations import Explanation
from ..worlds.shapes.judge import is_shapes_model
from .job import At, Outcome, Watch, attribute, check_steps, fitting, flags, image_of, pictured, shown_steps, stamp

DEFAULT_METHODS = ("df-rise-contrast", "df-rise")
SHOWN_PLACES = (0.07, 0.27, 0.53, 0.93)


@dataclass(frozen=True)
class Request:
    """What `denoscope explain` was asked for; `steps` and `guidance` None mean the pipeline's own defaults."""

    prompt: str | None
    model: str = "shapes"
    seed: int = 0
    steps: int | None = 30
    schedule: schedules.Schedule = "uniform"
    shift: float | None = None
    scheduler: str | None = None
    lora: str | None = None
    guidance: float | None = None
    height: int | None = None
    width: int | None = None
    at: At = None
    methods: tuple[str, ...] = DEFAULT_METHODS
    masks: int = 500
    until: float | None = None
    device: str | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        if self.prompt is not None and not self.prompt.strip():
            raise InputError('The prompt is empty. Say what the picture should show, such as "a red circle".')
        if self.steps is not None and self.steps < 1:
            raise InputError(f"The number of steps is {self.steps}. It must be at least 1; 20 to 50 are usual.")
        if self.guidance is not None and not math.isfinite(self.guidance):
            raise InputError(f"The guidance scale is {self.guidance}. Give a finite number; 1 is none, 7.5 is usual.")
        if not self.methods or len(set(self.methods)) < len(self.methods):
            given = ", ".join(self.methods) or "none"
            raise InputError(f"The methods given are: {given}. Give at least one, and each once.")
        schedules.resolve(self.schedule, self.steps or 1, self.shift)
        check_steps(self.at)

    def in_range(self, total: int) -> Sequence[int]:
        """The steps to explain in a run of `total` steps; raises `InputError` for one that it does not have."""
        return shown_steps(self.at, total, early_to_late(total))

    def attributors(self) -> dict[str, Attributor]:
        """The methods with their options, by the name of their group in the result."""
        options = {"num_masks": self.masks, "until": self.until}
        return {name.replace("-", "_"): method(name, **fitting(name, options)) for name in self.methods}

    def call(self) -> dict[str, Any]:
        """Keyword arguments of `Model.trace`."""
        given = dict(
            prompt=self.prompt,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            height=self.height,
            width=self.width,
        )
        said = {name: value for name, value in given.items() if value is not None}
        grid = {"schedule": self.schedule, "shift": self.shift, "scheduler": self.scheduler}
        return {"seed": self.seed, **grid, **said}

    def command(self) -> str:
        """The command line that asks for the same again."""
        prompt = [] if self.prompt is None else [self.prompt]
        return shlex.join(["denoscope", "explain", *prompt, *flags({**vars(self), "prompt": None})])


def explain(model: Model, request: Request, watch: Watch | None = None) -> Explanation:
    """Record a run and explain it; on Ctrl-C while explaining, what was finished is in the result.

    Raises `InputError` for what cannot be done as asked, before it is tried where that can be known.
    """
    attributors = request.attributors()
    return explained(model, request, attributors, lambda total: request.in_range(total), watch)


def explained(
    model: Model,
    request: Request,
    attributors: Mapping[str, Attributor],
    steps: Callable[[int], Sequence[int] | Mapping[str, Sequence[int]]],
    watch: Watch | None = None,
    before: str = "",
) -> Explanation:
    """Record a run and put these methods to it, at the steps chosen when it is known how many there are."""
    began = time.perf_counter()
    with lora(model.pipeline, request.lora):
        trace = recorded(model, request, watch, before)
        shown = pictured(trace)
        seconds = round(time.perf_counter() - began, 3)
        outcome = attribute(trace, attributors, steps(len(trace)), watch, before)
    outcome.seconds = {"trace": seconds, **outcome.seconds}
    record = _record_of(model, request, trace, attributors, outcome)
    picture = shown["image"].values if is_shapes_model(model.name) else None
    try:
        record["diagnosis"] = [each.plain() for each in diagnose(outcome.methods, RELIABLE, request.prompt, picture)]
    except KeyboardInterrupt:
        record |= {
            "interrupted": True,
            "interruption": "Interrupted: the methods were finished, the diagnosis was not.",
        }
    return Explanation.of(shown, outcome.methods, record)


def recorded(model: Model, request: Request, watch: Watch | None = None, before: str = "") -> Trace:
    """The trace that a request asks for; steps that it will not have are refused before it is made."""
    grid = (request.schedule, request.shift, request.scheduler)
    expected = model.step_count(request.steps, *grid) if request.steps else None
    if expected:
        request.in_range(expected)
    advance = watch(f"{before}Generating the picture", expected or 0) if watch else None
    return model.trace(**request.call(), advance=advance)


def early_to_late(steps: int) -> tuple[int, ...]:
    """Early, two in the middle, late: the steps explained when none are named."""
    return tuple(sorted({round(place * (steps - 1)) for place in SHOWN_PLACES}))


def _record_of(
    model: Model, request: Request, trace: Trace, attributors: Mapping[str, Attributor], outcome: Outcome
) -> dict[str, Any]:
    return {
        "command": request.command(),
        "model": model.name,
        "prompt": request.prompt,
        "seed": request.seed,
        "schedule": request.schedule,
        "shift": request.shift,
        "num_inference_steps": request.steps,
        "timesteps": [step.timestep for step in trace],
        "guidance_scale": model.default("guidance_scale") if request.guidance is None else request.guidance,
        "lora": request.lora,
        "scheduler": model.scheduler_name(request.scheduler),
        "swapped_from": None if request.scheduler is None else model.scheduler_name(),
        "pipeline": type(model.pipeline).__name__,
        "image_size": [int(side) for side in image_of(trace).shape[:2]],
        "methods": {name: attributor.options() for name, attributor in attributors.items()},
        "trace_bytes": trace.nbytes,
        **stamp(outcome),
    }
