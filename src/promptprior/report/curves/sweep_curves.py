"""Scores against the values of swept settings: the rows of `compare --sweep`, or of several runs in one folder.

A swept setting is found in the settings of every row, so that it makes no difference who ran a cell, and why.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from promptprior.config.mapping import list_settings
from promptprior.config.training import Settings
from promptprior.report.plots import interval_trace, method_style, plot_label
from promptprior.report.results import Grid, Row
from promptprior.report.section import Control, Plot, Section, Table, columns, format_number, make_table
from promptprior.report.statistics import Interval, stratified_bootstrap

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Value = float | str
Values = tuple[Value, ...]  # one of each swept setting, in their order
DASHES = ("solid", "dot", "dashdot", "longdash")
OPTIONS = "options."
NOT_SAID = "not said"  # older rows leave out options that came after them
DEFAULTS = {s.key: s.default for s in list_settings(Settings)}  # rows leave out some settings at their defaults


def swept_value(row: Row, key: str) -> Value | None:
    """A row's value of a setting (length, target.steps) or of an option (options.METHOD.NAME).

    None where it is an option of another method, which this row does not depend on.
    """
    value: Any = row.settings
    if is_option := key.startswith(OPTIONS):
        _, method, key = key.split(".")
        if row.method != method:
            return None
        value = value.get("method")
    for part in key.split("."):
        value = value.get(part, NOT_SAID) if isinstance(value, Mapping) else NOT_SAID
    if value == NOT_SAID and not is_option and (default := DEFAULTS.get(key)) is not None:
        value = json.loads(default)
    if isinstance(value, list) and len(value) == 1:
        [value] = value
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number or isinstance(value, str) else json.dumps(value)


def split_by_values(rows: Sequence[Row], keys: Sequence[str]) -> dict[Values, tuple[Row, ...]]:
    """The rows of each combination of values, numbers in their order, the last key changing fastest.

    A row that does not depend on a key belongs to all of its values. {(): rows} without keys.
    """
    of_row = [tuple(swept_value(row, key) for key in keys) for row in rows]
    values: list[list[Value]] = []
    for place in range(len(keys)):
        found = list(dict.fromkeys(v for own in of_row if (v := own[place]) is not None)) or [NOT_SAID]
        values.append(sorted(found, key=lambda v: (isinstance(v, str), 0.0 if isinstance(v, str) else v)))
    split = {}
    for combination in product(*values):
        fits = [all(v in (None, c) for v, c in zip(own, combination, strict=True)) for own in of_row]
        fitting = [own for own, fit in zip(of_row, fits, strict=True) if fit]
        has_run = [any(own[i] is not None for own in fitting) for i in range(len(keys)) if values[i] != [NOT_SAID]]
        if fitting and all(has_run):
            split[combination] = tuple(row for row, fit in zip(rows, fits, strict=True) if fit)
    return split


def values_text(keys: Sequence[str], values: Values) -> str:
    """Values with the names of their settings, as "length = 10, target.steps = 30"."""
    return ", ".join(f"{key} = {value}" for key, value in zip(keys, values, strict=True))


@dataclass(frozen=True)
class SweepLine:
    """A method at the values `others` of all swept settings but the last: its mean score at each value of that one.

    It `is_level` where it depends on none of them.
    """

    method: str
    others: Values
    scores: Mapping[Value, Interval]
    is_level: bool


@dataclass(frozen=True)
class SweepCurves:
    """The lines of all methods at one k, over the same targets."""

    keys: Sequence[str]
    k: int
    targets: tuple[str, ...]
    lines: tuple[SweepLine, ...]

    @classmethod
    def of(cls, grids: Mapping[Values, Grid], keys: Sequence[str], k: int) -> "SweepCurves":
        """Every method at one k, over the targets and seeds that all methods have finished at all values.

        Targets are averaged, and seeds resampled within them, as everywhere in the report.
        """
        seeds: dict[str, frozenset[int]] = {}  # those of methods that use shots; of others all count
        shared = [grid.shared.get(k, {}) for grid in grids.values()]
        for target in shared[0]:
            if all(target in of_grid for of_grid in shared):
                common = frozenset.intersection(*(of_grid[target] for of_grid in shared))
                if common or not any(of_grid[target] for of_grid in shared):
                    seeds[target] = common
        lines: dict[tuple[str, Values], dict[Value, Interval]] = {}
        cells: dict[str, set[frozenset[str]]] = {}  # those of each method at the values, to tell what does not change
        for values, grid in grids.items():
            for method in grid.methods if seeds else ():
                rows = {t: [r for s, r in grid.runs[method, t, k].items() if s in seeds[t] or r.k != k] for t in seeds}
                merits = {t: [grid.merit(t, r.score or 0.0) for r in of_target] for t, of_target in rows.items()}
                lines.setdefault((method, values[:-1]), {})[values[-1]] = stratified_bootstrap(merits)
                cells.setdefault(method, set()).add(frozenset(r.cell for of_target in rows.values() for r in of_target))
        found = [
            SweepLine(method, others, scores, len(cells[method]) == 1) for (method, others), scores in lines.items()
        ]
        order = {method: i for grid in grids.values() for i, method in enumerate(grid.methods)}
        return cls(keys, k, tuple(seeds), tuple(sorted(found, key=lambda line: order[line.method])))

    def table(self, values: Sequence[Value], sign_note: str) -> Table:
        """Mean scores: a row for each line, a column for each value of the last setting."""
        *others, last = self.keys
        return make_table(
            f"sweep-k{self.k}",
            f"Score against {last}, k = {self.k}",
            f"Mean over the {len(self.targets)} targets that every method has finished at every value "
            f"({', '.join(self.targets)}), at common seeds. 95% intervals resample seeds within targets. What does not "
            f"depend on a setting stands at each of its values.{sign_note}",
            columns("|".join(["Method", *others]), [f"{last} = {value}" for value in values]),
            [(line.method, *map(str, line.others), *map(line.scores.get, values)) for line in self.lines],
        )

    def figure(self, grid: Grid) -> "Figure":
        """The lines; those of one method at other values of the other settings differ in dash."""
        from plotly.graph_objects import Figure

        figure, values = Figure(), list(dict.fromkeys(value for line in self.lines for value in line.scores))
        others = list(dict.fromkeys(line.others for line in self.lines))
        for line in self.lines:
            if line.is_level and line.others != others[0]:
                continue  # the same once more
            style = method_style(grid, line.method)
            heads = {plot_label(f"{self.keys[-1]} = {value}"): i for value, i in line.scores.items()}
            trace = interval_trace(style, heads)
            if line.others and not line.is_level:
                trace["name"] = style.label + plot_label(f", {values_text(self.keys[:-1], line.others)}")
            dash = "dash" if line.is_level else DASHES[others.index(line.others) % len(DASHES)]
            figure.add_scatter(
                **trace, x=list(line.scores), mode="lines+markers",
                line={"color": style.colour, "width": 2, "dash": dash},
                marker={"color": style.colour, "symbol": style.symbol, "size": 9},
            )  # fmt: skip
        numbers = [value for value in values if not isinstance(value, str)]
        axis: dict[str, Any] = {"type": "category"}
        if len(numbers) == len(values):
            ticks = {"tickvals": values, "ticktext": list(map(str, values))}
            axis = {"type": "log" if min(numbers) > 0 else "linear", **ticks}
        figure.update_xaxes(title=plot_label(self.keys[-1]), **axis)
        figure.update_yaxes(title="score on test, mean over targets")
        return figure


def sweep_section(grids: Mapping[Values, Grid], keys: Sequence[str]) -> Section:
    """Score against the values of the last swept setting, a line for each method and the values of the others."""
    ks = sorted({k for grid in grids.values() for k in grid.ks}) if keys else []
    by_k = {k: curves for k in ks if (curves := SweepCurves.of(grids, keys, k)).lines}
    if not by_k:
        return Section("Sweep", ())
    values = list(dict.fromkeys(of_grid[-1] for of_grid in grids))
    sign_note = "".join(dict.fromkeys(grid.sign_note for grid in grids.values()))
    plot = Plot(
        "sweep",
        f"Score against {keys[-1]}",
        "Mean over the targets that every method finished at every value, with its 95% interval. Dashed lines are "
        "methods that do not depend on the setting.",
        "Mean score of each method at each value of the swept setting. The table holds the same numbers.",
        (Control("k", {k: str(k) for k in by_k}, max(by_k)),),
        lambda k: by_k[k].figure(next(iter(grids.values()))),
    )
    found = []
    for k, curves in by_k.items():
        points = [(s.estimate, line.method, values_text(keys, (*line.others, v)), line.is_level)
                  for line in curves.lines for v, s in line.scores.items()]  # fmt: skip
        mean, method, at, is_level = max(points, key=lambda point: point[0])
        where = "at every value" if is_level else f"at {at}"
        found.append(f"k = {k}: the highest mean is that of {method} {where} ({format_number(mean, 'score')}).")
    parts = tuple((k, (curves.table(values, sign_note),)) for k, curves in by_k.items())
    return Section("Sweep", parts, (plot,), " ".join(found))
