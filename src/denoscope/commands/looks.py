"""The pictures that a classifier looks at: photographs noised forward, or the steps of a generation."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from PIL import Image

from ..errors import InputError
from ..recording.models import Model
from ..recording.traces import Trace
from ..results.folders import folder_names
from ..results.records import GenerationFacts, PhotographFacts
from ..vision.classifiers import Classifier
from ..vision.frames import Frames, blend, ddpm, frames_of
from ..vision.photographs import load_photograph
from ..worlds.shapes.judge import is_readable, is_shapes_model, object_masks
from .attribution import eight_bit, pictured, refuse_clip
from .explain import model_for, recorded
from .job import Watch
from .masks import read_mask_file
from .requests import Request
from .studies import Study


@dataclass(frozen=True, eq=False)
class Look:
    """A picture to look at: `sequence` for the likelihoods, `attributed` for the maps, `pictures` for the page.

    `clean` (3, h, w) is the picture without noise as the classifier takes it. `mask` (h, w) is where its object is in
    the shown picture, or None.
    """

    name: str
    sequence: Frames
    attributed: Frames | Trace
    clean: torch.Tensor
    pictures: xr.Dataset
    mask: np.ndarray | None
    facts: PhotographFacts | GenerationFacts


def looks_of(study: Study, classifier: Classifier, model: Model | None, watch: Watch | None) -> list[Look]:
    """Read every photograph of a study, or record its generation; `model` is loaded if it is None.

    Raises `InputError` for a file that is no picture, or a mask that does not fit.
    """
    if study.trace is not None:
        return [_generation(study, study.trace, classifier, model_for(study.trace, model), watch)]
    names = folder_names([Path(path).stem or "photograph" for path in study.photographs])
    return [_photograph(study, classifier, i, name) for i, name in enumerate(names)]


def _photograph(study: Study, classifier: Classifier, i: int, name: str) -> Look:
    file = study.photographs[i]
    photograph = load_photograph(file)
    clean = classifier.prepare(photograph)
    clean = clean.to(next(classifier.module.parameters(), clean).device)
    mask = _mask(study.masks[i], photograph, classifier) if study.masks else None
    sequence = _noised(study, classifier, clean, study.draws)
    attributed = _noised(study, classifier, clean, study.map_draws)
    facts = PhotographFacts(
        photograph=Path(file).name, noising=sequence.options, draws=study.draws, map_draws=study.map_draws
    )
    return Look(name, sequence, attributed, clean, _pictured_frames(sequence, classifier), mask, facts)


def _noised(study: Study, classifier: Classifier, clean: torch.Tensor, draws: int) -> Frames:
    """Noise a clean picture forward; draw k is the same for any number of draws."""
    if study.noising == "blend":
        return blend(clean, study.frames, draws, study.seed, **classifier.imagenet_noise())
    return ddpm(clean, study.beta_schedule, study.frames, draws, study.seed)


def _mask(file: str, photograph: Image.Image, classifier: Classifier) -> np.ndarray:
    """Read a mask file through the crop of its photograph: boolean (h, w) of the classifier's inputs."""
    inside = Image.fromarray(read_mask_file(file))
    if abs(inside.width / inside.height - photograph.width / photograph.height) > 0.01:
        raise InputError(
            f'The mask "{file}" is {inside.width} × {inside.height} and its photograph {photograph.width} × '
            f"{photograph.height}. Give a mask of the photograph's size."
        )
    fitting = inside.convert("L").resize(photograph.size, Image.Resampling.NEAREST).convert("RGB")
    cropped = classifier.denormalise(classifier.prepare(fitting)).mean(dim=0) > 0.5
    return _with_both_sides(cropped.cpu().numpy(), file)


def _with_both_sides(inside: np.ndarray, file: str) -> np.ndarray:
    """Return the mask; raises `InputError` if all of it is inside or outside."""
    if not inside.any() or inside.all():
        raise InputError(
            f'The mask "{file}" is {"full" if inside.all() else "empty"} in the part of the picture that the '
            "classifier sees. Give a mask with the object inside and the rest outside: white on black, or class "
            "numbers with 0 outside."
        )
    return inside


def _generation(study: Study, request: Request, classifier: Classifier, model: Model, watch: Watch | None) -> Look:
    """Record a generation: the classifier looks at its clean predictions, and its samples are attributed."""
    trace = recorded(model, request, watch)
    refuse_clip(trace, "A classifier looks at pictures")
    sequence, pictures = frames_of(trace, "clean"), pictured(trace)
    like = next(classifier.module.parameters(), sequence.clean)
    clean = classifier.normalise(sequence.clean[None].to(like.device))[0]
    facts = GenerationFacts(
        prompt=request.prompt,
        model=model.name,
        seed=request.seed,
        guidance_scale=request.guidance,
        schedule=request.schedule,
        timesteps=[step.timestep for step in trace],
    )
    mask = _generated_object(study, model, pictures["image"].values)
    return Look("generation", sequence, trace, clean, pictures, mask, facts)


def _generated_object(study: Study, model: Model, picture: np.ndarray) -> np.ndarray | None:
    """Return where the object of a generated picture is, (h, w), or None.

    It is the mask of the study, or for the bundled model the things that its judge finds.
    """
    if study.masks:
        inside = Image.fromarray(read_mask_file(study.masks[0])).convert("L")
        fitting = inside.resize(picture.shape[1::-1], Image.Resampling.NEAREST)
        return _with_both_sides(np.asarray(fitting) > 127, study.masks[0])
    if not is_shapes_model(model.name) or not is_readable(picture):
        return None
    inside_things = np.asarray(object_masks(picture / 255).any(axis=0))
    return inside_things if inside_things.any() and not inside_things.all() else None


def _pictured_frames(sequence: Frames, classifier: Classifier) -> xr.Dataset:
    """Return a photograph and its frames, of the first draw, as pictures, uint8."""
    places = ("step", "row", "column", "channel")
    frames = [_as_picture(classifier.denormalise(frame.images[0])) for frame in sequence]
    return xr.Dataset(
        {"image": (places[1:], _as_picture(classifier.denormalise(sequence.clean))), "sample": (places, frames)},
        coords={
            "step": [frame.index for frame in sequence],
            "timestep": ("step", [frame.timestep for frame in sequence]),
            "log_snr": ("step", [frame.log_snr for frame in sequence]),
        },
    )


def _as_picture(picture: torch.Tensor) -> np.ndarray:
    """Return a picture (3, h, w) in [0, 1] as (h, w, 3) uint8."""
    return eight_bit(picture.movedim(0, -1).float().cpu().numpy())
