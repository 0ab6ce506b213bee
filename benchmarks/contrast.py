"""Calls of the denoiser until a map ranks positions as the contrast of a pool of masks does, on the bundled model.

python benchmarks/contrast.py                            # eight scenes, about forty minutes on one core
python benchmarks/contrast.py --scenes 2,3 --at 15       # some

Estimators: DF-RISE's contrast by regression and by means; plain RISE (Petsiuk et al. 2018: independent coarse masks)
and RISE's sum with our masks; HSIC (Novello, Fel, Vigouroux 2022) on the scores of our masks; total Sobol indices (Fel
et al. 2021) on masks of their own, 18 calls a design point. HSIC and Sobol measure another thing, how much a place
matters in any way: beside their agreement with the contrast stands that with their own map of all masks.
Every map is compared with the regression on the *other* masks of the pool, so no mask is on both sides.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import torch
from scenes import picture_of
from scipy import stats

from denoscope import DFRise
from denoscope.attributors.estimators import MaskMoments, Tally, classic, keep_contrast, regressed_contrast
from denoscope.attributors.masks import GridMasks, Masks
from denoscope.attributors.regression import Modes
from denoscope.attributors.rise import FILLS
from denoscope.recording.steps import Step
from denoscope.worlds.shapes.scenes import Scene

FIRST = 9_100_000
"""Seed of the first scene; scenes with an even number have one object, the others two."""
POOL = 2048
SIZES = (64, 128, 256, 512, 1024)
POINTS = (4, 8, 16, 32)
"""Design points of Sobol; each takes 18 calls, two and one for each of 4 × 4 cells."""
CELLS = 4
WANTED = (0.9, 0.95)
RUNS = 6
"""The most runs of one size that are averaged."""
SEEDS = {"pool": 1000, "independent": 3000, "sobol": 4000}


@dataclass(frozen=True)
class IndependentGrids(Masks):
    """RISE's coarse masks with every cell drawn on its own: not balanced, nothing left out."""

    def blocks(self, shape, seed):
        rng, grids = np.random.default_rng([seed, 9]), GridMasks(CELLS)
        while True:
            cells = (rng.random((32, CELLS, CELLS)) < 0.5).astype(np.float32)
            starts = [rng.integers(0, -(-side // CELLS), 32) for side in shape]
            rows, columns = (grids._weights(side, start) for side, start in zip(shape, starts, strict=True))
            yield np.einsum("nys,nst,nxt->nyx", rows, cells, columns)


def scored(step: Step, masks: np.ndarray) -> np.ndarray:
    """Return the contrast form's scores of masks (n, h, w)."""
    attributor, sample, scores = DFRise(), step.as_maps(step.sample), []
    score, fill = attributor.target.at(step), FILLS[attributor.fill](sample)
    with torch.inference_mode():
        for chunk in np.split(masks, range(32, len(masks), 32)):
            M = torch.from_numpy(chunk).to(sample)[:, None]
            scores.append(score(sample * M + fill * (1 - M)).double().numpy())
    return np.concatenate(scores)


def sobol_masks(shape: tuple[int, int], points: int) -> np.ndarray:
    """Return masks (18, points, h, w) of designs A, B and A with one cell of B, from a scrambled Sobol sequence."""
    cells = CELLS * CELLS
    drawn = stats.qmc.Sobol(2 * cells, seed=SEEDS["sobol"]).random(points)
    A, B = drawn[:, :cells], drawn[:, cells:]
    designs = np.stack([A, B, *(np.where(np.arange(cells) == i, B, A) for i in range(cells))])
    grids = torch.from_numpy(designs.reshape(-1, 1, CELLS, CELLS).astype(np.float32))
    masks = torch.nn.functional.interpolate(grids, size=shape, mode="bilinear", align_corners=False)
    return masks.reshape(2 + cells, points, *shape).numpy()


def sobol(scores: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return total indices Σ (f(A) − f(A with B's cell))² / 2n / variance (Jansen 1999), enlarged to the map."""
    a, b, mixed = scores[0], scores[1], scores[2:]
    total = ((a - mixed) ** 2).mean(axis=1) / 2 / np.concatenate([a, b]).var()
    grid = torch.from_numpy(total.reshape(1, 1, CELLS, CELLS))
    return torch.nn.functional.interpolate(grid, size=shape, mode="bilinear", align_corners=False)[0, 0].numpy()


def hsic(masks: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return HSIC between each position's mask and the score, tr(K H L H) / (n − 1)².

    L is a Gaussian kernel with the median distance as its width. K is the kernel of Novello et al. for kept or masked,
    at soft masks its mean over both: M M′ + (1 − M)(1 − M′).
    """
    n, flat = len(masks), masks.reshape(len(masks), -1).astype(np.float64)
    distances = np.abs(scores[:, None] - scores)
    L = np.exp(-(distances**2) / 2 / np.median(distances[distances > 0]) ** 2)
    L = L - L.mean(axis=0) - L.mean(axis=1, keepdims=True) + L.mean()
    return (2 * np.einsum("ni,ni->i", flat, L @ flat) / (n - 1) ** 2).reshape(masks.shape[1:])


def of_moments(estimator: Callable, modes: Modes | None = None) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    def estimate(masks: np.ndarray, scores: np.ndarray) -> np.ndarray:
        moments = MaskMoments.zero(masks.shape[1:], modes=modes).with_masks(masks, scores)
        return estimator(moments)[0]

    return estimate


def honesty(masks: np.ndarray, scores: np.ndarray, modes: Modes, size: int) -> dict[str, float]:
    """Return what the regression says of its maps from `size` masks, and what is true.

    `coverage` is the share of positions within 1.96 standard errors of the contrast of the other masks, whose own error
    is added; `reliability` is reported, `two runs` the rank correlation of maps from different masks.
    """
    zero, block = MaskMoments.zero(masks.shape[1:], modes=modes), GridMasks(CELLS).block(masks.shape[1:])
    maps, covered, reported = [], [], []
    for start in list(range(0, len(masks) - size + 1, size))[:RUNS]:
        part = np.arange(start, start + size)
        others = np.setdiff1d(np.arange(len(masks)), part)
        tally = Tally.empty(zero, block, size).with_masks(masks[part], scores[part], None, regressed_contrast)
        saliency, error = tally.estimate(regressed_contrast)
        truth, its_error = regressed_contrast(zero.with_masks(masks[others], scores[others]))
        covered.append(np.mean(np.abs(saliency - truth) <= 1.96 * np.hypot(error, its_error)))
        reported.append(tally.reliability(regressed_contrast))
        maps.append(saliency)
    runs = [agreement(a, b) for a, b in combinations(maps, 2)]
    return {
        "coverage": float(np.mean(covered)),
        "reliability": float(np.mean(reported)),
        "two runs": float(np.mean(runs)),
    }


def agreement(first: np.ndarray, second: np.ndarray) -> float:
    return float(stats.spearmanr(first.ravel(), second.ravel()).statistic)


def kept(folder: Path, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    """Return the scores under a name in a folder, made and saved there if they are not."""
    path = folder / f"{name}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        np.save(path, make())
    return np.load(path)


def measure(scene: int, at: int, folder: Path) -> dict[str, dict[int, dict[str, float]]]:
    """Return agreements by estimator and number of calls at a step of a scene."""

    def step() -> Step:
        return picture_of(Scene.random(FIRST + scene, count=1 + scene % 2))[at]

    shape = (16, 16)
    sources: dict[str, Masks] = {"pool": GridMasks(), "independent": IndependentGrids()}
    counts = {"pool": POOL, "independent": POOL // 2}
    drawn = {
        name: np.concatenate(list(source.stream(shape, SEEDS[name], counts[name], 64)))
        for name, source in sources.items()
    }
    scores = {
        name: kept(folder, f"{scene}-{at}-{name}", lambda masks=masks: scored(step(), masks))
        for name, masks in drawn.items()
    }
    modes = Modes.of(GridMasks(), shape)
    best = of_moments(regressed_contrast, modes)
    estimators = {
        "contrast, regression": ("pool", best),
        "contrast, means": ("pool", of_moments(keep_contrast)),
        "RISE, our masks": ("pool", of_moments(classic)),
        "RISE": ("independent", of_moments(classic)),
        "HSIC": ("pool", hsic),
    }
    whole = best(drawn["pool"], scores["pool"])
    results: dict[str, dict[int, dict[str, float]]] = {}
    for name, (source, estimate) in estimators.items():
        masks, values = drawn[source], scores[source]
        own = estimate(masks, values)
        results[name] = {}
        for size in (size for size in SIZES if size <= len(masks) // 2 or size == len(masks)):
            found = []
            for start in list(range(0, len(masks) - size + 1, size))[:RUNS]:
                part = np.arange(start, start + size)
                saliency = estimate(masks[part], values[part])
                others = np.setdiff1d(np.arange(POOL), part)
                truth = best(drawn["pool"][others], scores["pool"][others]) if source == "pool" else whole
                error = float(np.sqrt(((saliency - truth) ** 2).mean()) / truth.std())
                found.append((agreement(saliency, truth), agreement(saliency, own), error))
            agrees, with_own, error = (float(value) for value in np.mean(found, axis=0))
            results[name][size] = {"agreement": agrees, "with its own": with_own, "error": error}
    masks = sobol_masks(shape, POINTS[-1])
    values = kept(folder, f"{scene}-{at}-sobol", lambda: scored(step(), masks.reshape(-1, *shape))).reshape(
        masks.shape[:2]
    )
    own = sobol(values, shape)
    for size in SIZES[:-1]:
        results["contrast, regression"][size] |= honesty(drawn["pool"], scores["pool"], modes, size)
    results["Sobol"] = {
        n * len(masks): {
            "agreement": agreement(sobol(values[:, :n], shape), whole),
            "with its own": agreement(sobol(values[:, :n], shape), own),
        }
        for n in POINTS
    }
    return results


def calls_for(curve: dict[int, float], wanted: float) -> str:
    """Return the calls at which a curve reaches `wanted`: log-interpolated, or a bound where it is outside.

    >>> calls_for({64: 0.8, 128: 0.9, 256: 0.95}, 0.9)
    '128'
    """
    sizes = sorted(curve)
    if curve[sizes[0]] >= wanted:
        return f"at most {sizes[0]}"
    for low, high in pairwise(sizes):
        if curve[high] >= wanted:
            share = (wanted - curve[low]) / (curve[high] - curve[low])
            return f"{low * (high / low) ** share:.0f}"
    return f"more than {sizes[-1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", default="0,1,2,3,4,5,6,7")
    parser.add_argument("--at", default="6,15,24", help="steps of 30")
    parser.add_argument(
        "--scores", type=Path, default=Path("out/contrast"), help="folder of scores; those there are used"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    jobs = [(int(scene), int(at)) for scene in options.scenes.split(",") for at in options.at.split(",")]
    results = []
    for scene, at in jobs:
        results.append(measure(scene, at, options.scores))
        print(scene, at, json.dumps(results[-1]), flush=True)
    for name in results[0]:
        sizes = list(results[0][name])
        curve, own = (
            {n: float(np.mean([result[name][n][what] for result in results])) for n in sizes}
            for what in ("agreement", "with its own")
        )
        shown = "  ".join(f"{n}: {curve[n]:.2f} ({own[n]:.2f})" for n in sizes)
        needed = ", ".join(f"{wanted}: {calls_for(curve, wanted)}" for wanted in WANTED)
        print(f"{name:22} calls for {needed}; agreement (with its own map): {shown}")
    for size in SIZES[:-1]:
        said = [result["contrast, regression"][size] for result in results]
        means = {name: np.mean([each[name] for each in said]) for name in ("coverage", "reliability", "two runs")}
        print(f"regression, {size} masks: " + ", ".join(f"{name} {value:.3f}" for name, value in means.items()))


if __name__ == "__main__":
    main()
