"""What a target costs with each method, its share of the prior included, and whom nothing beats at that cost."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Literal

from promptprior.report.plots import escaped, interval_trace, method_style
from promptprior.report.results import Grid, Row
from promptprior.report.section import (
    Control,
    Plot,
    Section,
    Table,
    Value,
    columns,
    count_distinct,
    list_words,
    make_table,
)
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
Costs = dict[tuple[Unit, Share], float]
Place = tuple[str, str, int]  # method, target, k


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
    named = {row.cost.source: str(row.settings["prior"]) for row in grid.rows if "prior" in row.settings}
    prior = {
        row.cell: str(row.settings.get("prior") or "") or named.get(row.cost.source, row.cost.source)
        for row in grid.rows
    }
    users = Counter(prior.values())
    return {cell: users[name] for cell, name in prior.items()}


def mean_costs(rows: Collection[Row], users: Mapping[str, int]) -> Costs:
    """What cells cost on average in each unit and share of the prior, given how many cells used each prior."""
    costs: Costs = {}
    for unit, share in product(UNITS, SHARES):
        paid = []
        for row in rows:
            borne = {"share": 1 / users[row.cell], "target": 0, "whole": 1}[share]
            paid.append(float(getattr(row.cost, unit) + getattr(row.cost.source, unit) * borne))
        costs[unit, share] = sum(paid) / len(rows)
    return costs


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
    if not grid.methods:
        return Section("Cost", ())
    users = shared_by(grid)
    by_k: dict[int, list[CostPoint]] = {k: [] for k in grid.ks}  # every method on the targets that all have finished
    for k, method in product(grid.ks, grid.methods):
        if grid.shared[k]:
            costs = mean_costs([row for rows in grid.shared_rows[method, k].values() for row in rows], users)
            by_k[k].append(CostPoint(method, stratified_bootstrap(grid.shared_runs[method, k]), costs))
    by_target = {place: mean_costs(rows.values(), users) for place, rows in grid.runs.items()}
    units: tuple[Unit, Unit] = ("seconds", "tokens")
    parts: list[tuple[int | None, tuple[Table, ...]]] = []
    found = []
    for k, points in by_k.items():
        fronts = [pareto_front(points, unit, "share") for unit in units]
        table = make_table(
            f"pareto-k{k}",
            f"Score against cost, k = {k}",
            f"Mean score and mean cost of a target, its share of the prior included, over {len(grid.shared[k])} "
            "targets. On a front are the methods that no other matches for less or beats for as little."
            f"{grid.sign_note}",
            (
                *columns("Method", (), {"Mean score": "score", "Seconds": "amount", "Tokens read": "amount"}),
                *columns("Front in seconds|Front in tokens"),
            ),
            [
                (
                    point.method,
                    point.score.estimate,
                    *(point.costs[unit, "share"] for unit in units),
                    *("yes" if point in best else "" for best in fronts),
                )
                for point in points
            ],
        )
        parts += [(k, (table,))] if points else []
        if points:
            best = list_words([point.method for point in fronts[0]])
            found.append(f"k = {k}: on the front of score against seconds: {best}.")
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
        lambda k, unit, share: cost_figure(grid, k, by_k[k], by_target, (unit, share)),
    )
    return Section("Cost", (*parts, (None, (_cost_table(grid, users),))), (plot,), " ".join(found))


def _cost_table(grid: Grid, users: Mapping[str, int]) -> Table:
    """What cells of each method cost, and the size of what they train and store."""
    rows: list[Sequence[Value]] = []
    for method in grid.methods:
        cells = [row for row in grid.rows if row.method == method]
        means = mean_costs(cells, users)
        numbers: list[float] = []
        for unit in UNITS:
            prior = sum(getattr(row.cost.source, unit) for row in cells) / len(cells)
            numbers += [means[unit, "target"], means[unit, "share"], prior]
        sizes = [{getattr(row.parameters, name) for row in cells} for name in ("trainable", "stored")]
        ranges = [" to ".join(f"{n:,}" for n in sorted({min(size), max(size)})) for size in sizes]
        rows.append((method, count_distinct([f"{row.steps:,}" for row in cells]), len(cells), *numbers, *ranges))
    heads = [f"{unit.title()} {of}" for unit in UNITS for of in ("on the target", "with share", "of the prior")]
    return make_table(
        "costs",
        "Costs",
        "Means over the scored cells of a method. A prior is fitted once; its cost is shared equally by the cells "
        "that used it (with share), and given whole in the last column of each three.",
        (
            *columns("Method|Steps", (), {"Cells": "count"}),
            *columns("", (), dict.fromkeys(heads, "amount")),
            *columns("Numbers trained|Numbers stored"),
        ),
        rows,
    )


def cost_figure(
    grid: Grid, k: int, points: Sequence[CostPoint], by_target: Mapping[Place, Costs], axis: tuple[Unit, Share]
) -> "Figure":
    """Where every method stands on each target and on average, and the Pareto front of the averages."""
    from plotly.graph_objects import Figure

    figure, (unit, share) = Figure(), axis
    best = pareto_front(points, unit, share)
    if len(best) > 1:
        figure.add_scatter(
            x=[p.costs[axis] for p in best], y=[p.score.estimate for p in best], mode="lines",
            name="Pareto front", hoverinfo="skip",
            line={"color": "var(--muted)", "width": 1.5, "dash": "dot", "shape": "hv"},
        )  # fmt: skip
    means = {point.method: point for point in points}
    for method in grid.methods:
        style = method_style(grid, method)
        intervals = {t: i for t in grid.targets if (i := grid.intervals.get((method, t, k)))}
        if not intervals:
            continue
        trace = interval_trace(style, {escaped(t): i for t, i in intervals.items()})
        trace |= {"error_y": None, "y": [grid.merit(t, i.estimate) for t, i in intervals.items()]}
        figure.add_scatter(
            **trace, x=[by_target[method, t, k][axis] for t in intervals], mode="markers",
            legendgroup=style.name, showlegend=method not in means, cliponaxis=False,
            marker={"color": style.colour, "symbol": style.symbol, "size": 7, "opacity": 0.4},
        )  # fmt: skip
        if method in means:
            point = means[method]
            paid = point.costs[axis]
            trace = interval_trace(style, {"": point.score})
            trace["text"] = [
                f"{text.removeprefix('<br>')}<br>over {len(grid.shared[k])} targets, {paid:.3g} {UNITS[unit]}"
                for text in trace["text"]
            ]
            figure.add_scatter(
                **trace, x=[paid], mode="markers", legendgroup=style.name, cliponaxis=False,
                marker={"color": style.colour, "symbol": style.symbol, "size": 14,
                        "line": {"width": 2, "color": style.colour}},
            )  # fmt: skip
    figure.update_layout(height=460)
    figure.update_xaxes(title=f"{UNITS[unit]} for {SHARES[share]}", rangemode="tozero")
    figure.update_yaxes(title="score on test")
    return figure
