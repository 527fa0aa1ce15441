"""Rows of a data set as they stand in a file, each with the place an error can point at."""

import csv
import io
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from promptprior.errors import DataError

Row = Mapping[str, object]
SUFFIXES = (".jsonl", ".csv", ".parquet", ".json")


@dataclass(frozen=True)
class Rows:
    """Rows of one split and where they stand: `source` is a file or a Hub name, `lines` counts from 1."""

    source: str
    values: tuple[Row, ...]
    lines: tuple[int, ...]
    unit: str = "line"

    def __len__(self) -> int:
        return len(self.values)

    def place(self, index: int) -> str:
        """Where one row stands, for an error.

        >>> Rows("train.jsonl", ({"a": 1},), (7,)).place(0)
        'train.jsonl line 7'
        """
        return f"{self.source} {self.unit} {self.lines[index]}"

    def sample(self, limit: int | None) -> "Rows":
        """At most `limit` rows, drawn the same way every time and kept in order (files are often sorted)."""
        if limit is None or len(self) <= limit:
            return self
        kept = sorted(random.Random(f"{len(self)}/{limit}").sample(range(len(self)), limit))
        values, lines = tuple(self.values[k] for k in kept), tuple(self.lines[k] for k in kept)
        return Rows(self.source, values, lines, self.unit)


def rows_of(values: Sequence[Row], source: str) -> Rows:
    """Rows that are already in memory, numbered from 1."""
    return Rows(source, tuple(values), tuple(range(1, len(values) + 1)), "row")


def read_rows(path: Path) -> Rows:
    """The rows of a .jsonl, .csv, .json or .parquet file.

    Raises DataError, with file and line, for a missing, empty or unreadable file, broken UTF-8, bad JSON,
    a row that is no object, or a CSV row that does not fit its header.
    """
    readers = {".jsonl": read_jsonl, ".csv": read_csv, ".json": read_json, ".parquet": read_parquet}
    if path.suffix not in readers:
        raise DataError(f"{path}: cannot read {path.suffix!r}; expected one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    rows = readers[path.suffix](path)
    if not len(rows):
        raise DataError(f"{path}: the file holds no rows")
    return rows


def read_text(path: Path) -> str:
    """A file's text. Raises DataError with line and byte offset where it is not UTF-8."""
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path} line {line}: not UTF-8 (byte 0x{raw[error.start]:02x} at offset {error.start}: "
            f"{error.reason}); save the file as UTF-8"
        ) from None


def read_jsonl(path: Path) -> Rows:
    """One JSON object a line; blank lines are skipped."""
    # not splitlines(): JSON strings may hold U+2028 and other characters it would break at
    numbered = [(n, line) for n, line in enumerate(read_text(path).split("\n"), 1) if line.strip()]
    values = tuple(parsed_object(line, f"{path} line {n}") for n, line in numbered)
    return Rows(str(path), values, tuple(n for n, _ in numbered))


def parsed_object(text: str, where: str) -> Row:
    """One JSON object. Raises DataError when it is not JSON or not an object."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: bad JSON ({error.msg} at column {error.colno})") from None
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected a JSON object with column names, got {type(value).__name__}")
    return value


def read_json(path: Path) -> Rows:
    """One JSON list of objects."""
    try:
        values = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} line {error.lineno}: bad JSON ({error.msg})") from None
    if not isinstance(values, list) or not all(isinstance(v, dict) for v in values):
        raise DataError(f"{path}: expected a JSON list of objects (one object a line is .jsonl)")
    return rows_of(values, str(path))


def read_csv(path: Path) -> Rows:
    """Comma-separated values with a header line; every value stays a string."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        numbered = list(numbered_records(reader))
    except csv.Error as error:
        raise DataError(f"{path} line {reader.line_num}: bad CSV ({error})") from None
    if not numbered:
        raise DataError(f"{path}: the file holds no rows")
    (_, header), *body = numbered
    if len(set(header)) < len(header):
        raise DataError(f"{path} line 1: the header names a column twice: {', '.join(header)}")
    for line, record in body:
        if len(record) != len(header):
            raise DataError(
                f"{path} line {line}: {len(record)} fields, but the header has {len(header)} "
                f"({', '.join(header)}); text with commas or line breaks must stand in double quotes"
            )
    values = tuple(dict(zip(header, record, strict=True)) for _, record in body)
    return Rows(str(path), values, tuple(line for line, _ in body))


def numbered_records(reader: Iterator[list[str]]) -> Iterator[tuple[int, list[str]]]:
    """Records that are not blank, each with the line it starts at."""
    start = 1
    for record in reader:
        if record:
            yield start, record
        start = reader.line_num + 1  # type: ignore[attr-defined]


def read_parquet(path: Path) -> Rows:
    """A Parquet file, through pyarrow."""
    try:
        from pyarrow import ArrowException  # type: ignore[import-untyped]
        from pyarrow.parquet import read_table  # type: ignore[import-untyped]
    except ImportError:
        raise DataError(f"{path}: reading Parquet needs pyarrow; run: pip install pyarrow") from None
    try:
        return rows_of(read_table(path).to_pylist(), str(path))
    except (ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({error})") from None
