"""Image sequences for a classifier to look at: a photograph noised forward, or the pictures of a recorded trace.

A photograph is noised as in "Analysis of Diffusion Model's Inference Mechanism Using XAI Techniques" (KCC 2024
Explainable AI workshop), a linear blend with one noise per draw (`blend`), or by any diffusers scheduler (`ddpm`, Ho et
al. 2020). Time runs as in generation: frame 0 is noise, the last frame nearly clean.
"""

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, final, overload

import numpy as np
import torch

from ..errors import InputError, did_you_mean, one_line, shown_value
from ..recording.models import LARGEST_SEED
from ..recording.noise import NoiseLevel
from ..recording.schedules import uniform
from ..recording.traces import Step, Trace

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")

Space = Literal["input", "image"]
PerChannel = float | Sequence[float]
Kind = Literal["blend", "ddpm", "sample", "clean"]


@dataclass(frozen=True, eq=False)
class Frame(ABC):
    """One time of a sequence, in diffusers' words: `index` from 0, `timestep`, `log_snr` = log(signal² / noise²).

    `space` is "input" (what a classifier takes, already normalised) or "image" ([0, 1]).
    """

    index: int
    timestep: float
    log_snr: float

    @property
    @abstractmethod
    def space(self) -> Space: ...

    @property
    @abstractmethod
    def images(self) -> torch.Tensor:
        """The pictures at this time, one per draw of the noise: (draws, 3, h, w). Made anew each time."""


@final
@dataclass(frozen=True, eq=False)
class NoisedFrame(Frame):
    """a x + b ε of a clean picture x (3, h, w) and noises ε (draws, 3, h, w), which all frames share."""

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
    """A picture of a recorded step, decoded when it is asked for and not kept."""

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
    """Frames of one sequence that are looked at in one go: their pictures one behind the other."""

    members: tuple[Frame, ...] = field(repr=False)

    @classmethod
    def of(cls, members: Sequence[Frame]) -> "FrameGroup":
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


def blend(
    clean: torch.Tensor,
    count: int = 100,
    draws: int = 1,
    seed: int = 0,
    *,
    mean: PerChannel = 0.0,
    std: PerChannel = 1.0,
) -> Frames:
    """x_i = (1 − τ_i) x + τ_i ε with τ_i = 1 − i / count, the study's process; one ε per draw for all frames.

    `clean` is a classifier's normalised crop (3, h, w), and the frames are in its space. ε has this `mean` and `std`
    there, a number or one for each channel: `**classifier.imagenet_noise()` is the study's noise whatever the
    classifier's own units are. `timestep` is the noise steps left, count − i, and `log_snr` counts picture and noise in
    units of the noise. Raises `InputError` for a picture of another shape, fewer than one frame or draw, or a `std`
    that is not positive.
    """
    clean, count = _picture(clean), _at_least_one("count of frames", count)
    centre, spread = (_per_channel(name, values, clean) for name, values in (("mean", mean), ("std", std)))
    if not (spread > 0).all():
        raise InputError(
            f"The std of the noise is {shown_value(std)}. It must be above 0: it is what the noise is spread by."
        )
    noise = centre + spread * draw_noise(clean.shape, draws, seed).to(clean)
    taus = [1 - i / count for i in range(count)]
    frames = [
        NoisedFrame(i, float(count - i), _log_snr(1 - tau, tau), 1 - tau, tau, clean, noise)
        for i, tau in enumerate(taus)
    ]
    statistics = {"noise_mean": centre.flatten().tolist(), "noise_std": spread.flatten().tolist()}
    options = dict(kind="blend", count=count, draws=len(noise), seed=operator.index(seed), **statistics)
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
        raise InputError(f"A trace has no pictures {shown_value(what)}. {did_you_mean(str(what), _DECODED)}")
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
                f"There is no scheduler {shown_value(name)}. {did_you_mean(name, BETA_SCHEDULES)} "
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
        f"{type(scheduler).__name__} cannot noise a photograph: {one_line(why, 300).rstrip('.')}. Use a scheduler "
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


def _per_channel(name: str, values: PerChannel, clean: torch.Tensor) -> torch.Tensor:
    """A number, or one for each channel of a picture, as (3, 1, 1) that fits it."""
    try:
        three = np.broadcast_to(np.asarray(values, dtype=float), len(clean)).copy()
    except (TypeError, ValueError):
        three = np.array([np.nan])
    if not np.isfinite(three).all():
        raise InputError(
            f"The {name} of the noise is {shown_value(values)}. Give a finite number, or one for each channel."
        )
    return torch.from_numpy(three).to(clean)[:, None, None]


def _at_least_one(name: str, given: Any) -> int:
    return _whole(name, given, 1, 10**9)


def _whole(name: str, given: Any, least: int, most: int) -> int:
    try:
        number = operator.index(given)
    except TypeError:
        number = least - 1
    if isinstance(given, bool) or not least <= number <= most:
        raise InputError(f"The {name} is {shown_value(given)}. It must be a whole number from {least} to {most}.")
    return number
