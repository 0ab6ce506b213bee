"""The parts that all jobs share: steps, methods, progress, stopping, the record of a run."""

import inspect
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

import numpy as np
import xarray as xr

from ..attributors.base import METHODS, Advance, Attributor, choose, list_methods
from ..errors import DenoscopeError, InputError, Interrupted, sentence
from ..recording.traces import Trace
from ..vision.frames import Frames

PACKAGES = ("denoscope", "torch", "diffusers", "transformers", "numpy", "xarray", "zarr")

Watch = Callable[[str, int], Advance]
"""Told a title and an amount of work, returns what is to be told of the work done."""


At = tuple[int, ...] | Literal["all"] | None
"""The steps to explain: these, all, or None for a method's own choice."""


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
            "image": (places[1:], image_of(trace)),
            "sample": (places, eight_bit(trace.samples_decoded())),
            "pred_original_sample": (places, eight_bit(trace.clean_decoded())),
        },
        coords={
            "step": [step.index for step in trace],
            "timestep": ("step", [step.timestep for step in trace]),
            "log_snr": ("step", [step.log_snr for step in trace]),
        },
    )


def image_of(trace: Trace) -> np.ndarray:
    image = trace.image
    if hasattr(image, "convert"):
        return np.asarray(image.convert("RGB"))
    return (np.asarray(image) * 255).round().astype(np.uint8)


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
