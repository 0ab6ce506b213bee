"""What a trial is about: a picture to be made, what its prompt names, and where in the picture that is."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..recording.prompts import WORD, numbered
from ..vision.photographs import load_photograph
from ..worlds.shapes.judge import masks_of_things
from ..worlds.shapes.scenes import COLOURS, Scene, caption

FIRST_SEED = 7_000_000
"""Of the bundled world's scenes; none of them was trained on."""
OTHERS = 500_000
"""From a scene's seed to that of the scene whose caption is its other prompt."""


@dataclass(frozen=True)
class Subject:
    """A picture to be made and explained.

    `phrase` are the labels of the prompt's words that name what the mask covers, None for all words. `label` is the
    class that a classifier is asked for among `labels`, where there is one. `scene` is the number of things in the
    bundled world's scene of this seed; `mask` is the file of the user's mask, and `digest` its content's (SHA-256).
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
        """Where the things are in the picture (h, w, 3): boolean (things, h, w), of which the first is `label`'s.

        None where nothing is known. Raises `InputError` for a user's mask that does not fit, and `NotAsTold` where
        the bundled model has not drawn what it was told.
        """
        if self.scene is not None:
            found = masks_of_things(picture, _scene(self.seed, self.scene))
            if found is None:
                raise NotAsTold(f'The picture of "{self.prompt}" does not show the things that it was told to.')
            return found
        return None if self.mask is None else read_mask(self.mask, picture.shape[:2])[None]


class NotAsTold(InputError):
    """The model has drawn something else, so that there is no telling what is where."""


def bundled_subject(number: int) -> Subject:
    """A scene of the bundled world by its number from 0: one small thing and two things in turn.

    >>> subject = bundled_subject(0)
    >>> subject.scene, subject.label in subject.labels
    (1, True)
    """
    seed, count = FIRST_SEED + number, 1 + number % 2
    scene = _scene(seed, count)
    told, thing = caption(scene), scene.things[0]
    words = numbered(told.words)
    phrase = tuple(words[i] for owner in range(count) for i in told.words_of(owner))
    labels = tuple(f"a {colour} {thing.shape}" for colour in COLOURS)
    other = str(caption(_scene(seed + OTHERS, count)))
    return Subject(str(seed), str(told), seed, phrase, f"a {thing.colour} {thing.shape}", labels, count, other=other)


def _scene(seed: int, count: int) -> Scene:
    return Scene.random(seed, count=count, size="small" if count == 1 else None)


def subjects_of(prompts: str | Path, masks: str | Path | None, seed: int = 0) -> list[Subject]:
    """The lines of a file of prompts: a prompt each, or NAME, PROMPT and, if wanted, PHRASE, parted by tabs.

    A prompt without a name has its line's number, 0001 and so on. PHRASE is what the mask covers, words of the prompt
    that follow each other. The mask of NAME is the picture file `masks`/NAME.*, bright where the object is; a line
    without one is not held against a mask. Raises `InputError` for an empty file, a name that comes twice or cannot be
    a file's, a phrase that is not in its prompt, masks of which none belongs to a line, and a mask that is empty, or of
    another size than the others: all pictures of a run have one size.
    """
    lines = [line for line in _text(prompts).splitlines() if line.strip()]
    if not lines:
        raise InputError(f'The file of prompts "{prompts}" is empty. Write one prompt a line.')
    found = [_subject(i, line, masks, seed) for i, line in enumerate(lines, 1)]
    names = [subject.name.casefold() for subject in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f'The name "{twice[0]}" is there twice in "{prompts}". Give each line a name of its own.')
    if masks is not None and not any(subject.mask for subject in found):
        raise InputError(
            f'No mask in "{masks}" belongs to a prompt. Masks are picture files named after the lines of "{prompts}": '
            f"{found[0].name}.png for the first."
        )
    _refuse_other_sizes([subject.mask for subject in found if subject.mask])
    others = [*found[1:], found[0]]
    return [replace(subject, other=other.prompt) for subject, other in zip(found, others, strict=True)]


def _refuse_other_sizes(files: Sequence[str]) -> None:
    sizes = {file: _bright(file).shape for file in files}
    if wrong := [file for file in files if sizes[file] != sizes[files[0]]]:
        (h, w), (first_h, first_w) = sizes[wrong[0]], sizes[files[0]]
        raise InputError(
            f'The mask "{wrong[0]}" is {w} × {h} and "{files[0]}" is {first_w} × {first_h}. All pictures of a run have '
            "one size, and their masks have it too."
        )


def unused_masks(masks: str | Path, subjects: Sequence[Subject]) -> list[str]:
    """The names of files in the folder of masks that belong to no line of the prompts."""
    used = {subject.mask for subject in subjects}
    files = sorted(path for path in Path(masks).iterdir() if path.is_file() and not path.name.startswith("."))
    return [path.name for path in files if str(path) not in used]


def _text(file: str | Path) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f'The file of prompts "{file}" cannot be read: {error}. Give a text file in UTF-8.') from error


def _subject(number: int, line: str, masks: str | Path | None, seed: int) -> Subject:
    name, prompt, phrase = [*line.split("\t"), "", ""][:3] if "\t" in line else (f"{number:04d}", line, "")
    name, prompt, phrase = name.strip(), prompt.strip(), phrase.strip()
    if not prompt or not name or Path(name).name != name or name.startswith("."):
        raise InputError(f'Line {number} of the prompts is "{line}". Write a prompt, or a name, a tab and a prompt.')
    mask = _mask_of(name, masks)
    digest = None if mask is None else hashlib.sha256(Path(mask).read_bytes()).hexdigest()
    return Subject(name, prompt, seed, _labels_of(phrase, prompt), mask=mask, digest=digest)


def _labels_of(phrase: str, prompt: str) -> tuple[str, ...] | None:
    if not phrase:
        return None
    asked, words = WORD.findall(phrase.casefold()), WORD.findall(prompt)
    folded = [word.casefold() for word in words]
    starts = [i for i in range(len(words)) if folded[i : i + len(asked)] == asked]
    if not starts:
        raise InputError(f'The phrase "{phrase}" is not in the prompt "{prompt}". Name words that follow each other.')
    return tuple(numbered(words)[starts[0] : starts[0] + len(asked)])


def _mask_of(name: str, masks: str | Path | None) -> str | None:
    if masks is None:
        return None
    folder = Path(masks)
    if not folder.is_dir():
        raise InputError(f'The masks "{masks}" are no folder. Give the folder that holds them.')
    found = sorted(path for path in folder.iterdir() if path.stem == name and path.is_file())
    return str(found[0]) if found else None


def read_mask(file: str | Path, size: tuple[int, int]) -> np.ndarray:
    """A mask file as boolean (h, w), bright where the object is.

    Raises `InputError` where it is of another size than the picture, or empty, or covers everything.
    """
    mask = _bright(file)
    if mask.shape != tuple(size):
        raise InputError(
            f'The mask "{file}" is {mask.shape[1]} × {mask.shape[0]} and its picture {size[1]} × {size[0]}. A mask has '
            "the size of the picture that the model makes of its prompt and seed."
        )
    return mask


def _bright(file: str | Path) -> np.ndarray:
    mask = np.asarray(load_photograph(file).convert("L")) > 127
    if not mask.any() or mask.all():
        raise InputError(
            f'The mask "{file}" is {"empty" if not mask.any() else "bright everywhere"}, so nothing can be told apart '
            "by it. Draw it bright where the object is and dark elsewhere."
        )
    return mask
