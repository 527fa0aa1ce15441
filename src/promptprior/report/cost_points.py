"""What a target costs with each method, its share of the prior included, and whom nothing beats at that cost."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from promptprior.report.plots import error_bars, escaped, hover_interval, method_style, plot_label
from promptprior.report.results import Grid, Row
from promptprior.report.section import Control, Plot, Section, Table, TableCell, columns, count_distinct, number_cell
from promptprior.report.statistics import Interval, stratified_bootstrap

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Unit = Literal["seconds", "tokens", "rows"]
Share = Literal["share", "target", "whole"]
UNITS: dict[Unit, str] = {"seconds": "seconds", "tokens": "tokens read", "rows": "rows read"}
SHARES: dict[Share, str] = {
    "share": "target and its share of the prior",
    "target": "the target alone",
    "whole": "target and whole prior",
}
"""Of what its prior cost, a target bears an equal share with all cells that used it, nothing, or everything."""


@dataclass(frozen=True)
class CostPoint:
    """A method at one k: mean score, and the mean cost of a target in each unit and share of the prior."""

    method: str
    score: Interval
    costs: Mapping[tuple[Unit, Share], float]


def shared_by(grid: Grid) -> dict[str, int]:
    """For each cell, how many cells used its prior. Methods can share one.

    A row names its prior; in older results, which do not, exactly what it cost tells one prior from another.
    """
    named = {row.cost.source: row.settings["prior"] for row in grid.rows if "prior" in row.settings}
    prior = {row.cell: row.settings.get("prior") or named.get(row.cost.source, row.cost.source) for row in grid.rows}
    users = Counter(prior.values())
    return {cell: users[name] for cell, name in prior.items()}


def cost(row: Row, unit: Unit, share: Share, users: int) -> float:
    """What one cell cost."""
    borne = {"share": 1 / users, "target": 0, "whole": 1}[share]
    return float(getattr(row.cost.target, unit) + getattr(row.cost.source, unit) * borne)


def mean_costs(rows: Sequence[Row], users: Mapping[str, int]) -> dict[tuple[Unit, Share], float]:
    """The mean costs of some cells in each unit and share of the prior."""
    return {
        (unit, share): sum(cost(row, unit, share, users[row.cell]) for row in rows) / len(rows)
        for unit in UNITS
        for share in SHARES
    }


def cost_points(grid: Grid, k: int) -> tuple[CostPoint, ...]:
    """Every method on the targets that all have finished; none where there is no such target."""
    users = shared_by(grid)
    points = []
    for method in grid.methods if grid.shared[k] else ():
        rows = [row for of_target in grid.shared_rows(method, k).values() for row in of_target]
        points.append(CostPoint(method, stratified_bootstrap(grid.shared_runs(method, k)), mean_costs(rows, users)))
    return tuple(points)


def pareto_front(points: Sequence[CostPoint], unit: Unit, share: Share) -> tuple[CostPoint, ...]:
    """Those that no other beats, the cheapest first: none scores as high for less, or higher for as little."""
    at = [(point.costs[unit, share], point.score.estimate) for point in points]
    best = [
        point
        for point, (paid, score) in zip(points, at, strict=True)
        if not any(p <= paid and s >= score and (p, s) != (paid, score) for p, s in at)
    ]
    return tuple(sorted(best, key=lambda point: point.costs[unit, share]))


def cost_section(grid: Grid) -> Section:
    """Score against cost, and what cells of each method cost."""
    by_k = {k: cost_points(grid, k) for k in grid.ks}
    parts: list[tuple[int | None, tuple[Table, ...]]] = []
    for k, points in by_k.items():
        if points:
            parts.append((k, (_pareto_table(points, len(grid.shared[k]), k),)))
    if not grid.methods:
        return Section("Cost", ())
    parts.append((None, (_cost_table(grid),)))
    plot = Plot(
        "cost",
        "Cost against score",
        "Large symbols are means over the targets that every method finished, small symbols are single targets. The "
        "line is the Pareto front: no other method scores as high for less or higher for as little.",
        "Score of each method against what it cost. The table of costs holds the same numbers.",
        (
            Control("k", {k: str(k) for k in grid.ks}, grid.ks[-1]),
            Control("cost", UNITS, "seconds"),
            Control("of", SHARES, "share"),
        ),
        lambda k, unit, share: cost_figure(grid, k, by_k[k], unit, share),
    )
    return Section("Cost", tuple(parts), (plot,))


def _pareto_table(points: Sequence[CostPoint], targets: int, k: int) -> Table:
    """Score against cost at one k."""
    units: tuple[Unit, Unit] = ("seconds", "tokens")
    fronts = [pareto_front(points, unit, "share") for unit in units]
    return Table(
        f"pareto-k{k}",
        f"Score against cost, k = {k}",
        f"Mean score and mean cost of a target, its share of the prior included, over {targets} targets. On a front "
        "are the methods that no other matches for less or beats for as little.",
        (
            *columns("Method", (), ["Mean score", "Seconds", "Tokens read"]),
            *columns("Front in seconds|Front in tokens"),
        ),
        tuple(
            (
                TableCell(point.method),
                number_cell(point.score.estimate, "score"),
                *(number_cell(point.costs[unit, "share"], "amount") for unit in units),
                *(TableCell("yes" if point in best else "") for best in fronts),
            )
            for point in points
        ),
    )


def _cost_table(grid: Grid) -> Table:
    """What cells of each method cost, and the size of what they train and store."""
    users = shared_by(grid)
    rows = []
    for method in grid.methods:
        cells = [row for row in grid.rows if row.method == method]
        means = mean_costs(cells, users)
        sizes = [[getattr(row.parameters, name) for row in cells] for name in ("trainable", "stored")]
        numbers: list[float] = []
        for unit in UNITS:
            prior = sum(getattr(row.cost.source, unit) for row in cells) / len(cells)
            numbers += [means[unit, "target"], means[unit, "share"], prior]
        rows.append(
            (
                TableCell(method),
                TableCell(count_distinct([f"{row.steps:,}" for row in cells])),
                number_cell(len(cells), "count"),
                *(number_cell(number, "amount") for number in numbers),
                *(TableCell(" to ".join(f"{n:,}" for n in sorted({min(size), max(size)}))) for size in sizes),
            )
        )
    heads = [f"{unit.title()} {of}" for unit in UNITS for of in ("on the target", "with share", "of the prior")]
    return Table(
        "costs",
        "Costs",
        "Means over the scored cells of a method. A prior is fitted once; its cost is shared equally by the cells "
        "that used it (with share), and given whole in the last column of each three.",
        (*columns("Method|Steps", (), ["Cells", *heads]), *columns("Numbers trained|Numbers stored")),
        tuple(rows),
    )


def cost_figure(grid: Grid, k: int, points: Sequence[CostPoint], unit: Unit, share: Share) -> "Figure":
    """Where every method stands on each target and on average, and the Pareto front of the averages."""
    from plotly.graph_objects import Figure

    figure, users = Figure(), shared_by(grid)
    best = pareto_front(points, unit, share)
    if len(best) > 1:
        figure.add_scatter(
            x=[p.costs[unit, share] for p in best], y=[p.score.estimate for p in best], mode="lines",
            name="Pareto front", hoverinfo="skip",
            line={"color": "var(--muted)", "width": 1.5, "dash": "dot", "shape": "hv"},
        )  # fmt: skip
    means = {point.method: point for point in points}
    for method in grid.methods:
        colour, symbol = method_style(grid, method)
        intervals = {t: i for t in grid.targets if (i := grid.intervals.get((method, t, k)))}
        if not intervals:
            continue
        paid = []  # the mean cost of each target
        for target in intervals:
            own_k = k if (method, target, k) in grid.scores else 0
            rows = [grid.by_place[method, target, own_k, s] for s in grid.seed_scores(method, target, k)]
            paid.append(sum(cost(row, unit, share, users[row.cell]) for row in rows) / len(rows))
        figure.add_scatter(
            x=paid, y=[i.estimate for i in intervals.values()], mode="markers", name=plot_label(method),
            legendgroup=escaped(method), showlegend=method not in means, hoverinfo="text", cliponaxis=False,
            text=[f"{escaped(t)}<br>{hover_interval(method, i)}" for t, i in intervals.items()],
            marker={"color": colour, "symbol": symbol, "size": 7, "opacity": 0.4},
        )  # fmt: skip
        if method in means:
            point = means[method]
            mean_cost = point.costs[unit, share]
            figure.add_scatter(
                x=[mean_cost], y=[point.score.estimate], mode="markers", name=plot_label(method),
                legendgroup=escaped(method), hoverinfo="text", cliponaxis=False,
                error_y=error_bars([point.score], colour),
                text=[f"{hover_interval(method, point.score)}<br>over {len(grid.shared[k])} targets, "
                      f"{mean_cost:.3g} {UNITS[unit]}"],
                marker={"color": colour, "symbol": symbol, "size": 14, "line": {"width": 2, "color": colour}},
            )  # fmt: skip
    figure.update_layout(height=460)
    figure.update_xaxes(title=f"{UNITS[unit]} for {SHARES[share]}", rangemode="tozero")
    figure.update_yaxes(title="score on test")
    return figure
