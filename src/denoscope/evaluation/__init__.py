"""Is an explanation true? Numbers that say how far to believe it.

Every number is a pure function first. `METRICS` has the facts about each: title, range, direction, chance, source. More
functions are in the modules named here.

- Does the map point at the objects? `localisation` has all metrics of it: `auroc`, `average_precision`, `best_iou`,
  `iou`, `pointing`, `spearman`, `mass_inside`. They need a known mask.
- Does the model do what the map says? `games` play deletion and insertion, `infidelity` compares predicted with
  measured changes (`Probe`), `resampling` draws other noise for the map's region.
- Is the map the same again? `agreement` of two maps; `seed_agreement`, `neighbour_agreement`, `noise_agreement`.
- Does the map depend on what it explains? `weight_randomisation`, `prompt_randomisation`, `time_agreement`, and the
  verdict `has_fallen`.
- Can the map be moved without the picture, or the picture without the map? `attacks`.
- Does coarse structure come before fine structure? Module `frequencies`: `emergence`, `coarse_to_fine`.
- Beside what is a number read? `BASELINES`, and over scenes `bootstrap`, `paired`, `over_scenes`.
- Did an explanation fail without anyone asking? Module `diagnosis`. How do maps change along a run? Module `stages`.
  How far apart are pictures? Module `distances`.
"""

from . import frequencies  # enters its metric
from .attacks import Attack, EuclideanBall, MaximumBall, attacks, contrast_map, gradient_map
from .baselines import BASELINES, Baseline, random_ranking
from .games import GAMES, games
from .infidelity import GaussianNoise, Probe, Squares, infidelities, infidelity
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
from .metrics import METRICS, Metric, metric_named, metrics_of
from .resampling import OfFeatures, Resampling, WithinMask, resampling, root_mean_square
from .sanity import (
    ConstantTime,
    ShuffledTime,
    above_chance,
    has_fallen,
    prompt_randomisation,
    record_with_other_times,
    stages_of,
    time_agreement,
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
    "Squares",
    "WithinMask",
    "above_chance",
    "agreement",
    "attacks",
    "auroc",
    "average_precision",
    "best_iou",
    "bootstrap",
    "centre_prior",
    "contrast_map",
    "frequencies",
    "games",
    "gradient_map",
    "has_fallen",
    "infidelities",
    "infidelity",
    "iou",
    "localisation",
    "mass_inside",
    "metric_named",
    "metrics_of",
    "neighbour_agreement",
    "noise_agreement",
    "on_grid",
    "over_scenes",
    "paired",
    "pointing",
    "prompt_randomisation",
    "random_ranking",
    "record_with_other_times",
    "resampling",
    "root_mean_square",
    "seed_agreement",
    "spearman",
    "stages_of",
    "time_agreement",
    "weight_randomisation",
]
