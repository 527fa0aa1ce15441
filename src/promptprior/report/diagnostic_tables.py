"""The tables of what tasks and methods say of themselves: likeness of tasks, retrieval of banks, other diagnostics."""

from collections.abc import Sequence

from promptprior.report.bank_usage import Use, other_numbers, uses
from promptprior.report.findings import Grid
from promptprior.report.similarity_gain import MEASURES, Foretold, TaskSimilarity, gains, similarity_gain_correlation
from promptprior.report.table import EMPTY, Cell, Table, amount, columns, count, number, scored, two_digits


def likeness_tables(grid: Grid, found: TaskSimilarity | None) -> tuple[Table, ...]:
    """How like sources and targets are, and whether that foretells gains."""
    if found is None or not found.pairs:
        return ()
    told = similarity_gain_correlation(found, gains(grid))
    return (likeness_table(found), *((foretold_table(grid, told),) if told else ()))


def likeness_table(found: TaskSimilarity) -> Table:
    """Every pair by every measure."""
    return Table(
        "similarity",
        "Similarity of sources and targets",
        f"Measured on {found.backbone.name} with {found.shots} shots per class (seed {found.seed}) and {found.steps} "
        "steps from one common start. prompt, token, gradient: cosines of what training added to the prompt, of the "
        "same for its average token, and of the gradients at the start. label, format: overlap of answers and of the "
        "words of the template.",
        columns("Source|Target", (), MEASURES),
        tuple(
            (Cell(p.source), Cell(p.target), *(number(getattr(p, m), two_digits) for m in MEASURES))
            for p in sorted(found.pairs, key=lambda p: (p.target, -p.gradient))
        ),
    )


def foretold_table(grid: Grid, told: Sequence[Foretold]) -> Table:
    """The rank correlation of every measure with every method's gains."""
    methods = dict.fromkeys(one.method for one in told)
    of = {(one.method, one.measure): one for one in told}
    return Table(
        "similarity-gain",
        "Does similarity foretell gains?",
        f"Spearman's rank correlation of similarity with the gain over {grid.baseline} (difference in score, averaged "
        "over k and seeds); a point is a set of sources and a target, as like as its sources are on average. 95% "
        "intervals resample targets. With one set of sources it compares targets, not sources.",
        columns("Method", MEASURES, ["Points"]),
        tuple(
            (
                Cell(method),
                *(scored(of[method, m].correlation, two_digits, alone="too few") for m in MEASURES),
                number(len(of[method, MEASURES[0]].points), count),
            )
            for method in methods
        ),
    )


def retrieval_tables(grid: Grid) -> tuple[Table, ...]:
    """Whether retrieval is real, and which tokens it takes."""
    found = uses(grid)
    if not found:
        return ()
    shown = {use.method: use for use in sorted(found, key=lambda use: (use.k, -use.seed))}
    return (use_table(found), *(t for use in shown.values() for t in token_tables(use)))


USES = {
    "rows": "Tokens",
    "retrieved": "Per text",
    "rows_used": "Used",
    "dead_rows": "Dead",
    "entropy": "Entropy of use (bits)",
    "overlap_within_task": "Overlap in a task",
    "overlap_between_tasks": "Overlap between tasks",
    "overlap_if_random": "Overlap if random",
    "distinct_sets": "Distinct sets",
    "texts": "Texts",
}


def use_table(found: Sequence[Use]) -> Table:
    """The use of every bank."""
    return Table(
        "retrieval",
        "Is retrieval real?",
        "Means over the targets of a run. Overlap: mean Jaccard index of the tokens of two texts; 1 means that every "
        "text gets the same prompt. The last two columns put all tasks of a run together; tokens that no text of any "
        "task retrieves are dead.",
        (
            *columns("Method"),
            *columns("", (), ["k", "Seed", *USES.values(), "Dead over all tasks", "Entropy over all"]),
        ),
        tuple(use_row(use) for use in found),
    )


def use_row(use: Use) -> tuple[Cell, ...]:
    """One run's use."""
    means = (number(use.mean(name), whole_or_amount) for name in USES)
    size = len(use.use)
    over_all = (number(size - use.used, count), number(use.entropy, amount)) if size else (EMPTY, EMPTY)
    return (Cell(use.method), number(use.k, count), number(use.seed, str), *means, *over_all)


def whole_or_amount(value: float) -> str:
    """A count without digits, another number with three.

    >>> whole_or_amount(40.0), whole_or_amount(4.6)
    ('40', '4.60')
    """
    return count(value) if value == round(value) else amount(value)


def token_tables(use: Use, top: int = 12) -> tuple[Table, ...]:
    """The most used tokens of one bank, where the diagnostics list them."""
    tokens = use.cells[0].get("tokens", ())[:top]
    if not tokens:
        return ()
    rows = [
        (
            Cell(str(token["row"])),
            Cell(", ".join(repr(str(word)) for word in token["words"])),
            number(token["share"], two_digits),
            number(token["rms"], two_digits),
        )
        for token in tokens
    ]
    return (
        Table(
            f"tokens-{use.method}",
            f"Most used tokens of {use.method}",
            f"Bank adapted to {use.targets[0]} with k = {use.k}, seed {use.seed}: the share of texts that retrieve a "
            "token, its size in units of the embedding scale, and the words whose embeddings lie nearest by cosine.",
            columns("Token|Nearest words", (), ["Share of texts", "Size"]),
            tuple(rows),
        ),
    )


def diagnostic_tables(grid: Grid) -> tuple[Table, ...]:
    """Plain numbers that methods say of themselves."""
    rows = [
        (Cell(method), Cell(name), number(value, amount))
        for method, said in other_numbers(grid).items()
        for name, value in said.items()
    ]
    note = "Means over the cells of a method."
    return (
        (Table("diagnostics", "Diagnostics", note, columns("Method|Name", (), ["Mean"]), tuple(rows)),) if rows else ()
    )
