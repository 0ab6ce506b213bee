"""A trace read from the folder that `storing` wrote, with its model or without."""

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..errors import InputError, ModelError, in_short
from .components import networks_of, schedulers_of
from .decoding import Decoding, picture_in
from .digests import difference_between, weights_of
from .engines import Run
from .hooks.recorded import RecordedCall, generators_in
from .hooks.resume import Resumption
from .hooks.schedulers import TimeSteps
from .packing import (
    Unpacker,
    brought_back,
    from_bytes,
    picture_of,
)
from .storing import (
    FORMAT,
    NUMBERS_OF,
    PICTURES,
    RECORD,
    SHOWN,
    TENSORS,
    Parts,
    plain,
    settings_of,
    version_of,
    versions,
)  # fmt: skip


class VersionWarning(UserWarning):
    """A stored trace is replayed with other versions of torch or diffusers than it was recorded with."""


class AbsentModel:
    """The place of a model in a trace that was loaded without it: it has a `name`, and refuses everything else."""

    def __init__(self, name: str, refusal: str):
        self.name, self._refusal = name, refusal

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise ModelError(self._refusal)

    def __repr__(self) -> str:
        return f'AbsentModel("{self.name}")'


class _AbsentNetwork(torch.nn.Module):
    """The place of a network in a trace that was loaded without its model."""

    def __init__(self, refusal: str):
        super().__init__()
        self.refusal = refusal

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise ModelError(self.refusal)


def read(folder: str | os.PathLike[str], model: Any = None) -> Parts:
    """Return the parts of a stored trace.

    Raises `InputError` if the folder holds none or is damaged, and `ModelError` for another model than the recorded
    one. Warns of other versions of torch or diffusers.
    """
    place = Path(folder).expanduser()
    record = _record(place, folder)
    if model is not None:
        _refuse_other_model(record, model, folder)
        _warn_of_versions(record, folder)
    try:
        with _Files(place, record) as files:
            return _Reader(record, files, model, folder).parts()
    except (AttributeError, LookupError, OSError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f'The trace in "{folder}" cannot be read: {in_short(error, 160)} A file of it is missing or was changed. '
            "Record the picture again."
        ) from error


def _record(place: Path, folder: object) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads((place / RECORD).read_text(encoding="utf-8"))
        number = record["format"]
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise InputError(
            f'No trace could be read from "{folder}": its {RECORD} is not there or is none '
            f"({in_short(error, 100).rstrip('.')}). Give a folder that trace.save(folder) wrote."
        ) from error
    if number != FORMAT:
        raise InputError(
            f'The trace in "{folder}" has the format {number}, and this version of Denoscope '
            f"({version_of('denoscope')}) reads the format {FORMAT}. Install the version that wrote it, "
            f"{record.get('versions', {}).get('denoscope', 'unknown')}."
        )
    return record


def _refuse_other_model(record: Mapping[str, Any], model: Any, folder: object) -> None:
    """Raise `InputError` for something that is no model, and `ModelError` for another one than the recorded one."""
    pipeline = getattr(model, "pipeline", None)
    if pipeline is None:
        raise InputError(
            f"A trace was to be loaded with {type(model).__name__} as its model. Give the model itself: "
            f'Trace.load("{folder}", denoscope.load(...)). Without a model it has pictures, samples and predictions.'
        )
    difference = None
    if type(pipeline).__name__ != record["pipeline"]:
        difference = f"it is a {type(pipeline).__name__}, and the recorded one was a {record['pipeline']}"
    difference = difference or difference_between(record["weights"], weights_of(pipeline))
    difference = difference or _other_setting(record["settings"], settings_of(pipeline))
    if difference is not None:
        raise ModelError(
            f'The trace in "{folder}" was recorded with "{record["model"]}", and the model that was given, '
            f'"{model.name}", is another: {difference}. Its replays would be of another network. Load the model as it '
            f'was, or the trace without one, Trace.load("{folder}"), for its pictures, samples and predictions.'
        )


def _other_setting(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Return which setting has another value; settings that only one version of diffusers has do not count."""
    other = [name for name in recorded if name in now and now[name] != recorded[name]]
    if not other:
        return None
    name = other[0]
    return f"its setting {name} is {now[name]!r}, and the recorded one was {recorded[name]!r}"


def _warn_of_versions(record: Mapping[str, Any], folder: object) -> None:
    now = versions()
    others = [
        f"{name} {record['versions'].get(name)} (here {now[name]})"
        for name in NUMBERS_OF
        if record["versions"].get(name) != now[name]
    ]
    if others:
        warnings.warn(
            f'The trace in "{folder}" was recorded with {" and ".join(others)}, so replays may differ in their last '
            "digits. Each step is still compared with its recorded prediction before its first answer.",
            VersionWarning,
            stacklevel=4,
        )


class _Files:
    """The files of a stored trace, open while it is read."""

    def __init__(self, place: Path, record: Mapping[str, Any]):
        self.place, self.about, self.names = place, record["tensors"], record["pictures"]
        self._open: dict[int, Any] = {}

    def __enter__(self) -> "_Files":
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._open.values():
            file.__exit__(None, None, None)

    def tensor(self, number: int) -> torch.Tensor:
        """Return the numbers of a tensor, in the order in which they were stored."""
        file = self.about[number]["file"]
        if file not in self._open:
            self._open[file] = safe_open(self.place / TENSORS.format(file), framework="pt")
        tensor: torch.Tensor = self._open[file].get_tensor(str(number))
        return tensor

    def picture(self, number: int) -> Any:
        name = self.names[number]
        return picture_of(name, (self.place / PICTURES / name).read_bytes())


class _Reader:
    """Makes a trace of its record, with or without its model."""

    def __init__(self, record: Mapping[str, Any], files: _Files, model: Any, folder: object):
        self.record, self.files, self.model = record, files, model
        self.stored = record["run"]
        self.recorded_home = torch.device(self.stored["home"])
        self.home = torch.device("cpu") if model is None else device_of_pipeline(model.pipeline)
        self.absent = None if model is not None else absent(record["model"], folder)
        self.networks = {} if model is None else networks_of(model.pipeline)
        self._tensors: dict[int, torch.Tensor] = {}
        self._pictures: dict[int, Any] = {}
        self.unpack = Unpacker(self._tensor, self._picture, self._network, self._device).unpack

    def _tensor(self, number: int) -> torch.Tensor:
        if number not in self._tensors:
            about = self.files.about[number]
            self._tensors[number] = brought_back(self.files.tensor(number), about, self._device(about["device"]))
        return self._tensors[number]

    def _picture(self, number: int) -> Any:
        if number not in self._pictures:
            self._pictures[number] = self.files.picture(number)
        return self._pictures[number]

    def _network(self, name: str) -> torch.nn.Module:
        if self.absent is not None:
            return self.networks.setdefault(name, _AbsentNetwork(self.absent))
        return self.networks[name]

    def _device(self, name: str) -> torch.device:
        """Return the place of what was on a device: the model's for the pipeline's own, the CPU for the CPU's."""
        device = torch.device(name)
        return device if device.type == "cpu" and self.recorded_home.type != "cpu" else self.home

    def parts(self) -> Parts:
        record, stored = self.record, self.stored
        steps = [self.unpack(step) for step in record["steps"]]
        resumption = self._resumption()
        run = Run(
            resumption,
            list(stored["places"]),
            stored["unit"],
            [self.unpack(direct) for direct in stored["directs"]],
            self.unpack(stored["signatures"]),
            stored["is_chain"],
            layout=self.unpack(stored["layout"]),
            absent=self.absent,
        )
        result, last = self.unpack(record["result"]), run.recorded(len(run.places) - 1).prev_sample
        picture = picture_in(result, last) if stored["picture"] == SHOWN else from_bytes(self.unpack(stored["picture"]))
        run.decoding = Decoding.known(run, picture, stored["problem"], self.unpack(stored["fast"]))
        if stored["verdicts"] is not None:
            run.verdicts = {signature: verdict for signature, verdict in self._verdicts()}
        steps = [replace(step, run=run) for step in steps]
        call = {name: self.unpack(value) for name, value in record["call"].items()}
        model = self.model
        if self.absent is not None:
            model = AbsentModel(record["model"], self.absent)
        else:
            run.fingerprint()
            model.remember(run.decoding)
        return Parts(steps, result, call, model)

    def _verdicts(self) -> Iterator[tuple[Any, str]]:
        ((pairs,),) = self.unpack(self.stored["verdicts"])
        yield from pairs

    def _resumption(self) -> Resumption:
        stored, lacks = self.stored, tuple(self.stored["lacks"])
        schedulers, used = self._schedulers()
        pipeline = None if self.model is None else self.model.pipeline
        arguments = stored["arguments"]
        args = tuple(self.unpack(value) for value in arguments["args"])
        kwargs = {name: self.unpack(value) for name, value in arguments["kwargs"].items()}
        common, of_gpu = self.unpack(stored["streams"])
        streams = {id(each): (each.device, each.get_state()) for each in generators_in((args, kwargs))}
        of_gpu = of_gpu.cpu() if of_gpu is not None and torch.cuda.is_available() else None
        call = RecordedCall(pipeline, args, kwargs, streams, common.cpu(), of_gpu, self.unpack(stored["autocast"]))
        steps = [self.unpack(step) for step in stored["steps"]]
        elsewhere = bool(steps) and steps[0].sample.device != self.home
        return Resumption(
            call,
            steps,
            self.networks,
            schedulers,
            frozenset(stored["denoisers"]),
            frozenset(stored["repeated"]),
            TimeSteps(used, stored["timesteps"]),
            home=self.home if elsewhere else None,
            lacks=lacks,
        )

    def _schedulers(self) -> tuple[dict[str, Any], Any]:
        """Return the schedulers as they were set, and the one that the call used: the model's own where they are it."""
        if self.model is None:
            return {}, None
        own = schedulers_of(self.model.pipeline)
        found = {name: _scheduler(name, was, own.get(name)) for name, was in self.record["schedulers"].items()}
        used = next((found[name] for name, was in self.record["schedulers"].items() if was["used"]), None)
        return found, used


def _scheduler(name: str, was: Mapping[str, Any], own: Any) -> Any:
    """Return the model's own scheduler, or a new one if that has other settings now; raises `ModelError` if unknown."""
    import diffusers

    own_class = type(own).__name__ == was["class"]
    if own_class and _same_settings(plain(dict(own.config)), was["config"]):
        return own
    kind = type(own) if own_class else getattr(diffusers, was["class"], None)
    if kind is None or not hasattr(kind, "from_config"):
        raise ModelError(
            f"The trace was recorded with the {name} {was['class']}, which is none of diffusers, and the model has "
            f"{type(own).__name__} now. Give the model the scheduler that it had, pipe.{name} = {was['class']}(...)."
        )
    config = {key: value for key, value in was["config"].items() if not key.startswith("_")}
    infinite = {key: float(value["float"]) for key, value in config.items() if isinstance(value, dict)}
    return kind.from_config({**config, **infinite})


def _same_settings(now: Mapping[str, Any], was: Mapping[str, Any]) -> bool:
    """Return True if all settings that both have are the same."""
    return all(now[key] == was[key] for key in was if key in now and not key.startswith("_"))


def device_of_pipeline(pipeline: Any) -> torch.device:
    """Return the device on which a pipeline computes, which for offloaded ones is not where its weights lie."""
    device = getattr(pipeline, "_execution_device", None)
    if isinstance(device, torch.device):
        return torch.zeros(0, device=device).device  # with its number
    return next(weights.device for module in networks_of(pipeline).values() for weights in module.parameters())


def absent(name: str, folder: object) -> str:
    """Return the refusal of a trace that was loaded without its model."""
    return (
        f'This trace was loaded without its model, "{name}", so it has its pictures, samples and predictions, and '
        "nothing that needs a network: no predictions or pictures of other samples, and no maps. For those, load it "
        f'with the model that denoscope.load returned: Trace.load("{folder}", model).'
    )
