"""Sequences of pictures for a classifier: a photograph noised forward, or the pictures of a recorded trace.

A photograph is noised as in "Analysis of Diffusion Model's Inference Mechanism Using XAI Techniques" (KCC 2024
Explainable AI workshop), a linear blend with one noise per draw (`blend`), or by any diffusers scheduler (`ddpm`, Ho et
al. 2020). Time runs as in generation: frame 0 is noise, the last frame nearly clean.
"""

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, final, overload

import numpy as np
import torch

from ..errors import InputError, did_you_mean, shown_value
from ..recording.models import LARGEST_SEED
from ..recording.steps import Step
from ..recording.traces import Trace
from .noising import log_snr_of, noise_levels, noising_scheduler, noising_timesteps, scheduler_settings

Space = Literal["input", "image"]
PerChannel = float | Sequence[float]
Kind = Literal["blend", "ddpm", "sample", "clean"]


@dataclass(frozen=True, eq=False)
class Frame(ABC):
    """One moment of a sequence, in diffusers' words: `index` from 0, `timestep`, `log_snr` = log(signal² / noise²).

    `space` is "input" (a classifier's normalised inputs) or "image" (values in [0, 1]).
    """

    index: int
    timestep: float
    log_snr: float

    @property
    @abstractmethod
    def space(self) -> Space:
        """The space of the pictures' values."""

    @property
    @abstractmethod
    def images(self) -> torch.Tensor:
        """The pictures of this frame, one for each draw of the noise: (draws, 3, h, w). Computed at each access."""


@final
@dataclass(frozen=True, eq=False)
class NoisedFrame(Frame):
    """Noised pictures a x + b ε: clean x (3, h, w) and noises ε (draws, 3, h, w) are shared by all frames."""

    a: float
    b: float
    clean: torch.Tensor = field(repr=False)
    noise: torch.Tensor = field(repr=False)

    @property
    def space(self) -> Space:
        return "input"

    @property
    def images(self) -> torch.Tensor:
        return self.a * self.clean + self.b * self.noise


@final
@dataclass(frozen=True, eq=False)
class StepFrame(Frame):
    """A picture of a recorded step, decoded at each access."""

    step: Step = field(repr=False)
    decoded: Callable[[Step], torch.Tensor] = field(repr=False)

    @property
    def space(self) -> Space:
        return "image"

    @property
    def images(self) -> torch.Tensor:
        return _in_colour(self.decoded, self.step)


@final
@dataclass(frozen=True, eq=False)
class FrameGroup(Frame):
    """Several frames of one sequence as one: their pictures one behind the other."""

    members: tuple[Frame, ...] = field(repr=False)

    @classmethod
    def of(cls, members: Sequence[Frame]) -> "FrameGroup":
        """Return the group of some frames, at the time of the first."""
        first = members[0]
        return cls(first.index, first.timestep, first.log_snr, tuple(members))

    @property
    def space(self) -> Space:
        return self.members[0].space

    @property
    def images(self) -> torch.Tensor:
        return torch.cat([frame.images for frame in self.members])


class Frames(Sequence[Frame]):
    """A sequence of `Frame`s, pure noise first.

    `clean` (3, h, w) is the picture without noise, or a trace's finished picture. `draws` is the number of noises, and
    `options` are the settings that the sequence was made with.
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
        """The space of the pictures' values, the same in every frame."""
        return self.frames[0].space

    def __repr__(self) -> str:
        first, last = self.frames[0], self.frames[-1]
        return (
            f'Frames "{self.kind}": {len(self)}, time steps {first.timestep:g} to {last.timestep:g}, log-SNR '
            f"{first.log_snr:.3g} to {last.log_snr:.3g}, {self.draws} draw(s) of {tuple(self.clean.shape)}, "
            f'space "{self.space}"'
        )


def blend(
    clean: torch.Tensor,
    count: int = 100,
    draws: int = 1,
    seed: int = 0,
    *,
    mean: PerChannel = 0.0,
    std: PerChannel = 1.0,
) -> Frames:
    """Noise a picture by x_i = (1 − τ_i) x + τ_i ε with τ_i = 1 − i / count, the study's process.

    Each draw has one ε for all frames. `clean` is a classifier's normalised crop (3, h, w), and the frames are in its
    space. ε has this `mean` and `std` there, a number or a number for each channel: `**classifier.imagenet_noise()` is
    the study's noise, whatever the classifier's units are. `timestep` is the number of noise steps left, count − i, and
    `log_snr` counts picture and noise in units of the noise. Raises `InputError` for a picture of another shape, fewer
    than one frame or draw, or a `std` that is not positive.
    """
    clean, count = _picture(clean), _at_least_one("count of frames", count)
    centre, spread = _per_channel("mean", mean, clean), _per_channel("std", std, clean)
    if not (spread > 0).all():
        raise InputError(f"The std of the noise is {shown_value(std)}. Give a standard deviation above 0.")
    noise = centre + spread * draw_noise(clean.shape, draws, seed).to(clean)
    taus = [1 - i / count for i in range(count)]
    frames = [
        NoisedFrame(i, float(count - i), log_snr_of(1 - tau, tau), 1 - tau, tau, clean, noise)
        for i, tau in enumerate(taus)
    ]
    statistics = {"noise_mean": centre.flatten().tolist(), "noise_std": spread.flatten().tolist()}
    options = dict(kind="blend", count=count, draws=len(noise), seed=operator.index(seed), **statistics)
    return Frames(frames, clean, kind="blend", draws=len(noise), options=options)


def ddpm(clean: torch.Tensor, scheduler: Any = None, count: int = 100, draws: int = 1, seed: int = 0) -> Frames:
    """Noise a picture by `scheduler.add_noise` at `count` evenly spaced time steps from T − 1 down.

    Each draw has one ε for all frames. `clean` is a classifier's normalised crop (3, h, w), and the frames are in its
    space. `scheduler` is a diffusers scheduler, which stays as it is, or the beta schedule of a `DDPMScheduler`:
    "linear" (the default), "scaled_linear" or "squaredcos_cap_v2". A scheduler of sigmas, such as Euler's, does not
    shrink the picture: x + σ ε. Raises `InputError` for a scheduler that cannot add noise, for more frames than it has
    time steps, and as `blend` does.
    """
    clean, count = _picture(clean), _at_least_one("count of frames", count)
    scheduler = noising_scheduler(scheduler)
    timesteps = noising_timesteps(scheduler, count)
    levels = noise_levels(scheduler, timesteps)
    noise = draw_noise(clean.shape, draws, seed).to(clean)
    frames = [
        NoisedFrame(i, float(t), log_snr_of(a, b), a, b, clean, noise)
        for i, (t, (a, b)) in enumerate(zip(timesteps, levels, strict=True))
    ]
    settings = dict(kind="ddpm", count=count, draws=len(noise), seed=operator.index(seed))
    options = settings | scheduler_settings(scheduler)
    return Frames(frames, clean, kind="ddpm", draws=len(noise), options=options)


def frames_of(trace: Trace, what: Literal["clean", "sample"] = "clean") -> Frames:
    """Return the decoded pictures of a recorded run, in [0, 1]: the predicted clean pictures, or the samples x_t.

    `clean` of the result is the finished picture. Raises `InputError` for a trace of several pictures or of a clip, or
    for another word.
    """
    if what not in _DECODED:
        raise InputError(f"A trace has no pictures {shown_value(what)}. {did_you_mean(str(what), _DECODED)}")
    if trace.pictures != 1:
        raise InputError(
            f"This trace holds {trace.pictures} pictures, and a sequence of frames is of one picture. "
            "Choose it: frames_of(trace.picture(0))."
        )
    if trace[0].layout.frames is not None:
        raise InputError(
            "This trace is of a clip, and a sequence of frames is of one picture over the steps. Explain the trace "
            "itself: attributor(trace)."
        )
    frames = [StepFrame(step.index, step.timestep, step.log_snr, step, _DECODED[what]) for step in trace]
    finished = _in_colour(_decoded_result, trace[-1])[0]
    return Frames(frames, finished, kind=what, draws=1, options=dict(kind=what))


def draw_noise(shape: Sequence[int], draws: int, seed: int) -> torch.Tensor:
    """Return standard normal noise, (draws, *shape), on the CPU; torch's global generator is not used.

    Each draw has a generator of its own, so draw k does not depend on the number of draws. Raises `InputError` for
    fewer than one draw and for a seed that is not a whole number from 0 to 2⁶⁴ − 1.
    """
    noise = torch.empty((_at_least_one("number of draws", draws), *shape), dtype=torch.float32, device="cpu")
    seed = _whole_number("seed", seed, 0, LARGEST_SEED)
    for k, draw in enumerate(noise):
        seed_of_draw = np.random.SeedSequence(seed, spawn_key=(k,)).generate_state(1, np.uint64)
        draw.normal_(generator=torch.Generator("cpu").manual_seed(int(seed_of_draw[0])))
    return noise


def _decoded_clean(step: Step) -> torch.Tensor:
    return step.clean()


def _decoded_sample(step: Step) -> torch.Tensor:
    return step.decode(step.sample)


def _decoded_result(step: Step) -> torch.Tensor:
    return step.decode(step.prev_sample)


_DECODED: dict[str, Callable[[Step], torch.Tensor]] = {"clean": _decoded_clean, "sample": _decoded_sample}


@torch.no_grad()
def _in_colour(decoded: Callable[[Step], torch.Tensor], step: Step) -> torch.Tensor:
    """Return a decoded picture as (1, 3, h, w); a grey picture gets three equal channels."""
    images = decoded(step).float()
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


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


def _per_channel(name: str, values: PerChannel, clean: torch.Tensor) -> torch.Tensor:
    """Return a number, or a number for each channel, as (3, 1, 1) on the device and in the dtype of a picture."""
    try:
        three = np.broadcast_to(np.asarray(values, dtype=float), len(clean)).copy()
    except (TypeError, ValueError):
        three = np.array([np.nan])
    if not np.isfinite(three).all():
        raise InputError(
            f"The {name} of the noise is {shown_value(values)}. Give a finite number, or a number for each channel."
        )
    return torch.from_numpy(three).to(clean)[:, None, None]


def _at_least_one(name: str, value: Any) -> int:
    return _whole_number(name, value, 1, 10**9)


def _whole_number(name: str, value: Any, least: int, most: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or not least <= number <= most:
        raise InputError(f"The {name} is {shown_value(value)}. It must be a whole number from {least} to {most}.")
    return number
