"""The smallest difference that a plan can show, told before anything runs (docs/protocol.md has the formula).

    spread of a fit's mean difference:  s^2 = fit^2 + cell^2 / targets

`fit` is what fitting a prior again adds to a method's mean over all targets, `cell` the noise of one paired difference:
shots, start, batches. Both are assumed, from refits of docs/studies, until finished cells of the plan show s itself.
"""

from collections.abc import Sequence

import numpy as np

from promptprior.compare.plan import Plan
from promptprior.report.protocol.contrasts import contrasts
from promptprior.report.results import Grid, Row
from promptprior.report.statistics import SIGNIFICANT, smallest_difference

FIT_SPREAD, CELL_NOISE = 0.04, 0.08  # standard deviations, in accuracy
SMALL = 0.03  # the differences that studies saw between priors were no larger
MEASURED_FROM = 3  # fits; of fewer the spread is assumed
MOST_FITS = 1000
BASELINE = "prompt_tuning"


def power_lines(plan: Plan, targets: int, rows: Sequence[Row]) -> list[str]:
    """What a plan on so many targets can show, in a line or two; `rows` are those of its cells that are finished."""
    needy = {method.name for method in plan.make_methods() if method.needs_sources}
    pairs = plan.contrast_pairs() or [(m, BASELINE) for m in plan.methods if BASELINE in plan.methods and m != BASELINE]
    if not pairs:
        return ["power: no pair of methods to compare; name some (--contrasts)"]
    tests, lines = len(pairs) * len(plan.shots), []
    if plan.source_seed is not None and (spoiled := [pair for pair in pairs if needy & set(pair)]):
        names = ", ".join(" - ".join(pair) for pair in spoiled)
        lines.append(f"power: one prior serves all draws (--source-seed): no difference can be shown for {names}")
        if len(spoiled) == len(pairs):
            return lines
    measured = [c.by_fit for c in contrasts(Grid(tuple(rows), BASELINE), pairs) if len(c.by_fit) >= MEASURED_FROM]
    spread = float(np.sqrt(FIT_SPREAD**2 + CELL_NOISE**2 / targets))
    origin = f"assumed: fit {FIT_SPREAD}, cell {CELL_NOISE}"
    if measured:
        spread = float(np.sqrt(np.mean([np.var(by_fit, ddof=1) for by_fit in measured])))
        origin = f"measured on {len(measured)} contrasts"
    found = smallest_difference(len(plan.seeds), spread, tests)
    if found is None:
        return [*lines, "power: one draw shows no difference; name more (--seeds)"]
    fits = range(2, MOST_FITS)
    needed = next((str(n) for n in fits if (smallest_difference(n, spread, tests) or 1) <= SMALL), f"over {MOST_FITS}")
    level = f"level {SIGNIFICANT / tests:.3g} for each of {tests} test{'s' * (tests > 1)}"
    lines.append(
        f"power: {len(plan.seeds)} fits on {targets} targets find a difference of {found:.3f} four times in five "
        f"({level}; spread by fit {spread:.3f}, {origin}); {SMALL} needs {needed} fits (--seeds)"
    )
    return lines
