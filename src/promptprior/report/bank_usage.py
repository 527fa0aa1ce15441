"""What methods say of themselves: what prompts of a bank retrieved, what `auto` chose, plain numbers of the rest."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log2
from typing import TYPE_CHECKING, Any

from promptprior.config.mapping import flat_items
from promptprior.report.plots import heatmap
from promptprior.report.results import Grid
from promptprior.report.section import (
    Control,
    Plot,
    Section,
    Table,
    columns,
    format_number,
    make_table,
    number_cell,
)

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

TOPIC, CHOICE = "retrieval", "auto"
MAP_TOKENS = 150  # tokens of a bank that are drawn
TOP_TOKENS = 12  # tokens of a bank that are listed
RETRIEVAL_HEADS = {
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


@dataclass(frozen=True)
class BankUsage:
    """The banks of one method at one k and seed, a copy for each target.

    `diagnostics` has one mapping for each target; `map` has, for each task, the share of its texts that retrieve each
    token. A source that every copy saw is there once, as the first target's copy retrieves for it. `shares` is how
    often each token is retrieved, averaged over tasks, `used` how many tokens some text retrieves, `entropy` that of
    `shares` in bits: log2 of their number where all are used alike.
    """

    method: str
    k: int
    seed: int
    targets: tuple[str, ...]
    diagnostics: tuple[Mapping[str, Any], ...]
    map: Mapping[str, Sequence[float]]
    shares: tuple[float, ...]
    used: int
    entropy: float

    def mean(self, name: str) -> float | None:
        """A number of the diagnostics, averaged over the targets that have it."""
        values = [of_target[name] for of_target in self.diagnostics if isinstance(of_target.get(name), int | float)]
        return sum(values) / len(values) if values else None

    def token_tables(self) -> tuple[Table, ...]:
        """The most used tokens of the first target's bank, where the diagnostics list them."""
        rows = [
            (str(token["row"]), ", ".join(repr(str(word)) for word in token["words"]), token["share"], token["rms"])
            for token in self.diagnostics[0].get("tokens", ())[:TOP_TOKENS]
        ]
        note = (
            f"Bank adapted to {self.targets[0]} with k = {self.k}, seed {self.seed}: the share of texts that retrieve "
            "a token, its size in units of the embedding scale, and the words whose embeddings lie nearest by cosine."
        )
        heads = columns("Token|Nearest words", (), {"Share of texts": "two_digits", "Size": "two_digits"})
        title = f"Most used tokens of {self.method}"
        return (make_table(f"tokens-{self.method}", title, note, heads, rows),) if rows else ()

    def figure(self) -> "Figure":
        """Which tokens the texts of each task retrieve, the most used tokens first."""
        shares = self.shares
        order = sorted(range(len(shares)), key=lambda token: -shares[token])
        tokens = [token for token in order if shares[token] > 0][:MAP_TOKENS]
        values = [[of_task[token] for token in tokens] for of_task in self.map.values()]
        figure = heatmap([str(token) for token in tokens], list(self.map), values, (0, 1), ", token ")
        figure.update_layout(height=130 + 26 * len(self.map))
        title = f"tokens, most used first:<br>{len(tokens)} of {self.used} used, of {len(shares)}"
        figure.update_xaxes(title=title, showticklabels=len(tokens) <= 30)
        return figure


def bank_usages(grid: Grid) -> tuple[BankUsage, ...]:
    """What each method with a bank retrieved, at every k and seed."""
    rows = [row for row in grid.rows if isinstance(row.diagnostics.get(TOPIC), Mapping)]
    usages = []
    for run in dict.fromkeys((row.method, row.k, row.seed) for row in rows):
        of_run = [row for row in rows if (row.method, row.k, row.seed) == run]
        table: dict[str, Sequence[float]] = {}
        for retrieval in (row.diagnostics[TOPIC] for row in of_run):
            for task, shares in zip(retrieval.get("tasks", ()), retrieval.get("map", ()), strict=True):
                table.setdefault(task, shares)
        widest = max(map(len, table.values()), default=0)
        whole = {task: shares for task, shares in table.items() if len(shares) == widest}
        shares = tuple(sum(of_tasks) / len(whole) for of_tasks in zip(*whole.values(), strict=True))
        entropy = -sum(share / sum(shares) * log2(share / sum(shares)) for share in shares if share > 0)
        diagnostics = tuple(row.diagnostics[TOPIC] for row in of_run)
        targets = tuple(row.target for row in of_run)
        used = sum(share > 0 for share in shares)
        usages.append(BankUsage(*run, targets, diagnostics, whole, shares, used, entropy))
    return tuple(usages)


def diagnostic_sections(grid: Grid) -> tuple[Section, ...]:
    """Whether retrieval is real and which tokens it takes; and plain numbers of all other topics."""
    usages = bank_usages(grid)
    rows = []
    for usage in usages:
        means = [usage.mean(name) for name in RETRIEVAL_HEADS]
        cells = [number_cell(mean, "count" if mean == round(mean or 0) else "amount") for mean in means]
        over_all = (len(usage.shares) - usage.used, usage.entropy) if usage.shares else (None, None)
        rows.append((usage.method, usage.k, usage.seed, *cells, *over_all))
    table = make_table(
        "retrieval",
        "Is retrieval real?",
        "Means over the targets of a run. Overlap: mean Jaccard index of the tokens of two texts; 1 means that every "
        "text gets the same prompt. The last two columns put all tasks of a run together; tokens that no text of any "
        "task retrieves are dead.",
        (
            *columns("Method", (), {"k": "count", "Seed": "plain"}),
            *columns("", (), RETRIEVAL_HEADS.values()),
            *columns("", (), {"Dead over all tasks": "count", "Entropy over all": "amount"}),
        ),
        rows,
    )
    # Of every method the tokens of the largest k and the first seed; a map of the first seed for each k.
    listed = {usage.method: usage for usage in sorted(usages, key=lambda usage: (usage.k, -usage.seed))}
    drawn = {(usage.method, usage.k): usage for usage in reversed(usages)}
    options = dict(enumerate(usage for usage in usages if usage.map and drawn[usage.method, usage.k] is usage))
    plot = Plot(
        "map",
        "Tasks and tokens",
        "The share of a task's texts that retrieve each token of the bank, the most used tokens first. Equal rows mean "
        "that tasks share one prompt.",
        "Share of each task's texts that retrieve each token.",
        (Control("bank", {i: f"{u.method}, k = {u.k}, seed {u.seed}" for i, u in options.items()}, 0),),
        lambda i: options[i].figure(),
        is_overview=False,
    )
    tables = (table, *(token_table for usage in listed.values() for token_table in usage.token_tables()))
    found = []
    for usage in listed.values():
        overlap, chance = usage.mean("overlap_within_task"), usage.mean("overlap_if_random")
        if overlap is not None and chance is not None:
            share, by_chance = (format_number(value, "two_digits") for value in (overlap, chance))
            what = f"two texts of a task share {share} of their tokens, by chance {by_chance}"
            found.append(f"{usage.method}, k = {usage.k}: {what}.")
    parts = ((None, tables if usages else ()),)
    retrieval = Section("Retrieval", parts, (plot,) if options else (), " ".join(found))

    # How often methods that choose among others took which, by their rows' "chosen".
    chosen = Counter(
        (row.method, row.k, str(row.diagnostics[CHOICE].get("chosen")))
        for row in grid.rows
        if isinstance(row.diagnostics.get(CHOICE), Mapping)
    )
    cells_of = Counter[tuple[str, int]]()
    for (method, k, _), count in chosen.items():
        cells_of[method, k] += count
    choices = make_table(
        "chosen",
        "Which candidate was chosen",
        "By held-out examples of the shots, in how many cells of all targets and seeds; a method's own name stands for "
        "its candidates together.",
        (*columns("Method", (), {"k": "count"}), *columns("Chosen", (), {"Cells": "count", "Share": "two_digits"})),
        [(m, k, name, count, count / cells_of[m, k]) for (m, k, name), count in chosen.most_common()],
    )

    numbers: dict[str, dict[str, list[float]]] = {}  # method -> topic.key -> the values of its cells
    for row in grid.rows:
        others = {topic: part for topic, part in row.diagnostics.items() if topic not in (TOPIC, CHOICE)}
        for name, value in flat_items(others):
            if isinstance(value, int | float) and not isinstance(value, bool):
                numbers.setdefault(row.method, {}).setdefault(name, []).append(value)
    plain = [(m, name, sum(x) / len(x)) for m, of_method in numbers.items() for name, x in of_method.items()]
    note, heads = "Means over the cells of a method.", columns("Method|Name", (), {"Mean": "amount"})
    tables = (make_table("diagnostics", "Diagnostics", note, heads, plain),) if plain else ()
    most = {(m, k): (name, n) for (m, k, name), n in reversed(chosen.most_common())}
    often = [
        f"{m}, k = {k}: most often {name}, in {n} of {cells_of[m, k]} cells." for (m, k), (name, n) in most.items()
    ]
    choice_section = Section("Choices", ((None, (choices,) if chosen else ()),), finding=" ".join(often))
    return retrieval, choice_section, Section("Other diagnostics", ((None, tables),))
