"""What the plots of a report draw: plain numbers, names by index; report.js does the drawing."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from promptprior.report.bank_usage import Use, uses
from promptprior.report.cost_points import SHARES, UNITS, CostPoint, cost_points, pareto_front, prior_of, shared_by
from promptprior.report.findings import Findings, Grid, Overall
from promptprior.report.learning_curves import Adaptation
from promptprior.report.ranks import Ranking
from promptprior.report.results import Point, Row
from promptprior.report.similarity_gain import MEASURES, TaskSimilarity, gains, similarity_gain_correlation
from promptprior.report.statistics import Interval

CURVE_POINTS = 80  # points of a learning curve that are drawn; more only make the file larger
MAP_TOKENS = 150  # tokens of a bank that are drawn


def plot_data(found: Findings, adaptations: Sequence[Adaptation]) -> dict[str, Any]:
    """Everything the plots of scores, shots, curves, adaptation, cost and ranks draw from."""
    grid = found.grid
    return {
        "methods": [{"name": m, "baseline": m == grid.baseline} for m in grid.methods],
        "targets": [{"name": t.target, "family": t.family, "metric": t.metric} for t in grid.targets],
        "ks": grid.ks,
        "cells": plot_cells(grid),
        "means": [mean for overall in found.overall for mean in plot_means(grid, overall)],
        "tracks": [track for one in adaptations for track in plot_tracks(grid, one)],
        "ranks": [plot_ranks(grid, o.k, o.ranking) for o in found.overall if o.ranking],
    }


def plot_cells(grid: Grid) -> list[dict[str, Any]]:
    """Every method on every target at every k, where there is a score."""
    sharing = shared_by(grid)
    return [
        cell
        for m, method in enumerate(grid.methods)
        for t, target in enumerate(grid.targets)
        for k in grid.ks
        if (cell := plot_cell(grid, (m, method), (t, target.target), k, sharing))
    ]


def plot_cell(
    grid: Grid, method: tuple[int, str], target: tuple[int, str], k: int, sharing: Mapping[tuple[object, ...], int]
) -> dict[str, Any] | None:
    """One method on one target at one k: its mean, its runs and their learning curves."""
    (m, method_name), (t, target_name) = method, target
    found = grid.cell(method_name, target_name, k)
    if found is None:
        return None
    at = k if (method_name, target_name, k) in grid.scores else 0
    rows = [grid.places[method_name, target_name, at, seed] for seed in grid.seeds(method_name, target_name, k)]
    runs = [plot_run(row, sharing[prior_of(row)]) for row in rows]
    return {"method": m, "target": t, "k": k, "trained": at != 0, **ends(found), "runs": runs}


def plot_run(row: Row, sharing: int) -> dict[str, Any]:
    """One run: its score, cost (its own and its prior's, which so many cells share) and curve."""
    c = row.cost
    return {
        "seed": row.seed,
        "score": row.score,
        "seconds": [round(c.seconds, 3), round(c.source_seconds, 3)],
        "rows": [c.rows, c.source_rows],
        "tokens": [c.tokens, c.source_tokens],
        "shared": sharing,
        "best": row.best_step,
        "curve": [[p.step, *map(short, (p.train_loss, p.dev_score, p.dev_nll))] for p in thinned(row.curve)],
    }


def plot_means(grid: Grid, overall: Overall) -> list[dict[str, Any]]:
    """Each method's mean over targets, what it costs there, and on which fronts it stands."""
    found = cost_points(grid, overall)
    return [
        {
            "method": grid.methods.index(a.method),
            "k": overall.k,
            "targets": len(overall.shared),
            **ends(a.mean),
            "offers": plot_offers(cost_point, found),
        }
        for a, cost_point in zip(overall.aggregates, found, strict=True)
    ]


def plot_offers(cost_point: CostPoint, found: Sequence[CostPoint]) -> dict[str, dict[str, Any]]:
    """Price and place on the front by unit and share of the prior."""
    return {
        unit: {
            share: {
                "price": short(cost_point.prices[unit, share]),
                "front": cost_point.method in pareto_front(found, unit, share),
            }
            for share in SHARES
        }
        for unit in UNITS
    }


def plot_tracks(grid: Grid, found: Adaptation) -> list[dict[str, Any]]:
    """Dev score by step, averaged over targets."""
    return [
        {
            "method": grid.methods.index(track.method),
            "k": found.k,
            "targets": len(found.targets),
            "points": [{"step": step, **ends(score)} for step, score in track.points],
        }
        for track in found.tracks
    ]


def plot_ranks(grid: Grid, k: int, found: Ranking) -> dict[str, Any]:
    """Mean ranks, the best first, and the groups that Nemenyi's test does not tell apart, as first and last place."""
    order = [method for method, _ in found.best_first]
    return {
        "k": k,
        "targets": found.targets,
        "p": short(found.p),
        "critical": short(found.critical),
        "methods": [grid.methods.index(method) for method in order],
        "ranks": [short(rank) for _, rank in found.best_first],
        "cliques": [[order.index(group[0]), order.index(group[-1])] for group in found.cliques],
    }


def more_data(grid: Grid, task_similarity: TaskSimilarity | None) -> dict[str, Any]:
    """What the plots of similarity and retrieval draw from; empty where there is nothing to draw."""
    return {
        "similarity": plot_likeness(grid, task_similarity) if task_similarity and task_similarity.pairs else None,
        "maps": [plot_map(grid, use) for use in firsts(uses(grid)) if use.map],
    }


def plot_likeness(grid: Grid, found: TaskSimilarity) -> dict[str, Any]:
    """Every measure as a table of sources x targets, and every point of likeness and gain."""
    sources = list(dict.fromkeys(p.source for p in found.pairs))
    targets = list(dict.fromkeys(p.target for p in found.pairs))
    of = {(p.source, p.target): p for p in found.pairs}
    told = [one for one in similarity_gain_correlation(found, gains(grid)) if one.points]
    return {
        "sources": sources,
        "targets": targets,
        "measures": {
            m: [[short(getattr(of.get((s, t)), m, None)) for t in targets] for s in sources] for m in MEASURES
        },
        "points": [
            {
                "method": grid.methods.index(one.method),
                "measure": one.measure,
                "targets": [target for target, _, _ in one.points],
                "x": [short(x) for _, x, _ in one.points],
                "y": [short(gain) for _, _, gain in one.points],
                "rho": ends(one.correlation) if one.correlation else None,
            }
            for one in told
        ],
    }


def firsts(found: Sequence[Use]) -> list[Use]:
    """The first seed of each method and k: more would only make the file larger."""
    kept: dict[tuple[str, int], Use] = {}
    for use in found:
        kept.setdefault((use.method, use.k), use)
    return list(kept.values())


def plot_map(grid: Grid, use: Use) -> dict[str, Any]:
    """The most used tokens of a bank, most used first, by task."""
    order = sorted(range(len(use.use)), key=lambda token: -use.use[token])
    shown = [token for token in order if use.use[token] > 0][:MAP_TOKENS]
    return {
        "method": grid.methods.index(use.method),
        "k": use.k,
        "seed": use.seed,
        "tokens": shown,
        "size": len(use.use),
        "used": use.used,
        "tasks": list(use.map),
        "map": [[short(shares[token]) for token in shown] for shares in use.map.values()],
    }


def thinned(curve: Sequence[Point]) -> Sequence[Point]:
    """At most about CURVE_POINTS points, evenly chosen, the last one always among them."""
    stride = -(-len(curve) // CURVE_POINTS)
    return curve if stride < 2 else [*curve[:-1:stride], curve[-1]]


def short(value: float | None) -> float | None:
    """Five significant digits: what a plot can show."""
    return None if value is None else json.loads(f"{value:.5g}")


def ends(found: Interval) -> dict[str, Any]:
    """An interval as JSON."""
    return {"mean": short(found.estimate), "low": short(found.low), "high": short(found.high), "n": found.n}
