"""One family: how its pipeline is built, how it is called, and the layouts it stands for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Family:
    """A small pipeline: `build()` makes it, `call()` returns the named arguments of its call, without a generator.

    `layouts` are the traits that it stands for: "image", "img2img", "inpaint", "controlnet", "adapter", "pag",
    "rescale", "true-cfg", "two-denoisers", "split-output", "packed", "video", "pixel", "class", "no-text".
    """

    build: Callable[[], Any]
    call: Callable[[], Mapping[str, Any]]
    layouts: frozenset[str] = field(default_factory=frozenset)
