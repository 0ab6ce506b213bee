"""Image sequences for a classifier to look at: a photograph noised forward, or the pictures of a recorded trace.

A photograph is noised as in "Analysis of Diffusion Model's Inference Mechanism Using XAI Techniques" (KCC 2024
Explainable AI workshop), a linear blend with one noise per draw (`blend`), or by any diffusers scheduler (`ddpm`, Ho et
al. 2020). Time runs as in generation: frame 0 is noise, the last frame nearly clean.
"""

import difflib
import operator
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal, final, overload

import numpy as np
import torch
from PIL import Image, ImageOps

from .errors import InputError, did_you_mean
from .noise import NoiseLevel
from .schedules import uniform
from .traces import Step, Trace

SHORT_SIDE = 1024
"""A large JPEG is decoded reduced, and no further than to this many pixels on its short side."""
LARGEST_SEED = 2**64 - 1
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")

Photograph = str | os.PathLike[str] | Image.Image | np.ndarray
Space = Literal["input", "image"]
Kind = Literal["blend", "ddpm", "sample", "clean"]


class AnimatedPhotographWarning(UserWarning):
    """A file holds several pictures, of which one is used."""


@dataclass(frozen=True, eq=False)
class Frame(ABC):
    """One time of a sequence, in diffusers' words: `index` from 0, `timestep`, `log_snr` = log(signal² / noise²).

    `space` is "input" (what a classifier takes, already normalised) or "image" ([0, 1]).
    """

    space: ClassVar[Space]
    index: int
    timestep: float
    log_snr: float

    @property
    @abstractmethod
    def images(self) -> torch.Tensor:
        """The pictures at this time, one per draw of the noise: (draws, 3, h, w). Made anew each time."""


@final
@dataclass(frozen=True, eq=False)
class NoisedFrame(Frame):
    """a x + b ε of a clean picture x (3, h, w) and noises ε (draws, 3, h, w), which all frames share."""

    space: ClassVar[Space] = "input"
    a: float
    b: float
    clean: torch.Tensor = field(repr=False)
    noise: torch.Tensor = field(repr=False)

    @property
    def images(self) -> torch.Tensor:
        return self.a * self.clean + self.b * self.noise


@final
@dataclass(frozen=True, eq=False)
class StepFrame(Frame):
    """A picture of a recorded step, decoded when it is asked for and not kept."""

    space: ClassVar[Space] = "image"
    step: Step = field(repr=False)
    decoded: Callable[[Step], torch.Tensor] = field(repr=False)

    @property
    def images(self) -> torch.Tensor:
        return _in_colour(self.decoded, self.step)


class Frames(Sequence[Frame]):
    """A sequence of `Frame`s, pure noise first.

    `clean` (3, h, w) is the picture without noise, or a trace's finished one; `draws` is how many noises there are;
    `options` is what made it.
    """

    def __init__(
        self,
        frames: Sequence[Frame],
        clean: torch.Tensor,
        *,
        kind: Kind,
        draws: int,
        options: dict[str, Any],
    ):
        self.frames, self.clean, self.kind, self.draws, self.options = tuple(frames), clean, kind, draws, options

    def __len__(self) -> int:
        return len(self.frames)

    @overload
    def __getitem__(self, index: int) -> Frame: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Frame, ...]: ...
    def __getitem__(self, index: int | slice) -> Frame | tuple[Frame, ...]:
        return self.frames[index]

    def __iter__(self) -> Iterator[Frame]:
        return iter(self.frames)

    @property
    def space(self) -> Space:
        """What the values of the pictures are, as in every `Frame` of it."""
        return self.frames[0].space

    def __repr__(self) -> str:
        first, last = self.frames[0], self.frames[-1]
        return (
            f'Frames "{self.kind}": {len(self)}, time steps {first.timestep:g} to {last.timestep:g}, log-SNR '
            f"{first.log_snr:.3g} to {last.log_snr:.3g}, {self.draws} draw(s) of {tuple(self.clean.shape)}, "
            f'space "{self.space}"'
        )


def blend(clean: torch.Tensor, count: int = 100, draws: int = 1, seed: int = 0) -> Frames:
    """x_i = (1 − τ_i) x + τ_i ε with τ_i = 1 − i / count, the study's process; one ε per draw for all frames.

    `clean` is a classifier's normalised crop (3, h, w), and the frames are in its space. `timestep` is the noise steps
    left, count − i. Raises `InputError` for a picture of another shape, or fewer than one frame or draw.
    """
    clean, count = _picture(clean), _at_least_one("count of frames", count)
    noise = draw_noise(clean.shape, draws, seed).to(clean)
    taus = [1 - i / count for i in range(count)]
    frames = [
        NoisedFrame(i, float(count - i), _log_snr(1 - tau, tau), 1 - tau, tau, clean, noise)
        for i, tau in enumerate(taus)
    ]
    options = dict(kind="blend", count=count, draws=len(noise), seed=operator.index(seed))
    return Frames(frames, clean, kind="blend", draws=len(noise), options=options)


def ddpm(clean: torch.Tensor, scheduler: Any = None, count: int = 100, draws: int = 1, seed: int = 0) -> Frames:
    """`scheduler.add_noise` at `count` evenly spaced time steps from T − 1 down; one ε per draw for all frames.

    `clean` is a classifier's normalised crop (3, h, w), and the frames are in its space. `scheduler` is a diffusers
    scheduler, which is left as it is, or the beta schedule of a `DDPMScheduler`: "linear" (the default),
    "scaled_linear" or "squaredcos_cap_v2". One that walks along sigmas, such as Euler's, does not shrink the picture:
    x + σ ε. Raises `InputError` for a scheduler that cannot add noise, more frames than it has time steps, and what
    `blend` refuses.
    """
    clean, count = _picture(clean), _at_least_one("count of frames", count)
    scheduler = _scheduler(scheduler)
    timesteps = _timesteps(scheduler, count)
    levels = _levels(scheduler, timesteps)
    noise = draw_noise(clean.shape, draws, seed).to(clean)
    frames = [
        NoisedFrame(i, float(t), _log_snr(a, b), a, b, clean, noise)
        for i, (t, (a, b)) in enumerate(zip(timesteps, levels, strict=True))
    ]
    own = dict(kind="ddpm", count=count, draws=len(noise), seed=operator.index(seed))
    options = own | _scheduler_options(scheduler)
    return Frames(frames, clean, kind="ddpm", draws=len(noise), options=options)


def frames_of(trace: Trace, what: Literal["clean", "sample"] = "clean") -> Frames:
    """The pictures of a recorded run, in [0, 1]: the predicted clean pictures, or the samples x_t, decoded.

    `clean` of the result is the finished picture. Raises `InputError` for a trace of several pictures, or another word.
    """
    if what not in _DECODED:
        raise InputError(f"A trace has no pictures {_said(what)}. {did_you_mean(str(what), _DECODED)}")
    if trace.pictures != 1:
        raise InputError(
            f"This trace holds {trace.pictures} pictures, and a sequence of frames is of one. "
            "Choose it: frames_of(trace.picture(0))."
        )
    frames = [StepFrame(step.index, step.timestep, step.log_snr, step, _DECODED[what]) for step in trace]
    finished = _in_colour(_decoded_result, trace[-1])[0]
    return Frames(frames, finished, kind=what, draws=1, options=dict(kind=what))


def draw_noise(shape: Sequence[int], draws: int, seed: int) -> torch.Tensor:
    """Standard normal noise, (draws, *shape), on the CPU, leaving torch's own generator alone.

    Each draw has a generator of its own, so draw k is the same whatever the number of draws: five extend one. Raises
    `InputError` for fewer than one draw and for a seed that is not a whole number from 0 to 2⁶⁴ − 1.
    """
    noise = torch.empty((_at_least_one("number of draws", draws), *shape), dtype=torch.float32, device="cpu")
    seed = _whole("seed", seed, 0, LARGEST_SEED)
    for k, draw in enumerate(noise):
        own = np.random.SeedSequence(seed, spawn_key=(k,)).generate_state(1, np.uint64)
        draw.normal_(generator=torch.Generator("cpu").manual_seed(int(own[0])))
    return noise


def _log_snr(a: float, b: float) -> float:
    return NoiseLevel(a, b, 1.0, "epsilon").log_snr


def _decoded_clean(step: Step) -> torch.Tensor:
    return step.clean()


def _decoded_sample(step: Step) -> torch.Tensor:
    return step.decoder.decode(step.sample)


def _decoded_result(step: Step) -> torch.Tensor:
    return step.decoder.decode(step.prev_sample)


_DECODED: dict[str, Callable[[Step], torch.Tensor]] = {"clean": _decoded_clean, "sample": _decoded_sample}


@torch.no_grad()
def _in_colour(decoded: Callable[[Step], torch.Tensor], step: Step) -> torch.Tensor:
    """A decoded picture as (1, 3, h, w); a grey one has three equal channels."""
    images = decoded(step).float()
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


def _scheduler(given: Any) -> Any:
    """A scheduler that can add noise and says how many time steps it has."""
    if given is None or isinstance(given, str):
        name = "linear" if given is None else given
        if name not in BETA_SCHEDULES:
            raise InputError(
                f"There is no scheduler {_said(name)}. {did_you_mean(name, BETA_SCHEDULES)} "
                "Any other: give the diffusers scheduler itself."
            )
        from diffusers import DDPMScheduler

        return DDPMScheduler(beta_schedule=name)
    trained = getattr(getattr(given, "config", None), "num_train_timesteps", None)
    if not callable(getattr(given, "add_noise", None)) or not isinstance(trained, int):
        raise InputError(
            f"{type(given).__name__} cannot noise a photograph: it has no add_noise, or no number of training time "
            f"steps. Give a diffusers scheduler that has both, such as DDPMScheduler, or one of the names "
            f"{', '.join(BETA_SCHEDULES)}; for a flow-matching process use the blend, which is the same line."
        )
    return given


def _timesteps(scheduler: Any, count: int) -> list[int]:
    trained = scheduler.config.num_train_timesteps
    if count > trained:
        raise InputError(
            f"{count} frames were asked for, and {type(scheduler).__name__} has {trained} time steps, one for each "
            f"frame at most. Give a count from 1 to {trained}, or use the blend, which has no such limit."
        )
    return uniform(count, trained)


def _levels(scheduler: Any, timesteps: Sequence[int]) -> list[tuple[float, float]]:
    """a and b of add_noise(x, ε) = a x + b ε at each time step, read off by asking it for (1, 0) and (0, 1)."""
    one, at = torch.ones(len(timesteps), 1, 1, 1), torch.tensor(timesteps)
    try:
        placed = _on_every_time_step(scheduler)
        a, b = placed.add_noise(one, 0 * one, at), placed.add_noise(0 * one, one, at)
        straight = torch.allclose(placed.add_noise(one, one, at), a + b)
        levels = list(zip(a.flatten().tolist(), b.flatten().tolist(), strict=True))
    except Exception as error:
        raise InputError(_no_noise(scheduler, f"its add_noise failed, {type(error).__name__}: {error}")) from error
    if not straight or len(levels) != len(timesteps) or not all(a >= 0 and b >= 0 for a, b in levels):
        raise InputError(_no_noise(scheduler, "its add_noise is not a x + b ε with the same a and b for every pixel"))
    if not all(_log_snr(*before) < _log_snr(*after) for before, after in pairwise(levels)):
        raise InputError(_no_noise(scheduler, "its noise does not fall with the time step"))
    return levels


def _no_noise(scheduler: Any, why: str) -> str:
    return (
        f"{type(scheduler).__name__} cannot noise a photograph: {_one_line(why, 300).rstrip('.')}. Use a scheduler "
        "whose add_noise takes any of its training time steps, such as DDPMScheduler, or a name: "
        f"{', '.join(BETA_SCHEDULES)}."
    )


def _on_every_time_step(scheduler: Any) -> Any:
    """A fresh copy of a scheduler, its sigmas (if it walks along such) standing on every time step it was trained on.

    add_noise looks a time step up in the grid of the last run; Karras sigmas and their like only place that grid.
    """
    spacing = {"timestep_spacing": "trailing"} | dict.fromkeys(
        ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas"), False
    )
    known = {key: value for key, value in spacing.items() if key in scheduler.config}
    fresh = type(scheduler).from_config(scheduler.config, **known)
    if hasattr(fresh, "sigmas"):
        fresh.set_timesteps(fresh.config.num_train_timesteps)
    return fresh


def _scheduler_options(scheduler: Any) -> dict[str, Any]:
    """A scheduler's class and settings, flat."""
    settings = {f"scheduler_{key}": value for key, value in scheduler.config.items() if not key.startswith("_")}
    return {"scheduler": type(scheduler).__name__} | {k: v for k, v in settings.items() if v is not None}


def _picture(clean: Any) -> torch.Tensor:
    if isinstance(clean, torch.Tensor) and clean.is_floating_point() and clean.ndim == 3 and clean.shape[0] == 3:
        if clean.numel() and torch.isfinite(clean).all():
            return clean.detach()
        problem = "it is empty" if not clean.numel() else "it has NaN or infinite values"
    elif isinstance(clean, torch.Tensor):
        problem = f"it is a tensor of shape {tuple(clean.shape)} and dtype {clean.dtype}"
    else:
        problem = f"it is of the type {type(clean).__name__}"
    raise InputError(
        f"The clean picture cannot be noised: {problem}. Give one picture as a classifier takes it, a float tensor of "
        "shape (3, h, w) with finite values."
    )


def _at_least_one(name: str, given: Any) -> int:
    return _whole(name, given, 1, 10**9)


def _whole(name: str, given: Any, least: int, most: int) -> int:
    try:
        number = operator.index(given)
    except TypeError:
        number = least - 1
    if isinstance(given, bool) or not least <= number <= most:
        raise InputError(f"The {name} is {_said(given)}. It must be a whole number from {least} to {most}.")
    return number


def load_photograph(source: Photograph) -> Image.Image:
    """A photograph as an upright RGB picture.

    >>> load_photograph(np.full((2, 3), 65535, np.uint16)).getpixel((0, 0))
    (255, 255, 255)

    `source` is a path, a PIL image of any mode (it is not changed), or an array (h, w) or (h, w, 1 | 3 | 4) of uint8,
    uint16, bool, or floats in [0, 1]. EXIF orientation is applied; what is transparent is laid on white; 16 bits become
    8; of several pictures in a file the first is used (of a PIL image the one it stands at), with an
    `AnimatedPhotographWarning`. A JPEG may be decoded reduced, its short side 1024 pixels or more. Raises `InputError`
    for what is no picture, broken, or has more pixels than Pillow's `Image.MAX_IMAGE_PIXELS`.
    """
    name = _name(source)
    with _readable(name), _opened(source) as image:
        _refuse_size(image, name)
        photograph = _rgb(ImageOps.exif_transpose(image))
        if getattr(image, "is_animated", False) and image.format != "MPO":  # a camera's MPO: previews, depth, gain map
            which = f"number {image.tell()}, counted from 0," if image.tell() else "the first"
            message = f"{name} holds several pictures ({image.format}); only {which} is used."
            warnings.warn(message, AnimatedPhotographWarning, stacklevel=2)
        return photograph


def _name(source: Any) -> str:
    if isinstance(source, Image.Image):
        return f"The picture ({source.width} × {source.height}, mode {source.mode})"
    if isinstance(source, np.ndarray):
        return f"The array of shape {source.shape} and dtype {source.dtype}"
    if isinstance(source, (str, os.PathLike)):
        return f'The file "{_one_line(os.fspath(source), 300)}"'
    raise InputError(
        f"{_said(source)} ({type(source).__name__}) is not a photograph. Give the path of a picture, a PIL image, or a "
        "NumPy array (h, w), (h, w, 3) or (h, w, 4)."
    )


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """While open, what Pillow and its many decoders raise becomes an `InputError` of one paragraph."""
    try:
        yield
    except (InputError, Warning):
        raise
    except Image.DecompressionBombError as error:
        raise InputError(_too_large(name, str(error).partition(",")[0])) from error
    except Exception as error:
        reason = _one_line(error, 200).rstrip(".") or type(error).__name__
        raise InputError(
            f"{name} cannot be read as a photograph: {reason}. Give a complete picture in a format that Pillow reads, "
            "such as JPEG, PNG, TIFF, WebP or GIF; convert others (HEIC, SVG, camera raw) first."
        ) from error


@contextmanager
def _opened(source: Photograph) -> Iterator[Image.Image]:
    """The source as a PIL image; a file is closed again, and a large JPEG is set to be decoded reduced."""
    if isinstance(source, Image.Image):
        yield source
    elif isinstance(source, np.ndarray):
        yield _of_array(source)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `_refuse_size` refuses instead
            image = Image.open(_existing(source))
        with image:
            image.draft(None, (SHORT_SIDE, SHORT_SIDE))
            yield image


def _existing(source: str | os.PathLike[str]) -> Path:
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.exists():
        raise InputError(f"{_name(source)} is not a file but {_what(path)}. Give the path of one picture.")
    near = difflib.get_close_matches(path.name, os.listdir(path.parent) if path.parent.is_dir() else [], n=1)
    hint = f'Did you mean "{_one_line(near[0], 100)}"? ' if near else ""
    raise InputError(f"{_name(source)} does not exist. {hint}Give the path of a picture, such as photos/cat.jpg.")


def _what(path: Path) -> str:
    if path == Path():
        return "the folder you are in"
    return "a folder" if path.is_dir() else "a device or a pipe"


def _refuse_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width * height == 0:
        raise InputError(f"{name} has no pixels: it is {width} × {height}. Give a picture of at least 1 × 1.")
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and width * height > most:
        raise InputError(
            _too_large(name, f"{width} × {height} is {width * height} pixels, and at most {most} are read")
        )


def _too_large(name: str, numbers: str) -> str:
    return (
        f"{name} is too large: {numbers}. Shrink it first, for example to {SHORT_SIDE} pixels on its short side; "
        "a classifier sees a few hundred."
    )


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode[0] in "IF":  # 16 and 32 bits, and floating point
        image = _of_array(_deep(image))
    if image.mode == "La":
        image = image.convert("LA")
    if not image.has_transparency_data:
        return image.convert("RGB")
    page, ink = Image.new("RGB", image.size, "white"), image.convert("RGBA")
    page.paste(ink, mask=ink)
    return page


def _deep(image: Image.Image) -> np.ndarray:
    """The values of a picture of 16 bits (Pillow keeps some as 32) or floats, what is transparent in it white."""
    values = np.array(image)
    if image.mode == "F":
        return values
    if values.min() < 0 or values.max() > 65535:
        raise InputError(
            f"The picture of mode {image.mode} has values from {values.min()} to {values.max()}. Of such pictures "
            "those of 16 bits are read, 0 to 65535. Scale it to that, or to 8 bits, first."
        )
    if isinstance(transparent := image.info.get("transparency"), int):
        values[values == transparent] = 65535
    return values.astype(np.uint16)


def _of_array(array: np.ndarray) -> Image.Image:
    """A PIL image of mode L, RGB or RGBA."""
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or not array.size:
        raise InputError(
            f"{_name(array)} is not a photograph. Its shape must be (h, w), (h, w, 1), (h, w, 3) or (h, w, 4), with "
            "at least one pixel and the channels last: np.moveaxis(array, 0, -1) puts them there."
        )
    pixels = _eight_bits(array)
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if array.shape[2:] == (1,) else pixels))


def _eight_bits(array: np.ndarray) -> np.ndarray:
    match array.dtype.kind, array.dtype.itemsize:
        case "b", _:
            return array * np.uint8(255)
        case "u", 1:
            return array
        case "u", 2:
            return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 is 255 × 257
        case "f", _:
            return _eight_bits_of_floats(array)
    raise InputError(
        f"{_name(array)} is not a photograph: its dtype must be uint8, uint16, bool, or float with values in [0, 1]. "
        "Whole numbers from 0 to 255: array.astype(np.uint8)."
    )


def _eight_bits_of_floats(array: np.ndarray) -> np.ndarray:
    low, high = array.min(), array.max()  # NaN if there is one
    if not 0 <= low <= high <= 1:
        raise InputError(
            f"{_name(array)} has values from {low:g} to {high:g}. Floats must be in [0, 1], without NaN: divide those "
            "up to 255 by 255, and replace NaN by a colour."
        )
    return np.rint(np.multiply(array, 255, dtype=np.promote_types(array.dtype, np.float32))).astype(np.uint8)


def _said(given: Any) -> str:
    """What the user gave, short and on one line."""
    return _one_line(repr(given), 100)


def _one_line(text: object, most: int) -> str:
    words = " ".join(str(text).split())
    return words if len(words) <= most else f"{words[: most - 4]} ..."
