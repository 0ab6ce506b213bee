"""One explained run from what was asked to the labelled result: record, explain step by step, assemble."""

import inspect
import math
import platform
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

import numpy as np
import xarray as xr

from . import schedules
from .attributors.base import METHODS, Advance, Attributor, choose, list_methods, method
from .encoders import BUNDLED
from .errors import DenoscopeError, InputError, Interrupted, sentence
from .evaluation.diagnosis import diagnose
from .explanations import Explanation
from .figures import RELIABLE
from .frames import Frames
from .hooks import lora
from .models import Model
from .traces import Trace

DEFAULT_METHODS = ("df-rise-contrast", "df-rise")
SHOWN_PLACES = (0.07, 0.27, 0.53, 0.93)
PACKAGES = ("denoscope", "torch", "diffusers", "transformers", "numpy", "xarray", "zarr")

Watch = Callable[[str, int], Advance]
"""Told a title and an amount of work, returns what is to be told of the work done."""


At = tuple[int, ...] | Literal["all"] | None
"""The steps to explain: these, all, or None for a method's own choice."""


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


def flags(asked: Mapping[str, Any]) -> list[str]:
    """Settings by their names as the words of a command line; None is what was not asked for.

    >>> flags({"map_draws": 2, "at": (1, 3), "shift": None})
    ['--map-draws', '2', '--at', '1,3']
    """
    said = {name: value for name, value in asked.items() if value is not None}
    return [word for name, value in said.items() for word in (f"--{name.replace('_', '-')}", _word(value))]


def _word(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def check_steps(at: At) -> None:
    """What is wrong with steps whatever the run; raises `InputError`."""
    if at is None or at == "all":
        return
    given = ",".join(map(str, at))
    if any(index < 0 for index in at):
        raise InputError(f"The steps {given} cannot be explained: they count from 0, the noisiest.")
    if not at or len(set(at)) < len(at):
        raise InputError(f"The steps given are: {given or 'none'}. Give at least one, and each once.")


def shown_steps(at: At, total: int, chosen: Sequence[int]) -> Sequence[int]:
    """The steps to explain in a run of `total` steps, `chosen` if none are named; `InputError` for one not there."""
    if at is None:
        return chosen
    if at == "all":
        return range(total)
    if max(at) >= total:
        raise InputError(
            f"Step {max(at)} cannot be explained: this run has {total} steps, 0 (the noisiest) to {total - 1}. Name "
            "steps among these, or ask for more of them."
        )
    return at


def fitting(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the options that a method has."""
    known = inspect.signature(METHODS[name]).parameters if name in list_methods() else options
    return {option: value for option, value in options.items() if option in known}


@dataclass
class Outcome:
    """The methods' results so far, their seconds, and why it stopped early, if it did."""

    methods: dict[str, xr.Dataset] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    interruption: str | None = None


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
    picture = shown["image"].values if model.name == BUNDLED else None
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


def attribute(
    sequence: Trace | Frames,
    attributors: Mapping[str, Attributor],
    steps: Sequence[int] | Mapping[str, Sequence[int]],
    watch: Watch | None = None,
    before: str = "",
) -> Outcome:
    """Every method on the same steps, or each on its own; stops at Ctrl-C or a failure with what was finished.

    Raises what fails before anything was. `before` goes before a bar's title.
    """
    outcome = Outcome()
    chosen = {name: steps[name] if isinstance(steps, Mapping) else steps for name in attributors}
    known = {name: choose(sequence, indices) for name, indices in chosen.items()}
    try:
        for name, attributor in attributors.items():
            began = time.perf_counter()
            work = sum(attributor.work(step) for step in known[name])
            advance = watch(f"{before}{attributor.title}", work) if watch else None
            outcome.methods[name] = attributor(sequence, chosen[name], advance=advance)
            outcome.seconds[name] = round(time.perf_counter() - began, 3)
    except Interrupted as stop:
        outcome.interruption, outcome.seconds[name] = str(stop), round(time.perf_counter() - began, 3)
        if stop.partial is not None:
            outcome.methods[name] = stop.partial
    except (KeyboardInterrupt, DenoscopeError, RuntimeError) as stop:
        if not outcome.methods and not isinstance(stop, KeyboardInterrupt):
            raise
        why = "Interrupted:" if isinstance(stop, KeyboardInterrupt) else f"{sentence(stop)} Because of that,"
        outcome.interruption = f"{why} {len(outcome.methods)} of {len(attributors)} methods were finished."
    return outcome


def pictured(trace: Trace) -> xr.Dataset:
    """A trace as pictures: the final image, and every step's sample and clean prediction, uint8."""
    places = ("step", "row", "column", "channel")
    eight_bit = lambda values: (values * 255).round().astype(np.uint8)  # noqa: E731
    return xr.Dataset(
        {
            "image": (places[1:], _image(trace)),
            "sample": (places, eight_bit(trace.samples_decoded())),
            "pred_original_sample": (places, eight_bit(trace.clean_decoded())),
        },
        coords={
            "step": [step.index for step in trace],
            "timestep": ("step", [step.timestep for step in trace]),
            "log_snr": ("step", [step.log_snr for step in trace]),
        },
    )


def _image(trace: Trace) -> np.ndarray:
    image = trace.image
    if hasattr(image, "convert"):
        return np.asarray(image.convert("RGB"))
    return (np.asarray(image) * 255).round().astype(np.uint8)


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
        "image_size": [int(side) for side in _image(trace).shape[:2]],
        "methods": {name: attributor.options() for name, attributor in attributors.items()},
        "trace_bytes": trace.nbytes,
        **stamp(outcome),
    }


def stamp(outcome: Outcome) -> dict[str, Any]:
    """What the record of any run ends with: the steps explained, the seconds, the versions, the time."""
    return {
        "steps": sorted({int(step) for result in outcome.methods.values() for step in result.step.values}),
        "seconds": outcome.seconds,
        "interrupted": outcome.interruption is not None,
        "interruption": outcome.interruption,
        "versions": {"python": platform.python_version(), **{name: version_of(name) for name in PACKAGES}},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
