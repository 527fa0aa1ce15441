"""Contrasts that were written down before any method ran: a test for each, corrected over these alone.

A fit is the unit. Each gives one number, its mean difference over targets and draws. Student's t over fits is the
primary test; Holm's correction runs over the contrasts of all k. The hierarchical bootstrap says whether the difference
would hold on other targets and test rows too.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from promptprior.errors import SpecError, unknown_name
from promptprior.report.gains import paired_scores
from promptprior.report.results import Grid, Row
from promptprior.report.section import Section, columns, interval_cell, list_words, make_table
from promptprior.report.statistics import (
    SIGNIFICANT,
    Interval,
    hierarchical_bootstrap,
    holm,
    interval,
    mean_test,
    smallest_difference,
)


@dataclass(frozen=True)
class Contrast:
    """`first` minus `second` at one k, in merit, over the targets and draws that both have finished.

    `by_fit` has the mean difference of each fit; `primary` their mean with Student's interval, `p` its test and
    `p_holm` the same after Holm's correction over all contrasts. `everywhere` is the hierarchical bootstrap's interval,
    for other fits, draws, targets and test rows. `smallest` is the difference that as many fits of this spread find
    four times in five; None for one fit, of which nothing is known.
    """

    first: str
    second: str
    k: int
    targets: int
    draws: int
    by_fit: tuple[float, ...]
    primary: Interval
    p: float
    p_holm: float
    everywhere: Interval
    smallest: float | None

    @property
    def verdict(self) -> str:
        """By the corrected test: "yes" where `first` is better, "no" where it is worse, else that it is not decided."""
        if self.p_holm <= SIGNIFICANT:
            return "yes" if self.primary.estimate > 0 else "no"
        fits = len(self.by_fit)
        return f"not decidable with {fits} fit{'s' * (fits != 1)}"


def contrast_pairs(contrasts: Sequence[str], methods: Sequence[str]) -> list[tuple[str, str]]:
    """The two methods of every contrast "a - b". Raises SpecError for another form, and for unknown methods."""
    pairs = []
    for text in contrasts:
        names = tuple(part.strip() for part in text.split(" - "))
        if len(names) != 2 or names[0] == names[1]:
            raise SpecError(f'contrast {text!r} (--contrasts): expected two methods as "a - b"')
        for name in names:
            if name not in methods:
                raise SpecError(f"contrast {text!r} (--contrasts): {unknown_name('method', name, methods)}")
        if names in pairs or names[::-1] in pairs:
            raise SpecError(f"contrast {text!r} (--contrasts): named twice")
        pairs.append((names[0], names[1]))
    return pairs


def fit_of(row: Row) -> Hashable:
    """What tells the fit of a row from others: its prior; without sources its seed, for it trains from scratch.

    Older rows do not name their prior: then it is the seed that fitted all, or what fitting cost.
    """
    if not row.cost.source.tokens:
        return row.seed
    seed_of_all = row.settings.get("source_seed")
    return row.settings.get("prior") or (row.cost.source if seed_of_all is None else f"seed {seed_of_all}")


def contrasts(grid: Grid, pairs: Sequence[tuple[str, str]]) -> tuple[Contrast, ...]:
    """Every contrast at every k, as far as its methods have finished targets at common draws."""
    tested: list[Contrast] = []
    for k, (first, second) in product(grid.ks, pairs):
        gaps: dict[str, dict[int, float]] = {}
        for target in grid.targets:
            if pairs_of_target := paired_scores(grid, first, second, target, k):
                gaps[target] = {
                    seed: grid.merit(target, x) - grid.merit(target, y) for seed, (x, y) in pairs_of_target.items()
                }
        draws = sorted(set.intersection(*map(set, gaps.values()))) if gaps else []
        if not draws:
            continue
        gaps = {target: {d: of_target[d] for d in draws} for target, of_target in gaps.items()}
        # A draw's fit is that of the method whose priors serve more draws: draws of one prior are no independent fits.
        labels = []
        for method in (first, second):
            runs = grid.runs[method, next(iter(gaps)), k]
            labels.append({d: fit_of(runs[d]) if d in runs else d for d in draws})
        fits = min(labels, key=lambda of_draw: len(set(of_draw.values())))
        by_draw = {d: float(np.mean([of_target[d] for of_target in gaps.values()])) for d in draws}
        by_fit = [float(np.mean([by_draw[d] for d in draws if fits[d] == fit])) for fit in dict.fromkeys(fits.values())]
        primary, p = interval(by_fit), mean_test(by_fit)
        spread = float(np.std(by_fit, ddof=1)) if len(by_fit) > 1 else 0.0
        # The largest standard error that the test rows can give each target's difference: a mean of numbers between 0
        # and 1 has at most the variance p (1 - p) / n. The errors of the two methods, which are mostly alike on the
        # same rows, are taken as independent. Other metrics count nothing.
        row_errors = {}
        for target, row in grid.targets.items():
            means = [grid.intervals[m, target, k].estimate for m in (first, second) if (m, target, k) in grid.intervals]
            if grid.bounds[target] == (0.0, 1.0) and row.n_test:
                row_errors[target] = float(np.sqrt(sum(p * (1 - p) for p in means) / row.n_test))
        tested.append(
            Contrast(
                *(first, second, k, len(gaps), len(draws), tuple(by_fit), primary, p, p),
                everywhere=hierarchical_bootstrap(gaps, fits, row_errors),
                smallest=smallest_difference(len(by_fit), spread, len(grid.ks) * len(pairs)),
            )
        )
    corrected = holm([c.p for c in tested])
    return tuple(replace(c, p_holm=p) for c, p in zip(tested, corrected, strict=True))


def contrast_section(tested: Sequence[Contrast]) -> Section:
    """The contrasts as one table, with the verdict of each."""
    note = (
        "First minus second; positive is better, whatever the metric. The contrasts were named in the plan. By fit: "
        "each fit's mean over targets and draws is one observation, Student's t; p is its test, and Holm's correction "
        "runs over this table alone. Other targets: hierarchical bootstrap over fits, draws, targets and test rows. "
        "Smallest: the difference that as many fits of this spread find four times in five, at Holm's first level."
    )
    heads = (
        *columns("Contrast", (), dict.fromkeys(["k", "Targets", "Draws", "Fits"], "count")),
        *columns("", dict.fromkeys(["Difference by fit", "Other targets"], "signed")),
        *columns("", (), {"p": "p", "p, Holm": "p", "Smallest": "score"}),
        *columns("Verdict"),
    )
    rows = [
        (
            f"{c.first} - {c.second}",
            *(c.k, c.targets, c.draws, len(c.by_fit)),
            interval_cell(c.primary, "signed", no_ends="one fit"),
            interval_cell(c.everywhere, "signed", no_ends="one fit"),
            *((c.p, c.p_holm) if len(c.by_fit) > 1 else (None, None)),
            *(c.smallest, c.verdict),
        )
        for c in tested
    ]
    table = make_table("contrasts", "Contrasts, written down first", note, heads, rows)
    decided = [f"{c.first} is {'better' if c.verdict == 'yes' else 'worse'} than {c.second} (k = {c.k})"
               for c in tested if c.verdict in ("yes", "no")]  # fmt: skip
    found = (
        f"Decided: {len(decided)} of {len(tested)}{': ' if decided else ''}{list_words(decided) if decided else ''}."
    )
    return Section("Contrasts", ((None, (table,) if rows else ()),), finding=found)
