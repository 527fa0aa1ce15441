"""The tables of a comparison: one shape for the page, for Markdown and for CSV."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from promptprior.report.statistics import Interval

Kind = Literal["text", "number", "interval"]
DASH = "\N{EN DASH}"
MARKS = {"better": "\N{BLACK UP-POINTING TRIANGLE}", "worse": "\N{BLACK DOWN-POINTING TRIANGLE}", "": ""}


@dataclass(frozen=True)
class Cell:
    """What stands in one place: `main` with its `detail`, a mark, and the numbers behind it.

    `numbers` has one value in a column of numbers; estimate, low and high in a column of intervals.
    """

    main: str
    detail: str = ""
    mark: Literal["", "better", "worse"] = ""
    numbers: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Column:
    """A column: its head and what its cells hold."""

    head: str
    kind: Kind = "interval"


@dataclass(frozen=True)
class Table:
    """A table. `name` is what its file is called; `note` says what the numbers are."""

    name: str
    title: str
    note: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]


EMPTY = Cell(DASH)


def columns(texts: str = "", intervals: Sequence[str] = (), numbers: Sequence[str] = ()) -> tuple[Column, ...]:
    """Columns: texts (split at |), then intervals, then numbers."""
    heads = [head for head in texts.split("|") if head]
    return (
        *(Column(head, "text") for head in heads),
        *(Column(head) for head in intervals),
        *(Column(head, "number") for head in numbers),
    )


# Cells --------------------------------------------------------------------------------------------------


def scored(
    i: Interval | None, write: Callable[[float | None], str] | None = None, mark: str = "", alone: str = "one run"
) -> Cell:
    """An interval, three digits unless written otherwise; of one run there is no interval."""
    if i is None:
        return EMPTY
    write = write or score_text
    ends = alone if i.low is None else f"[{write(i.low)}, {write(i.high)}]"
    marked: Literal["", "better", "worse"] = "better" if mark == "better" else "worse" if mark == "worse" else ""
    return Cell(write(i.estimate), ends, marked, (i.estimate, i.low, i.high))


def number(value: float | None, write: Callable[[float], str]) -> Cell:
    """One number, or a dash."""
    return EMPTY if value is None else Cell(write(value), numbers=(value,))


# Numbers as text ----------------------------------------------------------------------------------------


def score_text(value: float | None, digits: int = 3) -> str:
    """A score with a true minus, or a dash.

    >>> score_text(0.5), score_text(None)
    ('0.500', '–')
    """
    return DASH if value is None else f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def signed(value: float | None, digits: int = 3) -> str:
    """A difference with its sign (a true minus), or a dash.

    >>> signed(-0.05), signed(0.1)
    ('−0.050', '+0.100')
    """
    return DASH if value is None else f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def percent(value: float | None) -> str:
    """A relative gain.

    >>> percent(0.0321)
    '+3.2%'
    """
    return DASH if value is None else f"{signed(100 * value, 1)}%"


def two_digits(value: float | None) -> str:
    """A share or a mean rank.

    >>> two_digits(0.5)
    '0.50'
    """
    return score_text(value, 2)


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


def count(value: float) -> str:
    """A whole number with thousands separators.

    >>> count(9216)
    '9,216'
    """
    return f"{value:,.0f}"


# Files --------------------------------------------------------------------------------------------------


def markdown(tables: Sequence[Table], level: int = 3) -> str:
    """Tables under their titles, with their notes."""
    return "\n".join(markdown_table(table, level) for table in tables)


def markdown_table(table: Table, level: int) -> str:
    """One table in Markdown."""
    lines = [[column.head for column in table.columns], [rule(column) for column in table.columns]]
    lines += [[inline(cell) for cell in row] for row in table.rows]
    body = "\n".join(f"| {' | '.join(map(escaped, line))} |" for line in lines)
    note = f"{table.note}\n\n" if table.note else ""
    return f"{'#' * level} {table.title}\n\n{note}{body}\n"


def rule(column: Column) -> str:
    """How Markdown aligns a column."""
    return "---" if column.kind == "text" else "---:"


def inline(cell: Cell) -> str:
    """A cell in one line.

    >>> inline(Cell("0.500", "[0.400, 0.600]", "better"))
    '0.500 ▲ [0.400, 0.600]'
    """
    return " ".join(filter(None, [cell.main, MARKS[cell.mark], cell.detail]))


def escaped(text: str) -> str:
    """Text that cannot end a cell or begin a tag.

    >>> escaped("a|b <c>")
    'a\\\\|b &lt;c>'
    """
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def as_csv(table: Table) -> str:
    """One table in CSV: full numbers; an interval has three columns, its ends called low and high."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([head for column in table.columns for head in csv_heads(column)])
    for row in table.rows:
        writer.writerow([v for column, cell in zip(table.columns, row, strict=True) for v in csv_values(column, cell)])
    return out.getvalue()


def csv_heads(column: Column) -> list[str]:
    """The heads of one column."""
    return [column.head, f"{column.head} low", f"{column.head} high"] if column.kind == "interval" else [column.head]


def csv_values(column: Column, cell: Cell) -> Sequence[str | float | None]:
    """The values of one cell, empty where there is none."""
    if column.kind == "text":
        return [cell.main]
    width = len(csv_heads(column))
    return [*cell.numbers, *[None] * width][:width]


def write_csv(tables: Sequence[Table], folder: Path) -> list[Path]:
    """Each table as folder/NAME.csv; returns the files."""
    from promptprior.files import write_text

    paths = [folder / f"{table.name}.csv" for table in tables]
    for table, path in zip(tables, paths, strict=True):
        write_text(path, as_csv(table))
    return paths
