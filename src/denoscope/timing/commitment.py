"""When is an attribute of a picture decided: three experiments on recorded runs, and the step and width they show.

Sources: U-turns, Sclocchi, Favero, Wyart 2025 ("A phase transition in diffusion models reveals the hierarchical nature
of data"); prompt switches, Görgün et al. 2026; clones, Biroli, Bonnaire, de Bortoli, Mézard 2024 ("Dynamical regimes of
diffusion models").

All finish a run from the middle through the recorded steps, with DDIM's own step between their noise levels, so no
pipeline is called again and none has to be able to start half-way."""

import operator
import zlib
from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, final

import numpy as np
import torch
import xarray as xr

from ..attributors.base import choose, options_of
from ..errors import InputError, shown_value
from ..recording.traces import Step, Trace
from ..vision.frames import draw_noise

Values = Mapping[str, Any]
Reader = Callable[[np.ndarray], Values]
"""What a picture (height, width, channels) in [0, 1] shows: a value for each attribute, None where it shows none."""

Entry = tuple[int, torch.Tensor]
"""A sample (1, channels, h, w) and the index of the step at which it enters the run."""

Advance = Callable[[int], None]


@torch.no_grad()
def finish(
    steps: Sequence[Step],
    entries: Sequence[Entry],
    *,
    eta: float = 0.0,
    seed: int = 0,
    batch_size: int = 64,
    advance: Advance | None = None,
) -> torch.Tensor:
    """Walk each sample from its step to the end of the run: clean samples (entries, channels, h, w), in their order.

    `eta` is DDIM's η: 0 is deterministic, 1 as noisy as DDPM. Each entry has a random stream of its own, so the result
    does not depend on `batch_size`, how many are walked together. `advance` is told of the entries finished.
    """
    order = sorted(range(len(entries)), key=lambda i: entries[i][0])
    ends: dict[int, torch.Tensor] = {}
    for start in range(0, len(order), batch_size):
        group = order[start : start + batch_size]
        walked = _walked(steps, [entries[i] for i in group], eta, [_stream(seed, i) for i in group])
        ends |= dict(zip(group, walked, strict=True))
        if advance is not None:
            advance(len(group))
    return torch.stack([ends[i] for i in range(len(entries))])


def _stream(seed: int, index: int) -> torch.Generator:
    own = np.random.SeedSequence(seed, spawn_key=(1, index)).generate_state(1, np.uint64)
    return torch.Generator("cpu").manual_seed(int(own[0]))


def _walked(
    steps: Sequence[Step], entries: Sequence[Entry], eta: float, streams: Sequence[torch.Generator]
) -> torch.Tensor:
    """Entries by rising step, taken up on the way."""
    x = entries[0][1][:0]
    for index, step in enumerate(steps):
        x = torch.cat([x, *(sample for start, sample in entries if start == index)])
        if len(x):
            x = next_sample(step, x, eta, streams[: len(x)])
    return x


def next_sample(step: Step, samples: torch.Tensor, eta: float, streams: Sequence[torch.Generator]) -> torch.Tensor:
    """x_{t−1} of samples (n, channels, h, w), each with fresh noise of its own stream.

    x_{t−1} = α' x0 + √(σ'² − η²τ²) ε + η τ z, where τ² = σ'² (1 − (α σ' / α' σ)²) is the variance of x_{t−1} given x_t
    and x0 (Song, Meng, Ermon 2021, equations 12 and 16). The last step goes to x0.
    """
    level, after = step.level, step.next_level
    if eta == 0 or after is None:
        return step.next_sample(samples)
    prediction = step.predict(samples)
    spread = eta * after.sigma * max(0.0, 1 - (level.alpha * after.sigma / (after.alpha * level.sigma)) ** 2) ** 0.5
    fresh = torch.stack([torch.randn(samples.shape[1:], generator=stream) for stream in streams]).to(samples)
    kept = max(0.0, after.sigma**2 - spread**2) ** 0.5
    noise = (kept * level.noise(samples, prediction) + spread * fresh) / after.sigma
    return after.noisy(level.original(samples, prediction), noise)


@dataclass(frozen=True)
class Experiment(ABC):
    """What the experiments share: a result has `decided` (attribute, step, draw), 1, 0 or, where it is unknown, NaN.

    `reader` says what a picture shows and `same` whether two values of it are one; `draws` is how many samples enter at
    each step; `eta` and `batch_size` are those of `finish`. Every run has random numbers of its own, made of `seed` and
    of what the run began with, or the scenes of an interval would err together.
    """

    reader: Reader
    same: Callable[[Any, Any], bool] = operator.eq
    draws: int = 1
    seed: int = 0
    eta: float = 0.0
    batch_size: int | None = None

    title = ""
    reading = ""

    def __post_init__(self) -> None:
        if not callable(self.reader):
            raise InputError(
                f"The reader is {shown_value(self.reader)}. Attributes are read off pictures: give a function "
                "from a picture (height, width, channels) in [0, 1] to a dict of attributes and their values. The "
                "bundled model's is denoscope.worlds.readers.reader_for(model); for others take a classifier's label."
            )
        if not isinstance(self.draws, int) or self.draws < 1:
            raise InputError(f"draws is {self.draws!r}. At least 1 sample has to enter at each step.")
        if not 0 <= self.eta <= 1:
            raise InputError(f"eta is {self.eta}. It lies between 0, no noise, and 1, as much as DDPM's.")

    def _own_seed(self, trace: Trace) -> int:
        began = zlib.crc32(trace[0].sample.detach().float().cpu().numpy().tobytes())
        return int(np.random.SeedSequence([self.seed, began]).generate_state(1, np.uint64)[0])

    def _noise(self, trace: Trace) -> list[torch.Tensor]:
        """One noise for each draw, (1, channels, h, w)."""
        sample = trace[0].sample
        return list(draw_noise(sample.shape[1:], self.draws, self._own_seed(trace)).to(sample).split(1))

    def _ends(
        self, steps: Sequence[Step], entries: Sequence[Entry], trace: Trace, advance: Advance | None
    ) -> list[Values]:
        """What the pictures show that the entries come to."""
        size = self.batch_size or _room(entries[0][1])
        options: dict[str, Any] = dict(eta=self.eta, seed=self._own_seed(trace), advance=advance)
        samples = finish(steps, entries, batch_size=size, **options)
        return [self._read(steps[0], sample[None]) for sample in samples]

    @torch.no_grad()
    def _read(self, step: Step, sample: torch.Tensor) -> Values:
        picture = step.decoder.decode(sample)[0].movedim(0, -1).float().cpu().numpy()
        values = self.reader(picture)
        if not isinstance(values, Mapping) or not values:
            raise InputError(
                f"The reader gave {shown_value(values)} for a picture of shape {picture.shape}. It has to give a dict "
                "of at least one attribute and its value, the same attributes for every picture, None for what is "
                "not there."
            )
        return values

    def _equal(self, name: str, first: Values, second: Values) -> bool:
        """Whether two pictures show the same; what is not there is like nothing."""
        a, b = first.get(name), second.get(name)
        return a is not None and b is not None and bool(self.same(a, b))

    def _labelled(self, chosen: Sequence[Step], decided: np.ndarray, names: Sequence[str]) -> xr.Dataset:
        coords = {
            "attribute": list(names),
            "step": [step.index for step in chosen],
            "timestep": ("step", [step.timestep for step in chosen]),
            "log_snr": ("step", [step.log_snr for step in chosen]),
        }
        attrs = {"title": self.title, "reading": self.reading, **options_of(self)}
        return xr.Dataset({"decided": (("attribute", "step", "draw"), decided)}, coords, attrs)


def _room(sample: torch.Tensor) -> int:
    """How many samples are walked together: 16,384 positions at once on a CPU and 131,072 elsewhere."""
    room = 2**14 if sample.device.type == "cpu" else 2**17
    return int(np.clip(room // (sample.shape[-2] * sample.shape[-1]), 1, 64))


@final
@dataclass(frozen=True)
class UTurn(Experiment):
    """Noise the result back to a step and finish it again: is the attribute still there?

    >>> found = UTurn(reader, draws=4)(trace, steps=range(0, 30, 2))   # doctest: +SKIP

    The run that made a picture names its attributes and brings them back from any noise; `under` finishes with another
    run's steps instead, such as one without a prompt, and shows what the noisy picture itself still holds. `chance`
    (attribute, draw) is the same of noise alone, which never saw the picture.
    """

    draws: int = 2

    title = "U-turn"
    reading = (
        "The share of pictures that keep the attribute when they are noised back to a step and finished again: at "
        "chance before it is decided, towards 1 after."
    )

    def __call__(
        self,
        trace: Trace,
        steps: Sequence[int] | None = None,
        *,
        under: Trace | None = None,
        advance: Advance | None = None,
    ) -> xr.Dataset:
        """Raises `InputError` for steps that are not there, several pictures, or an `under` of another schedule."""
        chosen, process = choose(trace, steps), _same_schedule(trace, under or trace)
        clean = trace[-1].prev_sample
        noise = self._noise(trace)
        entries = [(0, trace[0].level.noisy(0 * clean, draw)) for draw in noise]
        entries += [(step.index, step.level.noisy(clean, draw)) for step in chosen for draw in noise]
        truth, ends = self._read(trace[0], clean), self._ends(process, entries, trace, advance)
        kept = np.array([[self._kept(name, truth, end) for end in ends] for name in truth])
        chance, decided = np.split(kept.reshape(len(truth), -1, self.draws), [1], axis=1)
        found = self._labelled(chosen, decided, list(truth))
        return found.assign(chance=(("attribute", "draw"), chance[:, 0]))

    def _kept(self, name: str, truth: Values, end: Values) -> float:
        return np.nan if truth[name] is None else float(self._equal(name, truth, end))


@final
@dataclass(frozen=True)
class PromptSwitch(Experiment):
    """Run one prompt until a step and another one afterwards: does the picture still take on what the other says?

    >>> found = PromptSwitch(reader)(base, other, steps=range(0, 30, 2))   # doctest: +SKIP

    Both runs are recorded with the same seed and schedule. An attribute is `decided` where the other prompt's value no
    longer appears; attributes in which the two results do not differ are NaN, since nothing is switched.
    """

    title = "Prompt switch"
    reading = (
        "The share of pictures that no longer take on the other prompt's attribute when it takes over at a step: near "
        "0 before the attribute is decided, 1 after. 1 minus it is the probability that the new attribute appears."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draws > 1 and self.eta == 0:
            raise InputError(
                f"draws is {self.draws} and eta 0: without noise every draw is the same. Give 1 draw or an eta above 0."
            )

    def __call__(
        self, base: Trace, other: Trace, steps: Sequence[int] | None = None, *, advance: Advance | None = None
    ) -> xr.Dataset:
        """Raises `InputError` where the runs differ in schedule, size or first sample (another seed)."""
        chosen, process = choose(base, steps), _same_schedule(base, other)
        _same_noise(base, other)
        entries = [(step.index, step.sample) for step in chosen for _ in range(self.draws)]
        old, new = (self._read(trace[0], trace[-1].prev_sample) for trace in (base, other))
        ends = self._ends(process, entries, base, advance)
        gone = np.array([[self._gone(name, old, new, end) for end in ends] for name in old])
        return self._labelled(chosen, gone.reshape(len(old), len(chosen), -1), list(old))

    def _gone(self, name: str, old: Values, new: Values, end: Values) -> float:
        nothing_switched = old[name] is None or new.get(name) is None or self._equal(name, old, new)
        return np.nan if nothing_switched else float(not self._equal(name, end, new))


@final
@dataclass(frozen=True)
class Clones(Experiment):
    """Finish several times from one recorded sample, each with noise of its own: do the clones agree?

    >>> found = Clones(reader, draws=8)(trace, steps=range(0, 30, 2))   # doctest: +SKIP

    `decided` has one draw for each pair of clones. `chance` (attribute, draw) is the same of clones from noises of
    their own.
    """

    draws: int = 4
    eta: float = 1.0

    title = "Clones"
    reading = (
        "The share of pairs of clones, finished from one sample with different noise, that agree on the attribute: at "
        "chance before it is decided, towards 1 after."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draws < 2 or self.eta == 0:
            raise InputError(
                f"draws is {self.draws} and eta {self.eta:g}. Clones are compared in pairs and go apart by their "
                "noise: give at least 2 draws and an eta above 0."
            )

    def __call__(
        self, trace: Trace, steps: Sequence[int] | None = None, *, advance: Advance | None = None
    ) -> xr.Dataset:
        """Raises `InputError` for steps that are not there or several pictures."""
        chosen, first = choose(trace, steps), trace[0]
        entries = [(0, first.level.noisy(0 * first.sample, draw)) for draw in self._noise(trace)]
        entries += [(step.index, step.sample) for step in chosen for _ in range(self.draws)]
        ends = self._ends(list(trace), entries, trace, advance)
        rows = [ends[i : i + self.draws] for i in range(0, len(ends), self.draws)]
        names = list(ends[0])
        agree = np.array([[[self._equal(name, *p) for p in combinations(row, 2)] for row in rows] for name in names])
        found = self._labelled(chosen, agree[:, 1:].astype(float), names)
        return found.assign(chance=(("attribute", "draw"), agree[:, 0].astype(float)))


def _same_schedule(trace: Trace, other: Trace) -> list[Step]:
    """The other run's steps, if they are of the same noise levels and sizes."""
    steps = choose(other, None)
    levels = [[(step.level.alpha, step.level.sigma) for step in run] for run in (trace, steps)]
    if len(trace) != len(steps) or not np.allclose(levels[0], levels[1], atol=1e-6):
        told = [f"{len(run)} steps from {run[0].timestep:g} to {run[-1].timestep:g}" for run in (trace, steps)]
        raise InputError(
            f"The two runs have different schedules: {told[0]}, and {told[1]}. A run is continued with another's steps "
            "only at the same noise levels: record both with one schedule, scheduler and num_inference_steps."
        )
    shapes = [tuple(run[0].sample.shape) for run in (trace, steps)]
    if shapes[0] != shapes[1]:
        raise InputError(f"The two runs have samples of {shapes[0]} and {shapes[1]}. Record both in one size.")
    return steps


def _same_noise(base: Trace, other: Trace) -> None:
    if not torch.equal(base[0].sample, other[0].sample):
        seeds = " and ".join(shown_value(trace.call.get("seed")) for trace in (base, other))
        raise InputError(
            f"The two runs begin with different noise (seeds {seeds}), so they would make different pictures of one "
            "prompt as well. Record both with the same seed."
        )
