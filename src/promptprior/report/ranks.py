"""Methods ranked on every target: Friedman's test, Nemenyi's critical difference, and who beats whom (Demsar 2006).

A target is one observation here, whatever its metric and number of seeds: ranks need no common scale, and the tests
ask about other targets like these.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from promptprior.report.statistics import TIE, Floats, holm, paired_permutation

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Ranking:
    """Mean ranks over targets, 1 the best; ties share their mean rank.

    `p` is Friedman's: how often ranks would differ this much if no method differed. Two methods differ by Nemenyi's
    test where their mean ranks are `critical` or more apart; `cliques` are the largest groups in which no two are,
    each from its best to its worst method, single methods left out.
    """

    methods: tuple[str, ...]
    mean_ranks: tuple[float, ...]
    targets: int
    chi_square: float
    p: float
    critical: float
    cliques: tuple[tuple[str, ...], ...]

    @property
    def best_first(self) -> tuple[tuple[str, float], ...]:
        """Methods with their mean ranks, the best first."""
        return tuple(sorted(zip(self.methods, self.mean_ranks, strict=True), key=lambda pair: pair[1]))


def ranking(scores: Mapping[str, Sequence[float]]) -> Ranking:
    """Rank methods by their scores on the same targets, higher better.

    Raises ValueError for fewer than three methods or two targets, of which there is nothing to test.
    """
    table = np.array([list(row) for row in scores.values()], dtype=np.float64)
    if table.ndim != 2 or len(table) < 3 or table.shape[1] < 2:
        raise ValueError(f"ranks need three methods and two targets; got shape {table.shape}")
    methods, targets = tuple(scores), table.shape[1]
    means = mean_ranks(table)
    critical = critical_difference(len(methods), targets)
    chi_square, p = friedman(table)
    named = dict(zip(methods, means.tolist(), strict=True))
    return Ranking(methods, tuple(means.tolist()), targets, chi_square, p, critical, cliques(named, critical))


def mean_ranks(table: Floats) -> Floats:
    """Mean rank of each method, [methods, targets] to [methods]; scores that differ by less than 1e-9 tie."""
    from scipy.stats import rankdata

    ranks: Floats = rankdata(-np.round(table / TIE), axis=0).mean(1)
    return ranks


def friedman(table: Floats) -> tuple[float, float]:
    """Friedman's chi-square, corrected for ties, and its p-value; (0, 1) where all methods tie everywhere."""
    from scipy.stats import friedmanchisquare

    rounded = np.round(table / TIE)
    if (rounded == rounded[0]).all():
        return 0.0, 1.0
    found = friedmanchisquare(*rounded)
    return float(found.statistic), float(found.pvalue)


def critical_difference(methods: int, targets: int, level: float = 1 - SIGNIFICANT) -> float:
    """Nemenyi's critical difference of mean ranks: q sqrt(k (k + 1) / (6 N)), q the studentised range over sqrt 2.

    >>> round(critical_difference(4, 14), 2)  # Demsar's example
    1.25
    """
    from scipy.stats import studentized_range

    q = float(studentized_range.ppf(level, methods, np.inf)) / np.sqrt(2)
    return float(q * np.sqrt(methods * (methods + 1) / (6 * targets)))


def cliques(mean_rank: Mapping[str, float], critical: float) -> tuple[tuple[str, ...], ...]:
    """The largest groups of neighbours in rank that lie less than the critical difference apart.

    >>> cliques({"a": 1.0, "b": 1.5, "c": 2.2}, 1.0)
    (('a', 'b'), ('b', 'c'))
    """
    order = sorted(mean_rank, key=lambda method: mean_rank[method])
    groups: list[tuple[str, ...]] = []
    for first, method in enumerate(order):
        group = tuple(m for m in order[first:] if mean_rank[m] - mean_rank[method] < critical)
        if len(group) > 1 and not (groups and set(group) <= set(groups[-1])):
            groups.append(group)
    return tuple(groups)


@dataclass(frozen=True)
class PairwiseComparison:
    """Two methods on the targets both have: targets won, tied and lost by the first, and a p-value after Holm."""

    first: str
    second: str
    wins: int
    ties: int
    losses: int
    p: float


def duels(scores: Mapping[str, Sequence[float]]) -> tuple[PairwiseComparison, ...]:
    """Every pair of methods on the same targets: a paired permutation test over targets, Holm over all pairs."""
    pairs = list(combinations(scores, 2))
    gaps = [np.subtract(scores[a], scores[b]) for a, b in pairs]
    corrected = holm([paired_permutation(gap.tolist()) for gap in gaps])
    return tuple(
        PairwiseComparison(a, b, *outcomes(gap), p) for (a, b), gap, p in zip(pairs, gaps, corrected, strict=True)
    )


def outcomes(gap: NDArray[np.float64]) -> tuple[int, int, int]:
    """How many differences are above, at and below zero."""
    return int((gap > TIE).sum()), int((np.abs(gap) <= TIE).sum()), int((gap < -TIE).sum())
