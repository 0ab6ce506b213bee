"""Through the denoiser: which part of x_t decides the class of the picture? Against the objects' true places.

    python benchmarks/through_denoiser.py            # 24 scenes with one object, about ten minutes on two cores

The target is the score of "a COLOUR SHAPE" by the bundled CLIP, against the same shape in the other colours, on the
clean picture that the denoiser predicts from x_t. Told is the share of the map's positive part that lies inside the
object, mean over scenes with its bootstrap interval, beside the shares of a random map and of the centre prior, and how
much more it is than the random map's.
"""

import argparse
import functools
import json
import multiprocessing
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scenes import drawn

import denoscope
from denoscope import ClassScore, GradientShap, IntegratedGradients, Occlusion
from denoscope.evaluation import bootstrap, centre_prior, on_grid
from denoscope.evaluation.stages import share_inside
from denoscope.worlds.shapes.scenes import COLOURS, Scene

STEPS = {"early": 3, "middle": 12, "late": 24}
FIRST_SEED = 8_000_000


@functools.cache
def classifier(shape: str) -> denoscope.Classifier:
    return denoscope.load_classifier("shapes", [f"a {colour} {shape}" for colour in COLOURS])


def shares_of_scene(seed: int) -> dict[str, dict[str, float]] | None:
    """The share inside the object of every method and baseline at every step; None if it was not drawn as told."""
    scene = Scene.random(seed, count=1)
    found = drawn(scene)
    return shares(*found, scene, np.random.default_rng(seed)) if found else None


def shares(
    trace: denoscope.Trace, mask: np.ndarray, scene: Scene, rng: np.random.Generator
) -> dict[str, dict[str, float]]:
    thing = scene.things[0]
    target = ClassScore(classifier(thing.shape), f"a {thing.colour} {thing.shape}")
    methods = {
        "integrated gradients": IntegratedGradients(target, n_steps=20),
        "gradient shap": GradientShap(target, n_samples=50),
        "occlusion": Occlusion(target),
    }
    found = {}
    for name, method in methods.items():
        maps = method(trace, list(STEPS.values())).saliency.values
        found[name] = {step: inside(saliency, mask) for step, saliency in zip(STEPS, maps, strict=True)}
    grid, prior = trace[0].sample.shape[-2:], centre_prior(*mask.shape)
    found["random"] = {step: inside(rng.normal(size=grid), mask) for step in STEPS}
    found["centre prior"] = dict.fromkeys(STEPS, inside(prior - prior.min(), mask))
    return found


def inside(saliency: np.ndarray, mask: np.ndarray) -> float:
    return share_inside(on_grid(saliency, *mask.shape), mask)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=24)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("out/through-denoiser.json"))
    asked = parser.parse_args()
    with multiprocessing.get_context("spawn").Pool(asked.workers) as pool:
        seeds = range(FIRST_SEED, FIRST_SEED + asked.scenes)
        made = list(track(pool.imap(shares_of_scene, seeds), total=asked.scenes, description="scenes"))
    results = [scene for scene in made if scene]
    table = Table("map", *STEPS, title=f"share inside the object, {len(results)} of {asked.scenes} scenes")
    report: dict[str, dict[str, dict]] = {}
    for name in results[0]:
        report[name] = {
            step: {
                "share": vars(bootstrap([r[name][step] for r in results])),
                "above_random": vars(bootstrap([r[name][step] - r["random"][step] for r in results])),
            }
            for step in STEPS
        }
        table.add_row(name, *(told(report[name][step]) for step in STEPS))
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(report, indent=2))
    Console(width=140).print(table)


def told(cell: dict[str, dict]) -> str:
    share, above = cell["share"], cell["above_random"]
    return (
        f"{share['mean']:.2f} [{share['low']:.2f}, {share['high']:.2f}]; "
        f"{above['mean']:+.2f} [{above['low']:+.2f}, {above['high']:+.2f}]"
    )


if __name__ == "__main__":
    main()
