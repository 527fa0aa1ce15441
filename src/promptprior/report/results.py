"""One line of results.jsonl, what a cell (method x target x k x seed) came to, and the grid that all lines make.

The contract is strict both ways: a key that is missing, unknown or of another type is an error with its line. Only a
key that has a default may be missing: results written before it was known still load.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, Literal

from promptprior.config.mapping import C, from_mapping
from promptprior.cost import Cost
from promptprior.errors import DataError, SpecError
from promptprior.files import read_lines
from promptprior.report.statistics import UNBOUNDED, Interval, interval
from promptprior.tasks.metrics import METRICS

SeedScores = Mapping[int, float]
SharedSeeds = Mapping[str, frozenset[int]]
"""The seeds of each target that every method has finished."""


@dataclass(frozen=True)
class Point:
    """A learning curve at one step: mean loss over the rows of the batch, and the score on dev."""

    step: int
    train_loss: float | None
    dev_score: float | None
    dev_nll: float | None


@dataclass(frozen=True)
class CellCost:
    """What a cell cost: adapting to the target, and fitting the prior it started from (0 without one).

    `rows` and `tokens` are what the backbone read. A prior that many cells share has the whole of its
    source cost in each of them.
    """

    seconds: float
    rows: int
    tokens: int
    source_seconds: float
    source_rows: int
    source_tokens: int

    @classmethod
    def of(cls, target: Cost, source: Cost) -> "CellCost":
        """What adapting cost, and what its prior cost."""
        parts = (target.seconds, target.rows, target.tokens, source.seconds, source.rows, source.tokens)
        return cls(*parts)

    @property
    def target(self) -> Cost:
        """What adapting to the target cost."""
        return Cost(self.seconds, self.rows, self.tokens)

    @property
    def source(self) -> Cost:
        """What fitting its prior cost."""
        return Cost(self.source_seconds, self.source_rows, self.source_tokens)


@dataclass(frozen=True)
class Parameters:
    """How many numbers the target trained, and how many its prompt stores."""

    trainable: int
    stored: int


@dataclass(frozen=True)
class BackboneName:
    """Which backbone: its name and the fingerprint of its weights."""

    name: str
    fingerprint: str


@dataclass(frozen=True)
class ShotIds:
    """Ids of the examples that were learned from and of those that selected."""

    train_ids: tuple[str, ...]
    dev_ids: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """The result of one cell.

    `cell` is the content hash of everything that decides the result. `score` is `scores[metric]` on the
    test split; a failed cell has `status` "failed", `error`, and None for its score. `k` is 0 where a
    method uses no examples. `settings` are the values this cell ran with. Nothing here depends on when it
    ran, so equal cells give equal rows but for seconds.

    `diagnostics` are the method's own, by topic, as plain JSON; older results have none. Of "retrieval"
    the report shows what parameterisations.bank_diagnostics measures, draws `map` (for each name in `tasks`, the share
    of its texts that retrieve each token) and lists `tokens` (as bank_diagnostics.full_table has them). Plain values of
    other topics are listed.
    """

    cell: str
    method: str
    target: str
    family: str
    k: int
    seed: int
    split: str
    metric: str
    score: float | None
    scores: Mapping[str, float]
    dev_score: float | None
    steps: int
    best_step: int | None
    curve: tuple[Point, ...]
    settings: Mapping[str, Any]
    cost: CellCost
    parameters: Parameters
    sources: tuple[str, ...]
    n_test: int
    backbone: BackboneName
    shots: ShotIds
    versions: Mapping[str, str]
    status: Literal["ok", "failed"]
    error: str
    diagnostics: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_ok(self) -> bool:
        """Whether the cell has a score."""
        return self.status == "ok"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, in the order of the fields: one line of results.jsonl."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: object, where: str = "row") -> "Row":
        """A row from the object of its line. Raises DataError naming the key and `where` it stands."""
        row = parse(cls, value, where)
        if row.is_ok and row.score is None:
            raise DataError(f"{where}: score: an ok cell needs a number, got null")
        if not row.is_ok and not (row.score is None and row.error):
            raise DataError(f"{where}: a failed cell needs score null and an error")
        return row


def read_rows(path: Path) -> tuple[Row, ...]:
    """All rows of a results.jsonl; of a cell that stands there twice, the last. A missing file has none."""
    rows = (Row.from_json(value, f"{path}, row {i}") for i, value in enumerate(read_lines(path), start=1))
    return tuple({row.cell: row for row in rows}.values())


@dataclass(frozen=True)
class Grid:
    """The rows of a comparison by method, target, k and seed; `baseline` is the method that transfer must beat.

    Where two rows stand for the same place (a setting was changed in between), the last one counts.
    """

    all_rows: tuple[Row, ...]
    baseline: str

    @cached_property
    def by_place(self) -> dict[tuple[str, str, int, int], Row]:
        """The row of each method, target, k and seed."""
        return {(row.method, row.target, row.k, row.seed): row for row in self.all_rows}

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """Rows with a score."""
        return tuple(row for row in self.by_place.values() if row.is_ok)

    @cached_property
    def failed(self) -> tuple[Row, ...]:
        """Rows without one."""
        return tuple(row for row in self.by_place.values() if not row.is_ok)

    @cached_property
    def methods(self) -> tuple[str, ...]:
        """Methods that train nothing, then the baseline, then the others in order of appearance."""
        names = dict.fromkeys(row.method for row in self.rows)
        trained = {row.method for row in self.rows if row.steps}
        return tuple(sorted(names, key=lambda m: 1 if m == self.baseline else 2 if m in trained else 0))

    @cached_property
    def transfer(self) -> frozenset[str]:
        """Methods that learned from source tasks."""
        return frozenset(row.method for row in self.rows if row.sources)

    @cached_property
    def targets(self) -> dict[str, Row]:
        """One row of each target, which tells its family, metric and size; by family, then name."""
        rows = {row.target: row for row in reversed(self.rows)}
        return {t: rows[t] for t in sorted(rows, key=lambda target: (rows[target].family, target))}

    @cached_property
    def ks(self) -> tuple[int, ...]:
        """The numbers of shots compared; (0,) where nothing was trained."""
        return tuple(sorted({row.k for row in self.rows} - {0})) or ((0,) if self.rows else ())

    @cached_property
    def scores(self) -> Mapping[tuple[str, str, int], SeedScores]:
        """Score of each seed, for each method, target and k."""
        scores: dict[tuple[str, str, int], dict[int, float]] = {}
        for row in self.rows:
            assert row.score is not None  # rows hold ok cells only
            scores.setdefault((row.method, row.target, row.k), {})[row.seed] = row.score
        return scores

    @cached_property
    def intervals(self) -> Mapping[tuple[str, str, int], Interval]:
        """Mean and interval over seeds, within the metric's range, by method, target and k."""
        finished = [place for place in product(self.methods, self.targets, self.ks) if self.seed_scores(*place)]
        return {
            (m, t, k): interval(list(self.seed_scores(m, t, k).values()), bounds=self.bounds(t)) for m, t, k in finished
        }

    @cached_property
    def shared(self) -> Mapping[int, SharedSeeds]:
        """By k, the targets that every method has finished, with the seeds common to all methods that use shots."""
        shared: dict[int, dict[str, frozenset[int]]] = {k: {} for k in self.ks}
        for k, target in product(self.ks, self.targets):
            finished = [set(self.scores[m, target, k]) for m in self.methods if (m, target, k) in self.scores]
            seeds = set.intersection(*finished) if finished else set()
            if all(self.seed_scores(m, target, k) for m in self.methods) and (seeds or not finished):
                shared[k][target] = frozenset(seeds)
        return shared

    def bounds(self, target: str) -> tuple[float, float]:
        """The least and largest score of a target's metric; those of another package's metric are not known."""
        metric = METRICS.get(self.targets[target].metric)
        return metric.bounds if metric else UNBOUNDED

    def seed_scores(self, method: str, target: str, k: int) -> SeedScores:
        """Scores by seed. What needs no examples (k = 0) stands beside every k."""
        return self.scores.get((method, target, k)) or self.scores.get((method, target, 0), {})

    def shared_rows(self, method: str, k: int) -> dict[str, list[Row]]:
        """The rows of a method at the shared targets and seeds; what needs no examples stands beside all seeds."""
        rows = {}
        for target, seeds in self.shared[k].items():
            uses_shots = (method, target, k) in self.scores
            own_k = k if uses_shots else 0
            own_seeds = [s for s in self.scores[method, target, own_k] if s in seeds or not uses_shots]
            rows[target] = [self.by_place[method, target, own_k, seed] for seed in own_seeds]
        return rows

    def shared_runs(self, method: str, k: int) -> dict[str, list[float]]:
        """The scores of those rows, for each target in the order of its seeds."""
        rows = self.shared_rows(method, k)
        return {t: [self.scores[r.method, r.target, r.k][r.seed] for r in of_target] for t, of_target in rows.items()}


def parse(kind: type[C], value: object, where: str) -> C:
    """A JSON object as a dataclass, by the rules of config.mapping. Raises DataError naming key and `where`."""
    if not isinstance(value, Mapping):
        raise DataError(f"{where}: expected an object, got {value!r}")
    try:
        return from_mapping(kind, value, where)
    except SpecError as error:
        raise DataError(str(error)) from error
