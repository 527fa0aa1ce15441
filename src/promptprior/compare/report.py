"""One HTML file that shows a comparison: words, tables, plots, and all that is needed to judge them.

It needs no network, ever: scripts and styles are inlined and its content security policy allows nothing
else. It holds no time stamps, so equal rows give equal bytes.
"""

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptprior.compare.rows import Point, Row, read_rows
from promptprior.compare.statistics import Interval
from promptprior.compare.summary import (
    Comparison,
    Grid,
    aggregates,
    comparisons,
    counted,
    counts,
    headline,
    settings_of,
    signed,
)
from promptprior.errors import DataError
from promptprior.files import write_text

if TYPE_CHECKING:
    from markupsafe import Markup

CURVE_POINTS = 80  # points of a learning curve that are drawn; more only make the file larger


def write_report(
    rows: Sequence[Row | Mapping[str, object]] | Path,
    path: Path,
    title: str,
    *,
    baseline: str = "prompt_tuning",
    expected: int | None = None,
    command: str = "",
) -> Path:
    """Write the report of some result rows, or of a results.jsonl, to `path` and return it.

    `baseline` is the method that the others are compared with, `expected` the number of cells of the whole
    grid (a report of fewer says so), `command` what made the results. Raises DataError where there is no
    row or one is malformed; the file is whole or not there.
    """
    grid = Grid(rows_of(rows), baseline)
    if not grid.all_rows:
        where = f" in {rows}" if isinstance(rows, Path) else ""
        raise DataError(f"nothing to report: no result rows{where}")
    write_text(path, render(grid, title, expected, command))
    return path


def rows_of(rows: Sequence[Row | Mapping[str, object]] | Path) -> tuple[Row, ...]:
    """Rows from a file, from rows, or from their JSON."""
    if isinstance(rows, Path):
        return read_rows(rows)
    given = enumerate(rows, start=1)
    return tuple(row if isinstance(row, Row) else Row.from_json(row, f"row {i}") for i, row in given)


def render(grid: Grid, title: str, expected: int | None, command: str) -> str:
    """The page as text."""
    from jinja2 import Environment, StrictUndefined
    from plotly.offline import get_plotlyjs

    found = comparisons(grid)
    scripts = {"plotly": get_plotlyjs().replace("\r\n", "\n"), "script": asset("report.js")}
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "score": score_text,
        "signed": signed,
        "p_value": p_text,
        "amount": amount,
        "breakable": breakable,
    }
    return environment.from_string(asset("report.html")).render(
        **scripts,
        style=asset("report.css"),
        script_hashes=" ".join(map(script_hash, scripts.values())),
        title=title,
        headline=headline(grid, found),
        notices=notices(grid, expected),
        facts=facts(grid),
        grid=grid,
        sections=[section(grid, found, k) for k in grid.ks],
        n_tests=len(found),
        costs=[cost_of(grid, method) for method in grid.methods],
        settings=[settings(grid, method) for method in grid.methods],
        command=command,
        data=plot_data(grid),
    )


def asset(name: str) -> str:
    """A text file that stands beside this one."""
    return files("promptprior.compare").joinpath(name).read_text(encoding="utf-8")


def script_hash(script: str) -> str:
    """The hash by which the content security policy lets one inline script run."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


# What stands in the page --------------------------------------------------------------------------------


def notices(grid: Grid, expected: int | None) -> list[str]:
    """What a reader must know first: unfinished, failed, replaced and mixed cells."""
    said = []
    missing = (expected or 0) - len(grid.places)
    if missing > 0:
        said.append(
            f"Unfinished: {len(grid.places)} of {expected} cells have run. Means over few cells can change much."
        )
    if grid.failed:
        said.append(f"{len(grid.failed)} of {len(grid.places)} cells failed and have no score; see below.")
    replaced = len(grid.all_rows) - len(grid.places)
    if replaced:
        said.append(f"{replaced} older results of the same method, target, k and seed were left out.")
    if len({row.backbone.fingerprint for row in grid.rows}) > 1:
        said.append("Cells of different backbones are mixed: differences between methods may be theirs.")
    if len({(row.target, row.metric) for row in grid.rows}) > len(grid.targets):
        said.append("Cells of one target were scored by different metrics and should not be compared.")
    return said


def facts(grid: Grid) -> list[tuple[str, str]]:
    """Names and values of the header."""
    every = tuple(grid.places.values())
    return [
        ("Backbone", ", ".join(distinct(f"{r.backbone.name} ({r.backbone.fingerprint[:12]})" for r in every))),
        ("Methods", ", ".join(distinct(r.method for r in every))),
        ("Targets", str(len({r.target for r in every}))),
        ("Shots k", ", ".join(str(k) for k in sorted({r.k for r in every} - {0})) or "none"),
        ("Seeds", ", ".join(str(s) for s in sorted({r.seed for r in every if r.k})) or "none"),
        ("Cells", f"{len(grid.rows)} scored, {len(grid.failed)} failed"),
        ("Split", ", ".join(distinct(r.split for r in every))),
        ("Versions", ", ".join(distinct(f"{n} {v}" for r in every for n, v in r.versions.items()))),
    ]


def distinct(values: Iterable[str]) -> list[str]:
    """Values without repeats, in order."""
    return list(dict.fromkeys(values))


def section(grid: Grid, found: Sequence[Comparison], k: int) -> dict[str, Any]:
    """What the page says about one k."""
    at_k = {c.method: c for c in found if c.k == k}
    shared, rows = aggregates(grid, k)
    return {
        "k": k,
        "cards": [card(c) for c in sorted(at_k.values(), key=lambda c: c.method not in grid.transfer)],
        "near_floor": distinct(t for c in at_k.values() for t in c.gains.near_floor),
        "undefined": distinct(t for c in at_k.values() for t in c.gains.undefined),
        "aggregates": [(a, at_k.get(a.method)) for a in rows],
        "shared": shared,
        "table": [(row, [score_cell(grid, at_k, m, row.target, k) for m in grid.methods]) for row in grid.targets],
    }  # fmt: skip


def card(c: Comparison) -> dict[str, Any]:
    """One comparison in words and lists."""
    lists = [("better", "Clearly better on"), ("worse", "Clearly worse on"), ("unclear", "No clear difference on")]
    return {
        "comparison": c,
        "counts": counts(c),
        "verdict": {"better": "better", "worse": "worse", "unclear": "no clear difference"}[c.verdict],
        "lists": [(verdict, label, c.targets_that_are(verdict)) for verdict, label in lists],
    }  # fmt: skip


def score_cell(grid: Grid, at_k: Mapping[str, Comparison], method: str, target: str, k: int) -> dict[str, Any]:
    """One cell of the table of scores."""
    differences = at_k[method].targets if method in at_k else ()
    difference = next((d for d in differences if d.target == target), None)
    return {"interval": grid.cell(method, target, k), "difference": difference}


def cost_of(grid: Grid, method: str) -> dict[str, Any]:
    """Mean cost of a cell of one method, and the range of its parameters."""
    rows = [row for row in grid.rows if row.method == method]
    mean = {
        name: sum(getattr(row.cost, name) for row in rows) / len(rows)
        for name in ("seconds", "rows", "tokens", "source_seconds", "source_rows", "source_tokens")
    }
    steps = counted([f"{row.steps:,}" for row in rows])
    parameters = {name: between([getattr(row.parameters, name) for row in rows]) for name in ("trainable", "stored")}
    return {"method": method, "cells": len(rows), "steps": steps, **mean, **parameters}


def settings(grid: Grid, method: str) -> dict[str, Any]:
    """Settings and sources of one method."""
    rows = [row for row in grid.rows if row.method == method]
    sources = counted([", ".join(row.sources) or "none" for row in rows])
    return {"method": method, "settings": settings_of(rows), "sources": sources}


# Numbers as text ----------------------------------------------------------------------------------------


def score_text(value: float | None, digits: int = 3) -> str:
    """A score with a true minus, or a dash.

    >>> score_text(0.5), score_text(None)
    ('0.500', '–')
    """
    return "\N{EN DASH}" if value is None else f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def p_text(p: float) -> str:
    """A p-value.

    >>> p_text(0.00002), p_text(0.0321)
    ('< 0.001', '0.032')
    """
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def amount(value: float) -> str:
    """A quantity with three significant digits and thousands separators.

    >>> amount(0.1234), amount(12.34), amount(123456.0)
    ('0.12', '12.3', '123,456')
    """
    return f"{value:,.0f}" if value >= 100 or value == 0 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def breakable(name: str) -> "Markup":
    """A name, escaped, that may break after an underscore."""
    from markupsafe import Markup

    return Markup("_<wbr>").join(name.split("_"))


def between(values: Sequence[int]) -> str:
    """One number, or the least and the largest."""
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


# What the plots draw ------------------------------------------------------------------------------------


def plot_data(grid: Grid) -> dict[str, Any]:
    """Everything report.js draws from: plain numbers, names by index."""
    return {
        "methods": [{"name": m, "baseline": m == grid.baseline} for m in grid.methods],
        "targets": [{"name": t.target, "family": t.family, "metric": t.metric} for t in grid.targets],
        "ks": grid.ks,
        "cells": [
            cell
            for m, method in enumerate(grid.methods)
            for t, target in enumerate(grid.targets)
            for k in grid.ks
            if (cell := plot_cell(grid, (m, method), (t, target.target), k))
        ],
        "means": [
            {"method": grid.methods.index(a.method), "k": k, "targets": len(shared), **ends(a.mean)}
            for k in grid.ks
            for shared, rows in [aggregates(grid, k)]
            for a in rows
        ],
    }


def plot_cell(grid: Grid, method: tuple[int, str], target: tuple[int, str], k: int) -> dict[str, Any] | None:
    """One method on one target at one k: its mean, its runs and their learning curves."""
    (m, method_name), (t, target_name) = method, target
    found = grid.cell(method_name, target_name, k)
    if found is None:
        return None
    seeds = grid.seeds(method_name, target_name, k)
    at = k if (method_name, target_name, k) in grid.scores else 0
    runs = [plot_run(grid.places[method_name, target_name, at, seed]) for seed in seeds]
    return {"method": m, "target": t, "k": k, "trained": at != 0, **ends(found), "runs": runs}


def plot_run(row: Row) -> dict[str, Any]:
    """One run: its score, cost and curve."""
    c = row.cost
    return {
        "seed": row.seed,
        "score": row.score,
        "seconds": [round(c.seconds, 3), round(c.source_seconds, 3)],
        "rows": [c.rows, c.source_rows],
        "tokens": [c.tokens, c.source_tokens],
        "best": row.best_step,
        "curve": [[p.step, *map(short, (p.train_loss, p.dev_score, p.dev_nll))] for p in thinned(row.curve)],
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
