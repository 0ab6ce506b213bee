"""Memory and time of gradients, Occlusion and activations through a denoiser and a full decoder, on a CPU.

    python benchmarks/memory.py                                          # about 20 minutes on one core
    python benchmarks/memory.py --only gradient occlusion --points 2 8   # are they flat?
    python benchmarks/memory.py --size 128 --channels 32 64 64 64        # a small one, to try the script

The denoiser has half of Stable Diffusion's channels (a quarter squared), the decoder all of its own; both have random
weights. Every figure comes from a fresh process: the most resident memory above rest (after recording), sampled every
two milliseconds, and the seconds of the question. Ways: **as it is**; **as before** this rule (weights with gradients,
portions of four, nothing computed twice); **block by block** (every block computed twice, as where memory is scarce).
Ratios of time are to "as before", in the same run.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

GIB = 2**30
WAYS = ("as it is", "as before", "block by block")


def build(channels: tuple[int, ...]) -> Any:
    """Return a pipeline of Stable Diffusion's shape with random weights, and the bundled tokenizer."""
    import diffusers
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from denoscope.recording.loading import bundled_folder

    torch.manual_seed(0)
    words = CLIPTokenizer.from_pretrained(bundled_folder("shapes") / "tokenizer")
    text = CLIPTextConfig(
        hidden_size=384,
        intermediate_size=512,
        num_attention_heads=4,
        num_hidden_layers=1,
        vocab_size=len(words),
        max_position_embeddings=words.model_max_length,
        eos_token_id=words.eos_token_id,
        bos_token_id=words.bos_token_id,
        pad_token_id=words.pad_token_id,
    )
    unet = diffusers.UNet2DConditionModel(
        sample_size=32, block_out_channels=channels, cross_attention_dim=384, attention_head_dim=8
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
    )
    pipeline = diffusers.StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=CLIPTextModel(text).eval(),
        tokenizer=words,
        unet=unet.eval(),
        scheduler=diffusers.DDIMScheduler(clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


class Peak:
    """The most resident memory of this process while open, above that at its beginning, and the seconds."""

    def __enter__(self) -> "Peak":
        self.rest = self.top = resident()
        self.running, self.began = True, time.perf_counter()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while self.running:
            self.top = max(self.top, resident())
            time.sleep(0.002)

    def __exit__(self, *failure: object) -> None:
        self.seconds = time.perf_counter() - self.began
        self.running = False
        self.thread.join()


@contextmanager
def in_the_way(way: str) -> Iterator[None]:
    """Compute gradients in one of the ways."""
    from denoscope.attributors import gradients, occlusion
    from denoscope.recording import decoding
    from denoscope.recording.batches import Portions

    if way == "as it is":
        yield
        return
    kept = (gradients.Passes.through, decoding.PIXELS_ON_CPU, occlusion.Occlusion._portions)
    if way == "as before":
        gradients.Passes.through = lambda step, samples, chosen: gradients.Passes(Portions(4, 4, is_chosen=True))
        occlusion.Occlusion._portions = lambda self, step, samples, most, chosen: Portions(4, 4, is_chosen=True)
        decoding.PIXELS_ON_CPU = 2**40
    else:
        gradients.Passes.through = lambda step, samples, chosen: gradients.Passes(
            Portions(1, 1, again=2, is_chosen=True), step.networks
        )
    try:
        yield
    finally:
        gradients.Passes.through, decoding.PIXELS_ON_CPU, occlusion.Occlusion._portions = kept


def measured(question: str, way: str, amount: int, size: int, channels: tuple[int, ...]) -> dict[str, float]:
    """Ask one question in this process; return GiB above rest, seconds, and the map's length to compare."""
    import numpy as np
    import torch

    import denoscope

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    trace = denoscope.Model.of(build(channels)) if hasattr(denoscope.Model, "of") else denoscope.load(build(channels))
    trace = trace.trace("a red circle", seed=0, num_inference_steps=2, height=size, width=size)
    classifier = denoscope.load_classifier("shapes", ["a red circle", "a blue square"])
    target = denoscope.ClassScore(classifier, "a red circle")
    trace[1].predict(trace[1].sample)  # the engines' own checks are not the question's
    trace[1].decode(trace[1].sample)
    side = size // 8
    window = (4, max(1, side // amount), max(1, side // amount))
    methods: dict[str, Any] = {
        "gradient": lambda: denoscope.IntegratedGradients(target, n_steps=amount),
        "occlusion": lambda: denoscope.Occlusion(target, window, window),
        "df-cam": denoscope.DFCam,
        "relevance": denoscope.Relevance,
    }
    with in_the_way(way) if question in ("gradient", "occlusion") else nullcontext(), Peak() as peak:
        maps = methods[question]()(trace, [1])
    values = np.abs(maps["saliency"].values.astype(np.float64))
    return {
        "gib": (peak.top - peak.rest) / GIB,
        "seconds": peak.seconds,
        "length": float(np.sqrt((values**2).sum())),
    }


def in_a_process(question: str, way: str, amount: int, options: argparse.Namespace) -> dict[str, float]:
    """Return `measured` of a fresh process."""
    request = json.dumps([question, way, amount, options.size, options.channels])
    ran = subprocess.run([sys.executable, __file__, "--measure", request], capture_output=True, text=True)
    if ran.returncode:
        raise SystemExit(ran.stderr[-2000:])
    values: dict[str, float] = json.loads(ran.stdout.strip().splitlines()[-1])
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, help="side of the picture in pixels")
    parser.add_argument("--channels", type=int, nargs=4, default=[160, 320, 640, 640])
    parser.add_argument("--points", type=int, nargs="+", default=[2, 4], help="points of Integrated Gradients")
    parser.add_argument("--windows", type=int, nargs="+", default=[4], help="windows a side of Occlusion")
    parser.add_argument("--only", nargs="+", default=["gradient", "occlusion", "df-cam", "relevance"])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--out", type=Path, default=Path("out/memory.json"))
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        question, way, amount, size, channels = json.loads(options.measure)
        print(json.dumps(measured(question, way, amount, size, tuple(channels))))
        return
    amounts = {"gradient": options.points, "occlusion": options.windows}
    table: list[dict[str, Any]] = []
    print(f"{'question':12}{'amount':>7}  {'way':16}{'GiB':>7}{'seconds':>9}{'to before':>11}{'length':>14}")
    for question in options.only:
        ways = {"gradient": options.ways, "occlusion": [way for way in options.ways if way != "block by block"]}
        for amount in amounts.get(question, [1]):
            rows = {way: in_a_process(question, way, amount, options) for way in ways.get(question, ["as it is"])}
            before = rows.get("as before", {}).get("seconds", float("nan"))
            for way, row in rows.items():
                ratio = row["seconds"] / before
                table.append({"question": question, "amount": amount, "way": way, **row, "ratio": ratio})
                print(
                    f"{question:12}{amount:7}  {way:16}{row['gib']:7.2f}{row['seconds']:9.1f}{ratio:11.2f}"
                    f"{row['length']:14.8g}",
                    flush=True,
                )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(table, indent=2))
    print(options.out)


if __name__ == "__main__":
    main()
