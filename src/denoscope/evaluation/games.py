"""Deletion and insertion: does the next step change most where a map says that it should?

Sources: the games of Petsiuk, Das, Saenko 2018 (RISE), as Park, Ju, Lee 2024 play them with a denoiser.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch.nn.functional import adaptive_avg_pool2d

from ..attributors.base import Advance, choose, options_of
from ..errors import InputError, NumericsError, shown_value
from ..recording.traces import Step, Trace
from ..vision.encoders import Features
from ..vision.similarity import blurred
from .localisation import on_grid

WINDOW, SIGMA = 11, 5.0
"""The Gaussian that blurs the sample from which insertion starts."""
FLAT = 1e-10
"""A curve that spans no more than this share of the features' squared length is rounding, and has no area."""


@dataclass(frozen=True)
class Game:
    """A sample in which places turn, one after the other, from what `before` makes of it into what `after` makes."""

    before: Callable[[torch.Tensor], torch.Tensor]
    after: Callable[[torch.Tensor], torch.Tensor]
    higher_is_better: bool


def _untouched(sample: torch.Tensor) -> torch.Tensor:
    return sample


GAMES = {
    "deletion": Game(_untouched, torch.zeros_like, higher_is_better=True),
    "insertion": Game(lambda sample: blurred(sample, WINDOW, SIGMA), _untouched, higher_is_better=False),
}
"""Deletion: zeros take the place of the most salient positions first. Insertion: these come back first into a blur."""

READING = (
    "The curves are distances to the result of the untouched step, so of deletion a HIGHER area is better (taking away "
    "what matters changes the result at once) and of insertion a LOWER one (giving it back restores the result). That "
    "is the opposite of the games on a classifier, whose curves are a class's probability."
)


def games(
    trace: Trace,
    saliency: xr.DataArray | xr.Dataset,
    encoder: Features,
    *,
    positions: int | None = None,
    batch_size: int | None = None,
    advance: Advance | None = None,
) -> xr.Dataset:
    """Play deletion and insertion with a map on every step that it explains.

    >>> scores = games(trace, DFRise()(trace, steps=[6, 15]), load_encoder())     # doctest: +SKIP
    >>> scores.auc.sel(game="deletion").values                                    # doctest: +SKIP
    array([0.71, 0.64])

    The positions of the sample x_t are ranked by saliency, ties row by row, and changed `positions` at a time, one
    row's worth unless given. At each point the changed sample goes through the denoiser and one stateless DDIM step, is
    decoded, and `feature_distance` of `encoder` compares the picture with the untouched one.

    **Of `auc`, higher is better in deletion and lower is better in insertion**, the opposite of the games on a
    classifier; the coordinate `higher_is_better` says so too. Variables: `distance` (game, step, point), raw; `curve`,
    the same min–max normalised; `auc` (game, step), its area. Where the distance does not change, `curve` is 0 and
    `auc` NaN. The coordinate `changed` (point) is the share of positions changed.

    `saliency` has dims (step, y, x) or is a method's result that has it; another grid is brought to the sample's
    (`brought_to`). `encoder` maps pictures (n, 3, height, width) in [0, 1] to features (n, d). `batch_size` is how many
    samples are decoded at once. Raises `InputError` for a map of another run or with gaps.
    """
    maps = _maps(saliency)
    steps = _steps_of(trace, maps)
    per_point = steps[0].sample.shape[-1] if positions is None else positions
    player = _Player(_checked(encoder), per_point, batch_size, advance or (lambda done: None))
    played = [player.play(step, maps.sel(step=step.index).values) for step in steps]
    return _labelled(steps, np.stack(played, axis=1), player)


@dataclass(frozen=True)
class _Player:
    """How the games are played with the map of one step."""

    encoder: Features
    positions: int
    batch_size: int | None
    advance: Advance

    def __post_init__(self) -> None:
        for name, given in (("positions", self.positions), ("batch_size", self.batch_size)):
            if given is not None and (not isinstance(given, int) or isinstance(given, bool) or given < 1):
                raise InputError(f"{name} is {shown_value(given)}. Give a whole number from 1, or leave it out.")

    @torch.no_grad()
    def play(self, step: Step, saliency: np.ndarray) -> np.ndarray:
        """Raw and normalised curves of every game, (games, 2, points)."""
        order = torch.from_numpy(ranks(brought_to(saliency, *step.sample.shape[-2:]))).to(step.sample.device)
        reference = self._features(step, step.sample)
        smallest = FLAT * float(reference.square().sum())
        raw = [self._distances(step, game, order, reference) for game in GAMES.values()]
        return np.array([(curve, rescaled(curve, smallest)) for curve in raw])

    def _distances(self, step: Step, game: Game, order: torch.Tensor, reference: torch.Tensor) -> np.ndarray:
        before, after = game.before(step.sample), game.after(step.sample)
        found = []
        for counts in self.points(order.numel()).split(self.batch_size or batch_for(step)):
            changed = order < counts.to(order.device)[:, None, None]
            samples = torch.where(changed[:, None], after, before)
            found.append(feature_distance(self._features(step, samples), reference))
            self.advance(len(samples))
        return torch.cat(found).double().cpu().numpy()

    def points(self, total: int) -> torch.Tensor:
        """How many positions are changed at each point: 0, w, 2w and so on to all of them."""
        return torch.arange(0, total + self.positions, self.positions).clamp(max=total)

    def _features(self, step: Step, samples: torch.Tensor) -> torch.Tensor:
        pictures = step.decoder.decode(step.next_sample(samples))
        pictures = pictures.expand(-1, 3, -1, -1) if pictures.shape[1] == 1 else pictures
        features = self.encoder(pictures)
        if not isinstance(features, torch.Tensor) or features.ndim != 2 or len(features) != len(pictures):
            shape = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
            raise InputError(
                f"The encoder made {shape} of pictures of shape {tuple(pictures.shape)}. It must make features of "
                "shape (n, d), one row a picture: features.flatten(1) where they are maps."
            )
        if not features.isfinite().all():
            raise NumericsError(
                f"The encoder's features at step {step.index} have NaN or infinite values. Use one in float32."
            )
        return features


def feature_distance(features: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """‖φ(a) − φ(b)‖² + (sd φ(a) − sd φ(b))² of features (n, d) and (1, d), as (n,); sd over the d features.

    What the Fréchet distance (Heusel et al. 2017) of one picture to one picture amounts to when the variance is that of
    its own features, the only one there is: ‖μ_a − μ_b‖² + tr(Σ_a + Σ_b − 2 √(Σ_a Σ_b)).
    """
    spread = spread_of(features) - spread_of(reference)
    return (features - reference).square().sum(dim=1) + spread.square()


def spread_of(features: torch.Tensor) -> torch.Tensor:
    """Standard deviation over features (n, d), as (n,), with d − 1 as in `numpy.cov`; 0 for a single feature."""
    return features.std(dim=1) if features.shape[1] > 1 else torch.zeros_like(features[:, 0])


def rescaled(curve: np.ndarray, smallest: float = 0.0) -> np.ndarray:
    """A curve min–max normalised to [0, 1]; zeros where it spans no more than `smallest`.

    >>> rescaled(np.array([2.0, 3.0, 4.0]))
    array([0. , 0.5, 1. ])
    """
    span = np.ptp(curve)
    return (curve - curve.min()) / span if span > smallest else np.zeros_like(curve)


def area(curve: np.ndarray) -> np.ndarray:
    """(Σ y − y_0/2 − y_N/2) / N over the last axis, of N + 1 points: the area under a curve over [0, 1].

    >>> float(area(np.array([0.0, 0.5, 1.0])))
    0.5
    """
    return (curve.sum(axis=-1) - curve[..., 0] / 2 - curve[..., -1] / 2) / (curve.shape[-1] - 1)


def ranks(saliency: np.ndarray) -> np.ndarray:
    """The place of every position in the order of falling saliency, from 0; ties row by row.

    >>> ranks(np.array([[1.0, 3.0], [1.0, 2.0]]))
    array([[2, 0],
           [3, 1]])
    """
    order = np.argsort(-saliency, axis=None, kind="stable")
    places = np.empty(saliency.size, dtype=np.int64)
    places[order] = np.arange(saliency.size)
    return places.reshape(saliency.shape)


def brought_to(saliency: np.ndarray, height: int, width: int) -> np.ndarray:
    """A map on the grid (height, width): the mean over each cell where it is finer, else bilinear (`on_grid`)."""
    if saliency.shape[0] < height or saliency.shape[1] < width:
        return on_grid(saliency, height, width)
    values = torch.from_numpy(np.ascontiguousarray(saliency, dtype=np.float64))
    return adaptive_avg_pool2d(values[None], (height, width))[0].numpy()


def batch_for(step: Step) -> int:
    """Samples to decode at once: 4,096 positions on a CPU and 16,384 elsewhere, decoded pictures being large."""
    positions = step.sample.shape[-2] * step.sample.shape[-1]
    return int(np.clip((2**12 if step.sample.device.type == "cpu" else 2**14) // positions, 1, 16))


# What is given.


def _maps(saliency: Any) -> xr.DataArray:
    """A map for each step, (step, y, x), without gaps."""
    found = saliency.get("saliency") if isinstance(saliency, xr.Dataset) else saliency
    if isinstance(found, xr.DataArray) and "step" in found.coords and "step" not in found.dims:
        found = found.expand_dims("step")
    if not isinstance(found, xr.DataArray) or set(found.dims) != {"step", "y", "x"} or "step" not in found.coords:
        raise InputError(_no_maps(found))
    maps = found.transpose("step", "y", "x").astype(np.float64)
    if gaps := [int(index) for index in maps.step.values[~np.isfinite(maps.values).all(axis=(1, 2))]]:
        raise InputError(
            f"The map of step {gaps[0]} has NaN or infinite values, so its positions cannot be ranked. Use more masks "
            "where some position was never kept, or fill the gaps: saliency.fillna(...)."
        )
    return maps


def _no_maps(given: Any) -> str:
    rule = "Give a method's result, or its variable `saliency` with dims (step, y, x) and the coordinate step."
    if not isinstance(given, xr.DataArray):
        return f"A saliency to play with was not given, but {type(given).__name__}. {rule}"
    if more := [str(dim) for dim in given.dims if dim not in ("step", "y", "x")]:
        return f"The saliency has the further dim {more[0]}. Choose one map a step: saliency.isel({more[0]}=0). {rule}"
    return f"The saliency has dims {given.dims} and coordinates {tuple(given.coords)}. {rule}"


def _steps_of(trace: Trace, maps: xr.DataArray) -> list[Step]:
    """The steps that maps are of; maps of another run are refused by their time steps."""
    steps: list[Step] = choose(trace, maps.step.values.tolist())
    if "timestep" in maps.coords:
        for step, timestep in zip(steps, np.atleast_1d(maps.timestep.values), strict=True):
            if not np.isclose(step.timestep, timestep):
                raise InputError(
                    f"The map of step {step.index} was made at time step {timestep:g}, and this trace's step "
                    f"{step.index} is at {step.timestep:g}. Give the trace that the map explains."
                )
    return steps


def _checked(encoder: Any) -> Features:
    if not callable(encoder):
        raise InputError(
            f"The encoder is {shown_value(encoder)}. It is a function from pictures (n, 3, height, width) in [0, 1] to "
            "features (n, d), such as denoscope.vision.encoders.load_encoder()."
        )
    return encoder


def coordinates_of(steps: Sequence[Step]) -> dict[str, Any]:
    """What labels the axis `step` of a result."""
    return {
        "step": [step.index for step in steps],
        "timestep": ("step", [step.timestep for step in steps]),
        "log_snr": ("step", [step.log_snr for step in steps]),
    }


def _labelled(steps: Sequence[Step], played: np.ndarray, player: _Player) -> xr.Dataset:
    """Curves (game, step, raw and normalised, point) with their areas and names."""
    distance, curve = played[:, :, 0], played[:, :, 1]
    flat = ~curve.any(axis=-1)
    total = steps[0].sample.shape[-2] * steps[0].sample.shape[-1]
    coords = {
        "game": list(GAMES),
        "higher_is_better": ("game", [game.higher_is_better for game in GAMES.values()]),
        **coordinates_of(steps),
        "point": np.arange(curve.shape[-1]),
        "changed": ("point", player.points(total).numpy() / total),
    }
    variables = {
        "distance": (("game", "step", "point"), distance),
        "curve": (("game", "step", "point"), curve),
        "auc": (("game", "step"), np.where(flat, np.nan, area(curve))),
    }
    told = {name: value for name, value in options_of(player).items() if name not in ("advance", "batch_size")}
    return xr.Dataset(variables, coords, {"title": "Deletion and insertion", "reading": READING, **told})
