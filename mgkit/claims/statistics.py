"""Paired comparisons of two arms over seeds and queries, and where their curves cross.

Queries are drawn with replacement, as everywhere in the kit. Seeds are few: three of them, drawn with
replacement, would give intervals less than half as wide as they should be. So the mean over the seeds has an
error of Student's t distribution, with one degree of freedom less than there are seeds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri, stdtrit  # not scipy.stats, which takes two seconds to import

from mgkit.retrieval.protocols import Difference

LEVEL = 0.95
DRAWS, DRAWS_AT_ONCE = 4000, 100  # the second bounds the memory
POWER = 0.8  # of the number of seeds that is said to decide
MOST_SEEDS = 1000


@dataclass(frozen=True)
class Paired:
    """The differences of two arms on the same queries, after minus before.

    of_seeds: the mean difference of each seed [S]
    draws: of the mean over seeds and queries, as other seeds and queries might give it [DRAWS]; all NaN for a
        single seed, which does not tell how seeds differ
    of_queries: standard error due to the queries alone
    """

    of_seeds: np.ndarray
    draws: np.ndarray
    of_queries: float

    @property
    def value(self) -> float:
        """The mean difference."""
        return float(self.of_seeds.mean())

    @property
    def difference(self) -> Difference:
        """The mean difference with its 95 % interval, which is infinite for a single seed."""
        if len(self.of_seeds) < 2:
            return Difference(self.value, -math.inf, math.inf)
        low, high = np.quantile(self.draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Difference(self.value, float(low), float(high))

    def seeds_needed(self) -> int | None:
        """Seeds, in all, with which a difference as large as this is decided in 8 of 10 trials.

        None if the queries are too few for that, or more than MOST_SEEDS are needed, or for a single seed.
        """
        if len(self.of_seeds) < 2 or self.value == 0:
            return None
        seeds = np.arange(2, MOST_SEEDS + 1)
        of_seeds = self.of_seeds.std(ddof=1) / np.sqrt(seeds)
        t, z = stdtrit(seeds - 1, (1 + LEVEL) / 2), ndtri((1 + LEVEL) / 2)
        # Half the interval by both errors at once, and what else a difference needs to be decided so often.
        half = np.hypot(t * of_seeds, z * self.of_queries)
        more = ndtri(POWER) * np.hypot(of_seeds, self.of_queries)
        enough = seeds[abs(self.value) >= half + more]
        return int(enough[0]) if len(enough) else None


def paired(before: np.ndarray, after: np.ndarray, groups: np.ndarray, *, seed: int = 0) -> Paired:
    """Compare two arms by the values of S seeds on the same Q queries, [S,Q] each.

    groups: what each query shows [Q]; those of one group are drawn together
    seed: of the draws

    NaN queries are left out. Raises ValueError for other shapes, and where no query is left.
    """
    before, after = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if before.ndim != 2 or before.shape != after.shape or groups.shape != before.shape[1:]:
        shapes = f"{before.shape}, {after.shape} and groups {groups.shape}"
        raise ValueError(
            f"values of S seeds and Q queries, [S,Q] twice, and groups [Q] are wanted, got {shapes}"
        )
    change = after - before  # [S,Q]
    known = np.isfinite(change).all(axis=0)
    if not known.any():
        raise ValueError("there is no query with a value for all seeds")
    change, (_, of_query) = change[:, known], np.unique(groups[known], return_inverse=True)
    of_seeds = change.mean(axis=1)
    sizes = np.bincount(of_query)
    sums = np.bincount(of_query, change.mean(axis=0))  # [G], of the mean over seeds
    drawn = means_of_draws(sums, sizes, seed)
    of_queries = float(drawn.std())
    if len(of_seeds) < 2:
        return Paired(of_seeds, np.full(DRAWS, np.nan), of_queries)
    error = of_seeds.std(ddof=1) / math.sqrt(len(of_seeds))
    t = np.random.default_rng([seed, 1]).standard_t(len(of_seeds) - 1, DRAWS)
    return Paired(of_seeds, drawn + error * t, of_queries)


def means_of_draws(sums: np.ndarray, sizes: np.ndarray, seed: int) -> np.ndarray:
    """The mean over the queries of G groups drawn with replacement, from sums and sizes [G], -> [DRAWS]."""
    generator = np.random.default_rng([seed, 0])
    drawn = np.empty(DRAWS)
    for start in range(0, DRAWS, DRAWS_AT_ONCE):
        groups = generator.integers(len(sums), size=(DRAWS_AT_ONCE, len(sums)))
        drawn[start : start + DRAWS_AT_ONCE] = sums[groups].sum(axis=1) / sizes[groups].sum(axis=1)
    return drawn


@dataclass(frozen=True)
class Crossing:
    """Where the arm after overtakes the arm before, in samples seen.

    value: of the mean curves; 0 if it is ahead at the smallest budget and after, inf if not at the largest
    low, high: 95 % interval; NaN where a budget has a single seed
    """

    value: float
    low: float
    high: float


def crossing(samples: Sequence[int], differences: Sequence[Paired]) -> Crossing:
    """Where the difference changes from negative to positive for the last time, among B ascending budgets.

    samples: seen by the trainings of each budget [B]
    differences: at each budget [B]; between budgets they change linearly with the logarithm of the samples
    """
    places = np.log(np.asarray(samples, dtype=np.float64))
    value = last_rise(places, np.array([one.value for one in differences]))
    draws = np.stack([one.draws for one in differences], axis=1)  # [DRAWS,B]
    if not np.isfinite(draws).all():
        return Crossing(value, math.nan, math.nan)
    found = np.array([last_rise(places, row) for row in draws])
    # No interpolation: some draws are infinite.
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="nearest")
    return Crossing(value, float(low), float(high))


def last_rise(places: np.ndarray, values: np.ndarray) -> float:
    """exp of the place where values [B] at places [B] last rise above 0; 0: before all, inf: never."""
    if values[-1] <= 0:
        return math.inf
    below = np.flatnonzero(values <= 0)
    if not len(below):
        return 0.0
    k = below[-1]
    share = -values[k] / (values[k + 1] - values[k])
    return math.exp(places[k] + share * (places[k + 1] - places[k]))
