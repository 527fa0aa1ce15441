"""What a reviewer asks of a few scores: intervals, paired tests, aggregates over targets.

Scores of one method are `Runs`: for every target, one score per seed. Two `Runs` that are compared hold the
same seeds in the same order, for an episode's seed fixes its shots: pairs share everything but the method.

Every aggregate interval resamples seeds within targets and leaves the targets as they are. It answers
"what if the shots and seeds were drawn again?", not "what of targets that were never tried?". For contrasts that were
written down first there are the test by fit, and the hierarchical bootstrap, which answers both (docs/protocol.md).

Intervals and the permutation test are ours, tested against scipy: scipy has no bootstrap that resamples within strata,
and its permutation test draws other signs, so that the p-values of earlier reports would change. Holm's correction is
statsmodels'.
"""

import gc
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Runs = Mapping[str, Sequence[float]]
Aggregate = Literal["mean", "iqm", "median"]

DRAWS = 4000
LEVEL, POWER = 0.95, 0.8  # of intervals; of the test that finds a smallest difference
FLIPS = 10_000  # sign patterns: all of them where 2^n is no more, else this many at random
BOOTSTRAP_FROM = 30  # below this many values a bootstrap interval of the mean is too narrow
NEAR_FLOOR = 0.1  # a base below this makes a relative gain mostly noise
TIE = 1e-9
SIGNIFICANT = 0.05
UNBOUNDED = (-np.inf, np.inf)


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval; the ends are None where one value leaves them unknown."""

    estimate: float
    low: float | None
    high: float | None
    n: int

    @property
    def verdict(self) -> Literal["better", "worse", "unclear"]:
        """Of a difference: better or worse where the whole interval lies on one side of 0, else unclear."""
        if self.low is None or self.high is None:
            return "unclear"
        return "better" if self.low > 0 else "worse" if self.high < 0 else "unclear"


def interval(values: Sequence[float], level: float = 0.95, bounds: tuple[float, float] = UNBOUNDED) -> Interval:
    """The mean of some independent values, with its interval, whose ends stay within `bounds`.

    Below thirty values it is Student's t-interval: the bootstrap of so few is too narrow (95% intervals of
    normal values hold the mean 84% of the time for 5, 90% for 10), and n seeds of one cell are about normal.
    Student's t knows no range, so that an accuracy's interval could end above 1 without `bounds`. From thirty values it
    is the BCa bootstrap (Efron 1987) by scipy, 4,000 seeded draws. One value has no interval. Raises ValueError for
    none.
    """
    from scipy.stats import bootstrap, t

    x = _finite(values)
    mean = float(x.mean())
    if len(x) == 1:
        return Interval(mean, None, None, 1)
    if np.ptp(x) < TIE:
        return Interval(mean, mean, mean, len(x))
    if len(x) < BOOTSTRAP_FROM:
        half = float(t.ppf((1 + level) / 2, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)))
        low, high = mean - half, mean + half
    else:
        ends = bootstrap((x,), np.mean, confidence_level=level, n_resamples=DRAWS, rng=0).confidence_interval
        low, high = float(ends.low), float(ends.high)
    return Interval(mean, max(low, bounds[0]), min(high, bounds[1]), len(x))


def stratified_bootstrap(runs: Runs, aggregate: Aggregate = "mean") -> Interval:
    """An aggregate over targets and seeds with a percentile interval (Agarwal et al. 2021, rliable).

    "mean" is the mean over targets of the mean over seeds, "median" the median over targets of the same, "iqm" the mean
    of the middle half of all runs, pooled over targets and seeds. Seeds are drawn again within each target. With one
    seed everywhere the interval is unknown. Raises ValueError for no targets.
    """
    from scipy.stats import trim_mean

    scores = list(_arrays(runs).values())
    draws = [x[i] for x, i in zip(scores, _resampled(scores), strict=True)]  # [draws, seeds] each
    aggregates: list[Floats] = []
    for sample in (scores, draws):
        if aggregate == "iqm":
            aggregates.append(trim_mean(np.concatenate(sample, axis=-1), 0.25, axis=-1))
        else:
            over_targets = np.mean if aggregate == "mean" else np.median
            aggregates.append(over_targets([x.mean(-1) for x in sample], axis=0))
    estimate, drawn = aggregates
    return _percentile(float(estimate), drawn, scores)


@dataclass(frozen=True)
class Gains:
    """Relative gains over a base, and what they hide.

    `gain` is the ARG; `above_floor` is the same without targets whose base is below 0.1; `median` is the
    median target. A base of 0 or less has no relative gain: such targets are listed in `undefined` and
    counted only in wins, ties and losses.
    """

    gain: Interval | None
    above_floor: Interval | None
    median: float | None
    wins: int
    ties: int
    losses: int
    near_floor: tuple[str, ...]
    undefined: tuple[str, ...]


def average_relative_gain(scores: Runs, base: Runs, lower_is_better: Collection[str] = ()) -> Gains:
    """ARG: the mean over targets of (score - base) / base, each a mean over seeds (CrossFit, Ye et al. 2021).

    Both are merits (higher is better). On targets named in `lower_is_better` these are scores with a minus sign, and
    the gain is the share of the base's score that is saved. Draws of a base that come to 0 or less are left out of the
    interval. Raises ValueError unless both have the same targets and the same number of seeds for each.
    """
    pairs = _paired(scores, base)
    signs = {target: -1.0 if target in lower_is_better else 1.0 for target in pairs}
    bases = {target: signs[target] * float(y.mean()) for target, (_, y) in pairs.items()}  # as scores
    defined = [t for t, b in bases.items() if b > TIE]
    differences = np.array([float(x.mean() - y.mean()) for x, y in pairs.values()])
    relative = [float(pairs[t][0].mean()) / bases[t] - signs[t] for t in defined]

    def mean_gain(targets: Sequence[str]) -> Interval | None:
        if not targets:
            return None
        sides, sign = [pairs[t] for t in targets], np.array([[signs[t]] for t in targets])
        picks = _resampled([x for x, _ in sides])
        drawn = [(x[i].mean(-1), y[i].mean(-1)) for (x, y), i in zip(sides, picks, strict=True)]  # [draws] each
        usable = np.all([s * y > TIE for (_, y), s in zip(drawn, sign, strict=True)], axis=0)
        gains = np.mean(sign * [x[usable] / y[usable] - 1 for x, y in drawn], axis=0)
        estimate = np.mean(sign[:, 0] * [x.mean() / y.mean() - 1 for x, y in sides])
        return _percentile(float(estimate), gains, [x for x, _ in sides])

    return Gains(
        gain=mean_gain(defined),
        above_floor=mean_gain([t for t in defined if bases[t] >= NEAR_FLOOR]),
        median=float(np.median(relative)) if relative else None,
        wins=int((differences > TIE).sum()),
        ties=int((np.abs(differences) <= TIE).sum()),
        losses=int((differences < -TIE).sum()),
        near_floor=tuple(t for t in defined if bases[t] < NEAR_FLOOR),
        undefined=tuple(t for t in bases if t not in defined),
    )


def mean_difference(scores: Runs, base: Runs) -> Interval:
    """The mean over targets of score - base, with a stratified bootstrap over pairs."""
    return stratified_bootstrap({target: (x - y).tolist() for target, (x, y) in _paired(scores, base).items()})


def probability_of_improvement(scores: Runs, base: Runs) -> Interval:
    """How likely a run beats a run of the base, ties counting half, averaged over targets (rliable)."""
    pairs = list(_paired(scores, base).values())
    picks = _resampled([x for x, _ in pairs])

    gaps = [x[:, None] - y for x, y in pairs]  # every run against every run of the base
    wins = [(gap > TIE) + 0.5 * (np.abs(gap) <= TIE) for gap in gaps]  # [n, n]
    # how often a draw has each run [draws, n]: its share of wins is then a product, and no array is [draws, n, n]
    counts = [np.stack([np.bincount(row, minlength=len(i.T)) for row in i]).astype(float) for i in picks]
    drawn = [((c @ w) * c).sum(1) / w.size for c, w in zip(counts, wins, strict=True)]
    return _percentile(float(np.mean([w.mean() for w in wins])), np.mean(drawn, axis=0), [x for x, _ in pairs])


def paired_permutation(differences: Sequence[float]) -> float:
    """Two-sided p-value of "the mean difference is 0" under random signs of the pairs.

    All sign patterns are tried where there are at most 10,000 of them (13 pairs; then p is
    scipy.stats.permutation_test's), else 10,000 seeded draws. Valid when pairs are independent and, under the null, as
    likely to be d as -d. The smallest p that n pairs can give is 2 / 2^n: three seeds never give less than 0.25.
    """
    x = _finite(differences)
    if len(x) == 1 or np.abs(x).max() < TIE:
        return 1.0
    is_exact = 2 ** len(x) <= FLIPS
    signs = _signs(len(x), is_exact)
    extreme = int((np.abs(signs @ x) >= abs(x.sum()) * (1 - TIE)).sum())
    return extreme / len(signs) if is_exact else (extreme + 1) / (len(signs) + 1)


@cache  # a report asks for the same patterns many times
def _signs(n: int, is_exact: bool) -> Floats:
    """Every pattern of n signs, [2^n, n], or FLIPS random ones."""
    if is_exact:
        bits = np.arange(2**n)[:, None] >> np.arange(n) & 1
        signs = 1.0 - 2.0 * bits.astype(np.float64)
    else:
        signs = np.random.default_rng(0).choice([-1.0, 1.0], (FLIPS, n))
    signs.flags.writeable = False
    return signs


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction by statsmodels: p-values that control the chance of any false positive (Holm 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    from statsmodels.stats.multitest import multipletests

    if not len(p_values):
        return []
    gc.freeze()  # multipletests collects garbage at every call: 0.3 s where torch is loaded, nothing if all is frozen
    try:
        return multipletests(p_values, method="holm")[1].tolist()
    finally:
        gc.unfreeze()


def mean_test(values: Sequence[float]) -> float:
    """Two-sided p of Student's t that the mean of independent values is 0.

    It is 1 for one value, and for values that are all alike: there is no spread to judge by.
    """
    from scipy.stats import ttest_1samp

    x = _finite(values)
    return 1.0 if len(x) == 1 or np.ptp(x) < TIE else float(ttest_1samp(x, 0.0).pvalue)


def hierarchical_bootstrap(
    gaps: Mapping[str, Mapping[int, float]],
    fits: Mapping[int, Hashable],
    row_errors: Mapping[str, float] | None = None,
) -> Interval:
    """The mean over fits of differences `gaps[target][draw]`, its interval for other fits, draws, targets and rows.

    `fits` names the fit of each draw; every target has all draws. Fits are drawn again, and draws within them. Targets
    are drawn apart from these, since all draws share them (the pigeonhole bootstrap, Owen 2007: of two crossed layers
    it counts the noise of single cells up to three times, so it errs on the safe side). Of n units n - 1 are drawn,
    which makes the variance of a mean s^2 / n and not s^2 (n - 1) / n^2 (Rao, Wu 1988). `row_errors` has the standard
    error of each target's difference over test rows, which all draws share; normal noise stands for it. The interval is
    Student's t times the standard deviation of 4,000 means, with as many degrees of freedom as the smaller layer has.
    Of one fit it is unknown; one target stays as it is. Raises ValueError where a target lacks a draw.
    """
    from scipy.stats import t

    draws = sorted(fits)
    if not gaps or any(sorted(of_target) != draws for of_target in gaps.values()):
        raise ValueError(f"a hierarchical bootstrap needs every draw {draws} of every target; got {gaps}")
    table = np.array([_finite([of_target[d] for d in draws]) for of_target in gaps.values()]).T  # [draws, targets]
    members = [[i for i, d in enumerate(draws) if fits[d] == fit] for fit in dict.fromkeys(fits[d] for d in draws)]
    estimate = float(np.mean([table[own].mean() for own in members]))
    if len(members) == 1:
        return Interval(estimate, None, None, table.size)
    rng = np.random.default_rng(0)

    def resampled(n: int, times: int | NDArray[np.int64] = 1) -> NDArray[np.int64]:
        return rng.multinomial(times * max(n - 1, 1), np.full(n, 1 / n), size=DRAWS)  # [resamples, n]

    fit_counts, weights = resampled(len(members)), np.zeros((DRAWS, len(draws)))
    for f, own in enumerate(members):
        share = max(len(own) - 1, 1) * (len(members) - 1)
        weights[:, own] = resampled(len(own), fit_counts[:, f]) / share
    target_weights = resampled(len(gaps)) / max(len(gaps) - 1, 1)
    errors = np.array([(row_errors or {}).get(target, 0.0) for target in gaps])
    cells = weights @ table + rng.normal(0, 1, (DRAWS, len(gaps))) * errors  # [resamples, targets]
    spread = float((cells * target_weights).sum(-1).std(ddof=1))
    layers = [len(members), *([len(gaps)] if len(gaps) > 1 else [])]
    half = float(t.ppf((1 + LEVEL) / 2, min(layers) - 1)) * spread
    return Interval(estimate, estimate - half, estimate + half, table.size)


def smallest_difference(fits: int, spread: float, tests: int = 1) -> float | None:
    """The true mean difference that `mean_test` of so many fits finds four times in five; None for fewer than two.

    `spread` is the standard deviation of one fit's mean difference over targets, in scores. The level is 0.05 divided
    by `tests`, Holm's first step. Exact for normal differences, by the noncentral t distribution.
    """
    from scipy.optimize import brentq
    from scipy.stats import nct, t

    if fits < 2:
        return None
    critical = float(t.ppf(1 - SIGNIFICANT / tests / 2, fits - 1))

    def missing(shift: float) -> float:  # a difference of the wrong sign does not count as found
        return float(nct.sf(critical, fits - 1, shift)) - POWER

    most = 10.0
    while missing(most) < 0:
        most *= 2
    return float(brentq(missing, 0.0, most)) * spread / float(np.sqrt(fits))


def rank_correlation(x: Sequence[float], y: Sequence[float], groups: Sequence[str] | None = None) -> Interval:
    """Spearman's rank correlation with a percentile interval over 4,000 resamples.

    Pairs are resampled one by one, or group by group where `groups` names the group of each: pairs that share a target
    are not independent. It is 0 where either side is constant; resamples that are constant are left out. Raises
    ValueError for sides of different length or fewer than two pairs.
    """
    a, b = _finite(x), _finite(y)
    if len(a) != len(b) or len(a) < 2:
        raise ValueError(f"rank_correlation needs two equally long sides of at least 2; got {len(a)} and {len(b)}")
    names = list(groups) if groups is not None else list(map(str, range(len(a))))
    known = list(dict.fromkeys(names))
    (picks,) = _resampled([np.zeros(len(known))])
    group_counts = np.zeros((DRAWS, len(known)))  # how often each group stands in each resample
    np.add.at(group_counts, (np.arange(DRAWS)[:, None], picks), 1)
    counts = group_counts[:, [known.index(name) for name in names]]  # [draws, pairs]
    estimate = np.nan_to_num(_spearman_of_samples(a, b, np.ones((1, len(a)))))
    drawn = _spearman_of_samples(a, b, counts)
    return replace(_percentile(float(estimate[0]), drawn, [np.zeros(len(known))]), n=len(a))


def _spearman_of_samples(a: Floats, b: Floats, counts: Floats) -> Floats:
    """Spearman's correlation of samples with pair i `counts[:, i]` times, [draws]; NaN where a side is constant."""
    centred = []
    for side in (a, b):
        ranks = counts @ (np.greater.outer(side, side) + 0.5 * np.equal.outer(side, side)).T  # [draws, pairs]
        centred.append(ranks - (counts * ranks).sum(-1, keepdims=True) / counts.sum(-1, keepdims=True))
    x, y = centred
    spread = np.sqrt((counts * x**2).sum(-1) * (counts * y**2).sum(-1))
    return np.divide((counts * x * y).sum(-1), spread, out=np.full(len(counts), np.nan), where=spread > TIE)


def _resampled(scores: Sequence[Floats]) -> list[NDArray[np.int64]]:
    """Indices, [DRAWS, seeds] for each target, drawn with replacement."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, len(x), (DRAWS, len(x))) for x in scores]


def _percentile(estimate: float, draws: Floats, scores: Sequence[Floats]) -> Interval:
    """The percentile interval of some draws; unknown where no target has two runs."""
    n = sum(map(len, scores))
    known = draws[~np.isnan(draws)]
    if max(map(len, scores)) < 2 or not len(known):
        return Interval(estimate, None, None, n)
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(estimate, float(low), float(high), n)


def _paired(scores: Runs, base: Runs) -> dict[str, tuple[Floats, Floats]]:
    """Both sides of each target. Raises ValueError unless targets and numbers of runs agree."""
    ours, theirs = _arrays(scores), _arrays(base)
    sizes, base_sizes = ({t: len(x) for t, x in side.items()} for side in (ours, theirs))
    if sizes != base_sizes:
        raise ValueError(f"paired runs need the same targets and seeds; got {sizes} and {base_sizes}")
    return {target: (x, theirs[target]) for target, x in ours.items()}


def _arrays(runs: Runs) -> dict[str, Floats]:
    """Scores of each target as an array. Raises ValueError for no targets."""
    if not runs:
        raise ValueError("no targets to aggregate over")
    return {target: _finite(values) for target, values in runs.items()}


def _finite(values: Sequence[float]) -> Floats:
    """Values as an array. Raises ValueError where there is none or one is not finite."""
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not len(x) or not np.isfinite(x).all():
        raise ValueError(f"statistics need at least one finite number; got {list(values)}")
    return x
