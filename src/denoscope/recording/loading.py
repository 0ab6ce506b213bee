"""Hub ids, folders, devices and precisions. Weights are read as safetensors only."""

import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

import torch

from ..errors import ModelError, did_you_mean, in_short

BUNDLED = ("shapes",)
PRECISIONS = ("float32", "float16", "bfloat16")
HUB_ID = r"\w[\w.-]*/\w[\w.-]*"
UNSAFE = ("use_safetensors", "trust_remote_code", "custom_pipeline")
"""Options of diffusers that read pickles or run code that comes with a model."""


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """While open, diffusers and transformers show errors only, and no bars but those of a download."""
    from diffusers.utils import logging as diffusers_logging
    from huggingface_hub.utils.tqdm import enable_progress_bars
    from transformers.utils import logging as transformers_logging

    with ExitStack() as undo:
        for library in (diffusers_logging, transformers_logging):
            undo.callback(library.set_verbosity, library.get_verbosity())
            if library.is_progress_bar_enabled():
                undo.callback(library.enable_progress_bar)
            library.set_verbosity_error()
            library.disable_progress_bar()
        enable_progress_bars()  # transformers has switched these off as well
        yield


def bundled_folder(name: str) -> Path:
    """Return the folder with a bundled model's files."""
    return Path(str(resources.files("denoscope") / "bundled" / name))


def precision_of(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Return the dtype that a user names; raises `ModelError` for a dtype that weights cannot have."""
    if dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        return dtype
    if dtype not in PRECISIONS:
        raise ModelError(f'A model cannot have the dtype "{dtype}". {did_you_mean(str(dtype), PRECISIONS)}')
    named: torch.dtype = getattr(torch, str(dtype))
    return named


def device_of(device: str | torch.device | None) -> torch.device | None:
    """Return the device, tried with one number; raises `ModelError` for a device that cannot hold it."""
    if device is None:
        return None
    try:
        if not torch.empty(1, device=device).is_meta:
            return torch.device(device)
        reason = "it holds shapes and no numbers."
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        reason = in_short(error, 120)
    accelerator = [torch.accelerator.current_accelerator()] if torch.accelerator.is_available() else []
    devices = ["cpu", *(device.type for device in accelerator if device is not None)]
    raise ModelError(f'The device "{device}" cannot be used: {reason} {did_you_mean(str(device), devices)}')


def _source(name: str) -> Path | str:
    """Return the folder that a name stands for, or the hub id; nothing is looked up in the network for a slip."""
    folder = bundled_folder(name) if name in BUNDLED else Path(name).expanduser()
    if folder.exists():
        _refuse_foreign(folder, name)
        return folder
    if name in BUNDLED:
        raise ModelError(f'The files of the bundled model "{name}" are not in {folder}. Install denoscope again.')
    if not re.fullmatch(HUB_ID, name):
        raise ModelError(
            f'There is no model and no folder "{name}". {did_you_mean(name, BUNDLED)} Besides: a folder saved by '
            "pipe.save_pretrained(folder), or a hub id, written owner/name."
        )
    return name


def _refuse_foreign(folder: Path, name: str) -> None:
    """Raise `ModelError` unless a folder holds a pipeline with safetensors."""
    if not (folder / "model_index.json").is_file():
        kind = "a file" if folder.is_file() else "a folder without model_index.json"
        raise ModelError(
            f'"{name}" is not a pipeline: it is {kind}. Give a folder saved by pipe.save_pretrained(folder), a hub id '
            f"such as stable-diffusion-v1-5/stable-diffusion-v1-5, or a bundled model ({', '.join(BUNDLED)})."
        )
    _refuse_broken_index(folder / "model_index.json", name)
    safe = {weights.parent for weights in folder.rglob("*.safetensors")}
    pickles = [path for kind in ("*.bin", "*.ckpt", "*.pt") for path in sorted(folder.glob(f"*/{kind}"))]
    unsafe = [path for path in pickles if path.parent not in safe]
    if unsafe:
        how = "pipeline with diffusers and call pipe.save_pretrained(folder, safe_serialization=True)"
        refuse_pickles(name, unsafe[0].relative_to(folder), how)


def refuse_pickles(name: str, file: object, how: str) -> NoReturn:
    """Raise `ModelError` for weights that are pickles; `how` says how to convert them."""
    raise ModelError(
        f'The weights of "{name}" are pickles ({file}), which can run code when they are read. Only safetensors are '
        f"loaded. Convert them once, where you trust them: load the {how}."
    )


def _refuse_broken_index(file: Path, name: str) -> None:
    """Raise `ModelError` unless a model_index.json names its pipeline."""
    try:
        names_pipeline = "_class_name" in json.loads(file.read_text(encoding="utf-8"))
        problem = 'it does not say "_class_name", the pipeline it is for'
    except (OSError, TypeError, ValueError) as error:
        names_pipeline, problem = False, in_short(error, 120).rstrip(".")
    if not names_pipeline:
        raise ModelError(
            f'The model_index.json of "{name}" cannot be used: {problem}. It must be the one that '
            "pipe.save_pretrained(folder) wrote. Save or download the pipeline again."
        )


def _from_pretrained(source: Path | str, name: str, dtype: torch.dtype | None, options: dict[str, Any]) -> Any:
    """Load a pipeline by diffusers' own method, safetensors only; its failures are `ModelError`s of one paragraph."""
    from diffusers import DiffusionPipeline

    kind: Any = DiffusionPipeline
    precision = {} if dtype is None else {"dtype": dtype}
    options = {**options, **hub_options(source)}
    try:
        pipeline = kind.from_pretrained(str(source), use_safetensors=True, **precision, **options)
    except Exception as error:
        raise ModelError(_not_loaded(source, name, error)) from error
    return pipeline if dtype is None else pipeline.to(dtype)  # diffusers before mid-2026 knows no dtype when loading


def hub_options(source: Path | str) -> dict[str, bool]:
    """Return the options of `from_pretrained` for a folder or hub id: the local cache alone if the Hub is dead."""
    return {"local_files_only": True} if isinstance(source, str) and not _hub_answers() else {}


def _hub_answers(seconds: float = 10) -> bool:
    """Return True if the Hub can be reached in time; its client alone would wait for a dead line without end."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    try:
        get_session().head(constants.ENDPOINT, timeout=seconds)
    except Exception as error:
        if not _is_network(error):
            raise
        return False
    return True


def _not_loaded(source: Path | str, name: str, error: Exception) -> str:
    if isinstance(source, Path):
        return (
            f'The pipeline in the folder "{name}" could not be loaded: {in_short(error)} A folder is loaded as '
            "pipe.save_pretrained(folder) wrote it, weights as safetensors. Save or download it again."
        )
    return (
        f'The model "{name}" could not be loaded from the Hugging Face Hub: {hub_reason(error)} Allowed are hub ids '
        f"(owner/name) of diffusers pipelines with safetensors, folders, and bundled models ({', '.join(BUNDLED)})."
    )


def hub_reason(error: Exception) -> str:
    """Return the reason why a hub id did not load; diffusers hides the first error in the chain of causes."""
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    causes = list(_causes(error))
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        return "its owner asks for consent. Give it on the model's page at huggingface.co, then run: hf auth login."
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        return "there is no such model, or it is private. Check the spelling, or run: hf auth login."
    if any(isinstance(cause, LocalEntryNotFoundError) or _is_network(cause) for cause in causes):
        return "the Hub cannot be reached, and the local cache does not hold the whole model. Go online and try again."
    return in_short(error)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_network(error: BaseException) -> bool:
    libraries = ("httpx", "httpcore", "requests", "urllib3")  # httpx2 too
    return isinstance(error, (ConnectionError, TimeoutError)) or type(error).__module__.startswith(libraries)


PICKLES = ("*.bin", "*.ckpt", "*.pt", "*.pth")
"""Names of files that can run code when they are read."""


@dataclass(frozen=True)
class Wanted:
    """The kind of model that a repository should hold, in the words of messages, with an example.

    `named` are models with a name of their own; `besides` says what else a user may give.
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
        """Return the folder or hub id of a name; nothing is looked up in the network for a slip."""
        folder = _existing(name)
        if folder is not None:
            _refuse_foreign_folder(folder, name, wanted)
            return cls(name, folder, {}, wanted)
        if not re.fullmatch(HUB_ID, name):
            raise ModelError(
                f'There is no {wanted.noun} and no folder "{textwrap.shorten(name, 80, placeholder=" ...")}". '
                f"{did_you_mean(name, wanted.named)} Besides: a folder saved by save_pretrained(folder), a hub id, "
                f"written owner/name, or {wanted.besides}."
            )
        return cls(name, name, hub_options(name), wanted)

    def read(self, kind: Any, **options: Any) -> Any:
        """Call `kind.from_pretrained`, for anything of transformers that has it."""
        try:
            return kind.from_pretrained(str(self.source), trust_remote_code=False, **self.options, **options)
        except Exception as error:
            raise ModelError(self._not_loaded(error)) from error

    def module(self, kind: Any, precision: torch.dtype) -> torch.nn.Module:
        """Return the network; raises `ModelError` for missing weights, which transformers would draw at random."""
        module, missing = self.module_and_missing(kind, precision)
        if missing:
            self.refuse_missing(module, missing)
        return module

    def module_and_missing(self, kind: Any, precision: torch.dtype) -> tuple[torch.nn.Module, list[str]]:
        """Return the network, and the names of the weights that its files lack."""
        module, report = self.read(kind, dtype=precision, use_safetensors=True, output_loading_info=True)
        return module, sorted(set(report["missing_keys"]) & set(dict(module.named_parameters())))

    def refuse_missing(self, module: torch.nn.Module, missing: list[str]) -> None:
        """Raise `ModelError` for weights that the files lack."""
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
    """Return the file or folder of a name; None if there is none, or if the name cannot be a path."""
    try:
        folder = Path(name).expanduser()
        return folder if name.strip() and folder.exists() else None
    except (OSError, RuntimeError):
        return None


def _refuse_foreign_folder(folder: Path, name: str, wanted: Wanted) -> None:
    """Raise `ModelError` unless a folder holds a model of transformers with safetensors."""
    if not (folder / "config.json").is_file():
        kind = "a file" if folder.is_file() else "a folder without config.json"
        raise ModelError(
            f'"{name}" is not {_with_article(wanted.noun)}: it is {kind}. Give a folder saved by '
            "save_pretrained(folder) of a model of transformers and its processor, a hub id such as "
            f"{wanted.example}, or {' or '.join(wanted.named)}."
        )
    pickles = [path for kind in PICKLES for path in sorted(folder.glob(kind))]
    if pickles and not any(folder.glob("*.safetensors")):
        refuse_pickles(name, pickles[0].name, "model with transformers and call save_pretrained(folder)")


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def settled(module: torch.nn.Module, place: torch.device, precision: torch.dtype) -> torch.nn.Module:
    """Return a module that Denoscope loaded, on its device, in evaluation mode, its parameters without gradients.

    Channels last is the layout in which convolutions are fastest; it changes nothing for other layers.
    """
    moved: torch.nn.Module = module.to(place, precision).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved.eval().requires_grad_(False)
