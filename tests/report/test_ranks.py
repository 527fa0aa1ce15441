"""Ranks against Demsar's worked example, scipy and brute force."""

import itertools

import numpy as np
import pytest
from scipy import stats

from promptprior.report.ranks import Ranking, critical_difference, pairwise_comparisons, ranking
from promptprior.report.statistics import holm, paired_permutation

# Demsar 2006, table 5 (a): q at 0.05 for 2 to 10 classifiers
Q = {2: 1.960, 3: 2.343, 4: 2.569, 5: 2.728, 6: 2.850, 7: 2.949, 8: 3.031, 9: 3.102, 10: 3.164}


def cliques(mean_rank, critical):
    """The groups that do not differ, for mean ranks and a critical difference."""
    best_first = dict(sorted(mean_rank.items(), key=lambda pair: pair[1]))
    return Ranking(best_first, 2, 0.0, 1.0, critical).cliques


@pytest.mark.parametrize("methods", Q)
def test_the_critical_difference_is_that_of_demsars_table(methods):
    for targets in (5, 14):
        want = Q[methods] * np.sqrt(methods * (methods + 1) / (6 * targets))
        assert critical_difference(methods, targets) == pytest.approx(want, abs=2e-3)


def test_ranks_and_friedman_are_scipys():
    table = np.random.default_rng(0).integers(0, 5, (4, 9)) / 10.0  # with ties
    want = np.mean([stats.rankdata(-column) for column in table.T], axis=0)
    ours = ranking({str(i): scores for i, scores in enumerate(table)})
    assert ours.mean_ranks == pytest.approx({str(i): rank for i, rank in enumerate(want)})
    found = stats.friedmanchisquare(*table)
    assert (ours.chi_square, ours.p) == pytest.approx((found.statistic, found.pvalue))


def test_scores_that_differ_by_rounding_tie():
    found = ranking({"a": [0.1 + 0.2, 0.5], "b": [0.3, 0.5], "c": [0.2, 0.1]})
    assert found.mean_ranks == {"a": 1.5, "b": 1.5, "c": 3.0}
    same = ranking(dict.fromkeys("abc", [1.0] * 4))
    assert (same.chi_square, same.p) == (0.0, 1.0)


def test_demsars_example_from_its_mean_ranks():
    """C4.5 with and without tuning on 14 data sets: CD 1.25; only the first pair below differs at 0.05 by Nemenyi."""
    ranks = {"C4.5": 3.143, "C4.5+m": 2.000, "C4.5+cf": 2.893, "C4.5+m+cf": 1.964}
    critical = critical_difference(4, 14)
    assert critical == pytest.approx(1.25, abs=0.005)
    assert cliques(ranks, critical) == (("C4.5+m+cf", "C4.5+m", "C4.5+cf", "C4.5"),)
    assert cliques(ranks, 1.16) == (("C4.5+m+cf", "C4.5+m", "C4.5+cf"), ("C4.5+m", "C4.5+cf", "C4.5"))


def test_cliques_are_all_maximal_groups():
    rng = np.random.default_rng(1)
    for _ in range(50):
        ranks = {f"m{i}": float(r) for i, r in enumerate(rng.uniform(1, 6, 6))}
        sets = [
            set(some)
            for n in range(2, 7)
            for some in itertools.combinations(ranks, n)
            if max(ranks[m] for m in some) - min(ranks[m] for m in some) < 1.5
        ]
        want = {frozenset(s) for s in sets if not any(s < other for other in sets)}
        assert {frozenset(group) for group in cliques(ranks, 1.5)} == want


def test_a_ranking_says_all_of_it():
    scores = {"bad": [0.1, 0.2, 0.1, 0.3], "good": [0.9, 0.8, 0.9, 0.7], "middle": [0.5, 0.4, 0.95, 0.6]}
    found = ranking(scores)
    assert list(found.mean_ranks.items()) == [("good", 1.25), ("middle", 1.75), ("bad", 3.0)]
    assert found.targets == 4
    for few in ({"a": [1.0], "b": [2.0], "c": [3.0]}, {"a": [1.0, 2.0], "b": [1.0, 2.0]}):
        with pytest.raises(ValueError, match="three methods and two targets"):
            ranking(few)


def test_friedman_and_nemenyi_keep_their_level_and_find_what_differs():
    rng = np.random.default_rng(2)
    null = [ranking({m: rng.normal(size=20).tolist() for m in "abcd"}) for _ in range(800)]
    assert np.mean([r.p <= 0.05 for r in null]) == pytest.approx(0.05, abs=0.02)
    apart = [max(r.mean_ranks.values()) - min(r.mean_ranks.values()) >= r.critical for r in null]
    assert np.mean(apart) == pytest.approx(0.05, abs=0.02)  # any pair at all
    better = ranking({m: (rng.normal(size=20) + (m == "d") * 2).tolist() for m in "abcd"})
    assert next(iter(better.mean_ranks)) == "d"
    assert better.p < 0.001
    assert all("d" not in group for group in better.cliques)


def test_pairwise_comparisons_count_targets_and_correct_over_pairs():
    rng = np.random.default_rng(3)
    scores = {m: rng.integers(0, 4, 8).astype(float).tolist() for m in "abc"}
    found = pairwise_comparisons(scores)
    p = [paired_permutation(np.subtract(scores[a], scores[b])) for a, b in (("a", "b"), ("a", "c"), ("b", "c"))]
    assert [d.p for d in found] == pytest.approx(holm(p))
    for d in found:
        pairs = list(zip(scores[d.first], scores[d.second], strict=True))
        assert d.wins == sum(x > y for x, y in pairs)
        assert d.ties == sum(x == y for x, y in pairs)
        assert d.losses == 8 - d.wins - d.ties
