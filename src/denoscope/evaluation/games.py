"""Deletion and insertion: does the next step change most where the map is highest?

Sources: the games of Petsiuk, Das, Saenko 2018 (RISE), as Park, Ju, Lee 2024 play them with a denoiser.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch.nn.functional import adaptive_avg_pool2d, adaptive_avg_pool3d

from ..attributors.base import Advance, choose, options_of
from ..errors import InputError, NumericsError, shown_value
from ..recording.batches import Portions, call_portions, remembered_portions
from ..recording.steps import Step
from ..recording.traces import Trace
from ..vision.clips import by_frame
from ..vision.encoders import Features
from ..vision.similarity import blurred
from .localisation import on_grid
from .metrics import MAP_DIMS, map_dims

BLUR_WINDOW, BLUR_SIGMA = 11, 5.0
"""The Gaussian that blurs the sample from which insertion starts: window and standard deviation, in positions."""
FLAT_CURVE = 1e-10
"""The smallest span of a curve with an area, as a share of the features' squared length. Less is rounding."""
GAME_POSITIONS_ON_CPU, GAME_POSITIONS_ELSEWHERE, MOST_GAME_SAMPLES = 2**12, 2**14, 16
"""Limits of `samples_at_once`: decoded pictures are large."""


@dataclass(frozen=True)
class Game:
    """A sample that changes, position by position, from `before(sample)` to `after(sample)`."""

    before: Callable[[torch.Tensor], torch.Tensor]
    after: Callable[[torch.Tensor], torch.Tensor]
    higher_is_better: bool


def _untouched(sample: torch.Tensor) -> torch.Tensor:
    return sample


def _blurred(sample: torch.Tensor) -> torch.Tensor:
    return blurred(sample, BLUR_WINDOW, BLUR_SIGMA)


GAMES = {
    "deletion": Game(_untouched, torch.zeros_like, higher_is_better=True),
    "insertion": Game(_blurred, _untouched, higher_is_better=False),
}
"""Deletion replaces the most salient positions by zeros first. Insertion starts from a blur and restores them first."""

READING = (
    "The curves are distances to the result of the untouched step. In deletion a HIGHER area is better: taking away "
    "the positions that matter changes the result at once. In insertion a LOWER area is better: giving them back "
    "restores the result. That is the opposite of the games on a classifier, whose curves are a class's probability."
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

    >>> scores = games(trace, DFRise()(trace, steps=[6, 15]), load_encoder())
    >>> scores.auc.sel(game="deletion").dims
    ('step',)

    The positions of the sample x_t are ranked by saliency, ties row by row, and changed `positions` at a time; None is
    one row's worth, of all frames. At each point the changed sample goes through the denoiser and one stateless DDIM
    step and is decoded. `feature_distance` of `encoder` compares the picture with the untouched one; of a clip it is
    the mean over frames.

    **Of `auc`, higher is better in deletion and lower is better in insertion**, the opposite of the games on a
    classifier; the coordinate `higher_is_better` has the direction. Variables: `distance` (game, step, point), raw;
    `curve`, the same min–max normalised; `auc` (game, step), its area. Where the distance does not change, `curve` is 0
    and `auc` NaN. The coordinate `changed` (point) is the share of positions changed.

    `saliency` has dims (step, [frame,] y, x), or is a method's result with this variable; another grid is brought to
    the sample's (`brought_to`). `encoder` maps pictures (n, 3, height, width) in [0, 1] to features (n, d).
    `batch_size` is the number of samples decoded at once. Raises `InputError` for a map of another run or with gaps.
    """
    maps = _maps(saliency)
    steps = _steps_of(trace, maps)
    layout = steps[0].layout
    per_point = layout.positions // layout.grid[0] if positions is None else positions
    player = _Player(_callable(encoder), per_point, batch_size, advance or no_advance)
    with remembered_portions():
        curves = [player.play(step, maps.sel(step=step.index).values) for step in steps]
    return _labelled(steps, np.stack(curves, axis=1), player)


def no_advance(samples: int) -> None:
    """Ignore progress: the `advance` of a caller that gave none."""


@dataclass(frozen=True)
class _Player:
    """The settings with which the games are played on the map of a step."""

    encoder: Features
    positions: int
    batch_size: int | None
    advance: Advance

    def __post_init__(self) -> None:
        for name, value in (("positions", self.positions), ("batch_size", self.batch_size)):
            whole = isinstance(value, int) and not isinstance(value, bool)
            if value is not None and not (whole and value >= 1):
                raise InputError(f"{name} is {shown_value(value)}. Give a whole number from 1, or leave it out.")

    @torch.no_grad()
    def play(self, step: Step, saliency: np.ndarray) -> np.ndarray:
        """Return the raw and the normalised curve of every game, (games, 2, points)."""
        order = torch.from_numpy(ranks(brought_to(saliency, *step.layout.shape))).to(step.sample.device)
        reference = self._features(step, step.sample)
        smallest = FLAT_CURVE * float(reference.square().sum())
        raw = [self._distances(step, game, order, reference) for game in GAMES.values()]
        return np.array([(curve, rescaled(curve, smallest)) for curve in raw])

    def _distances(self, step: Step, game: Game, order: torch.Tensor, reference: torch.Tensor) -> np.ndarray:
        """Return the raw curve of a game, (points,), for the ranks of the positions, ([frames,] h, w)."""
        sample = step.as_maps(step.sample)
        before, after = game.before(sample), game.after(sample)
        portions, distances = portions_for(step, self.batch_size), []
        points = self.points(order.numel())

        def played(part: slice) -> torch.Tensor:
            changed = order < points[part].to(order.device).reshape(-1, *[1] * order.ndim)
            samples = step.as_samples(torch.where(changed[:, None], after, before))
            return feature_distance(self._features(step, samples), reference)

        for part, values in portions.over(len(points), played, order.device):
            distances.append(values)
            self.advance(part.stop - part.start)
        return torch.cat(distances).double().cpu().numpy()

    def points(self, total: int) -> torch.Tensor:
        """Return the number of changed positions at each point: 0, w, 2w and so on to all of them."""
        return torch.arange(0, total + self.positions, self.positions).clamp(max=total)

    def _features(self, step: Step, samples: torch.Tensor) -> torch.Tensor:
        """Return the features (n, [frames,] d) of the pictures to which the samples lead."""
        pictures = step.decode(step.next_sample(samples))
        pictures = pictures.expand(-1, 3, *pictures.shape[2:]) if pictures.shape[1] == 1 else pictures
        return by_frame(lambda each: self._encoded(step, each), pictures)

    def _encoded(self, step: Step, pictures: torch.Tensor) -> torch.Tensor:
        """Return the features (n, d) of pictures; raises for a wrong encoder."""
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
    """Return ‖φ(a) − φ(b)‖² + (sd φ(a) − sd φ(b))² of features (n, d) and (1, d), as (n,); sd over the d features.

    Of clips, (n, frames, d) and (1, frames, d), it is the mean over frames.

    It is the Fréchet distance (Heusel et al. 2017), ‖μ_a − μ_b‖² + tr(Σ_a + Σ_b − 2 √(Σ_a Σ_b)), of one picture to one
    picture, where the only variance is that of the picture's own features.
    """
    spread = spread_of(features) - spread_of(reference)
    distances = (features - reference).square().sum(dim=-1) + spread.square()
    return distances if distances.ndim == 1 else distances.mean(dim=1)


def spread_of(features: torch.Tensor) -> torch.Tensor:
    """Return the standard deviation over features (..., d), as (...): with d − 1, and 0 for a single feature."""
    return features.std(dim=-1) if features.shape[-1] > 1 else torch.zeros_like(features[..., 0])


def rescaled(curve: np.ndarray, smallest: float = 0.0) -> np.ndarray:
    """Return a curve min–max normalised to [0, 1]; zeros where it spans no more than `smallest`.

    >>> rescaled(np.array([2.0, 3.0, 4.0]))
    array([0. , 0.5, 1. ])
    """
    span = np.ptp(curve)
    return (curve - curve.min()) / span if span > smallest else np.zeros_like(curve)


def area(curve: np.ndarray) -> np.ndarray:
    """Return the area under curves of N + 1 points over [0, 1], (Σ y − y_0/2 − y_N/2) / N over the last axis.

    >>> float(area(np.array([0.0, 0.5, 1.0])))
    0.5
    """
    return np.asarray((curve.sum(axis=-1) - curve[..., 0] / 2 - curve[..., -1] / 2) / (curve.shape[-1] - 1))


def ranks(saliency: np.ndarray) -> np.ndarray:
    """Return the rank of every position in the order of falling saliency, from 0; ties row by row.

    >>> ranks(np.array([[1.0, 3.0], [1.0, 2.0]]))
    array([[2, 0],
           [3, 1]])
    """
    order = np.argsort(-saliency, axis=None, kind="stable")
    ranking = np.empty(saliency.size, dtype=np.int64)
    ranking[order] = np.arange(saliency.size)
    return ranking.reshape(saliency.shape)


def brought_to(saliency: np.ndarray, *shape: int) -> np.ndarray:
    """Bring a map to a shape (height, width), or (frames, height, width): linear (`on_grid`), or a mean where finer."""
    if any(have < want for have, want in zip(saliency.shape, shape, strict=True)):
        return on_grid(saliency, *shape)
    values = torch.from_numpy(np.ascontiguousarray(saliency, dtype=np.float64))
    pool: Any = adaptive_avg_pool2d if len(shape) == 2 else adaptive_avg_pool3d
    return np.asarray(pool(values[None], shape)[0].numpy())


def portions_for(step: Step, chosen: int | None) -> Portions:
    """Return how many samples of a step to decode at once: a person's own number, or what fits."""
    return call_portions(
        step.as_maps(step.sample),
        chosen,
        "games",
        on_cpu=GAME_POSITIONS_ON_CPU,
        elsewhere=GAME_POSITIONS_ELSEWHERE,
        most=MOST_GAME_SAMPLES,
    )


# The arguments.


def _maps(saliency: Any) -> xr.DataArray:
    """Return a map for each step, (step, [frame,] y, x), without gaps."""
    maps = saliency.get("saliency") if isinstance(saliency, xr.Dataset) else saliency
    if isinstance(maps, xr.DataArray) and "step" in maps.coords and "step" not in maps.dims:
        maps = maps.expand_dims("step")
    if not isinstance(maps, xr.DataArray) or not _is_map_a_step(maps) or "step" not in maps.coords:
        raise InputError(_no_maps(maps))
    maps = maps.transpose("step", *map_dims(maps)).astype(np.float64)
    complete = np.isfinite(maps.values).all(axis=tuple(range(1, maps.ndim)))
    if not complete.all():
        raise InputError(
            f"The map of step {int(maps.step.values[~complete][0])} has NaN or infinite values, so its positions "
            "cannot be ranked. Use more masks where some position was never kept, or fill the gaps: "
            "saliency.fillna(...)."
        )
    return maps


def _is_map_a_step(maps: xr.DataArray) -> bool:
    return {"step", "y", "x"} <= set(maps.dims) <= {"step", *MAP_DIMS}


def _no_maps(value: Any) -> str:
    """Return the message for a value that is no map for each step."""
    rule = "Give a method's result, or its variable `saliency` with dims (step, y, x) and the coordinate step."
    if not isinstance(value, xr.DataArray):
        return f"The games need the maps of a method, and were given {type(value).__name__}. {rule}"
    if further := [str(dim) for dim in value.dims if dim not in ("step", *MAP_DIMS)]:
        choice = f"saliency.isel({further[0]}=0)"
        return f"The saliency has the further dim {further[0]}. Choose one map a step: {choice}. {rule}"
    return f"The saliency has dims {value.dims} and coordinates {tuple(value.coords)}. {rule}"


def _steps_of(trace: Trace, maps: xr.DataArray) -> list[Step]:
    """Return the steps that the maps explain; raises `InputError` for maps of another run, or of other dims."""
    steps: list[Step] = choose(trace, maps.step.values.tolist())
    if (dims := steps[0].layout.dims) != map_dims(maps):
        raise InputError(
            f"The maps have dims {maps.dims}, and a map of this run has {dims}. Give the trace that the maps explain."
        )
    if "timestep" in maps.coords:
        for step, timestep in zip(steps, np.atleast_1d(maps.timestep.values), strict=True):
            if not np.isclose(step.timestep, timestep):
                raise InputError(
                    f"The map of step {step.index} was made at time step {timestep:g}, and this trace's step "
                    f"{step.index} is at {step.timestep:g}. Give the trace that the map explains."
                )
    return steps


def _callable(encoder: Any) -> Features:
    """Return the encoder; raises `InputError` for a value that is no function."""
    if not callable(encoder):
        raise InputError(
            f"The encoder is {shown_value(encoder)}. Give a function from pictures (n, 3, height, width) in [0, 1] to "
            "features (n, d), such as denoscope.vision.encoders.load_encoder()."
        )
    features: Features = encoder
    return features


def coordinates_of(steps: Sequence[Step]) -> dict[str, Any]:
    """Return the coordinates of the axis `step` of a result."""
    return {
        "step": [step.index for step in steps],
        "timestep": ("step", [step.timestep for step in steps]),
        "log_snr": ("step", [step.log_snr for step in steps]),
    }


def _labelled(steps: Sequence[Step], curves: np.ndarray, player: _Player) -> xr.Dataset:
    """Return curves (game, step, raw and normalised, point) as a dataset with their areas and coordinates."""
    distance, curve = curves[:, :, 0], curves[:, :, 1]
    flat, total = ~curve.any(axis=-1), steps[0].layout.positions
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
    options = {name: value for name, value in options_of(player).items() if name not in ("advance", "batch_size")}
    return xr.Dataset(variables, coords, {"title": "Deletion and insertion", "reading": READING, **options})
