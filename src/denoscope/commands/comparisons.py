"""The settings of `denoscope compare`; importing them loads no torch.

One field of a `Request` varies. Everything else, the noise at the start too, stays the same.
"""

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..attributors import BUILT_IN
from ..errors import InputError, did_you_mean
from ..recording.schedules import takes_shift
from ..results.folders import folder_names
from ..results.together import Variants
from .job import Watch, check_once, flag_each, flags, shown_steps, worker
from .names import check_concepts, check_layers, check_methods, check_model, methods_for_runs, methods_with
from .requests import Request

if TYPE_CHECKING:
    from ..attributors.base import Attributor
    from ..recording.models import Model

AXES = {
    "schedule": "schedules",
    "shift": "shifts",
    "seed": "seeds",
    "guidance": "guidances",
    "scheduler": "schedulers",
    "model": "models",
    "lora": "lora",
}
"""The fields of a request that may vary, and the names of their several values on the command line."""
DEFAULT_METHODS = ("relevance",)
USUAL_SCHEDULES = ("uniform", "early", "late")
"""The values that are compared when none are given."""


@dataclass(frozen=True)
class Comparison:
    """The settings of a comparison: a run, `request`, and the values that one of its fields, `along`, has in turn.

    >>> two = Comparison(Request("a red circle"), "schedule", ("early", "late"), shift=30)
    >>> {name: (request.schedule, request.shift) for name, request in two.variants().items()}
    {'early': ('early', 30), 'late': ('late', 30)}

    `shift` is that of every early and late schedule among the values. `methods` None means the relevance of words if
    the model reads text; the request's options about words add methods as they do in a `Request`. `labels` are texts
    that `classifier` rates every picture by. `encoder` measures how far apart pictures are; None means the bundled CLIP
    for pictures of the bundled model. Raises `InputError` for settings that cannot be used.
    """

    request: Request
    along: str = "schedule"
    values: tuple[Any, ...] = USUAL_SCHEDULES
    shift: float | None = None
    methods: tuple[str, ...] | None = None
    labels: tuple[str, ...] = ()
    classifier: str = "shapes"
    encoder: str | None = None

    def __post_init__(self) -> None:
        if self.along not in AXES:
            raise InputError(f'Runs cannot be compared along "{self.along}". {did_you_mean(self.along, AXES)}')
        check_once(AXES[self.along], self.values, least=2)
        if self.shift is not None and self.along != "schedule":
            raise InputError(
                f"A shift of {self.shift:g} for several schedules was given, but the {AXES[self.along]} vary. Give "
                "the shift with the one schedule of the request."
            )
        if len(self.labels) == 1:
            raise InputError(f'The only label is "{self.labels[0]}". Give at least 2 labels that exclude each other.')
        if self.methods:
            check_methods(self.methods, methods_for_runs())
        methods = self._running_methods(DEFAULT_METHODS)
        check_concepts(methods, self.request.concepts)
        if self.request.layers:
            check_layers(self.request.layers, methods)
        self.variants()

    def variants(self) -> dict[str, Request]:
        """Return the runs by their names, which are those of their folders too."""
        requests = [replace(self.request, **self._varied(value)) for value in self.values]
        names = folder_names([_stem(title) for title in self.titles()])
        return dict(zip(names, requests, strict=True))

    def titles(self) -> list[str]:
        """Return a title for each variant, for people."""
        return [title_of(self.along, value) for value in self.values]

    def _varied(self, value: Any) -> dict[str, Any]:
        """Return the fields that a variant has of its own.

        A shift goes to the schedules that take one; if none does, it goes to all, and the request refuses it.
        """
        if self.along != "schedule":
            return {self.along: value}
        fits = takes_shift(value) or not any(map(takes_shift, self.values))
        return {"schedule": value, "shift": self.shift if fits else None}

    def check(self, loaded: Mapping[str, object] | None = None) -> None:
        """Raise `ModelError` for the name of a variant's model that can be none, unless it is loaded already.

        Raises `InputError` for a file that is no picture.
        """
        for request in self.variants().values():
            if request.model not in (loaded or {}):
                check_model(request.model)
        self.request.check_files()

    def run(self, watch: Watch | None = None) -> Variants:
        """Record every variant, explain it and compare the pictures; see `denoscope.compare`."""
        self.check()
        return cast(Variants, worker("compare")(self, watch=watch))

    def attributors(self, model: "Model") -> "dict[str, Attributor]":
        """Return the methods with their options, by the name of their group in the result; there may be none."""
        methods = self._running_methods(DEFAULT_METHODS if model.takes_text and self.request.prompt else ())
        return replace(self.request, methods=methods).attributors() if methods else {}

    def _running_methods(self, default: tuple[str, ...]) -> tuple[str, ...]:
        """Return the names of the methods that run, those that an option about words adds among them."""
        return methods_with([*self.request.options_about_words], self.methods, default)

    def steps(self, total: int, groups: Sequence[str]) -> dict[str, Sequence[int]]:
        """Return the steps that each method explains in a run of `total` steps, by the name of its group."""
        from ..attributors.base import explains_every_step

        names = self.methods or (*BUILT_IN,)
        every_step = {name.replace("-", "_") for name in names if explains_every_step(name)}
        few, whole = self.request.steps_to_explain(total), shown_steps(self.request.at, total, range(total))
        return {group: whole if group in every_step else few for group in groups}

    def command(self) -> str:
        """Return the command line that asks for the same again."""
        one: dict[str, Any] = {**self.request.single(), "methods": self.methods, self.along: None}
        one["shift"] = self._one_shift()
        several = [f"--{AXES[self.along]}", _joined(self.values)]
        if self.along == "lora":
            one["lora"] = next(value for value in self.values if value is not None)
            several = []
        rest = {"classifier": self.classifier if self.labels else None, "encoder": self.encoder}
        prompt = [] if self.request.prompt is None else [self.request.prompt]
        again = [*self.request.repeated(), *flag_each("label", self.labels)]
        return shlex.join(["denoscope", "compare", *prompt, *several, *flags(one), *again, *flags(rest)])

    def _one_shift(self) -> float | None:
        """Return the shift that the command line has as one value."""
        if self.along == "schedule":
            return self.shift
        return None if self.along == "shift" else self.request.shift


@dataclass(frozen=True)
class Several:
    """The values of each field as typed on the command line, separated by commas; None is what was left out.

    >>> Several(seeds="0,1").axis(seed=None)
    ('seed', (0, 1))
    """

    schedules: str | None = None
    shifts: str | None = None
    seeds: str | None = None
    guidances: str | None = None
    schedulers: str | None = None
    models: str | None = None
    lora: str | None = None

    def axis(self, **one: object) -> tuple[str, tuple[Any, ...]]:
        """Return the field that varies and its values; the schedules vary if nothing else was typed.

        `one` are the single values of the fields, None if left out. Raises `InputError` if several fields vary, or the
        field that varies has a single value too.
        """
        options = ", ".join(f"--{name}" for name in AXES.values())
        typed = [along for along, several in AXES.items() if getattr(self, several) is not None]
        if len(typed) > 1:
            both = " and ".join(f"--{AXES[along]}" for along in typed)
            raise InputError(
                f"{both} were given. One thing varies at a time, so that its effect can be seen: {options}."
            )
        along = typed[0] if typed else "schedule"
        if one.get(along) is not None:
            raise InputError(
                f"--{AXES[along]} and --{along} were given. A field that varies has several values and no other: leave "
                f"--{along} out, or let something else vary: {options}."
            )
        text = getattr(self, AXES[along])
        return along, USUAL_SCHEDULES if text is None else _values(along, text)


NUMBERS: dict[str, Callable[[str], float]] = {"shift": float, "seed": int, "guidance": float}
"""The fields whose values are numbers."""


def _values(along: str, typed: str) -> tuple[Any, ...]:
    """Return values separated by commas, or by semicolons if a schedule is a list of time steps itself."""
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


def title_of(along: str, value: Any) -> str:
    """Return the title of a variant.

    >>> title_of("seed", 3), title_of("lora", None), title_of("guidance", 7.5)
    ('seed 3', 'without LoRA', 'guidance 7.5')
    """
    match along:
        case "schedule":
            return value if isinstance(value, str) else f"{len(value)} time steps"
        case "shift" | "guidance":
            return f"{along} {value:g}"
        case "seed":
            return f"seed {value}"
        case "scheduler":
            return "its own" if value is None else str(value)
        case "lora":
            return "without LoRA" if value is None else f"with {Path(value).name}"
    return str(value)


def _stem(title: str) -> str:
    """Return a title as the name of a folder.

    >>> _stem("guidance 7.5"), _stem("someone/model"), _stem("band:600")
    ('guidance-7.5', 'someone-model', 'band-600')
    """
    return re.sub(r"[^\w.+=-]+", "-", title).strip("-.") or "variant"


def _joined(values: Sequence[Any]) -> str:
    """Return values as the command line reads them, with semicolons if a value has commas itself."""
    words = []
    for value in values:
        words.append(",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value))
    separator = ";" if any("," in word for word in words) else ","
    return separator.join(words)
