"""Is it true: numbers that say whether to believe an explanation."""

from .ablations import ablation, similarities
from .baselines import BASELINES, centre_ranking, random_ranking, sample_magnitude
from .faithfulness import GAMES, area, feature_distance, games
from .intervals import Interval, bootstrap
from .localisation import auroc, centre_prior, masks_of_things, object_masks, on_grid

__all__ = [
    "BASELINES",
    "GAMES",
    "Interval",
    "ablation",
    "area",
    "auroc",
    "bootstrap",
    "centre_prior",
    "centre_ranking",
    "feature_distance",
    "games",
    "masks_of_things",
    "object_masks",
    "on_grid",
    "random_ranking",
    "sample_magnitude",
    "similarities",
]
