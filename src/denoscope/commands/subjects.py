"""The subjects of trials: a picture to be made, the things its prompt names, and their places in the picture."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..recording.prompts import WORD, numbered
from ..worlds.shapes.judge import masks_of_things
from ..worlds.shapes.scenes import COLOURS, Scene, caption
from .masks import read_mask_file

FIRST_SEED = 7_000_000
"""Seed of the first scene; the bundled model was trained on none from here on."""
OTHER_SCENE = 500_000
"""Distance from a scene's seed to the seed of the scene whose caption is its other prompt."""


@dataclass(frozen=True)
class TrialSubject:
    """A picture to be made and explained.

    `phrase` holds the labels of the prompt's words that name the things under the mask; None for all words. `label` is
    the class that a classifier is asked for, one of `labels`. `scene` is the number of things in the bundled world's
    scene of this seed. `mask` is the file of the user's mask, and `digest` the SHA-256 of its content. `other` is
    another prompt, for the check that a map depends on the prompt.
    """

    name: str
    prompt: str
    seed: int
    phrase: tuple[str, ...] | None = None
    label: str | None = None
    labels: tuple[str, ...] = ()
    scene: int | None = None
    mask: str | None = None
    digest: str | None = None
    other: str = ""

    def masks(self, picture: np.ndarray) -> np.ndarray | None:
        """Return the places of the things in the picture (h, w, 3): boolean (things, h, w), the first is `label`'s.

        None if no place is known. Raises `InputError` for a user's mask that does not fit the picture, and
        `NotAsPrompted` if the bundled model has drawn something else.
        """
        if self.scene is None:
            return None if self.mask is None else read_mask(self.mask, picture.shape[:2])[None]
        masks = masks_of_things(picture, _scene(self.seed, self.scene))
        if masks is None:
            raise NotAsPrompted(f'The picture of "{self.prompt}" does not show the things that its prompt names.')
        return masks

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "TrialSubject":
        """Return the subject that `to_json` gave these values of."""
        phrase = None if values["phrase"] is None else tuple(values["phrase"])
        return cls(**{**values, "phrase": phrase, "labels": tuple(values["labels"])})


class NotAsPrompted(InputError):
    """The model has drawn something else than the prompt says, so the places of the things are not known."""


def bundled_subject(number: int) -> TrialSubject:
    """Return a scene of the bundled world by its number from 0: one small thing and two things in turn.

    >>> subject = bundled_subject(0)
    >>> subject.scene, subject.label in subject.labels
    (1, True)
    """
    seed, count = FIRST_SEED + number, 1 + number % 2
    scene = _scene(seed, count)
    prompt, thing = caption(scene), scene.things[0]
    words = numbered(prompt.words)
    places = [place for owner in range(count) for place in prompt.words_of(owner)]
    return TrialSubject(
        name=str(seed),
        prompt=str(prompt),
        seed=seed,
        phrase=tuple(words[place] for place in places),
        label=f"a {thing.colour} {thing.shape}",
        labels=tuple(f"a {colour} {thing.shape}" for colour in COLOURS),
        scene=count,
        other=str(caption(_scene(seed + OTHER_SCENE, count))),
    )


def _scene(seed: int, count: int) -> Scene:
    return Scene.random(seed, count=count, size="small" if count == 1 else None)


def read_subjects(prompts: str | Path, masks: str | Path | None, seed: int = 0) -> list[TrialSubject]:
    """Read a file of prompts: a prompt a line, or NAME, PROMPT and, if wanted, PHRASE, separated by tabs.

    A prompt without a name is named after its line, 0001 and so on. PHRASE names the things under the mask, in words of
    the prompt that follow each other. The mask of NAME is the picture file `masks`/NAME.*, bright on the object; a line
    without a mask is not compared with one.

    Raises `InputError` for an empty file, a name that comes twice or cannot be a file's, a phrase that is not in its
    prompt, masks of which none belongs to a line, and a mask that is empty or of another size than the others.
    """
    lines = [line for line in _text(prompts).splitlines() if line.strip()]
    if not lines:
        raise InputError(f'The file of prompts "{prompts}" is empty. Write one prompt a line.')
    subjects = [_subject(number, line, masks, seed) for number, line in enumerate(lines, 1)]
    _refuse_repeated_names(subjects, prompts)
    if masks is not None and not any(subject.mask for subject in subjects):
        raise InputError(
            f'No mask in "{masks}" belongs to a prompt. Masks are picture files named after the lines of "{prompts}": '
            f"{subjects[0].name}.png for the first."
        )
    _refuse_other_sizes([subject.mask for subject in subjects if subject.mask])
    others = [*subjects[1:], subjects[0]]
    return [replace(subject, other=other.prompt) for subject, other in zip(subjects, others, strict=True)]


def _refuse_repeated_names(subjects: Sequence[TrialSubject], prompts: str | Path) -> None:
    names = [subject.name.casefold() for subject in subjects]
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise InputError(f'The name "{repeated[0]}" is there twice in "{prompts}". Give each line its own name.')


def _refuse_other_sizes(files: Sequence[str]) -> None:
    sizes = {file: _bright(file).shape for file in files}
    for file in files:
        if sizes[file] != sizes[files[0]]:
            (h, w), (first_h, first_w) = sizes[file], sizes[files[0]]
            raise InputError(
                f'The mask "{file}" is {w} × {h} and "{files[0]}" is {first_w} × {first_h}. All pictures of a run have '
                "the same size, so give masks of that size."
            )


def unused_masks(masks: str | Path, subjects: Sequence[TrialSubject]) -> list[str]:
    """Return the names of the files in the folder of masks that belong to no line of the prompts."""
    used = {subject.mask for subject in subjects}
    files = sorted(path for path in Path(masks).iterdir() if path.is_file() and not path.name.startswith("."))
    return [path.name for path in files if str(path) not in used]


def _text(file: str | Path) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f'The file of prompts "{file}" cannot be read: {error}. Give a text file in UTF-8.') from error


def _subject(number: int, line: str, masks: str | Path | None, seed: int) -> TrialSubject:
    name, prompt, phrase = f"{number:04d}", line, ""
    if "\t" in line:
        name, prompt, phrase = [*line.split("\t"), ""][:3]
    name, prompt, phrase = name.strip(), prompt.strip(), phrase.strip()
    if not prompt or not name or Path(name).name != name or name.startswith("."):
        raise InputError(f'Line {number} of the prompts is "{line}". Write a prompt, or a name, a tab and a prompt.')
    mask = _mask_of(name, masks)
    digest = None if mask is None else hashlib.sha256(Path(mask).read_bytes()).hexdigest()
    return TrialSubject(name, prompt, seed, _labels_of(phrase, prompt), mask=mask, digest=digest)


def _labels_of(phrase: str, prompt: str) -> tuple[str, ...] | None:
    """Return the labels of the phrase's words in the prompt; None for an empty phrase."""
    if not phrase:
        return None
    phrase_words, words = WORD.findall(phrase.casefold()), WORD.findall(prompt)
    folded = [word.casefold() for word in words]
    for start in range(len(words)):
        end = start + len(phrase_words)
        if folded[start:end] == phrase_words:
            return tuple(numbered(words)[start:end])
    raise InputError(f'The phrase "{phrase}" is not in the prompt "{prompt}". Name words that follow each other.')


def _mask_of(name: str, masks: str | Path | None) -> str | None:
    if masks is None:
        return None
    folder = Path(masks)
    if not folder.is_dir():
        raise InputError(f'"{masks}" is not a folder of masks. Give the folder that holds them.')
    files = sorted(path for path in folder.iterdir() if path.stem == name and path.is_file())
    return str(files[0]) if files else None


def read_mask(file: str | Path, size: tuple[int, int]) -> np.ndarray:
    """Read a mask file as boolean (h, w), True where the object is, by the rule of `masks.read_mask_file`.

    Raises `InputError` if it has another size than the picture, (h, w), or is empty, or covers everything.
    """
    mask = _bright(file)
    if mask.shape != tuple(size):
        raise InputError(
            f'The mask "{file}" is {mask.shape[1]} × {mask.shape[0]} and its picture {size[1]} × {size[0]}. A mask has '
            "the size of the picture that the model makes of its prompt and seed."
        )
    return mask


def _bright(file: str | Path) -> np.ndarray:
    mask = read_mask_file(file)
    if not mask.any() or mask.all():
        look = "bright everywhere" if mask.any() else "empty"
        raise InputError(
            f'The mask "{file}" is {look}, so it does not tell the object from the rest. Draw it bright where the '
            "object is and dark elsewhere."
        )
    return mask
