"""What each replay engine costs: seconds ÷ those of the raw denoiser at the same batch.

On the bundled model, and on the same model under a ControlNet of random weights, whose direct engine is refused. The
raw denoiser is called with both halves of guidance, its recorded conditioning and, under the ControlNet, behind the
ControlNet. Runs take turns, so that a busy moment meets both; medians of the ratios.

    python benchmarks/engines.py [--batches 1,16,64] [--rounds 9] [--step 20]
"""

import argparse
import json
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from run import PROMPT, ratio_of

import denoscope
from denoscope.recording.engines import BATCHES, DIRECT, ONE_BY_ONE
from denoscope.recording.steps import Step

STEPS = 30
Predict = Callable[[torch.Tensor], torch.Tensor]


def bundled() -> Any:
    """Return a trace of the bundled model."""
    return denoscope.load("shapes").trace(PROMPT, seed=4, num_inference_steps=STEPS)


def controlled() -> Any:
    """Return a trace of the bundled model under a ControlNet with random weights."""
    own = denoscope.load("shapes").pipeline
    torch.manual_seed(0)
    control = diffusers.ControlNetModel.from_unet(own.unet, conditioning_embedding_out_channels=(8, 8, 8)).eval()
    for block in (*control.controlnet_down_blocks, control.controlnet_mid_block):
        torch.nn.init.normal_(block.weight, std=0.02)  # zeros at first, which would control nothing
    parts = {name: part for name, part in own.components.items() if name != "image_encoder"}
    pipeline = diffusers.StableDiffusionControlNetPipeline(**parts, controlnet=control, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    return denoscope.load(pipeline).trace(PROMPT, image=picture, height=64, width=64, seed=4, num_inference_steps=STEPS)


def raw(step: Step, n: int) -> Predict:
    """Return the denoiser with both halves of guidance, behind its ControlNet if there is one."""
    assert step.run is not None
    answer = step.run.answer(step.index, step.run.recorded(step.index).sample)
    unet = next(call for call in answer.calls if call.name == "unet")
    text, time = unet.kwargs["encoder_hidden_states"].repeat_interleave(n, dim=0), unet.args[1]
    control = next((call for call in answer.calls if call.name == "controlnet"), None)

    def predict(samples: torch.Tensor) -> torch.Tensor:
        x, residuals = torch.cat([samples] * 2), {}
        if control is not None:
            hint = control.kwargs["controlnet_cond"][:1].expand(2 * n, -1, -1, -1)
            down, mid = control.module(x, time, encoder_hidden_states=text, controlnet_cond=hint, return_dict=False)
            residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        u, c = unet.module(x, time, encoder_hidden_states=text, return_dict=False, **residuals)[0].chunk(2)
        return u + 7.5 * (c - u)

    return predict


def engines(step: Step) -> dict[str, Predict]:
    """Return the engines that answer for a step, each on its own."""
    run, index = step.run, step.index
    assert run is not None
    _ = step.engine  # checked before it is timed
    found: dict[str, Predict] = {}
    if step.asks_directly and step.direct is not None:
        found[DIRECT] = step.direct
    if run.in_batches(index):
        found[BATCHES] = lambda samples: run.predict(index, samples, None)
    found[ONE_BY_ONE] = lambda samples: torch.cat([run.predict(index, one[None], None) for one in samples])
    return found


@torch.no_grad()
def measured(step: Step, batches: list[int], rounds: int) -> dict[str, Any]:
    """Return time ÷ the raw denoiser's for each engine and batch."""
    results: dict[str, Any] = {}
    for n in batches:
        samples = step.sample.repeat(n, 1, 1, 1)
        samples = samples + 0.1 * torch.randn(samples.shape, generator=torch.Generator().manual_seed(2))
        plain = raw(step, n)
        for name, engine in engines(step).items():
            row = ratio_of(lambda: engine(samples), lambda: plain(samples), rounds)  # noqa: B023  (called at once)
            apart = float((engine(samples) - plain(samples)).abs().max() / plain(samples).abs().max())
            results[f"{name}, batch {n}"] = {**row, "difference": apart}
            print(f"  {name:22} batch {n:3}: {row['ratio']:.2f} (predictions {apart:.0e} apart)", flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", default="1,16,64")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--step", type=int, default=20)
    options = parser.parse_args()
    batches, results = [int(n) for n in options.batches.split(",")], {}
    for name, trace in (("bundled model", bundled()), ("bundled model, ControlNet", controlled())):
        print(f"{name}, step {options.step} of {STEPS}: {trace[options.step].engine}")
        results[name] = measured(trace[options.step], batches, options.rounds)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
