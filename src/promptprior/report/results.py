"""One line of results.jsonl, what a cell (method x target x k x seed) came to, and the grid that all lines make.

The contract is strict both ways: a key that is missing, unknown or of another type is an error with its line. Only a
key that has a default may be missing: results written before it was known still load.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal

from promptprior.config.comparison_folder import WANTED
from promptprior.config.mapping import C, flat_items, from_mapping, shorten, to_mapping
from promptprior.cost import Cost
from promptprior.errors import DataError, SpecError
from promptprior.files import read_json, read_lines
from promptprior.report.statistics import UNBOUNDED, Interval, interval
from promptprior.tasks.metrics import METRICS, Metric, metric

SeedScores = Mapping[int, float]
TABLE_SUFFIXES = (".csv", ".parquet")
LARGEST = 1e30  # of the numbers in a row: sums and squares of them are still numbers
NO_LESS = {"least": 0}  # than nothing


@dataclass(frozen=True)
class Point:
    """A learning curve at one step: mean loss over the rows of the batch and NLL on dev, both in nats, and the score on
    dev."""

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

    seconds: float = field(metadata=NO_LESS)
    rows: int = field(metadata=NO_LESS)
    tokens: int = field(metadata=NO_LESS)
    source_seconds: float = field(metadata=NO_LESS)
    source_rows: int = field(metadata=NO_LESS)
    source_tokens: int = field(metadata=NO_LESS)

    @classmethod
    def of(cls, target: Cost, source: Cost) -> "CellCost":
        """What adapting cost, and what its prior cost."""
        parts = (target.seconds, target.rows, target.tokens, source.seconds, source.rows, source.tokens)
        return cls(*parts)

    @property
    def source(self) -> Cost:
        """What fitting its prior cost."""
        return Cost(self.source_seconds, self.source_rows, self.source_tokens)


@dataclass(frozen=True)
class Wanted:
    """What a comparison set out to do: the hashes of its cells, and what it left out and why, a line each."""

    cells: tuple[str, ...]
    left_out: tuple[str, ...] = ()


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

    `constant` is the score of the best answer that ignores the text, on the same test rows; None for tasks without
    classes, and in older results.

    `diagnostics` are the method's own, by topic, as plain JSON; older results have none. Of "retrieval"
    the report shows what parameterisations.retrieval.bank_diagnostics measures, draws `map` (for each name in `tasks`,
    the share of its texts that retrieve each token) and lists `tokens` (as bank_diagnostics.full_table has them). Of
    "auto" it counts what was `chosen`. Plain values of other topics are listed.
    """

    cell: str
    method: str
    target: str
    family: str
    k: int = field(metadata=NO_LESS)
    seed: int = field(metadata=NO_LESS)
    split: str
    metric: str
    score: float | None
    scores: Mapping[str, float]
    dev_score: float | None
    steps: int = field(metadata=NO_LESS)
    best_step: int | None
    curve: tuple[Point, ...]
    settings: Mapping[str, Any]
    cost: CellCost
    parameters: Parameters
    sources: tuple[str, ...]
    n_test: int = field(metadata=NO_LESS)
    backbone: BackboneName
    shots: ShotIds
    versions: Mapping[str, str]
    status: Literal["ok", "failed"]
    error: str
    diagnostics: Mapping[str, Any] = field(default_factory=dict)
    constant: float | None = None

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
        if large := _too_large(value):
            raise DataError(f"{where}: {large} is no result; expected a number of at most {LARGEST:g}")
        retrieval = row.diagnostics.get("retrieval")
        if isinstance(retrieval, Mapping) and (problem := _retrieval_problem(retrieval)):
            raise DataError(f"{where}: diagnostics.retrieval.{problem}")
        if row.is_ok and row.score is None:
            raise DataError(f"{where}: score: an ok cell needs a number, got null")
        if not row.is_ok and not (row.score is None and row.error):
            raise DataError(f"{where}: a failed cell needs score null and an error")
        return row


def read_rows(path: Path) -> tuple[Row, ...]:
    """All rows of a results.jsonl; of a cell that stands there twice, the last. A missing file has none."""
    rows = (Row.from_json(value, f"{path}, row {i}") for i, value in enumerate(read_lines(path), start=1))
    return tuple({row.cell: row for row in rows}.values())


def read_wanted(*results: Path) -> Wanted | None:
    """What the comparisons behind these results set out to do together; None where one of them does not say.

    Raises DataError for a file of anything else.
    """
    files = [path.with_name(WANTED) for path in results]
    if not all(file.is_file() for file in files):
        return None
    known = [parse(Wanted, read_json(file), str(file)) for file in files]
    cells = dict.fromkeys(cell for one in known for cell in one.cells)
    return Wanted(tuple(cells), tuple(dict.fromkeys(line for one in known for line in one.left_out)))


def rows_table(rows: Sequence[Row], suffix: str) -> bytes:
    """Rows as one table, a line each: the bytes of a `.csv` or a `.parquet` file, as pandas and datasets read them.

    A key inside another is a column with dots in its name (`scores.accuracy`, `settings.target.steps`); a list is JSON
    text. Curves, ids of shots and diagnostics stay in results.jsonl. A column holds whole numbers, numbers, truths or
    text; where rows mix them it is text. Raises SpecError for another suffix, and for `.parquet` without `pyarrow`.
    """
    if suffix not in TABLE_SUFFIXES:
        raise SpecError(f"a table in a {suffix or 'nameless'} file (--table): expected {' or '.join(TABLE_SUFFIXES)}")

    kept = [{k: v for k, v in row.to_json().items() if k not in ("curve", "shots", "diagnostics")} for row in rows]
    lines = [
        {k: json.dumps(v, ensure_ascii=False) if isinstance(v, list) else v for k, v in flat_items(to_mapping(row))}
        for row in kept
    ]
    columns = dict[str, list[Any]]()
    for name in dict.fromkeys(key for line in lines for key in line):
        values = [line.get(name) for line in lines]
        kinds = {type(value) for value in values if value is not None}
        if kinds == {int, float}:
            values = [value if value is None else float(value) for value in values]
        elif len(kinds) > 1:
            values = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
        columns[name] = values
    if suffix == ".csv":
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerows([list(columns), *zip(*columns.values(), strict=True)])
        return out.getvalue().encode()
    try:
        import pyarrow  # type: ignore[import-untyped]
        from pyarrow.parquet import write_table as write_parquet  # type: ignore[import-untyped]
    except ImportError as error:
        raise SpecError("Parquet (--table) needs a package: pip install 'promptprior[hub]'") from error
    buffer = io.BytesIO()
    write_parquet(pyarrow.table(columns), buffer)
    return buffer.getvalue()


def _too_large(value: object, key: str = "") -> str:
    # The key and value of the first number in plain JSON values that is not finite, or larger than any result.
    if isinstance(value, float | int):
        return "" if abs(value) <= LARGEST else f"{key[1:]}: {shorten(value)}"
    parts = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    return next((large for name, part in parts if (large := _too_large(part, f"{key}.{name}"))), "")


def _retrieval_problem(retrieval: Mapping[str, Any]) -> str:
    # What is wrong with what the report draws and lists of retrieval; "" for nothing.
    def are_numbers(values: object) -> bool:
        return isinstance(values, list) and all(type(v) in (int, float) and v >= 0 for v in values)

    tasks, shares, tokens = (retrieval.get(name, []) for name in ("tasks", "map", "tokens"))
    if not isinstance(tasks, list) or not all(isinstance(task, str) for task in tasks):
        return "tasks: expected a list of names"
    if not isinstance(shares, list) or len(shares) != len(tasks) or not all(map(are_numbers, shares)):
        return f"map: expected a list of shares for each of the {len(tasks)} tasks"
    for token in tokens if isinstance(tokens, list) else [None]:
        found = token if isinstance(token, Mapping) else {}
        has_numbers = are_numbers([found.get("share"), found.get("rms")])
        if "row" not in found or not isinstance(found.get("words"), list) or not has_numbers:
            return "tokens: expected a list of tokens, each with row, words, share and rms"
    return ""


class Grid:
    """The rows of a comparison by method, target, k and seed; `baseline` is the method that transfer must beat.

    Where two rows stand for the same place (a setting was changed in between), the last one counts. Everything is plain
    data, worked out once:

    - `by_place`: the row of each method, target, k and seed; `rows` are those with a score, `failed` those without
    - `methods`: those that train nothing, then the baseline, then the others in order of appearance
    - `transfer`: methods that learned from source tasks
    - `targets`: one row of each target, which tells its family, metric and size; by family, then name
    - `constants`: the score of the best constant answer on each target whose rows have one
    - `bounds`: the least and largest score of each target's metric; those of another package's metric are not known
    - `metrics`: the metric of each target, None for one of a package that is not installed here; `lower_is_better`: the
      targets where lower is better; `sign_note`: what tables over targets say of them
    - `ks`: the numbers of shots compared; (0,) where nothing was trained
    - `scores`: the score of each seed, by method, target and k
    - `seed_scores`: the same for every k of `ks`; what needs no examples (k = 0) stands beside each
    - `runs`: the rows of these scores; `intervals`: their mean and interval over seeds, within the metric's range
    - `shared`: by k, the targets that every method has finished, with the seeds common to all that use shots
    - `shared_rows`: by method and k, the rows at these targets and seeds; what needs no examples at all seeds
    - `shared_runs`: the merits of those rows, for each target in the order of its seeds
    """

    def __init__(self, all_rows: tuple[Row, ...], baseline: str) -> None:
        self.all_rows, self.baseline = all_rows, baseline
        self.by_place = {(row.method, row.target, row.k, row.seed): row for row in all_rows}
        self.rows = tuple(row for row in self.by_place.values() if row.is_ok)
        self.failed = tuple(row for row in self.by_place.values() if not row.is_ok)

        trained = {row.method for row in self.rows if row.steps}
        ranks = {row.method: 1 if row.method == baseline else 2 if row.method in trained else 0 for row in self.rows}
        self.methods = tuple(sorted(ranks, key=lambda method: ranks[method]))
        self.transfer = frozenset(row.method for row in self.rows if row.sources)
        self.ks = tuple(sorted({row.k for row in self.rows} - {0})) or ((0,) if self.rows else ())
        first = {row.target: row for row in reversed(self.rows)}
        self.targets = {t: first[t] for t in sorted(first, key=lambda target: (first[target].family, target))}
        self.constants = {row.target: row.constant for row in self.rows if row.constant is not None}
        own = {target: METRICS.get(row.metric) for target, row in self.targets.items()}
        self.bounds = {target: known.bounds if known else UNBOUNDED for target, known in own.items()}
        self.metrics: dict[str, Metric | None] = {}
        for target, row in self.targets.items():
            try:
                self.metrics[target] = metric(row.metric)
            except SpecError:
                self.metrics[target] = None
        self.lower_is_better = [t for t, known in self.metrics.items() if known and not known.higher_is_better]
        names = ", ".join(self.lower_is_better)
        note = f" Higher is better: scores of {names}, where lower is better, count with a minus sign."
        self.sign_note = note if names else ""

        self.scores: dict[tuple[str, str, int], dict[int, float]] = {}
        for row in self.rows:
            assert row.score is not None  # an ok cell has one
            self.scores.setdefault((row.method, row.target, row.k), {})[row.seed] = row.score
        self.seed_scores: dict[tuple[str, str, int], dict[int, float]] = {}
        self.runs: dict[tuple[str, str, int], dict[int, Row]] = {}
        self.intervals: dict[tuple[str, str, int], Interval] = {}
        for m, t, k in product(self.methods, self.targets, self.ks):
            own_k = k if (m, t, k) in self.scores else 0
            if scores := self.scores.get((m, t, own_k)):
                self.seed_scores[m, t, k] = scores
                self.runs[m, t, k] = {seed: self.by_place[m, t, own_k, seed] for seed in scores}
                self.intervals[m, t, k] = interval(list(scores.values()), bounds=self.bounds[t])

        self.shared: dict[int, dict[str, frozenset[int]]] = {k: {} for k in self.ks}
        for k, target in product(self.ks, self.targets):
            finished = [set(self.scores[m, target, k]) for m in self.methods if (m, target, k) in self.scores]
            seeds = set.intersection(*finished) if finished else set()
            if all((m, target, k) in self.runs for m in self.methods) and (seeds or not finished):
                self.shared[k][target] = frozenset(seeds)
        self.shared_rows = {
            (m, k): {
                target: [row for seed, row in self.runs[m, target, k].items() if seed in seeds or row.k != k]
                for target, seeds in self.shared[k].items()
            }
            for m, k in product(self.methods, self.ks)
        }
        self.shared_runs = {
            place: {
                t: [self.merit(t, self.scores[r.method, t, r.k][r.seed]) for r in rows]
                for t, rows in of_targets.items()
            }
            for place, of_targets in self.shared_rows.items()
        }

    def merit(self, target: str, score: float) -> float:
        """A score on a target as methods are compared by it: higher is better, whatever the metric."""
        return -score if target in self.lower_is_better else score


def parse(kind: type[C], value: object, where: str) -> C:
    """A JSON object as a dataclass, by the rules of config.mapping. Raises DataError naming key and `where`."""
    if not isinstance(value, Mapping):
        raise DataError(f"{where}: expected an object, got {shorten(value)}")
    try:
        return from_mapping(kind, value, where)
    except SpecError as error:
        raise DataError(str(error)) from error
