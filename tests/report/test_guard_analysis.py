"""The guard's choices against choices by hand."""

import pytest

from promptprior.report.guard_analysis import guard_section
from promptprior.report.results import Grid, Row
from tests.report.result_rows import result_row


def row(method, target, seed, test, dev, nll, best=5):
    """A finished row; dev was asked at the start and at step 5."""
    curve = [
        {"step": 0, "train_loss": None, "dev_score": dev, "dev_nll": 9.0},
        {"step": 5, "train_loss": None, "dev_score": dev, "dev_nll": nll},
    ]
    changes = {"score": test, "scores": {"accuracy": test}, "dev_score": dev, "curve": curve, "best_step": best}
    sources = ["s"] if method != "prompt_tuning" else []
    cell = f"{method}{target}{seed}"
    return Row.from_json(result_row(cell=cell, method=method, target=target, seed=seed, sources=sources, **changes))


ROWS = [
    row("prompt_tuning", "a", 1, 0.5, 0.6, 1.0),
    row("prompt_tuning", "a", 2, 0.4, 0.6, 1.0),
    row("prompt_tuning", "b", 1, 0.3, None, 1.0),  # free text: NLL alone decides
    row("spot", "a", 1, 0.7, 0.9, 2.0),  # kept: dev prefers it
    row("spot", "a", 2, 0.1, 0.6, 1.1),  # dropped: equal score, higher NLL
    row("spot", "b", 1, 0.2, None, 1.0),  # kept: equal in both
    row("multitask", "a", 1, 0.9, 0.5, 1.0),  # dropped, though better on test
    row("multitask", "a", 2, 0.4, 0.7, 1.0),
    row("multitask", "b", 1, 0.6, None, 0.9),
]


def grid(rows):
    return Grid(tuple(rows), "prompt_tuning")


def results(rows):
    """Mean alone, mean guarded, gain over the baseline and share kept, by method."""
    [table] = guard_section(grid(rows)).tables
    return {method.text: [cell.numbers[0] for cell in cells] for method, *cells in table.rows}


def test_dev_decides_and_test_is_what_it_costs():
    by_name = results(ROWS)
    assert set(by_name) == {"spot", "multitask"}
    alone, guarded, gain, share_kept = by_name["spot"]
    assert guarded == pytest.approx(((0.7 + 0.4) / 2 + 0.2) / 2)
    assert alone == pytest.approx(((0.7 + 0.1) / 2 + 0.2) / 2)
    assert gain == pytest.approx(((0.2 + 0.0) / 2 - 0.1) / 2)
    assert share_kept == pytest.approx(2 / 3)
    assert by_name["multitask"][1] == pytest.approx(((0.5 + 0.4) / 2 + 0.6) / 2)


def test_the_nll_is_that_of_the_step_that_was_kept():
    later = [row("prompt_tuning", "a", 1, 0.5, 0.6, 1.0), row("spot", "a", 1, 0.7, 0.6, 0.1, best=0)]
    assert results(later)["spot"][-1] == 0


def test_without_dev_there_is_no_table():
    silent = [*ROWS[:3], *(row("spot", t, s, 0.5, 0.6, None) for t, s in (("a", 1), ("a", 2), ("b", 1)))]
    assert guard_section(grid(silent)).tables == ()
    [table] = guard_section(grid(ROWS)).tables
    assert [r[0].text for r in table.rows] == ["spot", "multitask"]
    assert table.rows[0][-1].text == "0.67"
