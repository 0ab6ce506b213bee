"""Deletion and insertion against a slow game, on a step whose influences are known, and what they refuse."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.linalg import sqrtm
from scipy.ndimage import gaussian_filter1d
from small import PIPELINES, refusal

import denoscope
from denoscope import DFRise
from denoscope.errors import NumericsError
from denoscope.evaluation import BASELINES, Baseline, centre_prior, games, random_ranking
from denoscope.evaluation.baselines import centre_ranking, sample_magnitude
from denoscope.evaluation.games import area, brought_to, feature_distance, ranks, rescaled
from denoscope.recording.noise import NoiseLevel
from denoscope.recording.steps import Step
from denoscope.recording.traces import Trace

STEPS = [0, 2, 3]


def features(pictures: torch.Tensor) -> torch.Tensor:
    """Colours of 4 × 4 parts of pictures (n, 3, H, W), (n, 48)."""
    return torch.nn.functional.adaptive_avg_pool2d(pictures, 4).flatten(1)


def pixels(pictures: torch.Tensor) -> torch.Tensor:
    return pictures.flatten(1)


@pytest.fixture(scope="module")
def traces(components):
    """A guided latent one that is not square, and one of pixels."""
    latent = denoscope.load(components).trace("a red circle", seed=1, num_inference_steps=4, height=24, width=32)
    pixel = denoscope.load(PIPELINES["ddpm"]()).trace(seed=1, num_inference_steps=4)
    return {"latent": latent, "pixel": pixel}


@dataclass(frozen=True, eq=False)
class LinearStep(Step):
    """A step that multiplies every position by a known number, (h, w)."""

    influence: torch.Tensor | None = None

    def next_sample(self, samples: torch.Tensor) -> torch.Tensor:
        return samples * self.influence


class Identity:
    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        return samples


@pytest.fixture
def linear() -> Trace:
    """One linear step of a sample of ±1, with influences 1 to 64 in random places."""
    rng = np.random.default_rng(0)
    sample = torch.from_numpy(rng.choice([-1.0, 1.0], (1, 3, 8, 8)))
    influence = torch.from_numpy(rng.permutation(64).reshape(8, 8) + 1.0)
    level = NoiseLevel(0.6, 0.8, 1.0, "epsilon")
    step = LinearStep(0, 500.0, level, sample, sample, sample, None, Identity(), influence=influence)
    return Trace([step], None, {}, None)


def slow_game(step: Step, order: list[tuple[int, int]], positions: int, game: str) -> list[float]:
    """Distances, with one position changed after the other and one sample at a time."""
    start = step.sample.clone()
    if game == "insertion":
        line = np.exp(-(np.arange(-5, 6) ** 2) / 50)
        for axis in (2, 3):
            smooth = lambda row: np.convolve(row, line / line.sum())[5:-5]  # noqa: E731
            start = torch.from_numpy(np.apply_along_axis(smooth, axis, start.double().numpy())).to(step.sample)
    reference = seen(step, step.sample)
    curve = [distance(seen(step, start), reference)]
    for place, (y, x) in enumerate(order, start=1):
        for channel in range(start.shape[1]):
            start[0, channel, y, x] = 0 if game == "deletion" else step.sample[0, channel, y, x]
        if place % positions == 0 or place == len(order):
            curve.append(distance(seen(step, start), reference))
    return curve


@torch.no_grad()
def seen(step: Step, sample: torch.Tensor) -> np.ndarray:
    return features(step.decode(step.next_sample(sample)))[0].double().numpy()


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(((a - b) ** 2).sum() + (a.std(ddof=1) - b.std(ddof=1)) ** 2)


@pytest.mark.parametrize("kind", ["latent", "pixel"])
@pytest.mark.parametrize("positions", [None, 29])
def test_games_against_a_slow_one(traces, kind, positions):
    trace, steps = traces[kind], [3] if positions else [0, 2]
    maps = random_ranking(trace, steps, seed=3)
    scores = games(trace, maps, features, positions=positions)
    width = trace[0].sample.shape[-1]
    for index in steps:
        saliency = maps.sel(step=index).values
        order = sorted(np.ndindex(saliency.shape), key=lambda place: -saliency[place])
        for game in ("deletion", "insertion"):
            slow = np.array(slow_game(trace[index], order, positions or width, game))
            found = scores.sel(step=index, game=game)
            assert found.distance.values == pytest.approx(slow, abs=2e-4 * slow.max())
            assert found.curve.values == pytest.approx((slow - slow.min()) / np.ptp(slow), abs=1e-3)
            trapezoid = np.trapezoid(found.curve.values, dx=1 / (len(slow) - 1))
            assert float(found.auc) == pytest.approx(trapezoid, abs=1e-9)
            assert np.ptp(slow) > 1e-4


def test_a_game_is_labelled_with_what_is_better(traces):
    trace = traces["latent"]
    scores = games(trace, DFRise(num_masks=8)(trace, STEPS), features)
    assert dict(scores.sizes) == {"game": 2, "step": 3, "point": trace[0].sample.shape[-2] + 1}
    assert scores.higher_is_better.sel(game="deletion") and not scores.higher_is_better.sel(game="insertion")
    assert scores.timestep.values.tolist() == [trace[i].timestep for i in STEPS]
    assert scores.changed.values == pytest.approx(np.linspace(0, 1, scores.sizes["point"]))
    assert scores.attrs["positions"] == 8 and scores.attrs["encoder"] == "features"
    assert "HIGHER" in scores.attrs["reading"] and "opposite" in scores.attrs["reading"]


def test_where_games_begin_and_end(traces):
    trace = traces["latent"]
    scores = games(trace, sample_magnitude(trace, [2]), features).isel(step=0)
    step, whole = trace[2], seen(trace[2], trace[2].sample)
    blurred = gaussian_filter1d(step.sample.double().numpy(), 5.0, axis=2, radius=5, mode="constant")
    blurred = torch.from_numpy(gaussian_filter1d(blurred, 5.0, axis=3, radius=5, mode="constant")).float()
    ends = {
        "deletion": (0.0, distance(seen(step, torch.zeros_like(step.sample)), whole)),
        "insertion": (distance(seen(step, blurred), whole), 0.0),
    }
    for game, (first, last) in ends.items():
        curve = scores.distance.sel(game=game).values
        assert curve[[0, -1]] == pytest.approx([first, last], rel=1e-3, abs=1e-9)
        assert max(first, last) > 1e-3


def test_the_true_order_beats_its_reverse(linear):
    truth = (linear[0].influence.numpy() ** 2)[None]
    maps = {sign: xr.DataArray(sign * truth, {"step": [0]}, ("step", "y", "x")) for sign in (1, -1)}
    best, worst = (games(linear, maps[sign], pixels, positions=1).auc.isel(step=0) for sign in (1, -1))
    others = [games(linear, random_ranking(linear, seed=s), pixels, positions=1).auc.isel(step=0) for s in range(5)]
    for score in [worst, *others]:
        assert best.sel(game="deletion") > score.sel(game="deletion") + 0.05
        assert best.sel(game="insertion") < score.sel(game="insertion") - 0.05
    for score in others:
        assert worst.sel(game="deletion") < score.sel(game="deletion") - 0.05


def test_the_deletion_of_a_linear_step_is_its_influence_squared(linear):
    """Removed squares add up; what is left is the spread of what remains."""
    influence, sample = linear[0].influence.numpy(), linear[0].sample.numpy()[0]
    maps = xr.DataArray(influence[None], {"step": [0]}, ("step", "y", "x"))
    found = games(linear, maps, pixels, positions=1).distance.sel(game="deletion", step=0).values
    order = np.argsort(-influence, axis=None)
    gone = 3 * np.cumsum(influence.ravel()[order] ** 2)
    spread = []
    for count in range(1, 65):
        left = (sample * influence).reshape(3, -1).copy()
        left[:, order[:count]] = 0
        spread.append(((sample * influence).std(ddof=1) - left.std(ddof=1)) ** 2)
    assert found == pytest.approx([0, *(gone + spread)])


def test_the_distance_is_frechets_of_one_picture_to_one():
    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 2, 20), rng.normal(0, 1, 20)
    ca, cb = (np.cov(v)[None, None] for v in (a, b))
    truth = ((a - b) ** 2).sum() + np.trace(ca + cb - 2 * sqrtm(ca @ cb).real)
    found = feature_distance(torch.from_numpy(np.stack([a, b])), torch.from_numpy(b)[None])
    assert found.tolist() == pytest.approx([truth, 0])
    one = torch.tensor([[3.0], [1.0]])
    assert feature_distance(one, one[1:]).tolist() == [4.0, 0.0]


def test_areas_of_known_curves():
    points = np.linspace(0, 1, 11)
    assert area(points) == pytest.approx(0.5) and area(1 - points) == pytest.approx(0.5)
    assert area(np.ones(5)) == 1 and area(np.array([0.0, 1.0, 1.0])) == 0.75
    assert area(np.stack([points, points**2])) == pytest.approx([0.5, 0.335])
    assert rescaled(5 + 3 * points) == pytest.approx(points) and not rescaled(np.full(4, 7.0)).any()
    assert not rescaled(np.array([1.0, 1.0 + 1e-6]), smallest=1e-5).any()


def test_ties_are_taken_row_by_row():
    assert ranks(np.zeros((3, 4))).ravel().tolist() == list(range(12))
    saliency = np.random.default_rng(0).integers(0, 3, (30, 30)).astype(float)
    order = sorted(range(900), key=lambda i: (-saliency.flat[i], i))
    assert np.argsort(ranks(saliency).ravel()).tolist() == order


def test_batches_change_nothing_and_advance_counts(traces):
    trace, counts = traces["latent"], []
    maps = random_ranking(trace, [1, 2])
    whole = games(trace, maps, features, advance=counts.append)
    single = games(trace, maps, features, batch_size=1)
    assert np.allclose(whole.distance, single.distance, atol=1e-6)
    assert sum(counts) == whole.distance.size


def test_a_curve_that_is_flat_has_no_area(traces):
    trace = traces["latent"]
    same = lambda pictures: torch.ones(len(pictures), 5) + 1e-7 * features(pictures)[:, :5]  # noqa: E731
    scores = games(trace, random_ranking(trace, [1]), same)
    assert scores.auc.isnull().all() and not scores.curve.any()


def test_maps_on_another_grid(traces):
    trace = traces["latent"]
    maps = random_ranking(trace, [1, 3])
    fine = xr.DataArray(
        np.kron(maps.values, np.ones((1, 8, 8))), {"step": maps.step, "timestep": maps.timestep}, ("step", "y", "x")
    )
    assert np.array_equal(games(trace, fine, features).distance, games(trace, maps, features).distance)
    plane = np.add.outer(np.arange(3.0), np.arange(4.0))
    assert np.array_equal(brought_to(plane, 3, 4), plane) and brought_to(plane, 6, 8).shape == (6, 8)
    assert np.argmax(brought_to(plane, 6, 8)) == 47
    assert brought_to(np.arange(16.0).reshape(4, 4), 2, 2).tolist() == [[2.5, 4.5], [10.5, 12.5]]


def test_a_map_of_one_step(traces):
    trace = traces["latent"]
    maps = random_ranking(trace, [1, 3])
    alone = games(trace, maps.sel(step=3), features)
    assert np.array_equal(alone.distance.sel(step=3), games(trace, maps, features).distance.sel(step=3))
    assert games(trace, maps.transpose("x", "step", "y"), features).equals(games(trace, maps, features))


def test_a_grey_picture_has_three_channels(linear):
    grey = replace(linear[0], sample=linear[0].sample[:, :1])
    trace = Trace([grey], None, {}, None)
    scores = games(trace, centre_ranking(trace), lambda pictures: pictures.mean(dim=(2, 3)))
    assert np.isfinite(scores.auc).all()


def broken(maps: xr.DataArray, value: float) -> xr.DataArray:
    maps = maps.copy()
    maps[1, 0, 0] = value
    return maps


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda maps: broken(maps, np.nan), "map of step 3 has NaN"),
        (lambda maps: broken(maps, np.inf), "map of step 3 has NaN"),
        (lambda maps: maps.assign_coords(step=[0, 9]), "there is no step 9"),
        (lambda maps: maps.assign_coords(timestep=("step", [999.0, 1.0])), "this trace's step"),
        (lambda maps: maps.expand_dims(token=2), "saliency.isel(token=0)"),
        (lambda maps: maps.drop_vars("step"), "coordinates"),
        (lambda maps: maps.isel(y=0), "dims ('step', 'x')"),
        (lambda maps: maps.to_dataset(name="relevance"), "NoneType"),
        (lambda maps: maps.values, "ndarray"),
        (lambda maps: None, "NoneType"),
    ],
)
def test_maps_that_are_none(traces, change, said):
    trace = traces["latent"]
    assert said in refusal(games, trace, change(random_ranking(trace, [1, 3])), features)


@pytest.mark.parametrize(
    "encoder, options, said",
    [
        ("shapes", {}, "load_encoder()"),
        (lambda pictures: pictures, {}, "features.flatten(1)"),
        (lambda pictures: pictures.flatten(), {}, "one row a picture"),
        (lambda pictures: None, {}, "NoneType"),
        (features, dict(positions=0), "positions is 0"),
        (features, dict(positions=2.0), "positions is 2.0"),
        (features, dict(batch_size=-1), "batch_size is -1"),
    ],
)
def test_encoders_and_options_that_cannot_be_used(traces, encoder, options, said):
    trace = traces["latent"]
    assert said in refusal(games, trace, random_ranking(trace, [1]), encoder, **options)


def test_features_that_are_nan(traces):
    trace = traces["latent"]
    nowhere = lambda pictures: features(pictures) * float("nan")  # noqa: E731
    assert "at step 1" in refusal(games, trace, random_ranking(trace, [1]), nowhere, kind=NumericsError)


def test_a_trace_of_several_pictures_is_refused(components):
    trace = denoscope.load(components).trace(["a red circle", "a blue square"], seed=0, num_inference_steps=2)
    assert "trace.picture(0)" in refusal(games, trace, random_ranking(trace.picture(0), [1]), features)


def test_baselines_are_what_they_say(traces):
    trace = traces["latent"]
    for map_of in BASELINES.values():
        baseline = lambda trace, steps, map_of=map_of: Baseline(map_of)(trace, steps).saliency  # noqa: E731
        maps = baseline(trace, [1, 3])
        assert maps.dims == ("step", "y", "x") and maps.shape == (2, *trace[0].sample.shape[-2:])
        assert maps.step.values.tolist() == [1, 3] and baseline(trace, None).sizes["step"] == 4
        assert np.array_equal(baseline(trace, [3])[0], maps[1])
    assert np.array_equal(centre_ranking(trace, [1])[0], centre_prior(*maps.shape[1:]))
    lengths = np.sqrt((trace[3].sample[0].double().numpy() ** 2).sum(axis=0))
    assert np.allclose(sample_magnitude(trace, [3])[0], lengths)
    one, same, other = (random_ranking(trace, [1, 3], seed=seed) for seed in (0, 0, 1))
    assert one.equals(same) and not np.array_equal(one, other) and not np.array_equal(one[0], one[1])
