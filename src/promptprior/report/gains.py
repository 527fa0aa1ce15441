"""Every method against the baseline: differences on each target and over all, their tests, and the headline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from promptprior.report.results import Grid, SeedScores
from promptprior.report.section import (
    NO_BREAK,
    Table,
    Verdict,
    columns,
    format_number,
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

DETAILED = 4  # comparisons that the headline counts targets for; of more it gives means only
CLEAR: tuple[Verdict, ...] = ("better", "worse")
NAMED = 4  # targets of negative transfer that the headline names with all their methods


@dataclass(frozen=True)
class Difference:
    """Method minus baseline on one target, paired by seed; positive is better, whatever the metric."""

    target: str
    interval: Interval

    @property
    def verdict(self) -> Verdict:
        """Better or worse where the interval excludes 0, else unclear."""
        return "better" if self.interval.is_above_zero else "worse" if self.interval.is_below_zero else "unclear"


@dataclass(frozen=True)
class Comparison:
    """One method against the baseline at one k.

    `p` is the paired permutation test's over all runs (these targets, other seeds), `p_holm` the same after Holm's
    correction; `p_targets` is that over the targets' means (other targets like these). `by_seed` is the difference with
    a seed as one observation.
    """

    method: str
    k: int
    targets: tuple[Difference, ...]
    difference: Interval
    by_seed: Interval | None
    gains: Gains
    improvement: Interval
    p: float
    p_holm: float
    p_targets: float

    def targets_that_are(self, verdict: Verdict) -> tuple[Difference, ...]:
        """Targets with a verdict, the largest difference first."""
        of_verdict = [d for d in self.targets if d.verdict == verdict]
        return tuple(sorted(of_verdict, key=lambda d: -abs(d.interval.estimate)))

    @property
    def verdict(self) -> Verdict:
        """Better or worse overall where both intervals and the corrected test say so, else unclear."""
        if self.p_holm > SIGNIFICANT or self.by_seed is None:
            return "unclear"
        over_runs, over_seeds = (Difference("", i).verdict for i in (self.difference, self.by_seed))
        return over_runs if over_runs == over_seeds else "unclear"


def comparisons(grid: Grid) -> tuple[Comparison, ...]:
    """Every other method against the baseline at every k, on the targets and seeds both have; transfer methods first.

    Holm's correction runs over all of them together.
    """
    compared = []
    others = sorted((m for m in grid.methods if m != grid.baseline), key=lambda method: method not in grid.transfer)
    for k, method in product(grid.ks, others):
        pairs = {}
        for target in grid.targets:
            ours = grid.merits(target, grid.seed_scores.get((method, target, k), {}))
            base = grid.merits(target, grid.scores.get((grid.baseline, target, k), {}))
            if pair := pair_seeds(ours, base):
                pairs[target] = pair
        if not pairs:
            continue
        own_runs = {t: [merit for merit, _ in pair.values()] for t, pair in pairs.items()}
        base_runs = {t: [merit for _, merit in pair.values()] for t, pair in pairs.items()}
        gaps = {t: {seed: x - y for seed, (x, y) in pair.items()} for t, pair in pairs.items()}
        # A difference of two scores that lie in a range of some width lies within that width of 0.
        widths = {t: grid.bounds[t][1] - grid.bounds[t][0] for t in gaps}
        p = paired_permutation([gap for of_target in gaps.values() for gap in of_target.values()])
        compared.append(
            Comparison(
                method=method,
                k=k,
                targets=tuple(
                    Difference(t, interval(list(gap.values()), bounds=(-widths[t], widths[t])))
                    for t, gap in gaps.items()
                ),
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


def pair_seeds(ours: SeedScores, base: SeedScores) -> dict[int, tuple[float, float]]:
    """Both scores at their common seeds; a method that ran once, whatever the seed, stands beside each."""
    if len(ours) == 1 and len(base) > 1 and not set(ours) & set(base):
        ours = dict.fromkeys(base, next(iter(ours.values())))
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


def list_words(names: Sequence[str]) -> str:
    """Names with commas and "and".

    >>> list_words(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def headline(grid: Grid, compared: Sequence[Comparison]) -> list[str]:
    """A few sentences: whether methods that learned from sources beat the baseline, and where they hurt."""
    transfer = [c for c in compared if c.method in grid.transfer]
    if not transfer:
        return [
            "Nothing to compare: no method that learned from source tasks shares a target and a seed with "
            f"{grid.baseline}."
        ]
    sentences = []
    for k in sorted({c.k for c in transfer}):
        phrases = []
        for verdict, singular, plural in (
            ("better", "beats", "beat"),
            ("worse", "falls behind", "fall behind"),
            ("unclear", "shows no clear difference from", "show no clear difference from"),
        ):
            named = []
            for c in (c for c in transfer if (c.k, c.verdict) == (k, verdict)):
                words = format_number(c.difference.estimate, "signed")
                if len(transfer) <= DETAILED:
                    numbers = {clear: len(c.targets_that_are(clear)) for clear in CLEAR}
                    parts = [f"{clear} on {n}" for clear, n in numbers.items() if n] or ["better on none"]
                    words += f"; clearly {', '.join(parts)} of {len(c.targets)} targets"
                named.append(f"{c.method} ({words})")
            if named:
                verb = plural if len(named) > 1 else singular
                phrases.append(f"{list_words(named)} {verb} {grid.baseline} on average")
        sentences.append(f"With k{NO_BREAK}={NO_BREAK}{k}, {'; '.join(phrases)}.")

    # Negative transfer: targets on which some transfer method is clearly worse, those hit most often first.
    worse: dict[str, dict[str, list[str]]] = {}  # target -> method -> every k
    for c in transfer:
        for d in c.targets_that_are("worse"):
            worse.setdefault(d.target, {}).setdefault(c.method, []).append(str(c.k))
    hits = {target: sum(map(len, methods.values())) for target, methods in worse.items()}
    worst = sorted(worse, key=lambda target: -hits[target])
    if not worst:
        return [*sentences, "On no target is a transfer method clearly worse."]
    if len(worst) > NAMED:
        shown = list_words([f"{target} ({hits[target]} times)" for target in worst[:NAMED]])
        on = f"some method is clearly worse on {len(worst)} of {len(grid.targets)} targets, most often on {shown}"
    else:
        at = {t: [f"{m}, k{NO_BREAK}={NO_BREAK}{list_words(ks)}" for m, ks in worse[t].items()] for t in worst}
        on = "clearly worse on " + list_words([f"{target} ({'; '.join(at[target])})" for target in worst])
    return [*sentences, f"Negative transfer: {on}."]
