"""Through the denoiser: which part of x_t decides the class of the picture? Against the objects' true places.

    python benchmarks/through_denoiser.py            # 24 scenes with one object, about ten minutes on two cores

The target is the score of "a COLOUR SHAPE" by the bundled CLIP, against the same shape in the other colours, on the
clean picture that the denoiser predicts from x_t. Measured is the share of the map's positive part that lies inside the
object: its mean over scenes with its bootstrap interval, and how much more it is than a random map's. A random map and
the centre prior stand beside it. Every scene is kept in --out, and a second call goes on where the first was stopped.
"""

import functools
import json

import numpy as np
from rich.console import Console
from rich.table import Table
from scenes import FIRST_SEED, drawn
from work import benchmark_parser, over_scenes, table_path

import denoscope
from denoscope import ClassScore, GradientShap, IntegratedGradients, Occlusion
from denoscope.evaluation import bootstrap, centre_prior, on_grid
from denoscope.evaluation.stages import share_inside
from denoscope.report.leaderboard import cell_text
from denoscope.worlds.shapes.scenes import COLOURS, Scene

STEPS = {"early": 3, "middle": 12, "late": 24}


@functools.cache
def classifier(shape: str) -> denoscope.Classifier:
    return denoscope.load_classifier("shapes", [f"a {colour} {shape}" for colour in COLOURS])


def shares_of_scene(seed: int) -> dict[str, dict[str, float]] | None:
    """Return the share inside the object of every map at every step; None if the object was not drawn."""
    scene = Scene.random(seed, count=1)
    recorded = drawn(scene)
    return None if recorded is None else shares(*recorded, scene, np.random.default_rng(seed))


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
    shares_by_map = {}
    for name, method in methods.items():
        maps = method(trace, list(STEPS.values())).saliency.values
        shares_by_map[name] = {step: inside(saliency, mask) for step, saliency in zip(STEPS, maps, strict=True)}
    grid, prior = trace[0].sample.shape[-2:], centre_prior(*mask.shape)
    shares_by_map["random"] = {step: inside(rng.normal(size=grid), mask) for step in STEPS}
    shares_by_map["centre prior"] = dict.fromkeys(STEPS, inside(prior - prior.min(), mask))
    return shares_by_map


def inside(saliency: np.ndarray, mask: np.ndarray) -> float:
    return share_inside(on_grid(saliency, *mask.shape), mask)


def main() -> None:
    options = benchmark_parser(__doc__, scenes=24, out="out/through-denoiser").parse_args()
    seeds = range(FIRST_SEED, FIRST_SEED + options.scenes)
    scenes, skipped = over_scenes(shares_of_scene, seeds, options.scenes, {"steps": STEPS}, options)
    title = f"share inside the object, {len(scenes)} scenes, {skipped} skipped; above the random map's"
    table = Table("map", *STEPS, title=title)
    report: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for name in scenes[0]:
        report[name] = {}
        for step in STEPS:
            shares_inside = np.array([scene[name][step] for scene in scenes])
            of_random = np.array([scene["random"][step] for scene in scenes])
            report[name][step] = {
                "share": vars(bootstrap(shares_inside)),
                "above_random": vars(bootstrap(shares_inside - of_random)),
            }
        table.add_row(name, *(cell(report[name][step]) for step in STEPS))
    table_path(options).write_text(json.dumps(report, indent=2))
    Console(width=140).print(table)


def cell(values: dict[str, dict[str, float]]) -> str:
    """Return the share, and its difference from the random map's, with their intervals."""
    above = values["above_random"]
    return f"{cell_text(values['share'])}; {above['mean']:+.2f} [{above['low']:+.2f}, {above['high']:+.2f}]"


if __name__ == "__main__":
    main()
