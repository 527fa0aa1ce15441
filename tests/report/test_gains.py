"""What the rows say: comparisons against planted truth, and the words for them."""

from dataclasses import replace

import numpy as np
import pytest

from promptprior.report.gains import comparisons, interval_by_seed
from promptprior.report.page import Report, make_report
from promptprior.report.results import Grid, Row
from promptprior.report.scores import Overall
from promptprior.report.statistics import holm, interval, paired_permutation
from tests.report.result_rows import grid_rows, result_row


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
    assert {target: d.verdict for target, d in found.targets.items()} == {
        "up": "better",
        "down": "worse",
        "same": "unclear",
    }
    up = found.targets["up"]
    assert up == interval(np.array([0.71, 0.71, 0.75, 0.70]) - np.array([0.50, 0.52, 0.54, 0.50]))
    assert found.difference.estimate == pytest.approx(np.mean([d.estimate for d in found.targets.values()]))


def headline(g):
    return Report(g, comparisons(g), "", {}, {(): g}).headline


def test_the_headline_states_negative_transfer_and_does_not_oversell():
    g = grid(PLANTED)
    words = " ".join(headline(g)).replace("\N{NO-BREAK SPACE}", " ")
    assert "spot (+0.034; clearly better on 1, worse on 1 of 3 targets) shows no clear difference" in words
    assert "Negative transfer: clearly worse on down (spot, k = 16)." in words


def test_the_headline_finds_what_was_planted():
    g = grid(grid_rows())
    words = " ".join(headline(g)).replace("\N{NO-BREAK SPACE}", " ")
    assert "With k = 4, multitask (+0.074; clearly better on 4, worse on 1 of 8 targets) and spot" in words
    assert "beat prompt_tuning on average" in words
    assert "clearly worse on syllable_count (multitask, k = 4 and 16; spot, k = 16)" in words
    assert "zero_shot" not in words  # it learned from no source tasks


def test_a_large_grid_has_a_short_headline():
    methods = [f"method{i}" for i in range(6)]
    rows = [row for t in "abcdef" for row in cells("prompt_tuning", t, [0.5, 0.6] * 3)]
    rows += [row for t in "abcdef" for m in methods for row in cells(m, t, [0.3, 0.4] * 3)]
    g = grid(rows)
    *verdicts, negative = headline(g)
    assert verdicts[0].count("(\N{MINUS SIGN}0.200)") == 6
    assert negative == (
        "Negative transfer: some method is clearly worse on 6 of 6 targets, most often on a (6 times), "
        "b (6 times), c (6 times) and d (6 times)."
    )


def test_clear_loss_and_no_loss_are_said():
    worse = [*cells("prompt_tuning", "a", [0.5, 0.6] * 4), *cells("spot", "a", [0.3, 0.4] * 4)]
    g = grid(worse)
    assert "falls behind prompt_tuning on average" in headline(g)[0]
    better = [*cells("prompt_tuning", "a", [0.5, 0.6] * 4), *cells("spot", "a", [0.7, 0.8] * 4)]
    g = grid(better)
    assert headline(g)[-1] == "On no target is a transfer method clearly worse."


def test_three_seeds_of_one_target_never_win_overall():
    few = [*cells("prompt_tuning", "a", [0.5, 0.5, 0.5]), *cells("spot", "a", [0.8, 0.81, 0.82])]
    (found,) = comparisons(grid(few))
    assert (found.p, found.verdict) == (pytest.approx(0.25), "unclear")
    assert found.p_targets == 1.0
    assert found.targets["a"].verdict == "better"


def test_holm_runs_over_all_methods_and_ks():
    found = comparisons(grid(grid_rows()))
    assert {(c.method, c.k) for c in found} == {(m, k) for m in ("zero_shot", "multitask", "spot") for k in (4, 16)}
    assert [c.p_holm for c in found] == pytest.approx(holm([c.p for c in found]))


ROW = Row.from_json(result_row())


def simulated(rng, effect=0.0, shared=0.0, targets=8, seeds=3):
    """Two methods on the same shots; `shared` is the spread of what a seed's prior does to all its targets."""
    rows = []
    prior = rng.normal(0, shared, seeds) if shared else np.zeros(seeds)
    for t in range(targets):
        level = rng.normal(0.6, 0.1)
        for s in range(seeds):
            for method, gain in (("prompt_tuning", 0.0), ("spot", effect + prior[s])):
                score = float(level + gain + rng.normal(0, 0.03))
                place = {"cell": f"{method}{t}{s}", "method": method, "target": f"t{t}", "seed": s, "score": score}
                rows.append(replace(ROW, **place, sources=("a",) if method == "spot" else ()))
    (found,) = comparisons(Grid(tuple(rows), "prompt_tuning"))
    return found


def rejected(rng, shared=0.0, targets=8, seeds=3):
    """Whether each test rejects one simulated null: over runs, over targets, over seeds."""
    gaps = rng.normal(0, 0.04, (targets, seeds)) + rng.normal(0, 1, seeds) * shared
    over = interval_by_seed({str(t): dict(enumerate(gap)) for t, gap in enumerate(gaps)})
    ps = (paired_permutation(gaps.ravel()), paired_permutation(gaps.mean(1)))
    return [*(p <= 0.05 for p in ps), over.verdict != "unclear"]


def test_a_simulated_null_gives_about_five_percent_false_positives():
    rng = np.random.default_rng(0)
    assert np.mean([rejected(rng) for _ in range(800)], axis=0) == pytest.approx(0.05, abs=0.02)
    found = [simulated(rng) for _ in range(60)]
    assert np.mean([c.verdict != "unclear" for c in found]) <= 0.05
    clear = [d.verdict != "unclear" for c in found for d in c.targets.values()]
    assert np.mean(clear) == pytest.approx(0.05, abs=0.02)


def test_a_prior_that_all_targets_of_a_seed_share_fools_the_permutations_but_not_the_verdict():
    runs, targets, seeds = np.mean([rejected(np.random.default_rng(i), shared=0.03) for i in range(400)], axis=0)
    assert min(runs, targets) > 0.2
    assert seeds == pytest.approx(0.05, abs=0.025)
    found = [simulated(np.random.default_rng(i), shared=0.03) for i in range(40)]
    assert np.mean([c.verdict != "unclear" for c in found]) <= 0.08


def test_a_planted_effect_is_found():
    rng = np.random.default_rng(2)
    found = [simulated(rng, effect=0.06) for _ in range(20)]
    assert np.mean([c.verdict == "better" for c in found]) > 0.8
    assert {c.verdict for c in found} <= {"better", "unclear"}
    assert np.mean([c.difference.estimate for c in found]) == pytest.approx(0.06, abs=0.006)
    assert all(c.improvement.estimate > 0.5 for c in found)


def test_by_seed_is_the_t_interval_of_the_seeds_means():
    (found,) = comparisons(grid(PLANTED))
    up = np.array([0.71, 0.71, 0.75, 0.70]) - [0.50, 0.52, 0.54, 0.50]
    down = np.array([0.50, 0.50, 0.51, 0.51]) - [0.60, 0.61, 0.60, 0.62]
    same = np.array([0.45, 0.40, 0.44, 0.42]) - [0.40, 0.45, 0.40, 0.45]
    want = interval((up + down + same) / 3)
    assert (found.by_seed.low, found.by_seed.high) == pytest.approx((want.low, want.high))
    uneven = [*cells("prompt_tuning", "a", [0.5]), *cells("spot", "a", [0.6]), *cells("prompt_tuning", "b", [0.5, 0.6])]
    (found,) = comparisons(grid([*uneven, *cells("spot", "b", [0.7, 0.9])]))
    assert (found.by_seed.estimate, found.by_seed.n) == (pytest.approx(0.15), 1)


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


@pytest.mark.parametrize("seeds", [(0, 1, 2), (13,), (13, 21)])
def test_what_uses_no_shots_stands_beside_every_seed_whatever_the_seeds_are(seeds):
    rows = [result_row(cell=f"{seed}", method="prompt_tuning", target="a", seed=seed, score=0.5) for seed in seeds]
    rows.append(result_row(cell="z", method="zero_shot", target="a", k=0, seed=0, steps=0, score=0.4))
    (found,) = comparisons(grid(rows))
    assert (found.difference.n, found.difference.estimate) == (len(seeds), pytest.approx(-0.1))
    (turned,) = comparisons(grid(rows, baseline="zero_shot"))
    assert (turned.difference.n, turned.difference.estimate) == (len(seeds), pytest.approx(0.1))


def test_one_finished_seed_stands_beside_no_other():
    """Of a half-done grid: it shares neither shots nor fit with them."""
    rows = [result_row(cell=f"{seed}", method="prompt_tuning", target="a", seed=seed, score=0.5) for seed in (21, 42)]
    rows.append(result_row(cell="s", method="spot", target="a", seed=13, score=0.9, sources=["b"]))
    assert comparisons(grid(rows)) == ()


def test_aggregates_run_over_targets_that_all_methods_have():
    rows = [
        *cells("prompt_tuning", "a", [0.5, 0.6]),
        *cells("spot", "a", [0.7, 0.8]),
        *cells("prompt_tuning", "easy", [0.9]),
    ]
    found = Overall.of(grid(rows), 16)
    assert found.targets == ("a",)
    assert {m: of["mean"].estimate for m, of in found.aggregates.items()} == pytest.approx(
        {"prompt_tuning": 0.55, "spot": 0.75}
    )
    assert found.ranking is None  # of one target and two methods
    nothing = Overall.of(grid([*rows, *cells("multitask", "easy", [0.9])]), 16)
    assert (nothing.targets, nothing.aggregates, nothing.pairs) == ((), {}, ())


def test_aggregates_run_over_seeds_that_all_methods_have():
    rows = [
        *cells("prompt_tuning", "a", [0.5, 0.9]),  # its second seed stands alone as yet
        *cells("spot", "a", [0.4]),
        result_row(cell="z", method="zero_shot", target="a", k=0, seed=99, steps=0, score=0.1),
    ]
    found = Overall.of(grid(rows), 16)
    assert grid(rows).shared[16] == {"a": {0}}
    assert {m: of["mean"].estimate for m, of in found.aggregates.items()} == {
        "zero_shot": 0.1,
        "prompt_tuning": 0.5,
        "spot": 0.4,
    }
    (pair,) = [d for d in found.pairs if {d.first, d.second} == {"prompt_tuning", "spot"}]
    assert pair.wins == 1
    apart = [*cells("prompt_tuning", "a", [0.5]), *cells("spot", "a", [0.4, 0.6])[1:]]
    assert grid(apart).shared[16] == {}


def test_ranks_and_pairs_take_a_target_as_one_observation():
    rows = [*PLANTED, *(row for t in ("up", "down", "same") for row in cells("multitask", t, [0.1, 0.2] * 2))]
    found = Overall.of(grid(rows), 16)
    assert dict(found.ranking.mean_ranks) == pytest.approx({"spot": 4 / 3, "prompt_tuning": 5 / 3, "multitask": 3.0})
    pair = next(d for d in found.pairs if (d.first, d.second) == ("prompt_tuning", "spot"))
    assert (pair.wins, pair.ties, pair.losses) == (1, 0, 2)


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
    assert headline(g)[0].startswith("Nothing to compare: no method that learned from source tasks shares")


def test_settings_that_differ_are_counted():
    rows = [result_row(seed=i, settings={"lr": lr, "length": 16}) for i, lr in enumerate((0.3, 0.1, 0.3))]
    settings = make_report(rows).settings("prompt_tuning")
    assert settings == {"source tasks": "none", "lr": "0.3 (2 cells), 0.1 (1 cell)", "length": "16"}


def test_intervals_never_leave_the_range_of_the_metric():
    rows = [
        *cells("prompt_tuning", "a", [0.05, 0.95, 0.5]),
        *cells("spot", "a", [0.9, 0.1, 0.95]),
        *cells("prompt_tuning", "b", [-0.9, 0.9, 0.9], metric="matthews_correlation"),
        *cells("spot", "b", [0.9, -0.9, 0.95], metric="matthews_correlation"),
    ]
    g = grid(rows)
    spot = g.intervals["spot", "a", 16]
    assert (spot.low, spot.high) == (0.0, 1.0)
    assert g.intervals["spot", "b", 16].low == -1.0
    (found,) = comparisons(g)
    ends = {target: (d.low, d.high) for target, d in found.targets.items()}
    assert ends["a"] == (-1.0, 1.0)
    assert ends["b"] == (-2.0, 2.0)
    assert (found.by_seed.low, found.by_seed.high) == (-1.5, 1.5)
    foreign = grid([{**row, "metric": "from_elsewhere"} for row in rows])
    assert foreign.intervals["spot", "a", 16].high > 1  # its range is not known
