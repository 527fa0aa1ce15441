"""Learning curves of adaptation against means by hand."""

import pytest

from promptprior.report.curves.learning_curves import Adaptation, learning_curve_section
from promptprior.report.results import Grid, Row
from tests.report.result_rows import grid_rows, result_row


def point(step, score):
    return {"step": step, "train_loss": None, "dev_score": score, "dev_nll": 1.0}


def row(method, target, seed, curve):
    return Row.from_json(
        result_row(cell=f"{method}{target}{seed}", method=method, target=target, seed=seed, curve=curve)
    )


CURVES = {
    ("spot", "a", 1): [point(0, 0.5), point(1, 0.6), point(2, None), point(5, 0.9)],
    ("spot", "a", 2): [point(0, 0.3), point(1, 0.4), point(5, 0.7)],
    ("spot", "b", 1): [point(0, 0.1), point(1, 0.2)],  # stopped early
    ("spot", "a", 3): [point(0, 0.9)],  # its pair has not run
    ("prompt_tuning", "a", 1): [point(0, 0.0), point(1, 0.2), point(5, 0.4)],
    ("prompt_tuning", "a", 2): [point(0, 0.0), point(1, 0.2), point(5, 0.4)],
    ("prompt_tuning", "b", 1): [point(0, 0.0), point(1, 0.1), point(5, 0.2)],
}


def found(curves):
    grid = Grid(tuple(row(*place, curve) for place, curve in curves.items()), "prompt_tuning")
    return Adaptation.of(grid, 16)


def test_means_over_targets_of_means_over_seeds_as_far_as_all_ran():
    a = found(CURVES)
    assert (tuple(a.curves), a.targets) == (("prompt_tuning", "spot"), ("a", "b"))
    base, spot = a.curves.values()
    assert [(s, i.estimate) for s, i in spot.items()] == [(0, pytest.approx(0.25)), (1, pytest.approx(0.35))]
    assert [i.estimate for i in base.values()] == pytest.approx([0, 0.15, 0.3])
    assert spot[1].low is not None  # of two seeds
    assert base[1].low == pytest.approx(0.15)
    assert 5 not in spot
    (table,) = a.tables("prompt_tuning")
    assert {r[0].text: r[-1].text for r in table.rows} == {
        "prompt_tuning": "5",
        "spot": "1",
    }  # the step that reaches 0.3


def test_targets_without_dev_scores_are_left_out_for_all_methods():
    free_text = {
        **CURVES,
        ("spot", "text", 1): [point(0, None)],
        ("prompt_tuning", "text", 1): [point(0, None), point(1, None)],
    }
    assert found(free_text).targets == ("a", "b")
    assert found({k: v for k, v in free_text.items() if k[1] == "text"}).curves == {}


def test_a_table_shows_the_usual_steps_or_a_few():
    def steps(*some):
        (table,) = found({("spot", "a", 1): [point(s, 0.1) for s in some]}).tables("spot")
        return tuple(int(c.head.removeprefix("step ")) for c in table.columns if c.head.startswith("step "))

    assert steps(0, 1, 2, 3, 5, 7, 10, 13) == (0, 1, 2, 5, 10, 13)
    assert steps(0, 33, 66, 99) == (0, 33, 66, 99)
    assert steps(*range(0, 99, 3)) == (0, 15, 30, 45, 60, 75, 90, 96)
    assert steps(0, 4) == (0, 4)


def test_what_trains_nothing_has_no_curve():
    grid = Grid(tuple(map(Row.from_json, grid_rows(ks=(16,)))), "prompt_tuning")
    a = Adaptation.of(grid, 16)
    assert set(a.curves) == {"prompt_tuning", "multitask", "spot"}
    assert all(min(points) == 0 for points in a.curves.values())


def drawn_steps(n):
    """The steps of a curve of n points that are drawn."""
    rows = (row("spot", "a", 1, [point(s, 0.1) for s in range(n)]),)
    (plot,) = [p for p in learning_curve_section(Grid(rows, "spot")).plots if p.name == "curves"]
    return plot.draw("a", 16, "dev_score").data[0].x


def test_long_curves_are_thinned_but_keep_their_end():
    kept = drawn_steps(1001)
    assert len(kept) <= 81
    assert (kept[0], kept[-1]) == (0, 1000)
    assert drawn_steps(80) == tuple(range(80))
