"""The scores of all methods: on every target, over all targets that every method has finished, and against shots."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from promptprior.report.gains import Comparison, gain_table
from promptprior.report.plots import escaped, interval_trace, method_style, plot_label
from promptprior.report.ranks import PairwiseComparison, Ranking, pairwise_comparisons, ranking
from promptprior.report.results import Grid
from promptprior.report.section import (
    EMPTY,
    NO_BREAK,
    Control,
    Plot,
    Section,
    Table,
    TableCell,
    Value,
    columns,
    format_number,
    interval_cell,
    list_words,
    make_table,
)
from promptprior.report.statistics import Aggregate, Interval, stratified_bootstrap

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

MEAN_TARGET = ""  # stands for the mean over targets among the targets of the few-shot curves


@dataclass(frozen=True)
class Overall:
    """What all methods come to at one k on the targets and seeds that each has finished; no ranking of few.

    `aggregates` has, for each method, its "mean", "iqm" and "median" over these targets.
    """

    k: int
    targets: tuple[str, ...]
    aggregates: Mapping[str, Mapping[Aggregate, Interval]]
    ranking: Ranking | None
    pairs: tuple[PairwiseComparison, ...]
    sign_note: str = ""

    @classmethod
    def of(cls, grid: Grid, k: int) -> "Overall":
        """Aggregates, ranks and pairwise comparisons at one k."""
        targets = tuple(grid.shared[k])
        if not targets:
            return cls(k, (), {}, None, ())
        runs = {method: grid.shared_runs[method, k] for method in grid.methods}
        means = {method: [sum(x) / len(x) for x in of_method.values()] for method, of_method in runs.items()}
        kinds: tuple[Aggregate, ...] = ("mean", "iqm", "median")
        aggregates = {
            m: {kind: stratified_bootstrap(of_method, kind) for kind in kinds} for m, of_method in runs.items()
        }
        can_rank = len(means) > 2 and len(targets) > 1
        ranks, pairs = ranking(means) if can_rank else None, pairwise_comparisons(means)
        return cls(k, targets, aggregates, ranks, pairs, grid.sign_note)

    def table(self) -> Table:
        """Mean, interquartile mean, median and mean rank of every method."""
        ranks = self.ranking.mean_ranks if self.ranking else {}
        rank_note = "Ranks need three methods and two targets."
        if self.ranking:
            rank_note = (
                f"Mean rank: 1 is best on every target; Friedman p {format_number(self.ranking.p, 'p_equals')}; two "
                "methods differ by Nemenyi's test where their mean ranks are at least "
                f"{self.ranking.critical:.2f} apart."
            )
        return make_table(
            f"overall-k{self.k}",
            f"All targets, k = {self.k}",
            f"Over {shared_words(self.targets)}. IQM is the mean of the middle half of all runs; median is the median "
            f"target. 95% intervals resample seeds within targets. {rank_note}{self.sign_note}",
            columns("Method", ["Mean", "IQM", "Median"], {"Mean rank": "two_digits"}),
            [(method, *of_method.values(), ranks.get(method)) for method, of_method in self.aggregates.items()],
        )

    def wins_table(self) -> Table:
        """Who beats whom on how many targets."""
        outcomes = {(pair.first, pair.second): (pair.wins, pair.losses, pair.p) for pair in self.pairs}
        outcomes |= {(pair.second, pair.first): (pair.losses, pair.wins, pair.p) for pair in self.pairs}
        cells = {
            both: TableCell(f"{wins} : {losses}", f"p{NO_BREAK}{format_number(p, 'p_equals')}")
            for both, (wins, losses, p) in outcomes.items()
        }
        return make_table(
            f"wins-k{self.k}",
            f"Who beats whom, k = {self.k}",
            f"On how many of the {len(self.targets)} targets the row's method scores better : worse than the column's. "
            "p: paired permutation test over targets, Holm over all pairs.",
            columns("|".join(["Method", *self.aggregates])),
            [(a, *(cells.get((a, b), EMPTY) for b in self.aggregates)) for a in self.aggregates],
        )


def shared_words(targets: Sequence[str]) -> str:
    """How many targets, and which."""
    plural = "s" * (len(targets) > 1)
    return f"the {len(targets)} target{plural} that every method has finished ({', '.join(targets)}), at common seeds"


def score_sections(grid: Grid, compared: Sequence[Comparison]) -> tuple[Section, Section]:
    """The sections over all targets and of single targets, with their plots."""
    all_overall = {k: Overall.of(grid, k) for k in grid.ks}
    parts: list[tuple[int | None, tuple[Table, ...]]] = []
    scores = []
    for k, o in all_overall.items():
        at_k = {c.method: c for c in compared if c.k == k}
        tables = [o.table()] if o.targets else []
        tables += [gain_table(grid, at_k, k)] if at_k else []
        tables += [o.wins_table()] if len(o.aggregates) > 1 else []
        parts.append((k, tuple(tables)))
        scores.append((k, (_score_table(grid, at_k, k),)))

    # Few-shot curves: the mean of every method at every k, over targets finished everywhere.
    targets = [t for t in grid.targets if all(t in grid.shared[k] for k in grid.ks)]
    means: dict[str, dict[int, Interval]] = {}
    if len(grid.ks) > 1 and targets:
        means = {
            m: {k: stratified_bootstrap({t: grid.shared_runs[m, k][t] for t in targets}) for k in grid.ks}
            for m in grid.methods
        }
        note = f"Mean over {shared_words(targets)} and at every k.{grid.sign_note}"
        heads = columns("Method", [f"k = {k}" for k in grid.ks])
        rows: list[Sequence[Value]] = [(method, *of_method.values()) for method, of_method in means.items()]
        parts.append((None, (make_table("shots", "Few-shot curves", note, heads, rows),)))
    plots = _score_plots(grid, all_overall, means) if grid.ks else ()

    overall, single = [], []  # what is found at each k
    for k, o in all_overall.items():
        averages = {method: of_method["mean"].estimate for method, of_method in o.aggregates.items()}
        if len(averages) > 1:
            best = max(averages, key=averages.__getitem__)
            shown = [m for m in dict.fromkeys((best, grid.baseline)) if m in averages]
            levels = list_words([f"{m} {format_number(averages[m], 'score')}" for m in shown])
            overall.append(f"k = {k}: {best} has the highest mean over {len(o.targets)} targets ({levels}).")
        tops, several = Counter[str](), 0
        for target in grid.targets:
            merits = {
                m: grid.merit(target, i.estimate) for m in grid.methods if (i := grid.intervals.get((m, target, k)))
            }
            several += len(merits) > 1
            tops.update(m for m, merit in merits.items() if len(merits) > 1 and merit == max(merits.values()))
        if tops:
            counts = list_words([f"{method} on {n}" for method, n in tops.most_common()])
            single.append(f"k = {k}: of {several} targets, the best mean is that of {counts}.")
    return (
        Section("Over all targets", tuple(parts), plots, " ".join(overall)),
        Section("Scores", tuple(scores), finding=" ".join(single)),
    )


def metric_label(grid: Grid, target: str) -> str:
    """A target's metric, and its direction where lower is better."""
    return grid.targets[target].metric + (" (lower is better)" if target in grid.lower_is_better else "")


def _score_table(grid: Grid, compared: Mapping[str, Comparison], k: int) -> Table:
    """Every method on every target, or why there is no score."""
    most = max((len(seeds) for (_, _, at), seeds in grid.scores.items() if at == k), default=0)
    failed = {(row.method, row.target) for row in grid.failed if row.k in (0, k)}
    verdicts = {(method, t): d.verdict for method, c in compared.items() for t, d in c.targets.items()}
    rows: list[Sequence[Value]] = []
    for target, row in grid.targets.items():
        detail = f"{row.family} · {metric_label(grid, target)} · n{NO_BREAK}={NO_BREAK}{row.n_test}"
        cells: list[Value] = [TableCell(target, detail)]
        for method in grid.methods:
            mean = grid.intervals.get((method, target, k))
            if mean is None:
                cells.append(TableCell("failed" if (method, target) in failed else "missing"))
                continue
            cell = interval_cell(mean, verdict=verdicts.get((method, target), ""))
            if len(grid.scores.get((method, target, k), range(most))) != most:
                so_far = f"{mean.n} of {most} seeds"
                cell = replace(cell, detail=so_far if mean.n == 1 else f"{cell.detail}, {so_far}")
            cells.append(cell)
        rows.append([*cells, *([grid.constants.get(target)] if grid.constants else [])])
    note = (
        "Mean over seeds with its 95% interval (Student's t below thirty seeds, else BCa bootstrap). A triangle says "
        f"that the interval of the paired difference from {grid.baseline} excludes 0, not corrected for many targets."
    )
    if grid.constants:
        note += " Best constant: the best answer that is the same for every text, picked by the test labels."
    heads = columns("Target", grid.methods, ["Best constant"] if grid.constants else ())
    return make_table(f"scores-k{k}", f"Scores, k = {k}", note, heads, rows)


def _score_plots(
    grid: Grid, all_overall: Mapping[int, Overall], means: Mapping[str, Mapping[int, Interval]]
) -> tuple[Plot, ...]:
    """Scores by target, few-shot curves (`means` by method and k) and ranks, as far as there are any."""
    plots = [
        Plot(
            "scores",
            "Score by method and target",
            "Mean over seeds with its 95% interval, which may run out of the picture; ticks are single runs"
            + ("; dotted lines are the best constant answer." if grid.constants else "."),
            "Score of each method on each target. The table of scores holds the same numbers.",
            (Control("k", {k: str(k) for k in grid.ks}, grid.ks[-1]),),
            lambda k: score_figure(grid, k),
        )
    ]
    if len(grid.ks) > 1:
        options = {MEAN_TARGET: "mean over targets"} if means else {}
        options |= {target: target for target in grid.targets}
        plots.append(
            Plot(
                "shots",
                "Few-shot curves",
                "Score against the number of shots k.",
                "Score of each method against the number of shots.",
                (Control("target", options, next(iter(options))),),
                lambda target: shots_figure(grid, means, target),
            )
        )
    rankings = {k: o.ranking for k, o in all_overall.items() if o.ranking}
    if rankings:
        plots.append(
            Plot(
                "ranks",
                "Mean ranks",
                "Rank over targets, 1 is best. Methods that share a shaded box lie less than Nemenyi's critical "
                "difference apart.",
                "Mean rank of each method. The table over all targets holds the same numbers.",
                (Control("k", {k: str(k) for k in rankings}, max(rankings)),),
                lambda k: ranks_figure(grid, rankings[k]),
            )
        )
    return tuple(plots)


def score_figure(grid: Grid, k: int) -> "Figure":
    """Score by method and target: one band per target, its name on top, methods one below the other inside it."""
    from plotly.graph_objects import Figure

    figure, targets, runs, ends = Figure(), list(grid.targets), [], []
    for m, method in enumerate(grid.methods):
        style = method_style(grid, method)
        intervals = {t: i for t in targets if (i := grid.intervals.get((method, t, k)))}
        shift = 0.56 * m / (len(grid.methods) - 1) - 0.2 if len(grid.methods) > 1 else 0
        heights = {t: targets.index(t) + shift for t in intervals}
        scores = [(t, s, score) for t in intervals for s, score in grid.seed_scores[method, t, k].items()]
        runs += [score for _, _, score in scores]
        ends += [(i.low, i.high) for i in intervals.values() if i.low is not None and i.high is not None]
        figure.add_scatter(
            x=[score for _, _, score in scores], y=[heights[t] for t, _, _ in scores], mode="markers",
            name=style.label, legendgroup=style.name, showlegend=False, hoverinfo="text",
            text=[f"{style.name}<br>seed {s}: {format_number(score, 'score')}" for _, s, score in scores],
            marker={"size": 6, "symbol": "line-ns", "opacity": 0.75, "line": {"width": 1.5, "color": style.colour}},
        )  # fmt: skip
        figure.add_scatter(
            **interval_trace(style, {escaped(t): i for t, i in intervals.items()}, axis="x"),
            y=list(heights.values()), mode="markers", legendgroup=style.name,
            marker={"size": 10, "color": style.colour, "symbol": style.symbol,
                    "line": {"width": 1.5, "color": style.colour}},
        )  # fmt: skip
    runs += grid.constants.values()
    # The range of all runs, and of intervals as far as they do not dwarf it: of two seeds they are many times wider.
    low, high = min(runs, default=0.0), max(runs, default=1.0)
    room = 0.3 * max(high - low, 0.1)
    left = max(low - room, min([low, *(end for end, _ in ends)])) - room / 6
    right = min(high + room, max([high, *(end for _, end in ends)])) + room / 6
    figure.update_layout(height=110 + len(targets) * (30 + 17 * len(grid.methods)))
    for target, value in grid.constants.items():
        place = targets.index(target)
        figure.add_shape(type="line", x0=value, x1=value, y0=place - 0.3, y1=place + 0.46, layer="below",
                         line={"color": "var(--muted)", "width": 1, "dash": "dot"})  # fmt: skip
    figure.update_xaxes(title="score on test", range=[left, right])
    figure.update_yaxes(range=[len(targets) - 0.5, -0.62], showticklabels=False, showgrid=False, fixedrange=True)
    for place, target in enumerate(grid.targets):
        words = f"<b>{plot_label(target)}</b>  {plot_label(metric_label(grid, target))}"
        figure.add_annotation(
            text=words, xref="paper", x=0, xanchor="left", y=place - 0.4, align="left", font_size=12, showarrow=False
        )
        if place:
            figure.add_shape(type="line", xref="paper", x0=0, x1=1, y0=place - 0.48, y1=place - 0.48,
                             line={"color": "var(--line)", "width": 1})  # fmt: skip
    return figure


def shots_figure(grid: Grid, means: Mapping[str, Mapping[int, Interval]], target: str) -> "Figure":
    """Score against k on one target, or every method's mean over targets; what trains nothing is a level line."""
    from plotly.graph_objects import Figure

    figure = Figure()
    for method in grid.methods:
        of_target = {k: i for (m, t, k), i in grid.intervals.items() if (m, t) == (method, target)}
        intervals = means.get(method, {}) if target == MEAN_TARGET else of_target
        if not intervals:
            continue
        style = method_style(grid, method)
        trace = interval_trace(style, {f"k = {k}": i for k, i in intervals.items()})
        trace |= {"mode": "lines+markers", "line": {"color": style.colour, "width": 2, "dash": "solid"}}
        if not any(row.k for row in grid.rows if row.method == method):
            trace |= {"mode": "lines", "line": {"color": style.colour, "width": 2, "dash": "dash"}, "error_y": None}
        marker = {"color": style.colour, "symbol": style.symbol, "size": 9}
        figure.add_scatter(x=list(intervals), marker=marker, **trace)
    figure.update_xaxes(type="log", tickvals=grid.ks, ticktext=[str(k) for k in grid.ks], title="shots k")
    is_lower = target in grid.lower_is_better
    figure.update_yaxes(title=f"{plot_label(metric_label(grid, target))} on test" if is_lower else "score on test")
    return figure


def ranks_figure(grid: Grid, ranking: Ranking) -> "Figure":
    """Mean ranks, the best on top; a shaded box holds methods that Nemenyi's test does not tell apart."""
    from plotly.graph_objects import Figure

    styles = [method_style(grid, method) for method in ranking.mean_ranks]
    names, ranks = [style.label for style in styles], list(ranking.mean_ranks.values())
    figure = Figure()
    for place, (style, rank) in enumerate(zip(styles, ranks, strict=True)):
        colour, text = style.colour, f"{style.label}<br>mean rank {rank:.2f}"
        marker = {"color": colour, "symbol": style.symbol, "size": 12, "line": {"width": 2, "color": colour}}
        figure.add_scatter(
            x=[rank], y=[place], mode="markers", marker=marker, text=[text], hoverinfo="text", showlegend=False,
            cliponaxis=False,
        )  # fmt: skip
    order = list(ranking.mean_ranks)
    for clique in ranking.cliques:
        best, worst = order.index(clique[0]), order.index(clique[-1])
        figure.add_shape(
            type="rect", layer="below", x0=ranks[best] - 0.03, x1=ranks[worst] + 0.03, y0=best - 0.3, y1=worst + 0.3,
            fillcolor="var(--muted)", opacity=0.18, line_width=0,
        )  # fmt: skip
    title = f"mean rank over {ranking.targets} targets<br>critical difference {ranking.critical:.2f}<br>Friedman p "
    figure.update_layout(height=120 + 30 * len(names))
    figure.update_xaxes(
        range=[0.8, len(names) + 0.2], dtick=1, fixedrange=True, title=title + format_number(ranking.p, "p_equals")
    )
    figure.update_yaxes(
        tickvals=list(range(len(names))), ticktext=names, range=[len(names) - 0.4, -0.6], fixedrange=True
    )
    return figure
