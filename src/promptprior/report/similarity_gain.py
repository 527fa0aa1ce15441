"""How like sources and targets are, kept beside results, and whether likeness foretells what a prior is worth.

Measuring it takes a backbone (similarity.py); reading and judging it takes none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from promptprior.config.choices import Measure
from promptprior.files import read_json, write_json
from promptprior.report.findings import Grid, mean, same_seeds
from promptprior.report.results import BackboneName, parse
from promptprior.report.statistics import Interval, spearman

MEASURES: tuple[Measure, ...] = get_args(Measure)
SIMILARITY_FILE = "similarity.json"
FEWEST = 3  # points that a rank correlation needs


@dataclass(frozen=True)
class Similarity:
    """How like a source is to a target: cosines in [-1, 1], overlaps in [0, 1]."""

    source: str
    target: str
    prompt: float
    token: float
    gradient: float
    label: float
    format: float


@dataclass(frozen=True)
class TaskSimilarity:
    """Similarities of pairs, and what they were measured with: a backbone, k shots of a seed, steps."""

    backbone: BackboneName
    shots: int
    seed: int
    steps: int
    pairs: tuple[Similarity, ...]


def ranked(pairs: Sequence[Similarity], by: Measure) -> dict[str, list[Similarity]]:
    """The sources of each target, the most similar first."""
    targets = dict.fromkeys(pair.target for pair in pairs)
    order = sorted(pairs, key=lambda pair: getattr(pair, by), reverse=True)
    return {target: [pair for pair in order if pair.target == target] for target in targets}


def write_similarity(found: TaskSimilarity, path: Path) -> Path:
    """Write similarities as JSON."""
    write_json(path, asdict(found))
    return path


def read_similarity(path: Path) -> TaskSimilarity | None:
    """Similarities that were written; None where there is no file. Raises DataError for anything else in it."""
    if not path.is_file():
        return None
    found: TaskSimilarity = parse(TaskSimilarity, read_json(path), str(path))
    return found


# Does it foretell gains? --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gain:
    """What a method that learned from some sources gained on a target over the baseline, averaged over k and seeds."""

    method: str
    sources: tuple[str, ...]
    target: str
    gain: float


def gains(grid: Grid) -> tuple[Gain, ...]:
    """The gains of every method, set of sources and target; results of other sources do not replace each other here."""
    found: dict[tuple[str, tuple[str, ...], str], list[float]] = {}
    for (method, sources, target, k), seeds in scores_by_sources(grid).items():
        both = same_seeds(seeds, grid.scores.get((grid.baseline, target, k), {}))
        if sources and both and method != grid.baseline:
            found.setdefault((method, sources, target), []).append(mean({s: x - y for s, (x, y) in both.items()}))
    return tuple(Gain(*place, sum(by_k) / len(by_k)) for place, by_k in found.items())


def scores_by_sources(grid: Grid) -> Mapping[tuple[str, tuple[str, ...], str, int], dict[int, float]]:
    """The score of each seed, for each method, set of sources, target and k."""
    found: dict[tuple[str, tuple[str, ...], str, int], dict[int, float]] = {}
    for row in grid.all_rows:
        if row.score is not None:
            place = (row.method, tuple(sorted(row.sources)), row.target, row.k)
            found.setdefault(place, {})[row.seed] = row.score
    return found


@dataclass(frozen=True)
class Foretold:
    """One measure against one method's gains: a point (likeness, gain) for each set of sources and target."""

    method: str
    measure: Measure
    points: tuple[tuple[str, float, float], ...]
    correlation: Interval | None


def similarity_gain_correlation(found: TaskSimilarity, measured: Sequence[Gain]) -> tuple[Foretold, ...]:
    """Every measure against every method's gains.

    A set of sources is as like a target as its sources are on average. Rank correlations resample whole targets; of
    fewer than three points there is none.
    """
    table = {(one.source, one.target): one for one in found.pairs}
    methods = dict.fromkeys(gain.method for gain in measured)
    return tuple(
        against_gains(table, [gain for gain in measured if gain.method == method], method, measure)
        for method in methods
        for measure in MEASURES
    )


def against_gains(
    table: Mapping[tuple[str, str], Similarity], measured: Sequence[Gain], method: str, measure: Measure
) -> Foretold:
    """One measure against one method's gains."""
    known = [gain for gain in measured if all((source, gain.target) in table for source in gain.sources)]
    task_similarity = [mean_likeness(table, gain, measure) for gain in known]
    points = tuple((g.target, x, g.gain) for g, x in zip(known, task_similarity, strict=True))
    if len(points) < FEWEST:
        return Foretold(method, measure, points, None)
    return Foretold(
        method, measure, points, spearman(task_similarity, [g.gain for g in known], [g.target for g in known])
    )


def mean_likeness(table: Mapping[tuple[str, str], Similarity], gain: Gain, measure: Measure) -> float:
    """The mean likeness of some sources to a target."""
    values: list[Any] = [getattr(table[source, gain.target], measure) for source in gain.sources]
    return float(sum(values) / len(values))
