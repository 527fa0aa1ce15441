"""What the rows say: comparisons against planted truth, and the words for them."""

import numpy as np
import pytest
from result_rows import grid_rows, result_row

from promptprior.compare.rows import Row
from promptprior.compare.statistics import holm, interval
from promptprior.compare.summary import Grid, comparisons, find, headline, overall, settings_of


def grid(values, baseline="prompt_tuning"):
    return Grid(tuple(Row.from_json(value) for value in values), baseline)


def cells(method, target, scores, k=16, **changes):
    sources = [] if method == "prompt_tuning" else ["a"]
    return [
        result_row(
            cell=f"{method}-{target}-{k}-{seed}", method=method, target=target, k=k, seed=seed, score=score,
            sources=sources, **changes,
        )
        for seed, score in enumerate(scores)
    ]  # fmt: skip


PLANTED = [
    *cells("prompt_tuning", "up", [0.50, 0.52, 0.54, 0.50]),
    *cells("spot", "up", [0.71, 0.71, 0.75, 0.70]),
    *cells("prompt_tuning", "down", [0.60, 0.61, 0.60, 0.62]),
    *cells("spot", "down", [0.50, 0.50, 0.51, 0.51]),
    *cells("prompt_tuning", "same", [0.40, 0.45, 0.40, 0.45]),
    *cells("spot", "same", [0.45, 0.40, 0.44, 0.42]),
]


def test_each_target_is_judged_by_its_paired_interval():
    (found,) = comparisons(grid(PLANTED))
    assert {d.target: d.verdict for d in found.targets} == {
        "up": "better",
        "down": "worse",
        "same": "unclear",
    }
    up = next(d for d in found.targets if d.target == "up").interval
    assert up == interval(np.array([0.71, 0.71, 0.75, 0.70]) - np.array([0.50, 0.52, 0.54, 0.50]))
    assert found.difference.estimate == pytest.approx(np.mean([d.interval.estimate for d in found.targets]))


def test_the_headline_states_negative_transfer_and_does_not_oversell():
    g = grid(PLANTED)
    words = " ".join(headline(g, comparisons(g))).replace("\N{NO-BREAK SPACE}", " ")
    assert "spot (+0.034; clearly better on 1, worse on 1 of 3 targets) shows no clear difference" in words
    assert "Negative transfer: clearly worse on down (spot, k = 16)." in words


def test_the_headline_finds_what_was_planted():
    g = grid(grid_rows())
    words = " ".join(headline(g, comparisons(g))).replace("\N{NO-BREAK SPACE}", " ")
    assert "With k = 4, multitask (+0.074; clearly better on 4, worse on 1 of 8 targets) and spot" in words
    assert "beat prompt_tuning on average" in words
    assert "clearly worse on syllable_count (multitask, k = 4 and 16; spot, k = 16)" in words
    assert "zero_shot" not in words  # it learned from no source tasks


def test_a_large_grid_has_a_short_headline():
    methods = [f"method{i}" for i in range(6)]
    rows = [row for t in "abcdef" for row in cells("prompt_tuning", t, [0.5, 0.6] * 3)]
    rows += [row for t in "abcdef" for m in methods for row in cells(m, t, [0.3, 0.4] * 3)]
    g = grid(rows)
    *verdicts, negative = headline(g, comparisons(g))
    assert verdicts[0].count("(\N{MINUS SIGN}0.200)") == 6
    assert negative == (
        "Negative transfer: some method is clearly worse on 6 of 6 targets, most often on a (6 times), "
        "b (6 times), c (6 times) and d (6 times)."
    )


def test_clear_loss_and_no_loss_are_said():
    worse = [*cells("prompt_tuning", "a", [0.5, 0.6] * 4), *cells("spot", "a", [0.3, 0.4] * 4)]
    g = grid(worse)
    assert "falls behind prompt_tuning on average" in headline(g, comparisons(g))[0]
    better = [*cells("prompt_tuning", "a", [0.5, 0.6] * 4), *cells("spot", "a", [0.7, 0.8] * 4)]
    g = grid(better)
    assert headline(g, comparisons(g))[-1] == "On no target is a transfer method clearly worse."


def test_three_seeds_of_one_target_never_win_overall():
    few = [*cells("prompt_tuning", "a", [0.5, 0.5, 0.5]), *cells("spot", "a", [0.8, 0.81, 0.82])]
    (found,) = comparisons(grid(few))
    assert (found.p, found.verdict) == (pytest.approx(0.25), "unclear")
    assert found.p_targets == 1.0
    assert found.targets[0].verdict == "better"


def test_holm_runs_over_all_methods_and_ks():
    found = comparisons(grid(grid_rows()))
    assert {(c.method, c.k) for c in found} == {(m, k) for m in ("zero_shot", "multitask", "spot") for k in (4, 16)}
    assert [c.p_holm for c in found] == pytest.approx(holm([c.p for c in found]))


def test_only_common_seeds_are_paired():
    partial = [*cells("prompt_tuning", "a", [0.5, 0.6]), *cells("spot", "a", [0.7, 0.8, 0.0])]
    (found,) = comparisons(grid(partial))
    assert found.difference.estimate == pytest.approx(0.2)
    assert found.difference.n == 2


def test_what_ran_once_stands_beside_every_seed_and_k():
    rows = [
        *cells("prompt_tuning", "a", [0.5, 0.6], k=4),
        *cells("prompt_tuning", "a", [0.7, 0.8], k=16),
        result_row(cell="z", method="zero_shot", target="a", k=0, seed=99, steps=0, score=0.4),
    ]
    found = comparisons(grid(rows))
    assert [(c.k, pytest.approx(c.difference.estimate)) for c in found] == [(4, -0.15), (16, -0.35)]


def test_aggregates_run_over_targets_that_all_methods_have():
    rows = [
        *cells("prompt_tuning", "a", [0.5, 0.6]),
        *cells("spot", "a", [0.7, 0.8]),
        *cells("prompt_tuning", "easy", [0.9]),
    ]
    found = overall(grid(rows), 16)
    assert found.shared == ("a",)
    assert {a.method: a.mean.estimate for a in found.aggregates} == pytest.approx({"prompt_tuning": 0.55, "spot": 0.75})
    assert found.ranking is None  # of one target and two methods
    nothing = overall(grid([*rows, *cells("multitask", "easy", [0.9])]), 16)
    assert (nothing.shared, nothing.aggregates, nothing.duels) == ((), (), ())


def test_ranks_and_duels_take_a_target_as_one_observation():
    rows = [*PLANTED, *(row for t in ("up", "down", "same") for row in cells("multitask", t, [0.1, 0.2]))]
    (found,) = find(grid(rows)).overall
    assert dict(found.ranking.best_first) == pytest.approx({"spot": 4 / 3, "prompt_tuning": 5 / 3, "multitask": 3.0})
    duel = next(d for d in found.duels if (d.first, d.second) == ("prompt_tuning", "spot"))
    assert (duel.wins, duel.ties, duel.losses) == (1, 0, 2)


def test_the_last_row_of_a_place_counts_and_failures_stand_apart():
    rows = [
        *cells("spot", "a", [0.1]),
        *cells("spot", "a", [0.7]),
        result_row(cell="f", method="multitask", status="failed", score=None, error="boom"),
    ]
    g = grid(rows)
    assert [r.score for r in g.rows] == [0.7]
    assert [r.error for r in g.failed] == ["boom"]
    assert g.methods == ("spot",)
    assert comparisons(g) == ()
    assert headline(g, ())[0].startswith("Nothing to compare: no method that learned from source tasks shares")


def test_settings_that_differ_are_counted():
    rows = [Row.from_json(result_row(settings={"lr": lr, "length": 16})) for lr in (0.3, 0.1, 0.3)]
    assert settings_of(rows) == {"lr": "0.3 (2 cells), 0.1 (1 cell)", "length": "16"}
