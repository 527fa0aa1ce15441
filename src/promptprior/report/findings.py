"""From rows to what they say: scores by method and target, comparisons with the baseline, and words."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from promptprior.report.ranks import PairwiseComparison, Ranking, duels, ranking
from promptprior.report.results import Row
from promptprior.report.statistics import (
    Gains,
    Interval,
    Runs,
    average_relative_gain,
    holm,
    interquartile_mean,
    interval,
    mean_difference,
    mean_over_targets,
    median_target,
    paired_permutation,
    probability_of_improvement,
    stratified_bootstrap,
)
from promptprior.report.table import signed

SIGNIFICANT = 0.05
DETAILED = 4  # comparisons that the headline counts targets for; of more it gives means only
NAMED = 4  # targets of negative transfer that the headline names with all their methods
NO_BREAK = "\N{NO-BREAK SPACE}"
Seeds = Mapping[int, float]
Places = Mapping[str, frozenset[int]]
"""The seeds of each target that every method has finished."""


@dataclass(frozen=True)
class Grid:
    """The rows of a comparison, found by method, target, k and seed; `baseline` is what transfer must beat.

    Where two rows stand for the same place (a setting was changed in between), the last one counts.
    """

    all_rows: tuple[Row, ...]
    baseline: str

    @cached_property
    def places(self) -> dict[tuple[str, str, int, int], Row]:
        """The row of each method, target, k and seed."""
        return {(row.method, row.target, row.k, row.seed): row for row in self.all_rows}

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """Rows with a score."""
        return tuple(row for row in self.places.values() if row.is_ok)

    @cached_property
    def failed(self) -> tuple[Row, ...]:
        """Rows without one."""
        return tuple(row for row in self.places.values() if not row.is_ok)

    @cached_property
    def methods(self) -> tuple[str, ...]:
        """Methods that train nothing, then the baseline, then the others in order of appearance."""
        names = dict.fromkeys(row.method for row in self.rows)
        trained = {row.method for row in self.rows if row.steps}
        return tuple(sorted(names, key=lambda m: 1 if m == self.baseline else 2 if m in trained else 0))

    @cached_property
    def transfer(self) -> frozenset[str]:
        """Methods that learned from source tasks."""
        return frozenset(row.method for row in self.rows if row.sources)

    @cached_property
    def targets(self) -> tuple[Row, ...]:
        """One row for each target, which tells its family, metric and size; by family, then name."""
        firsts = {row.target: row for row in reversed(self.rows)}
        return tuple(sorted(firsts.values(), key=lambda row: (row.family, row.target)))

    @cached_property
    def ks(self) -> tuple[int, ...]:
        """The numbers of shots compared; (0,) where nothing was trained."""
        return tuple(sorted({row.k for row in self.rows} - {0})) or ((0,) if self.rows else ())

    @cached_property
    def scores(self) -> Mapping[tuple[str, str, int], Seeds]:
        """Score of each seed, for each method, target and k."""
        found: dict[tuple[str, str, int], dict[int, float]] = {}
        for row in self.rows:
            assert row.score is not None  # rows hold ok cells only
            found.setdefault((row.method, row.target, row.k), {})[row.seed] = row.score
        return found

    def seeds(self, method: str, target: str, k: int) -> Seeds:
        """Scores by seed. What needs no examples (k = 0) stands beside every k."""
        return self.scores.get((method, target, k)) or self.scores.get((method, target, 0), {})

    def cell(self, method: str, target: str, k: int) -> Interval | None:
        """Mean and interval over seeds; None where no cell is finished."""
        found = self.seeds(method, target, k)
        return interval(list(found.values())) if found else None


@dataclass(frozen=True)
class Difference:
    """Method minus baseline on one target, paired by seed."""

    target: str
    interval: Interval

    @property
    def verdict(self) -> str:
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

    def targets_that_are(self, verdict: str) -> tuple[Difference, ...]:
        """Targets with a verdict, the largest difference first."""
        return tuple(
            sorted(
                (d for d in self.targets if d.verdict == verdict),
                key=lambda d: -abs(d.interval.estimate),
            )
        )

    @property
    def verdict(self) -> str:
        """Better or worse overall where both intervals and the corrected test say so, else unclear."""
        if self.p_holm > SIGNIFICANT or self.by_seed is None:
            return "unclear"
        said = {Difference("", found).verdict for found in (self.difference, self.by_seed)}
        return said.pop() if len(said) == 1 else "unclear"


@dataclass(frozen=True)
class Aggregate:
    """A method over all targets that every method has finished, at one k."""

    method: str
    mean: Interval
    iqm: Interval
    median: Interval


@dataclass(frozen=True)
class Overall:
    """What all methods come to at one k on the targets and seeds that every one has finished; no ranking of few."""

    k: int
    places: Places
    aggregates: tuple[Aggregate, ...]
    ranking: Ranking | None
    duels: tuple[PairwiseComparison, ...]

    @property
    def shared(self) -> tuple[str, ...]:
        """The targets."""
        return tuple(self.places)


@dataclass(frozen=True)
class Findings:
    """Everything a report computes from its rows, once."""

    grid: Grid
    comparisons: tuple[Comparison, ...]
    overall: tuple[Overall, ...]

    def at(self, k: int) -> dict[str, Comparison]:
        """The comparisons at one k by method."""
        return {c.method: c for c in self.comparisons if c.k == k}


def find(grid: Grid) -> Findings:
    """All that the rows of a grid say."""
    return Findings(grid, comparisons(grid), tuple(overall(grid, k) for k in grid.ks))


def comparisons(grid: Grid) -> tuple[Comparison, ...]:
    """Every other method against the baseline at every k; Holm's correction runs over all of them together."""
    found = [
        compared
        for k in grid.ks
        for method in grid.methods
        if method != grid.baseline and (compared := comparison(grid, method, k)) is not None
    ]
    corrected = holm([c.p for c in found])
    return tuple(replace(c, p_holm=p) for c, p in zip(found, corrected, strict=True))


def comparison(grid: Grid, method: str, k: int) -> Comparison | None:
    """One method against the baseline on the targets and seeds both have; None where there are none."""
    base_of = {row.target: grid.scores.get((grid.baseline, row.target, k), {}) for row in grid.targets}
    pairs = {target: same_seeds(grid.seeds(method, target, k), base) for target, base in base_of.items()}
    pairs = {target: both for target, both in pairs.items() if both}
    if not pairs:
        return None
    ours = {t: [x for x, _ in both.values()] for t, both in pairs.items()}
    base = {t: [y for _, y in both.values()] for t, both in pairs.items()}
    gaps = {t: {seed: x - y for seed, (x, y) in both.items()} for t, both in pairs.items()}
    p = paired_permutation([gap for of_target in gaps.values() for gap in of_target.values()])
    return Comparison(
        method=method,
        k=k,
        targets=tuple(Difference(t, interval(list(gap.values()))) for t, gap in gaps.items()),
        difference=mean_difference(ours, base),
        by_seed=by_seed(gaps),
        gains=average_relative_gain(ours, base),
        improvement=probability_of_improvement(ours, base),
        p=p,
        p_holm=p,
        p_targets=paired_permutation([mean(gap) for gap in gaps.values()]),
    )


def same_seeds(ours: Seeds, base: Seeds) -> dict[int, tuple[float, float]]:
    """Both scores at their common seeds; a method that ran once, whatever the seed, stands beside each."""
    if len(ours) == 1 and len(base) > 1 and not set(ours) & set(base):
        ours = dict.fromkeys(base, next(iter(ours.values())))
    return {seed: (ours[seed], base[seed]) for seed in sorted(set(ours) & set(base))}


def by_seed(gaps: Mapping[str, Seeds]) -> Interval | None:
    """The mean difference with each seed's mean over targets as one observation; None where no seed has all targets.

    A prior is fitted once for a seed and shared by its targets, so that their differences stand and fall together.
    """
    common = sorted(set.intersection(*(set(gap) for gap in gaps.values())))
    return interval([sum(gap[seed] for gap in gaps.values()) / len(gaps) for seed in common]) if common else None


def overall(grid: Grid, k: int) -> Overall:
    """Aggregates, ranks and duels at one k."""
    places = shared_places(grid, k)
    if not places:
        return Overall(k, {}, (), None, ())
    runs = {m: shared_runs(grid, m, places, k) for m in grid.methods}
    means = {m: [sum(x) / len(x) for x in of_method.values()] for m, of_method in runs.items()}
    rankable = len(means) > 2 and len(places) > 1
    return Overall(
        k,
        places,
        tuple(aggregate(method, of_method) for method, of_method in runs.items()),
        ranking(means) if rankable else None,
        duels(means),
    )


def shared_places(grid: Grid, k: int) -> Places:
    """The targets that every method has finished, with the seeds that all of those have that learned from shots."""
    found = {}
    for target in (row.target for row in grid.targets):
        done = [set(grid.scores[m, target, k]) for m in grid.methods if (m, target, k) in grid.scores]
        seeds = set.intersection(*done) if done else set()
        if all(grid.seeds(m, target, k) for m in grid.methods) and (seeds or not done):
            found[target] = frozenset(seeds)
    return found


def shared_runs(grid: Grid, method: str, places: Places, k: int) -> dict[str, list[float]]:
    """The scores of one method at some places; what needs no examples stands beside all of them."""
    found = {}
    for target, seeds in places.items():
        scores = grid.seeds(method, target, k)
        has_own = (method, target, k) in grid.scores
        found[target] = [score for seed, score in scores.items() if seed in seeds or not has_own]
    return found


def mean(seeds: Seeds) -> float:
    """The mean over seeds."""
    return sum(seeds.values()) / len(seeds)


def aggregate(method: str, runs: Runs) -> Aggregate:
    """Mean, interquartile mean and median target of one method's runs."""
    statistics = (mean_over_targets, interquartile_mean, median_target)
    return Aggregate(method, *(stratified_bootstrap(runs, statistic) for statistic in statistics))


# Words --------------------------------------------------------------------------------------------------


def headline(grid: Grid, found: Sequence[Comparison]) -> list[str]:
    """A few sentences: whether methods that learned from sources beat the baseline, and where they hurt."""
    transfer = [c for c in found if c.method in grid.transfer]
    if not transfer:
        return [
            "Nothing to compare: no method that learned from source tasks shares a target and a seed with "
            f"{grid.baseline}."
        ]
    say = tally if len(transfer) <= DETAILED else brief
    words = [verdict_words(grid, transfer, k, say) for k in sorted({c.k for c in transfer})]
    return [*words, negative_transfer(grid, transfer)]


def verdict_words(grid: Grid, found: Sequence[Comparison], k: int, say: Callable[[Comparison], str]) -> str:
    """What the overall tests say at one k."""
    at_k = [c for c in found if c.k == k]
    phrases = []
    for verdict, verb in (("better", "beats"), ("worse", "falls behind")):
        named = [say(c) for c in at_k if c.verdict == verdict]
        if named:
            phrases.append(f"{listed(named)} {plural(named, verb)} {grid.baseline} on average")
    unclear = [say(c) for c in at_k if c.verdict == "unclear"]
    if unclear:
        verb = f"{plural(unclear, 'shows')} no clear difference from"
        phrases.append(f"{listed(unclear)} {verb} {grid.baseline} on average")
    return f"With k{NO_BREAK}={NO_BREAK}{k}, {'; '.join(phrases)}."


def brief(c: Comparison) -> str:
    """A method with its mean difference."""
    return f"{c.method} ({signed(c.difference.estimate)})"


def tally(c: Comparison) -> str:
    """A method with its mean difference and on how many targets it is clearly better or worse."""
    better, worse = len(c.targets_that_are("better")), len(c.targets_that_are("worse"))
    parts = [f"{word} on {n}" for word, n in (("better", better), ("worse", worse)) if n] or ["better on none"]
    return f"{c.method} ({signed(c.difference.estimate)}; clearly {', '.join(parts)} of {len(c.targets)} targets)"


def negative_transfer(grid: Grid, found: Sequence[Comparison]) -> str:
    """Targets on which some transfer method is clearly worse than the baseline, the worst hit first."""
    worse: dict[str, dict[str, list[str]]] = {}
    for c in found:
        for d in c.targets_that_are("worse"):
            worse.setdefault(d.target, {}).setdefault(c.method, []).append(str(c.k))
    if not worse:
        return "On no target is a transfer method clearly worse."
    hits = {target: sum(map(len, methods.values())) for target, methods in worse.items()}
    worst = sorted(worse, key=lambda target: -hits[target])
    if len(worst) > NAMED:
        shown = listed([f"{target} ({hits[target]} times)" for target in worst[:NAMED]])
        return (
            f"Negative transfer: some method is clearly worse on {len(worst)} of {len(grid.targets)} targets, "
            f"most often on {shown}."
        )
    named = [
        f"{target} ({'; '.join(f'{m}, k{NO_BREAK}={NO_BREAK}{listed(ks)}' for m, ks in methods.items())})"
        for target in worst
        for methods in [worse[target]]
    ]
    return f"Negative transfer: clearly worse on {listed(named)}."


def counts(c: Comparison) -> str:
    """Wins, losses and ties in words."""
    ties = f", equal on {c.gains.ties}" if c.gains.ties else ""
    return f"higher on {c.gains.wins} of {len(c.targets)} targets, lower on {c.gains.losses}{ties}"


def listed(names: Sequence[str]) -> str:
    """Names with commas and "and".

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def plural(names: Sequence[str], verb: str) -> str:
    """The verb in the third person, without its s for several.

    >>> plural(["a", "b"], "falls behind")
    'fall behind'
    """
    first, *rest = verb.split(" ")
    return " ".join([first.removesuffix("s") if len(names) > 1 else first, *rest])


def settings_of(rows: Sequence[Row]) -> dict[str, str]:
    """Every setting of some cells as text; where cells differ, the values with how many cells have each."""
    keys = dict.fromkeys(key for row in rows for key in row.settings)
    return {key: counted([json.dumps(row.settings.get(key)) for row in rows]) for key in keys}


def counted(values: Sequence[str]) -> str:
    """Distinct values, the most common first.

    >>> counted(["1", "2", "2"])
    '2 (2 cells), 1 (1 cell)'
    """
    distinct = sorted(set(values), key=lambda v: (-values.count(v), v))
    if len(distinct) == 1:
        return distinct[0]
    shown = [f"{v} ({(n := values.count(v))} cell{'s' * (n > 1)})" for v in distinct[:8]]
    return ", ".join([*shown, "…"] if len(distinct) > 8 else shown)
