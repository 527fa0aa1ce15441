"""What a target costs with each method, its share of the prior included, and whom nothing beats at that price."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from promptprior.report.findings import Grid, Overall
from promptprior.report.results import Row

Unit = Literal["seconds", "tokens", "rows"]
Share = Literal["share", "target", "whole"]
UNITS: tuple[Unit, ...] = get_args(Unit)
SHARES: tuple[Share, ...] = get_args(Share)
"""Of what its prior cost, a target bears an equal share with all cells that used it, nothing, or everything."""


def prior_of(row: Row) -> tuple[object, ...]:
    """What tells one prior from another in result rows: exactly what it cost. Methods can share one."""
    return row.cost.source_seconds, row.cost.source_rows, row.cost.source_tokens


def shared_by(grid: Grid) -> Counter[tuple[object, ...]]:
    """How many cells of the grid used each prior."""
    return Counter(map(prior_of, grid.rows))


def price(row: Row, unit: Unit, share: Share, shared_by: int) -> float:
    """What one cell cost."""
    own, source = getattr(row.cost, unit), getattr(row.cost, f"source_{unit}")
    return float(own + source * {"share": 1 / shared_by, "target": 0, "whole": 1}[share])


@dataclass(frozen=True)
class CostPoint:
    """A method at one k: mean score, and the mean price of a target in each unit and share of the prior."""

    method: str
    score: float
    prices: Mapping[tuple[Unit, Share], float]


def cost_points(grid: Grid, overall: Overall) -> tuple[CostPoint, ...]:
    """Every method on the targets that all have finished."""
    counts = shared_by(grid)
    return tuple(
        cost_point(a.method, a.mean.estimate, cells_of(grid, a.method, overall), counts) for a in overall.aggregates
    )


def cells_of(grid: Grid, method: str, overall: Overall) -> list[Row]:
    """The cells of one method that aggregates run over; of what needs no examples, those at 0."""
    k, places = overall.k, overall.places
    at = {t: k if (method, t, k) in grid.scores else 0 for t in places}
    found = [(t, seed) for t in places for seed in grid.scores.get((method, t, at[t]), ())]
    return [grid.places[method, t, at[t], seed] for t, seed in found if at[t] != k or seed in places[t]]


def cost_point(method: str, score: float, rows: Sequence[Row], counts: Mapping[tuple[object, ...], int]) -> CostPoint:
    """The mean prices of some cells."""
    prices: dict[tuple[Unit, Share], float] = {}
    for unit in UNITS:
        for share in SHARES:
            paid = [price(row, unit, share, counts[prior_of(row)]) for row in rows]
            prices[unit, share] = sum(paid) / len(paid)
    return CostPoint(method, score, prices)


def pareto(points: Mapping[str, tuple[float, float]]) -> tuple[str, ...]:
    """Of (price, score) by name, those that no other beats: none scores as high for less, or higher for as little.

    >>> pareto({"cheap": (1, 0.5), "good": (3, 0.8), "dear": (4, 0.8), "bad": (2, 0.4)})
    ('cheap', 'good')
    """
    kept = [
        name
        for name, (paid, score) in points.items()
        if not any(p <= paid and s >= score and (p, s) != (paid, score) for p, s in points.values())
    ]
    return tuple(sorted(kept, key=lambda name: points[name][0]))


def pareto_front(found: Sequence[CostPoint], unit: Unit, share: Share) -> tuple[str, ...]:
    """The methods of the Pareto front, the cheapest first."""
    return pareto({o.method: (o.prices[unit, share], o.score) for o in found})
