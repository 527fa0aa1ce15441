"""Every number of docs/studies is in its rows: tables are what the command writes, pages are checked against the rows.

Pages carry comments that no reader sees. Above a table, what its columns hold; after a number, with its interval if it
has one, where that is from:

    <!-- rows: field | Mean@4 | Difference@4 + p, Holm@4 | multitask: Difference@4 | - -->
    +0.091<!-- field bmtpt Difference@32 -->

A study is a file of results, or several joined by "+" (the later one's rows win). A name is Mean, a target, a number of
the diagnostics (retrieval.rows_used) or a column of the report's tables; differences are from prompt_tuning, or from
the method before the colon. (trec cr) after it takes just these targets, @ gives k, STUDY/ another study. A table's
column may hold several names, joined by "+", and "-" is not checked. A table's row is about the method that its first
cell names, and about its k, if it says one.
"""

import importlib.util
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from promptprior.report.page import Report, make_report
from promptprior.report.results import read_rows
from promptprior.report.section import list_words

REPOSITORY = Path(__file__).parents[1]
STUDIES = REPOSITORY / "docs" / "studies"
PAGES = sorted(path for path in STUDIES.glob("*.md") if "_tables" not in path.stem)
NAMES = sorted(path.stem for path in (STUDIES / "results").glob("*.jsonl"))
NUMBER = re.compile(r"(?<![\w.])[-+\N{MINUS SIGN}]?\d+(?:\.\d+)?(?![\w.]*\d)")
SIGNED = r"[-+]?\d+\.\d+"
SOURCE = r"<!--\s+(\S+)\s+(\S+)\s+([^|>]+?)\s+-->"
MARKED = re.compile(rf"({SIGNED}(?:\s+\[{SIGNED},\s+{SIGNED}\])?)(?:\*\*)?{SOURCE}")
TABLE = re.compile(r"^(?:<!-- rows: ([^|]+?) \| ([^>]+) -->\n)?((?:\|.*\n)+)", re.MULTILINE)


def command() -> ModuleType:
    """experiments/study_tables.py, which is no package's module."""
    spec = importlib.util.spec_from_file_location("study_tables", REPOSITORY / "experiments" / "study_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", NAMES)
def test_tables_are_what_the_command_writes(name: str, tmp_path: Path) -> None:
    written = command().write_tables(name, tmp_path).read_text(encoding="utf-8")
    assert (STUDIES / f"{name}_tables.md").read_text(encoding="utf-8") == written, "python experiments/study_tables.py"


@cache
def report_of(studies: str, baseline: str = "prompt_tuning", targets: str = "") -> Report:
    rows = [row for study in studies.split("+") for row in read_rows(STUDIES / "results" / f"{study}.jsonl")]
    return make_report([row for row in rows if not targets or row.target in targets.split()], baseline=baseline)


def numbers_of(studies: str, method: str, name: str, row_k: int | None = None) -> list[float]:
    """The numbers that one name of the markup stands for, of one method; `row_k` where the name gives no k."""
    parts = re.fullmatch(r"(?:(\w+)/)?(?:(\w+): )?([^(@]+)(?:\((.*)\))?(?:@(\d+))?", name)
    assert parts, name
    other, baseline, column, targets, shots = parts.groups(default="")
    k = int(shots) if shots else row_k
    assert k is not None, f"{name}: no k"
    report = report_of(other or studies, baseline or "prompt_tuning", targets)
    grid = report.grid
    if column == "Mean":
        return [float(np.mean([grid.intervals[method, target, k].estimate for target in grid.targets]))]
    if column in grid.targets:
        return [grid.intervals[method, column, k].estimate]
    if "." in column:
        topic, key = column.split(".")
        own = [row for row in grid.rows if (row.method, row.k) == (method, k)]
        return [float(np.mean([row.diagnostics[topic][key] for row in own]))]
    tables = [table for table in report.tables if table.name.endswith(f"-k{k}")]
    [table] = [table for table in tables if column in [c.head for c in table.columns]]
    place = [c.head for c in table.columns].index(column)
    [cell] = [row[place] for row in table.rows if row[0].text == method]
    if table.columns[place].kind == "text":
        return [float(number) for number in NUMBER.findall(cell.text)]
    factor = 100 if table.columns[place].style == "percent" else 1
    return [factor * number for number in cell.numbers if number is not None]


def are_in_order(written: list[str], numbers: list[float]) -> bool:
    """Whether numbers as they are written, to their digits, are some of these, in their order."""
    left = iter(numbers)
    for text in written:
        value, error = float(text), 0.5 * 10.0 ** -len(text.partition(".")[2]) + 1e-9
        if not any(abs(value - number) <= error for number in left):
            return False
    return True


def problems_of_tables(text: str) -> Iterator[str]:
    """The cells of a page's tables whose numbers are not in the rows."""
    for studies, columns, table in TABLE.findall(text):
        if not studies:
            continue
        names = [" ".join(column.split()).split(" + ") for column in re.split(r"\s\|\s", columns)]
        for line in table.splitlines()[2:]:
            first, *cells = [cell.strip() for cell in line.strip("|").split("|")]
            [method] = set(report_of(studies).grid.methods) & set(re.findall(r"\w+", first))
            found = re.search(r"k = (\d+)", first)
            for cell, own in zip(cells, names, strict=True):
                if own == ["-"] or not (written := NUMBER.findall(cell)):
                    continue
                known = [n for name in own for n in numbers_of(studies, method, name, int(found[1]) if found else None)]
                if not are_in_order(written, known):
                    yield f"{studies} {method} {' + '.join(own)}: {cell}; the rows give {known}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_numbers_of_pages_are_in_the_rows(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    problems = list(problems_of_tables(text))
    for written, studies, method, name in MARKED.findall(text):
        known = numbers_of(studies, method, " ".join(name.split()))
        if not are_in_order(NUMBER.findall(written), known):
            problems.append(f"{studies} {method} {name}: {written}; the rows give {known}")
    assert problems == []
    assert len(MARKED.findall(text)) == len(re.findall(r"<!--(?! rows:)", text)), "a comment that no number precedes"


STUDY_PAGES = [page for page in PAGES if page.stem not in ("README", "claims")]


@pytest.mark.parametrize("page", STUDY_PAGES, ids=lambda page: page.stem)
def test_every_table_of_a_page_says_which_rows_it_is_from(page: Path) -> None:
    """Above it, or after each of its numbers."""
    for studies, _, table in TABLE.findall(page.read_text(encoding="utf-8")):
        assert studies or not re.search(r"\d\.\d", MARKED.sub("", table)), table


@pytest.mark.parametrize("page", STUDY_PAGES, ids=lambda page: page.stem)
def test_a_page_says_at_its_top_which_gates_its_studies_do_not_pass(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    top = " ".join(re.split(r"\n    \w+|\n## ", text)[0].split())
    studies = re.findall(r"\]\((\w+)_tables\.md\)", text)
    assert studies
    for name in studies:
        gates = list(dict.fromkeys(c.gate for c in report_of(name).cautions if c.spoils))
        assert f"{name}: {list_words(gates) or 'none'}" in top


def test_a_wrong_number_is_noticed() -> None:
    head = "<!-- rows: quick | Mean@8 | Difference by seed@8 -->\n| k = 8 | mean | against |\n|---|---|---|\n"
    good, bad = "| **bmtpt** | 0.715 | +0.084 [-0.021, +0.190] |\n", "| bmtpt | 0.716 | +0.084 [-0.021, +0.199] |\n"
    assert list(problems_of_tables(head + good)) == []
    assert len(list(problems_of_tables(head + bad))) == 2
    assert not are_in_order(["0.2", "0.1"], [0.1, 0.2])
    assert not are_in_order(["2"], [2.6])
