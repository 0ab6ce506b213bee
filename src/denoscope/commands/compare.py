"""The same picture several ways, side by side: record every variant, explain it, and compare the pictures."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr

from ..attributors.relevance import totals
from ..criteria import ALIKE
from ..errors import DenoscopeError, InputError
from ..figures.clips import frames_of, spread, still
from ..recording.hooks.schedulers import refuse_no_lora
from ..recording.models import Model
from ..recording.schedules import coverage
from ..results.explanations import Explanation
from ..results.records import ComparisonRecord, FactRecord, Stamp, VariantFacts
from ..results.together import Variants
from ..vision.classifiers import Classifier, load_classifier
from ..vision.encoders import Features, load_encoder
from ..worlds.facts import Fact, scene_facts
from ..worlds.shapes.judge import is_readable, is_shapes_model
from .comparisons import Comparison
from .explain import explained, guidance_is_off, load_quietly, model_for, most_steps
from .inputs import read_pictures
from .job import Watch
from .requests import Request

FRAMES_COMPARED = 16
"""Frames of two clips whose distances are measured, at most."""


def compare(
    comparison: Comparison,
    *,
    models: Mapping[str, Model] | None = None,
    encoder: Features | None = None,
    watch: Watch | None = None,
) -> Variants:
    """Record every variant, explain it, and compare the pictures.

    >>> variants = compare(Comparison(Request("a red circle"), "seed", (0, 1)))               # doctest: +SKIP
    >>> variants.explanations["seed-1"].trace.image, variants.distances.ssim                  # doctest: +SKIP

    `models` are models that are loaded already, by their names in the requests. `encoder` is any function from pictures
    (n, 3, H, W) in [0, 1] to features. Raises `InputError` for settings that cannot be used, before any work where that
    can be known, and the first variant's error if no variant can be made. The message of any other error is in
    `failures`, and the other variants go on. On Ctrl-C the finished part is in the result; if there is none,
    `KeyboardInterrupt` goes on.
    """
    comparison.check(models)
    read_pictures(comparison.request.files)
    variants = comparison.variants()
    classifier = load_classifier(comparison.classifier, list(comparison.labels)) if comparison.labels else None
    if encoder is None and comparison.encoder:
        encoder = load_encoder(comparison.encoder)
    model_of = _Models(models or {})
    if comparison.along != "model":
        _refuse_early(comparison, model_of(comparison.request), variants.values())
    explanations: dict[str, Explanation] = {}
    failures: dict[str, Exception] = {}
    interruption = None
    for name, request in variants.items():
        try:
            explanations[name] = _explained(comparison, model_of(request), name, request, watch)
        except (DenoscopeError, RuntimeError) as error:
            failures[name] = error
            continue
        except KeyboardInterrupt:
            if not explanations:
                raise
            interruption = f"Interrupted: {len(explanations)} of {len(variants)} variants were finished."
            break
        if explanations[name].interrupted:
            interruption = f"{name}: {explanations[name].interruption}"
            break
    if not explanations:
        raise next(iter(failures.values()))
    messages = {name: str(error) for name, error in failures.items()}
    return compared(comparison, explanations, messages, interruption, classifier, encoder)


class _Models:
    """The model of a request: one that is loaded already, or the last one loaded; no more are held."""

    def __init__(self, loaded: Mapping[str, Model]):
        self.loaded = dict(loaded)
        self.last: tuple[str, Model] | None = None

    def __call__(self, request: Request) -> Model:
        if request.model in self.loaded:
            return model_for(request, self.loaded[request.model])
        if self.last is None or self.last[0] != request.model:
            self.last = None  # before the next one is loaded
            self.last = request.model, load_quietly(request)
        return model_for(request, self.last[1])


def _refuse_early(comparison: Comparison, model: Model, requests: Iterable[Request]) -> None:
    """Raise `InputError` for a variant's time steps, scheduler, LoRA, methods, or steps that it will not have."""
    groups = list(comparison.attributors(model))
    for request in requests:
        if request.lora is not None:
            refuse_no_lora(model.pipeline)
        model.step_count(request.steps or 1, request.schedule, request.shift, request.scheduler)
        most = most_steps(model, request)
        if most is not None:
            comparison.steps(most, groups)
    if comparison.along == "guidance":
        _refuse_same_guidance(comparison, model)


def _refuse_same_guidance(comparison: Comparison, model: Model) -> None:
    """Raise `InputError` for two scales at which the pipeline runs without guidance: their runs are the same."""
    off = [scale for scale in comparison.values if guidance_is_off(model, scale)]
    if len(off) > 1:
        raise InputError(
            f"The guidance scales {', '.join(f'{scale:g}' for scale in off)} are one and the same run: "
            f"{type(model.pipeline).__name__} has no guidance at 1 and below. Give one of them, and scales above 1."
        )


def _explained(comparison: Comparison, model: Model, name: str, request: Request, watch: Watch | None) -> Explanation:
    attributors = comparison.attributors(model)
    steps = partial(comparison.steps, groups=list(attributors))
    return explained(model, request, attributors, steps, comparison.command(), watch, variant=name)


def compared(
    comparison: Comparison,
    explanations: Mapping[str, Explanation],
    failures: Mapping[str, str] | None = None,
    interruption: str | None = None,
    classifier: Classifier | None = None,
    encoder: Features | None = None,
) -> Variants:
    """Measure how the pictures of variants differ, and return the variants with the record of all of them.

    `failures` are messages by the names of other variants. Distances of clips are means over their frames; a classifier
    sees the middle frame.
    """
    from ..evaluation.diagnosis import indistinguishable

    titles = dict(zip(comparison.variants(), comparison.titles(), strict=True))
    pictures = {name: still(each.pictures)["image"].values for name, each in explanations.items()}
    all_bundled = all(is_shapes_model(each.run["model"]) for each in explanations.values())
    if encoder is None and all_bundled:
        encoder = load_encoder()  # the bundled CLIP knows nothing but the bundled model's world
    apart = _apart({name: each.pictures for name, each in explanations.items()}, encoder)
    pairs = _pairs(apart)
    variants = {name: _variant_facts(titles[name], each) for name, each in explanations.items()}
    alike = indistinguishable(pairs, {name: list(each.relevance) for name, each in variants.items()}, ALIKE)
    ratings: dict[str, dict[str, float]] = {}
    if classifier is not None:
        ratings = {name: _rated(classifier, picture) for name, picture in pictures.items()}
    record = ComparisonRecord(
        command=comparison.command(),
        prompt=comparison.request.prompt,
        along=comparison.along,
        variants=variants,
        distances=pairs,
        diagnosis=[alike.plain()],
        facts=[_fact_record(fact) for fact in _facts(pictures, all_bundled)],
        ratings=ratings,
        failures={titles[name]: why for name, why in (failures or {}).items()},
        stamp=Stamp(
            seconds={name: sum(each.run["seconds"].values()) for name, each in explanations.items()},
            interrupted=interruption is not None,
            interruption=interruption,
        ),
    )
    return Variants(explanations, record, apart)


def _apart(pictures: Mapping[str, xr.Dataset], encoder: Features | None) -> xr.Dataset:
    """Return the distances of finished pictures; of clips, the means over at most FRAMES_COMPARED frames of each."""
    from ..evaluation.distances import distances

    number = min((frames_of(each) for each in pictures.values()), default=1)
    by_frame = []
    for i in range(min(number, FRAMES_COMPARED)):
        frames = {}
        for name, each in pictures.items():
            frames[name] = still(each, spread(frames_of(each), min(number, FRAMES_COMPARED))[i])["image"].values
        by_frame.append(distances(frames, encoder))
    return by_frame[0] if len(by_frame) == 1 else xr.concat(by_frame, "frame").mean("frame")


def _facts(pictures: Mapping[str, np.ndarray], all_bundled: bool) -> list[Fact]:
    """Return the facts of the pictures if all are of the bundled world, else none."""
    if not all_bundled or not all(map(is_readable, pictures.values())):
        return []
    return scene_facts({name: picture / 255 for name, picture in pictures.items()})


def _fact_record(fact: Fact) -> FactRecord:
    return FactRecord(name=fact.name, values=fact.values, changed=fact.changed)


@torch.no_grad()
def _rated(classifier: Classifier, picture: np.ndarray) -> dict[str, float]:
    """Return the likelihood of each label for one picture (h, w, 3) uint8."""
    batch = torch.from_numpy(picture.copy()).movedim(-1, 0)[None].float() / 255
    likelihoods = classifier.probabilities(classifier.normalise(batch))[0].tolist()
    return dict(zip(classifier.labels, likelihoods, strict=True))


def _variant_facts(title: str, explanation: Explanation) -> VariantFacts:
    pictures, run = explanation.pictures, explanation.run
    log_snr = pictures["log_snr"].values.tolist()
    return VariantFacts(
        title=title,
        prompt=run.get("prompt"),
        model=run.get("model"),
        seed=run.get("seed"),
        schedule=run.get("schedule"),
        shift=run.get("shift"),
        scheduler=run.get("scheduler"),
        swapped_from=run.get("swapped_from"),
        lora=run.get("lora"),
        guidance_scale=run.get("guidance_scale"),
        timesteps=[_whole(value) for value in pictures["timestep"].values.tolist()],
        log_snr=log_snr,
        coverage=coverage(log_snr),
        relevance=_totals(explanation),
    )


def _whole(timestep: float) -> float | int:
    return int(timestep) if timestep == int(timestep) else timestep


def _totals(explanation: Explanation) -> list[tuple[str, float]]:
    """Return each word and the sum Σ_t ρ_k(t) of its relevance, scaled at every step; repeated words are repeated."""
    from ..figures.words import has_words

    for result in explanation.methods().values():
        if has_words(result):
            total = totals(result)
            return list(zip(map(str, total["token"].values), total.values.tolist(), strict=True))
    return []


def _pairs(apart: xr.Dataset) -> list[dict[str, Any]]:
    """Return every two pictures once, with the distances between them."""
    names = [str(name) for name in apart["a"].values]
    pairs = []
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            measures = {str(name): float(values.sel(a=a, b=b)) for name, values in apart.items()}
            pairs.append({"a": a, "b": b, **measures})
    return pairs
