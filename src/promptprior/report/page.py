"""One HTML file that shows a comparison: words, tables, plots, and all that is needed to judge them.

It needs no network, ever: scripts and styles are inlined and its content security policy allows nothing
else. It holds no time stamps, so equal rows give equal bytes.
"""

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptprior.errors import DataError
from promptprior.files import write_text
from promptprior.report.cost_points import prior_of
from promptprior.report.findings import (
    Comparison,
    Findings,
    Grid,
    counted,
    counts,
    find,
    headline,
    settings_of,
)
from promptprior.report.learning_curves import adaptation
from promptprior.report.plots import more_data, plot_data
from promptprior.report.results import Row, read_rows
from promptprior.report.similarity_gain import TaskSimilarity
from promptprior.report.table import MARKS, markdown, signed
from promptprior.report.tables import p_equals, sections

if TYPE_CHECKING:
    from markupsafe import Markup


def write_report(
    rows: Sequence[Row | Mapping[str, object]] | Path,
    path: Path,
    title: str,
    *,
    baseline: str = "prompt_tuning",
    expected: int | None = None,
    command: str = "",
    task_similarity: TaskSimilarity | None = None,
) -> Path:
    """Write the report of some result rows, or of a results.jsonl, to `path` and return it.

    `baseline` is the method that the others are compared with, `expected` the number of cells of the whole
    grid (a report of fewer says so), `command` what made the results, `task_similarity` how like sources and targets
    are, where that was measured. Raises DataError where there is no row or one is malformed; the file is whole or
    not there.
    """
    return write_page(findings(rows, baseline), path, title, expected, command, task_similarity)


def findings(rows: Sequence[Row | Mapping[str, object]] | Path, baseline: str = "prompt_tuning") -> Findings:
    """What some result rows, or a results.jsonl, say. Raises DataError where there is no row or one is malformed."""
    grid = Grid(rows_of(rows), baseline)
    if not grid.all_rows:
        where = f" in {rows}" if isinstance(rows, Path) else ""
        raise DataError(f"nothing to report: no result rows{where}")
    return find(grid)


def write_page(
    found: Findings,
    path: Path,
    title: str,
    expected: int | None = None,
    command: str = "",
    task_similarity: TaskSimilarity | None = None,
) -> Path:
    """Write findings as a page that needs nothing beside it."""
    write_text(path, render(found, title, expected, command, task_similarity))
    return path


def write_markdown(
    found: Findings, path: Path, title: str, command: str = "", task_similarity: TaskSimilarity | None = None
) -> Path:
    """Write the sentences and tables of a report as Markdown, for documents that quote them."""
    made = [f"# {title}", *headline(found.grid, found.comparisons), *notices(found.grid, None)]
    made += ["\n".join(f"- {name}: {value}" for name, value in facts(found.grid))]
    made += [
        f"## {c.title}\n\n{markdown([t for _, some in c.parts for t in some])}"
        for c in sections(found, task_similarity)
    ]
    made += [f"Made by\n\n    {command}"] if command else []
    write_text(path, "\n\n".join(made) + "\n")
    return path


def rows_of(rows: Sequence[Row | Mapping[str, object]] | Path) -> tuple[Row, ...]:
    """Rows from a file, from rows, or from their JSON."""
    if isinstance(rows, Path):
        return read_rows(rows)
    given = enumerate(rows, start=1)
    return tuple(row if isinstance(row, Row) else Row.from_json(row, f"row {i}") for i, row in given)


def render(
    found: Findings, title: str, expected: int | None, command: str, task_similarity: TaskSimilarity | None
) -> str:
    """The page as text."""
    from jinja2 import Environment, StrictUndefined
    from plotly.offline import get_plotlyjs

    grid = found.grid
    scripts = {"plotly": get_plotlyjs().replace("\r\n", "\n"), "script": asset("report.js")}
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"signed": signed, "p_equals": p_equals, "breakable": breakable}
    return environment.from_string(asset("report.html")).render(
        **scripts,
        style=asset("report.css"),
        script_hashes=" ".join(map(script_hash, scripts.values())),
        title=title,
        headline=headline(grid, found.comparisons),
        notices=notices(grid, expected),
        facts=facts(grid),
        grid=grid,
        cards=[(k, cards_at(found, k)) for k in grid.ks],
        n_tests=len(found.comparisons),
        sections=sections(found, task_similarity),
        marks=MARKS,
        settings=[settings(grid, method) for method in grid.methods],
        command=command,
        data={**plot_data(found, [adaptation(grid, o) for o in found.overall]), **more_data(grid, task_similarity)},
    )


def asset(name: str) -> str:
    """A text file that stands beside this one."""
    return files("promptprior.report").joinpath("assets", name).read_text(encoding="utf-8")


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
    once = fitted_once(grid)
    if once:
        said.append(
            f"One prior served all seeds of {', '.join(once)}: intervals and tests say how these priors do on other "
            "shots, not what fitting them again would give."
        )
    if len({(row.target, row.metric) for row in grid.rows}) > len(grid.targets):
        said.append("Cells of one target were scored by different metrics and should not be compared.")
    return said


def fitted_once(grid: Grid) -> list[str]:
    """Methods whose seeds, if there are several, all started from one prior."""
    found = []
    for method in grid.methods:
        rows = [row for row in grid.rows if row.method == method and row.cost.source_tokens]
        if len({row.seed for row in rows}) > 1 and len(set(map(prior_of, rows))) == 1:
            found.append(method)
    return found


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


def cards_at(found: Findings, k: int) -> list[dict[str, Any]]:
    """The comparisons at one k in words, methods that learned from sources first."""
    transfer = found.grid.transfer
    return [card(c) for c in sorted(found.at(k).values(), key=lambda c: c.method not in transfer)]


def card(c: Comparison) -> dict[str, Any]:
    """One comparison in words and lists."""
    lists = [("better", "Clearly better on"), ("worse", "Clearly worse on"), ("unclear", "No clear difference on")]
    return {
        "comparison": c,
        "counts": counts(c),
        "verdict": {"better": "better", "worse": "worse", "unclear": "no clear difference"}[c.verdict],
        "lists": [(verdict, label, c.targets_that_are(verdict)) for verdict, label in lists],
    }  # fmt: skip


def settings(grid: Grid, method: str) -> dict[str, Any]:
    """Settings and sources of one method."""
    rows = [row for row in grid.rows if row.method == method]
    sources = counted([", ".join(row.sources) or "none" for row in rows])
    return {"method": method, "settings": settings_of(rows), "sources": sources}


def breakable(name: str) -> "Markup":
    """A name, escaped, that may break after an underscore."""
    from markupsafe import Markup

    return Markup("_<wbr>").join(name.split("_"))
