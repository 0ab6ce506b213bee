"""The relevance of the words of five prompts along the run, under three schedules, as pictures: docs/relevance/*.png.

    python benchmarks/relevance_pictures.py
    python benchmarks/relevance_pictures.py --prompts 1 --steps 10

A picture for each prompt: the result under each schedule, the curve of each word, and the words' totals.
"""

import argparse
import io
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image
from rich.progress import track
from roles import SCHEDULES
from scenes import GUIDANCE, STEPS, model

from denoscope import Relevance
from denoscope.attributors.relevance import totals
from denoscope.figures.theme import bare
from denoscope.figures.words import plot_curves, plot_totals

PROMPTS = {
    "circle-and-square": "a small plain red circle left of a large striped blue square on a white background",
    "one-cross": "a large dotted yellow cross on a black background",
    "triangle-above-circle": "a small striped green triangle above a large plain orange circle on a gray background",
    "two-squares": "a large dotted purple square right of a small plain yellow square on a cyan background",
    "cross-below-triangle": "a large plain green cross below a small dotted red triangle on a pink background",
}
SEED = 0
COLOURS = 96
"""A chart needs no more, and a picture with a palette is a third of the size."""


def drawn(prompt: str, steps: int) -> Figure:
    """Draw the pictures, the curves and the totals in rows, a column for each schedule."""
    figure = Figure(figsize=(12.5, 7.6), layout="constrained", facecolor="white", dpi=90)
    grid, totals_by_schedule = figure.add_gridspec(3, len(SCHEDULES), height_ratios=(1.1, 2.6, 2)), {}
    for column, (schedule, shift) in enumerate(SCHEDULES.items()):
        run = dict(seed=SEED, num_inference_steps=steps, guidance_scale=GUIDANCE, **shift)
        trace = model().trace(prompt, schedule=schedule, **run)
        result = Relevance()(trace)
        bare(figure.add_subplot(grid[0, column])).imshow(trace.image)
        ax = plot_curves(result, ax=figure.add_subplot(grid[1, column]), title=schedule)
        if column + 1 < len(SCHEDULES):
            ax.get_legend().remove()
        totals_by_schedule[schedule] = totals(result)
    plot_totals(totals_by_schedule, ax=figure.add_subplot(grid[2, :]))
    figure.suptitle(prompt, fontsize=11)
    return figure


def saved(figure: Figure, path: Path) -> None:
    file = io.BytesIO()
    figure.savefig(file)
    Image.open(file).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=len(PROMPTS), help="only the first so many")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=Path("docs/relevance"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in track(list(PROMPTS)[: options.prompts], description="prompts"):
        saved(drawn(PROMPTS[name], options.steps), options.out / f"{name}.png")
    print(options.out)


if __name__ == "__main__":
    main()
