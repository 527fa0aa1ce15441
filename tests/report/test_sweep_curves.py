"""Rows of a sweep: split by their own settings, and their scores against the values."""

from collections.abc import Iterator
from typing import Any

import pytest

from promptprior.report.curves.sweep_curves import NOT_SAID, SweepCurves, split_by_values, swept_value
from promptprior.report.page import Report, make_report
from promptprior.report.results import Row
from promptprior.report.section import DASH
from tests.report.result_rows import grid_rows, result_row

TARGETS = {"capital_of": ("geography", 0.42, 0.16), "antonym": ("lexical", 0.55, 0.09)}
METHODS = ("zero_shot", "prompt_tuning", "spot")


def swept_rows(lengths: tuple[int, ...] = (5, 10, 20), ks: tuple[int, ...] = (4,)) -> Iterator[dict[str, Any]]:
    """A grid whose scores grow by a hundredth of the length; spot at two values of its option, at each length."""
    for length in lengths:
        for row in grid_rows(ks=ks, targets=TARGETS, methods=METHODS):
            for top in (1, 2) if row["method"] == "spot" else (None,):
                own = {} if top is None else {"top": top}
                yield row | {
                    "cell": f"{row['cell']}-{length}-{top}",
                    "score": min(1.0, row["score"] + length / 100 + (top or 0) / 10),
                    "settings": {"length": length, "target": {"steps": 30}, "method": {"name": row["method"], **own}},
                }


def report_of(*keys: str, rows: Iterator[dict[str, Any]] | None = None) -> Report:
    return make_report(list(rows or swept_rows()), sweep=keys)


def table_of(report: Report, name: str) -> list[list[str]]:
    [table] = [table for table in report.tables if table.name == name]
    return [[column.head for column in table.columns], *([cell.text for cell in row] for row in table.rows)]


@pytest.mark.parametrize(
    ("settings", "key", "value"),
    [
        ({"length": 10}, "length", 10),
        ({"target": {"steps": 5}}, "target.steps", 5),
        ({"target": {"learning_rates": [0.3]}}, "target.learning_rates", 0.3),
        ({"target": {"learning_rates": [0.3, 1.0]}}, "target.learning_rates", "[0.3, 1.0]"),
        ({"source": {"clip": None}}, "source.clip", "null"),
        ({"length": 10}, "folds", 0),  # rows leave it out at its default
        ({"target": {}}, "target.rate_unit", "scale"),
        ({"method": {"top": 2}}, "options.spot.top", 2),
        ({"method": {"top": 2}}, "options.tpt.top", None),  # another method's
        ({"method": {}}, "options.spot.top", NOT_SAID),
        ({"method": {}}, "options.spot.start", NOT_SAID),  # not the default of --start
        ({"method": {"is_on": True}}, "options.spot.is_on", "true"),  # no number
        ({}, "target.no_such", NOT_SAID),
    ],
)
def test_a_rows_value_is_in_its_settings(settings: dict[str, Any], key: str, value: object) -> None:
    assert swept_value(Row.from_json(result_row(method="spot", settings=settings)), key) == value


def test_rows_are_split_by_their_values_and_what_does_not_depend_on_one_stands_at_each() -> None:
    rows = [Row.from_json(row) for row in swept_rows()]
    split = split_by_values(rows, ["length", "options.spot.top"])
    assert list(split) == [(5, 1), (5, 2), (10, 1), (10, 2), (20, 1), (20, 2)]
    for (length, top), own in split.items():
        assert {row.settings["length"] for row in own} == {length}
        assert {row.settings["method"]["top"] for row in own if row.method == "spot"} == {top}
        assert {row.method for row in own} == {*METHODS}
    assert split_by_values(rows, []) == {(): tuple(rows)}
    few = [row for row in rows if row.method != "spot"]  # a run that has not come to spot yet
    assert split_by_values(few, ["options.spot.top"]) == {(NOT_SAID,): tuple(few)}
    apart = [row for row in rows if row.settings["length"] == 5 or row.settings["method"].get("top") == 2]
    assert (10, 1) not in split_by_values(apart, ["length", "options.spot.top"])


def test_the_section_has_the_mean_of_every_method_at_every_value() -> None:
    report = report_of("options.spot.top", "length")
    head, *rows = table_of(report, "sweep-k4")
    assert head == ["Method", "options.spot.top", "length = 5", "length = 10", "length = 20"]
    assert [row[:2] for row in rows] == [[m, top] for m in ("zero_shot", "prompt_tuning", "spot") for top in ("1", "2")]
    for method, top, *scores in rows:
        for length, score in zip((5, 10, 20), scores, strict=True):
            means = []
            for target in TARGETS:
                own = [
                    row["score"]
                    for row in swept_rows()
                    if (row["method"], row["target"], row["settings"]["length"]) == (method, target, length)
                    and row["settings"]["method"].get("top") in (None, int(top))
                ]
                means.append(sum(own) / len(own))
            assert float(score) == pytest.approx(sum(means) / 2, abs=5.1e-4)
    curves = SweepCurves.of(report.grids, ["options.spot.top", "length"], 4)
    lines = curves.lines
    assert sorted(curves.targets) == sorted(TARGETS)
    assert all(score.low is not None for line in lines if line.method == "spot" for score in line.scores.values())
    assert not any(line.is_level for line in lines)  # all depend on the length


def test_other_sections_show_the_last_values_and_notices_count_all_cells() -> None:
    rows = list(swept_rows())
    report = make_report(rows, sweep=["length"], missing=1)
    assert {row.settings["length"] for row in report.grid.rows} == {20}
    text = " ".join(report.notices)
    assert f"{len(report.rows)} of {len(report.rows) + 1} cells have run" in text
    assert '"Sweep" has all values, the other sections those with length = 20.' in text
    found = {caution.found.partition(":")[0] for caution in report.cautions}
    assert found == {"length = 5", "length = 10", "length = 20"}
    plain = make_report([row for row in rows if row["settings"]["length"] == 20])
    assert [t for t in plain.tables if t.name == "overall-k4"] == [t for t in report.tables if t.name == "overall-k4"]


def test_the_figure_has_a_line_for_each_method_and_level_ones_dashed() -> None:
    report = report_of("options.spot.top")
    [plot] = [plot for section in report.sections for plot in section.plots if plot.name == "sweep"]
    figure = plot.to_json()["views"]["0"]
    assert {line["name"]: line["line"]["dash"] for line in figure["data"]} == {
        "zero_shot": "dash", "prompt_tuning": "dash", "spot": "solid",
    }  # fmt: skip
    assert figure["layout"]["xaxis"]["type"] == "log"
    assert [line["x"] for line in figure["data"]] == [[1, 2]] * 3
    both = report_of("options.spot.top", "length")
    [plot] = [plot for section in both.sections for plot in section.plots if plot.name == "sweep"]
    named = [line["name"] for line in plot.to_json()["views"]["0"]["data"]]
    assert "spot, options.spot.top = 1" in named
    assert "spot, options.spot.top = 2" in named


def test_a_value_that_has_not_run_leaves_out_nothing_else() -> None:
    rows = [row for row in swept_rows() if not (row["settings"]["length"] == 20 and row["method"] == "spot")]
    _, *lines = table_of(report_of("length", rows=iter(rows)), "sweep-k4")
    assert [line[-1] for line in lines if line[0] == "spot"] == [DASH]
    assert all(DASH not in line for line in lines if line[0] != "spot")
