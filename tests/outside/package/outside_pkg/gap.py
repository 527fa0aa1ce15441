"""A table for the report: how far methods stay below full marks (rliable's optimality gap, Agarwal et al. 2021)."""

from statistics import fmean

from promptprior.report.results import Grid
from promptprior.report.section import Column, Section, Table, TableCell


def optimality_gap(grid: Grid) -> Section:
    """For each number of shots, the mean of 1 - score over the targets and seeds that all methods share."""
    parts = []
    for k in grid.ks:
        runs = {method: grid.shared_runs[method, k].values() for method in grid.methods}
        gaps = {m: [1 - score for scores in targets for score in scores] for m, targets in runs.items()}
        rows = tuple((TableCell(m), TableCell(f"{fmean(v):.3f}", numbers=(fmean(v),))) for m, v in gaps.items() if v)
        columns = (Column("method", "text"), Column("gap", "number"))
        note = "Mean of 1 - score; smaller is better."
        parts.append((k, (Table(f"optimality_gap_{k}", f"Optimality gap at k = {k}", note, columns, rows),)))
    return Section("Optimality gap", tuple(parts))
