"""Three experiments on recorded runs that show when an attribute of a picture is decided.

Sources: U-turns, Sclocchi, Favero, Wyart 2025 ("A phase transition in diffusion models reveals the hierarchical nature
of data"); prompt switches, Görgün et al. 2026; clones, Biroli, Bonnaire, de Bortoli, Mézard 2024 ("Dynamical regimes of
diffusion models").

All three finish a run from the middle through the recorded steps, with DDIM's step between their noise levels. No
pipeline is called again, so a pipeline need not be able to start half-way.
"""

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

from ..attributors.base import Advance, choose, options_of
from ..errors import InputError, shown_value
from ..recording.batches import Portions, call_portions
from ..recording.steps import Step
from ..recording.traces import Trace
from ..vision.clips import middle_frame
from ..vision.frames import draw_noise

Attributes = Mapping[str, Any]
"""The value of each attribute of a picture; None for an attribute that the picture lacks."""

Reader = Callable[[np.ndarray], Attributes]
"""A function from a picture (height, width, channels) in [0, 1] to its attributes; of a clip it is the middle frame."""

Entry = tuple[int, torch.Tensor]
"""A sample, of the pipeline's own shape for one picture, and the index of the step at which it enters the run."""


@torch.no_grad()
def finish(
    steps: Sequence[Step],
    entries: Sequence[Entry],
    *,
    eta: float = 0.0,
    seed: int = 0,
    batch_size: int | Portions = 64,
    advance: Advance | None = None,
) -> torch.Tensor:
    """Walk each sample from its step to the end of the run; return their clean samples in order, one behind the other.

    `eta` is DDIM's η: 0 is deterministic, 1 as noisy as DDPM. Each entry has a random stream of its own, so the result
    does not depend on `batch_size`. `advance` is called with the number of entries finished.
    """
    order = sorted(range(len(entries)), key=lambda i: entries[i][0])
    unit = len(entries[0][1])
    ends: dict[int, torch.Tensor] = {}
    portions = batch_size if isinstance(batch_size, Portions) else Portions(batch_size, batch_size, is_chosen=True)

    def walked(part: slice) -> torch.Tensor:
        group = order[part]
        return _walked(steps, [entries[i] for i in group], eta, [_stream(seed, i) for i in group])

    for part, samples in portions.over(len(order), walked, entries[0][1].device):
        ends |= dict(zip(order[part], torch.split(samples, unit), strict=True))
        if advance is not None:
            advance(part.stop - part.start)
    return torch.cat([ends[i] for i in range(len(entries))])


def _stream(seed: int, index: int) -> torch.Generator:
    state = np.random.SeedSequence(seed, spawn_key=(1, index)).generate_state(1, np.uint64)
    return torch.Generator("cpu").manual_seed(int(state[0]))


def _walked(
    steps: Sequence[Step], entries: Sequence[Entry], eta: float, streams: Sequence[torch.Generator]
) -> torch.Tensor:
    """Walk entries, ordered by their steps, to the end of the run; each joins at its step."""
    x, unit = entries[0][1][:0], len(entries[0][1])
    for index, step in enumerate(steps):
        x = torch.cat([x, *(sample for start, sample in entries if start == index)])
        if len(x):
            x = next_sample(step, x, eta, streams[: len(x) // unit])
    return x


def next_sample(step: Step, samples: torch.Tensor, eta: float, streams: Sequence[torch.Generator]) -> torch.Tensor:
    """Return x_{t−1} of samples, each with fresh noise of its own stream: as many rows a stream as make one picture.

    x_{t−1} = α' x0 + √(σ'² − η²τ²) ε + η τ z, where τ² = σ'² (1 − (α σ' / α' σ)²) is the variance of x_{t−1} given x_t
    and x0 (Song, Meng, Ermon 2021, equations 12 and 16). The last step goes to x0.
    """
    level, after = step.level, step.next_level
    if eta == 0 or after is None:
        return step.next_sample(samples)
    prediction = step.predict(samples)
    spread = eta * after.sigma * max(0.0, 1 - (level.alpha * after.sigma / (after.alpha * level.sigma)) ** 2) ** 0.5
    shape = (len(samples) // len(streams), *samples.shape[1:])
    fresh = torch.cat([torch.randn(shape, generator=stream) for stream in streams]).to(samples)
    remaining = max(0.0, after.sigma**2 - spread**2) ** 0.5
    noise = (remaining * level.noise(samples, prediction) + spread * fresh) / after.sigma
    return after.noisy(level.original(samples, prediction), noise)


@dataclass(frozen=True)
class Experiment(ABC):
    """An experiment; its result has `decided` (attribute, step, draw): 1 for decided, 0 for undecided, NaN for unknown.

    `reader` reads the attributes of a picture, and `same` compares two values of an attribute. `draws` is the number of
    samples that enter at each step; `eta` and `batch_size` are those of `finish`. The random numbers of a run follow
    from `seed` and from its first sample: equal numbers for all scenes would make the errors of an interval depend.
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
                f"The reader is {shown_value(self.reader)}. It reads the attributes of pictures: give a function "
                "from a picture (height, width, channels) in [0, 1] to a dict of attributes and their values. The "
                "bundled model's is denoscope.worlds.readers.reader_for(model); for others take a classifier's label."
            )
        if not isinstance(self.draws, int) or self.draws < 1:
            raise InputError(
                f"draws is {shown_value(self.draws)}. Give the number of samples at each step, at least 1."
            )
        if not 0 <= self.eta <= 1:
            raise InputError(f"eta is {self.eta}. Give a number from 0, no noise, to 1, as much noise as DDPM.")

    def _seed_of(self, trace: Trace) -> int:
        checksum = zlib.crc32(trace[0].sample.detach().float().cpu().numpy().tobytes())
        return int(np.random.SeedSequence([self.seed, checksum]).generate_state(1, np.uint64)[0])

    def _noise(self, trace: Trace) -> list[torch.Tensor]:
        """Return a noise of the sample's shape for each draw."""
        sample = trace[0].sample
        return list(draw_noise(sample.shape, self.draws, self._seed_of(trace)).to(sample))

    def _ends(
        self, steps: Sequence[Step], entries: Sequence[Entry], trace: Trace, advance: Advance | None
    ) -> list[Attributes]:
        """Finish every entry and read the attributes of its picture."""
        size = call_portions(steps[0].as_maps(entries[0][1]), self.batch_size)
        seed = self._seed_of(trace)
        samples = finish(steps, entries, eta=self.eta, seed=seed, batch_size=size, advance=advance)
        return [self._read(steps[0], sample) for sample in torch.split(samples, len(entries[0][1]))]

    @torch.no_grad()
    def _read(self, step: Step, sample: torch.Tensor) -> Attributes:
        picture = middle_frame(step.decode(sample))[0].movedim(0, -1).float().cpu().numpy()
        attributes = self.reader(picture)
        if not isinstance(attributes, Mapping) or not attributes:
            raise InputError(
                f"The reader returned {shown_value(attributes)} for a picture of shape {picture.shape}. It has to "
                "return a dict with at least one attribute and its value: the same attributes for every picture, None "
                "for an attribute that the picture lacks."
            )
        return attributes

    def _equal(self, name: str, first: Attributes, second: Attributes) -> bool:
        """Return True if both pictures have the attribute and its values agree."""
        a, b = first.get(name), second.get(name)
        return a is not None and b is not None and bool(self.same(a, b))

    def _dataset(self, chosen: Sequence[Step], decided: np.ndarray, names: Sequence[str]) -> xr.Dataset:
        coords = {
            "attribute": list(names),
            "step": [step.index for step in chosen],
            "timestep": ("step", [step.timestep for step in chosen]),
            "log_snr": ("step", [step.log_snr for step in chosen]),
        }
        attrs = {"title": self.title, "reading": self.reading, **options_of(self)}
        return xr.Dataset({"decided": (("attribute", "step", "draw"), decided)}, coords, attrs)


@final
@dataclass(frozen=True)
class UTurn(Experiment):
    """The finished picture noised back to a step and finished again: is the attribute still there?

    >>> result = UTurn(reader, draws=4)(trace, steps=range(0, 30, 2))   # doctest: +SKIP

    A run with a prompt brings the attributes of the prompt back from any noise. `under` is another run, such as one
    without a prompt, whose steps finish the pictures instead: they show what the noisy picture itself still holds.
    `chance` (attribute, draw) is the same for noise alone, without the picture.
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
        """Run the experiment at some steps of a trace, by default at all.

        Raises `InputError` for steps that the trace lacks, several pictures, or an `under` of another schedule.
        """
        chosen, process = choose(trace, steps), _same_schedule(trace, under or trace)
        clean = trace[-1].prev_sample
        noise = self._noise(trace)
        entries = [(0, trace[0].level.noisy(0 * clean, draw)) for draw in noise]
        entries += [(step.index, step.level.noisy(clean, draw)) for step in chosen for draw in noise]
        truth, ends = self._read(trace[0], clean), self._ends(process, entries, trace, advance)
        survival = np.array([self._survival(name, truth, ends) for name in truth])
        chance, decided = np.split(survival.reshape(len(truth), -1, self.draws), [1], axis=1)
        result = self._dataset(chosen, decided, list(truth))
        return result.assign(chance=(("attribute", "draw"), chance[:, 0]))

    def _survival(self, name: str, truth: Attributes, ends: Sequence[Attributes]) -> list[float]:
        """Return 1 for each end that has the picture's value of an attribute, else 0; NaN if the picture has none."""
        if truth[name] is None:
            return [np.nan] * len(ends)
        return [float(self._equal(name, truth, end)) for end in ends]


@final
@dataclass(frozen=True)
class PromptSwitch(Experiment):
    """One prompt until a step and another prompt from there on: does the picture take on the other's attributes?

    >>> result = PromptSwitch(reader)(base, other, steps=range(0, 30, 2))   # doctest: +SKIP

    Both runs are recorded with the same seed and schedule. An attribute is `decided` if the other prompt's value no
    longer appears. Attributes in which the two finished pictures agree are NaN, since nothing is switched.
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
        """Run the experiment at some steps of two traces, by default at all.

        Raises `InputError` if the runs differ in schedule, size or first sample (another seed).
        """
        chosen, process = choose(base, steps), _same_schedule(base, other)
        _same_noise(base, other)
        entries = [(step.index, step.sample) for step in chosen for _ in range(self.draws)]
        old = self._read(base[0], base[-1].prev_sample)
        new = self._read(other[0], other[-1].prev_sample)
        ends = self._ends(process, entries, base, advance)
        resistance = np.array([self._resistance(name, old, new, ends) for name in old])
        return self._dataset(chosen, resistance.reshape(len(old), len(chosen), -1), list(old))

    def _resistance(self, name: str, old: Attributes, new: Attributes, ends: Sequence[Attributes]) -> list[float]:
        """Return 1 for each end without the new value of an attribute, else 0; NaN if nothing is switched."""
        if old[name] is None or new.get(name) is None or self._equal(name, old, new):
            return [np.nan] * len(ends)
        return [float(not self._equal(name, end, new)) for end in ends]


@final
@dataclass(frozen=True)
class Clones(Experiment):
    """Several pictures finished from one recorded sample, each with noise of its own: do the clones agree?

    >>> result = Clones(reader, draws=8)(trace, steps=range(0, 30, 2))   # doctest: +SKIP

    `decided` has one draw for each pair of clones. `chance` (attribute, draw) is the same for clones that start from
    different noises.
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
                f"draws is {self.draws} and eta {self.eta:g}. Clones are compared in pairs and differ by their noise: "
                "give at least 2 draws and an eta above 0."
            )

    def __call__(
        self, trace: Trace, steps: Sequence[int] | None = None, *, advance: Advance | None = None
    ) -> xr.Dataset:
        """Run the experiment at some steps of a trace, by default at all.

        Raises `InputError` for steps that the trace lacks, or several pictures.
        """
        chosen, first = choose(trace, steps), trace[0]
        entries = [(0, first.level.noisy(0 * first.sample, draw)) for draw in self._noise(trace)]
        entries += [(step.index, step.sample) for step in chosen for _ in range(self.draws)]
        ends = self._ends(list(trace), entries, trace, advance)
        rows = [ends[i : i + self.draws] for i in range(0, len(ends), self.draws)]
        names = list(ends[0])
        agreement = np.array([self._agreement(name, rows) for name in names])
        result = self._dataset(chosen, agreement[:, 1:], names)
        return result.assign(chance=(("attribute", "draw"), agreement[:, 0]))

    def _agreement(self, name: str, rows: Sequence[Sequence[Attributes]]) -> list[list[float]]:
        """Return for each row of clones whether each pair of them agrees on an attribute, 1 or 0."""
        pairs_of_rows = [list(combinations(row, 2)) for row in rows]
        return [[float(self._equal(name, first, second)) for first, second in pairs] for pairs in pairs_of_rows]


def _same_schedule(trace: Trace, other: Trace) -> list[Step]:
    """Return the steps of another run; raises `InputError` for other noise levels or sizes."""
    steps = choose(other, None)
    if len(trace) != len(steps) or not np.allclose(_levels(trace), _levels(steps), atol=1e-6):
        raise InputError(
            f"The two runs have different schedules: {_extent(trace)}, and {_extent(steps)}. A run is continued with "
            "another's steps only at the same noise levels: record both with one schedule, scheduler and "
            "num_inference_steps."
        )
    shape, other_shape = tuple(trace[0].sample.shape), tuple(steps[0].sample.shape)
    if shape != other_shape:
        raise InputError(f"The two runs have samples of {shape} and {other_shape}. Record both in one size.")
    return steps


def _levels(run: Sequence[Step]) -> list[tuple[float, float]]:
    return [(step.level.alpha, step.level.sigma) for step in run]


def _extent(run: Sequence[Step]) -> str:
    return f"{len(run)} steps from {run[0].timestep:g} to {run[-1].timestep:g}"


def _same_noise(base: Trace, other: Trace) -> None:
    if not torch.equal(base[0].sample, other[0].sample):
        seeds = " and ".join(shown_value(trace.call.get("seed")) for trace in (base, other))
        raise InputError(
            f"The two runs begin with different noise (seeds {seeds}), so even one prompt would make different "
            "pictures. Record both with the same seed."
        )
