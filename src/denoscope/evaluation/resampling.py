"""Resampling the noise of a region: does the picture change more where the map is high?"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr

from ..attributors.base import Advance
from ..errors import InputError
from ..recording.batches import call_portions
from ..recording.steps import Step
from ..recording.traces import Trace
from ..vision.clips import by_frame
from .games import brought_to, coordinates_of, ranks
from .infidelity import steps_of
from .metrics import metric, with_facts, without_gaps


@metric(
    "advantage",
    "resampling",
    "resampling",
    -1,
    1,
    True,
    "an intervention of Denoscope's own",
    chance=0.0,
    text="Does the picture change more when the map’s highest places get other noise than when others do?",
)
def advantage(chosen: np.ndarray, elsewhere: np.ndarray) -> float:
    """Return (a − b) / (a + b) of the mean changes under resampling of the chosen region, a, and of another, b.

    0: the region is no better than any of its size and form. NaN where nothing changes.
    """
    a, b = float(np.mean(chosen)), float(np.mean(elsewhere))
    return (a - b) / (a + b) if a + b > 0 else float("nan")


Distance = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From pictures (n, 3, [frames,] height, width) and one such picture to distances (n,)."""


def root_mean_square(pictures: torch.Tensor, picture: torch.Tensor) -> torch.Tensor:
    """Return the root of the mean squared difference, (n,), in units of the pictures' [0, 1]."""
    return (pictures - picture).square().mean(dim=tuple(range(1, pictures.ndim))).sqrt()


@dataclass(frozen=True, eq=False)
class WithinMask:
    """`root_mean_square` inside a boolean mask (height, width), of a clip also (frames, height, width).

    Raises `InputError` for an empty or misfit mask.
    """

    mask: np.ndarray

    def __call__(self, pictures: torch.Tensor, picture: torch.Tensor) -> torch.Tensor:
        mask = np.asarray(self.mask, bool)
        if mask.shape not in (tuple(pictures.shape[-2:]), tuple(pictures.shape[2:])) or not mask.any():
            size = " × ".join(map(str, pictures.shape[2:]))
            raise InputError(
                f"The mask has shape {mask.shape} with {int(mask.sum())} positions, and the pictures are {size}. Give "
                "the object's mask in the pictures' size."
            )
        inside = torch.from_numpy(mask).to(pictures.device)
        return root_mean_square(pictures[..., inside], picture[..., inside])


@dataclass(frozen=True, eq=False)
class OfFeatures:
    """Euclidean distance of an encoder's features (n, d), such as the bundled CLIP's; of clips the mean over frames."""

    encoder: Callable[[torch.Tensor], torch.Tensor]

    def __call__(self, pictures: torch.Tensor, picture: torch.Tensor) -> torch.Tensor:
        distances = (by_frame(self.encoder, pictures) - by_frame(self.encoder, picture)).square().sum(dim=-1).sqrt()
        return distances if distances.ndim == 1 else distances.mean(dim=1)


@dataclass(frozen=True)
class Resampling:
    """The settings of a resampling: other noise in the highest `share` of the positions, `draws` times, from `seed`.

    `batch_size` is the number of samples continued at once. Raises `InputError` for a share beyond 0 to 1, or no draws.
    """

    share: float = 0.15
    draws: int = 8
    seed: int = 0
    batch_size: int = 16

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise InputError(f"share is {self.share}. The region is a share of the positions, such as 0.15.")
        if self.draws < 1:
            raise InputError(f"draws is {self.draws}. Give at least 1 draw of other noise; 8 are usual.")

    def samples(self, step: Step, saliency: np.ndarray) -> torch.Tensor:
        """Return 2 · draws samples x_t with other noise in the map's top region, then in others like it.

        Each draw is one field of noise; either region takes its own part of it. The clean prediction stays as it is.
        """
        rng = np.random.default_rng([self.seed, step.index])
        region = top_region(saliency, self.share)
        regions = [region] * self.draws + [elsewhere(region, rng) for _ in range(self.draws)]
        chosen = torch.from_numpy(np.stack(regions))[:, None].to(step.sample.device)
        sample, output = step.as_maps(step.sample), step.as_maps(step.model_output)
        original, noise = step.level.original(sample, output), step.level.noise(sample, output)
        fresh = rng.standard_normal((self.draws, *noise.shape[1:]), dtype=np.float32)
        other = torch.from_numpy(np.concatenate([fresh, fresh])).to(noise)
        return step.as_samples(step.level.noisy(original, torch.where(chosen, other, noise)))


def top_region(saliency: np.ndarray, share: float) -> np.ndarray:
    """Return the highest `share` of the positions of a map, at least one, as a boolean mask; ties row by row.

    >>> top_region(np.array([[0.1, 0.9], [0.3, 0.2]]), share=0.5)
    array([[False,  True],
           [ True, False]])
    """
    return ranks(without_gaps(saliency)) < max(1, round(share * saliency.size))


def elsewhere(region: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a region of the same size and form at another place, edges joined, those of a clip's time too.

    It is drawn from the quarter of all shifts that overlap the region least: a large region has none without overlap.
    """
    spectrum = np.fft.fftn(region)
    overlaps = np.fft.ifftn(spectrum * spectrum.conj()).real.round().astype(int)
    limit = np.sort(overlaps, axis=None)[(region.size - 1) // 4]
    shift = np.unravel_index(rng.choice(np.flatnonzero(overlaps <= limit)), region.shape)
    return np.roll(region, shift, axis=tuple(range(region.ndim)))


def resampling(
    trace: Trace,
    saliency: xr.DataArray,
    distances: Mapping[str, Distance] | None = None,
    options: Resampling | None = None,
    *,
    advance: Advance | None = None,
) -> xr.Dataset:
    """Draw other noise for the map's highest region at each step, finish the run, and measure the picture's change.

    >>> result = resampling(trace, maps.saliency, {"object": WithinMask(mask)})      # doctest: +SKIP
    >>> result.advantage.sel(distance="object").values                               # doctest: +SKIP
    array([0.31, 0.22])

    Regions of the same size and form elsewhere are resampled too, for comparison. `change` (distance, step, region,
    draw) is the distance of the final pictures, region "top" or "elsewhere". `advantage` (distance, step) is positive
    where the map's region changes them more. `distances` None is `root_mean_square` of the whole picture. The rest of
    the run is deterministic (`Trace.continued`), so nothing else differs. Early steps cost most: each goes on to the
    last. Raises `InputError` for maps that do not have one map a step.
    """
    measures = distances or {"picture": root_mean_square}
    settings, steps = options or Resampling(), steps_of(trace, saliency)
    changes = []
    for step in steps:
        values = saliency.sel(step=step.index).transpose(*step.layout.dims).values
        changes.append(_changes(trace, step, values, measures, settings, advance))
    coords = {"distance": list(measures), **coordinates_of(steps), "region": ["top", "elsewhere"]}
    dims = ("distance", "step", "region", "draw")
    change = xr.DataArray(np.stack(changes, axis=1), coords, dims)
    top, other = (change.sel(region=name, drop=True) for name in ("top", "elsewhere"))
    advantages = xr.apply_ufunc(advantage, top, other, input_core_dims=[["draw"]] * 2, vectorize=True)
    return xr.Dataset({"change": change, "advantage": with_facts(advantages, "advantage")})


@torch.no_grad()
def _changes(
    trace: Trace,
    step: Step,
    saliency: np.ndarray,
    measures: Mapping[str, Distance],
    options: Resampling,
    advance: Advance | None,
) -> np.ndarray:
    """Return the distances of one step's final pictures by every measure, (measures, 2, draws)."""
    samples = torch.cat([step.sample, options.samples(step, brought_to(saliency, *step.layout.shape))])
    unit, pictures = len(step.sample), []
    portions = call_portions(step.as_maps(step.sample), options.batch_size, "resampling")

    def finished(part: slice) -> torch.Tensor:
        return step.decode(trace.continued(step.index, samples[part.start * unit : part.stop * unit]))

    for part, decoded in portions.over(len(samples) // unit, finished, samples.device):
        pictures.append(decoded)
        if advance is not None:
            advance(part.stop - part.start)
    untouched, others = torch.split(torch.cat(pictures), [1, 2 * options.draws])
    changes = [measure(others, untouched).double().cpu().numpy() for measure in measures.values()]
    return np.stack(changes).reshape(len(measures), 2, options.draws)
