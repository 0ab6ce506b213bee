"""The pictures that a generation starts from: read from files, and named as a pipeline's call names them."""

import hashlib
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..errors import InputError
from ..vision.photographs import load_photograph

NAMES = {"image": ("image", "video"), "mask_image": ("mask_image",), "control_image": ("control_image", "image")}
"""Each picture of a request, and the arguments that it may go to: the first that the pipeline's call has."""
REPAINTED = 128
"""The brightness from which a mask says: paint here."""

File = str | os.PathLike[str]


@dataclass(frozen=True, eq=False)
class InputPicture:
    """A picture as a pipeline is given it, with its file and the SHA-256 of the file's content."""

    file: str
    digest: str
    picture: Image.Image

    @classmethod
    def read(cls, name: str, file: File) -> "InputPicture":
        """Read a picture as RGB, or a mask as grey values.

        Raises `InputError` for a file that is no picture, and for a mask that says nothing.
        """
        picture = load_photograph(file)
        if name == "mask_image":
            picture = picture.convert("L")
            _refuse_dark(picture, file)
        content = Path(file).expanduser().read_bytes()
        return cls(os.fspath(file), hashlib.sha256(content).hexdigest(), picture)

    def facts(self) -> dict[str, str]:
        """Return the file and its digest, for a record."""
        return {"file": self.file, "sha256": self.digest}


def read_pictures(files: Mapping[str, File | None]) -> dict[str, InputPicture]:
    """Read the pictures of a request by the names of its fields; None is none."""
    return {name: InputPicture.read(name, file) for name, file in files.items() if file is not None}


def named_for(pipeline: str, parameters: Collection[str], pictures: Mapping[str, InputPicture]) -> dict[str, object]:
    """Return the pictures by the arguments of a pipeline's call, which has these `parameters`.

    A picture for a video is its only frame. Raises `InputError` for a picture that the call does not take, and for two
    that would go to one argument.
    """
    arguments: dict[str, object] = {}
    for name, each in pictures.items():
        goal = next((goal for goal in NAMES[name] if goal in parameters), name)
        if goal in arguments:
            raise InputError(
                f"image and control_image were both given, and {pipeline} takes one picture, its image. Give one of "
                "them, or a pipeline that takes both, such as img2img of a ControlNet."
            )
        arguments[goal] = [each.picture] if goal == "video" else each.picture
    return arguments


def _refuse_dark(mask: Image.Image, file: File) -> None:
    """Raise `InputError` for a mask without a place to paint: values such as 0 and 1 are both almost black."""
    _, brightest = mask.getextrema()
    if isinstance(brightest, (int, float)) and brightest < REPAINTED:
        raise InputError(
            f'The mask "{os.fspath(file)}" has no place to paint: its brightest value is {brightest:g} of 255, and '
            f"white, {REPAINTED} and above, is painted. A mask of 0 and 1 must be 0 and 255."
        )
