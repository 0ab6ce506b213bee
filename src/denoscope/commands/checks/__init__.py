"""The checks of `denoscope evaluate`, a module each; importing the package registers them in this order."""

from . import localisation, games, infidelity, resampling, stability, sanity, attacks  # isort: skip

__all__ = ["attacks", "games", "infidelity", "localisation", "resampling", "sanity", "stability"]
