"""Where: methods that turn a target into a map over positions. Importing the package registers every method."""

from . import cam, gradients, lime, occlusion, relevance, rise, words

__all__ = ["cam", "gradients", "lime", "occlusion", "relevance", "rise", "words"]
