"""What a reviewer asks of a few scores: intervals, paired tests, aggregates over targets.

Scores of one method are `Runs`: for every target, one score per seed. Two `Runs` that are compared hold the
same seeds in the same order, for an episode's seed fixes its shots: pairs share everything but the method.

Every aggregate interval resamples seeds within targets and leaves the targets as they are. It answers
"what if the shots and seeds were drawn again?", not "what of targets that were never tried?".
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Runs = Mapping[str, Sequence[float]]
Statistic = Callable[[Sequence[Floats]], Floats]
"""From the scores of each target, [draws, seeds] each, to one number per draw, [draws]."""

DRAWS = 4000
FLIPS = 10_000  # sign patterns: all of them where 2^n is no more, else this many at random
BOOTSTRAP_FROM = 30  # below this many values a bootstrap interval of the mean is too narrow
NEAR_FLOOR = 0.1  # a base below this makes a relative gain mostly noise
TIE = 1e-9


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval; the ends are None where one value leaves them unknown."""

    estimate: float
    low: float | None
    high: float | None
    n: int

    @property
    def is_above_zero(self) -> bool:
        """Whether the whole interval lies above 0."""
        return self.low is not None and self.low > 0

    @property
    def is_below_zero(self) -> bool:
        """Whether the whole interval lies below 0."""
        return self.high is not None and self.high < 0


def interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """The mean of some independent values, with its interval.

    Below thirty values it is Student's t-interval: the bootstrap of so few is too narrow (95% intervals of
    normal values hold the mean 84% of the time for 5, 90% for 10), and n seeds of one cell are about normal.
    From thirty it is the BCa bootstrap, 4,000 seeded draws. One value has no interval. Raises ValueError for none.
    """
    x = finite_values(values)
    mean = float(x.mean())
    if len(x) == 1:
        return Interval(mean, None, None, 1)
    if np.ptp(x) < TIE:
        return Interval(mean, mean, mean, len(x))
    low, high = t_ends(x, level) if len(x) < BOOTSTRAP_FROM else bca_ends(x, level)
    return Interval(mean, low, high, len(x))


def t_ends(x: Floats, level: float) -> tuple[float, float]:
    """Student's t-interval of the mean."""
    from scipy.stats import t

    half = float(t.ppf((1 + level) / 2, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)))
    return float(x.mean()) - half, float(x.mean()) + half


def bca_ends(x: Floats, level: float) -> tuple[float, float]:
    """The bias-corrected and accelerated bootstrap interval of the mean (Efron 1987)."""
    from scipy.stats import bootstrap

    found = bootstrap((x,), np.mean, confidence_level=level, n_resamples=DRAWS, rng=0).confidence_interval
    return float(found.low), float(found.high)


def mean_over_targets(scores: Sequence[Floats]) -> Floats:
    """The mean over targets of the mean over seeds."""
    return np.mean([s.mean(-1) for s in scores], axis=0)


def interquartile_mean(scores: Sequence[Floats]) -> Floats:
    """The mean of the middle half of all runs, pooled over targets and seeds (rliable's IQM)."""
    from scipy.stats import trim_mean

    return trim_mean(np.concatenate(scores, axis=-1), 0.25, axis=-1)


def median_target(scores: Sequence[Floats]) -> Floats:
    """The median over targets of the mean over seeds (rliable's median)."""
    return np.median([s.mean(-1) for s in scores], axis=0)


def stratified_bootstrap(
    runs: Runs, statistic: Statistic = mean_over_targets, level: float = 0.95, seed: int = 0
) -> Interval:
    """An aggregate over targets and seeds with a percentile interval (Agarwal et al. 2021, rliable).

    Seeds are drawn again within each target. With one seed everywhere the interval is unknown.
    """
    scores = list(arrays(runs).values())
    draws = [x[i] for x, i in zip(scores, resampled(scores, seed), strict=True)]
    return percentile(float(statistic(scores)), statistic(draws), scores, level)


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


def average_relative_gain(scores: Runs, base: Runs, level: float = 0.95, seed: int = 0) -> Gains:
    """ARG: the mean over targets of (score - base) / base, each a mean over seeds (CrossFit, Ye et al. 2021).

    Raises ValueError unless both have the same targets and the same number of seeds for each.
    """
    pairs = paired(scores, base)
    bases = {target: float(y.mean()) for target, (_, y) in pairs.items()}
    defined = [t for t, b in bases.items() if b > TIE]
    above = [t for t in defined if bases[t] >= NEAR_FLOOR]
    differences = np.array([float(x.mean() - y.mean()) for x, y in pairs.values()])
    relative = [float(pairs[t][0].mean()) / bases[t] - 1 for t in defined]
    return Gains(
        gain=gain_interval([pairs[t] for t in defined], level, seed),
        above_floor=gain_interval([pairs[t] for t in above], level, seed),
        median=float(np.median(relative)) if relative else None,
        wins=int((differences > TIE).sum()),
        ties=int((np.abs(differences) <= TIE).sum()),
        losses=int((differences < -TIE).sum()),
        near_floor=tuple(t for t in defined if bases[t] < NEAR_FLOOR),
        undefined=tuple(t for t in bases if t not in defined),
    )


def gain_interval(pairs: Sequence[tuple[Floats, Floats]], level: float, seed: int) -> Interval | None:
    """The ARG of some targets; draws of a base that come to 0 or less are left out."""
    if not pairs:
        return None
    estimate = np.mean([x.mean() / y.mean() - 1 for x, y in pairs])
    picks = resampled([x for x, _ in pairs], seed)
    drawn = [(x[i].mean(-1), y[i].mean(-1)) for (x, y), i in zip(pairs, picks, strict=True)]
    usable = np.all([base > TIE for _, base in drawn], axis=0)
    gains = np.mean([score[usable] / base[usable] - 1 for score, base in drawn], axis=0)
    return percentile(float(estimate), gains, [x for x, _ in pairs], level)


def mean_difference(scores: Runs, base: Runs, level: float = 0.95, seed: int = 0) -> Interval:
    """The mean over targets of score - base, with a stratified bootstrap over pairs."""
    return stratified_bootstrap(
        {target: (x - y).tolist() for target, (x, y) in paired(scores, base).items()}, level=level, seed=seed
    )


def probability_of_improvement(scores: Runs, base: Runs, level: float = 0.95, seed: int = 0) -> Interval:
    """How likely a run beats a run of the base, ties counting half, averaged over targets (rliable)."""
    pairs = list(paired(scores, base).values())
    picks = resampled([x for x, _ in pairs], seed)
    drawn = [beats(x[i], y[i]) for (x, y), i in zip(pairs, picks, strict=True)]
    estimate = float(np.mean([beats(x, y) for x, y in pairs]))
    return percentile(estimate, np.mean(drawn, axis=0), [x for x, _ in pairs], level)


def beats(x: Floats, y: Floats) -> Floats:
    """The share of pairs (one of x, one of y) in which x is larger; a tie counts half. Last axis: runs."""
    gap = x[..., :, None] - y[..., None, :]
    return ((gap > TIE) + 0.5 * (np.abs(gap) <= TIE)).mean((-2, -1))


def paired_permutation(differences: Sequence[float], seed: int = 0) -> float:
    """Two-sided p-value of "the mean difference is 0" under random signs of the pairs.

    All sign patterns are tried where there are at most 10,000 of them (13 pairs), else 10,000 seeded draws.
    Valid when pairs are independent and, under the null, as likely to be d as -d. The smallest p that n
    pairs can give is 2 / 2^n: three seeds never give less than 0.25.
    """
    x = finite_values(differences)
    if len(x) == 1 or np.abs(x).max() < TIE:
        return 1.0
    exact = 2 ** len(x) <= FLIPS
    signs = all_signs(len(x)) if exact else random_signs(len(x), seed)
    extreme = int((np.abs(signs @ x) >= abs(x.sum()) * (1 - TIE)).sum())
    return extreme / len(signs) if exact else (extreme + 1) / (len(signs) + 1)


def all_signs(n: int) -> Floats:
    """Every pattern of n signs: [2^n, n]."""
    bits = np.arange(2**n)[:, None] >> np.arange(n) & 1
    return 1.0 - 2.0 * bits.astype(np.float64)


@cache
def random_signs(n: int, seed: int) -> Floats:
    """Some patterns of n signs, [FLIPS, n]; kept, for a report asks many times."""
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (FLIPS, n))
    signs.flags.writeable = False
    return signs


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p-values that control the chance of any false positive (Holm 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted.tolist()


def spearman(
    x: Sequence[float],
    y: Sequence[float],
    groups: Sequence[str] | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Spearman's rank correlation with a percentile interval over 4,000 resamples.

    Pairs are resampled one by one, or group by group where `groups` names the group of each: pairs that share a target
    are not independent. It is 0 where either side is constant; resamples that are constant are left out. Raises
    ValueError for sides of different length or fewer than two pairs.
    """
    a, b = finite_values(x), finite_values(y)
    if len(a) != len(b) or len(a) < 2:
        raise ValueError(f"spearman needs two equally long sides of at least 2; got {len(a)} and {len(b)}")
    names = list(groups) if groups is not None else list(map(str, range(len(a))))
    estimate = np.nan_to_num(rank_correlation(a, b, np.ones((1, len(a)))))
    drawn = rank_correlation(a, b, group_counts(names, seed))
    units = [np.zeros(len(set(names)))]
    return replace(percentile(float(estimate[0]), drawn, units, level), n=len(a))


def group_counts(groups: Sequence[str], seed: int) -> Floats:
    """How often each item of some groups stands in a resample of whole groups: [DRAWS, items]."""
    known = list(dict.fromkeys(groups))
    (index,) = resampled([np.zeros(len(known))], seed)
    counts = np.zeros((DRAWS, len(known)))
    np.add.at(counts, (np.arange(DRAWS)[:, None], index), 1)
    return counts[:, [known.index(group) for group in groups]]


def rank_correlation(a: Floats, b: Floats, counts: Floats) -> Floats:
    """Spearman's correlation of samples with pair i `counts[:, i]` times, [draws]; NaN where a side is constant."""
    x, y = (centred(counts @ (np.greater.outer(v, v) + 0.5 * np.equal.outer(v, v)).T, counts) for v in (a, b))
    spread = np.sqrt((counts * x**2).sum(-1) * (counts * y**2).sum(-1))
    return np.divide((counts * x * y).sum(-1), spread, out=np.full(len(counts), np.nan), where=spread > TIE)


def centred(ranks: Floats, counts: Floats) -> Floats:
    """Ranks minus their mean over the sample."""
    return ranks - (counts * ranks).sum(-1, keepdims=True) / counts.sum(-1, keepdims=True)


def resampled(scores: Sequence[Floats], seed: int) -> list[NDArray[np.int64]]:
    """Indices, [DRAWS, seeds] for each target, drawn with replacement."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, len(x), (DRAWS, len(x))) for x in scores]


def percentile(estimate: float, draws: Floats, scores: Sequence[Floats], level: float) -> Interval:
    """The percentile interval of some draws; unknown where no target has two runs."""
    n = sum(map(len, scores))
    known = draws[~np.isnan(draws)]
    if max(map(len, scores)) < 2 or not len(known):
        return Interval(estimate, None, None, n)
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate, float(low), float(high), n)


def paired(scores: Runs, base: Runs) -> dict[str, tuple[Floats, Floats]]:
    """Both sides of each target. Raises ValueError unless targets and numbers of runs agree."""
    ours, theirs = arrays(scores), arrays(base)
    sizes, base_sizes = ({t: len(x) for t, x in side.items()} for side in (ours, theirs))
    if sizes != base_sizes:
        raise ValueError(f"paired runs need the same targets and seeds; got {sizes} and {base_sizes}")
    return {target: (x, theirs[target]) for target, x in ours.items()}


def arrays(runs: Runs) -> dict[str, Floats]:
    """Scores of each target as an array. Raises ValueError for no targets."""
    if not runs:
        raise ValueError("no targets to aggregate over")
    return {target: finite_values(values) for target, values in runs.items()}


def finite_values(values: Sequence[float]) -> Floats:
    """Values as an array. Raises ValueError where there is none or one is not finite."""
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not len(x) or not np.isfinite(x).all():
        raise ValueError(f"statistics need at least one finite number; got {list(values)}")
    return x
