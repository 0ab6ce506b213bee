"""Which measures of a map separate the stages? From folders that `denoscope recognise` wrote.

    denoscope recognise PHOTO... --map-draws 3 --out out/stages      # some photographs, some draws of the noise
    python benchmarks/stages.py out/stages

Per method and measure, over the photographs: the rank correlation of the measure (mean over draws) with the frame, the
lowest and the highest of them; and the share of its variance within a photograph that lies between frames and not
between draws (the intraclass correlation of one draw; 0 is noise). A measure separates the stages where the
correlations have one sign in every photograph and the weakest of them is at least 0.5, and frames explain at least half
of the variance.
"""

import argparse
from pathlib import Path

import numpy as np
import xarray as xr
from rich.console import Console
from rich.table import Table
from scipy import stats

from denoscope import Explanation
from denoscope.evaluation.captions import CAPTIONS

CLEAR, WEIGHTY = 0.5, 0.5


def trend(values: xr.DataArray) -> float:
    """Return the rank correlation of a measure's mean over draws with the frame.

    The last frame agrees with itself, so it is left out of `agreement_last`.
    """
    mean = values.mean("draw")
    mean = mean.isel(step=slice(None, -1)) if values.name == "agreement_last" else mean
    return float(stats.spearmanr(mean.step, mean, nan_policy="omit").statistic)


def between_frames(values: xr.DataArray) -> float:
    """Compute the intraclass correlation ICC(1), (MSB − MSW) / (MSB + (k − 1) MSW) for k draws of each frame.

    Source: Shrout and Fleiss 1979.
    """
    table = values.transpose("step", "draw").values
    table = table[np.isfinite(table).all(axis=1)]
    frames, k = table.shape
    if k < 2 or frames < 2:
        return float("nan")
    means = table.mean(axis=1)
    between = k * means.var(ddof=1)
    within = ((table - means[:, None]) ** 2).sum() / (frames * (k - 1))
    return float((between - within) / (between + (k - 1) * within))


def row(values: list[xr.DataArray]) -> tuple[float, float, float]:
    """Return the lowest and highest trend over photographs, and the median share of variance between frames."""
    trends = [trend(each) for each in values]
    return min(trends), max(trends), float(np.median([between_frames(each) for each in values]))


def separates(low: float, high: float, share: float) -> bool:
    """Return True if a measure with these trends and this share separates the stages."""
    return low * high > 0 and min(abs(low), abs(high)) >= CLEAR and share >= WEIGHTY


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    explanations = [Explanation.load(path.parent) for path in sorted(folder.glob("*/explanation.zarr"))]
    table = Table("method", "measure", "trend over frames", "between frames", "separates the stages")
    for method in explanations[0].methods():
        for measure in CAPTIONS:
            values = [each.methods()[method][measure] for each in explanations if measure in each.methods()[method]]
            if len(values) == len(explanations):
                low, high, share = row(values)
                verdict = "yes" if separates(low, high, share) else "no"
                table.add_row(method, measure, f"{low:+.2f} to {high:+.2f}", f"{share:.2f}", verdict)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
