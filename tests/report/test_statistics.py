"""Statistics against scipy, brute force, closed forms and simulated truth."""

import itertools

import numpy as np
import pytest
from scipy import stats

from promptprior.report.statistics import (
    average_relative_gain,
    hierarchical_bootstrap,
    holm,
    interval,
    mean_difference,
    mean_test,
    paired_permutation,
    probability_of_improvement,
    rank_correlation,
    smallest_difference,
    stratified_bootstrap,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_a_few_values_have_students_interval(rng):
    x = rng.normal(size=5)
    got = interval(x)
    want = stats.ttest_1samp(x, 0).confidence_interval(0.95)
    assert (got.low, got.high) == pytest.approx((want.low, want.high))
    assert got.estimate == pytest.approx(x.mean())
    assert got.n == 5


def test_many_values_have_scipys_bca_interval(rng):
    x = rng.exponential(size=30)
    want = stats.bootstrap((x,), np.mean, n_resamples=4000, method="BCa", rng=0).confidence_interval
    assert (interval(x).low, interval(x).high) == pytest.approx((want.low, want.high))


@pytest.mark.parametrize("n", [2, 3, 5, 12])
def test_small_intervals_hold_the_mean_as_often_as_they_say(rng, n):
    inside = [abs(i.estimate) < i.high - i.estimate for i in map(interval, rng.normal(size=(2000, n)))]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.015)


def test_degenerate_values():
    assert (interval([0.5]).low, interval([0.5]).high) == (None, None)
    assert interval([0.5]).verdict == "unclear"
    constant = interval([0.25] * 12)
    assert (constant.low, constant.estimate, constant.high) == (0.25, 0.25, 0.25)
    for bad in ([], [float("nan")], [1.0, float("inf")]):
        with pytest.raises(ValueError, match="at least one finite number"):
            interval(bad)


def test_a_wider_level_is_wider(rng):
    x = rng.normal(size=6)
    assert interval(x, 0.99).low < interval(x, 0.95).low < interval(x, 0.5).low


def test_stratified_mean_has_the_closed_forms_spread(rng):
    runs = {f"t{i}": rng.normal(i, 1 + i, 20).tolist() for i in range(4)}
    got = stratified_bootstrap(runs)
    assert got.estimate == pytest.approx(np.mean([np.mean(v) for v in runs.values()]))
    error = np.sqrt(sum(np.var(v) / 20 for v in runs.values())) / 4  # between-target spread plays no part
    assert got.high - got.low == pytest.approx(2 * 1.96 * error, rel=0.06)


def test_interquartile_mean_is_the_mean_of_the_middle_half():
    runs = {"a": [0.0, 1.0, 2.0, 3.0], "b": [4.0, 5.0, 6.0, 100.0]}
    got = stratified_bootstrap(runs, "iqm")
    assert got.estimate == pytest.approx(np.mean([2, 3, 4, 5]))
    assert got.low <= got.estimate <= got.high
    assert stratified_bootstrap(runs, "iqm") == got  # seeded


def rliables(runs, statistic, draws=2000, seed=7):
    """rliable's interval, written out: each task's runs drawn again with replacement, percentiles of the statistic."""
    rng = np.random.default_rng(seed)
    found = [statistic(np.array([rng.choice(x, len(x)) for x in runs.values()])) for _ in range(draws)]
    return np.percentile(found, [2.5, 97.5])


RLIABLE = {  # rliable.metrics on [tasks, runs]
    "iqm": lambda table: stats.trim_mean(table, 0.25, axis=None),
    "mean": lambda table: np.mean(np.mean(table, axis=1)),
    "median": lambda table: np.median(np.mean(table, axis=1)),
}


@pytest.mark.parametrize("name", RLIABLE)
def test_aggregates_are_rliables(rng, name):
    theirs = RLIABLE[name]
    runs = {f"t{i}": rng.normal(i / 4, 0.3, 5).tolist() for i in range(7)}
    got = stratified_bootstrap(runs, name)
    assert got.estimate == pytest.approx(theirs(np.array(list(runs.values()))))
    low, high = rliables(runs, theirs)
    assert (got.low, got.high) == pytest.approx((low, high), abs=0.06 * (high - low))


def test_probability_of_improvement_is_rliables(rng):
    ours = {f"t{i}": rng.normal(0.1 * i, 1, 6).round(1).tolist() for i in range(4)}
    base = {t: rng.normal(0, 1, 6).round(1).tolist() for t in ours}
    want = np.mean([stats.mannwhitneyu(ours[t], base[t], alternative="greater").statistic / 36 for t in ours])
    assert probability_of_improvement(ours, base).estimate == pytest.approx(want)


@pytest.mark.parametrize(("seeds", "least"), [(3, 0.78), (10, 0.88)])
def test_how_often_a_bootstrap_interval_holds_the_mean(rng, seeds, least):
    """Of few seeds it is too narrow, as docs/reading_a_report.md says."""
    inside = []
    for _ in range(150):
        runs = {str(t): rng.normal(0, 1, seeds).tolist() for t in range(6)}
        found = stratified_bootstrap(runs)
        inside.append(found.low <= 0 <= found.high)
    assert least <= np.mean(inside) <= 0.99


def test_one_seed_everywhere_leaves_the_interval_unknown():
    got = stratified_bootstrap({"a": [0.2], "b": [0.4]})
    assert (got.estimate, got.low, got.high) == (pytest.approx(0.3), None, None)


def test_arg_is_the_formula_and_its_companions_tell_the_rest():
    scores = {"a": [0.6, 0.8], "b": [0.45, 0.45], "c": [0.5, 0.5], "floor": [0.15, 0.15], "zero": [0.3, 0.1]}
    base = {"a": [0.5, 0.5], "b": [0.5, 0.4], "c": [0.6, 0.65], "floor": [0.05, 0.05], "zero": [0.0, 0.0]}
    got = average_relative_gain(scores, base)
    gains = [0.7 / 0.5 - 1, 0.0, 0.5 / 0.625 - 1, 2.0]
    assert got.gain.estimate == pytest.approx(np.mean(gains))
    assert got.above_floor.estimate == pytest.approx(np.mean(gains[:3]))
    assert got.median == pytest.approx(np.median(gains))
    assert (got.wins, got.ties, got.losses) == (3, 1, 1)
    assert (got.near_floor, got.undefined) == (("floor",), ("zero",))


def test_arg_interval_is_that_of_brute_force():
    scores, base = {"a": [0.6, 0.9], "b": [0.5, 0.7]}, {"a": [0.5, 0.6], "b": [0.5, 0.5]}
    ratios = []
    for i, j in itertools.product(itertools.product((0, 1), repeat=2), repeat=2):
        i, j = list(i), list(j)
        parts = [
            np.take(scores[t], p).mean() / np.take(base[t], p).mean() - 1
            for t, p in (("a", i), ("b", j))
        ]  # fmt: skip
        ratios.append(np.mean(parts))
    got = average_relative_gain(scores, base).gain
    assert (got.low, got.high) == pytest.approx((min(ratios), max(ratios)))  # each has probability 1/16


def test_arg_without_any_usable_base():
    got = average_relative_gain({"a": [0.1]}, {"a": [-0.2]})
    assert (got.gain, got.above_floor, got.median) == (None, None, None)
    assert (got.wins, got.undefined) == (1, ("a",))


def test_paired_runs_must_match():
    for base in ({"b": [1.0]}, {"a": [1.0, 2.0]}):
        with pytest.raises(ValueError, match="same targets and seeds"):
            average_relative_gain({"a": [1.0]}, base)
    with pytest.raises(ValueError, match="no targets"):
        stratified_bootstrap({})


def test_exact_permutation_is_brute_force(rng):
    for n in (2, 3, 6, 10):
        d = rng.normal(0.4, 1, n)
        flips = np.array(list(itertools.product((1, -1), repeat=n)))
        want = np.mean(np.abs(flips @ d) >= abs(d.sum()) * (1 - 1e-12))
        assert paired_permutation(d) == pytest.approx(want)


def test_random_permutation_is_close_to_the_t_test(rng):
    d = rng.normal(0.3, 1, 60)
    assert paired_permutation(d) == pytest.approx(stats.ttest_1samp(d, 0).pvalue, abs=0.01)
    assert paired_permutation(d) == paired_permutation(d)


def test_smallest_p_value_and_no_difference():
    assert paired_permutation([0.1, 0.2, 0.3]) == pytest.approx(0.25)
    assert paired_permutation([0.0, 0.0, 0.0]) == 1.0
    assert paired_permutation([0.4]) == 1.0


def test_permutation_null_is_rejected_one_time_in_twenty(rng):
    p = np.array([paired_permutation(d) for d in rng.standard_t(3, (600, 9))])
    assert np.mean(p <= 0.05) == pytest.approx(0.05, abs=0.025)


def test_a_planted_effect_is_found(rng):
    found = [paired_permutation(d) <= 0.05 for d in rng.normal(1.0, 1.0, (100, 12))]
    assert np.mean(found) > 0.8
    base = {t: rng.normal(0.5, 0.02, 5).tolist() for t in "abcd"}
    better = {t: [v + 0.1 for v in values] for t, values in base.items()}
    assert mean_difference(better, base).low == pytest.approx(0.1)
    assert average_relative_gain(better, base).gain.verdict == "better"
    assert probability_of_improvement(better, base).low > 0.5


def test_holm_is_its_definition(rng):
    p = rng.uniform(size=7)
    got = holm(p.tolist())
    for i, own in enumerate(p):
        smaller = [q for q in sorted(p) if q <= own]
        want = max((len(p) - rank) * q for rank, q in enumerate(smaller))
        assert got[i] == pytest.approx(min(1.0, want))
    assert holm([]) == []


def test_holm_keeps_the_familys_false_positives_down(rng):
    rejections = [min(holm(p)) <= 0.05 for p in rng.uniform(size=(4000, 5)).tolist()]
    assert np.mean(rejections) == pytest.approx(0.05, abs=0.012)


def test_probability_of_improvement_is_mann_whitneys(rng):
    x, y = rng.integers(0, 6, 9).astype(float), rng.integers(0, 6, 9).astype(float)
    want = stats.mannwhitneyu(x, y).statistic / 81
    assert probability_of_improvement({"t": x.tolist()}, {"t": y.tolist()}).estimate == pytest.approx(want)
    same = probability_of_improvement({"t": x.tolist()}, {"t": x.tolist()})
    assert same.estimate == pytest.approx(0.5)
    assert same.low <= 0.5 <= same.high


def test_spearman_is_scipys_with_a_sane_interval(rng):
    x = rng.normal(size=40)
    y = x + rng.normal(size=40)
    got = rank_correlation(x, y)
    assert got.estimate == pytest.approx(stats.spearmanr(x, y)[0])
    want = stats.bootstrap(
        (x, y), lambda a, b: stats.spearmanr(a, b)[0], paired=True, vectorized=False, n_resamples=1500,
        method="percentile", rng=1,
    ).confidence_interval  # fmt: skip
    assert (got.low, got.high) == pytest.approx((want.low, want.high), abs=0.04)
    assert rank_correlation([1, 1, 1], [1, 2, 3]).estimate == 0.0
    assert got.n == 40


def test_spearman_resamples_whole_groups(rng):
    x, groups = np.repeat(rng.normal(size=6), 5), [f"g{i // 5}" for i in range(30)]
    y = x + np.repeat(rng.normal(size=6), 5)
    got, alone = rank_correlation(x, y, groups), rank_correlation(x, y)
    assert got.estimate == alone.estimate
    assert got.high - got.low > 1.5 * (alone.high - alone.low)  # six observations, not thirty
    drawn = []
    for _ in range(800):
        index = np.concatenate([np.arange(5) + 5 * g for g in rng.integers(0, 6, 6)])
        drawn.append(stats.spearmanr(x[index], y[index])[0])
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    assert (got.low, got.high) == pytest.approx((low, high), abs=0.12)


def test_spearmans_errors():
    with pytest.raises(ValueError, match="two equally long sides"):
        rank_correlation([1.0, 2.0], [1.0])


@pytest.mark.parametrize("n", [2, 3, 7, 13])
def test_an_exact_permutation_is_scipys(rng, n):
    """Of scores of 100 examples, among which sums often tie."""
    for _ in range(20):
        d = rng.integers(-30, 31, n) / 100
        theirs = stats.permutation_test(
            (d, np.zeros(n)), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples",
            vectorized=True, n_resamples=np.inf,
        )  # fmt: skip
        assert paired_permutation(d) == pytest.approx(theirs.pvalue)


def test_a_random_permutation_is_close_to_scipys(rng):
    for d in rng.normal(0.2, 1, (5, 40)):
        theirs = stats.permutation_test(
            (d, np.zeros(40)), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples",
            vectorized=True, n_resamples=20_000, rng=1,
        )  # fmt: skip
        assert paired_permutation(d) == pytest.approx(theirs.pvalue, abs=0.02)


def test_a_stratified_bootstrap_of_one_target_is_scipys(rng):
    x = rng.normal(size=25)
    want = stats.bootstrap((x,), np.mean, n_resamples=4000, method="percentile", rng=1).confidence_interval
    got = stratified_bootstrap({"a": x.tolist()})
    assert (got.low, got.high) == pytest.approx((want.low, want.high), abs=0.05 * (want.high - want.low))


def test_an_interval_stays_within_its_bounds():
    wide = interval([0.1, 0.9, 0.6])
    assert wide.low < 0 < 1 < wide.high
    clipped = interval([0.1, 0.9, 0.6], bounds=(0.0, 1.0))
    assert (clipped.low, clipped.estimate, clipped.high) == (0.0, wide.estimate, 1.0)
    assert interval([0.5, 0.51, 0.52], bounds=(0.0, 1.0)) == interval([0.5, 0.51, 0.52])


def test_the_test_by_fit_is_students(rng):
    x = rng.normal(0.3, 1, 7).tolist()
    assert mean_test(x) == pytest.approx(stats.ttest_1samp(x, 0).pvalue)
    assert (mean_test([0.4]), mean_test([0.1, 0.1, 0.1])) == (1.0, 1.0)  # no spread to judge by


def crossed(table, fits=None):
    gaps = {str(t): dict(enumerate(column)) for t, column in enumerate(np.transpose(table).tolist())}
    return gaps, fits or {d: d for d in range(len(table))}


def test_the_hierarchical_bootstrap_has_the_closed_forms_spread(rng):
    """n - 1 of n fits and targets: each layer's effects give s^2 / n, what is left of a cell the product of both."""
    fits, targets = 6, 9
    table = rng.normal(0, 1, (fits, targets)) + rng.normal(0, 1, (fits, 1)) + rng.normal(0, 2, targets) + 0.7
    errors = rng.uniform(0, 1, targets)
    got = hierarchical_bootstrap(*crossed(table), {str(t): e for t, e in enumerate(errors)})
    row, column = table.mean(1) - table.mean(), table.mean(0) - table.mean()
    rest = table - table.mean() - row[:, None] - column
    n, m = fits * (fits - 1), targets * (targets - 1)
    rows = (errors**2).sum() * (1 / targets**2 + 1 / (m * targets) * (targets - 1) / targets)
    variance = (row**2).sum() / n + (column**2).sum() / m + (rest**2).sum() / (n * m) + rows
    assert got.estimate == pytest.approx(table.mean())
    assert got.high - got.estimate == pytest.approx(stats.t.ppf(0.975, fits - 1) * np.sqrt(variance), rel=0.04)


def test_draws_of_one_fit_are_no_other_fits(rng):
    """Two fits of three draws each: their means are the units; a draw's own noise comes on top."""
    table = rng.normal(0, 0.1, (6, 1)) + np.repeat([[-1.0], [1.0]], 3, axis=0)
    got = hierarchical_bootstrap(*crossed(table, {d: d // 3 for d in range(6)}))
    means = table[:3].mean(), table[3:].mean()
    within = sum(np.var(part, ddof=1) / 3 for part in (table[:3], table[3:])) / 2  # per fit that is drawn
    variance = np.var(means, ddof=1) / 2 + within
    assert got.high - got.estimate == pytest.approx(stats.t.ppf(0.975, 1) * np.sqrt(variance), rel=0.05)
    alone = hierarchical_bootstrap(*crossed(table, dict.fromkeys(range(6), "one prior")))
    assert (alone.low, alone.high, alone.estimate) == (None, None, pytest.approx(table.mean()))
    with pytest.raises(ValueError, match="every draw"):
        hierarchical_bootstrap({"a": {0: 1.0}, "b": {0: 1.0, 1: 2.0}}, {0: 0, 1: 1})


def test_the_hierarchical_interval_holds_the_mean_of_all_targets(rng):
    """Fits and targets differ, and no method is better over all targets: at most 5 % of intervals leave out 0."""
    wrong = 0
    for _ in range(200):
        table = rng.normal(0, 1, (5, 8)) + rng.normal(0, 0.5, (5, 1)) + rng.normal(0, 1, 8)
        wrong += hierarchical_bootstrap(*crossed(table)).verdict != "unclear"
    assert wrong / 200 <= 0.08  # 0.05 and two standard errors


@pytest.mark.parametrize(("fits", "tests"), [(5, 1), (10, 8), (3, 1)])
def test_the_smallest_difference_is_found_four_times_in_five(rng, fits, tests):
    delta = smallest_difference(fits, 0.05, tests)
    x = rng.normal(delta, 0.05, (40_000, fits))
    found = (stats.ttest_1samp(x, 0, axis=1).pvalue <= 0.05 / tests) & (x.mean(1) > 0)
    assert found.mean() == pytest.approx(0.8, abs=0.01)
    assert smallest_difference(1, 0.05) is None
