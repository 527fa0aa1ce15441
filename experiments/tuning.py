"""Which rate and how many steps each method wants, by cross-validated dev scores alone (docs/tuning.md).

    python experiments/tuning.py runs/tuning/results.jsonl

The statistic of a point (rate, steps) is the mean over targets, shots and draws of the dev score. Points that are not
worse than the best by more than one standard error of the paired difference count as equal; of these the one with the
fewest steps is taken, then the one with the smallest rate. Raises SystemExit where a method lacks cells of a point.
"""

import sys
from collections import defaultdict
from math import sqrt
from pathlib import Path
from statistics import mean, stdev

from promptprior.report.results import read_rows


def main(path: Path) -> None:
    """Print a line for every method and point, and a star at the one that is taken."""
    scores: dict[str, dict[tuple[int, float], dict[tuple[str, int, int], float]]] = defaultdict(dict)
    for row in read_rows(path):
        if row.status == "ok" and row.dev_score is not None:
            target = row.settings["target"]
            point = (int(target["steps"]), float(target["learning_rates"][0]))
            scores[row.method].setdefault(point, {})[row.target, row.k, row.seed] = row.dev_score
    print("| method | steps | rate | dev score | below the best | standard error | cells |", "|" + "---|" * 7, sep="\n")
    for method, points in sorted(scores.items()):
        cells = set.union(*(set(of_point) for of_point in points.values()))
        if lacking := [point for point, of_point in points.items() if cells - of_point.keys()]:
            raise SystemExit(f"{method}: cells are missing at (steps, rate) {lacking}; run the same compare again")
        best = max(points, key=lambda point: mean(points[point].values()))
        gaps = {point: [points[best][cell] - of[cell] for cell in sorted(cells)] for point, of in points.items()}
        errors = {point: stdev(gap) / sqrt(len(gap)) if len(gap) > 1 else 0.0 for point, gap in gaps.items()}
        taken = min(point for point, gap in gaps.items() if mean(gap) <= errors[point])
        for steps, rate in sorted(points):
            gap, error, of = mean(gaps[steps, rate]), errors[steps, rate], points[steps, rate]
            star = " *" if (steps, rate) == taken else ""
            line = (
                f"{method}{star} | {steps} | {rate:g} | {mean(of.values()):.3f} | {gap:.3f} | {error:.3f} | {len(of)}"
            )
            print(f"| {line} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
