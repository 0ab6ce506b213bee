"""What is a map of DF-RISE when the network's weights are random: one of its masks, or one of the sample x_t?

    python benchmarks/random_weights.py                 # 14 scenes

The contrast form at the middle step, with the trained weights, with random ones, and with random ones and other masks:
how well each finds the true objects (AUROC), and how much the last two agree in rank with the first. Agreement that is
gone with other masks was theirs; what stays is x_t's, which the clean prediction is made from whatever the network
adds. Means over scenes, of one small object and of two in turn, with bootstrap intervals. Every scene is a line in
--out, and a second call goes on where the first was stopped.
"""

import argparse
import functools
import json
from pathlib import Path
from typing import Any

import torch
from games import told
from resumed import over_scenes
from rich.console import Console
from rich.table import Table
from scenes import drawn

from denoscope import DFRise
from denoscope.evaluation import agreement, bootstrap, localisation, stages_of
from denoscope.evaluation.stability import remade
from denoscope.recording.hooks.layers import randomised
from denoscope.worlds.shapes.scenes import Scene

STEP = 15
"""Of 30."""


def scores_of_scene(seed: int, count: int, masks: int) -> dict[str, float] | None:
    """AUROC and agreements; None where the picture does not show `count` things."""
    found = drawn(Scene.random(seed, count=count, size="small" if count == 1 else None))
    if found is None:
        return None
    trace, mask = found
    everything = list(stages_of(trace, STEP).values())[-1]
    rise = [DFRise(num_masks=masks, variant="contrast", seed=i) for i in (0, 1)]
    own = rise[0](trace, [STEP]).saliency
    with randomised(trace.model.denoiser, everything, seed):
        same, other = (each(remade(trace, [STEP]), [STEP]).saliency for each in rise)
    return {
        "AUROC, trained weights": localisation(own, mask)["auroc"].item(),
        "AUROC, random weights": localisation(same, mask)["auroc"].item(),
        "agreement, random weights": agreement(own[0].values, same[0].values),
        "agreement, random weights and other masks": agreement(own[0].values, other[0].values),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=14)
    parser.add_argument("--masks", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("out/random_weights.jsonl"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    score = functools.partial(scores_of_scene, masks=asked.masks)
    settings: dict[str, Any] = {"step": STEP, "masks": asked.masks}
    scores = over_scenes(score, asked.scenes, settings, asked.out, asked.workers)
    results = {measure: vars(bootstrap([of[measure] for of in scores])) for measure in scores[0]}
    shown = Table("DF-RISE, contrast", "", title=f"{len(scores)} scenes, step {STEP} of 30, {asked.masks} masks")
    for measure, value in results.items():
        shown.add_row(measure, told(value))
    Console(width=120).print(shown)
    asked.out.with_suffix(".json").write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
