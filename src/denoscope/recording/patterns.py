"""Names of layers: dotted paths and patterns of them."""

import difflib
import re
from collections.abc import Iterable, Sequence

import torch

from ..errors import InputError


def layers_of(denoiser: torch.nn.Module, patterns: Sequence[str]) -> tuple[str, ...]:
    """Return the dotted paths of the modules that patterns name; raises as `matching` does.

    Containers that cannot be called, such as a ModuleList, are left out.
    """
    modules = dict(denoiser.named_modules())
    paths = [path for path, module in modules.items() if path and type(module).forward is not torch.nn.Module.forward]
    return matching(paths, patterns, f"this {type(denoiser).__name__}")


def matching(paths: Iterable[str], patterns: Sequence[str], owner: str) -> tuple[str, ...]:
    """Return the dotted paths that one of the patterns names, in the order of the paths.

    >>> matching(["conv_in", "down.0.attn", "down.1.attn", "mid.attn"], ["**.attn", "!mid.*"], "this model")
    ('down.0.attn', 'down.1.attn')

    A pattern is a path with wildcards: `*` any part of the path between dots, `**` any number of parts, `{a,b}` one or
    the other; behind `!` it takes away. Raises `InputError`, with the nearest paths, for a pattern that names nothing.
    """
    paths = list(paths)
    wanted = [pattern for pattern in patterns if not pattern.startswith("!")]
    unwanted = [_glob(pattern[1:]) for pattern in patterns if pattern.startswith("!")]
    for pattern in wanted:
        if not any(map(_glob(pattern).fullmatch, paths)):
            raise InputError(_no_layer(pattern, paths, owner))
    named = [path for path in paths if any(_glob(pattern).fullmatch(path) for pattern in wanted)]
    layers = tuple(path for path in named if not any(pattern.fullmatch(path) for pattern in unwanted))
    if not layers:
        raise InputError(
            f"The layer patterns name no layer of {owner}: {', '.join(patterns) or 'none'}. Give at least one that "
            "names a layer."
        )
    return layers


WILDCARDS = {"**.": r"(?:.*\.)?", "**": ".*", "*": r"[^.]*", "{": "(?:", "}": ")", ",": "|"}


def _glob(pattern: str) -> re.Pattern[str]:
    """Return the regular expression of a pattern; raises `InputError` for braces that do not match."""
    parts = re.findall(r"\*\*\.|\*\*|[*{},]|[^*{},]+", pattern)
    try:
        return re.compile("".join(WILDCARDS.get(part) or re.escape(part) for part in parts))
    except re.error:
        raise InputError(
            f'"{pattern}" is not a pattern of layers: its braces do not match. Write {{a,b}} for one or the other.'
        ) from None


def _no_layer(pattern: str, paths: Sequence[str], owner: str) -> str:
    near = difflib.get_close_matches(pattern, paths, n=3)
    hint = f"Near misses: {', '.join(near)}. " if near else ""
    return (
        f'There is no layer "{pattern}" in {owner}. {hint}Allowed are dotted paths and patterns of them, such as '
        f'"down_blocks.*.resnets.*"; model.layers() lists all {len(paths)}.'
    )
