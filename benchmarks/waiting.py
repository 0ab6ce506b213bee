"""How long a GPU would wait for Python while DF-RISE runs: counted on a CPU, beside calls that sleep.

    python benchmarks/waiting.py                                    # about two minutes on two quiet cores
    python benchmarks/waiting.py --rates 64:175 128:28 --masks 256 500

The network's call, the target among it, is a sleep of so many samples a second, as a process waits for a GPU. 175
guided samples of 64 × 64 and 28 of 128 × 128 are what one H200 gave for Stable Diffusion 1.5 and SDXL in float16. All
else is DF-RISE as it is: masks, sums, estimates. DF-RISE ÷ raw is the sleeps' time over the time of all.
"""

import argparse
import statistics
import time
from typing import Any

import torch
from gpu import stable_diffusion
from rich.console import Console
from rich.table import Table

import denoscope
from denoscope import DFRise
from denoscope.targets import Similarity


def sleeping(rate: float, side: int) -> Any:
    """Return in place of `Similarity.at`: scores that take their time and nothing else."""

    def at(self: Similarity, step: Any, *others: Any) -> Any:
        def score(samples: torch.Tensor) -> torch.Tensor:
            time.sleep(len(samples) / rate)
            return torch.rand(len(samples)) if self.scalar else torch.rand(len(samples), side, side)

        return score

    return at


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", nargs="+", default=["64:175", "128:28"], help="side of the sample:samples a second")
    parser.add_argument("--masks", type=int, nargs="+", default=[256, 500])
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    pipeline = stable_diffusion(True)
    pipeline.set_progress_bar_config(disable=True)
    model, plain = denoscope.load(pipeline), Similarity.at
    table = Table("sample", "masks", "form", "seconds", "÷ raw", title=f"{torch.get_num_threads()} threads, medians")
    for entry in given.rates:
        side, rate = int(entry.split(":")[0]), float(entry.split(":")[1])
        trace = model.trace("a red circle", seed=1, num_inference_steps=2, height=8 * side, width=8 * side)
        trace[1].predict(trace[1].sample)  # the engines' own checks, and the places of the sample
        assert trace[1].layout
        Similarity.at = sleeping(rate, side)
        try:
            for masks in given.masks:
                for name, method in (("contrast", DFRise(masks)), ("paper", DFRise.paper(masks))):
                    seconds = []
                    for _ in range(given.rounds):
                        began = time.perf_counter()
                        method(trace, [1])
                        seconds.append(time.perf_counter() - began)
                    taken = statistics.median(seconds)
                    share = masks / rate / taken
                    table.add_row(f"{side} × {side}", str(masks), name, f"{taken:.2f}", f"{share:.3f}")
        finally:
            Similarity.at = plain
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
