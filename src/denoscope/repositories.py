"""Networks of transformers from a hub id or a folder: safetensors only, no code that comes with a model is run."""

import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .errors import ModelError, did_you_mean
from .models import HUB_ID, hub_options, hub_reason, in_short, refuse_pickles

PICKLES = ("*.bin", "*.ckpt", "*.pt", "*.pth")


@dataclass(frozen=True)
class Wanted:
    """What a repository should hold, in the words of messages: what it is, of which kind, and for example which.

    `named` are those that have a name of their own; `besides` is what else a user may give.
    """

    noun: str
    kinds: str
    example: str
    named: tuple[str, ...]
    besides: str


@dataclass(frozen=True)
class Repository:
    """A hub id or folder that transformers reads, with failures in one paragraph."""

    name: str
    source: Path | str
    options: Mapping[str, Any]
    wanted: Wanted

    @classmethod
    def of(cls, name: str, wanted: Wanted) -> "Repository":
        """Where a name points; nothing is looked up in the network for a slip."""
        if (folder := _existing(name)) is not None:
            _refuse_foreign(folder, name, wanted)
            return cls(name, folder, {}, wanted)
        if not re.fullmatch(HUB_ID, name):
            raise ModelError(
                f'There is no {wanted.noun} and no folder "{textwrap.shorten(name, 80, placeholder=" ...")}". '
                f"{did_you_mean(name, wanted.named)} Besides: a folder saved by save_pretrained(folder), a hub id, "
                f"written owner/name, or {wanted.besides}."
            )
        return cls(name, name, hub_options(name), wanted)

    def read(self, kind: Any, **options: Any) -> Any:
        """`kind.from_pretrained`, for anything of transformers that has it."""
        try:
            return kind.from_pretrained(str(self.source), trust_remote_code=False, **self.options, **options)
        except Exception as error:
            raise ModelError(self._not_loaded(error)) from error

    def module(self, kind: Any, precision: torch.dtype) -> torch.nn.Module:
        """The network with all its weights; transformers would make up the missing ones."""
        module, missing = self.module_and_missing(kind, precision)
        if missing:
            self.refuse_missing(module, missing)
        return module

    def module_and_missing(self, kind: Any, precision: torch.dtype) -> tuple[torch.nn.Module, list[str]]:
        """The network, and the names of the weights that its files lack."""
        module, report = self.read(kind, dtype=precision, use_safetensors=True, output_loading_info=True)
        return module, sorted(set(report["missing_keys"]) & set(dict(module.named_parameters())))

    def refuse_missing(self, module: torch.nn.Module, missing: list[str]) -> None:
        raise ModelError(
            f'The files of "{self.name}" lack {len(missing)} weights of the {type(module).__name__} that '
            f"config.json names, such as {missing[0]}. Save or download the model again."
        )

    def _not_loaded(self, error: Exception) -> str:
        if isinstance(self.source, Path):
            return (
                f'The {self.wanted.noun} in the folder "{self.name}" could not be loaded: {in_short(error)} A folder '
                "is loaded as save_pretrained(folder) of the model and of its processor wrote it, weights as "
                "safetensors."
            )
        return (
            f'The {self.wanted.noun} "{self.name}" could not be loaded from the Hugging Face Hub: {hub_reason(error)} '
            f"Allowed are hub ids (owner/name) of {self.wanted.kinds} of transformers with safetensors, folders, and "
            f"{' and '.join(self.wanted.named)}."
        )


def _existing(name: str) -> Path | None:
    """The file or folder that a name is; too long a name, or the home of nobody, is none."""
    try:
        folder = Path(name).expanduser()
        return folder if name.strip() and folder.exists() else None
    except (OSError, RuntimeError):
        return None


def _refuse_foreign(folder: Path, name: str, wanted: Wanted) -> None:
    if not (folder / "config.json").is_file():
        what = "a file" if folder.is_file() else "a folder without config.json"
        raise ModelError(
            f'"{name}" is not {_with_article(wanted.noun)}: it is {what}. Give a folder saved by '
            "save_pretrained(folder) of a model of transformers and its processor, a hub id such as "
            f"{wanted.example}, or {' or '.join(wanted.named)}."
        )
    pickles = [path for kind in PICKLES for path in sorted(folder.glob(kind))]
    if pickles and not any(folder.glob("*.safetensors")):
        refuse_pickles(name, pickles[0].name, "model with transformers and call save_pretrained(folder)")


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def settled(module: torch.nn.Module, place: torch.device, precision: torch.dtype) -> torch.nn.Module:
    """A module that is ours: where it should be, in evaluation mode, its parameters asking for no gradient.

    Channels last is the layout in which convolutions are fastest; other layers do not mind.
    """
    settled = module.to(place, precision).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return settled.eval().requires_grad_(False)
