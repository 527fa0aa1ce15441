"""What a report is made of: sections of tables (one shape for the page, for Markdown and for CSV) and plots.

A plot is drawn by plotly.graph_objects in Python, once for every choice of its controls; report.js only shows the
figure that is chosen.
"""

import csv
import io
import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from promptprior.report.statistics import Interval

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Kind = Literal["text", "number", "interval"]
Verdict = Literal["", "better", "worse", "unclear"]
Style = Literal["score", "signed", "percent", "two_digits", "p", "p_equals", "amount", "count", "plain"]
HEIGHT = 440  # pixels of a figure that does not say otherwise
DASH = "\N{EN DASH}"
NO_BREAK = "\N{NO-BREAK SPACE}"
VERDICT_SYMBOLS = {"better": "\N{BLACK UP-POINTING TRIANGLE}", "worse": "\N{BLACK DOWN-POINTING TRIANGLE}"}


@dataclass(frozen=True)
class TableCell:
    """The text of a cell with its smaller `detail`, a verdict that is shown as a symbol, and the numbers behind it.

    `numbers` has one value in a column of numbers; estimate, low and high in a column of intervals.
    """

    text: str
    detail: str = ""
    verdict: Verdict = ""
    numbers: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Column:
    """A column: its head, what its cells hold, and how make_table writes them."""

    head: str
    kind: Kind = "interval"
    style: Style = "score"


@dataclass(frozen=True)
class Table:
    """A table. `name` tells it from others; `note` says what the numbers are."""

    name: str
    title: str
    note: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[TableCell, ...], ...]

    @property
    def file_name(self) -> str:
        """What its CSV file is called; names of methods and targets stand in it, and may be anything."""
        return re.sub(r"[^\w.-]+", "_", self.name)[:100] + ".csv"

    def to_markdown(self) -> str:
        """The table under its title, with its note; no text can end a cell or begin a tag."""
        rules = ["---" if column.kind == "text" else "---:" for column in self.columns]
        parts = [[(c.text, VERDICT_SYMBOLS.get(c.verdict), c.detail) for c in row] for row in self.rows]
        cells = [[" ".join(filter(None, cell)) for cell in row] for row in parts]
        escapes = str.maketrans({"\\": "\\\\", "|": "\\|", "<": "&lt;", "\n": " "})
        lines = [[text.translate(escapes) for text in line] for line in ([c.head for c in self.columns], rules, *cells)]
        note = f"{self.note}\n\n" if self.note else ""
        return f"### {self.title}\n\n{note}" + "".join(f"| {' | '.join(line)} |\n" for line in lines)

    def to_csv(self) -> str:
        """Full numbers, empty where there is none; an interval has three columns, its ends called low and high."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        ends = ["", " low", " high"]
        writer.writerow([c.head + end for c in self.columns for end in (ends if c.kind == "interval" else ends[:1])])
        for row in self.rows:
            line: list[str | float | None] = []
            for column, cell in zip(self.columns, row, strict=True):
                width = len(ends) if column.kind == "interval" else 1
                line += [cell.text] if column.kind == "text" else [*cell.numbers, *[None] * width][:width]
            writer.writerow(line)
        return out.getvalue()


@dataclass(frozen=True)
class Control:
    """Something a reader chooses: its label, and the text of each value. `start` is the value chosen at first."""

    label: str
    options: Mapping[Any, str]
    start: Any


@dataclass(frozen=True)
class Plot:
    """A plot: its name, title, caption, description for who cannot see it, its controls, and how it is drawn.

    `draw` takes one value of every control, in order. A plot of the overview stands above all tables, another one in
    its section.
    """

    name: str
    title: str
    caption: str
    description: str
    controls: tuple[Control, ...]
    draw: "Callable[..., Figure]"
    is_overview: bool = True

    def to_json(self) -> dict[str, Any]:
        """Labels of the controls, and a figure for each choice of their options by index, such as "0|2"."""
        choices = [list(enumerate(control.options)) for control in self.controls]
        views = {}
        for chosen in itertools.product(*choices):
            figure = self.draw(*(value for _, value in chosen)).to_plotly_json()
            figure["layout"].pop("template", None)  # the page holds the template once
            figure["layout"].setdefault("height", HEIGHT)  # which plotly ignores in a template
            views["|".join(str(index) for index, _ in chosen)] = figure
        controls = [
            {"label": c.label, "options": list(c.options.values()), "start": list(c.options).index(c.start)}
            for c in self.controls
        ]
        return {
            "controls": controls,
            "views": json.loads(json.dumps(views), parse_float=lambda s: float(f"{float(s):.5g}")),
        }


@dataclass(frozen=True)
class Section:
    """A part of the page: plots, and tables by k, the largest k last and open, or tables that hold for all (k None).

    `finding` is what they show, in a sentence or two that the page puts first.
    """

    title: str
    parts: tuple[tuple[int | None, tuple[Table, ...]], ...]
    plots: tuple[Plot, ...] = ()
    finding: str = ""

    @property
    def tables(self) -> tuple[Table, ...]:
        """Its tables one after the other."""
        return tuple(table for _, tables in self.parts for table in tables)


EMPTY = TableCell(DASH)
Value = str | float | Interval | TableCell | None
"""What a row of make_table holds."""


def columns(
    texts: str = "",
    intervals: Iterable[str] | Mapping[str, Style] = (),
    numbers: Iterable[str] | Mapping[str, Style] = (),
) -> tuple[Column, ...]:
    """Columns: texts (split at |), then intervals, then numbers, in the style of each head, or as scores."""
    kinds: tuple[tuple[Kind, Iterable[str]], ...] = (("interval", intervals), ("number", numbers))
    return (
        *(Column(head, "text") for head in texts.split("|") if head),
        *(
            Column(head, kind, heads[head] if isinstance(heads, Mapping) else "score")
            for kind, heads in kinds
            for head in heads
        ),
    )


def make_table(name: str, title: str, note: str, heads: tuple[Column, ...], rows: Iterable[Iterable[Value]]) -> Table:
    """A table of plain values: numbers and intervals in the style of their column, None as a dash."""
    filled = []
    for row in rows:
        cells = []
        for column, value in zip(heads, row, strict=True):
            match value:
                case TableCell():
                    cells.append(value)
                case str():
                    cells.append(TableCell(value))
                case Interval():
                    cells.append(interval_cell(value, column.style))
                case _:
                    cells.append(number_cell(value, column.style))
        filled.append(tuple(cells))
    return Table(name, title, note, heads, tuple(filled))


def interval_cell(
    i: Interval | None, style: Style = "score", verdict: Verdict = "", no_ends: str = "one run"
) -> TableCell:
    """An interval, or a dash; of one run there is no interval."""
    if i is None:
        return EMPTY
    ends = no_ends if i.low is None else f"[{format_number(i.low, style)}, {format_number(i.high, style)}]"
    return TableCell(format_number(i.estimate, style), ends, verdict, (i.estimate, i.low, i.high))


def number_cell(value: float | None, style: Style) -> TableCell:
    """One number, or a dash."""
    return EMPTY if value is None else TableCell(format_number(value, style), numbers=(value,))


def format_number(value: float | None, style: Style) -> str:
    """A number as text with a true minus, or a dash for None.

    >>> [format_number(-0.05, style) for style in ("score", "signed", "percent", "two_digits")]
    ['−0.050', '−0.050', '−5.0%', '−0.05']
    >>> [format_number(p, "p_equals") for p in (0.2, 0.0001)]  # after the letter p; "p" leaves the sign out
    ['= 0.200', '< 0.001']
    >>> [format_number(quantity, "amount") for quantity in (0.1234, 12.34, 123456.0)]
    ['0.12', '12.3', '123,456']
    """
    match style:
        case _ if value is None:
            return DASH
        case "plain":
            return str(value)
        case "count":
            return f"{value:,.0f}"
        case "amount":
            digits = 0 if value >= 100 or value == 0 else 1 if value >= 10 else 2
            return f"{value:,.{digits}f}"
        case "p" | "p_equals":
            return "< 0.001" if value < 0.001 else f"{'= ' if style == 'p_equals' else ''}{value:.3f}"
        case "percent":
            text = f"{100 * value:+.1f}%"
        case _:
            text = f"{value:{ {'score': '.3f', 'signed': '+.3f', 'two_digits': '.2f'}[style] }}"
    return text.replace("-", "\N{MINUS SIGN}")


def count_distinct(values: Sequence[str]) -> str:
    """Distinct values, the most common first, with how many cells have each.

    >>> count_distinct(["1", "2", "2"])
    '2 (2 cells), 1 (1 cell)'
    """
    distinct = sorted(set(values), key=lambda v: (-values.count(v), v))
    if len(distinct) == 1:
        return distinct[0]
    shown = [f"{v} ({(n := values.count(v))} cell{'s' * (n > 1)})" for v in distinct[:8]]
    return ", ".join([*shown, "…"] if len(distinct) > 8 else shown)


def list_words(names: Sequence[str]) -> str:
    """Names with commas and "and".

    >>> list_words(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
