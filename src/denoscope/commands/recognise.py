"""When a classifier recognises a picture, and by what: from a study to the labelled results.

A photograph noised forward, or a generated picture step by step: the likelihood of each label at every frame, when it
rises, and which positions speak for it. For a generated picture the maps go through the denoiser: they show which part
of the sample x_t decides what the classifier will see in the end.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import xarray as xr

from ..errors import DenoscopeError, InputError, Interrupted
from ..recording.limits import memory_limit
from ..recording.models import Model
from ..results.explanations import Explanation
from ..results.records import LookRecord, RecognitionRecord
from ..results.together import Recognition
from ..timing import likelihood
from ..vision.classifiers import Classifier, load_classifier
from .attribution import Attributed, attribute
from .job import Watch, shown_steps
from .looks import Look, looks_of
from .studies import Study


def recognise(
    study: Study,
    *,
    classifier: Classifier | None = None,
    model: Model | None = None,
    watch: Watch | None = None,
) -> Recognition:
    """Follow labels along every photograph, or along a generation, and attribute them at some frames.

    >>> recognise(Study(photographs=("cat.png",), labels=("tabby",))).save("out")         # doctest: +SKIP

    `classifier` and `model` are those of the study, if they are loaded already. Every file is read before anything is
    computed. Raises `InputError` for settings that cannot be used, and the error of the first picture; the message of
    a later one is in `failures`, and the others go on. On Ctrl-C the finished part is in the result, or `Interrupted`
    is raised if there is none.
    """
    classifier = classifier or _classifier(study)
    study.attributors(classifier, 0)  # refuses options before anything is computed
    looks = looks_of(study, classifier, model, watch)
    labels = _labels(study, classifier, looks)
    explanations: dict[str, Explanation] = {}
    failures: dict[str, str] = {}
    interrupted = False
    for look in looks:
        try:
            with memory_limit(study.memory):
                explanations[look.name] = _explained(study, classifier, look, labels, watch)
        except DenoscopeError as error:
            if not explanations:
                raise
            failures[look.name] = str(error)
            if isinstance(error, Interrupted):
                interrupted = True
                break
        if look.name in explanations and explanations[look.name].interrupted:
            break
    return Recognition(
        explanations, _record(study, explanations, failures, interrupted), several=len(study.photographs) > 1
    )


def _classifier(study: Study) -> Classifier:
    """Load the classifier: a zero-shot one takes the labels as its texts, another one has them looked up."""
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


def _labels(study: Study, classifier: Classifier, looks: Sequence[Look]) -> list[str]:
    """Return the labels to follow, each once, as the classifier names them.

    They are those of the study, or the likeliest label of each clean picture.
    """
    if study.labels:
        return list(dict.fromkeys(classifier.labels[classifier.index(label)] for label in study.labels))
    return list(dict.fromkeys(classifier.best(look.clean, 1)[0][0] for look in looks))


def _explained(
    study: Study, classifier: Classifier, look: Look, labels: Sequence[str], watch: Watch | None
) -> Explanation:
    """Follow the labels along one picture, and attribute the likeliest of them."""
    began = time.perf_counter()
    curves, interruption = _curves(classifier, look, labels, watch)
    label = _likeliest(classifier, look.clean, labels)
    attributors = study.attributors(classifier, label)
    seconds = round(time.perf_counter() - began, 3)
    attributed = Attributed()
    if interruption is None:
        steps = shown_steps(study.at, len(look.sequence), likelihood.around_window(curves.sel(label=[label])))
        attributed = attribute(look.attributed, attributors, steps, watch, f"{look.name}: ")
    record = LookRecord(
        command=study.command(),
        subject=look.facts,
        classifier=classifier.name,
        label=label,
        labels=list(labels),
        kind=look.sequence.kind,
        frames=len(look.sequence),
        mask=look.mask is not None,
        preset=study.preset,
        methods={name: attributor.options() for name, attributor in attributors.items()},
        stamp=attributed.stamp({"likelihood": seconds}, interruption),
    )
    results = {name: _with_stages(result, look) for name, result in attributed.results.items()}
    timing = likelihood.over_draws(likelihood.moments(curves))
    return Explanation.of(look.pictures, results, record.plain(), curves, timing)


def _curves(
    classifier: Classifier, look: Look, labels: Sequence[str], watch: Watch | None
) -> tuple[xr.DataArray, str | None]:
    """Return the likelihoods, and the reason why they stopped early, or None."""
    advance = watch(f"{look.name}: likelihood", len(look.sequence)) if watch else None
    try:
        return likelihood.likelihood(classifier, look.sequence, labels, advance=advance), None
    except Interrupted as stop:
        if stop.partial is None:
            raise
        return stop.partial, str(stop)


def _likeliest(classifier: Classifier, clean: torch.Tensor, labels: Sequence[str]) -> str:
    """Return the label, among those that are followed, that is the likeliest for the clean picture."""
    with torch.inference_mode():
        probabilities = classifier.probabilities(clean[None])[0]
    return max(labels, key=lambda label: float(probabilities[classifier.index(label)]))


def _with_stages(result: xr.Dataset, look: Look) -> xr.Dataset:
    """Add the measures of `stages` to a result; maps smaller than the picture are enlarged for them."""
    from ..evaluation import on_grid
    from ..evaluation.stages import stages
    from ..figures.overlays import rgb

    picture = rgb(look.pictures["image"].values) / 255
    size = picture.shape[:2]
    maps = result.saliency
    if maps.shape[-2:] != size:
        places: dict[str, Any] = dict(input_core_dims=[["y", "x"]], output_core_dims=[["y", "x"]], vectorize=True)
        maps = xr.apply_ufunc(lambda map_: on_grid(map_, *size), maps, exclude_dims={"y", "x"}, **places)
    return result.merge(stages(maps, picture, look.mask))


def _record(
    study: Study, explanations: Mapping[str, Explanation], failures: Mapping[str, str], interrupted: bool
) -> RecognitionRecord:
    """Return the record of all pictures together, with the table of the moments."""
    curves = {name: each.likelihood for name, each in explanations.items() if each.likelihood is not None}
    levels = [f"{level:g}" for level in likelihood.LIKELIHOOD_LEVELS]
    rows = likelihood.rows_of(likelihood.comparison(curves))
    return RecognitionRecord(
        command=study.command(),
        preset=study.preset,
        classifier=study.classifier,
        columns=["picture", "label", *levels, "steepest", "final"],
        table=[_cells(row, levels) for row in rows],
        failures=failures,
        interrupted=interrupted or any(each.interrupted for each in explanations.values()),
    )


def _cells(row: Mapping[str, Any], levels: Sequence[str]) -> list[str]:
    """Return the moments of one picture and label as text.

    >>> _cells({"photograph": "cat", "label": "tabby", "0.5": (46.2, 51, float("nan")), "steepest": (50,) * 3,
    ...         "final": (0.91, 0.934, 0.95)}, ["0.5"])
    ['cat', 'tabby', '51.0 [46.2, never]', '50.0', '0.93 [0.91, 0.95]']
    """
    from ..report.likelihood import spread

    moments = [spread(row[name], "{:.1f}".format) for name in (*levels, "steepest")]
    return [row["photograph"], row["label"], *moments, spread(row["final"], "{:.2f}".format)]
