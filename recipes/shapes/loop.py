"""The common parts of the trainings: scenes in batches, a loop with checkpoints, a moving average."""

import hashlib
import json
import math
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from denoscope.worlds.shapes import scenes
from denoscope.worlds.shapes.scenes import Scene, caption, render

RENDERED = 1000  # pictures that one process renders at a time


def reduced() -> torch.autocast:
    """Use bfloat16 on a CPU with AVX-512; without, it takes twenty times as long as float32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=torch.backends.cpu.get_cpu_capability() == "AVX512")


def pictures(first: int, count: int) -> np.ndarray:
    """Render the scenes of the seeds first .. first + count − 1: uint8 (count, 64, 64, 3)."""
    return np.stack(
        [(render(Scene.random(seed)) * 255).round().astype(np.uint8) for seed in range(first, first + count)]
    )


def captions(first: int, count: int) -> list[str]:
    """Word the scenes of the same seeds, one caption each."""
    return [str(caption(Scene.random(seed), complete=False)) for seed in range(first, first + count)]


def cached(path: Path, make: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Return the tensor in a file; a missing file is made first, and appears whole."""
    if not path.exists():
        torch.save(make(), path.with_suffix(".tmp"))
        path.with_suffix(".tmp").rename(path)
    return torch.load(path, weights_only=True, mmap=True)


def mark(source: bytes) -> str:
    """Return eight letters that change with a source."""
    return hashlib.sha256(source).hexdigest()[:8]


DRAWN = mark(Path(scenes.__file__).read_bytes())


def cached_pictures(folder: Path, count: int) -> np.ndarray:
    """Return the pictures of the training seeds 0 .. count − 1, rendered once and stored beside the checkpoints."""

    def rendered() -> torch.Tensor:
        firsts = range(0, count, RENDERED)
        with ProcessPoolExecutor() as pool:
            parts = pool.map(pictures, firsts, (min(RENDERED, count - first) for first in firsts))
            return torch.from_numpy(np.concatenate(list(parts)))

    return cached(folder / f"pictures-{count}-{DRAWN}.pt", rendered).numpy()


def to_tensor(uint8: np.ndarray) -> torch.Tensor:
    """Convert uint8 (n, 64, 64, 3) to float (n, 3, 64, 64) in [−1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(uint8)).permute(0, 3, 1, 2).float() / 127.5 - 1


def cached_latents(folder: Path, vae, count: int) -> torch.Tensor:
    """Return the scaled latents of the training pictures, bfloat16 (count, 4, 16, 16), encoded once."""

    def encoded() -> torch.Tensor:
        data, parts = cached_pictures(folder, count), []
        with torch.inference_mode(), reduced():
            for chunk in np.array_split(data, max(1, count // 100)):
                parts.append((vae.encode(to_tensor(chunk)).latents * vae.config.scaling_factor).bfloat16())
        return torch.cat(parts)

    encoder = b"".join(weights.detach().numpy().tobytes() for weights in vae.encoder.parameters())
    return cached(folder / f"latents-{count}-{DRAWN}-{mark(encoder)}.pt", encoded)


class Average:
    """Exponential moving average of a module's parameters."""

    def __init__(self, module: torch.nn.Module, decay: float):
        self.decay = decay
        self.values = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: torch.nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, p in module.named_parameters():
            self.values[name].lerp_(p, 1 - decay)

    @torch.no_grad()
    def copy_to(self, module: torch.nn.Module) -> None:
        for name, p in module.named_parameters():
            p.copy_(self.values[name])


def learning_rate(progress: float, peak: float) -> float:
    """Warm up over the first 2 %, then a cosine down to 2 % of the peak."""
    if progress < 0.02:
        return peak * progress / 0.02
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


def gradients(parameters: list, loss_of, step: int, pool: ThreadPoolExecutor, workers: int) -> float:
    """Write the mean of the workers' gradients, each of its part of the batch, to `.grad`; return the loss.

    Each worker is a thread with one torch thread. On a shared machine these threads do not wait for one another at
    every operation; that waiting stalls torch's own threads there.
    """

    def part(worker: int):
        loss = loss_of(step, worker)
        return loss.item(), torch.autograd.grad(loss, parameters)

    losses, parts = zip(*pool.map(part, range(workers)), strict=True)
    for parameter, *of_parts in zip(parameters, *parts, strict=True):
        # In the parameter's own layout: the fused optimiser reads memory in order and would mix up any other.
        parameter.grad = torch.empty_like(parameter).copy_(sum(of_parts) / workers)
    return sum(losses) / workers


def train(module, loss_of, folder: Path, minutes: float, peak: float, decay=0.998, every=200, workers=2):
    """Run `loss_of(step, worker) -> loss` for a budget of minutes; return the averaged module.

    The schedule follows the minutes used, so a slow machine does fewer steps and still ends annealed. Every
    `every` steps the whole state goes to `folder/state.pt` by rename; the next call goes on from there.
    """
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    average, start, used, parameters = Average(module, decay), 0, 0.0, list(module.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=peak, weight_decay=1e-4, betas=(0.9, 0.99), fused=True)
    state_path = folder / "state.pt"
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        module.load_state_dict(state["module"])
        optimiser.load_state_dict(state["optimiser"])
        average.values, start, used = state["average"], state["step"], state["seconds"]
    step, losses, began, pool = start, [], time.monotonic() - used, ThreadPoolExecutor(workers)
    while (seconds := time.monotonic() - began) < 60 * minutes:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(seconds / (60 * minutes), peak)
        losses.append(gradients(parameters, loss_of, step, pool, workers))
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        step += 1
        average.update(module, step)
        if step % every == 0:
            _log(folder, step=step, seconds=round(seconds), loss=round(float(np.mean(losses[-every:])), 5))
            state = {"module": module.state_dict(), "optimiser": optimiser.state_dict(), "average": average.values}
            torch.save({**state, "step": step, "seconds": seconds}, folder / "state.tmp")
            (folder / "state.tmp").rename(state_path)
    average.copy_to(module)
    return module


def _log(folder: Path, **facts) -> None:
    line = json.dumps(facts)
    print(folder.name, line, flush=True)
    with (folder / "log.jsonl").open("a") as file:
        file.write(line + "\n")
