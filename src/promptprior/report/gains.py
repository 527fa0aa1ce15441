"""Every method against the baseline: differences on each target and over all, and their tests."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from promptprior.report.results import Grid, SeedScores
from promptprior.report.section import (
    Table,
    Verdict,
    columns,
    interval_cell,
    make_table,
)
from promptprior.report.statistics import (
    NEAR_FLOOR,
    SIGNIFICANT,
    Gains,
    Interval,
    average_relative_gain,
    holm,
    interval,
    mean_difference,
    paired_permutation,
    probability_of_improvement,
)


@dataclass(frozen=True)
class Comparison:
    """One method against the baseline at one k.

    `targets` has the difference on each target, method minus baseline, paired by seed, the largest first; positive is
    better, whatever the metric. `difference` is their mean, and `by_seed` the same with a seed as one observation.
    `p` is the paired permutation test's over all runs (these targets, other seeds), `p_holm` the same after Holm's
    correction; `p_targets` is that over the targets' means (other targets like these).
    """

    method: str
    k: int
    targets: Mapping[str, Interval]
    difference: Interval
    by_seed: Interval | None
    gains: Gains
    improvement: Interval
    p: float
    p_holm: float
    p_targets: float

    @property
    def verdict(self) -> Verdict:
        """Better or worse overall where both intervals and the corrected test say so, else unclear."""
        if self.p_holm > SIGNIFICANT or self.by_seed is None:
            return "unclear"
        return self.difference.verdict if self.difference.verdict == self.by_seed.verdict else "unclear"


def comparisons(grid: Grid) -> tuple[Comparison, ...]:
    """Every other method against the baseline at every k, on the targets and seeds both have; transfer methods first.

    Holm's correction runs over all of them together.
    """
    compared = []
    others = sorted((m for m in grid.methods if m != grid.baseline), key=lambda method: method not in grid.transfer)
    for k, method in product(grid.ks, others):
        pairs = {}
        for target in grid.targets:
            pair = paired_scores(grid, method, grid.baseline, target, k)
            if pair:
                pairs[target] = {s: (grid.merit(target, x), grid.merit(target, y)) for s, (x, y) in pair.items()}
        if not pairs:
            continue
        own_runs = {t: [merit for merit, _ in pair.values()] for t, pair in pairs.items()}
        base_runs = {t: [merit for _, merit in pair.values()] for t, pair in pairs.items()}
        gaps = {t: {seed: x - y for seed, (x, y) in pair.items()} for t, pair in pairs.items()}
        # A difference of two scores that lie in a range of some width lies within that width of 0.
        widths = {t: grid.bounds[t][1] - grid.bounds[t][0] for t in gaps}
        differences = {t: interval(list(gap.values()), bounds=(-widths[t], widths[t])) for t, gap in gaps.items()}
        p = paired_permutation([gap for of_target in gaps.values() for gap in of_target.values()])
        compared.append(
            Comparison(
                method=method,
                k=k,
                targets=dict(sorted(differences.items(), key=lambda pair: -abs(pair[1].estimate))),
                difference=mean_difference(own_runs, base_runs),
                by_seed=interval_by_seed(gaps, sum(widths.values()) / len(widths)),
                gains=average_relative_gain(own_runs, base_runs, lower_is_better=grid.lower_is_better),
                improvement=probability_of_improvement(own_runs, base_runs),
                p=p,
                p_holm=p,
                p_targets=paired_permutation([sum(gap.values()) / len(gap) for gap in gaps.values()]),
            )
        )
    corrected = holm([c.p for c in compared])
    return tuple(replace(c, p_holm=p) for c, p in zip(compared, corrected, strict=True))


def paired_scores(grid: Grid, first: str, second: str, target: str, k: int) -> dict[int, tuple[float, float]]:
    """Both scores of two methods at the seeds that both have; one that uses no shots (k = 0) stands beside each."""
    of_first, of_second = ((method, target, k) for method in (first, second))
    ours, theirs = (grid.seed_scores.get(place, {}) for place in (of_first, of_second))
    return pair_seeds(ours, theirs, of_first not in grid.scores, of_second not in grid.scores)


def pair_seeds(
    ours: SeedScores, base: SeedScores, ours_is_of_all: bool, base_is_of_all: bool
) -> dict[int, tuple[float, float]]:
    """Both scores at their common seeds; a side that ran once for all seeds stands beside each of the other's."""
    if ours_is_of_all and not base_is_of_all and len(ours) == 1:
        ours = dict.fromkeys(base, next(iter(ours.values())))
    elif base_is_of_all and not ours_is_of_all and len(base) == 1:
        base = dict.fromkeys(ours, next(iter(base.values())))
    return {seed: (ours[seed], base[seed]) for seed in sorted(set(ours) & set(base))}


def interval_by_seed(gaps: Mapping[str, SeedScores], largest: float = np.inf) -> Interval | None:
    """The mean difference with each seed's mean over targets as one observation; None where no seed has all targets.

    A prior is fitted once for a seed and shared by its targets, so that their differences stand and fall together. The
    ends lie within `largest` of 0.
    """
    common = sorted(set.intersection(*(set(gap) for gap in gaps.values())))
    means = [sum(gap[seed] for gap in gaps.values()) / len(gaps) for seed in common]
    return interval(means, bounds=(-largest, largest)) if common else None


def gain_table(grid: Grid, compared: Mapping[str, Comparison], k: int) -> Table:
    """Every method against the baseline at one k."""
    near_floor = list(dict.fromkeys(t for c in compared.values() for t in c.gains.near_floor))
    undefined = list(dict.fromkeys(t for c in compared.values() for t in c.gains.undefined))
    caveat = f"; the baseline is below {NEAR_FLOOR} on {', '.join(near_floor)}" if near_floor else ""
    caveat += f"; it is 0 or less, so that there is none, on {', '.join(undefined)}" if undefined else ""
    return make_table(
        f"against-{grid.baseline}-k{k}",
        f"Against {grid.baseline}, k = {k}",
        "Paired by target and seed. By seed: each seed's mean over targets, which share its prior, is one observation. "
        f"ARG: mean relative gain over targets{caveat}. P(better): the chance that a run beats "
        "one of the baseline. p permutes the signs of all differences, Holm corrects it for all comparisons here; "
        f"p, targets permutes the signs of the targets' mean differences.{grid.sign_note}",
        (
            *columns("Method", {"Difference": "signed", "Difference by seed": "signed"}),
            *columns("", dict.fromkeys(["ARG", f"ARG, base ≥ {NEAR_FLOOR}"], "percent"), {"Median gain": "percent"}),
            *columns("Won / tied / lost", {"P(better)": "two_digits"}),
            *columns("", (), dict.fromkeys(["p", "p, Holm", "p, targets"], "p")),
        ),
        [
            (
                c.method,
                interval_cell(c.difference, "signed", c.verdict),
                c.by_seed,
                *(c.gains.gain, c.gains.above_floor, c.gains.median),
                f"{c.gains.wins} / {c.gains.ties} / {c.gains.losses}",
                c.improvement,
                *(c.p, c.p_holm, c.p_targets),
            )
            for c in (compared[method] for method in grid.methods if method in compared)
        ],
    )
