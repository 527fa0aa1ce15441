"""How similar sources and targets are, kept beside results, and whether similarity predicts what a prior is worth.

Measuring it takes a backbone (compare.task_similarity); reading and judging it takes none.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from promptprior.config.choices import Measure
from promptprior.errors import DataError
from promptprior.files import read_json, write_json
from promptprior.report.gains import pair_seeds
from promptprior.report.plots import LONGEST_NAME, escaped, heatmap, method_style
from promptprior.report.results import BackboneName, Grid, parse
from promptprior.report.section import (
    Control,
    Plot,
    Section,
    Table,
    Value,
    columns,
    format_number,
    interval_cell,
    list_words,
    make_table,
)
from promptprior.report.statistics import Interval, rank_correlation

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

MEASURES: tuple[Measure, ...] = get_args(Measure)
FEWEST = 3  # points that a rank correlation needs


@dataclass(frozen=True)
class Similarity:
    """How similar a source is to a target: cosines in [-1, 1], overlaps in [0, 1]."""

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

    def table(self) -> Table:
        """Every pair by every measure."""
        return make_table(
            "similarity",
            "Similarity of sources and targets",
            f"Measured on {self.backbone.name} with {self.shots} shots per class (seed {self.seed}) and {self.steps} "
            "steps from one common start. prompt, token, gradient: cosines of what training added to the prompt, of "
            "the same for its average token, and of the gradients at the start. label, format: overlap of answers and "
            "of the words of the template.",
            columns("Source|Target", (), dict.fromkeys(MEASURES, "two_digits")),
            [
                (p.source, p.target, *(getattr(p, m) for m in MEASURES))
                for p in sorted(self.pairs, key=lambda p: (p.target, -p.gradient))
            ],
        )

    def figure(self, measure: Measure) -> "Figure":
        """Sources x targets by one measure."""
        sources = list(dict.fromkeys(p.source for p in self.pairs))
        targets = list(dict.fromkeys(p.target for p in self.pairs))
        known = {(p.source, p.target): getattr(p, measure) for p in self.pairs}
        values = [[known.get((s, t)) for t in targets] for s in sources]
        largest = max(0.01, *map(abs, known.values()))
        figure = heatmap(targets, sources, values, (-largest if min(known.values()) < 0 else 0, largest), " → ")
        figure.update_layout(
            height=90 + 28 * len(sources) + 5 * min(LONGEST_NAME, max(map(len, targets)))
        )  # slanted names
        figure.update_xaxes(tickangle=-35)
        return figure


def similar_sources(pairs: Sequence[Similarity], by: Measure) -> dict[str, list[Similarity]]:
    """The sources of each target, the most similar first."""
    targets = dict.fromkeys(pair.target for pair in pairs)
    order = sorted(pairs, key=lambda pair: getattr(pair, by), reverse=True)
    return {target: [pair for pair in order if pair.target == target] for target in targets}


def write_similarity(similarity: TaskSimilarity, path: Path) -> Path:
    """Write similarities as JSON."""
    write_json(path, asdict(similarity))
    return path


def read_similarity(*paths: Path) -> TaskSimilarity | None:
    """Similarities that were written, of several files those of all; None where there is no file.

    Raises DataError for anything else in one, and where two were measured with different things.
    """
    found: dict[Path, TaskSimilarity] = {p: parse(TaskSimilarity, read_json(p), str(p)) for p in paths if p.is_file()}
    if not found:
        return None
    (first, whole), *others = found.items()
    for path, similarity in others:
        if replace(similarity, pairs=()) != replace(whole, pairs=()):
            raise DataError(f"{path} and {first} were measured with different backbones, shots, seeds or steps")
    pairs = {(pair.source, pair.target): pair for similarity in found.values() for pair in similarity.pairs}
    return replace(whole, pairs=tuple(pairs.values()))


@dataclass(frozen=True)
class GainCorrelation:
    """One measure against one method's gains: a point (target, similarity, gain) for each set of sources and target."""

    method: str
    measure: Measure
    points: tuple[tuple[str, float, float], ...]
    correlation: Interval | None


def similarity_gain_correlation(grid: Grid, similarity: TaskSimilarity) -> dict[tuple[str, Measure], GainCorrelation]:
    """Every measure against what every method gained over the baseline, averaged over k and seeds.

    A set of sources is as similar to a target as its sources are on average; results of other sources do not replace
    each other here. Rank correlations resample whole targets; of fewer than three points there is none.
    """
    scores: dict[tuple[str, tuple[str, ...], str, int], dict[int, float]] = {}
    for row in grid.all_rows:
        if row.score is not None:
            scores.setdefault((row.method, tuple(sorted(row.sources)), row.target, row.k), {})[row.seed] = row.score
    gains: dict[str, dict[tuple[tuple[str, ...], str], list[float]]] = {}  # method -> sources and target -> every k's
    for (method, sources, target, k), seeds in scores.items():
        place = (grid.baseline, target, k)
        pairs = pair_seeds(seeds, grid.seed_scores.get(place, {}), False, place not in grid.scores)
        if sources and pairs and method != grid.baseline:
            gain = grid.merit(target, sum(x - y for x, y in pairs.values()) / len(pairs))
            gains.setdefault(method, {}).setdefault((sources, target), []).append(gain)

    known = {(pair.source, pair.target): pair for pair in similarity.pairs}
    correlations = {}
    for method, measure in product(gains, MEASURES):
        points = []
        for (sources, target), at_ks in gains[method].items():
            if all((source, target) in known for source in sources):
                values: list[float] = [getattr(known[source, target], measure) for source in sources]
                points.append((target, sum(values) / len(values), sum(at_ks) / len(at_ks)))
        correlation = None
        if len(points) >= FEWEST:
            targets, x, y = zip(*points, strict=True)
            correlation = rank_correlation(x, y, targets)
        correlations[method, measure] = GainCorrelation(method, measure, tuple(points), correlation)
    return correlations


def similarity_section(grid: Grid, similarity: TaskSimilarity | None) -> Section:
    """How similar sources and targets are, and whether that predicts gains."""
    if similarity is None or not similarity.pairs:
        return Section("Task similarity", ())
    correlations = similarity_gain_correlation(grid, similarity)
    methods = list(dict.fromkeys(method for method, _ in correlations))
    tables = [similarity.table()]
    if methods:
        note = (
            f"Spearman's rank correlation of similarity with the gain over {grid.baseline} (difference in score, "
            "averaged over k and seeds); a point is a set of sources and a target, as like as its sources are on "
            "average. 95% intervals resample targets. With one set of sources it compares targets, not sources."
        )
        rows: list[Sequence[Value]] = []
        for method in methods:
            of_method = [correlations[method, measure] for measure in MEASURES]
            cells = [interval_cell(c.correlation, "two_digits", no_ends="too few") for c in of_method]
            rows.append((method, *cells, len(of_method[0].points)))
        heads = columns("Method", MEASURES, {"Points": "count"})
        tables.append(make_table("similarity-gain", "Does similarity foretell gains?", note, heads, rows))
    clear = [
        f"{c.measure} with those of {c.method} (\N{GREEK SMALL LETTER RHO} "
        f"{format_number(c.correlation.estimate, 'two_digits')})"
        for c in correlations.values()
        if c.correlation and c.correlation.low is not None and c.correlation.high is not None
        and not c.correlation.low <= 0 <= c.correlation.high
    ]  # fmt: skip
    found = f"Similarity goes with gains: {list_words(clear)}." if clear else "No similarity clearly goes with gains."
    measures = Control("measure", {m: m for m in MEASURES}, "gradient")
    plots = [
        Plot(
            "similarity",
            "How like are sources and targets?",
            "",
            "Similarity of each source and target. The table of similarity holds the same numbers.",
            (measures,),
            similarity.figure,
            is_overview=False,
        )
    ]
    if any(correlation.points for correlation in correlations.values()):
        plots.append(
            Plot(
                "similarity-gain",
                "Similarity against measured gain",
                "Each symbol is a set of sources and a target.",
                "Gain over the baseline against similarity.",
                (measures,),
                lambda measure: gain_figure(grid, [c for c in correlations.values() if c.measure == measure]),
                is_overview=False,
            )
        )
    return Section("Task similarity", ((None, tuple(tables)),), tuple(plots) if grid.ks else (), found)


def gain_figure(grid: Grid, correlations: Sequence[GainCorrelation]) -> "Figure":
    """Similarity against gain by one measure: a symbol for each set of sources and target."""
    from plotly.graph_objects import Figure

    figure = Figure()
    for c in correlations:
        if not c.points:
            continue
        style, rho = method_style(grid, c.method), ""
        if c.correlation:
            rho = f" (\N{GREEK SMALL LETTER RHO} {format_number(c.correlation.estimate, 'two_digits')})"
        figure.add_scatter(
            x=[x for _, x, _ in c.points], y=[gain for _, _, gain in c.points], mode="markers", name=style.label + rho,
            hoverinfo="text",
            text=[
                f"{style.label} on {escaped(target)}<br>similarity {format_number(x, 'score')}, "
                f"gain {format_number(gain, 'score')}"
                for target, x, gain in c.points
            ],
            marker={"color": style.colour, "symbol": style.symbol, "size": 10,
                    "line": {"width": 1.5, "color": style.colour}},
        )  # fmt: skip
    figure.update_layout(showlegend=True)
    figure.update_xaxes(title=f"{correlations[0].measure} similarity")
    figure.update_yaxes(title="gain over the baseline", zeroline=True, zerolinecolor="var(--muted)")
    return figure
