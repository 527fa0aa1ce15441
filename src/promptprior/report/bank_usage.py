"""What prompts of a bank retrieved, gathered from the diagnostics of result rows: one map of tasks x tokens per run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log2
from typing import Any

from promptprior.report.findings import Grid
from promptprior.report.results import Row

TOPIC = "retrieval"


@dataclass(frozen=True)
class Use:
    """The banks of one method at one k and seed, a copy for each target.

    `cells` are the diagnostics of its targets; `map` has, for each task, the share of its texts that retrieve each
    token. A source that every copy saw is there once, as the first target's copy retrieves for it.
    """

    method: str
    k: int
    seed: int
    targets: tuple[str, ...]
    cells: tuple[Mapping[str, Any], ...]
    map: Mapping[str, Sequence[float]]

    @property
    def use(self) -> list[float]:
        """How often each token is retrieved, averaged over tasks."""
        return [sum(shares) / len(self.map) for shares in zip(*self.map.values(), strict=True)]

    @property
    def used(self) -> int:
        """Tokens that some text of some task retrieves."""
        return sum(share > 0 for share in self.use)

    @property
    def entropy(self) -> float:
        """Bits of how often tokens are retrieved; log2 of their number where all are used alike."""
        total = sum(self.use)
        return -sum(share / total * log2(share / total) for share in self.use if share > 0)

    def mean(self, name: str) -> float | None:
        """A number of the diagnostics, averaged over the targets that have it."""
        values = [cell[name] for cell in self.cells if isinstance(cell.get(name), int | float)]
        return sum(values) / len(values) if values else None


def uses(grid: Grid) -> tuple[Use, ...]:
    """What each method with a bank retrieved, at every k and seed."""
    rows = [row for row in grid.rows if isinstance(row.diagnostics.get(TOPIC), Mapping)]
    places = dict.fromkeys((row.method, row.k, row.seed) for row in rows)
    return tuple(use_of([row for row in rows if (row.method, row.k, row.seed) == place], *place) for place in places)


def use_of(rows: Sequence[Row], method: str, k: int, seed: int) -> Use:
    """The banks of one method at one k and seed."""
    said = [row.diagnostics[TOPIC] for row in rows]
    table: dict[str, Sequence[float]] = {}
    for cell in said:
        for task, shares in zip(cell.get("tasks", ()), cell.get("map", ()), strict=True):
            table.setdefault(task, shares)
    widest = max(map(len, table.values()), default=0)
    whole = {task: shares for task, shares in table.items() if len(shares) == widest}
    return Use(method, k, seed, tuple(row.target for row in rows), tuple(said), whole)


def other_numbers(grid: Grid) -> dict[str, dict[str, float]]:
    """Plain numbers of all other topics, as topic.key, averaged over the cells of each method."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in grid.rows:
        for name, value in leaves({t: said for t, said in row.diagnostics.items() if t != TOPIC}):
            found.setdefault(row.method, {}).setdefault(name, []).append(value)
    return {m: {name: sum(v) / len(v) for name, v in said.items()} for m, said in found.items()}


def leaves(value: Mapping[str, Any], above: str = "") -> list[tuple[str, float]]:
    """The numbers in a mapping by dotted key.

    >>> leaves({"a": {"b": 1, "c": "text"}, "d": 2.5})
    [('a.b', 1), ('d', 2.5)]
    """
    found: list[tuple[str, float]] = []
    for key, part in value.items():
        if isinstance(part, Mapping):
            found += leaves(part, f"{above}{key}.")
        elif isinstance(part, int | float) and not isinstance(part, bool):
            found.append((f"{above}{key}", part))
    return found
