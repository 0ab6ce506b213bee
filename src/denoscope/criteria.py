"""From where on a number counts: the thresholds that decide verdicts."""

EDGE_AGREEMENT, CONVERGENCE_DELTA = 0.6, 0.1
"""From where on a map may be an edge detector's, and how much of a score Integrated Gradients may miss."""

PERMUTATIONS, QUANTILE = 199, 0.99
"""How often positions are shuffled, and the share of the shuffles that a map with a pattern must exceed."""
BY_CHANCE = 0.95
"""The share of a word's shifted maps that its map must point better than."""
SAME_WORDS = 0.01
"""Largest difference of a word's share in the sum of all words' relevance, from 0 to 1, that counts as none.

One percentage point: bars that differ by less look equally long. Shares, as sums grow with the number of steps."""

RECOGNISED = 0.5
"""Likelihood, 0 to 1, that a label must reach and keep to count as recognised."""

SANITY_TOLERANCE = 0.1
"""So much rank agreement above the random level is as good as none."""
RELIABLE = 0.8
"""Split-half reliability from which a map counts as reproducible."""
ALIKE = 0.99
"""Mean structural similarity, up to 1 (no unit), from which two pictures look the same.

Noise of one 8-bit level (standard deviation), which no eye sees, leaves a picture of the bundled world at 0.985 to
0.990 with itself: what is above differs by less."""

UNSURE, PASSED, FAILED = "cannot be told", "passes", "FAILS"
