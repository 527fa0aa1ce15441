"""Tables as Markdown and CSV: read back, they hold the numbers that went in."""

import csv
import io

import pytest

from promptprior.report.page import make_report
from promptprior.report.scores import score_figure
from promptprior.report.section import Table, TableCell, columns, format_number, interval_cell, number_cell
from promptprior.report.statistics import Interval, average_relative_gain, stratified_bootstrap
from tests.report.result_rows import grid_rows, result_row


def read_markdown(text):
    """Tables by title: rows of cells."""
    found = {}
    for part in text.split("### ")[1:]:
        title, _, rest = part.partition("\n")
        lines = [line for line in rest.splitlines() if line.startswith("|")]
        found[title] = [[c.strip() for c in line.replace("\\|", "¦").strip("|").split("|")] for line in lines]
    return found


def scores_of(rows, method, k):
    runs = {}
    for row in rows:
        if (row["method"], row["k"]) == (method, k) and row["status"] == "ok":
            runs.setdefault(row["target"], []).append(row["score"])
    return runs


ROWS = grid_rows()


@pytest.fixture(scope="module")
def made():
    return make_report(ROWS).tables


def test_markdown_holds_the_numbers_of_the_rows(made):
    rows, found = ROWS, read_markdown("\n".join(table.to_markdown() for table in made))
    spot, base = scores_of(rows, "spot", 16), scores_of(rows, "prompt_tuning", 16)
    line = next(r for r in found["All targets, k = 16"] if r[0] == "spot")
    want = stratified_bootstrap(spot)
    assert line[1] == f"{want.estimate:.3f} [{want.low:.3f}, {want.high:.3f}]"
    line = next(r for r in found["Against prompt_tuning, k = 16"] if r[0] == "spot")
    assert line[3].startswith(format_number(average_relative_gain(spot, base).gain.estimate, "percent") + " [")
    assert line[6] == "5 / 0 / 3"
    line = next(r for r in found["Scores, k = 4"] if r[0].startswith("capital_of"))
    assert line[0] == "capital_of geography · accuracy · n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}200"
    assert line[1] == "0.240 ▼ one run"
    costs = next(r for r in found["Costs"] if r[0] == "multitask")
    assert costs[found["Costs"][0].index("Numbers trained")] == "9,216"
    assert list(found) == [t.title for t in made]
    assert all(len(r) == len(some[0]) for some in found.values() for r in some)


def test_csv_holds_them_in_full(made):
    read = {t.name: list(csv.DictReader(io.StringIO(t.to_csv()))) for t in made}
    spot = next(r for r in read["overall-k4"] if r["Method"] == "spot")
    want = stratified_bootstrap(scores_of(ROWS, "spot", 4))
    assert float(spot["Mean"]) == pytest.approx(want.estimate, rel=1e-12)
    assert [float(spot[h]) for h in ("Mean low", "Mean high")] == pytest.approx([want.low, want.high], abs=1e-3)
    zero = next(r for r in read["scores-k4"] if r["Target"] == "antonym")
    assert (float(zero["zero_shot"]), zero["zero_shot low"]) == (0.37, "")
    front = [r["Method"] for r in read["pareto-k16"] if r["Front in seconds"] == "yes"]
    assert front == ["zero_shot", "prompt_tuning", "multitask", "spot"]


def test_missing_and_failed_cells_say_so():
    rows = [r for r in grid_rows(ks=(16,)) if (r["method"], r["target"]) != ("spot", "antonym")]
    rows.append(result_row(cell="f", method="multitask", target="new", status="failed", score=None, error="boom"))
    rows.append(result_row(cell="g", method="prompt_tuning", target="new", score=0.5))
    rows.append(result_row(cell="h", method="zero_shot", target="new", k=0, status="failed", score=None, error="boom"))
    found = {t.name: t for t in make_report(rows).tables}
    cells = {
        row[0].text: dict(zip(("zero", "base", "multi", "spot"), row[1:], strict=True))
        for row in found["scores-k16"].rows
    }
    assert cells["antonym"]["spot"].text == "missing"
    assert (cells["new"]["multi"].text, cells["new"]["zero"].text) == ("failed", "failed")
    assert cells["new"]["base"].text == "0.500"
    assert cells["new"]["base"].detail == "1 of 3 seeds"
    assert "seeds" not in cells["antonym"]["base"].detail + cells["antonym"]["zero"].detail
    assert "antonym" not in found["overall-k16"].note  # a mean over it would not be fair
    assert [c.text for c in found["failed"].rows[0]] == ["f", "multitask", "new", "16", "13", "boom"]


def test_cells_as_text():
    assert interval_cell(None).text == "\N{EN DASH}"
    assert interval_cell(Interval(0.5, None, None, 1)).detail == "one run"
    assert interval_cell(Interval(-0.5, -0.6, -0.4, 3), "signed", "worse") == TableCell(
        "\N{MINUS SIGN}0.500", "[\N{MINUS SIGN}0.600, \N{MINUS SIGN}0.400]", "worse", (-0.5, -0.6, -0.4)
    )
    assert number_cell(None, "p").text == "\N{EN DASH}"
    assert number_cell(0.0005, "p") == TableCell("< 0.001", numbers=(0.0005,))


def test_hostile_names_stay_inside_their_cell():
    table = Table("t", "T", "", columns("a|b"), ((TableCell("x|y\n# z"), TableCell("<script>")),))
    last = table.to_markdown().splitlines()[-1]
    assert last == "| x\\|y # z | &lt;script> |"
    assert list(csv.reader(io.StringIO(table.to_csv())))[1] == ["x|y\n# z", "<script>"]


@pytest.mark.parametrize("rows", [[result_row()], [result_row(status="failed", score=None, error="boom")]])
def test_little_to_say_makes_few_tables(tmp_path, rows):
    report = make_report(rows, "T", command="promptprior report x")
    text = report.write_markdown(tmp_path / "x.md").read_text()
    assert text.startswith("# T\n\n")
    assert text.endswith("    promptprior report x\n")
    assert "nan" not in text
    assert "None" not in text
    assert [t.file_name for t in report.tables] == [t.name + ".csv" for t in report.tables]
    assert all(t.to_csv() for t in report.tables)


def test_the_best_constant_answer_stands_beside_the_scores_and_in_the_plot():
    rows = [row | {"constant": 0.4 if row["target"] == "antonym" else None} for row in grid_rows()]
    report = make_report(rows, "t")
    [table] = [table for table in report.tables if table.name == "scores-k4"]
    assert table.columns[-1].head == "Best constant"
    cells = {row[0].text: row[-1].numbers for row in table.rows}
    assert cells.pop("antonym") == (0.4,)
    assert set(cells.values()) == {()}
    place = list(report.grid.targets).index("antonym")
    lines = [s for s in score_figure(report.grid, 4).layout.shapes if s.x0 == s.x1 == 0.4]
    assert [line.y0 < place < line.y1 for line in lines] == [True]
    plain = make_report(grid_rows(), "t")
    assert "Best constant" not in [column.head for table in plain.tables for column in table.columns]


def test_how_often_auto_chose_which_candidate():
    rows = [
        result_row(cell=f"c{i}", method="auto", seed=i, diagnostics={"auto": {"chosen": name, "leaderboard": {}}})
        for i, name in enumerate(("lora", "auto", "lora", "lora"))
    ]
    [table] = [table for table in make_report(rows, "t").tables if table.name == "chosen"]
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["auto", "16", "lora", "3", "0.75"],
        ["auto", "16", "auto", "1", "0.25"],
    ]
