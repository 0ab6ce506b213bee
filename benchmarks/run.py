"""Speed and fidelity of DF-RISE, and the speed of DF-CAM, on the bundled model, each as a ratio measured in one run.

python benchmarks/run.py                # all, about forty minutes on two cores
python benchmarks/run.py floor trace    # some
"""

import argparse
import functools
import json
import multiprocessing
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scenes import picture_of
from scipy import stats

import denoscope
from denoscope import DFCam, DFRise, Words
from denoscope.attributors.estimators import Estimator, MaskMoments, Surrogates, kept_mean, kept_ratio, plain_sum
from denoscope.attributors.masks import BalancedMasks, Masks, PixelMasks
from denoscope.recording.steps import Step
from denoscope.recording.traces import Trace
from denoscope.worlds.shapes.scenes import Scene

PROMPT = "a small striped red circle on a white background"
SCENES = range(9_000_000, 9_000_005)
"""Seeds of the scenes that `calls` is measured on, drawn at the demo's guidance; a rule, so that none was chosen."""
STEPS = {"early": 6, "middle": 15, "late": 24}
"""Of 30, as in localisation.py."""
CONVERGED = 8192
PUBLISHED = 1024
OURS = 64
WANTED = 0.95
ROUNDS = 7


def trace_of_model() -> Trace:
    model = denoscope.load("shapes")
    model.pipeline.set_progress_bar_config(disable=True)
    return model.trace(PROMPT, seed=4, num_inference_steps=30)


def median_seconds(run: Callable[[], object], rounds: int = ROUNDS) -> float:
    run()
    return statistics.median(seconds_of(run) for _ in range(rounds))


def seconds_of(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def ratio_of(first: Callable[[], object], second: Callable[[], object], rounds: int = ROUNDS) -> dict[str, float]:
    """Median seconds of two runs that take turns, so that a busy moment meets both, and the median of their ratios."""
    first(), second()
    pairs = [(seconds_of(first), seconds_of(second)) for _ in range(rounds)]
    a, b = (statistics.median(values) for values in zip(*pairs, strict=True))
    return {"ratio": statistics.median(x / y for x, y in pairs), "first_s": a, "second_s": b, "rounds": rounds}


# Calls: how many masks until the map ranks positions as the converged map does?


Pool = tuple[np.ndarray, np.ndarray]
"""Masks and their similarity maps, (count, h, w) each."""


def scored(step: Step, masks: Masks, count: int, seed: int) -> Pool:
    score, drawn, maps = DFRise.paper().target.at(step), [], []
    with torch.inference_mode():
        for chunk in masks.stream(step.layout.shape, seed, count, 64):
            drawn.append(chunk)
            maps.append(score(step.sample * torch.from_numpy(chunk)[:, None]).numpy())
    return np.concatenate(drawn), np.concatenate(maps)


def agreement(estimator: Estimator, pool: Pool, count: int, truth: np.ndarray, surrogates: Surrogates) -> float:
    """Return the rank correlation of an estimator's map from the first `count` masks with the truth."""
    masks, maps = (part[:count] for part in pool)
    moments = MaskMoments.zero(truth.shape, surrogates).with_masks(masks, maps, surrogates(masks))
    return float(stats.spearmanr(estimator(moments)[0].ravel(), truth.ravel()).statistic)


def masks_needed(estimator: Estimator, pools: list[Pool], truth: np.ndarray, surrogates: Surrogates) -> dict:
    """Return the number of masks at which the mean agreement reaches WANTED: log-interpolated, or extrapolated.

    Extrapolation past the pool: agreement = √(N / (N + k)), the attenuation of a correlation by noise of variance
    k / N. If the smallest number is enough already, it is returned, and fewer might do.
    """
    sizes = [size for i in range(1, 20) for size in (2**i, 3 * 2 ** (i - 1)) if size <= len(pools[0][0])]
    curve = [float(np.mean([agreement(estimator, pool, n, truth, surrogates) for pool in pools])) for n in sizes]
    for i, value in enumerate(curve):
        if value >= WANTED:
            if i == 0:
                return {"masks": sizes[0], "how": "at most"}
            share = (WANTED - curve[i - 1]) / (value - curve[i - 1])
            return {"masks": sizes[i - 1] * (sizes[i] / sizes[i - 1]) ** share, "how": "measured"}
    k = sizes[-1] * (1 / curve[-1] ** 2 - 1)
    return {"masks": k * WANTED**2 / (1 - WANTED**2), "how": f"extrapolated from {curve[-1]:.2f} at {sizes[-1]}"}


def calls_of(scene: int, name: str) -> dict:
    """Compare both ways at one scene and step. The published way reuses the masks of the truth, which can only help."""
    torch.set_num_threads(1)
    step = picture_of(Scene.random(scene))[STEPS[name]]
    surrogates = Surrogates.of(step, 0.5)
    masks, maps = scored(step, PixelMasks(), CONVERGED, 1000)
    truth, _ = kept_ratio(MaskMoments.zero(maps.shape[1:]).with_masks(masks, maps))
    parts = range(0, CONVERGED, PUBLISHED)
    published = [(masks[start : start + PUBLISHED], maps[start : start + PUBLISHED]) for start in parts]
    ours = [scored(step, BalancedMasks(), OURS, 3000 + i) for i in range(8)]
    needed = {
        "published": masks_needed(plain_sum, published, truth, surrogates),
        "ours": masks_needed(kept_mean, ours, truth, surrogates),
    }
    return {"ratio": needed["published"]["masks"] / needed["ours"]["masks"], **needed}


def calls(_: Trace) -> dict:
    """Measure the masks of the published estimator ÷ ours: plain sum of independent masks ÷ regression, balanced masks.

    The ratio is the median over scenes.
    """
    jobs = [(scene, name) for name in STEPS for scene in SCENES]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        calls_by_job = dict(zip(jobs, pool.starmap(calls_of, jobs, chunksize=1), strict=True))
    results = {}
    for name, index in STEPS.items():
        scenes = [calls_by_job[scene, name] for scene in SCENES]
        results[name] = {"ratio": statistics.median(s["ratio"] for s in scenes), "step": index, "scenes": scenes}
    return results


# Time and memory.


def floor(trace: Trace, count: int = 256) -> dict:
    """Time DF-RISE ÷ the same number of samples through the raw batched denoiser with guidance."""
    step, attributor = trace[14], DFRise.paper(num_masks=count)
    chunk = len(attributor._chunks(step.sample, np.empty((64, *step.sample.shape[-2:])))[0])
    unet, text = trace.model.denoiser, step.replay.kwargs["encoder_hidden_states"]
    samples = step.sample.repeat(chunk, 1, 1, 1)

    @torch.inference_mode()
    def raw() -> None:
        for _ in range(count // chunk):
            conditions = text.repeat_interleave(chunk, dim=0)
            output = unet(torch.cat([samples] * 2), int(step.timestep), conditions, return_dict=False)[0]
            u, c = output.chunk(2)
            u + 7.5 * (c - u)

    return ratio_of(lambda: attributor(trace, [14]), raw)


def cam(trace: Trace) -> dict:
    """Time DF-CAM of all layers ÷ one plain guided denoiser call."""
    step, attributor = trace[14], DFCam()
    unet, text = trace.model.denoiser, step.replay.kwargs["encoder_hidden_states"]

    @torch.inference_mode()
    def plain() -> None:
        output = unet(torch.cat([step.sample] * 2), int(step.timestep), text, return_dict=False)[0]
        u, c = output.chunk(2)
        u + 7.5 * (c - u)

    return ratio_of(lambda: attributor(trace, [14]), plain, 15)


def loop(trace: Trace, count: int = 96) -> dict:
    """Time the published way, one mask a call, ÷ ours with the same masks, and measure the distance of the two maps."""
    one, many = (replace(DFRise.paper(count, batch_size=size), masks=PixelMasks()) for size in (1, None))
    apart = np.abs(one(trace, [14]).saliency - many(trace, [14]).saliency).max()
    return {**ratio_of(lambda: one(trace, [14]), lambda: many(trace, [14]), 5), "largest_difference": float(apart)}


def traced(trace: Trace) -> dict:
    """Time generation while recording ÷ the plain call."""
    model, options = trace.model, dict(num_inference_steps=30)

    def plain() -> object:
        return model.pipeline(PROMPT, generator=torch.Generator().manual_seed(4), **options)

    return ratio_of(lambda: model.trace(PROMPT, seed=4, **options), plain, 9)


def memory(trace: Trace) -> dict:
    """Measure the peak resident memory at 4,000 masks ÷ at 400, each in a process of its own."""
    peaks = {count: peak_of("masks", count) for count in (400, 4000)}
    return {"ratio": peaks[4000] / peaks[400], "peak_bytes": peaks}


def words(trace: Trace) -> dict:
    """Measure the peak resident memory of 100 steps with captured word maps ÷ of 20, each in a process of its own.

    No trace is recorded, as it would grow with its samples. Beside it stand the peaks of the same runs without
    capturing, and the bytes of the maps, which are the result: a map of every token at each step.
    """
    peaks, plain = ({steps: peak_of(what, steps) for steps in (20, 100)} for what in ("words", "plain"))
    tokens, (height, width) = trace.model.pipeline.tokenizer.model_max_length, trace[0].sample.shape[-2:]
    map_bytes = {steps: 4 * steps * tokens * height * width for steps in peaks}
    return {"ratio": peaks[100] / peaks[20], "peak_bytes": peaks, "without_capture": plain, "kept_bytes": map_bytes}


def peak_of(what: str, count: int) -> int:
    """Return the peak resident memory, in bytes, of a process that does one of PEAKS."""
    command = [sys.executable, __file__, "--peak", what, str(count)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def peak_bytes(what: str, count: int) -> int:
    PEAKS[what](count)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def moptions(count: int) -> None:
    DFRise.paper(num_masks=count)(trace_of_model(), [14])


def generated(steps: int, capture: bool) -> None:
    """Make a picture of so many steps without a trace, and capture its word maps if `capture`."""
    model = denoscope.load("shapes")
    with Words().recording(model) if capture else nullcontext():
        model.pipeline(PROMPT, generator=torch.Generator().manual_seed(4), num_inference_steps=steps)


PEAKS = {
    "masks": moptions,
    "words": functools.partial(generated, capture=True),
    "plain": functools.partial(generated, capture=False),
}
PARTS = {"calls": calls, "floor": floor, "cam": cam, "loop": loop, "trace": traced, "memory": memory, "words": words}


def table(results: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    printed = Table("what", "ratio", "detail", title=f"On the bundled model, {torch.get_num_threads()} threads")
    for name, result in results.items():
        rows = {f"{name}, {k}": v for k, v in result.items()} if name == "calls" else {name: result}
        for label, row in rows.items():
            printed.add_row(label, f"{row['ratio']:.2f}", details(row))
    Console(width=160).print(printed)


def details(row: dict) -> str:
    """Return the numbers beside a ratio; for the calls, the masks of both ways in each scene."""
    if "scenes" in row:
        masks = [[f"{s[who]['masks']:.3g} {s[who]['how']}" for who in ("published", "ours")] for s in row["scenes"]]
        return "; ".join(f"{published} ÷ {ours}" for published, ours in masks)
    numbers = {key: value for key, value in row.items() if key != "ratio"}
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in numbers.items()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"any of {', '.join(PARTS)}; all if none is named")
    parser.add_argument("--out", type=Path, default=Path("out/bench.json"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; allowed: {', '.join(PARTS)}")
    torch.set_num_threads(options.threads)
    if options.peak:
        print(peak_bytes(options.peak[0], int(options.peak[1])))
        return
    trace = trace_of_model()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    results = {}
    for name in options.parts or PARTS:
        results[name] = PARTS[name](trace)
        options.out.write_text(json.dumps(results, indent=2))
        print(name, json.dumps(results[name]), flush=True)
    table(results)
    print(options.out)


if __name__ == "__main__":
    main()
