"""Methods ranked on every target: Friedman's test, Nemenyi's critical difference, and who beats whom (Demsar 2006).

A target is one observation here, whatever its metric and number of seeds: ranks need no common scale, and the tests
ask about other targets like these.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from promptprior.report.plots import method_style
from promptprior.report.results import Grid
from promptprior.report.section import format_number
from promptprior.report.statistics import SIGNIFICANT, TIE, holm, paired_permutation

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True)
class Ranking:
    """Mean ranks over targets, 1 the best; ties share their mean rank.

    `p` is Friedman's: how often ranks would differ this much if no method differed. Two methods differ by Nemenyi's
    test where their mean ranks are `critical` or more apart.
    """

    methods: tuple[str, ...]
    mean_ranks: tuple[float, ...]
    targets: int
    chi_square: float
    p: float
    critical: float

    @property
    def best_first(self) -> tuple[tuple[str, float], ...]:
        """Methods with their mean ranks, the best first."""
        return tuple(sorted(zip(self.methods, self.mean_ranks, strict=True), key=lambda pair: pair[1]))

    @property
    def cliques(self) -> tuple[tuple[str, ...], ...]:
        """The largest groups in which no two methods differ, each from its best to its worst; no single methods."""
        groups: list[tuple[str, ...]] = []
        for best, (_, rank) in enumerate(self.best_first):
            group = tuple(m for m, other in self.best_first[best:] if other - rank < self.critical)
            if len(group) > 1 and not (groups and set(group) <= set(groups[-1])):
                groups.append(group)
        return tuple(groups)

    def figure(self, grid: Grid) -> "Figure":
        """Mean ranks, the best on top; a shaded box holds methods that Nemenyi's test does not tell apart."""
        from plotly.graph_objects import Figure

        styles = [method_style(grid, method) for method, _ in self.best_first]
        names = [style.label for style in styles]
        figure = Figure()
        for place, (style, (_, rank)) in enumerate(zip(styles, self.best_first, strict=True)):
            colour, text = style.colour, f"{style.label}<br>mean rank {rank:.2f}"
            marker = {"color": colour, "symbol": style.symbol, "size": 12, "line": {"width": 2, "color": colour}}
            figure.add_scatter(
                x=[rank], y=[place], mode="markers", marker=marker, text=[text], hoverinfo="text", showlegend=False,
                cliponaxis=False,
            )  # fmt: skip
        order = [method for method, _ in self.best_first]
        for clique in self.cliques:
            best, worst = order.index(clique[0]), order.index(clique[-1])
            figure.add_shape(
                type="rect", layer="below", x0=self.best_first[best][1] - 0.03, x1=self.best_first[worst][1] + 0.03,
                y0=best - 0.3, y1=worst + 0.3, fillcolor="var(--muted)", opacity=0.18, line_width=0,
            )  # fmt: skip
        title = f"mean rank over {self.targets} targets; critical difference {self.critical:.2f}, Friedman p "
        figure.update_layout(height=120 + 30 * len(names))
        figure.update_xaxes(
            range=[0.8, len(names) + 0.2], dtick=1, fixedrange=True, title=title + format_number(self.p, "p_equals")
        )
        figure.update_yaxes(
            tickvals=list(range(len(names))), ticktext=names, range=[len(names) - 0.4, -0.6], fixedrange=True
        )
        return figure


def ranking(scores: Mapping[str, Sequence[float]]) -> Ranking:
    """Rank methods by their merits on the same targets, higher is better; what differs by less than 1e-9 ties.

    Friedman's chi-square is corrected for ties, and (0, p = 1) where all methods tie everywhere. Raises ValueError for
    fewer than three methods or two targets, of which there is nothing to test.
    """
    from scipy.stats import friedmanchisquare, rankdata

    table = np.array([list(row) for row in scores.values()], dtype=np.float64)  # [methods, targets]
    if table.ndim != 2 or len(table) < 3 or table.shape[1] < 2:
        raise ValueError(f"ranks need three methods and two targets; got shape {table.shape}")
    rounded = np.round(table / TIE)
    mean_ranks = rankdata(-rounded, axis=0).mean(1).tolist()
    all_tie = bool((rounded == rounded[0]).all())
    chi_square, p = (0.0, 1.0) if all_tie else friedmanchisquare(*rounded)
    critical = critical_difference(*table.shape)
    return Ranking(tuple(scores), tuple(mean_ranks), table.shape[1], float(chi_square), float(p), critical)


def critical_difference(methods: int, targets: int, level: float = 1 - SIGNIFICANT) -> float:
    """Nemenyi's critical difference of mean ranks: q sqrt(k (k + 1) / (6 N)), q the studentised range over sqrt 2.

    >>> round(critical_difference(4, 14), 2)  # Demsar's example
    1.25
    """
    from scipy.stats import studentized_range

    q = float(studentized_range.ppf(level, methods, np.inf)) / np.sqrt(2)
    return float(q * np.sqrt(methods * (methods + 1) / (6 * targets)))


@dataclass(frozen=True)
class PairwiseComparison:
    """Two methods on the targets both have: targets won, tied and lost by the first, and a p-value after Holm."""

    first: str
    second: str
    wins: int
    ties: int
    losses: int
    p: float


def pairwise_comparisons(scores: Mapping[str, Sequence[float]]) -> tuple[PairwiseComparison, ...]:
    """Every pair of methods on the same targets: a paired permutation test over targets, Holm over all pairs."""
    pairs = list(combinations(scores, 2))
    gaps = [np.subtract(scores[a], scores[b]) for a, b in pairs]
    corrected = holm([paired_permutation(gap.tolist()) for gap in gaps])
    outcomes = [(int((gap > TIE).sum()), int((np.abs(gap) <= TIE).sum()), int((gap < -TIE).sum())) for gap in gaps]
    return tuple(
        PairwiseComparison(a, b, *outcome, p) for (a, b), outcome, p in zip(pairs, outcomes, corrected, strict=True)
    )
