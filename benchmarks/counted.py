"""Word maps at true size, counted on a CPU: what a recording adds to each step on a GPU, in kernels and bytes.

    python benchmarks/counted.py

The attentions have the shapes of Stable Diffusion 1.5 (512 pixels) and SDXL (1,024 pixels), both halves of guidance
in bfloat16, nine words of 77 tokens; the kernel's logsumexp is there, as flash attention gives it, and it is known
which half is the prompt's. Every operation of torch that listening runs is counted, with the bytes of its tensors. A
GPU would need at most a launch for each (6 microseconds where Python launches them) and the bytes at its bandwidth
(half of an H200's 4.8 TB a second). Both are added to the plain step on one H200 in float16: 0.51 s for 20 steps and
0.60 s for 10. What recording itself costs comes on top.
"""

from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.utils._python_dispatch import TorchDispatchMode

from denoscope.attributors.attention import LayerMean
from denoscope.recording.hooks.attention import AttentionCall
from denoscope.recording.listening import Attended

LAYERS = {
    "Stable Diffusion 1.5": (0.51 / 20, (64, 64), [(5, 64, 8, 40), (5, 32, 8, 80), (5, 16, 8, 160), (1, 8, 8, 160)]),
    "SDXL": (0.60 / 10, (128, 128), [(10, 64, 10, 64), (60, 32, 20, 64)]),
}
"""Seconds of a plain step, the sample's grid, and cross-attentions: how many, side of the grid, heads, size."""
TOKENS, WORDS = 77, range(1, 10)
LAUNCH, BANDWIDTH = 6e-6, 2.4e12


class Counter(TorchDispatchMode):
    """Counts operations that compute or copy, and the bytes of their tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels, self.bytes = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and not func.is_view:
            self.kernels += 1
            tensors = [value for value in (*args, result) if isinstance(value, torch.Tensor)]
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return result


def counted(shape: tuple[int, int], layers: list[tuple[int, int, int, int]]) -> Counter:
    """Return what listening to all layers of one step runs."""
    numbers, counter = list(WORDS), Counter()
    mean = LayerMean(shape, numbers)
    keys = {number: [number] for number in range(TOKENS)}
    for count, side, heads, size in layers:
        query = torch.randn(2, heads, side * side, size, dtype=torch.bfloat16)
        key = torch.randn(2, heads, TOKENS, size, dtype=torch.bfloat16)
        told = torch.logsumexp(query.float() @ key.float().mT * size**-0.5, dim=-1)
        call = AttentionCall("layer", True, query=query, key=key, masks={"scale": None}, logsumexp=told)
        attended = Attended(call, (1,), keys, tuple(range(side * side)), (side, side))
        mean.hear(attended)  # matrices of the interpolation are made once
        with counter:
            for _ in range(count):
                mean.hear(attended)
    return counter


def main() -> None:
    table = Table("network", "kernels a step", "GB a step", "launches, ms", "bytes, ms", "÷ plain, at most")
    for name, (plain, shape, layers) in LAYERS.items():
        counter = counted(shape, layers)
        launches, moved = counter.kernels * LAUNCH, counter.bytes / BANDWIDTH
        ratio = 1 + (launches + moved) / plain
        row = (f"{counter.kernels}", f"{counter.bytes / 1e9:.2f}", f"{launches * 1e3:.2f}", f"{moved * 1e3:.2f}")
        table.add_row(name, *row, f"{ratio:.2f}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
