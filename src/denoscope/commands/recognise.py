"""When does a classifier recognise a picture, and by what: from what was asked to the labelled results.

A photograph noised forward, or a generated picture step by step: the likelihood of each label at every frame, when it
rises, and which positions speak for it. For a generated picture the maps go through the denoiser: they show which part
of the sample x_t decides what the classifier will see in the end.
"""

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from PIL import Image

from ..attributors.base import Attributor
from ..attributors.gradients import GradientShap, IntegratedGradients
from ..attributors.occlusion import Occlusion
from ..errors import DenoscopeError, InputError, Interrupted, did_you_mean
from ..evaluation import on_grid
from ..evaluation.stages import stages
from ..figures.overlays import rgb
from ..recording.models import Model, load
from ..recording.traces import Trace
from ..report.likelihood import spread
from ..results.explanations import Explanation
from ..results.folders import folder_names
from ..targets import ClassScore
from ..timing import likelihood
from ..vision.classifiers import Classifier, load_classifier
from ..vision.frames import Frames, blend, ddpm, frames_of
from ..vision.photographs import load_photograph
from ..worlds.shapes.judge import is_readable, is_shapes_model, object_masks
from .explain import Request, recorded
from .job import At, Outcome, Watch, attribute, check_steps, flags, pictured, shown_steps, stamp

METHODS = ("integrated-gradients", "gradient-shap", "occlusion")
PRESETS: dict[str, dict[str, Any]] = {"study": dict(frames=100, noising="blend", at="all", methods=METHODS, n_steps=20)}
"""The settings of the study (KCC 2024 Explainable AI workshop) that are not the defaults here anyway. Those that are:
Gradient SHAP with n_samples=50 and stdevs=1e-4, Occlusion with windows of 15 × 15 of 224 pixels every 8."""


@dataclass(frozen=True)
class Study:
    """What `denoscope recognise` was asked for: photographs, or a generation (`trace`) to look at instead.

    `labels` are followed in every photograph; none means what the classifier sees in each clean one. For a zero-shot
    classifier they are its texts. `draws` noises give the likelihood its intervals, the first `map_draws` of them are
    attributed. `n_steps` are those of Integrated Gradients. `masks` are files, one for each photograph, that are bright
    where the object is.
    """

    photographs: tuple[str, ...] = ()
    trace: Request | None = None
    labels: tuple[str, ...] = ()
    classifier: str = "imagenet"
    frames: int = 100
    noising: Literal["blend", "ddpm"] = "blend"
    beta_schedule: str = "linear"
    draws: int = 5
    map_draws: int = 1
    seed: int = 0
    at: At = None
    methods: tuple[str, ...] = METHODS
    n_steps: int = 50
    masks: tuple[str, ...] = ()
    preset: str | None = None
    device: str | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        if bool(self.photographs) == (self.trace is not None):
            raise InputError("Give at least one photograph, or a prompt to generate from (--trace), and not both.")
        if self.noising not in ("blend", "ddpm"):
            raise InputError(f'There is no noising "{self.noising}". {did_you_mean(self.noising, ("blend", "ddpm"))}')
        if not 1 <= self.map_draws <= self.draws:
            raise InputError(
                f"Maps of {self.map_draws} draws were asked for, and there are {self.draws}. Give 1 to {self.draws}."
            )
        if self.masks and len(self.masks) != max(1, len(self.photographs)):
            raise InputError(
                f"There are {len(self.masks)} masks and {max(1, len(self.photographs))} pictures. Give one for each, "
                "in their order, or none."
            )
        _refuse_unknown(self.methods)
        check_steps(self.at)
        total = self.frames if self.trace is None else self.trace.steps
        if total is not None and total > 0:  # fewer frames are refused with the noising
            shown_steps(self.at, total, ())

    @classmethod
    def of(cls, preset: str | None, **asked: Any) -> "Study":
        """A study as asked, or by the name of a preset, whose settings go before what was left out (None)."""
        if preset is not None and preset not in PRESETS:
            raise InputError(f'There is no preset "{preset}". {did_you_mean(preset, PRESETS)}')
        said = {name: value for name, value in asked.items() if value is not None}
        return cls(**{**PRESETS.get(preset or "", {}), **said, "preset": preset})

    def attributors(self, classifier: Classifier, label: str | int) -> dict[str, Attributor]:
        """The methods for one label, by the name of their group in the result."""
        target = ClassScore(classifier, label)
        made: dict[str, Attributor] = {
            "integrated-gradients": IntegratedGradients(target, n_steps=self.n_steps),
            "gradient-shap": GradientShap(target, n_samples=50, stdevs=1e-4, seed=self.seed),
            "occlusion": Occlusion(target),
        }
        return {name.replace("-", "_"): made[name] for name in self.methods}

    def command(self) -> str:
        """The command line that asks for the same again."""
        told: dict[str, Any] = {**vars(self), **dict.fromkeys(TOLD_APART)}
        if self.noising != "ddpm":
            told["beta_schedule"] = None
        if self.trace is not None:
            made = self.trace
            told |= dict.fromkeys(NOISED)
            told |= dict(trace=made.prompt, model=made.model, steps=made.steps, guidance=made.guidance)
        several = [("--label", label) for label in self.labels] + [("--mask", mask) for mask in self.masks]
        words = [*self.photographs, *(word for pair in several for word in pair), *flags(told)]
        return shlex.join(["denoscope", "recognise", *words])


TOLD_APART = ("photographs", "trace", "labels", "masks", "preset")
"""Settings of a study that are no single option, or whose own settings are told instead."""
NOISED = ("frames", "noising", "beta_schedule", "draws", "map_draws")
"""Settings that a generation has no use for."""


def _refuse_unknown(methods: Sequence[str]) -> None:
    for name in methods:
        if name not in METHODS:
            raise InputError(f'There is no method "{name}" for a class. {did_you_mean(name, METHODS)}')
    if not methods or len(set(methods)) < len(methods):
        raise InputError(f"The methods given are: {', '.join(methods) or 'none'}. Give at least one, and each once.")


@dataclass(frozen=True, eq=False)
class Subject:
    """What is looked at: `sequence` for the likelihoods, `attributed` for the maps, and how it is shown.

    `clean` (3, h, w) is the picture without noise as the classifier takes it; `mask` (h, w) says where its object is in
    the shown picture, where that is known.
    """

    name: str
    sequence: Frames
    attributed: Frames | Trace
    clean: torch.Tensor
    shown: xr.Dataset
    mask: np.ndarray | None
    facts: Mapping[str, Any]


@dataclass
class Recognised:
    """The result for each picture by its name, and what went wrong with others."""

    explanations: dict[str, Explanation] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C stopped it in the middle of a picture; what was finished of that is here."""
        return any(explanation.run["interrupted"] for explanation in self.explanations.values())


def recognise(
    study: Study,
    *,
    classifier: Classifier | None = None,
    model: Model | None = None,
    watch: Watch | None = None,
) -> Recognised:
    """Follow the labels along every photograph, or along a generation, and attribute them at some frames.

    `classifier` and `model` are what the study names, if they are loaded already. Every file
    is read before anything is computed. Raises `InputError` for what cannot be done as asked, and what the
    first picture raises; what a later one raises is in `failures`, and the others go on. On Ctrl-C what was finished
    is in the result, or `Interrupted` is raised if that is nothing.
    """
    classifier = classifier or _classifier(study)
    study.attributors(classifier, 0)  # refuses options before anything is computed
    if study.trace is not None:
        subjects = [_generated(study, study.trace, classifier, model or load(study.trace.model), watch)]
    else:
        subjects = [_photographed(study, classifier, i, name) for i, name in enumerate(_names(study.photographs))]
    labels, found = _followed(study, classifier, subjects), Recognised()
    for subject in subjects:
        try:
            found.explanations[subject.name] = _explained(study, classifier, subject, labels, watch)
        except DenoscopeError as error:
            if not found.explanations:
                raise
            found.failures[subject.name] = str(error)
            if isinstance(error, Interrupted):
                break
        if found.interrupted:
            break
    return found


def _classifier(study: Study) -> Classifier:
    """A zero-shot classifier takes the labels as its texts; one with labels of its own has them looked up."""
    options: dict[str, Any] = dict(device=study.device, dtype=study.dtype)
    try:
        classifier = load_classifier(study.classifier, **options)
    except InputError:
        if not study.labels:
            raise
        return load_classifier(study.classifier, list(study.labels), **options)
    for label in study.labels:
        classifier.index(label)
    return classifier


def _names(photographs: Sequence[str]) -> list[str]:
    """A folder name for each file: its stem."""
    return folder_names([Path(path).stem or "photograph" for path in photographs])


def _photographed(study: Study, classifier: Classifier, i: int, name: str) -> Subject:
    file = study.photographs[i]
    photograph = load_photograph(file)
    clean = classifier.prepare(photograph)
    clean = clean.to(next(classifier.module.parameters(), clean).device)
    mask = _mask(study.masks[i], photograph, classifier) if study.masks else None
    sequence, attributed = (_noised(study, classifier, clean, draws) for draws in (study.draws, study.map_draws))
    facts = dict(photograph=Path(file).name, noising=sequence.options, draws=study.draws, map_draws=study.map_draws)
    return Subject(name, sequence, attributed, clean, _shown(sequence, classifier), mask, facts)


def _noised(study: Study, classifier: Classifier, clean: torch.Tensor, draws: int) -> Frames:
    """Draw k is the same however many draws there are."""
    if study.noising == "blend":
        return blend(clean, study.frames, draws, study.seed, **classifier.imagenet_noise())
    return ddpm(clean, study.beta_schedule, study.frames, draws, study.seed)


def _mask(file: str, photograph: Image.Image, classifier: Classifier) -> np.ndarray:
    """A mask file through the photograph's own crop: boolean (h, w) of the classifier's inputs."""
    drawn = load_photograph(file)
    if abs(drawn.width / drawn.height - photograph.width / photograph.height) > 0.01:
        raise InputError(
            f'The mask "{file}" is {drawn.width} × {drawn.height} and its photograph {photograph.width} × '
            f"{photograph.height}. Give one of the photograph's size, bright where the object is."
        )
    fitting = drawn.resize(photograph.size, Image.Resampling.NEAREST).convert("L").convert("RGB")
    inside = classifier.denormalise(classifier.prepare(fitting)).mean(dim=0) > 0.5
    return _telling(inside.cpu().numpy(), file)


def _telling(inside: np.ndarray, file: str) -> np.ndarray:
    if not inside.any() or inside.all():
        raise InputError(
            f'The mask "{file}" is {"full" if inside.all() else "empty"} in the part of the picture that is looked at. '
            "Give one that is bright where the object is, and dark elsewhere."
        )
    return inside


def _generated(study: Study, request: Request, classifier: Classifier, model: Model, watch: Watch | None) -> Subject:
    """The clean predictions of a recorded run are what the classifier looks at; its samples are what is attributed."""
    trace = recorded(model, request, watch)
    sequence, shown = frames_of(trace, "clean"), pictured(trace)
    like = next(classifier.module.parameters(), sequence.clean)
    clean = classifier.normalise(sequence.clean[None].to(like.device))[0]
    facts: dict[str, Any] = dict(
        prompt=request.prompt, model=model.name, seed=request.seed, guidance_scale=request.guidance
    )
    facts |= dict(schedule=request.schedule, timesteps=[step.timestep for step in trace], draws=1, map_draws=1)
    return Subject("generation", sequence, trace, clean, shown, _object(study, model, shown["image"].values), facts)


def _object(study: Study, model: Model, picture: np.ndarray) -> np.ndarray | None:
    """Where the object of a generated picture is: the mask given, or for the bundled model what its judge finds."""
    if study.masks:
        drawn = load_photograph(study.masks[0]).convert("L").resize(picture.shape[1::-1], Image.Resampling.NEAREST)
        return _telling(np.asarray(drawn) > 127, study.masks[0])
    if not is_shapes_model(model.name) or not is_readable(picture):
        return None
    inside = np.asarray(object_masks(picture / 255).any(axis=0))
    return inside if inside.any() and not inside.all() else None


def _followed(study: Study, classifier: Classifier, subjects: Sequence[Subject]) -> list[str]:
    """The labels to follow, by their own names, each once: those given, or what each clean picture is taken for."""
    if study.labels:
        return list(dict.fromkeys(classifier.labels[classifier.index(label)] for label in study.labels))
    return list(dict.fromkeys(classifier.best(subject.clean, 1)[0][0] for subject in subjects))


def _explained(
    study: Study, classifier: Classifier, subject: Subject, labels: Sequence[str], watch: Watch | None
) -> Explanation:
    began = time.perf_counter()
    curves, stopped = _curves(classifier, subject, labels, watch)
    label = _likeliest(classifier, subject.clean, labels)
    attributors = study.attributors(classifier, label)
    seconds = {"likelihood": round(time.perf_counter() - began, 3)}
    outcome = Outcome(interruption=stopped)
    if stopped is None:
        steps = shown_steps(study.at, len(subject.sequence), likelihood.around_window(curves.sel(label=[label])))
        outcome = attribute(subject.attributed, attributors, steps, watch, f"{subject.name}: ")
    outcome.seconds = {**seconds, **outcome.seconds}
    methods = {name: _with_stages(found, subject) for name, found in outcome.methods.items()}
    run = {
        "command": study.command(),
        **subject.facts,
        "classifier": classifier.name,
        "label": label,
        "labels": list(labels),
        "kind": subject.sequence.kind,
        "frames": len(subject.sequence),
        "mask": subject.mask is not None,
        "preset": study.preset,
        "methods": {name: attributor.options() for name, attributor in attributors.items()},
        **stamp(outcome),
    }
    return Explanation.of(subject.shown, methods, run, curves, likelihood.over_draws(likelihood.moments(curves)))


def _curves(
    classifier: Classifier, subject: Subject, labels: Sequence[str], watch: Watch | None
) -> tuple[xr.DataArray, str | None]:
    """The likelihoods, and why they stopped early, if they did."""
    advance = watch(f"{subject.name}: likelihood", len(subject.sequence)) if watch else None
    try:
        return likelihood.likelihood(classifier, subject.sequence, labels, advance=advance), None
    except Interrupted as stop:
        if stop.partial is None:
            raise
        return stop.partial, str(stop)


def _likeliest(classifier: Classifier, clean: torch.Tensor, labels: Sequence[str]) -> str:
    """Of the labels that are followed, what the maps explain: the one that the clean picture has most of."""
    with torch.inference_mode():
        found = classifier.probabilities(clean[None])[0]
    return max(labels, key=lambda label: float(found[classifier.index(label)]))


def _with_stages(found: xr.Dataset, subject: Subject) -> xr.Dataset:
    """A method's result with the measures of `stages` beside its maps; small maps are enlarged for them."""
    picture = rgb(subject.shown["image"].values) / 255
    size = picture.shape[:2]
    maps = found.saliency
    if maps.shape[-2:] != size:
        places: dict[str, Any] = dict(input_core_dims=[["y", "x"]], output_core_dims=[["y", "x"]], vectorize=True)
        sides = dict(height=size[0], width=size[1])
        maps = xr.apply_ufunc(on_grid, maps, kwargs=sides, exclude_dims={"y", "x"}, **places)
    return found.merge(stages(maps, picture, subject.mask))


def _shown(sequence: Frames, classifier: Classifier) -> xr.Dataset:
    """The photograph and its frames, of the first draw, as pictures, uint8."""
    places = ("step", "row", "column", "channel")
    pictures = [_eight_bit(classifier.denormalise(frame.images[0])) for frame in sequence]
    return xr.Dataset(
        {"image": (places[1:], _eight_bit(classifier.denormalise(sequence.clean))), "sample": (places, pictures)},
        coords={
            "step": [frame.index for frame in sequence],
            "timestep": ("step", [frame.timestep for frame in sequence]),
            "log_snr": ("step", [frame.log_snr for frame in sequence]),
        },
    )


def _eight_bit(picture: torch.Tensor) -> np.ndarray:
    return (picture.movedim(0, -1).float().cpu().numpy() * 255).round().astype(np.uint8)


def record(study: Study, found: Recognised) -> dict[str, Any]:
    """What is told and kept of all pictures together: the command, the table of moments, what failed."""
    curves = {name: e.likelihood for name, e in found.explanations.items() if e.likelihood is not None}
    rows = list(likelihood.rows_of(likelihood.comparison(curves)))
    levels = [f"{level:g}" for level in likelihood.LIKELIHOOD_LEVELS]
    return {
        "command": study.command(),
        "preset": study.preset,
        "classifier": study.classifier,
        "columns": ["picture", "label", *levels, "steepest", "final"],
        "table": [_told(row, levels) for row in rows],
        "failures": found.failures,
        "interrupted": found.interrupted,
    }


def _told(row: Mapping[str, Any], levels: Sequence[str]) -> list[str]:
    """
    >>> _told({"photograph": "cat", "label": "tabby", "0.5": (46.2, 51, np.nan), "steepest": (50,) * 3,
    ...        "final": (0.91, 0.934, 0.95)}, ["0.5"])
    ['cat', 'tabby', '51.0 [46.2, never]', '50.0', '0.93 [0.91, 0.95]']
    """
    moments = [spread(row[name], "{:.1f}".format) for name in (*levels, "steepest")]
    return [row["photograph"], row["label"], *moments, spread(row["final"], "{:.2f}".format)]
