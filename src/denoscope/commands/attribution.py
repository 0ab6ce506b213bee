"""The parts of the work that all jobs share: methods put to a sequence one after the other, and its pictures."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import xarray as xr

from ..attributors.base import Attributor, choose
from ..errors import DenoscopeError, InputError, Interrupted, sentence
from ..recording.traces import Trace
from ..results.records import Stamp
from ..vision.frames import Frames
from .job import Watch


@dataclass
class Attributed:
    """The results of methods by their ids, the seconds of each, and the reason why the work stopped early."""

    results: dict[str, xr.Dataset] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    interruption: str | None = None

    def stamp(self, earlier: Mapping[str, float], interruption: str | None = None) -> Stamp:
        """Return the end of a run's record; `earlier` are the seconds of the work before the methods."""
        why = self.interruption or interruption
        steps = {int(step) for result in self.results.values() for step in result.step.values}
        return Stamp(
            steps=tuple(sorted(steps)),
            seconds={**earlier, **self.seconds},
            interrupted=why is not None,
            interruption=why,
        )


def attribute(
    sequence: Trace | Frames,
    attributors: Mapping[str, Attributor],
    steps: Sequence[int] | Mapping[str, Sequence[int]],
    watch: Watch | None = None,
    before: str = "",
) -> Attributed:
    """Put every method to the same steps, or each to its own; stop at Ctrl-C or a failure with the finished part.

    `before` stands before the title of each bar. Raises the failure if nothing was finished before it.
    """
    done = Attributed()
    indices = {name: steps[name] if isinstance(steps, Mapping) else steps for name in attributors}
    chosen = {name: choose(sequence, indices[name]) for name in attributors}
    try:
        for name, attributor in attributors.items():
            began = time.perf_counter()
            work = sum(attributor.work(step) for step in chosen[name])
            advance = watch(f"{before}{attributor.title}", work) if watch else None
            done.results[name] = attributor(sequence, indices[name], advance=advance)
            done.seconds[name] = round(time.perf_counter() - began, 3)
    except Interrupted as stop:
        done.interruption, done.seconds[name] = str(stop), round(time.perf_counter() - began, 3)
        if stop.partial is not None:
            done.results[name] = stop.partial
    except (KeyboardInterrupt, DenoscopeError, RuntimeError) as stop:
        if not done.results and not isinstance(stop, KeyboardInterrupt):
            raise
        why = "Interrupted:" if isinstance(stop, KeyboardInterrupt) else f"{sentence(stop)} Because of that,"
        done.interruption = f"{why} {len(done.results)} of {len(attributors)} methods were finished."
    return done


def pictured(trace: Trace) -> xr.Dataset:
    """Return a trace as pictures, uint8: the final image, and the sample and clean prediction of every step.

    Dims are (step, row, column, channel); a clip has `frame` before `row`, with the frames' numbers as coordinates.
    """
    image = image_of(trace)
    places = ("step", "frame", "row", "column", "channel") if image.ndim == 4 else ("step", "row", "column", "channel")
    pictures = xr.Dataset(
        {
            "image": (places[1:], image),
            "sample": (places, eight_bit(trace.samples_decoded())),
            "pred_original_sample": (places, eight_bit(trace.clean_decoded())),
        },
        coords={
            "step": [step.index for step in trace],
            "timestep": ("step", [step.timestep for step in trace]),
            "log_snr": ("step", [step.log_snr for step in trace]),
        },
    )
    return pictures.assign_coords(frame=np.arange(len(image))) if image.ndim == 4 else pictures


def image_of(trace: Trace) -> np.ndarray:
    """Return the first picture of a trace, (height, width, 3) uint8, or its clip, (frame, height, width, 3) uint8."""
    image = trace.image
    if isinstance(image, (list, tuple)):
        return np.stack([_eight_bit_picture(frame) for frame in image])
    return _eight_bit_picture(image)


def refuse_clip(trace: Trace, why: str) -> None:
    """Raise `InputError` for a trace of a clip, in a job that takes pictures only; `why` begins the message."""
    image = image_of(trace)
    if image.ndim == 4:
        raise InputError(
            f"{why}, and this run made a clip of {len(image)} frames. Use a model that makes pictures, or explain the "
            "clip: denoscope explain, or denoscope.explain(...)."
        )


def _eight_bit_picture(image: Any) -> np.ndarray:
    """Return a PIL image, or an array in [0, 1], as uint8; tensors have channels before rows."""
    if hasattr(image, "convert"):
        return np.asarray(image.convert("RGB"))
    if isinstance(image, torch.Tensor):
        image = image.detach().float().cpu().movedim(-3, -1).numpy()
    return eight_bit(np.asarray(image))


def eight_bit(values: np.ndarray) -> np.ndarray:
    """Return values in [0, 1] as uint8 from 0 to 255."""
    return (values * 255).round().astype(np.uint8)
