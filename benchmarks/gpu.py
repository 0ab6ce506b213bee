"""Real size on one card: time, speed and memory of recording and of every method, with random weights.

    make bench-gpu                                       # cuda if it is there, under five minutes
    python benchmarks/gpu.py --small --device cpu        # the same code on networks of a tenth, on a CPU
    python benchmarks/gpu.py --only sdxl --minutes 10 --out out/gpu

The denoisers and decoders have the true shapes (Stable Diffusion 1.5, SDXL, Stable Diffusion 3 medium, Flux with 8
blocks), random weights, and half precision on a GPU; text encoders have the true widths and two layers, since a text is
read once. Weights do not change what a call costs.

For each: the plain call, recorded, and recorded with word maps; the raw denoiser's guided samples a second at its best
batch, and DF-RISE's masks a second; seconds and peak memory of DF-CAM, relevance, concepts, and of Integrated Gradients
and Occlusion through denoiser and decoder. Every line is printed when it is known; OUT has table.json and table.md,
also of a run that was stopped by --minutes. Peak memory on a CPU is that of the process: only its growth counts.
"""

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
)

import denoscope
from denoscope import ClassScore, Concepts, DFCam, DFRise, IntegratedGradients, Occlusion, Relevance, Words
from denoscope.recording.loading import bundled_folder

PROMPT = "a large striped red circle on a white background"
LABELS = ["a red circle", "a blue square"]


@dataclass(frozen=True)
class Size:
    """One network: how it is built, its picture in pixels and its steps; `small` is for a CPU."""

    build: Callable[[bool], Any]
    pixels: tuple[int, int]
    steps: tuple[int, int]
    call: Mapping[str, Any] = field(default_factory=dict)

    def options(self, small: bool) -> dict[str, Any]:
        side = self.pixels[small]
        return {"height": side, "width": side, "num_inference_steps": self.steps[small], **self.call}


def words_of(tokens: int = 77) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(bundled_folder("shapes") / "tokenizer", model_max_length=tokens)


def clip(width: int, projected: int | None = None) -> Any:
    """Return a CLIP text encoder of two layers."""
    words = words_of()
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=4 * width,
        num_attention_heads=max(1, width // 64),
        num_hidden_layers=2,
        max_position_embeddings=77,
        projection_dim=projected or width,
        **{f"{name}_token_id": getattr(words, f"{name}_token_id") for name in ("bos", "eos", "pad")},
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def autoencoder(channels: int, small: bool, **options: Any) -> diffusers.AutoencoderKL:
    """Return Stable Diffusion's autoencoder."""
    width = 16 if small else 128
    return diffusers.AutoencoderKL(
        block_out_channels=(width, 2 * width, 4 * width, 4 * width),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=channels,
        norm_num_groups=min(32, width),
        **options,
    )


def stable_diffusion(small: bool) -> Any:
    width, text = (32, 64) if small else (320, 768)
    return diffusers.StableDiffusionPipeline(
        vae=autoencoder(4, small),
        text_encoder=clip(text),
        tokenizer=words_of(),
        unet=diffusers.UNet2DConditionModel(
            sample_size=64,
            block_out_channels=(width, 2 * width, 4 * width, 4 * width),
            cross_attention_dim=text,
            attention_head_dim=8,
        ),
        scheduler=diffusers.DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_xl(small: bool) -> Any:
    width, first, second = (32, 32, 64) if small else (320, 768, 1280)
    layers = (1, 1, 2) if small else (1, 2, 10)
    return diffusers.StableDiffusionXLPipeline(
        vae=autoencoder(4, small, scaling_factor=0.13025),
        text_encoder=clip(first),
        text_encoder_2=clip(second, second),
        tokenizer=words_of(),
        tokenizer_2=words_of(),
        unet=diffusers.UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(width, 2 * width, 4 * width),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=layers,
            attention_head_dim=(1, 2, 4) if small else (5, 10, 20),
            cross_attention_dim=first + second,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=32 if small else 256,
            projection_class_embeddings_input_dim=6 * (32 if small else 256) + second,
        ),
        scheduler=diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear", steps_offset=1),
    )


def stable_diffusion_3(small: bool) -> Any:
    heads, layers, first, second = (4, 2, 32, 64) if small else (24, 24, 768, 1280)
    joint = 96 if small else 4096
    return diffusers.StableDiffusion3Pipeline(
        vae=autoencoder(
            16, small, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False
        ),
        text_encoder=clip(first, first),
        text_encoder_2=clip(second, second),
        text_encoder_3=None,
        tokenizer=words_of(),
        tokenizer_2=words_of(),
        tokenizer_3=None,
        transformer=diffusers.SD3Transformer2DModel(
            sample_size=128,
            num_layers=layers,
            num_attention_heads=heads,
            attention_head_dim=16 if small else 64,
            joint_attention_dim=joint,
            caption_projection_dim=heads * (16 if small else 64),
            pooled_projection_dim=first + second,
            pos_embed_max_size=192,
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def flux(small: bool) -> Any:
    heads, size, joint, blocks = (4, 16, 64, (1, 1)) if small else (24, 128, 4096, (3, 5))
    words = words_of(512)
    encoder = T5Config(vocab_size=len(words), d_model=joint, d_kv=64, d_ff=joint, num_layers=2, num_heads=joint // 64)
    return diffusers.FluxPipeline(
        vae=autoencoder(
            16, small, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False
        ),
        text_encoder=clip(64 if small else 768),
        tokenizer=words_of(),
        text_encoder_2=T5EncoderModel(encoder).eval(),
        tokenizer_2=words,
        transformer=diffusers.FluxTransformer2DModel(
            num_layers=blocks[0],
            num_single_layers=blocks[1],
            attention_head_dim=size,
            num_attention_heads=heads,
            joint_attention_dim=joint,
            pooled_projection_dim=64 if small else 768,
            guidance_embeds=True,
            axes_dims_rope=(4, 6, 6) if small else (16, 56, 56),
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )


SIZES = {
    "Stable Diffusion 1.5": Size(stable_diffusion, (512, 128), (20, 3)),
    "SDXL": Size(stable_diffusion_xl, (1024, 128), (10, 3)),
    "Stable Diffusion 3 medium": Size(stable_diffusion_3, (1024, 128), (10, 3)),
    "Flux, 8 blocks": Size(flux, (1024, 128), (10, 3), {"max_sequence_length": 64}),
}


class Clock:
    """Seconds and peak memory of runs on a device."""

    def __init__(self, device: torch.device):
        self.device = device

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, run: Callable[[], object], rounds: int) -> float:
        """Return the median of some runs after one that does not count."""
        run()
        times = []
        for _ in range(rounds):
            self.wait()
            start = time.perf_counter()
            run()
            self.wait()
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    def once(self, run: Callable[[], object]) -> dict[str, float]:
        """Return the seconds of one run, and its peak memory above what was held before, in GB."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        before = self.held()
        self.wait()
        start = time.perf_counter()
        run()
        self.wait()
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "GB": (self.peak() - before) / 1e9, "GB in all": self.peak() / 1e9}

    def held(self) -> float:
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else self.peak()

    def peak(self) -> float:
        if self.device.type == "cuda":
            return float(torch.cuda.max_memory_allocated(self.device))
        unit = 1 if sys.platform == "darwin" else 1024
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def recording(pipeline: Any, options: Mapping[str, Any], clock: Clock, rounds: int) -> dict[str, float]:
    """Return seconds of the plain call, recorded, and recorded with word maps, and the ratios."""
    model = denoscope.load(pipeline)

    def plain() -> object:
        return pipeline(PROMPT, generator=torch.Generator().manual_seed(1), **options)

    def traced() -> object:
        return model.trace(PROMPT, seed=1, **options)

    def with_words() -> object:
        with Words().recording(model) as heard:
            trace = model.trace(PROMPT, seed=1, **options)
        return heard.maps(trace)

    seconds = {name: clock.seconds(run, rounds) for name, run in (("plain", plain), ("traced", traced))}
    seconds["with words"] = clock.seconds(with_words, rounds)
    ratios = {f"{name} ÷ plain": seconds[name] / seconds["plain"] for name in ("traced", "with words")}
    return {**{f"{name}, s": value for name, value in seconds.items()}, **ratios}


def speed(trace: denoscope.Trace, clock: Clock, masks: int, batches: Sequence[int]) -> dict[str, float]:
    """Return samples a second of the raw denoiser at its best batch, and of DF-RISE's forms, and their ratios."""
    step = trace[len(trace) // 2]
    best, batch = 0.0, 1
    for size in batches:
        samples = step.sample.repeat(size, *[1] * (step.sample.ndim - 1))
        try:
            with torch.no_grad():
                rate = size / clock.seconds(lambda samples=samples: step.predict(samples), 2)
        except torch.OutOfMemoryError:
            break
        if rate > best:
            best, batch = rate, size
    rates = {"raw, samples a second": best, "raw, best batch": float(batch)}
    for name, method in (("contrast", DFRise(masks)), ("paper", DFRise.paper(masks))):
        rates[f"DF-RISE {name}, masks a second"] = masks / clock.seconds(
            lambda method=method: method(trace, [step.index]), 1
        )
        rates[f"DF-RISE {name} ÷ raw"] = rates[f"DF-RISE {name}, masks a second"] / best
    return rates


def methods_of(trace: denoscope.Trace, small: bool) -> dict[str, Callable[[], object]]:
    """Return each method at one step."""
    at = [len(trace) // 2]
    channels, *sides = trace[0].as_maps(trace[0].sample).shape[1:]
    windows = {"sliding_window_shapes": (channels, *(side // 3 for side in sides))} if small else {}
    target = ClassScore(denoscope.load_classifier("shapes", LABELS, device=trace[0].sample.device), LABELS[0])
    return {
        "DF-CAM": lambda: DFCam()(trace, at),
        "words, replayed": lambda: Words()(trace, at),
        "relevance": lambda: Relevance()(trace, at),
        "concepts": lambda: Concepts(("red circle", "green triangle"))(trace, at),
        "Integrated Gradients, 8 points": lambda: IntegratedGradients(target, n_steps=2 if small else 8)(trace, at),
        "Occlusion": lambda: Occlusion(target, **windows)(trace, at),
    }


def measured(name: str, size: Size, given: argparse.Namespace, say: Callable[[str, str, Any], None]) -> None:
    """Measure one network, line by line."""
    device = torch.device(given.device)
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    clock, options = Clock(device), size.options(given.small)
    torch.manual_seed(0)
    with torch.device(device):
        pipeline = size.build(given.small)
    if "Flux" in name and dtype == torch.float16:
        dtype = torch.bfloat16
    pipeline.to(device, dtype)
    pipeline.set_progress_bar_config(disable=True)
    say(name, "parameters", sum(p.numel() for p in denoscope.load(pipeline).denoiser.parameters()))
    say(name, "recording", recording(pipeline, options, clock, given.rounds))
    trace = denoscope.load(pipeline).trace(PROMPT, seed=1, **options)
    batches = (1, 2) if given.small else (1, 2, 4, 8, 16, 32, 64)
    say(name, "speed", speed(trace, clock, 8 if given.small else given.masks, batches))
    for label, run in methods_of(trace, given.small).items():
        try:
            say(name, label, clock.once(run))
        except (denoscope.DenoscopeError, torch.OutOfMemoryError) as error:
            say(name, label, f"{type(error).__name__}: {str(error)[:200]}")


def table(results: Mapping[str, Mapping[str, Any]], head: str) -> str:
    """Return the results as a table in Markdown, a column for each network."""
    rows: dict[str, dict[str, str]] = {}
    for name, lines in results.items():
        for label, value in lines.items():
            parts = value if isinstance(value, dict) else {"": value}
            for part, number in parts.items():
                text = f"{number:.3g}" if isinstance(number, float) else str(number)
                rows.setdefault(", ".join(filter(None, (label, part))), {})[name] = text
    names = list(results)
    lines = [head, "", f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    lines += [f"| {label} | {' | '.join(cells.get(name, '') for name in names)} |" for label, cells in rows.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="networks of a tenth, for a CPU")
    parser.add_argument("--only", default="", help="part of a network's name")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--masks", type=int, default=128)
    parser.add_argument("--minutes", type=float, default=5.0, help="no new network is begun after so long")
    parser.add_argument("--out", type=Path, default=Path("out/gpu"))
    given = parser.parse_args()
    given.small = given.small or given.device == "cpu"
    device = torch.device(given.device)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    head = f"{card}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}{', small networks' if given.small else ''}"
    print(head, flush=True)
    results: dict[str, dict[str, Any]] = {}
    start = time.perf_counter()
    given.out.mkdir(parents=True, exist_ok=True)

    def say(name: str, label: str, value: Any) -> None:
        results.setdefault(name, {})[label] = value
        shown = {k: round(v, 3) for k, v in value.items()} if isinstance(value, dict) else value
        print(f"{time.perf_counter() - start:6.1f} s  {name}: {label}: {shown}", flush=True)
        (given.out / "table.json").write_text(json.dumps({"head": head, "results": results}, indent=2))
        (given.out / "table.md").write_text(table(results, head))

    for name, size in SIZES.items():
        if given.only.lower() in name.lower():
            if time.perf_counter() - start > 60 * given.minutes:
                print(f"{name}: not begun, {given.minutes:g} minutes are over.", flush=True)
                continue
            measured(name, size, given, say)
            if device.type == "cuda":
                torch.cuda.empty_cache()
    print(given.out / "table.md")


if __name__ == "__main__":
    main()
