"""The thresholds that decide verdicts, and the words for the verdicts."""

EDGE_AGREEMENT, CONVERGENCE_DELTA = 0.6, 0.1
"""The least agreement with edges of a map that may show edges only, and the share of a score that
Integrated Gradients may miss."""

PERMUTATIONS, QUANTILE = 199, 0.99
"""The number of shuffles of the positions, and the share of them that a map with a pattern must exceed."""
BY_CHANCE = 0.95
"""The share of a word's shifted maps that the word's own map must beat in pointing."""
SAME_WORDS = 0.01
"""Largest difference of a word's share in the sum of all words' relevance, from 0 to 1, that counts as none.

One percentage point: bars that differ by less look equally long. Shares are compared because sums grow with the
number of steps."""

RECOGNISED = 0.5
"""Likelihood, 0 to 1, that a label must reach and keep to count as recognised."""

SANITY_TOLERANCE = 0.1
"""Largest rank agreement above the random level, from -1 to 1, that counts as none."""
RELIABLE = 0.8
"""Least split-half reliability, up to 1, of a map that counts as reproducible."""
ALIKE = 0.99
"""Least mean structural similarity, up to 1 (no unit), of two pictures that look the same.

Noise of one 8-bit level (standard deviation), which no eye sees, brings a picture of the bundled world to 0.985 to
0.990 with itself: pictures above differ by less."""

UNSURE, PASSED, FAILED = "cannot be told", "passes", "FAILS"
