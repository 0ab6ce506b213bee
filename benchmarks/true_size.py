"""Memory of explaining networks of their true size, counted on a CPU in bfloat16: the bytes that a GPU would hold.

    python benchmarks/true_size.py                         # Stable Diffusion 1.5 and SDXL, about an hour on two cores
    python benchmarks/true_size.py --only sdxl --questions relevance df-cam
    python benchmarks/true_size.py --small                      # networks of a tenth, to try the script

The denoisers and decoders are those of `benchmarks/gpu.py`: the true shapes with random weights, 512 and 1,024 pixels,
two steps, guidance. bfloat16 takes as many bytes as the float16 of a GPU, and portions, blocks and graphs are the same
code. Every figure is the resident memory of the process, sampled every two milliseconds: what the question adds at most
to what is held at rest (weights, recording), and all of it together, Python and its libraries included.
"""

import argparse
import ctypes
import gc
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from gpu import LABELS, PROMPT, SIZES, Size, autoencoder
from memory import GIB, Peak

import denoscope
from denoscope import (
    ClassScore,
    Concepts,
    DFCam,
    DFRise,
    GradientShap,
    Occlusion,
    Relevance,
    Words,
    memory_limit,
)

COUNTED = ("Stable Diffusion 1.5", "SDXL")


@contextmanager
def numbers_in(dtype: torch.dtype) -> Iterator[None]:
    """While open, networks are built in a dtype, and not in float32 first."""
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def questions_of(trace: denoscope.Trace, windows: int, samples: int) -> dict[str, Callable[[], object]]:
    """Return each question, at the last step."""
    at = [len(trace) - 1]
    target = ClassScore(denoscope.load_classifier("shapes", LABELS), LABELS[0])
    channels, *sides = trace[0].as_maps(trace[0].sample).shape[1:]
    window = (channels, *(-(-side // windows) for side in sides))
    return {
        "df-rise": lambda: DFRise(4)(trace, at),
        "df-cam": lambda: DFCam()(trace, at),
        "words": lambda: Words()(trace, at),
        "relevance": lambda: Relevance()(trace, at),
        "concepts": lambda: Concepts(("red circle", "green triangle"))(trace, at),
        "occlusion": lambda: Occlusion(target, window, window)(trace, at),
        "gradient": lambda: GradientShap(target, samples)(trace, at),
    }


def at_rest() -> None:
    """Give what was freed back to the system, as far as it can be."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def measured(name: str, size: Size, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Ask the questions about one network, line by line."""
    torch.manual_seed(0)
    with numbers_in(torch.bfloat16):
        pipeline = size.build(given.small)
    if given.small_decoder:
        pipeline.vae = autoencoder(4, True, scaling_factor=pipeline.vae.config.scaling_factor).to(torch.bfloat16)
    pipeline.to(torch.bfloat16)
    pipeline.set_progress_bar_config(disable=True)
    model = denoscope.load(pipeline)
    weights = sum(p.numel() for p in model.denoiser.parameters())
    print(f"{name}: {weights / 1e6:,.0f} million weights in the denoiser", flush=True)
    at_rest()
    with Peak() as peak:
        trace = model.trace(PROMPT, seed=1, **size.options(given.small) | {"num_inference_steps": 2})
    rows = [row_of(name, "recording", peak)]
    trace[1].predict(trace[1].sample)  # the engines' own checks are not the question's
    questions = questions_of(trace, given.windows, given.samples)
    for label in given.questions or questions:
        at_rest()
        try:
            with memory_limit(given.limit), Peak() as peak:
                questions[label]()
        except denoscope.DenoscopeError as error:
            print(f"{name:22}{label:12}{type(error).__name__}: {str(error)[:160]}", flush=True)
            continue
        rows.append(row_of(name, label, peak))
    return rows


def row_of(name: str, label: str, peak: Peak) -> dict[str, Any]:
    above, whole = (peak.top - peak.rest) / GIB, peak.top / GIB
    print(f"{name:22}{label:12}{above:8.2f} GiB above rest{whole:8.2f} GiB in all{peak.seconds:9.1f} s", flush=True)
    return {"network": name, "question": label, "above": above, "in all": whole, "seconds": peak.seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="part of a network's name")
    parser.add_argument("--questions", nargs="+", help="some of them; all if left out")
    parser.add_argument("--samples", type=int, default=1, help="gradients, of Gradient SHAP; memory is flat in them")
    parser.add_argument("--windows", type=int, default=2, help="windows a side of Occlusion")
    parser.add_argument("--small-decoder", action="store_true", help="for questions that no decoder answers: faster")
    parser.add_argument("--limit", help="limit of memory, such as 8GB")
    parser.add_argument("--small", action="store_true", help="networks of a tenth")
    parser.add_argument("--out", type=Path, default=Path("out/true_size.json"))
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in COUNTED:
        if given.only.lower() in name.lower():
            rows += measured(name, SIZES[name], given)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(rows, indent=2))
    print(given.out)


if __name__ == "__main__":
    main()
