"""The trust bench: every method on many pictures, against what is known of them; a trial is one picture.

On the bundled world the pictures are drawn from scenes, whose objects the judge finds; of any other model they are made
of the user's prompts, with masks that the user gives. What is found of a picture is kept in a `Ledger` as soon as it is
there, so that work can be stopped and goes on where it was; `collected` brings all trials together.
"""

import functools
import json
import multiprocessing
import os
import shlex
import shutil
import time
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
import xarray as xr

from ..attributors.base import Advance, Attributor, list_methods, method
from ..attributors.gradients import GradientShap, IntegratedGradients
from ..attributors.masks import GridMasks
from ..attributors.occlusion import Occlusion
from ..criteria import FAILED, PASSED, UNSURE
from ..errors import DenoscopeError, InputError, Interrupted, did_you_mean, one_line, sentence
from ..evaluation import (
    BASELINES,
    GAMES,
    Attack,
    Baseline,
    MaximumBall,
    Probe,
    Resampling,
    WithinMask,
    attacks,
    contrast_map,
    games,
    gradient_map,
    has_fallen,
    localisation,
    neighbour_agreement,
    noise_agreement,
    over_scenes,
    prompt_randomisation,
    resampling,
    root_mean_square,
    seed_agreement,
    stages_of,
    weight_randomisation,
)
from ..evaluation.baselines import random_map
from ..evaluation.resampling import Distance
from ..recording.models import Model, load
from ..recording.traces import Trace
from ..report.leaderboard import render_leaderboard, table_of, with_intervals
from ..results.folders import write_whole
from ..results.resumable import Ledger
from ..targets import ClassScore, Closeness
from ..vision.classifiers import load_classifier
from ..vision.encoders import load_encoder
from ..worlds.shapes.judge import is_shapes_model
from .job import PACKAGES, Watch, fitting, flags, version_of
from .subjects import NotAsTold, Subject, bundled_subject, subjects_of

OF_CLASS = ("integrated-gradients", "gradient-shap", "occlusion")
"""Methods that explain a class, through the denoiser."""
OF_WORDS = ("words", "relevance", "relevance-reference")
"""Methods with a map for every word; what is judged is the mean of a phrase's."""
PLACES = {"early": 0.2, "middle": 0.5, "late": 0.8}
"""Where in a run the steps are that are explained unless others are named."""
USUAL = ("localisation", "games", "infidelity", "resampling", "stability", "sanity")
CHECKS = (*USUAL, "attacks")
"""The attacks, which take minutes a picture, only where they are asked for."""
SPARE = 3
"""Scenes at hand for each that is wanted, as the model does not always draw what it is told."""

Values = dict[str, list[float]]
"""By measure, a value for each step."""


@dataclass(frozen=True)
class Evaluation:
    """What `denoscope evaluate` was asked for; None means what suits the model: of a model of one's own all prompts, no
    method that explains a class, and no check that what was given does not allow (`left_out`).

    `checks` at one step alone, the middle one: stability, sanity and attacks, which explain a picture many times over.
    """

    model: str = "shapes"
    scenes: int | None = None
    prompts: str | None = None
    masks: str | None = None
    methods: tuple[str, ...] | None = None
    checks: tuple[str, ...] | None = None
    at: tuple[int, ...] | None = None
    steps: int = 30
    guidance: float | None = None
    seed: int = 0
    num_masks: int = 256
    encoder: str | None = None
    device: str | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        self._refuse_unknown()
        self._refuse_what_does_not_apply()
        self._refuse_impossible_numbers()

    def _refuse_unknown(self) -> None:
        for name, known in (("methods", known_methods()), ("checks", CHECKS)):
            given = getattr(self, name)
            if given is not None and (not given or len(set(given)) < len(given)):
                raise InputError(f"The {name} given are: {', '.join(given) or 'none'}. Give at least one, each once.")
            if wrong := [word for word in given or () if word not in known]:
                raise InputError(f'There is no {name[:-1]} "{wrong[0]}". {did_you_mean(wrong[0], known)}')

    def _refuse_what_does_not_apply(self) -> None:
        if self.bundled and (self.prompts or self.masks):
            raise InputError(
                f'The model "{self.model}" is evaluated on its own scenes, whose masks are known. --prompts and '
                "--masks are for other models: leave them out, or name one with --model."
            )
        if self.bundled and self.seed:
            raise InputError(
                f"The seed is {self.seed}, and the scenes of the bundled model have seeds of their own. --seed is that "
                "of the pictures of --prompts: leave it out."
            )
        if not self.bundled and self.prompts is None:
            raise InputError(
                f'What "{self.model}" should draw is not known. Give --prompts FILE, a prompt a line, and --masks '
                "FOLDER with masks named after the lines, or evaluate the bundled model, shapes."
            )
        if self.checks and (wrong := [check for check in self.checks if check in self.left_out]):
            raise InputError(f"{wrong[0].capitalize()} cannot be checked: {self.left_out[wrong[0]]}.")
        if not self.bundled and (wrong := [name for name in self.methods or () if name in OF_CLASS]):
            raise InputError(
                f"{wrong[0]} explains a class, and which one a prompt's picture is of is not known. Leave it out; the "
                "bundled model's own scenes have one."
            )

    def _refuse_impossible_numbers(self) -> None:
        if self.scenes is not None and self.scenes < 2:
            raise InputError(
                f"{self.scenes} scenes were asked for. An interval over scenes needs at least 2; 50 are usual."
            )
        if self.steps < 1:
            raise InputError(f"The number of steps is {self.steps}. It must be at least 1; 20 to 50 are usual.")
        shown = self.shown
        if not shown or len(set(shown)) < len(shown) or not all(0 <= step < self.steps for step in shown):
            raise InputError(
                f"The steps {', '.join(map(str, shown)) or '(none)'} cannot be explained: a run has "
                f"{self.steps} steps, 0 (the noisiest) to {self.steps - 1}. Name some of these, each once."
            )

    @property
    def bundled(self) -> bool:
        return is_shapes_model(self.model)

    @property
    def shown(self) -> tuple[int, ...]:
        """The steps that are explained."""
        chosen = self.at or tuple(dict.fromkeys(round(place * self.steps) for place in PLACES.values()))
        return tuple(sorted(chosen))

    @property
    def middle(self) -> int:
        """The step at which stability, sanity and attacks are checked."""
        return self.shown[len(self.shown) // 2]

    @property
    def chosen(self) -> tuple[str, ...]:
        """The methods, without the baselines, which are always there."""
        if self.methods is not None:
            return self.methods
        return known_methods() if self.bundled else tuple(list_methods())

    @property
    def left_out(self) -> dict[str, str]:
        """The checks that what was given does not allow, and why."""
        found = {}
        if not self.bundled and self.masks is None:
            found["localisation"] = "where things are is not known without --masks FOLDER"
        if not self.bundled and self.encoder is None:
            found["games"] = "how far pictures are apart is measured by a vision model, --encoder"
        return found

    @property
    def checked(self) -> tuple[str, ...]:
        """The checks."""
        return tuple(check for check in USUAL if check not in self.left_out) if self.checks is None else self.checks

    @property
    def wanted(self) -> int:
        """How many pictures: what was asked for, else 50 scenes or every prompt."""
        return (50 if self.bundled else len(self.subjects())) if self.scenes is None else self.scenes

    @property
    def scale(self) -> float | None:
        """The guidance scale; the bundled model's examples have 3."""
        return 3.0 if self.guidance is None and self.bundled else self.guidance

    @property
    def encoder_name(self) -> str | None:
        """What measures the games."""
        return self.encoder or ("shapes" if self.bundled else None)

    def subjects(self) -> list[Subject]:
        """The pictures there may be; of scenes more than are wanted."""
        if self.bundled:
            return [bundled_subject(number) for number in range(SPARE * self.wanted)]
        found = subjects_of(self.prompts or "", self.masks, self.seed)[: self.scenes]
        if len(found) < 2:
            raise InputError(f'"{self.prompts}" has {len(found)} prompt. An interval needs at least 2 pictures.')
        return found

    def settings(self) -> dict[str, Any]:
        """What results of one table must have in common: all but how many there are and where they are computed."""
        left_out = ("scenes", "device")
        kept = {name: value for name, value in asdict(self).items() if name not in left_out}
        return {
            **kept,
            "methods": self.chosen,
            "checks": self.checked,
            "at": self.shown,
            "guidance": self.scale,
            "denoscope": version_of("denoscope"),
        }

    def command(self) -> str:
        """The command line that asks for the same again."""
        usual = {name: field.default for name, field in self.__dataclass_fields__.items()}
        said = {name: value for name, value in vars(self).items() if value != usual[name]}
        return shlex.join(["denoscope", "evaluate", *flags(said)])


def known_methods() -> tuple[str, ...]:
    """The methods that can be evaluated: the registered ones, and those that explain a class."""
    return (*list_methods(), *OF_CLASS)


# Methods as they are put to a picture.


@dataclass(frozen=True)
class OfPhrase(Attributor):
    """A method with a map for every word as one with a single map: the mean over a phrase's words, or over all."""

    inner: Attributor
    phrase: tuple[str, ...] | None

    @property
    def title(self) -> str:  # type: ignore[override]
        return self.inner.title

    def explain(self, step: Any, advance: Advance) -> Any:
        raise InputError("A step does not know the words of its prompt, its trace does. Call this with the trace.")

    def __call__(self, sequence: Any, steps: Sequence[int] | None = None, **options: Any) -> xr.Dataset:
        found = self.inner(sequence, steps, **options)
        read = found.saliency.token.values.tolist()
        if lost := [word for word in self.phrase or () if word not in read]:
            raise InputError(
                f'The word "{lost[0]}" of the phrase is not among those that the model reads, which end in '
                f'"{read[-1]}": the end of a long prompt is cut off. Shorten it.'
            )
        saliency = found.saliency if self.phrase is None else found.saliency.sel(token=list(self.phrase))
        return xr.Dataset({"saliency": saliency.mean("token")}, attrs=found.attrs)


def attributor_of(name: str, evaluation: Evaluation, subject: Subject) -> Attributor:
    """A method or a baseline by its name, set for a picture; raises `InputError` where it does not apply."""
    if name == "random":  # another one for every picture, or all scenes would have one and the same
        return Baseline(functools.partial(random_map, seed=zlib.crc32(subject.name.encode())))
    if name in BASELINES:
        return Baseline(BASELINES[name])
    if name in OF_CLASS:
        return _of_class(name, subject)
    options = {"num_masks": evaluation.num_masks, "num_samples": evaluation.num_masks}
    made = method(name, **fitting(name, options))
    return OfPhrase(made, subject.phrase) if name in OF_WORDS else made


def _of_class(name: str, subject: Subject) -> Attributor:
    if subject.label is None:
        raise InputError(f"{name} explains a class, and which one the picture is of is not known.")
    target = ClassScore(_classifier(subject.labels), subject.label)
    made: dict[str, Callable[[], Attributor]] = {
        "integrated-gradients": lambda: IntegratedGradients(target, n_steps=20),
        "gradient-shap": lambda: GradientShap(target, n_samples=50),
        "occlusion": lambda: Occlusion(target),
    }
    return made[name]()


@functools.lru_cache(maxsize=8)
def _classifier(labels: tuple[str, ...]) -> Any:
    return load_classifier("shapes", list(labels))


@functools.lru_cache(maxsize=1)
def _encoder(name: str) -> Any:
    return load_encoder(name)


@functools.lru_cache(maxsize=1)
def _model(name: str, device: str | None, dtype: str | None) -> Model:
    loaded = load(name, device=device, dtype=dtype)
    loaded.pipeline.set_progress_bar_config(disable=True)
    return loaded


# One trial.


@dataclass(frozen=True)
class Case:
    """A recorded picture with what is known of it, and what all methods are measured with."""

    evaluation: Evaluation
    subject: Subject
    trace: Trace
    masks: np.ndarray | None
    encoder: Callable[[torch.Tensor], torch.Tensor] | None
    probes: dict[int, Probe]
    other: Trace | None

    @classmethod
    def of(cls, evaluation: Evaluation, subject: Subject) -> "Case":
        trace = _traced(evaluation, subject.prompt, subject.seed)
        masks = subject.masks(np.asarray(trace.image, dtype=np.float64))
        name = evaluation.encoder_name if "games" in evaluation.checked else None
        probing = evaluation.shown if "infidelity" in evaluation.checked else ()
        probes = {step: Probe.of(trace[step], Closeness(), count=128) for step in probing}
        other = _traced(evaluation, subject.other, subject.seed) if "sanity" in evaluation.checked else None
        return cls(evaluation, subject, trace, masks, _encoder(name) if name else None, probes, other)

    def mask_for(self, name: str) -> np.ndarray | None:
        """Where a method's map should be high: all things, or the one of the class."""
        if self.masks is None:
            return None
        return np.asarray(self.masks[0] if name in OF_CLASS else self.masks.any(axis=0))


def _traced(evaluation: Evaluation, prompt: str, seed: int) -> Trace:
    model = _model(evaluation.model, evaluation.device, evaluation.dtype)
    options: dict[str, Any] = {} if evaluation.scale is None else {"guidance_scale": evaluation.scale}
    return model.trace(prompt, seed=seed, num_inference_steps=evaluation.steps, output_type="np", **options)


@dataclass(frozen=True)
class Kept:
    """What was measured of a picture before, some of which failed."""

    found: Mapping[str, Any]
    maps: Mapping[str, np.ndarray]

    def whole(self, name: str) -> bool:
        """Whether a method, and every check of it, was measured."""
        failed = {what.partition(", ")[0] for what in self.found.get("failures", {})}
        return name in self.found.get("scores", {}) and name not in failed


def trial(
    evaluation: Evaluation, subject: Subject, before: Kept | None = None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Everything that is measured of one picture, and the maps by their methods' names, (step, y, x).

    What fails is told in `failures`, by method and check, and the rest goes on; `passed_over` is why there is no
    picture to measure anything of. Methods that were measured `before` are not measured again. Raises `InputError`
    where a picture cannot be made as asked.
    """
    try:
        case = Case.of(evaluation, subject)
    except NotAsTold as why:
        return {"subject": asdict(subject), "passed_over": str(why), "failures": {}}, {}
    except InputError:
        raise
    except Exception as error:
        told = _why(error)
        return {"subject": asdict(subject), "passed_over": told, "failures": {"the picture": told}}, {}
    scores: dict[str, Values] = {}
    maps: dict[str, np.ndarray] = {}
    failures: dict[str, str] = {}
    seconds: dict[str, float] = {}
    for name in (*evaluation.chosen, *BASELINES):
        if before is not None and before.whole(name):
            scores[name], maps[name] = before.found["scores"][name], before.maps[name]
            seconds[name] = before.found["seconds"][name]
            continue
        began = time.process_time()
        try:
            attributor = attributor_of(name, evaluation, subject)
            saliency = attributor(case.trace, evaluation.shown).saliency
        except Exception as error:
            failures[name] = _why(error)
            continue
        seconds[name] = time.process_time() - began
        maps[name] = saliency.values.astype(np.float32)
        scores[name] = _checked(case, name, attributor, saliency, failures)
    found = {"subject": asdict(subject), "scores": scores, "failures": failures, "seconds": seconds}
    return found, {**maps, "mask": np.zeros(0, bool) if case.masks is None else case.masks}


def _checked(case: Case, name: str, attributor: Attributor, saliency: xr.DataArray, failures: dict[str, str]) -> Values:
    """What every check measures of a method; what fails is entered in `failures`."""
    found: Values = {}
    for check in case.evaluation.checked:
        try:
            found |= MEASURED[check](case, name, attributor, saliency)
        except Exception as error:
            failures[f"{name}, {check}"] = _why(error)
    return found


def _why(error: Exception) -> str:
    """One line; of what was not foreseen with its kind."""
    kind = "" if isinstance(error, DenoscopeError) else f"{type(error).__name__}: "
    return one_line(f"{kind}{error}", 600)


def _by_step(values: xr.DataArray) -> list[float]:
    return [float(value) for value in values.values]


def _localised(case: Case, name: str, attributor: Attributor, saliency: xr.DataArray) -> Values:
    mask = case.mask_for(name)
    if mask is None:
        return {}
    return {str(measure): _by_step(values) for measure, values in localisation(saliency, mask).items()}


def _played(case: Case, name: str, attributor: Attributor, saliency: xr.DataArray) -> Values:
    if case.encoder is None:
        return {}
    found = games(case.trace, saliency, case.encoder)
    return {game: _by_step(found.auc.sel(game=game)) for game in GAMES}


def _foretold(case: Case, name: str, attributor: Attributor, saliency: xr.DataArray) -> Values:
    found = [case.probes[step].infidelity(saliency.sel(step=step).values) for step in case.evaluation.shown]
    return {measure: [row[measure] for row in found] for measure in ("infidelity_beyond_area", "relative_infidelity")}


def _resampled(case: Case, name: str, attributor: Attributor, saliency: xr.DataArray) -> Values:
    mask = case.mask_for(name)
    distances: dict[str, Distance] = {"resampling, picture": root_mean_square}
    if mask is not None:
        distances["resampling, object"] = WithinMask(mask)
    drawn = Resampling(draws=1, seed=case.subject.seed)  # other noise for every picture, as the intervals are over them
    found = resampling(case.trace, saliency, distances, drawn).advantage
    return {measure: _by_step(found.sel(distance=measure)) for measure in distances}


def _stable(case: Case, name: str, attributor: Attributor, saliency: xr.DataArray) -> Values:
    at, seed = [case.evaluation.middle], case.subject.seed
    noise = noise_agreement(attributor, case.trace, at, draws=1, seed=seed, own=saliency)
    found = {"noise agreement": noise.mean("draw")}
    if at[0] > 0:
        both = [attributor(case.trace, [at[0] - 1]).saliency, saliency.sel(step=at)]
        found["neighbour agreement"] = neighbour_agreement(xr.concat(both, "step"))
    if any(name == "seed" for name in getattr(attributor, "__dataclass_fields__", ())):
        found["seed agreement"] = seed_agreement(attributor, case.trace, at, seeds=(0, 1)).mean("pair")
    return {measure: _only_at(case, values) for measure, values in found.items()}


def _sane(case: Case, name: str, attributor: Attributor, saliency: xr.DataArray) -> Values:
    at = [case.evaluation.middle]
    stages = list(stages_of(case.trace, at[0]))
    chosen = list(dict.fromkeys([stages[0], stages[len(stages) // 2], stages[-1]]))
    found = weight_randomisation(attributor, case.trace, at, stages=chosen, seed=case.subject.seed, own=saliency)
    told = dict(zip(("output", "half", "all"), chosen, strict=False))
    values = {f"weights, {part}": found.agreement.sel(stage=stage) for part, stage in told.items()}
    values["chance"] = found.random_level.sel(stage=stages[-1])
    if name not in OF_WORDS and case.other is not None:
        values["another prompt"] = prompt_randomisation(attributor, case.trace, case.other, at, own=saliency).agreement
    return {measure: _only_at(case, one) for measure, one in values.items()}


def _attacked(case: Case, name: str, attributor: Attributor, saliency: xr.DataArray) -> Values:
    """Of the two kinds of map that are differentiable functions of the sample; the others have nothing to say here."""
    step = case.trace[case.evaluation.middle]
    if name == "df-rise-contrast":
        watched = contrast_map(step, Closeness(), _few_masks(step, case.evaluation.num_masks))
    elif name == "gradient":
        watched = gradient_map(step)
    else:
        return {}
    final = functools.partial(case.trace.continued, step.index)
    found = attacks(step, watched, final, Attack(MaximumBall(0.05), iterations=20, seed=case.subject.seed))
    told = {
        "attack, map": found.map_agreement.sel(attack="move the map"),
        "attack, random": found.map_agreement.sel(attack="random"),
        "attack, picture": found.picture_change.sel(attack="move the picture"),
    }
    return {measure: _only_at(case, values.expand_dims(step=[step.index])) for measure, values in told.items()}


def _few_masks(step: Any, num_masks: int) -> np.ndarray:
    """At most 32: the gradient goes through a prediction of every one of them."""
    (height, width), count = step.sample.shape[-2:], min(num_masks, 32)
    return np.concatenate(list(GridMasks().stream(height, width, 0, count, count)))


def _only_at(case: Case, values: xr.DataArray) -> list[float]:
    """The value of the middle step, and none at the others."""
    return [
        float(values.sel(step=step)) if step == case.evaluation.middle else float("nan")
        for step in case.evaluation.shown
    ]


MEASURED: dict[str, Callable[[Case, str, Attributor, xr.DataArray], Values]] = {
    "localisation": _localised,
    "games": _played,
    "infidelity": _foretold,
    "resampling": _resampled,
    "stability": _stable,
    "sanity": _sane,
    "attacks": _attacked,
}


# All of them.


@dataclass(frozen=True)
class _Work:
    """A trial as a process of its own does it: unless it is there already, measured and written."""

    evaluation: Evaluation
    ledger: Ledger

    def __call__(self, subject: Subject) -> dict[str, Any]:
        known = self.ledger.read(subject.name)
        if known is not None and known["subject"] != json.loads(json.dumps(asdict(subject))):
            known = None  # another picture: a file of prompts, or a mask, has changed since
        if known is not None and not known["failures"]:
            return known
        before = None if known is None else Kept(known, self.ledger.arrays(subject.name))
        found, maps = trial(self.evaluation, subject, before)
        self.ledger.write(subject.name, found, maps)
        return found


def evaluate(
    evaluation: Evaluation, ledger: Ledger, *, workers: int = 1, watch: Watch | None = None
) -> list[dict[str, Any]]:
    """Trials until enough pictures were measured, in the subjects' order; those in the ledger are not done again, but
    for what failed in them.

    With several `workers` pictures are measured side by side, in processes of one thread each. Raises `InputError`
    where fewer than two pictures could be measured, and `Interrupted` where a process was ended from outside.
    """
    if workers < 1:
        raise InputError(f"{workers} workers were asked for. It must be at least 1; one a processor is usual.")
    subjects, done, passed_over = evaluation.subjects(), [], []
    advance = watch("Pictures", min(evaluation.wanted, len(subjects))) if watch else None
    with closing(_found(_Work(evaluation, ledger), subjects, workers, evaluation.wanted)) as made:
        for found in made:
            if "passed_over" in found:
                passed_over.append(found["passed_over"])
                continue
            done.append(found)
            if advance:
                advance(1)
    if len(done) < 2:
        first = f" The first of the others: {sentence(passed_over[0])}" if passed_over else ""
        raise InputError(
            f"Of {len(subjects)} pictures {len(done)} could be measured, and an interval needs at least 2.{first}"
        )
    return done


def _found(
    work: _Work, subjects: Sequence[Subject], workers: int, wanted: int
) -> Generator[dict[str, Any], None, None]:
    """Trial after trial in the subjects' order, until so many were measured; none is begun that may not be wanted."""
    submit, left = _submitter(work, workers), iter(subjects)
    waiting: deque[Callable[[], dict[str, Any]]] = deque()
    measured = 0
    with submit as begin:
        while True:
            room = min(wanted - measured, 2 * workers) - len(waiting)
            waiting.extend(begin(subject) for subject in islice(left, max(room, 0)))
            if not waiting:
                return
            found = waiting.popleft()()
            measured += "passed_over" not in found
            yield found


@contextmanager
def _submitter(work: _Work, workers: int) -> Iterator[Callable[[Subject], Callable[[], dict[str, Any]]]]:
    """Opens what begins a trial and returns what waits for it: at once and here, or in processes side by side."""
    if workers < 2:
        yield lambda subject: functools.partial(work, subject)
        return
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _one_thread)
    try:
        yield lambda subject: pool.submit(work, subject).result
    except BrokenProcessPool as error:
        raise Interrupted(
            f"One of the {workers} processes was ended from outside, as is done where memory is short. The pictures "
            "finished are kept: the same command goes on, with fewer --workers if that was it."
        ) from error
    except BaseException:
        for process in set(multiprocessing.active_children()) - others:
            process.kill()  # they do not hear Ctrl-C, and a picture takes minutes
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def unmade(evaluation: Evaluation, ledger: Ledger) -> list[dict[str, Any]]:
    """The trials whose picture could not be made, for a failure and not for what it shows."""
    known = [ledger.read(subject.name) for subject in evaluation.subjects()]
    return [found for found in known if found is not None and "passed_over" in found and found["failures"]]


def _one_thread() -> None:
    """Processes share the processor, so each has one thread; Ctrl-C is the parent's affair."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def workers_for(device: str | None) -> int:
    """As many as there are processors, or one where a device does the work."""
    if device not in (None, "cpu") or torch.cuda.is_available():
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def prepare(evaluation: Evaluation) -> None:
    """Find out now what would fail at every picture; raises `InputError` for a wrong model, encoder or option."""
    subject = evaluation.subjects()[0]
    for name in evaluation.chosen:
        attributor_of(name, evaluation, subject)
    _model(evaluation.model, evaluation.device, evaluation.dtype)
    if evaluation.encoder_name and "games" in evaluation.checked:
        _encoder(evaluation.encoder_name)


def forget() -> None:
    """Let go of the networks that `prepare` loaded, where other processes load their own."""
    for loaded in (_model, _encoder, _classifier):
        loaded.cache_clear()


def collected(evaluation: Evaluation, ledger: Ledger, trials: Sequence[Mapping[str, Any]]) -> xr.Dataset:
    """All trials: `score` (measure, scene, attributor, step), NaN where something does not apply or failed.

    Beside what was measured stand the gains in the games over the random map of the same scene, above 0 being better,
    and what is left of a map above the random level when all weights are random.
    """
    methods = [*evaluation.chosen, *BASELINES]
    measures = list(dict.fromkeys(m for t in trials for of in t["scores"].values() for m in of))
    score = np.full((len(measures), len(trials), len(methods), len(evaluation.shown)), np.nan)
    for j, found in enumerate(trials):
        for name, of in found["scores"].items():
            for measure, values in of.items():
                score[measures.index(measure), j, methods.index(name)] = values
    coords = {
        "measure": measures,
        "scene": [found["subject"]["name"] for found in trials],
        "attributor": methods,
        "step": list(evaluation.shown),
    }
    scores = xr.DataArray(score, coords, ("measure", "scene", "attributor", "step"))
    gains = [_gain(scores, game) for game in GAMES if game in measures]
    gains += [_left(scores)] if "weights, all" in measures else []
    baseline = xr.DataArray([name in BASELINES for name in methods], {"attributor": methods}, ("attributor",))
    told = xr.Dataset({"score": xr.concat([scores, *gains], "measure"), "baseline": baseline})
    return told.assign(_maps(ledger, told))


def _gain(scores: xr.DataArray, game: str) -> xr.DataArray:
    """How much better than the random map in a game, so that more is better."""
    of = scores.sel(measure=game)
    sign = 1 if GAMES[game].higher_is_better else -1
    gain = sign * (of - of.sel(attributor="random", drop=True)) + 0.0  # no negative zeros
    return gain.assign_coords(measure=f"{game} gain")


def _left(scores: xr.DataArray) -> xr.DataArray:
    """How much agreement, of either sign, is left above the random level when all weights are random."""
    left = abs(scores.sel(measure="weights, all")) - scores.sel(measure="chance")
    return left.assign_coords(measure="weights, above chance")


def _maps(ledger: Ledger, found: xr.Dataset) -> dict[str, Any]:
    """Every map there is, (scene, attributor, step, y, x), NaN where a method failed."""
    kept = [ledger.arrays(name) for name in found.scene.values.tolist()]
    shapes = {maps[name].shape for maps in kept for name in found.attributor.values.tolist() if name in maps}
    if len(shapes) != 1:  # pictures of several sizes
        return {}
    nothing = np.full(shapes.pop(), np.nan, np.float32)
    values = [[maps.get(name, nothing) for name in found.attributor.values.tolist()] for maps in kept]
    return {"saliency": (("scene", "attributor", "step", "y", "x"), np.array(values))}


def record(
    evaluation: Evaluation, trials: Sequence[Mapping[str, Any]], unmade: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """What was asked, what failed and how often, the seconds of each method, and the versions."""
    failures: dict[str, list[str]] = {}
    for found in (*trials, *unmade):
        for what, why in found["failures"].items():
            failures.setdefault(what, []).append(why)
    seconds: dict[str, list[float]] = {}
    for found in trials:
        for name, spent in found["seconds"].items():
            seconds.setdefault(name, []).append(spent)
    return {
        "command": evaluation.command(),
        **{name: value for name, value in evaluation.settings().items() if name != "denoscope"},
        "scenes": len(trials),
        "left_out": evaluation.left_out if evaluation.checks is None else {},
        "failures": {what: {"times": len(whys), "first": whys[0]} for what, whys in failures.items()},
        "seconds": {name: float(np.median(spent)) for name, spent in seconds.items()},
        "versions": {name: version_of(name) for name in PACKAGES},
    }


def verdicts(scores: xr.Dataset) -> dict[str, str]:
    """Whether each method passes the weight randomisation: its own map is gone when all weights are random.

    See `evaluation.has_fallen`. Of a method that could not be checked in at least two scenes, or of which the scenes do
    not tell, it cannot be told.
    """
    if "weights, all" not in scores["measure"].values:
        return {}
    told = {True: PASSED, False: FAILED, None: UNSURE}
    found = {}
    for name in scores["attributor"].values.tolist():
        agreement, level = (
            scores["score"].sel(attributor=name, measure=measure).mean("step", skipna=True).values
            for measure in ("weights, all", "chance")
        )
        enough = np.isfinite(agreement - level).sum() >= 2
        found[name] = told[has_fallen(agreement, level) if enough else None]
    return found


def summary(scores: xr.Dataset) -> tuple[xr.Dataset, dict[str, Any]]:
    """The scores with their intervals, and the leaderboard as plain values."""
    told = with_intervals(scores, over_scenes(scores["score"]))
    return told, table_of(told, verdicts(scores))


def save(ledger: Ledger, scores: xr.Dataset, table: Mapping[str, Any], run: Mapping[str, Any]) -> None:
    """evaluation.zarr, leaderboard.json, report.html and run.json in the ledger's folder, each whole or not at all."""
    place, beside = ledger.folder / "evaluation.zarr", ledger.folder / ".evaluation.zarr"
    shutil.rmtree(beside, ignore_errors=True)
    scores.to_zarr(beside, mode="w", consolidated=False, zarr_format=3)
    shutil.rmtree(place, ignore_errors=True)
    os.rename(beside, place)
    write_whole(ledger.folder / "leaderboard.json", json.dumps(table, indent=1).encode())
    write_whole(ledger.folder / "report.html", render_leaderboard(table, run).encode())
    write_whole(ledger.folder / "run.json", json.dumps(run, indent=1).encode())
