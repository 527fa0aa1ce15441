"""What a guard would have made of each prior: at every target and seed the prior's prompt or the baseline's,
whichever the dev shots prefer (guard.py), scored on test.

Worked out from results alone. "No prompt" is not among the rivals here, since it has seen no dev shots.
"""

from dataclasses import dataclass

from promptprior.report.results import Grid, Row
from promptprior.report.scores import shared_words
from promptprior.report.section import Section, columns, make_table
from promptprior.report.statistics import Interval, mean_difference, stratified_bootstrap


@dataclass(frozen=True)
class GuardedResult:
    """A method with the guard: its mean score, that over the baseline's, and the share of its prompts that was kept."""

    method: str
    unguarded: Interval
    guarded: Interval
    gain: Interval
    share_kept: float


def guard_analysis(grid: Grid, k: int) -> tuple[GuardedResult, ...]:
    """Every method that learned from sources, over the targets and seeds that all methods have finished.

    A method is left out where some prompt of it, or of the baseline, was not judged on dev shots.
    """
    results = []
    for method in (m for m in grid.methods if m in grid.transfer):
        unguarded: dict[str, list[float]] = {}
        guarded: dict[str, list[float]] = {}
        baseline: dict[str, list[float]] = {}
        is_kept: list[bool] = []
        is_judged = True
        for target, seeds in grid.shared[k].items():
            unguarded[target], guarded[target], baseline[target] = [], [], []
            for seed in sorted(seeds):
                ours = grid.by_place.get((method, target, k, seed))
                base = grid.by_place.get((grid.baseline, target, k, seed))
                if ours is None or base is None:
                    continue
                our_dev, base_dev = dev_preference(ours), dev_preference(base)
                if our_dev is None or base_dev is None or ours.score is None or base.score is None:
                    is_judged = False
                    break
                is_kept.append(our_dev >= base_dev)
                unguarded[target].append(ours.score)
                guarded[target].append(ours.score if is_kept[-1] else base.score)
                baseline[target].append(base.score)
        if is_judged and is_kept and all(unguarded.values()):
            results.append(
                GuardedResult(
                    method,
                    unguarded=stratified_bootstrap(unguarded),
                    guarded=stratified_bootstrap(guarded),
                    gain=mean_difference(guarded, baseline),
                    share_kept=sum(is_kept) / len(is_kept),
                )
            )
    return tuple(results)


def dev_preference(row: Row) -> tuple[float, float] | None:
    """Dev score, then NLL, at the step that was kept: higher is better. None where dev was not asked."""
    nll = next((p.dev_nll for p in row.curve if p.step == row.best_step and p.dev_nll is not None), None)
    return None if nll is None else (row.dev_score or 0.0, -nll)


def guard_section(grid: Grid) -> Section:
    """What a guard would have kept, where dev has judged both sides."""
    parts = []
    for k in grid.ks:
        results = guard_analysis(grid, k)
        if not results:
            continue
        table = make_table(
            f"guarded-k{k}",
            f"With a guard, k = {k}",
            f"At every target and seed the method's prompt or that of {grid.baseline}, whichever the dev shots prefer "
            "(score, then NLL; what is equal stays with the method), scored on test: what adapt --guard would have "
            f"shipped if it did not also look at no prompt. Over {shared_words(tuple(grid.shared[k]))}.",
            (
                *columns("Method", ["Mean alone", "Mean guarded"]),
                *columns("", {f"Guarded minus {grid.baseline}": "signed"}, {"Share kept": "two_digits"}),
            ),
            [(r.method, r.unguarded, r.guarded, r.gain, r.share_kept) for r in results],
        )
        parts.append((k, (table,)))
    return Section("With a guard", tuple(parts))
