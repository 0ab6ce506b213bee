"""A trace on its way to a folder.

    FOLDER/trace.json               the call, the steps, the scheduler, the weights' digests, versions
           tensors-0000.safetensors samples, predictions, conditioning; further files for more than a gigabyte
           pictures/0000.png        pictures of the result, and pictures that the call was given

The folder appears whole or not at all. Nothing in it can run code when it is read.
"""

import json
import math
import os
import platform
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ..errors import InputError, OutputError, ReplayError
from ..files.whole import DESKTOP, free_bytes_at, listed, reason_against, whole_folder
from .components import networks_of
from .decoding import picture_in
from .digests import weights_of
from .engines import Run
from .hooks.recorded import RecordedCall
from .hooks.resume import Resumption
from .hooks.schedulers import TimeSteps
from .packing import (
    Missing,
    Packer,
    as_bytes,
    bytes_of,
    file_of,
)
from .steps import Step, layout_of

RECORD = "trace.json"
TENSORS = "tensors-{:04d}.safetensors"
PICTURES = "pictures"
FORMAT = 1
"""The number of the format; a folder of a later one is refused."""
LARGEST_FILE = 2**30
"""Bytes of tensors in one file, which are in memory a second time while it is written."""
SHOWN = "shown"
"""In the place of a run's picture: it is the one of the result."""
PACKAGES = ("denoscope", "torch", "diffusers", "transformers")
NUMBERS_OF = ("torch", "diffusers")
"""Packages of which another version may compute other numbers."""


class IncompleteTraceWarning(UserWarning):
    """A part of a call could not be stored, so that the stored trace cannot make the call again."""


@dataclass(frozen=True)
class Parts:
    """What a trace is made of."""

    steps: Sequence[Step]
    result: Any
    call: dict[str, Any]
    model: Any


@dataclass(eq=False)
class Packed:
    """A trace that is ready to be written: its record, with the tensors and pictures that belong to it."""

    record: dict[str, Any]
    packer: Packer
    lacks: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """The bytes of the folder: those of all tensors, of the pictures before a PNG packs them, and of the text."""
        tensors = sum(stored.nbytes for stored in self.packer.tensors)
        return tensors + sum(bytes_of(picture) for picture in self.packer.pictures) + len(json.dumps(self.record))


def packed(trace: Parts) -> Packed:
    """Return a trace ready to be written; raises `InputError` for one that cannot be stored."""
    run = trace.steps[0].run
    if run is None:
        raise InputError("This trace belongs to no recorded run, so it cannot be stored. Record one: model.trace(...).")
    if run.absent is not None:
        raise InputError(
            "This trace was loaded without its model, so what a replay needs is not in it, and it cannot be stored a "
            "second time. Copy the folder that it was loaded from, or load it with its model."
        )
    if run.resumption.contexts:
        raise InputError(
            "This trace was recorded inside a change of its network that lasts for one study only, so it could never "
            "be replayed from a folder. Store a trace of the unchanged model."
        )
    packer = Packer(run.resumption.modules, run.resumption.call.streams)
    lacks: list[str] = []
    steps = _steps(packer, trace.steps)
    result, problem = packer.attempt(trace.result)
    if problem is not None:
        raise InputError(
            f"The trace cannot be stored: its result, trace.result, holds a {problem}, which no folder can hold. "
            "Stored are texts, numbers, arrays, tensors and pictures. Record a pipeline that returns those."
        )
    arguments = _arguments(packer, run.resumption.call, lacks)
    lacks += _scheduler_lacks(run.resumption)
    if run.resumption.lacks:
        lacks += [lack for lack in run.resumption.lacks if lack not in lacks]
    record = {
        "steps": steps,
        "result": result,
        "call": {name: _or_missing(packer, value) for name, value in trace.call.items()},
        "run": _run(packer, run, arguments, lacks, picture_in(trace.result, run.decoding.last)),
    }
    return Packed(record, packer, tuple(lacks))


def _steps(packer: Packer, steps: Sequence[Step]) -> list[Any]:
    """Return the steps; a step whose denoiser's arguments cannot be stored can be asked by the pipeline alone."""
    found = []
    for step in steps:
        node, problem = packer.attempt(step)
        if problem is not None:
            refusal = ReplayError(f"Its denoiser was given a {problem}, which could not be stored in the folder.")
            node = packer.pack(replace(step, direct=None, refusal=refusal))
        found.append(node)
    return found


def _or_missing(packer: Packer, value: Any) -> Any:
    packed_value, problem = packer.attempt(value)
    return packed_value if problem is None else packer.pack(Missing(problem))


def _arguments(packer: Packer, call: RecordedCall, lacks: list[str]) -> dict[str, Any]:
    """Return the arguments of the pipeline's call; what cannot be stored goes into `lacks`."""
    packed_arguments: dict[str, Any] = {"args": [], "kwargs": {}}
    for name, value in [*enumerate(call.args), *call.kwargs.items()]:
        node, problem = packer.attempt(value)
        if problem is not None:
            node = packer.pack(Missing(problem))
            lacks.append(f"{f'argument {name}' if isinstance(name, int) else name} of the call (a {problem})")
        if isinstance(name, int):
            packed_arguments["args"].append(node)
        else:
            packed_arguments["kwargs"][name] = node
    return packed_arguments


def _scheduler_lacks(resumption: Resumption) -> list[str]:
    used = getattr(resumption.timesteps, "scheduler", None)
    known = isinstance(resumption.timesteps, TimeSteps) and any(used is each for each in resumption.schedulers.values())
    return [] if known else [f"the scheduler of the call ({type(used).__name__}, no part of the pipeline)"]


def _run(
    packer: Packer, run: Run, arguments: Mapping[str, Any], lacks: list[str], shown: torch.Tensor | None
) -> dict[str, Any]:
    """Return the run; its picture is stored apart if it is not the one that the trace shows, of one picture of more."""
    resumption, decoding = run.resumption, run.decoding
    call, steps = resumption.call, []
    blank = resumption.repeated | resumption.denoisers  # the outputs of others are computed when they are needed
    for step in resumption.steps:
        step = replace(step, blanks=tuple((name, each if name in blank else None) for name, each in step.blanks))
        node, problem = packer.attempt(step)
        if problem is not None:
            lacks.append(f"an output of the denoiser (a {problem})")
            node = packer.pack(replace(step, blanks=tuple((name, None) for name, _ in step.blanks)))
        steps.append(node)
    timesteps = getattr(resumption.timesteps, "values", None)
    fast = decoding.fast
    if hasattr(fast, "call"):
        fast = replace(fast, call=fast.call.without_output())
    way, problem = packer.attempt(fast)
    return {
        "arguments": arguments,
        "streams": packer.pack([call.common_stream, call.stream_of_gpu]),
        "autocast": packer.pack(call.autocast),
        "steps": steps,
        "denoisers": sorted(resumption.denoisers),
        "repeated": sorted(resumption.repeated),
        "timesteps": None if timesteps is None else [int(value) for value in timesteps],
        "places": run.places,
        "unit": run.unit,
        "directs": [packer.attempt(direct)[0] for direct in run.directs],
        "signatures": packer.pack(run.signatures),
        "is_chain": run.is_chain,
        "layout": packer.pack(_layout(run)),
        "home": str(run.home),
        "picture": SHOWN if _equal(shown, decoding.picture) else packer.pack(as_bytes(decoding.picture)),
        "problem": decoding.problem,
        "fast": way,
        "verdicts": [packer.pack([list(_verdicts(run).items())])] if lacks else None,
        "lacks": lacks,
    }


def _equal(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    return a is b if a is None or b is None else a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)


def _layout(run: Run) -> Any:
    """Return the layout of the samples, which is measured with the networks; None if they have none."""
    try:
        return layout_of(run)
    except (InputError, ReplayError):
        return None


def _verdicts(run: Run) -> Mapping[Any, str]:
    """Return what was found by trying the direct engine, for a call that cannot be made again to try it."""
    for index in range(len(run.places)):
        run.refusal_of_direct(index)
    return run.verdicts


def place_for(folder: str | os.PathLike[str], overwrite: bool) -> Path:
    """Return the absolute path of a place where a trace can be stored; raises `InputError` for any other place."""
    try:
        place = Path(folder).expanduser().resolve()
        against = reason_against(place)
        if against is None and place.is_dir():
            against = _contents_against(place, overwrite)
    except (OSError, ValueError, RuntimeError) as error:
        against = f"its path cannot be used ({error})", None
    if against is None:
        return place
    reason, remedy = against
    raise InputError(
        f'The trace cannot be stored in "{folder}": {reason}. Allowed is a folder that does not exist yet or is empty. '
        f"Give {remedy or 'another folder'}."
    )


def _contents_against(place: Path, overwrite: bool) -> tuple[str, str | None] | None:
    """Return why the contents of a folder may not be replaced, and a remedy; None if they may."""
    names = {entry.name for entry in place.iterdir()} - DESKTOP
    if not names:
        return None
    if RECORD not in names:
        return f"it is not empty and holds no trace (it holds {listed(sorted(names))}, no {RECORD})", None
    if not overwrite:
        return "a trace is there", "another folder, or allow replacing it with overwrite=True"
    foreign = {name for name in names - {RECORD, PICTURES} if not _is_of_tensors(name)}
    if foreign:
        return f"it also holds files that no trace has ({listed(sorted(foreign))})", "another folder"
    return None


def _is_of_tensors(name: str) -> bool:
    start, end = TENSORS.split("{:04d}")
    return name.startswith(start) and name.endswith(end)


def write(trace: Parts, folder: str | os.PathLike[str], overwrite: bool) -> Path:
    """Store a trace and return the absolute path of its folder.

    Raises `InputError` for a place or a trace that cannot be used, and `OutputError` if there is too little room.
    """
    place = place_for(folder, overwrite)
    content = packed(trace)
    _refuse_too_little_room(place, content.nbytes)
    record = {**_facts(trace, content), **content.record}
    if content.lacks:
        warnings.warn(
            f"The stored trace will not be able to make the call again: {' and '.join(content.lacks)} cannot be stored "
            "in a folder. It has its pictures, samples and predictions, and can be replayed where the denoiser's own "
            "calls suffice.",
            IncompleteTraceWarning,
            stacklevel=3,
        )
    with whole_folder(place) as temporary:
        record["tensors"] = _write_tensors(temporary, content.packer)
        record["pictures"] = _write_pictures(temporary, content.packer)
        (temporary / RECORD).write_text(json.dumps(record, ensure_ascii=False, allow_nan=False), encoding="utf-8")
        place_for(folder, overwrite)  # another program may have taken the place in the meantime
    return place


def _refuse_too_little_room(place: Path, needed: int) -> None:
    free = free_bytes_at(place)
    if free is not None and needed > free:
        raise OutputError(
            f'The trace cannot be stored in "{place}": it takes {needed / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are '
            "free there. Nothing was written. Free some space, give a folder on another disk, or store the trace of "
            "one picture, trace.picture(0)."
        )


def _facts(trace: Parts, content: Packed) -> dict[str, Any]:
    """Return what a reader looks for first: what was recorded, with what, and when."""
    pipeline, first = trace.model.pipeline, trace.steps[0]
    return {
        "format": FORMAT,
        "model": trace.model.name,
        "pipeline": type(pipeline).__name__,
        "settings": settings_of(pipeline),
        "weights": weights_of(pipeline),
        "schedulers": _schedulers(first.run),
        "samples": list(first.sample.shape),
        "time steps": [step.timestep if step.timestep == step.timestep else None for step in trace.steps],
        "bytes": content.nbytes,
        "versions": versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def versions() -> dict[str, str]:
    """Return the versions of what a replay depends on."""
    return {"python": platform.python_version(), **{name: version_of(name) for name in PACKAGES}}


def version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def settings_of(pipeline: Any) -> dict[str, Any]:
    """Return the settings of a pipeline and of its networks that are plain values, by their places."""
    owners = {"": pipeline, **{f"{name}.": module for name, module in networks_of(pipeline).items()}}
    found: dict[str, Any] = {}
    for start, owner in owners.items():
        config = getattr(owner, "config", None)
        if isinstance(config, Mapping):
            found |= {f"{start}{key}": plain(value) for key, value in config.items() if _is_setting(key, value)}
    return found


def _is_setting(key: str, value: Any) -> bool:
    plain = isinstance(value, (bool, int, float, str, type(None)))
    return plain and not key.startswith("_") and value == value


def plain(value: Any) -> Any:
    """Return JSON's own types for settings; what JSON does not know is its text, and infinity an object."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)


def _schedulers(run: Any) -> dict[str, Any]:
    """Return the class and the settings of each scheduler, and which one the call used."""
    resumption = run.resumption
    used = getattr(resumption.timesteps, "scheduler", None)
    return {
        name: {"class": type(each).__name__, "config": plain(dict(each.config)), "used": each is used}
        for name, each in resumption.schedulers.items()
    }


def _write_tensors(folder: Path, packer: Packer) -> list[dict[str, Any]]:
    """Write the tensors into files of at most `LARGEST_FILE` bytes, a larger tensor alone; return where each lies."""
    about: list[dict[str, Any]] = []
    file, size, waiting = 0, 0, dict[str, torch.Tensor]()
    for number, stored in enumerate(packer.tensors):
        if waiting and size + stored.nbytes > LARGEST_FILE:
            _flush(folder / TENSORS.format(file), waiting)
            file, size, waiting = file + 1, 0, {}
        waiting[str(number)] = stored.on_host()
        size += stored.nbytes
        about.append({"file": file, **stored.about})
    if waiting:
        _flush(folder / TENSORS.format(file), waiting)
    return about


def _flush(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write one file of tensors; raises `OSError` as a full disk does."""
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        raise OSError(str(error)) from error


def _write_pictures(folder: Path, packer: Packer) -> list[str]:
    names = []
    for number, picture in enumerate(packer.pictures):
        (folder / PICTURES).mkdir(exist_ok=True)
        end, content = file_of(picture)
        names.append(f"{number:04d}.{end}")
        (folder / PICTURES / names[-1]).write_bytes(content)
    return names
