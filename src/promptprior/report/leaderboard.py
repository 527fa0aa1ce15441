"""Results of many people on one page: who scored what on each target, made how, and what others reproduced.

Every person's methods stand beside each other under names of their own, "method (person)", so that the sections of an
ordinary report compare them; the sections of this file come first. A cell is known by the hash of all that decides its
result: the same cell of two people is one experiment run twice.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from promptprior.config.comparison_folder import PLAN, RESULTS
from promptprior.errors import DataError
from promptprior.report.page import Report, make_report
from promptprior.report.results import Grid, Row, read_rows
from promptprior.report.section import Section, Table, Value, columns, make_table
from promptprior.report.statistics import TIE


@dataclass(frozen=True)
class Entry:
    """One person's results: the name they are shown by, the file they came from, and how it was made, as far as is
    known: its SHA-256 and the first line of the plan beside it."""

    person: str
    file: Path
    rows: tuple[Row, ...]

    @classmethod
    def read(cls, named: str) -> "tuple[Entry, ...]":
        """The entries of "FOLDER" or "PERSON=FOLDER": of a results.jsonl, of its folder, or of all folders in it.

        Without PERSON they are called as their folders. Raises DataError where there are no results, and for lines that
        are damaged.
        """
        person, _, place = ("", "", named) if Path(named).exists() else named.rpartition("=")
        path = Path(place)
        files = [path] if path.is_file() else [path / RESULTS]
        if not files[0].is_file():
            files = sorted(path.glob(f"*/{RESULTS}"))
        if not files:
            raise DataError(f"{path}: no {RESULTS} there, nor in a folder in it; expected what compare wrote")
        people = [person if person and len(files) == 1 else file.resolve().parent.name for file in files]
        entries = tuple(cls(who, file, read_rows(file)) for who, file in zip(people, files, strict=True))
        if empty := [str(entry.file) for entry in entries if not entry.rows]:
            raise DataError(f"{', '.join(empty)}: no result rows; leave it out, or run the comparison")
        return entries

    def provenance(self) -> tuple[Value, ...]:
        """What a reader needs to check the entry: file and digest, command, backbones, library versions, failures."""
        plan = self.file.with_name(PLAN)
        first = plan.read_text(encoding="utf-8", errors="replace").partition("\n")[0] if plan.is_file() else ""
        command = f"{first.removeprefix('# written by ')} {PLAN}" if first.startswith("# written by ") else ""
        digest = hashlib.sha256(self.file.read_bytes()).hexdigest()[:16]
        backbones = dict.fromkeys(f"{row.backbone.name} ({row.backbone.fingerprint[:12]})" for row in self.rows)
        installed = dict.fromkeys(f"{name} {version}" for row in self.rows for name, version in row.versions.items())
        failed = sum(not row.is_ok for row in self.rows)
        texts = (self.person, str(self.file), digest, command or "not said", ", ".join(backbones), ", ".join(installed))
        return (*texts, float(len(self.rows)), float(failed))


def make_leaderboard(entries: Sequence[Entry], title: str, baseline: str, command: str = "") -> Report:
    """The page of some people's results. `baseline` is the method, of whoever ran it first, that all are compared with.

    Raises DataError for two entries of one name, and where no row has a score.
    """
    names = [entry.person for entry in entries]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"two entries are called {', '.join(twice)}: say who they are (PERSON=FOLDER)")
    rows = [replace(row, method=f"{row.method} ({e.person})") for e in entries for row in e.rows]
    if not any(row.is_ok for row in rows):
        raise DataError("no result row has a score: there is nothing to rank")
    own = next((row.method for row in rows if row.method.startswith(f"{baseline} (") and row.is_ok), baseline)

    # For each k a table: on each target all methods of all people, the best first
    grid, boards = Grid(tuple(rows), own), list[tuple[int | None, tuple[Table, ...]]]()
    heads = columns("Target|Rank|Method (who)|Metric|Backbone", ["Score"], {"Seeds": "count", "Test rows": "count"})
    note = "95% intervals over seeds. Scores of different backbones, or of other numbers of test rows, do not compare."
    for k in grid.ks:
        lines: list[tuple[Value, ...]] = []
        for target in grid.targets:
            means = {m: i for (m, t, at), i in grid.intervals.items() if (t, at) == (target, k)}
            ranked = sorted(means, key=lambda m: -grid.merit(target, means[m].estimate))
            for rank, method in enumerate(ranked, start=1):
                runs = tuple(grid.runs[method, target, k].values())
                texts = (target, str(rank), method, runs[0].metric, runs[0].backbone.name)
                lines.append((*texts, means[method], float(len(runs)), float(runs[0].n_test)))
        board = make_table(f"leaderboard-k{k}", f"All entries, k = {k}", note + grid.sign_note, heads, lines)
        boards.append((k, (board,)))

    # What several people ran with all the same settings, and how far their scores are apart
    of_cell: dict[str, dict[str, Row]] = {}
    for entry in entries:
        for row in entry.rows:
            of_cell.setdefault(row.cell, {})[entry.person] = row
    repeats: list[tuple[Value, ...]] = []
    for people in of_cell.values():
        scores = [row.score for row in people.values() if row.score is not None]
        if len(scores) > 1:
            row, gap = next(iter(people.values())), max(scores) - min(scores)
            said = "equal" if gap < TIE else "differ"
            repeats.append((row.method, row.target, str(row.k), str(row.seed), ", ".join(people), said, gap))
    heads = columns("Method|Target|k|Seed|Who|Scores", (), ["Apart by"])
    note = "Cells of the same hash: all settings, data and the backbone are the same."
    reproduced = make_table("reproduced", "Run by several people", note, heads, repeats)

    heads = columns("Who|File|SHA-256|Command|Backbone|Versions", (), {"Cells": "count", "Failed": "count"})
    note = "What everybody's rows and the plan beside them say of how they were made; digests have 16 of 64 digits."
    sources = make_table("provenance", "Entries", note, heads, [entry.provenance() for entry in entries])
    tables = (sources, reproduced) if repeats else (sources,)
    leading = (Section("Leaderboard", tuple(boards)), Section("Where results come from", ((None, tables),)))
    return make_report(rows, title, baseline=own, command=command, leading=leading)
