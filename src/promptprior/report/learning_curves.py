"""How fast each beginning adapts: dev score by step, averaged over targets.

Dev shots chose step and learning rate, so these scores flatter every method; they compare speeds, not results.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from promptprior.report.findings import Grid, Overall
from promptprior.report.results import Row
from promptprior.report.statistics import Interval, stratified_bootstrap

LOOKS = (0, *(digit * 10**power for power in range(6) for digit in (1, 2, 5)))
FEW, SHOWN = 4, 8


@dataclass(frozen=True)
class Track:
    """Mean dev score of one method over targets, with its interval, at every step that all its runs have."""

    method: str
    points: tuple[tuple[int, Interval], ...]

    def at(self, step: int) -> Interval | None:
        """The score after so many steps; None where a run has none."""
        return dict(self.points).get(step)

    def reaches(self, level: float) -> int | None:
        """The first step at which the mean is at least this; None if it never is."""
        return next((step for step, score in self.points if score.estimate >= level), None)


@dataclass(frozen=True)
class Adaptation:
    """The tracks of all trained methods at one k over the same targets, which all have dev scores."""

    k: int
    targets: tuple[str, ...]
    tracks: tuple[Track, ...]


def adaptation(grid: Grid, overall: Overall) -> Adaptation:
    """Tracks over the targets on which every trained method has dev scores; no tracks where there is none."""
    trained = [m for m in grid.methods if any(curves(grid, m, target, overall) for target in overall.shared)]
    targets = tuple(t for t in overall.shared if trained and all(curves(grid, m, t, overall) for m in trained))
    found = tuple(track(grid, method, targets, overall) for method in trained) if targets else ()
    return Adaptation(overall.k, targets, tuple(t for t in found if t.points))


def curves(grid: Grid, method: str, target: str, overall: Overall) -> list[dict[int, float]]:
    """Dev score by step of each run at a shared seed; none unless all runs have some."""
    k, seeds = overall.k, overall.places[target]
    rows = [grid.places[method, target, k, s] for s in grid.scores.get((method, target, k), ()) if s in seeds]
    found = [dev_scores(row) for row in rows]
    return found if all(found) else []


def dev_scores(row: Row) -> dict[int, float]:
    """Dev score by step of one run."""
    return {point.step: point.dev_score for point in row.curve if point.dev_score is not None}


def track(grid: Grid, method: str, targets: Sequence[str], overall: Overall) -> Track:
    """One method's mean over targets at every step that all its runs have."""
    found = {target: curves(grid, method, target, overall) for target in targets}
    every = [run for runs in found.values() for run in runs]
    steps = sorted(set.intersection(*(set(run) for run in every)))
    scores = [(s, stratified_bootstrap({t: [run[s] for run in runs] for t, runs in found.items()})) for s in steps]
    return Track(method, tuple(scores))


def steps_to_show(found: Adaptation) -> tuple[int, ...]:
    """The steps a table shows: 0, 1, 2, 5, 10, ... and the last; a few evenly spaced ones where these are not there."""
    steps = sorted({step for one in found.tracks for step, _ in one.points})
    usual = tuple(step for step in steps if step in LOOKS or step == steps[-1])
    if len(usual) >= min(FEW, len(steps)):
        return usual
    stride = -(-len(steps) // SHOWN)
    return tuple(dict.fromkeys([*steps[::stride], steps[-1]]))
