"""What a guard would have made of each prior: at every target and seed the prior's prompt or the baseline's,
whichever the dev shots prefer (guard.py), scored on test.

Worked out from results alone. "No prompt" is not among the rivals here, since it has seen no dev shots.
"""

from itertools import product

from promptprior.report.results import Grid, Row
from promptprior.report.scores import shared_words
from promptprior.report.section import Section, columns, list_words, make_table
from promptprior.report.statistics import TIE, Interval, mean_difference, stratified_bootstrap


def guard_section(grid: Grid) -> Section:
    """Every method that learned from sources, over the targets and seeds that all methods have finished.

    A method is left out where some prompt of it, or of the baseline, was not judged on dev shots.
    """
    results: dict[int, list[tuple[str, Interval, Interval, Interval, float]]] = {}
    for k, method in product(grid.ks, (m for m in grid.methods if m in grid.transfer)):
        alone: dict[str, list[float]] = {target: [] for target in grid.shared[k]}
        guarded: dict[str, list[float]] = {target: [] for target in grid.shared[k]}
        baseline: dict[str, list[float]] = {target: [] for target in grid.shared[k]}
        is_kept: list[bool] = []
        is_judged = True
        for target, seed in ((target, seed) for target, seeds in grid.shared[k].items() for seed in sorted(seeds)):
            ours, base = (grid.by_place.get((m, target, k, seed)) for m in (method, grid.baseline))
            if ours is None or base is None:
                continue
            our_dev, base_dev = _dev_preference(grid, ours), _dev_preference(grid, base)
            if our_dev is None or base_dev is None or ours.score is None or base.score is None:
                is_judged = False
                break
            is_kept.append(our_dev >= base_dev)
            alone[target].append(grid.merit(target, ours.score))
            guarded[target].append(grid.merit(target, ours.score if is_kept[-1] else base.score))
            baseline[target].append(grid.merit(target, base.score))
        if is_judged and is_kept and all(alone.values()):
            means = (stratified_bootstrap(alone), stratified_bootstrap(guarded), mean_difference(guarded, baseline))
            results.setdefault(k, []).append((method, *means, sum(is_kept) / len(is_kept)))

    heads = (
        *columns("Method", ["Mean alone", "Mean guarded"]),
        *columns("", {f"Guarded minus {grid.baseline}": "signed"}, {"Share kept": "two_digits"}),
    )
    parts, found = [], []
    for k, rows in results.items():
        gains = {str(method): guarded.estimate - alone.estimate for method, alone, guarded, *_ in rows}
        ways = (("raises", 1), ("lowers", -1), ("does not change", 0))
        named = {way: [m for m, gain in gains.items() if (gain > TIE) - (gain < -TIE) == sign] for way, sign in ways}
        found.append(f"k = {k}: a guard {'; '.join(f'{way} {list_words(m)}' for way, m in named.items() if m)}.")
        note = (
            f"At every target and seed the method's prompt or that of {grid.baseline}, whichever the dev shots prefer "
            "(score, then NLL; what is equal stays with the method), scored on test: what adapt --guard would have "
            f"shipped if it did not also look at no prompt. Over {shared_words(tuple(grid.shared[k]))}.{grid.sign_note}"
        )
        parts.append((k, (make_table(f"guarded-k{k}", f"With a guard, k = {k}", note, heads, rows),)))
    return Section("With a guard", tuple(parts), finding=" ".join(found))


def _dev_preference(grid: Grid, row: Row) -> tuple[float, float] | None:
    """Merit on dev, then NLL, at the step that was kept: higher is better. None where dev was not asked."""
    nll = next((p.dev_nll for p in row.curve if p.step == row.best_step and p.dev_nll is not None), None)
    return None if nll is None else (grid.merit(row.target, row.dev_score or 0.0), -nll)
