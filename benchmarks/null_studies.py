"""How often a study of two equal methods calls them different: the false positives that docs/protocol.md quotes.

    python benchmarks/null_studies.py --json null_studies.json

Simulated differences: normal noise for each target and draw, and a spread of what fitting does to all targets of a
draw at once, in units of that noise; with one prior it is the same for all draws. `by fit` is the protocol's primary
test (report/statistics.py: mean_test over fits; one fit is refused). The others are what the studies of docs/studies
had, or judge by.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from promptprior.report.statistics import (
    hierarchical_bootstrap,
    mean_test,
    paired_permutation,
    stratified_bootstrap,
)

Gaps = np.ndarray  # [draws, targets]
SPREADS, PRIORS, PRIMARY = (0.0, 0.5, 1.0), ("per draw", "one"), "by fit"


def of_targets(gaps: Gaps) -> dict[str, list[float]]:
    """Differences by target, as a report has them."""
    return {str(t): column for t, column in enumerate(gaps.T.tolist())}


def by_fit(gaps: Gaps, fits: dict[int, int]) -> bool:
    """Whether Student's t over the means of fits rejects, as contrasts.Contrast does; never with one fit."""
    means = [gaps[[d for d in fits if fits[d] == fit]].mean() for fit in set(fits.values())]
    return mean_test(means) <= 0.05


def hierarchical(gaps: Gaps, fits: dict[int, int]) -> bool:
    """Whether the hierarchical interval leaves out 0."""
    table = {t: dict(enumerate(column)) for t, column in of_targets(gaps).items()}
    return hierarchical_bootstrap(table, fits).verdict != "unclear"


TESTS: dict[str, tuple[int, Callable[[Gaps, dict[int, int]], bool]]] = {  # studies for one; whether it rejects
    PRIMARY: (5, by_fit),
    "by draw, whoever fitted": (5, lambda gaps, _: mean_test(gaps.mean(1).tolist()) <= 0.05),
    "hierarchical bootstrap": (1, hierarchical),
    "stratified bootstrap": (1, lambda gaps, _: stratified_bootstrap(of_targets(gaps)).verdict != "unclear"),
    "permutation of all cells": (1, lambda gaps, _: paired_permutation(gaps.ravel().tolist()) <= 0.05),
}  # fmt: skip


def main() -> None:
    """A line for every spread, kind of priors and test; with --json FILE the same as a list of objects."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--targets", type=int, default=8)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--studies", type=int, default=400, help="simulated; five times as many for tests by fit")
    asked, rows = parser.parse_args(), []
    for fit_spread in SPREADS:
        for priors in PRIORS:
            rng = np.random.default_rng(0)
            wrong = dict.fromkeys(TESTS, 0)
            for study in range(5 * asked.studies):
                fit = rng.normal(0, fit_spread, (asked.draws if priors == "per draw" else 1, 1))
                gaps = rng.normal(0, 1, (asked.draws, asked.targets)) + fit
                fits = {d: d if priors == "per draw" else 0 for d in range(asked.draws)}
                for name, (times, rejects) in TESTS.items():
                    if times == 5 or study < asked.studies:
                        wrong[name] += bool(rejects(gaps, fits))
            for name, (times, _) in TESTS.items():
                rate = wrong[name] / (times * asked.studies)
                rows.append({"fit_spread": fit_spread, "priors": priors, "test": name, "false_positive_rate": rate})
                print(f"fit spread {fit_spread:3}  priors {priors:8}  {name:26} {rate:.3f}", flush=True)
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
