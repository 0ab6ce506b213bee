"""Is it true: numbers that say whether to believe an explanation.

Every number is a pure function first; `METRICS` keeps the range of its values, whether higher is better, and its
source.
"""

from ..worlds.shapes.judge import masks_of_things, object_masks
from .ablations import ablation, similarities
from .attacks import Attack, EuclideanBall, MaximumBall, attacks, contrast_map, gradient_map
from .baselines import BASELINES, Baseline, centre_ranking, random_ranking, sample_magnitude
from .diagnosis import Signature, diagnose, indistinguishable, morans_i, shuffled_level
from .frequencies import band_agreement, band_powers, coarse_to_fine, emergence
from .games import GAMES, area, feature_distance, games
from .infidelity import (
    GaussianNoise,
    Probe,
    Squares,
    infidelities,
    infidelity,
    infidelity_beyond_area,
    relative_infidelity,
)
from .intervals import Interval, bootstrap, over_scenes, paired
from .localisation import (
    auroc,
    average_precision,
    best_iou,
    centre_prior,
    iou,
    localisation,
    mass_inside,
    on_grid,
    pointing,
    spearman,
)
from .metrics import METRICS, Metric, metric, metrics_of
from .resampling import OfFeatures, Resampling, WithinMask, advantage, resampling, root_mean_square
from .sanity import (
    ConstantTime,
    ShuffledTime,
    above_chance,
    has_fallen,
    prompt_randomisation,
    random_level,
    stages_of,
    time_agreement,
    told,
    weight_randomisation,
)
from .stability import agreement, neighbour_agreement, noise_agreement, seed_agreement

__all__ = [
    "BASELINES",
    "GAMES",
    "METRICS",
    "Attack",
    "Baseline",
    "ConstantTime",
    "EuclideanBall",
    "GaussianNoise",
    "Interval",
    "MaximumBall",
    "Metric",
    "OfFeatures",
    "Probe",
    "Resampling",
    "ShuffledTime",
    "Signature",
    "Squares",
    "WithinMask",
    "ablation",
    "above_chance",
    "advantage",
    "agreement",
    "area",
    "attacks",
    "auroc",
    "average_precision",
    "band_agreement",
    "band_powers",
    "best_iou",
    "bootstrap",
    "centre_prior",
    "centre_ranking",
    "coarse_to_fine",
    "contrast_map",
    "diagnose",
    "emergence",
    "feature_distance",
    "games",
    "gradient_map",
    "has_fallen",
    "indistinguishable",
    "infidelities",
    "infidelity",
    "infidelity_beyond_area",
    "iou",
    "localisation",
    "masks_of_things",
    "mass_inside",
    "metric",
    "metrics_of",
    "morans_i",
    "neighbour_agreement",
    "noise_agreement",
    "object_masks",
    "on_grid",
    "over_scenes",
    "paired",
    "pointing",
    "prompt_randomisation",
    "random_level",
    "random_ranking",
    "relative_infidelity",
    "resampling",
    "root_mean_square",
    "sample_magnitude",
    "seed_agreement",
    "shuffled_level",
    "similarities",
    "spearman",
    "stages_of",
    "time_agreement",
    "told",
    "weight_randomisation",
]
