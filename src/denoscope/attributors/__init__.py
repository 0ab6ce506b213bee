"""Where: methods that turn a target into a map over positions.

`BUILT_IN` has one line for every method that comes with Denoscope. Importing this package loads no torch, so that a
command knows the names before anything heavy is imported. The modules are imported when methods are listed or made.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Literal

Needs = Literal["label", "words", "concepts"]
"""The thing that a method must know besides the sequence: a class label, the words of a prompt, or other words."""


@dataclass(frozen=True)
class BuiltIn:
    """A method's module, and the facts of its class that are needed before the module is imported."""

    module: str
    needs: Needs | None = None
    every_step: bool = False


BUILT_IN = {
    "concepts": BuiltIn("concepts", needs="concepts"),
    "df-cam": BuiltIn("cam"),
    "df-cam-reference": BuiltIn("cam"),
    "df-rise": BuiltIn("rise"),
    "df-rise-contrast": BuiltIn("rise"),
    "df-rise-reference": BuiltIn("rise"),
    "gradient-shap": BuiltIn("gradients", needs="label"),
    "integrated-gradients": BuiltIn("gradients", needs="label"),
    "lime": BuiltIn("lime"),
    "occlusion": BuiltIn("occlusion", needs="label"),
    "relevance": BuiltIn("relevance", needs="words", every_step=True),
    "relevance-reference": BuiltIn("relevance", needs="words", every_step=True),
    "words": BuiltIn("words", needs="words"),
}


def load_built_in() -> None:
    """Import the modules of all built-in methods, so that their classes register."""
    for module in dict.fromkeys(built_in.module for built_in in BUILT_IN.values()):
        import_module(f".{module}", __name__)
