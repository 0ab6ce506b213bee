"""What is a map of DF-RISE when the network's weights are random: one of its masks, or one of the sample x_t?

    python benchmarks/random_weights.py                 # 14 scenes

The contrast form at the middle step, with the trained weights, with random ones, and with random ones and other masks:
how well each finds the true objects (AUROC), and how much the last two agree in rank with the first. Agreement that is
gone with other masks was theirs; what stays is x_t's, which the clean prediction is made from whatever the network
adds. Means over scenes, of one small object and of two in turn, with bootstrap intervals. Every scene is kept in
--out, and a second call goes on where the first was stopped.
"""

import functools
import json

from rich.console import Console
from rich.table import Table
from scenes import drawn, scene_of
from work import benchmark_parser, in_turn, over_scenes, table_path

from denoscope import DFRise
from denoscope.evaluation import agreement, bootstrap, localisation, stages_of
from denoscope.evaluation.stability import remade
from denoscope.recording.hooks.layers import randomised
from denoscope.report.leaderboard import cell_text

STEP = 15
"""Of 30."""


def scores_of_scene(seed: int, masks: int) -> dict[str, float] | None:
    """Return AUROC and agreements; None if the picture does not show the scene's things."""
    picture = drawn(scene_of(seed))
    if picture is None:
        return None
    trace, mask = picture
    everything = list(stages_of(trace, STEP).values())[-1]
    rise = [DFRise(num_masks=masks, seed=i) for i in (0, 1)]
    trained = rise[0](trace, [STEP]).saliency
    with randomised(trace.model.denoiser, everything, seed):
        same, other = (each(remade(trace, [STEP]), [STEP]).saliency for each in rise)
    return {
        "AUROC, trained weights": localisation(trained, mask)["auroc"].item(),
        "AUROC, random weights": localisation(same, mask)["auroc"].item(),
        "agreement, random weights": agreement(trained[0].values, same[0].values),
        "agreement, random weights and other masks": agreement(trained[0].values, other[0].values),
    }


def main() -> None:
    parser = benchmark_parser(__doc__, scenes=14, out="out/random_weights")
    parser.add_argument("--masks", type=int, default=64)
    options = parser.parse_args()
    score = functools.partial(scores_of_scene, masks=options.masks)
    settings = {"step": STEP, "masks": options.masks}
    scores, _ = over_scenes(score, in_turn(options.scenes), options.scenes, settings, options)
    results = {measure: vars(bootstrap([of[measure] for of in scores])) for measure in scores[0]}
    table = Table("DF-RISE, contrast", "", title=f"{len(scores)} scenes, step {STEP} of 30, {options.masks} masks")
    for measure, value in results.items():
        table.add_row(measure, cell_text(value))
    Console(width=120).print(table)
    table_path(options).write_text(json.dumps(results, indent=2))
    print(table_path(options))


if __name__ == "__main__":
    main()
