"""The names of methods and models, known without loading them: a wrong one is refused before torch is imported."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from ..attributors import BUILT_IN
from ..errors import InputError, ModelError, did_you_mean, shown_value
from .job import fitting

BUNDLED_MODELS = ("shapes",)
LAYER_METHODS = ("df-cam", "df-cam-reference")
"""The methods of runs whose layers can be chosen."""
METHOD_OF = {"phrases": "words", "half": "words", "special_tokens": "words", "concepts": "concepts"}
"""The options about words, and the built-in method that takes each."""
HALVES = ("conditional", "unconditional")
DTYPES = ("float32", "float16", "bfloat16")


def methods_for_runs() -> tuple[str, ...]:
    """Return the names of the methods that explain a run without a label, registered ones of the user's among them."""
    built_in = [name for name, facts in BUILT_IN.items() if facts.needs != "label"]
    return (*built_in, *_registered_by_user())


def methods_for_labels() -> tuple[str, ...]:
    """Return the names of the methods that explain a label."""
    return tuple(name for name, facts in BUILT_IN.items() if facts.needs == "label")


def _registered_by_user() -> list[str]:
    """Return the registered names that are not built in: none can be there before the registry is loaded."""
    registry = sys.modules.get("denoscope.attributors.base")
    return [] if registry is None else [name for name in registry.list_methods() if name not in BUILT_IN]


def check_methods(methods: Sequence[str], allowed: Sequence[str], purpose: str = "") -> None:
    """Raise `InputError` unless there is at least one method, each is there once, and each is allowed."""
    for name in methods:
        if name not in allowed:
            raise InputError(f'There is no method "{name}"{purpose}. {did_you_mean(name, allowed)}')
    if not methods or len(set(methods)) < len(methods):
        raise InputError(f"The methods given are: {', '.join(methods) or 'none'}. Give at least one, and each once.")


def methods_with(options: Sequence[str], methods: tuple[str, ...] | None, default: tuple[str, ...]) -> tuple[str, ...]:
    """Return the methods that run, given the names of the options about words that were typed.

    >>> methods_with(["phrases"], None, ("df-rise",)), methods_with(["concepts"], ("words",), ("df-rise",))
    (('words', 'df-rise'), ('concepts', 'words'))

    `methods` None are the default ones. A method that an option adds comes first: it is fast, and a text that it cannot
    explain is refused before the slow ones. Concepts are always added, words to the default methods only. Raises
    `InputError` for an option that none of the methods takes.
    """
    added = [METHOD_OF[option] for option in options if methods is None or METHOD_OF[option] == "concepts"]
    chosen = default if methods is None else methods
    running = (*(name for name in dict.fromkeys(added) if name not in chosen), *chosen)
    for option in options:
        if not any(_takes(name, option) for name in running):
            raise InputError(
                f'The option "{option}" belongs to the method {METHOD_OF[option]}, and the methods given are: '
                f"{', '.join(chosen) or 'none'}. Add {METHOD_OF[option]} to them, or leave the option out."
            )
    return running


def _takes(method: str, option: str) -> bool:
    """Return True if a method has an option about words; methods of the user's are asked."""
    if method in BUILT_IN:
        return METHOD_OF[option] == method
    return option in fitting(method, {option: None})


def check_texts(name: str, texts: Sequence[str] | None) -> None:
    """Raise `InputError` unless there is at least one text, each is there once, and each can be typed; None is none."""
    if texts is None:
        return
    is_sequence = isinstance(texts, (tuple, list)) and all(isinstance(text, str) for text in texts)
    if not is_sequence or not texts or not all(text.strip() for text in texts) or len(set(texts)) < len(texts):
        raise InputError(
            f'{name} is {shown_value(texts)}. Give at least one text, and each once: "red circle; blue square" on the '
            'command line, ("red circle", "blue square") in Python.'
        )
    if any(";" in text for text in texts):
        raise InputError(
            f"{name} is {shown_value(texts)}. Leave out the semicolon in a text: semicolons stand between texts."
        )


def check_half(half: str | None) -> None:
    """Raise `InputError` for a half of guidance that there is not; None is the method's own default."""
    if half is not None and half not in HALVES:
        raise InputError(f'half is "{half}". {did_you_mean(str(half), HALVES)}')


def check_concepts(methods: Sequence[str], concepts: Sequence[str] | None) -> None:
    """Raise `InputError` for concept maps without a concept."""
    if "concepts" in methods and concepts is None:
        raise InputError(
            'The method concepts maps things by their names, and no name was given. Give them as option "concepts", '
            'such as "sky"; on the command line semicolons stand between several, as in "sky; fur".'
        )


def check_layers(layers: Sequence[str], methods: Sequence[str] | None = None) -> None:
    """Raise `InputError` for layers that are no patterns, and for layers without a method that looks into some."""
    if isinstance(layers, str) or not all(isinstance(pattern, str) and pattern for pattern in layers):
        raise InputError(
            f"layers is {shown_value(layers)}. Give a tuple of paths or patterns, such as "
            '("up_blocks.*.resnets.*",); denoscope.load(...).layers() lists the paths.'
        )
    if layers and methods is not None and not set(methods) & set(LAYER_METHODS):
        raise InputError(
            f"layers is {', '.join(layers)}, and none of the methods looks into layers that can be chosen: "
            f"{', '.join(methods) or 'none'}. Add {' or '.join(LAYER_METHODS)}, or leave the layers out."
        )


def check_model(model: str) -> None:
    """Raise `ModelError` for a name that can be no model: not bundled, not a folder, and not written as a hub id."""
    if not model.strip() or model in BUNDLED_MODELS or Path(model).expanduser().exists():
        return  # an empty name and a wrong folder are refused where models are loaded
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", model):
        raise ModelError(
            f'There is no model and no folder "{model}". {did_you_mean(model, BUNDLED_MODELS)} Besides: a folder saved '
            "by save_pretrained, or a hub id such as stable-diffusion-v1-5/stable-diffusion-v1-5."
        )


def check_dtype(dtype: str | None) -> None:
    """Raise `ModelError` for the name of a dtype that weights cannot have; None is the model's own."""
    if dtype is not None and dtype not in DTYPES:
        raise ModelError(f'A model cannot have the dtype "{dtype}". {did_you_mean(dtype, DTYPES)}')
