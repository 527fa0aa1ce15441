"""How far the intervals and tests of a report can be trusted at few seeds: what docs/reading_a_report.md quotes.

    python benchmarks/report_statistics.py

Simulated differences between two methods that do not differ: normal noise for each target and seed, and, for `prior`, a
spread of what the prior of a seed does to all its targets at once, in units of that noise.
"""

import numpy as np

from promptprior.report.gains import interval_by_seed
from promptprior.report.statistics import paired_permutation, stratified_bootstrap

TRIALS, TARGETS = 1000, 8


def simulated(rng: np.random.Generator, seeds: int, prior: float) -> dict[str, float]:
    """Whether each of a report's judgements is wrong about one pair of equal methods."""
    gaps = rng.normal(0, 1, (TARGETS, seeds)) + prior * rng.normal(0, 1, seeds)
    runs = {str(t): gap.tolist() for t, gap in enumerate(gaps)}
    bootstrap, seeded = (
        stratified_bootstrap(runs),
        interval_by_seed({t: dict(enumerate(gap)) for t, gap in runs.items()}),
    )
    assert seeded is not None
    wrong = {
        "bootstrap": bootstrap.verdict != "unclear",
        "p": paired_permutation(gaps.ravel().tolist()) <= 0.05,
        "p, targets": paired_permutation(gaps.mean(1).tolist()) <= 0.05,
        "by seed": seeded.verdict != "unclear",
    }
    return {**wrong, "verdict": wrong["bootstrap"] and wrong["p"] and wrong["by seed"]}


def main() -> None:
    """A line for each number of seeds and spread of priors."""
    rng = np.random.default_rng(0)
    print(f"share of {TRIALS} pairs of equal methods on {TARGETS} targets that are called different")
    for seeds in (3, 5, 10):
        for prior in (0.0, 0.25, 0.5, 1.0):
            trials = [simulated(rng, seeds, prior) for _ in range(TRIALS)]
            shares = {name: np.mean([trial[name] for trial in trials]) for name in trials[0]}
            print(f"seeds {seeds:2}  prior {prior:4}  " + "  ".join(f"{n} {s:.3f}" for n, s in shares.items()))


if __name__ == "__main__":
    main()
