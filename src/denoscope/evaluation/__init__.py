"""Is it true: numbers that say whether to believe an explanation."""

from .intervals import Interval, bootstrap
from .localisation import auroc, centre_prior, object_masks, on_grid

__all__ = ["Interval", "auroc", "bootstrap", "centre_prior", "object_masks", "on_grid"]
