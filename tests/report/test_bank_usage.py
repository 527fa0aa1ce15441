"""What banks retrieved, gathered from rows."""

import math

import pytest

from promptprior.report.bank_usage import bank_usages
from promptprior.report.page import make_report
from promptprior.report.results import Grid, Row, parse
from promptprior.report.similarity_gain import TaskSimilarity
from tests.report.result_rows import bank_rows, grid_rows, result_row, task_similarity


def grid(rows):
    return Grid(tuple(map(Row.from_json, rows)), "prompt_tuning")


def bank(target, tasks, table, seed=1, **said):
    told = {"rows": 4, "rows_used": 2, "overlap_between_tasks": None, "tasks": tasks, "map": table} | said
    return result_row(cell=f"{target}{seed}", method="tpt", target=target, seed=seed, diagnostics={"retrieval": told})


def test_targets_of_a_run_make_one_map():
    rows = [
        bank("a", ["s", "a"], [[1, 0, 0, 0], [0, 1, 0, 0]], rows_used=2),
        bank("b", ["s", "b"], [[0, 0, 0, 1], [0.5, 0.5, 0, 0]], rows_used=3),
        bank("a", ["s", "a"], [[0, 0, 1, 0], [0, 0, 1, 0]], seed=2),
    ]
    first, second = bank_usages(grid(rows))
    assert first.map == {
        "s": [1, 0, 0, 0],
        "a": [0, 1, 0, 0],
        "b": [0.5, 0.5, 0, 0],
    }  # s as the first target's bank sees it
    assert first.shares == pytest.approx((0.5, 0.5, 0, 0))
    assert (first.used, first.entropy) == (2, pytest.approx(1.0))
    assert (first.mean("rows_used"), first.mean("overlap_between_tasks"), first.mean("absent")) == (2.5, None, None)
    assert (second.used, second.entropy) == (1, pytest.approx(0.0))


def test_older_diagnostics_without_a_map_still_show():
    told = {"rows": 40, "entropy": 3.5}
    (use,) = bank_usages(grid([result_row(diagnostics={"retrieval": told})]))
    assert (use.map, use.used, use.mean("entropy")) == ({}, 0, 3.5)
    (table,) = [t for t in make_report([result_row(diagnostics={"retrieval": told})]).tables if t.name == "retrieval"]
    assert [c.text for c in table.rows[0]][:4] == ["prompt_tuning", "16", "13", "40"]


def test_tables_say_whether_retrieval_is_real():
    made = {t.name: t for t in make_report(bank_rows(static=True)).tables}
    heads = [c.head for c in made["retrieval"].columns]
    row = dict(zip(heads, (c.text for c in made["retrieval"].rows[0]), strict=True))
    assert (row["Overlap in a task"], row["Overlap between tasks"], row["Distinct sets"]) == ("1", "1", "1")
    assert (row["Dead over all tasks"], row["Entropy over all"]) == ("32", "3.00")  # 8 of 40 tokens, used alike
    assert "seed 13" in made["tokens-tpt"].note
    assert made["tokens-tpt"].rows[0][1].text == "' the', '<s>'"
    real = {t.name: t for t in make_report(bank_rows()).tables}["retrieval"]
    assert math.isclose(real.rows[0][heads.index("Overlap in a task")].numbers[0], 0.62)


def test_plain_numbers_of_other_topics_are_listed():
    rows = [
        result_row(cell=str(s), seed=s, diagnostics={"spread": {"mean": v, "kind": "rbf"}, "retrieval": {"rows": 3}})
        for s, v in enumerate((1.0, 2.0))
    ]
    (table,) = [t for t in make_report(rows).tables if t.name == "diagnostics"]
    assert [[c.text for c in row] for row in table.rows] == [["prompt_tuning", "spread.mean", "1.50"]]


def test_similarity_makes_tables_only_where_it_was_measured():
    rows, similarity = grid_rows(ks=(16,)), parse(TaskSimilarity, task_similarity(), "here")
    assert not {"similarity", "similarity-gain"} & {t.name for t in make_report(rows).tables}
    made = {t.name: t for t in make_report(rows, task_similarity=similarity).tables}
    assert len(made["similarity"].rows) == len(similarity.pairs)
    assert [row[0].text for row in made["similarity-gain"].rows] == ["multitask", "spot"]
