"""Networks with trained weights: an image classifier of transformers, CLIP with texts, the offline ImageNet network."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn.functional import normalize

from ..errors import InputError, ModelError
from ..recording.loading import Repository, Wanted, bundled_folder, quiet_libraries, settled
from .encoders import BUNDLED_CLIP
from .imagenet import packaged_imagenet
from .labels import label_texts, quoted
from .networks import Network, refuse_options
from .preprocessing import CentreCrop, OwnProcessor


def pretrained_network(name: str, labels: Any, place: torch.device, precision: torch.dtype) -> Network:
    """Load a network by its name, hub id or folder; raises `ModelError` for a network that cannot be loaded."""
    if name in LOADERS:
        return LOADERS[name](labels, place, precision)
    return _of_repository(Repository.of(name, _wanted()), labels, place, precision)


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
            output = clip.text_model(input_ids=words["input_ids"], attention_mask=words["attention_mask"])
            self.register_buffer("texts", normalize(clip.text_projection(output.pooler_output), dim=-1))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        pictures = normalize(self.projection(self.vision(pixel_values=inputs).pooler_output), dim=-1)
        logits: torch.Tensor = self.scale.exp() * pictures @ self.texts.T
        return logits


def _of_repository(home: Repository, labels: Any, place: torch.device, precision: torch.dtype) -> Network:
    """Load the kind of model that config.json names: an image classifier, or CLIP with texts."""
    with quiet_libraries():
        from transformers import AutoConfig

        config = home.read(AutoConfig)
        architectures = list(config.architectures or [])
        if any("ForImageClassification" in architecture for architecture in architectures):
            return _image_classifier(home, config, labels, place, precision)
        if "CLIPModel" in architectures:
            return _zero_shot(home, config, labels, place, precision)
    raise ModelError(
        f'"{home.name}" is not a classifier that Denoscope can read: its config.json names '
        f"{', '.join(architectures) or 'no architecture'}. Allowed are an image classifier of transformers "
        "(...ForImageClassification), and a CLIPModel together with labels."
    )


def _image_classifier(
    home: Repository, config: Any, labels: Any, place: torch.device, precision: torch.dtype
) -> Network:
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    _refuse_labels(labels, home.name)
    module = settled(home.module(AutoModelForImageClassification, precision), place, precision)
    names = [str(config.id2label.get(number, f"class {number}")) for number in range(config.num_labels)]
    return Network(home.name, names, module, OwnProcessor(home.read(AutoImageProcessor)))


def _zero_shot(home: Repository, config: Any, labels: Any, place: torch.device, precision: torch.dtype) -> Network:
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    texts = label_texts(labels, home.name)
    _refuse_repeated(texts)
    words = home.read(AutoTokenizer)(texts, padding=True, return_tensors="pt")
    _refuse_long(texts, words["attention_mask"].sum(dim=1), config.text_config.max_position_embeddings, home.name)
    clip = settled(home.module(CLIPModel, precision), place, precision)
    module = settled(ZeroShot(clip, words.to(place)), place, precision)
    return Network(home.name, texts, module, OwnProcessor(home.read(AutoImageProcessor)))


def _refuse_repeated(texts: list[str]) -> None:
    for text in texts:
        if texts.count(text) > 1:
            raise InputError(
                f"The label {quoted(text)} is given twice, so each would get half of its probability. Give it once."
            )


def _refuse_long(texts: list[str], lengths: torch.Tensor, limit: int, name: str) -> None:
    longest = int(lengths.argmax())
    if lengths[longest] > limit:
        raise InputError(
            f"The label {quoted(texts[longest])} has {int(lengths[longest])} tokens, and the classifier "
            f'"{name}" reads at most {limit}, its two special ones included. Use a shorter text.'
        )


def _refuse_labels(labels: Any, name: str) -> None:
    reason = f'"{name}" has its own. They are for CLIP models and for a torch.nn.Module of yours'
    refuse_options({"labels": labels}, reason)


def _imagenet(labels: Any, place: torch.device, precision: torch.dtype) -> Network:
    """Load EfficientNet-Lite0 (Tan and Le 2019); inputs are (pixel − 127) / 128 for pixels 0 to 255."""
    _refuse_labels(labels, "imagenet")
    module, names = packaged_imagenet()
    preprocess = CentreCrop((224, 224), (127 / 255,) * 3, (128 / 255,) * 3, crop=224 / 256)
    return Network("imagenet", names, settled(module, place, precision), preprocess)


def _bundled_clip(labels: Any, place: torch.device, precision: torch.dtype) -> Network:
    """Load the bundled CLIP, trained on pictures and captions of the shapes world."""
    home = Repository(BUNDLED_CLIP, bundled_folder("clip"), {}, _wanted())
    return _of_repository(home, labels, place, precision)


LOADERS: dict[str, Callable[[Any, torch.device, torch.dtype], Network]] = {
    "imagenet": _imagenet,
    BUNDLED_CLIP: _bundled_clip,
}
"""Loaders of the networks that have a name of their own, by that name."""


def _wanted() -> Wanted:
    kinds = "image classifiers and CLIP models"
    return Wanted("classifier", kinds, "microsoft/resnet-18", tuple(LOADERS), "a torch.nn.Module")
