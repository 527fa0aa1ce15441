"""The tables that a comparison's findings make: for the page, for Markdown and for CSV."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from promptprior.report.cost_points import UNITS, cost_points, pareto_front, price, prior_of, shared_by
from promptprior.report.diagnostic_tables import diagnostic_tables, likeness_tables, retrieval_tables
from promptprior.report.findings import Comparison, Findings, Grid, Overall, counted, shared_runs
from promptprior.report.guard_analysis import guard_analysis
from promptprior.report.learning_curves import Adaptation, adaptation, steps_to_show
from promptprior.report.results import Row
from promptprior.report.similarity_gain import TaskSimilarity
from promptprior.report.statistics import NEAR_FLOOR, Interval, stratified_bootstrap
from promptprior.report.table import (
    EMPTY,
    Cell,
    Column,
    Table,
    amount,
    columns,
    count,
    number,
    p_text,
    percent,
    scored,
    signed,
    two_digits,
)


@dataclass(frozen=True)
class Section:
    """A part of the page: tables by k, the largest k last and open, or tables that hold for all (k None)."""

    title: str
    parts: tuple[tuple[int | None, tuple[Table, ...]], ...]


def sections(found: Findings, task_similarity: TaskSimilarity | None = None) -> list[Section]:
    """Every table there is something to put into, in the order a reader asks."""
    grid, each = found.grid, found.overall
    made = [
        Section(
            "Over all targets", (*((o.k, tuple(overall_tables(found, o))) for o in each), (None, shots_tables(found)))
        ),
        Section("Scores", tuple((o.k, (score_table(found, o.k),)) for o in each)),
        Section(
            "Learning curves of adaptation", tuple((o.k, adaptation_tables(grid, adaptation(grid, o))) for o in each)
        ),
        Section("With a guard", tuple((o.k, guard_tables(grid, o)) for o in each)),
        Section("Cost", (*((o.k, offer_tables(grid, o)) for o in each), (None, cost_tables(found)))),
        Section("Task similarity", ((None, likeness_tables(grid, task_similarity)),)),
        Section("Retrieval", ((None, retrieval_tables(grid)),)),
        Section("Other diagnostics", ((None, diagnostic_tables(grid)),)),
        Section("Failed cells", ((None, failure_tables(grid)),)),
    ]
    full = [Section(c.title, tuple((k, some) for k, some in c.parts if some)) for c in made]
    return [section for section in full if section.parts]


def tables(found: Findings, task_similarity: TaskSimilarity | None = None) -> list[Table]:
    """The same tables one after the other."""
    return [table for section in sections(found, task_similarity) for _, some in section.parts for table in some]


def overall_tables(found: Findings, overall: Overall) -> list[Table]:
    """What all methods come to at one k."""
    at_k = found.at(overall.k)
    return [
        *([aggregate_table(overall)] if overall.shared else []),
        *([against_table(found.grid, at_k, overall.k)] if at_k else []),
        *([duel_table(overall)] if len(overall.aggregates) > 1 else []),
    ]


def over(targets: Sequence[str]) -> str:
    """How many targets, and which."""
    plural = "s" * (len(targets) > 1)
    return f"the {len(targets)} target{plural} that every method has finished ({', '.join(targets)}), at common seeds"


# Scores -------------------------------------------------------------------------------------------------


def aggregate_table(overall: Overall) -> Table:
    """Mean, interquartile mean, median and mean rank of every method."""
    ranks = dict(overall.ranking.best_first) if overall.ranking else {}
    rows = [
        (
            Cell(a.method),
            scored(a.mean),
            scored(a.iqm),
            scored(a.median),
            number(ranks.get(a.method), two_digits),
        )
        for a in overall.aggregates
    ]
    return Table(
        f"overall-k{overall.k}",
        f"All targets, k = {overall.k}",
        f"Over {over(overall.shared)}. IQM is the mean of the middle half of all runs; median is the median target. "
        f"95% intervals resample seeds within targets. {rank_words(overall)}",
        columns("Method", ["Mean", "IQM", "Median"], ["Mean rank"]),
        tuple(rows),
    )


def rank_words(overall: Overall) -> str:
    """What the ranks' tests say, if there are ranks."""
    r = overall.ranking
    if r is None:
        return "Ranks need three methods and two targets."
    return (
        f"Mean rank: 1 is best on every target; Friedman p {p_equals(r.p)}; two methods differ by Nemenyi's test where "
        f"their mean ranks are at least {r.critical:.2f} apart."
    )


def p_equals(p: float) -> str:
    """A p-value after the letter.

    >>> p_equals(0.2), p_equals(0.0001)
    ('= 0.200', '< 0.001')
    """
    text = p_text(p)
    return text if text.startswith("<") else f"= {text}"


def against_table(grid: Grid, at_k: Mapping[str, Comparison], k: int) -> Table:
    """Every method against the baseline."""
    floor = list(dict.fromkeys(t for c in at_k.values() for t in c.gains.near_floor))
    undefined = list(dict.fromkeys(t for c in at_k.values() for t in c.gains.undefined))
    return Table(
        f"against-{grid.baseline}-k{k}",
        f"Against {grid.baseline}, k = {k}",
        "Paired by target and seed. By seed: each seed's mean over targets, which share its prior, is one observation. "
        f"ARG: mean relative gain over targets{floor_words(floor, undefined)}. P(better): the chance that a run beats "
        "one of the baseline. p permutes the signs of all differences, Holm corrects it for all comparisons here; "
        "p, targets permutes the signs of the targets' mean differences.",
        (
            *columns(
                "Method", ["Difference", "Difference by seed", "ARG", f"ARG, base ≥ {NEAR_FLOOR}"], ["Median gain"]
            ),
            *columns("Won / tied / lost", ["P(better)"], ["p", "p, Holm", "p, targets"]),
        ),
        tuple(against_row(at_k[m]) for m in grid.methods if m in at_k),
    )


def floor_words(floor: Sequence[str], undefined: Sequence[str]) -> str:
    """Where relative gains mislead or do not exist."""
    words = f"; the baseline is below {NEAR_FLOOR} on {', '.join(floor)}" if floor else ""
    return words + (f"; it is 0 or less, so that there is none, on {', '.join(undefined)}" if undefined else "")


def against_row(c: Comparison) -> tuple[Cell, ...]:
    """One comparison."""
    g = c.gains
    mark = c.verdict if c.verdict in ("better", "worse") else ""
    return (
        Cell(c.method),
        scored(c.difference, signed, mark),
        scored(c.by_seed, signed),
        scored(g.gain, percent),
        scored(g.above_floor, percent),
        number(g.median, percent),
        Cell(f"{g.wins} / {g.ties} / {g.losses}"),
        scored(c.improvement, two_digits),
        *(number(p, p_text) for p in (c.p, c.p_holm, c.p_targets)),
    )


def score_table(found: Findings, k: int) -> Table:
    """Every method on every target."""
    grid, at_k = found.grid, found.at(k)
    return Table(
        f"scores-k{k}",
        f"Scores, k = {k}",
        "Mean over seeds with its 95% interval (Student's t below thirty seeds, else BCa bootstrap). A mark says that "
        f"the interval of the paired difference from {grid.baseline} excludes 0, not corrected for many targets.",
        columns("Target", grid.methods),
        tuple(
            (target_cell(row), *(score_cell(grid, at_k.get(m), m, row.target, k) for m in grid.methods))
            for row in grid.targets
        ),
    )


def target_cell(row: Row) -> Cell:
    """A target with what is measured on it."""
    return Cell(row.target, f"{row.family} · {row.metric} · n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{row.n_test}")


def score_cell(grid: Grid, c: Comparison | None, method: str, target: str, k: int) -> Cell:
    """One method on one target, or why there is no score."""
    found = grid.cell(method, target, k)
    if found is None:
        failures = sum((row.method, row.target, row.k) == (method, target, k) for row in grid.failed)
        return Cell("failed" if failures else "missing")
    difference = next((d for d in c.targets if d.target == target), None) if c else None
    cell = scored(found, mark=difference.verdict if difference else "")
    most = max((len(seeds) for (_, _, at), seeds in grid.scores.items() if at == k), default=0)
    missing = most - len(grid.scores.get((method, target, k), ())) if (method, target, k) in grid.scores else 0
    so_far = f"{found.n} of {most} seeds"
    return replace(cell, detail=so_far if found.n == 1 else f"{cell.detail}, {so_far}") if missing else cell


def duel_table(overall: Overall) -> Table:
    """Who beats whom on how many targets."""
    methods = [a.method for a in overall.aggregates]
    found = {(d.first, d.second): (d.wins, d.losses, d.p) for d in overall.duels}
    found |= {(d.second, d.first): (d.losses, d.wins, d.p) for d in overall.duels}
    return Table(
        f"wins-k{overall.k}",
        f"Who beats whom, k = {overall.k}",
        f"On how many of the {len(overall.shared)} targets the row's method scores higher : lower than the column's. "
        "p: paired permutation test over targets, Holm over all pairs.",
        columns("|".join(["Method", *methods])),
        tuple((Cell(a), *(duel_cell(found.get((a, b))) for b in methods)) for a in methods),
    )


def duel_cell(found: tuple[int, int, float] | None) -> Cell:
    """Targets won and lost."""
    if found is None:
        return EMPTY
    wins, losses, p = found
    return Cell(f"{wins} : {losses}", f"p\N{NO-BREAK SPACE}{p_equals(p)}")


def shots_tables(found: Findings) -> tuple[Table, ...]:
    """Few-shot curves: the mean of every method at every k, over targets finished everywhere."""
    grid, ks = found.grid, found.grid.ks
    shared = [t for t in found.overall[0].shared if all(t in o.shared for o in found.overall)] if found.overall else []
    if len(ks) < 2 or not shared:
        return ()
    at = {o.k: shots_means(grid, o, shared) for o in found.overall}
    return (
        Table(
            "shots",
            "Few-shot curves",
            f"Mean over {over(shared)} and at every k.",
            columns("Method", [f"k = {k}" for k in ks]),
            tuple((Cell(m), *(scored(at[k][m]) for k in ks)) for m in grid.methods),
        ),
    )


def shots_means(grid: Grid, overall: Overall, targets: Sequence[str]) -> dict[str, Interval]:
    """The mean of every method over some targets at one k."""
    places = {target: overall.places[target] for target in targets}
    runs = {method: shared_runs(grid, method, places, overall.k) for method in grid.methods}
    return {method: stratified_bootstrap(of_method) for method, of_method in runs.items()}


# Adaptation and cost ------------------------------------------------------------------------------------


def adaptation_tables(grid: Grid, found: Adaptation) -> tuple[Table, ...]:
    """Learning curves of adaptation, where there are dev scores at several steps."""
    steps = steps_to_show(found)
    if len(steps) < 2:
        return ()
    base = next((t for t in found.tracks if t.method == grid.baseline), None)
    level = base.points[-1][1].estimate if base else None
    reached = [t.reaches(level) if level is not None else None for t in found.tracks]
    rows = [
        (Cell(t.method), *(scored(t.at(step)) for step in steps), number(first, count))
        for t, first in zip(found.tracks, reached, strict=True)
    ]
    return (
        Table(
            f"adaptation-k{found.k}",
            f"Learning curves of adaptation, k = {found.k}",
            f"Mean dev score after so many steps, over {len(found.targets)} targets ({', '.join(found.targets)}). Dev "
            "shots also chose step and learning rate, so that these scores flatter; they compare speeds. The last "
            f"column is the first step at which a method is where {grid.baseline} ends.",
            columns("Method", [f"step {step}" for step in steps], [f"reaches {grid.baseline}'s end"]),
            tuple(rows),
        ),
    )


def guard_tables(grid: Grid, overall: Overall) -> tuple[Table, ...]:
    """What a guard would have kept, where dev has judged both sides."""
    found = guard_analysis(grid, overall)
    if not found:
        return ()
    rows = [
        (Cell(s.method), scored(s.alone), scored(s.guarded), scored(s.gain, signed), number(s.kept, two_digits))
        for s in found
    ]
    return (
        Table(
            f"guarded-k{overall.k}",
            f"With a guard, k = {overall.k}",
            f"At every target and seed the method's prompt or that of {grid.baseline}, whichever the dev shots prefer "
            "(score, then NLL; what is equal stays with the method), scored on test: what adapt --guard would have "
            f"shipped if it did not also look at no prompt. Over {over(overall.shared)}.",
            columns("Method", ["Mean alone", "Mean guarded", f"Guarded minus {grid.baseline}"], ["Share kept"]),
            tuple(rows),
        ),
    )


def offer_tables(grid: Grid, overall: Overall) -> tuple[Table, ...]:
    """Score against cost, where all methods have finished some target."""
    return (offer_table(grid, overall),) if overall.shared else ()


def offer_table(grid: Grid, overall: Overall) -> Table:
    """Score against cost."""
    found = cost_points(grid, overall)
    fronts = {unit: pareto_front(found, unit, "share") for unit in ("seconds", "tokens")}
    rows = [
        (
            Cell(o.method),
            number(o.score, lambda value: f"{value:.3f}"),
            number(o.prices["seconds", "share"], amount),
            number(o.prices["tokens", "share"], amount),
            *(Cell("yes" if o.method in fronts[unit] else "") for unit in ("seconds", "tokens")),
        )
        for o in found
    ]
    return Table(
        f"pareto-k{overall.k}",
        f"Score against cost, k = {overall.k}",
        f"Mean score and mean price of a target, over {len(overall.shared)} targets; a price holds the target's share "
        "of its prior. On a front are the methods that no other matches for less or beats for as little.",
        (
            *columns("Method", (), ["Mean score", "Seconds", "Tokens read"]),
            *columns("Front in seconds|Front in tokens"),
        ),
        tuple(rows),
    )


def cost_tables(found: Findings) -> tuple[Table, ...]:
    """What cells of each method cost, and the size of what they train and store."""
    grid = found.grid
    if not grid.methods:
        return ()
    heads = [f"{unit.title()} {of}" for unit in UNITS for of in ("on the target", "with share", "of the prior")]
    return (
        Table(
            "costs",
            "Costs",
            "Means over the scored cells of a method. A prior is fitted once; its cost is shared equally by the cells "
            "that used it (with share), and given whole in the last column of each three.",
            (*columns("Method|Steps", (), ["Cells", *heads]), *columns("Numbers trained|Numbers stored")),
            tuple(cost_row(grid, method) for method in grid.methods),
        ),
    )


def cost_row(grid: Grid, method: str) -> tuple[Cell, ...]:
    """One method's costs."""
    rows, shared = [row for row in grid.rows if row.method == method], shared_by(grid)
    means = []
    for unit in UNITS:
        own = [price(row, unit, "target", 1) for row in rows]
        total = [price(row, unit, "share", shared[prior_of(row)]) for row in rows]
        whole = [getattr(row.cost, f"source_{unit}") for row in rows]
        means += [sum(values) / len(rows) for values in (own, total, whole)]
    return (
        Cell(method),
        Cell(counted([f"{row.steps:,}" for row in rows])),
        number(len(rows), count),
        *(number(value, amount) for value in means),
        *(Cell(between([getattr(row.parameters, name) for row in rows])) for name in ("trainable", "stored")),
    )


def between(values: Sequence[int]) -> str:
    """One number, or the least and the largest.

    >>> between([9216, 9216]), between([1, 2])
    ('9,216', '1 to 2')
    """
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def failure_tables(grid: Grid) -> tuple[Table, ...]:
    """Cells without a score."""
    if not grid.failed:
        return ()
    rows = [
        (
            Cell(row.cell[:12]),
            Cell(row.method),
            Cell(row.target),
            number(row.k, count),
            number(row.seed, str),
            Cell(row.error),
        )
        for row in grid.failed
    ]
    heads = (*columns("Cell|Method|Target"), Column("k", "number"), Column("Seed", "number"), Column("Error", "text"))
    return (Table("failed", "Failed cells", "", heads, tuple(rows)),)
