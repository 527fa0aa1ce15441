"""What a guard would have made of each prior: at every target and seed the prior's prompt or the baseline's,
whichever the dev shots prefer (guard.py), scored on test.

Worked out from results alone. No prompt is not among the rivals here, since it has seen no dev shots.
"""

from dataclasses import dataclass

from promptprior.report.findings import Grid, Overall
from promptprior.report.results import Row
from promptprior.report.statistics import Interval, mean_difference, stratified_bootstrap


@dataclass(frozen=True)
class GuardedResult:
    """A method with the guard: its mean score, that over the baseline's, and the share of its prompts that was kept."""

    method: str
    alone: Interval
    guarded: Interval
    gain: Interval
    kept: float


def guard_analysis(grid: Grid, overall: Overall) -> tuple[GuardedResult, ...]:
    """Every method that learned from sources, over the targets and seeds that all methods have finished.

    Nothing where the baseline, or a method, was not judged on dev shots.
    """
    found = (screen(grid, a.method, overall) for a in overall.aggregates if a.method in grid.transfer)
    return tuple(one for one in found if one is not None)


def screen(grid: Grid, method: str, overall: Overall) -> GuardedResult | None:
    """One method; None where some prompt of it or of the baseline was not judged on dev."""
    pairs = {target: duels_at(grid, method, target, overall) for target in overall.places}
    judged = [(dev_rank(ours), dev_rank(base)) for some in pairs.values() for ours, base in some]
    if not judged or any(rank is None for both in judged for rank in both) or not all(pairs.values()):
        return None
    alone = {t: [score(ours) for ours, _ in some] for t, some in pairs.items()}
    base = {t: [score(base) for _, base in some] for t, some in pairs.items()}
    kept = {t: [score(choice(ours, base)) for ours, base in some] for t, some in pairs.items()}
    return GuardedResult(
        method=method,
        alone=stratified_bootstrap(alone),
        guarded=stratified_bootstrap(kept),
        gain=mean_difference(kept, base),
        kept=sum(choice(ours, base) is ours for some in pairs.values() for ours, base in some) / len(judged),
    )


def duels_at(grid: Grid, method: str, target: str, overall: Overall) -> list[tuple[Row, Row]]:
    """The rows of a method and of the baseline at the common seeds of a target; none where either has none."""
    places = [(target, overall.k, seed) for seed in sorted(overall.places[target])]
    rows = [(grid.places.get((method, *p)), grid.places.get((grid.baseline, *p))) for p in places]
    return [(ours, base) for ours, base in rows if ours is not None and base is not None]


def choice(ours: Row, base: Row) -> Row:
    """The row whose prompt dev prefers; what is equal stays with the prior."""
    mine, theirs = dev_rank(ours), dev_rank(base)
    assert mine is not None
    assert theirs is not None
    return ours if mine >= theirs else base


def dev_rank(row: Row) -> tuple[float, float] | None:
    """Dev score, then NLL, at the step that was kept: higher is better. None where dev was not asked."""
    nll = next((p.dev_nll for p in row.curve if p.step == row.best_step and p.dev_nll is not None), None)
    return None if nll is None else (row.dev_score or 0.0, -nll)


def score(row: Row) -> float:
    """The test score of a row that has one."""
    assert row.score is not None
    return row.score
