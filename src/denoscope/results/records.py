"""The content of run.json: enough to run a job again, and how the run went."""

import dataclasses
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar

import numpy as np

PACKAGES = ("denoscope", "torch", "diffusers", "transformers", "numpy", "xarray", "zarr")
"""The packages whose versions a record states."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """Fields that become keys of a JSON object, in their order."""

    left_out_if_none: ClassVar[frozenset[str]] = frozenset()
    """Fields that are no key when they are None."""

    def plain(self) -> dict[str, Any]:
        """Return the record as dictionaries and lists; the keys of a `Stamp` stand beside the others.

        Numbers stay as they are, NaN and infinity too, which pages know how to show; `as_json` makes them null.
        """
        keys: dict[str, Any] = {}
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            if isinstance(value, Stamp):
                keys |= value.plain()
            elif value is not None or each.name not in self.left_out_if_none:
                keys[each.name] = _unfolded(value)
        return keys


@dataclass(frozen=True, kw_only=True)
class Stamp(Record):
    """The end of any run's record: the steps explained, seconds by part, interruption, versions, time."""

    steps: tuple[int, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    interrupted: bool = False
    interruption: str | None = None
    versions: Mapping[str, str] = field(default_factory=lambda: {"python": platform.python_version(), **versions()})
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


@dataclass(frozen=True, kw_only=True)
class RunRecord(Record):
    """An explained generation.

    `guidance_scale` is the scale as it was asked for, `guidance` the scale that had an effect: "off" where the pipeline
    ran without guidance. `unknown_words` are words of the prompt that the model cannot read, and `vocabulary` those
    that it can, where it has a short list. `cut_off` is the end of the prompt that did not fit. `image`, `mask_image`
    and `control_image` are the files that the run started from, each with the SHA-256 of its content. `task` is the
    pipeline that was made of the model's parts, and `call` has the further arguments of the pipeline's call.
    """

    left_out_if_none = frozenset(
        {"diagnosis", "variant", "vocabulary", "negative_prompt", "image", "mask_image", "control_image", "strength",
         "task", "call"}
    )  # fmt: skip

    command: str
    model: str
    prompt: str | None
    negative_prompt: str | None = None
    image: Mapping[str, str] | None = None
    mask_image: Mapping[str, str] | None = None
    control_image: Mapping[str, str] | None = None
    strength: float | None = None
    task: str | None = None
    call: Mapping[str, Any] | None = None
    seed: int
    schedule: str | Sequence[int]
    shift: float | None
    num_inference_steps: int | None
    timesteps: Sequence[float]
    guidance_scale: float | None
    guidance: float | str | None
    lora: str | None
    scheduler: str
    swapped_from: str | None
    pipeline: str
    image_size: Sequence[int]
    methods: Mapping[str, Mapping[str, Any]]
    trace_bytes: int
    unknown_words: Sequence[str] = ()
    cut_off: str = ""
    vocabulary: Sequence[str] | None = None
    stamp: Stamp
    diagnosis: Sequence[Mapping[str, Any]] | None = None
    variant: str | None = None


@dataclass(frozen=True, kw_only=True)
class PhotographFacts(Record):
    """What is recorded of a photograph that is looked at."""

    photograph: str
    noising: Mapping[str, Any]
    draws: int
    map_draws: int


@dataclass(frozen=True, kw_only=True)
class GenerationFacts(Record):
    """What is recorded of a generation that is looked at."""

    prompt: str | None
    model: str
    seed: int
    guidance_scale: float | None
    schedule: str | Sequence[int]
    timesteps: Sequence[float]
    draws: int = 1
    map_draws: int = 1


@dataclass(frozen=True, kw_only=True)
class LookRecord(Record):
    """One picture that a classifier looked at."""

    command: str
    subject: PhotographFacts | GenerationFacts
    classifier: str
    label: str
    labels: Sequence[str]
    kind: str
    frames: int
    mask: bool
    preset: str | None
    methods: Mapping[str, Mapping[str, Any]]
    stamp: Stamp

    def plain(self) -> dict[str, Any]:
        """Return the record with the keys of the subject beside the others."""
        keys = super().plain()
        return {"command": keys.pop("command"), **keys.pop("subject"), **keys}


@dataclass(frozen=True, kw_only=True)
class RecognitionRecord(Record):
    """All pictures of a study: the table of the moments, and what failed."""

    command: str
    preset: str | None
    classifier: str
    columns: Sequence[str]
    table: Sequence[Sequence[str]]
    failures: Mapping[str, str]
    interrupted: bool


@dataclass(frozen=True, kw_only=True)
class VariantFacts(Record):
    """One variant of a comparison; `relevance` is each word and its total along the run."""

    title: str
    prompt: str | None
    model: str | None
    seed: int | None
    schedule: str | Sequence[int] | None
    shift: float | None
    scheduler: str | None
    swapped_from: str | None
    lora: str | None
    guidance_scale: float | None
    timesteps: Sequence[float]
    log_snr: Sequence[float]
    coverage: Mapping[str, float]
    relevance: Sequence[tuple[str, float]]


@dataclass(frozen=True, kw_only=True)
class FactRecord(Record):
    """One fact in each picture, and the pictures in which it differs from the first."""

    name: str
    values: Mapping[str, str]
    changed: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class ComparisonRecord(Record):
    """All variants of a comparison: their grids, how their pictures differ, what failed."""

    command: str
    prompt: str | None
    along: str
    variants: Mapping[str, VariantFacts]
    distances: Sequence[Mapping[str, Any]]
    diagnosis: Sequence[Mapping[str, Any]]
    facts: Sequence[FactRecord]
    ratings: Mapping[str, Mapping[str, float]]
    failures: Mapping[str, str]
    stamp: Stamp


def _unfolded(value: Any) -> Any:
    """Return a value with every record inside it as a dictionary."""
    if isinstance(value, Record):
        return value.plain()
    if isinstance(value, Mapping):
        return {key: _unfolded(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_unfolded(entry) for entry in value]
    return value


def versions() -> dict[str, str]:
    """Return the installed version of each of `PACKAGES`."""
    return {name: version_of(name) for name in PACKAGES}


def version_of(package: str) -> str:
    """Return the installed version of a package, or "not installed"."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def json_of_record(run: Mapping[str, Any]) -> str:
    """Return a record as the text of run.json."""
    return json.dumps(plain(run), indent=2, ensure_ascii=False)


def plain(value: Any) -> Any:
    """Return JSON's own types for a value.

    NumPy numbers become Python's, tuples and arrays lists, NaN and infinity None, and anything else its text.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set, np.ndarray)):
        return [plain(entry) for entry in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
