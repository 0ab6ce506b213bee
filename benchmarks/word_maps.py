"""What word maps cost while a picture is made: seconds ÷ those of the plain call.

    python benchmarks/word_maps.py [--size 256] [--steps 6] [--rounds 3] [--device cpu] [--dtype float32]
    PYTHONPATH=PEERS python benchmarks/word_maps.py      # beside attention-map-diffusers and DAAM, if they are there

A U-Net in Stable Diffusion's shape with a quarter of its channels, random weights, 77 tokens, guidance. Runs take
turns; medians over the rounds of the ratios to the plain call of the same round. The peers' maps are computed to their
end, as ours are: attention-map-diffusers exactly, with every head, at each layer's own size; DAAM enlarged, with every
head. All are of every step. Whoever computes attention in another way than the model's own kernel may be faster than
the plain call; the last column says whether the picture is still the same, bit for bit.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import denoscope
from denoscope import Words
from denoscope.recording.loading import bundled_folder

PROMPT = "a large striped red circle on a white background"
TOKENS, WIDTH = 77, 192


def pipeline_of(device: str, dtype: torch.dtype) -> diffusers.StableDiffusionPipeline:
    """Return a pipeline in Stable Diffusion's shape with a quarter of its channels and random weights."""
    torch.manual_seed(0)
    words = CLIPTokenizer.from_pretrained(bundled_folder("shapes") / "tokenizer", model_max_length=TOKENS)
    ids = {f"{name}_token_id": getattr(words, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    text = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_attention_heads=4,
        num_hidden_layers=2,
        max_position_embeddings=TOKENS,
        **ids,
    )
    unet = diffusers.UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(80, 160, 320, 320),
        cross_attention_dim=WIDTH,
        attention_head_dim=8,
        norm_num_groups=16,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32, 64, 128, 128),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
    )
    pipeline = diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text).eval(),
        tokenizer=words,
        unet=unet.eval(),
        scheduler=diffusers.DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device, dtype)


def ours(pipeline: Any, options: dict[str, Any], words: bool) -> Callable[[], Any]:
    """Return a recording, with the word maps of every step or without."""
    model = denoscope.load(pipeline)

    def run() -> Any:
        if not words:
            return model.trace(PROMPT, seed=4, **options).result
        with Words().recording(model) as recorded:
            trace = model.trace(PROMPT, seed=4, **options)
        recorded.maps(trace)
        return trace.result

    return run


def attention_map_diffusers(pipeline: Any, options: dict[str, Any]) -> Callable[[], Any] | None:
    """Return a call with attention-map-diffusers; None if it is not installed."""
    try:
        from attention_map_diffusers import AttentionCapture
    except ImportError:
        return None

    def run() -> Any:
        generator = torch.Generator().manual_seed(4)
        with AttentionCapture(pipeline, relations=["image->text"], offload="cpu") as capture:
            output = pipeline([PROMPT], generator=generator, **options)
        capture.compute()
        return output

    return run


def daam(pipeline: Any, options: dict[str, Any], side: int) -> Callable[[], Any] | None:
    """Return a call with DAAM, told the sample's size, which it knows for two sizes only; None if not installed."""
    try:
        from daam import trace
    except ImportError:
        return None

    def run() -> Any:
        with torch.no_grad(), trace(pipeline) as heard:
            heard.latent_hw = side * side
            for module in heard.module:
                if hasattr(module, "latent_hw"):
                    module.latent_hw = side * side
            output = pipeline(PROMPT, generator=torch.Generator().manual_seed(4), **options)
            heard.compute_global_heat_map(prompt=PROMPT)
        return output

    return run


def seconds_of(run: Callable[[], Any]) -> float:
    """Return how long a run takes, to the end of what it started on a GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measured(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, Any]]:
    """Return seconds and ratios to the first run, medians over rounds in which the runs take turns."""
    pictures = {name: np.asarray(run().images[0]) for name, run in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            seconds[name].append(seconds_of(run))
    plain, picture = next(iter(seconds.values())), next(iter(pictures.values()))
    return {
        name: {
            "same picture": bool(np.array_equal(pictures[name], picture)),
            "seconds": statistics.median(own),
            "ratio": statistics.median(a / b for a, b in zip(own, plain, strict=True)),
        }
        for name, own in seconds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, help="pixels")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    given = parser.parse_args()
    pipeline = pipeline_of(given.device, getattr(torch, given.dtype))
    options = {"num_inference_steps": given.steps, "guidance_scale": 7.5, "output_type": "np"}
    options |= {"height": given.size, "width": given.size}

    def plain() -> Any:
        return pipeline(PROMPT, generator=torch.Generator().manual_seed(4), **options)

    runs = {
        "plain": plain,
        "traced": ours(pipeline, options, False),
        "traced with word maps": ours(pipeline, options, True),
        "attention-map-diffusers": attention_map_diffusers(pipeline, options),
        "DAAM": daam(pipeline, options, given.size // 8),
    }
    absent = [name for name, run in runs.items() if run is None]
    result = measured({name: run for name, run in runs.items() if run is not None}, given.rounds)
    title = f"{given.size} px, {given.steps} steps, {given.device}, {given.dtype}, {torch.get_num_threads()} threads"
    table = Table("", "÷ plain", "seconds", "same picture", title=title)
    for name, row in result.items():
        same = "yes" if row["same picture"] else "no"
        table.add_row(name, f"{row['ratio']:.2f}", f"{row['seconds']:.2f}", same)
    Console(width=100).print(table)
    if absent:
        print(f"Not installed: {', '.join(absent)}.")
    json.dump(result, sys.stdout)
    print()


if __name__ == "__main__":
    main()
