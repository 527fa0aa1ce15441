"""Methods ranked on every target: Friedman's test, Nemenyi's critical difference, and who beats whom (Demšar 2006).

A target is one observation here, whatever its metric and number of seeds: ranks need no common scale, and the tests
ask about other targets like these.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from promptprior.report.statistics import SIGNIFICANT, TIE, holm, paired_permutation


@dataclass(frozen=True)
class Ranking:
    """Mean ranks of methods over targets, the best first: 1 is best on every target, ties share their mean rank.

    `p` is Friedman's: how often ranks would differ this much if no method differed. Two methods differ by Nemenyi's
    test where their mean ranks are `critical` or more apart.
    """

    mean_ranks: Mapping[str, float]
    targets: int
    chi_square: float
    p: float
    critical: float

    @property
    def cliques(self) -> tuple[tuple[str, ...], ...]:
        """The largest groups in which no two methods differ, each from its best to its worst; no single methods."""
        groups: list[tuple[str, ...]] = []
        ranks = list(self.mean_ranks.items())
        for best, (_, rank) in enumerate(ranks):
            group = tuple(m for m, other in ranks[best:] if other - rank < self.critical)
            if len(group) > 1 and not (groups and set(group) <= set(groups[-1])):
                groups.append(group)
        return tuple(groups)


def ranking(scores: Mapping[str, Sequence[float]]) -> Ranking:
    """Rank methods by their merits on the same targets, higher is better; what differs by less than 1e-9 ties.

    Friedman's chi-square is corrected for ties, and (0, p = 1) where all methods tie everywhere. Raises ValueError for
    fewer than three methods or two targets, of which there is nothing to test.
    """
    from scipy.stats import friedmanchisquare, rankdata

    table = np.array([list(row) for row in scores.values()], dtype=np.float64)  # [methods, targets]
    if table.ndim != 2 or len(table) < 3 or table.shape[1] < 2:
        raise ValueError(f"ranks need three methods and two targets; got shape {table.shape}")
    rounded = np.round(table / TIE)
    mean_ranks = dict(zip(scores, rankdata(-rounded, axis=0).mean(1).tolist(), strict=True))
    best_first = dict(sorted(mean_ranks.items(), key=lambda pair: pair[1]))
    all_tie = bool((rounded == rounded[0]).all())
    chi_square, p = (0.0, 1.0) if all_tie else friedmanchisquare(*rounded)
    return Ranking(best_first, table.shape[1], float(chi_square), float(p), critical_difference(*table.shape))


def critical_difference(methods: int, targets: int, level: float = 1 - SIGNIFICANT) -> float:
    """Nemenyi's critical difference of mean ranks: q sqrt(k (k + 1) / (6 N)), q the studentised range over sqrt 2.

    >>> round(critical_difference(4, 14), 2)  # Demsar's example
    1.25
    """
    from scipy.stats import studentized_range

    q = float(studentized_range.ppf(level, methods, np.inf)) / np.sqrt(2)
    return float(q * np.sqrt(methods * (methods + 1) / (6 * targets)))


@dataclass(frozen=True)
class PairwiseComparison:
    """Two methods on the targets both have: targets won, tied and lost by the first, and a p-value after Holm."""

    first: str
    second: str
    wins: int
    ties: int
    losses: int
    p: float


def pairwise_comparisons(scores: Mapping[str, Sequence[float]]) -> tuple[PairwiseComparison, ...]:
    """Every pair of methods on the same targets: a paired permutation test over targets, Holm over all pairs."""
    pairs = list(combinations(scores, 2))
    gaps = [np.subtract(scores[a], scores[b]) for a, b in pairs]
    corrected = holm([paired_permutation(gap.tolist()) for gap in gaps])
    outcomes = [(int((gap > TIE).sum()), int((np.abs(gap) <= TIE).sum()), int((gap < -TIE).sum())) for gap in gaps]
    return tuple(
        PairwiseComparison(a, b, *outcome, p) for (a, b), outcome, p in zip(pairs, outcomes, corrected, strict=True)
    )
