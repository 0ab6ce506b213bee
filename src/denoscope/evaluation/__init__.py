"""Is it true: numbers that say whether to believe an explanation."""

from .intervals import Interval, bootstrap
from .localisation import auroc, centre_prior, on_grid

__all__ = ["Interval", "auroc", "bootstrap", "centre_prior", "on_grid"]
