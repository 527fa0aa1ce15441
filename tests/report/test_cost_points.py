"""Costs: what a target bears of its prior, and the Pareto front against brute force."""

from dataclasses import replace

import numpy as np
import pytest

from promptprior.report.cost_points import CostPoint, cost_section, mean_costs, pareto_front, shared_by
from promptprior.report.results import Grid, Row
from promptprior.report.statistics import Interval
from tests.report.result_rows import result_row

OWN = {"seconds": 10.0, "rows": 100, "tokens": 1000}


def rows(method, seeds, source_seconds, score, targets="ab", own=10.0):
    return [
        Row.from_json(
            result_row(
                cell=f"{method}{target}{seed}", method=method, target=target, seed=seed, score=score,
                cost={**OWN, "seconds": own, "source_seconds": source_seconds + seed, "source_rows": 0,
                      "source_tokens": 600},
                sources=["s"],
            )
        )
        for target in targets
        for seed in seeds
    ]  # fmt: skip


def test_cells_of_a_prior_share_its_cost():
    others = (*rows("other", (1,), 60.0, 0.4), *rows("other", (2,), 80.0, 0.4))
    grid = Grid((*rows("spot", (1, 2), 60.0, 0.5), *others), "spot")
    counts = shared_by(grid)
    assert counts[grid.rows[0].cell] == 4  # spot and other on a and b: the same prior of seed 1
    costs = mean_costs([row for row in grid.rows if row.method == "spot"], counts)
    assert costs["seconds", "target"] == 10
    assert costs["seconds", "whole"] == pytest.approx(10 + (61 + 62) / 2)
    assert costs["seconds", "share"] == pytest.approx(10 + (61 / 4 + 62 / 2) / 2)
    assert costs["tokens", "share"] == pytest.approx(1000 + (600 / 4 + 600 / 2) / 2)


def test_a_row_that_names_its_prior_is_not_mistaken_for_one_of_the_same_cost():
    named = [replace(r, settings={**r.settings, "prior": f"{r.method}-1"}) for r in rows("spot", (1,), 60.0, 0.5)]
    others = [replace(r, settings={**r.settings, "prior": f"{r.method}-1"}) for r in rows("other", (1,), 60.0, 0.4)]
    refitted = replace(named[0], cell="again", target="c", cost=replace(named[0].cost, source_seconds=99.0))
    older = replace(others[0], cell="older", target="c", settings={})  # it costs what both cost: the last that is named
    counts = shared_by(Grid((*named, refitted, *others, older), "spot"))
    assert [counts[row.cell] for row in (*named, refitted)] == [3, 3, 3]
    assert [counts[row.cell] for row in (*others, older)] == [3, 3, 3]


def test_what_needs_no_examples_stands_beside_every_k():
    free = result_row(cell="z", method="zero_shot", target="a", k=0, seed=0, steps=0, score=0.2)
    grid = Grid((Row.from_json(free), *rows("spot", (1,), 0.0, 0.5, "a")), "spot")
    table = cost_section(grid).tables[0]
    assert [(row[0].text, row[2].numbers) for row in table.rows] == [("zero_shot", (12.5,)), ("spot", (11.0,))]
    assert [row[0].text for row in table.rows if row[4].text] == ["spot"]  # the front in seconds


def test_the_front_is_what_nothing_dominates():
    rng = np.random.default_rng(0)
    for _ in range(100):
        points = {str(i): (float(x), float(y)) for i, (x, y) in enumerate(rng.integers(0, 4, (7, 2)))}
        want = set()
        for name, (paid, score) in points.items():
            better = [1 for p, s in points.values() if (p <= paid and s > score) or (p < paid and s >= score)]
            want |= set() if better else {name}
        of_points = [
            CostPoint(n, Interval(score, None, None, 1), {("rows", "whole"): x}) for n, (x, score) in points.items()
        ]
        found = [point.method for point in pareto_front(of_points, "rows", "whole")]
        assert set(found) == want
        assert [points[n][0] for n in found] == sorted(points[n][0] for n in found)
