"""What the numbers of a report cannot say: the gates of docs/protocol.md that its rows do not pass."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from promptprior.report.protocol.contrasts import fit_of
from promptprior.report.results import Grid
from promptprior.report.section import format_number

UNTRAINED = 0.1  # share of the baseline's cells that may keep their start
ENOUGH_ROWS, ENOUGH_DRAWS = 240, 5
LISTED = 6  # targets that a line names
ZERO_SHOT = "zero_shot"


@dataclass(frozen=True)
class Caution:
    """A gate that is not passed, where, and what therefore cannot be said. `spoils` claims, or only weakens them."""

    gate: str
    found: str
    so: str
    spoils: bool = True


def cautions(grid: Grid) -> Iterator[Caution]:
    """Every gate that the rows of a grid do not pass, those that spoil claims first."""
    constants = {target: row.constant for target, row in grid.targets.items() if row.constant is not None}
    for method in grid.methods:
        for k in grid.ks if method != "constant" else ():
            below = []
            for target, constant in constants.items():
                mean = grid.intervals.get((method, target, k))
                if mean is not None and grid.merit(target, mean.estimate) <= grid.merit(target, constant):
                    scores = (format_number(x, "two_digits") for x in (mean.estimate, constant))
                    below.append(f"{target} ({' against '.join(scores)})")
            if below:
                rest = ["…"] if len(below) > LISTED else []
                yield Caution(
                    "below a constant answer",
                    f"{method}, k = {k}: {len(below)} of {len(constants)} targets: {', '.join(below[:LISTED] + rest)}",
                    f"there {method} may have learned nothing; its differences are of label shares",
                )

    for k in grid.ks:
        runs = [grid.shared_runs.get((method, k)) for method in (grid.baseline, ZERO_SHOT)]
        if all(runs) and grid.baseline != ZERO_SHOT:
            base, zero = (float(np.mean([np.mean(x) for x in of_method.values()])) for of_method in runs if of_method)
            if base < zero:
                scores = (format_number(x, "score") for x in (base, zero))
                yield Caution(
                    "baseline below zero-shot",
                    f"k = {k}: {grid.baseline} {' against '.join(scores)}, mean over targets",
                    "a method ahead of this baseline may only have been harmed less",
                )
    trained = [row for row in grid.rows if row.method == grid.baseline and row.steps and row.best_step is not None]
    kept = sum(row.best_step == 0 for row in trained)
    if trained and kept > UNTRAINED * len(trained):
        yield Caution(
            "baseline untrained",
            f"{grid.baseline} kept its start in {kept} of {len(trained)} cells",
            "differences from it are a head start in optimisation, not transfer: more steps, or another rate",
        )
    few = []
    for method in grid.methods:
        rows = [row for row in grid.rows if row.method == method and row.k and row.cost.source.tokens]
        seeds, fits = {row.seed for row in rows}, {fit_of(row) for row in rows}
        if len(fits) < len(seeds):
            few.append(f"{method} ({len(seeds)} draws, {len(fits)} prior{'s' * (len(fits) > 1)})")
    if few:
        yield Caution(
            "one prior for several draws",
            ", ".join(few),
            "intervals and tests over draws are of these priors, not of the methods; contrasts count fits",
        )

    fewest = {k: min((len(s) for (_, _, at), s in grid.scores.items() if at == k), default=0) for k in grid.ks if k}
    if short := [f"k = {k}: {n}" for k, n in fewest.items() if n < ENOUGH_DRAWS]:
        yield Caution("few draws", ", ".join(short), f"expected at least {ENOUGH_DRAWS}; small differences", False)
    if small := [f"{t} ({row.n_test})" for t, row in grid.targets.items() if row.n_test < ENOUGH_ROWS]:
        found = ", ".join(small[:LISTED] + ["…"] * (len(small) > LISTED))
        yield Caution("few test rows", found, f"expected at least {ENOUGH_ROWS}; small differences", False)
    if unknown := [t for t, row in grid.targets.items() if row.constant is None]:
        found = ", ".join(unknown[:LISTED] + ["…"] * (len(unknown) > LISTED))
        yield Caution("constant answer unknown", found, "whether methods beat one: older rows, or free text", False)
