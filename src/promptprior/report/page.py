"""The report of a comparison as one HTML file, and its tables as Markdown and CSV.

The page holds words, tables, plots, and all that is needed to judge them. It needs no network, ever: scripts and styles
are inlined and its content security policy allows nothing else. It holds no time stamps, so equal rows give equal
bytes.

From rows to the page: results.Grid orders the rows, gains.comparisons sets every method against the baseline, a
function per subject makes a Section of numbers, tables and plots, and the template (assets/report.html) lays them out.
A package adds a section of its own by the entry point group "promptprior.report_tables": a callable that takes the Grid
and returns a section.Section, or None where it has nothing to say.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, TypedDict, Unpack, cast

from promptprior import plugins
from promptprior.errors import DataError, SpecError
from promptprior.files import write_text
from promptprior.report.bank_usage import diagnostic_sections
from promptprior.report.cost_points import cost_section
from promptprior.report.curves.learning_curves import learning_curve_section
from promptprior.report.curves.sweep_curves import Values, split_by_values, sweep_section, values_text
from promptprior.report.examples.explorer import Explorer, explore
from promptprior.report.examples.kept_answers import KeptAnswers
from promptprior.report.gains import Comparison, comparisons
from promptprior.report.guard_analysis import guard_section
from promptprior.report.plots import LAYOUT, share_parts
from promptprior.report.protocol.cautions import Caution, cautions
from promptprior.report.protocol.contrasts import contrast_section, contrasts
from promptprior.report.published.published_rows import published_section
from promptprior.report.results import Grid, Row, read_rows
from promptprior.report.scores import score_sections
from promptprior.report.section import (
    NO_BREAK,
    VERDICT_SYMBOLS,
    Section,
    Table,
    columns,
    count_distinct,
    format_number,
    list_words,
    make_table,
)
from promptprior.report.similarity_gain import TaskSimilarity, similarity_section

PLUGIN_GROUP = "promptprior.report_tables"
Rows = Sequence[Row | Mapping[str, object]] | Path
CANNOT_SAY = "What these numbers cannot say"
DETAILED = 4  # comparisons that the headline counts targets for; of more it gives means only
NAMED = 4  # targets of negative transfer that the headline names with all their methods


class ReportOptions(TypedDict, total=False):
    """What a report can be told beside its rows and title.

    `baseline` is the method that the others are compared with, `missing` how many cells of the whole grid have not run,
    `command` what made the results. `task_similarity` says how similar sources and targets are, where that was
    measured, `left_out` which cells the grid does without, and why, a line each. `contrasts` are the pairs of methods
    that were written down to be compared (protocol.contrasts), `published` is the name of a preset whose published rows
    stand beside the results. `sweep` names the settings whose values the rows differ in: a section shows all values,
    the others those with the last ones. `leading` are sections that come before all others. `answers` are those to
    single test examples, `examples` how many of each target the page shows (0 for none); by default as many as fit.
    """

    baseline: str
    missing: int
    command: str
    task_similarity: TaskSimilarity | None
    left_out: Sequence[str]
    contrasts: Sequence[tuple[str, str]]
    published: str | None
    sweep: Sequence[str]
    leading: Sequence[Section]
    answers: KeptAnswers | None
    examples: int | None


def write_report(rows: Rows, path: Path, title: str, **options: Unpack[ReportOptions]) -> Path:
    """Write the report of some result rows, or of a results.jsonl, to `path` and return it.

    Raises DataError where there is no row or one is malformed; the file is whole or not there.
    """
    return make_report(rows, title, **options).write_page(path)


def make_report(rows: Rows, title: str = "promptprior comparison", **options: Unpack[ReportOptions]) -> "Report":
    """What some result rows, or a results.jsonl, say. Raises DataError where there is no row or one is malformed."""
    if isinstance(rows, Path):
        all_rows = read_rows(rows)
    else:
        numbered = enumerate(rows, start=1)
        all_rows = tuple(row if isinstance(row, Row) else Row.from_json(row, f"row {i}") for i, row in numbered)
    if not all_rows:
        where = f" in {rows}" if isinstance(rows, Path) else ""
        raise DataError(f"nothing to report: no result rows{where}")
    split, baseline = split_by_values(all_rows, options.get("sweep", ())), options.get("baseline", "prompt_tuning")
    grids = {values: Grid(rows, baseline) for values, rows in split.items()}
    grid = list(grids.values())[-1]
    return Report(grid, comparisons(grid), title, options, grids)


@dataclass(frozen=True)
class Report:
    """Everything that is said of a grid, computed once. Of a sweep `grid` has the last values, `grids` all of them."""

    grid: Grid
    comparisons: tuple[Comparison, ...]
    title: str
    options: ReportOptions
    grids: Mapping[Values, Grid]

    @cached_property
    def sections(self) -> tuple[Section, ...]:
        """Every section there is something to put into, in the order a reader asks; those of other packages last."""
        grid = self.grid
        bad = [row for row in self.rows if not row.is_ok]
        failed = [(row.cell[:12], row.method, row.target, row.k, row.seed, row.error) for row in bad]
        heads = (*columns("Cell|Method|Target", (), {"k": "count", "Seed": "plain"}), *columns("Error"))
        failures = make_table("failed", "Failed cells", "", heads, failed)
        limits = make_table(
            "cautions",
            CANNOT_SAY,
            "Gates of docs/protocol.md that these rows do not pass, and what therefore does not follow from them.",
            columns("Gate|Found|Cannot be said"),
            [(c.gate, c.found, c.so) for c in self.cautions],
        )
        gates = list_words(list(dict.fromkeys(c.gate for c in self.cautions if c.spoils)))
        spoiled = f"These gates spoil claims: {gates}." if gates else "No gate that spoils claims; these weaken them."
        sections = [
            *self.options.get("leading", ()),
            contrast_section(contrasts(grid, self.options.get("contrasts", ()))),
            Section(CANNOT_SAY, ((None, (limits,) if self.cautions else ()),), finding=spoiled),
            sweep_section(self.grids, self.options.get("sweep", ())),
            *score_sections(grid, self.comparisons),
            learning_curve_section(grid),
            guard_section(grid),
            cost_section(grid),
            similarity_section(grid, self.options.get("task_similarity")),
            published_section(grid, self.options.get("published")),
            *diagnostic_sections(grid),
            Section("Failed cells", ((None, (failures,) if failed else ()),), finding=f"{len(failed)} cells failed."),
        ]
        declared = plugins.load_plugins(PLUGIN_GROUP)
        for name in declared:
            try:
                section = cast(Callable[[Grid], object], declared[name])(grid)
            except Exception as error:  # another package's code: anything can go wrong
                raise SpecError(
                    f"entry point {declared.describe(name)} failed: {error}; mend or uninstall that package"
                ) from error
            if not isinstance(section, Section | None):
                raise SpecError(
                    f"entry point {declared.describe(name)} returned {section!r}; expected a "
                    "promptprior.report.section.Section or None"
                )
            sections += [section] if section else []
        return tuple(section for section in sections if section.tables or section.plots)

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """The row of every place, of a sweep at all of its values."""
        return tuple({id(row): row for grid in self.grids.values() for row in grid.by_place.values()}.values())

    @cached_property
    def cautions(self) -> tuple[Caution, ...]:
        """The gates of the protocol that the rows do not pass, of a sweep at each of its values."""
        keys = self.options.get("sweep", ())
        found = [(values_text(keys, values), c) for values, grid in self.grids.items() for c in cautions(grid)]
        return tuple(replace(c, found=f"{text}: {c.found}") if text else c for text, c in found)

    @cached_property
    def explorer(self) -> Explorer | None:
        """The single test examples that the page shows; None where there are none."""
        kept = self.options.get("answers")
        made = explore(self.grid, kept, self.options.get("examples")) if kept else None
        return made if made and made.counts else None

    @property
    def tables(self) -> tuple[Table, ...]:
        """The tables of all sections one after the other."""
        return tuple(table for section in self.sections for table in section.tables)

    @property
    def notices(self) -> list[str]:
        """What a reader must know first: unfinished, failed, replaced and mixed cells."""
        grid, notices, keys = self.grid, [], self.options.get("sweep", ())
        cells, failed = len(self.rows), sum(not row.is_ok for row in self.rows)
        if missing := self.options.get("missing", 0):
            whole = cells + missing
            notices.append(f"Unfinished: {cells} of {whole} cells have run. Means over few cells can change much.")
        if failed:
            notices.append(f"{failed} of {cells} cells failed and have no score; see below.")
        if replaced := len({id(row) for of_values in self.grids.values() for row in of_values.all_rows}) - cells:
            notices.append(f"{replaced} older results of the same method, target, k and seed were left out.")
        if keys:
            last = values_text(keys, list(self.grids)[-1])
            notices.append(f'Swept: {list_words(keys)}. "Sweep" has all values, the other sections those with {last}.')
        if len({row.backbone.fingerprint for row in grid.rows}) > 1:
            notices.append("Cells of different backbones are mixed: differences between methods may be theirs.")
        if gates := list(dict.fromkeys(c.gate for c in self.cautions if c.spoils)):
            notices.append(f'Not a basis for claims: {list_words(gates)}. See "What these numbers cannot say".')
        if len({(row.target, row.metric) for row in grid.rows}) > len(grid.targets):
            notices.append("Cells of one target were scored by different metrics and should not be compared.")
        if unknown := sorted({grid.targets[t].metric for t, known in grid.metrics.items() if known is None}):
            names = ", ".join(unknown)
            notices.append(f"Of metrics that are not installed here higher is taken to be better: {names}.")
        notices += [f"Left out: {line}." for line in self.options.get("left_out", ())]
        return notices

    @property
    def headline(self) -> list[str]:
        """A few sentences: whether methods that learned from sources beat the baseline, and where they hurt."""
        grid = self.grid
        transfer = [c for c in self.comparisons if c.method in grid.transfer]
        if not transfer:
            return [
                "Nothing to compare: no method that learned from source tasks shares a target and a seed with "
                f"{grid.baseline}."
            ]
        sentences = []
        for k in sorted({c.k for c in transfer}):
            phrases = []
            for verdict, singular, plural in (
                ("better", "beats", "beat"),
                ("worse", "falls behind", "fall behind"),
                ("unclear", "shows no clear difference from", "show no clear difference from"),
            ):
                named = []
                for c in (c for c in transfer if (c.k, c.verdict) == (k, verdict)):
                    words = format_number(c.difference.estimate, "signed")
                    if len(transfer) <= DETAILED:
                        verdicts = [difference.verdict for difference in c.targets.values()]
                        numbers = {clear: verdicts.count(clear) for clear in ("better", "worse")}
                        parts = [f"{clear} on {n}" for clear, n in numbers.items() if n] or ["better on none"]
                        words += f"; clearly {', '.join(parts)} of {len(c.targets)} targets"
                    named.append(f"{c.method} ({words})")
                if named:
                    verb = plural if len(named) > 1 else singular
                    phrases.append(f"{list_words(named)} {verb} {grid.baseline} on average")
            sentences.append(f"With k{NO_BREAK}={NO_BREAK}{k}, {'; '.join(phrases)}.")

        # Negative transfer: targets on which some transfer method is clearly worse, those hit most often first.
        worse: dict[str, dict[str, list[str]]] = {}  # target -> method -> every k
        for c in transfer:
            for target, difference in c.targets.items():
                if difference.verdict == "worse":
                    worse.setdefault(target, {}).setdefault(c.method, []).append(str(c.k))
        hits = {target: sum(map(len, methods.values())) for target, methods in worse.items()}
        worst = sorted(worse, key=lambda target: -hits[target])
        if not worst:
            return [*sentences, "On no target is a transfer method clearly worse."]
        if len(worst) > NAMED:
            shown = list_words([f"{target} ({hits[target]} times)" for target in worst[:NAMED]])
            on = f"some method is clearly worse on {len(worst)} of {len(grid.targets)} targets, most often on {shown}"
        else:
            at = {t: [f"{m}, k{NO_BREAK}={NO_BREAK}{list_words(ks)}" for m, ks in worse[t].items()] for t in worst}
            on = "clearly worse on " + list_words([f"{target} ({'; '.join(at[target])})" for target in worst])
        return [*sentences, f"Negative transfer: {on}."]

    @property
    def best(self) -> list[dict[str, Any]]:
        """For each k, the method with the largest mean difference to the baseline, of those that serve most targets;
        positive is better, whatever the metric.

        `gap` has a 95% interval from `low` to `high`, n `runs` on so many `targets`; `says` is all that in a sentence,
        and which methods that serve fewer targets are ahead on those.
        """
        found = []
        for k in self.grid.ks:
            compared = [c for c in self.comparisons if c.k == k]
            most = max((len(c.targets) for c in compared), default=0)
            whole = [c for c in compared if len(c.targets) == most]
            top = max(whole, key=lambda c: c.difference.estimate, default=None)
            if top is None:
                continue
            gap, baseline = top.difference, self.grid.baseline
            doubt = "no interval of one run" if gap.low is None else f"95% interval {gap.low:+.3f} to {gap.high:+.3f}"
            verdict = {"unclear": "no clear difference"}.get(top.verdict, top.verdict)
            first = "best is" if gap.estimate > 0 else f"{baseline} is best, next"
            says = f"k = {k}: {first} {top.method}, {gap.estimate:+.3f} against {baseline} ({doubt}; {gap.n} runs on "
            says += f"{len(top.targets)} target{'s' if len(top.targets) > 1 else ''}): {verdict}"
            for c in compared:
                leads = [own.estimate - top.targets[t].estimate for t, own in c.targets.items() if t in top.targets]
                if len(c.targets) < most and leads and (lead := sum(leads) / len(leads)) > 0:
                    says += f"; {c.method} is {lead:+.3f} ahead of it on the {len(leads)} of these that it serves"
            numbers = {"gap": gap.estimate, "low": gap.low, "high": gap.high, "runs": gap.n}
            about = {"k": k, "method": top.method, "baseline": baseline, "targets": len(top.targets)}
            found.append({**about, **numbers, "verdict": top.verdict, "says": says})
        return found

    @property
    def facts(self) -> dict[str, str]:
        """Names and values of the header."""
        rows = self.rows
        values_of = {
            "Backbone": [f"{r.backbone.name} ({r.backbone.fingerprint[:12]})" for r in rows],
            "Methods": [r.method for r in rows],
            "Targets": [str(len({r.target for r in rows}))],
            "Shots k": [str(k) for k in sorted({r.k for r in rows} - {0})] or ["none"],
            "Seeds": [str(s) for s in sorted({r.seed for r in rows if r.k})] or ["none"],
            "Cells": [f"{sum(r.is_ok for r in rows)} scored, {sum(not r.is_ok for r in rows)} failed"],
            "Split": [r.split for r in rows],
            "Versions": [f"{name} {version}" for r in rows for name, version in r.versions.items()],
        }
        return {name: ", ".join(dict.fromkeys(values)) for name, values in values_of.items()}

    def settings(self, method: str) -> dict[str, str]:
        """Sources and settings of a method as text; where cells differ, the values with how many cells have each."""
        rows = [row for row in self.grid.rows if row.method == method]
        keys = dict.fromkeys(key for row in rows for key in row.settings)
        sources = count_distinct([", ".join(row.sources) or "none" for row in rows])
        values = {key: count_distinct([json.dumps(row.settings.get(key)) for row in rows]) for key in keys}
        return {"source tasks": sources, **values}

    def write_page(self, path: Path) -> Path:
        """Write the page, which needs nothing beside it, and return its path."""
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup
        from plotly.graph_objects import layout as plotly_layout

        plots = [plot for section in self.sections for plot in section.plots]
        template = plotly_layout.Template(layout=LAYOUT).to_plotly_json()
        figures = share_parts({plot.name: plot.to_json() for plot in plots})
        data = {"figures": figures["whole"], "parts": figures["parts"], "template": template}
        assets = files("promptprior.report").joinpath("assets")
        # Plotly's bundle for lines and points, a quarter of the whole (npm pack plotly.js-basic-dist-min)
        style, script, explorer, page, plotly = (
            assets.joinpath(name).read_text(encoding="utf-8")
            for name in ("report.css", "report.js", "explorer.js", "report.html", "plotly-basic.min.js")
        )
        # The content security policy lets exactly these inline scripts run.
        digests = [hashlib.sha256(text.encode()).digest() for text in (plotly, script, explorer)]
        environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "ensure_ascii": False}
        environment.filters |= {
            "format_number": format_number,
            "breakable": lambda name: Markup("_<wbr>").join(name.split("_")),  # long names break after an underscore
        }
        text = environment.from_string(page).render(
            report=self,
            grid=self.grid,
            symbols=VERDICT_SYMBOLS,
            command=self.options.get("command", ""),
            plots=plots,
            data=data,
            style=style,
            plotly=plotly,
            script=script,
            explorer_script=explorer,
            script_hashes=" ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests),
        )
        write_text(path, text)
        return path

    def write_markdown(self, path: Path) -> Path:
        """Write words and tables as Markdown, for documents that quote them, and return the path."""
        notices = [notice for notice in self.notices if not notice.startswith("Unfinished")]
        parts = [f"# {self.title}", *self.headline, *notices]
        parts.append("\n".join(f"- {name}: {value}" for name, value in self.facts.items()))
        for section in self.sections:
            if section.tables:
                parts.append(f"## {section.title}\n\n" + "\n".join(table.to_markdown() for table in section.tables))
        if command := self.options.get("command"):
            parts.append(f"Made by\n\n    {command}")
        write_text(path, "\n\n".join(parts) + "\n")
        return path
