"""The same picture several ways: one run under several schedules, shifts, seeds, guidances, schedulers or models.

What varies is one field of a `Request`; everything else, the noise at the start too, stays the same.
"""

import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from ..attributors.base import Attributor, explains_every_step, list_methods
from ..attributors.relevance import totals
from ..criteria import ALIKE
from ..errors import DenoscopeError, InputError, did_you_mean
from ..evaluation.diagnosis import indistinguishable
from ..evaluation.distances import distances
from ..figures.words import has_words
from ..recording.hooks.schedulers import refuse_no_lora
from ..recording.models import Model, load
from ..recording.schedules import coverage, takes_shift
from ..results.explanations import Explanation
from ..results.folders import folder_names
from ..vision.classifiers import Classifier, load_classifier
from ..vision.encoders import BUNDLED_CLIP, Features, load_encoder
from ..worlds.facts import Fact, scene_facts
from ..worlds.shapes.judge import is_readable, is_shapes_model
from .explain import Request, explained
from .job import Outcome, Watch, flags, shown_steps, stamp

AXES = {
    "schedule": "schedules",
    "shift": "shifts",
    "seed": "seeds",
    "guidance": "guidances",
    "scheduler": "schedulers",
    "model": "models",
    "lora": "lora",
}
"""The fields of a request that may vary, and what their several values are called on the command line."""
SCHEDULES = ("uniform", "early", "late")
"""What is compared when nothing else is asked for."""
EVERY_STEP = tuple(name for name in list_methods() if explains_every_step(name))
"""Methods that say something along the whole run: they explain every step unless steps are named."""
COMPARED = ("prompt", "model", "seed", "schedule", "shift", "scheduler", "swapped_from", "lora", "guidance_scale")
"""What the record of a comparison says of each variant, besides its grid."""


@dataclass(frozen=True)
class Comparison:
    """What `denoscope compare` was asked for: a run, `request`, and the values that one of its fields has in turn.

    >>> two = Comparison(Request("a red circle"), "schedule", ("early", "late"), shift=30)
    >>> {name: (request.schedule, request.shift) for name, request in two.variants().items()}
    {'early': ('early', 30), 'late': ('late', 30)}

    `shift` is that of every early and late schedule among the values. `methods` None means the relevance of words where
    the model reads text. `labels` are texts that `classifier` rates every picture by; `encoder` measures how far apart
    pictures are, None being the bundled CLIP for pictures of the bundled model. Raises `InputError`.
    """

    request: Request
    along: str = "schedule"
    values: tuple[Any, ...] = SCHEDULES
    shift: float | None = None
    methods: tuple[str, ...] | None = None
    labels: tuple[str, ...] = ()
    classifier: str = BUNDLED_CLIP
    encoder: str | None = None

    def __post_init__(self) -> None:
        if self.along not in AXES:
            raise InputError(f'Runs cannot be compared along "{self.along}". {did_you_mean(self.along, AXES)}')
        if len(self.values) < 2 or any(value in self.values[:i] for i, value in enumerate(self.values)):
            given = ", ".join(map(str, self.values)) or "none"
            raise InputError(
                f"The {AXES[self.along]} given are: {given}. A comparison needs at least 2 that differ, each once."
            )
        if self.shift is not None and self.along != "schedule":
            raise InputError(
                f"A shift of {self.shift:g} for several schedules was given, and the {AXES[self.along]} are what "
                "varies. Give the shift with the one schedule of the request."
            )
        if len(self.labels) == 1:
            raise InputError(
                f'The only label is "{self.labels[0]}". A picture is rated by at least 2 that exclude each other.'
            )
        self.variants()

    @classmethod
    def of(cls, asked: Mapping[str, Any], **rating: Any) -> "Comparison":
        """A comparison from settings as they were typed, None being what was left out.

        Whichever of `schedules`, `shifts`, `seeds`, `guidances`, `schedulers`, `models` and `lora` was given is what
        varies, the schedules if none was. Raises `InputError` where that is not one, or its one value was given too.
        """
        said = {name: value for name, value in asked.items() if value is not None}
        along, typed = _axis_of(said)
        values = SCHEDULES if typed is None else _values(along, typed)
        settings = {name: value for name, value in said.items() if name not in AXES.values()}
        methods = settings.pop("methods", None)
        shift = settings.pop("shift", None) if along == "schedule" else None
        return cls(Request(**{"prompt": None, **settings}), along, values, shift, methods, **rating)

    def variants(self) -> dict[str, Request]:
        """The runs by their names, which are those of their folders too."""
        made = [replace(self.request, **self._varied(value)) for value in self.values]
        return dict(zip(folder_names([_stem(title) for title in self.titles()]), made, strict=True))

    def titles(self) -> list[str]:
        """What each variant is called, in its own words."""
        return [TITLES[self.along](value) for value in self.values]

    def _varied(self, value: Any) -> dict[str, Any]:
        """The field that varies; a shift goes to the schedules that have one, and where none has, that is refused."""
        if self.along != "schedule":
            return {self.along: value}
        fits = takes_shift(value) or not any(map(takes_shift, self.values))
        return {"schedule": value, "shift": self.shift if fits else None}

    def attributors(self, model: Model) -> dict[str, Attributor]:
        """The methods with their options, by the name of their group in the result; there may be none."""
        methods = self.methods
        if methods is None:
            methods = ("relevance",) if model.takes_text and "relevance" in list_methods() else ()
        return replace(self.request, methods=methods).attributors() if methods else {}

    def steps(self, total: int, methods: Sequence[str]) -> dict[str, Sequence[int]]:
        """The steps that each method explains in a run of so many."""
        along = {name.replace("-", "_") for name in EVERY_STEP}
        few, whole = self.request.in_range(total), shown_steps(self.request.at, total, range(total))
        return {name: whole if name in along else few for name in methods}

    def command(self) -> str:
        """The command line that asks for the same again."""
        told = {"prompt": None, "methods": self.methods, self.along: None, "shift": self._one_shift()}
        one = {**vars(self.request), **told}
        several = [] if self.along == "lora" else [f"--{AXES[self.along]}", _joined(self.values)]
        if self.along == "lora":
            one["lora"] = next(value for value in self.values if value is not None)
        rest = {"classifier": self.classifier if self.labels else None, "encoder": self.encoder}
        labels = [word for label in self.labels for word in ("--label", label)]
        prompt = [] if self.request.prompt is None else [self.request.prompt]
        return shlex.join(["denoscope", "compare", *prompt, *several, *flags(one), *labels, *flags(rest)])

    def _one_shift(self) -> float | None:
        return {"schedule": self.shift, "shift": None}.get(self.along, self.request.shift)


def _axis_of(said: Mapping[str, Any]) -> tuple[str, str | None]:
    """The field that varies and its values as typed; raises `InputError` where that is not clear."""
    given = [along for along, several in AXES.items() if several in said]
    options = ", ".join(f"--{several}" for several in AXES.values())
    if len(given) > 1:
        both = " and ".join(f"--{AXES[along]}" for along in given)
        raise InputError(f"{both} were given. One thing varies at a time, so that what it does can be seen: {options}.")
    along = given[0] if given else "schedule"
    if along in said and along != AXES[along]:
        raise InputError(
            f"--{AXES[along]} and --{along} were given. What varies has several values and no other: leave --{along} "
            f"out, or let something else vary: {options}."
        )
    return along, said.get(AXES[along])


NUMBERS: dict[str, Callable[[str], float]] = {"shift": float, "seed": int, "guidance": float}


def _values(along: str, typed: str) -> tuple[Any, ...]:
    """What was typed, separated by commas; by semicolons where a schedule is a list of time steps itself."""
    if along == "lora":
        return None, typed
    words = [word.strip() for word in typed.split(";" if ";" in typed else ",") if word.strip()]
    read = NUMBERS.get(along, str)
    try:
        return tuple(read(word) for word in words)
    except ValueError:
        example = "0,1,2" if read is int else "10,30,60"
        raise InputError(
            f'--{AXES[along]} is "{typed}". Give numbers separated by commas, such as {example}.'
        ) from None


TITLES: dict[str, Callable[[Any], str]] = {
    "schedule": lambda value: value if isinstance(value, str) else f"{len(value)} time steps",
    "shift": lambda value: f"shift {value:g}",
    "seed": lambda value: f"seed {value}",
    "guidance": lambda value: f"guidance {value:g}",
    "scheduler": lambda value: "its own" if value is None else str(value),
    "model": str,
    "lora": lambda value: "without LoRA" if value is None else f"with {Path(value).name}",
}


def _stem(title: str) -> str:
    """A title as the name of a folder.

    >>> _stem("guidance 7.5"), _stem("someone/model"), _stem("band:600")
    ('guidance-7.5', 'someone-model', 'band-600')
    """
    return re.sub(r"[^\w.+=-]+", "-", title).strip("-.") or "variant"


def _joined(values: Sequence[Any]) -> str:
    """As the command line reads it: by commas, or by semicolons where a value has commas itself."""
    words = [",".join(map(str, value)) if isinstance(value, (tuple, list)) else f"{value}" for value in values]
    return (";" if any("," in word for word in words) else ",").join(words)


@dataclass
class Compared:
    """The result of each variant by its name, what went wrong with others, and how their pictures differ."""

    explanations: dict[str, Explanation] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    interruption: str | None = None
    distances: xr.Dataset | None = None
    facts: list[Fact] = field(default_factory=list)
    ratings: dict[str, dict[str, float]] = field(default_factory=dict)


def compare(
    comparison: Comparison,
    *,
    models: Mapping[str, Model] | None = None,
    encoder: Features | None = None,
    watch: Watch | None = None,
) -> Compared:
    """Record every variant, explain it, and say how the pictures differ.

    >>> found = compare(Comparison(Request("a red circle"), "seed", (0, 1)))                  # doctest: +SKIP
    >>> found.explanations["seed-1"].pictures.image, found.distances.ssim                        # doctest: +SKIP

    `models` are those that are loaded already, by the names that the requests have for them; `encoder` is any function
    from pictures (n, 3, H, W) in [0, 1] to features. Raises `InputError` for what cannot be done as asked, before
    anything is computed where that can be known, and what the first variant raises if none can be made; what another
    raises is in `failures`, and the others go on. On Ctrl-C what was finished is in the result, or `KeyboardInterrupt`
    goes on if that is nothing.
    """
    variants, found = comparison.variants(), Compared()
    classifier = load_classifier(comparison.classifier, list(comparison.labels)) if comparison.labels else None
    encoder = load_encoder(comparison.encoder) if encoder is None and comparison.encoder else encoder
    get = _Models(comparison, models or {})
    if comparison.along != "model":
        _refuse_early(comparison, get(comparison.request), variants.values())
    first: Exception | None = None
    for name, request in variants.items():
        try:
            found.explanations[name] = _variant(comparison, get(request), name, request, watch)
        except (DenoscopeError, RuntimeError) as error:
            first, found.failures[name] = first or error, str(error)
        except KeyboardInterrupt:
            if not found.explanations:
                raise
            found.interruption = f"Interrupted: {len(found.explanations)} of {len(variants)} variants were finished."
        if found.interruption or (found.explanations.get(name) and _stopped(found, name)):
            break
    if not found.explanations and first is not None:
        raise first
    _measure(found, classifier, encoder or _own_encoder(found))
    return found


def _stopped(found: Compared, name: str) -> bool:
    """Whether Ctrl-C stopped this variant while it was being explained; what it has is kept."""
    if found.explanations[name].run["interrupted"]:
        found.interruption = f"{name}: {found.explanations[name].run['interruption']}"
    return found.interruption is not None


class _Models:
    """The model of a request: one that is loaded already, or the one that was loaded last; no more are held."""

    def __init__(self, comparison: Comparison, loaded: Mapping[str, Model]):
        self.loaded = dict(loaded)
        self.options = dict(device=comparison.request.device, dtype=comparison.request.dtype)
        self.last: tuple[str, Model] | None = None

    def __call__(self, request: Request) -> Model:
        if request.model in self.loaded:
            return self.loaded[request.model]
        if self.last is None or self.last[0] != request.model:
            self.last = None  # before the next one is loaded
            model = load(request.model, **self.options)
            model.pipeline.set_progress_bar_config(disable=True)
            self.last = request.model, model
        return self.last[1]


def _refuse_early(comparison: Comparison, model: Model, requests: Iterable[Request]) -> None:
    """What a variant would be refused for: its time steps, scheduler, LoRA, methods, the steps to explain."""
    names = list(comparison.attributors(model))
    for request in requests:
        if request.lora is not None:
            refuse_no_lora(model.pipeline)
        expected = model.step_count(request.steps or 1, request.schedule, request.shift, request.scheduler)
        if expected and request.steps:
            comparison.steps(expected, names)


def _variant(comparison: Comparison, model: Model, name: str, request: Request, watch: Watch | None) -> Explanation:
    attributors = comparison.attributors(model)
    steps = partial(comparison.steps, methods=list(attributors))
    made = explained(model, request, attributors, steps, watch, f"{name}: ")
    made.run.update(command=comparison.command(), variant=name)
    return made


# How the pictures differ.


def _measure(found: Compared, classifier: Classifier | None, encoder: Features | None) -> None:
    pictures = {name: explanation.pictures["image"].values for name, explanation in found.explanations.items()}
    found.distances = distances(pictures, encoder)
    if _all_bundled(found) and all(map(is_readable, pictures.values())):
        found.facts = scene_facts({name: picture / 255 for name, picture in pictures.items()})
    if classifier is not None:
        found.ratings = {name: _rated(classifier, picture) for name, picture in pictures.items()}


def _all_bundled(found: Compared) -> bool:
    return all(is_shapes_model(explanation.run["model"]) for explanation in found.explanations.values())


def _own_encoder(found: Compared) -> Features | None:
    """The bundled CLIP knows nothing but the bundled model's world."""
    return load_encoder() if _all_bundled(found) else None


@torch.no_grad()
def _rated(classifier: Classifier, picture: np.ndarray) -> dict[str, float]:
    """The likelihood of each label for one picture."""
    seen = torch.from_numpy(picture.copy()).movedim(-1, 0)[None].float() / 255
    likelihoods = classifier.probabilities(classifier.normalise(seen))[0].tolist()
    return dict(zip(classifier.labels, likelihoods, strict=True))


# What is told and kept of all variants together.


def record(comparison: Comparison, found: Compared) -> dict[str, Any]:
    """The command, the exact grid of every variant, how their pictures differ, what failed."""
    titles = dict(zip(comparison.variants(), comparison.titles(), strict=True))
    seconds = {name: sum(explanation.run["seconds"].values()) for name, explanation in found.explanations.items()}
    told = {name: {"title": titles[name], **_told(each)} for name, each in found.explanations.items()}
    pairs = [] if found.distances is None else _pairs(found.distances)
    alike = indistinguishable(pairs, {name: each["relevance"] for name, each in told.items()}, ALIKE)
    return {
        "command": comparison.command(),
        "prompt": comparison.request.prompt,
        "along": comparison.along,
        "variants": told,
        "distances": pairs,
        "diagnosis": [alike.plain()],
        "facts": [{"name": fact.name, "values": fact.values, "changed": fact.changed} for fact in found.facts],
        "ratings": found.ratings,
        "failures": {titles[name]: why for name, why in found.failures.items()},
        **stamp(Outcome(seconds=seconds, interruption=found.interruption)),
    }


def _told(explanation: Explanation) -> dict[str, Any]:
    pictures, run = explanation.pictures, explanation.run
    return {
        **{name: run.get(name) for name in COMPARED},
        "timesteps": [_whole(value) for value in pictures["timestep"].values.tolist()],
        "log_snr": pictures["log_snr"].values.tolist(),
        "coverage": coverage(pictures["log_snr"].values.tolist()),
        "relevance": _totals(explanation),
    }


def _whole(timestep: float) -> float | int:
    return int(timestep) if timestep == int(timestep) else timestep


def _totals(explanation: Explanation) -> list[tuple[str, float]]:
    """Each word and Σ_t ρ_k(t) of its relevance, scaled at every step; a word that is there twice is told twice."""
    for method in explanation.methods().values():
        if has_words(method):
            total = totals(method)
            return list(zip(map(str, total["token"].values), total.values.tolist(), strict=True))
    return []


def _pairs(apart: xr.Dataset) -> list[dict[str, Any]]:
    """Every two pictures once, with what they are apart."""
    names = [str(name) for name in apart["a"].values]
    return [
        {"a": a, "b": b, **{str(name): float(values.sel(a=a, b=b)) for name, values in apart.items()}}
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    ]
