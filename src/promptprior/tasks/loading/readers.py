"""Rows of a data set as they stand in a file, each with the place an error can point at."""

import csv
import io
import json
import random
from collections.abc import Mapping, Sequence
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
        drawn = sorted(random.Random(f"{len(self)}/{limit}").sample(range(len(self)), limit))
        values, lines = tuple(self.values[i] for i in drawn), tuple(self.lines[i] for i in drawn)
        return Rows(self.source, values, lines, self.unit)


def rows_of(values: Sequence[Row], source: str) -> Rows:
    """Rows that are already in memory, numbered from 1."""
    return Rows(source, tuple(values), tuple(range(1, len(values) + 1)), "row")


def read_data_file(path: Path) -> Rows:
    """The rows of a .jsonl file (one object a line, blank lines skipped), .csv, .json (a list of objects) or .parquet.

    Raises DataError, with file and line, for a missing, empty or unreadable file, broken UTF-8, bad JSON,
    a row that is no object, or a CSV row that does not fit its header.
    """
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path}: cannot read {path.suffix!r}; expected one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if path.suffix == ".jsonl":
        # not splitlines(): JSON strings may hold U+2028 and other characters it would break at
        numbered = [(n, line) for n, line in enumerate(read_utf8(path).split("\n"), 1) if line.strip()]
        objects = tuple(parse_object(line, f"{path} line {n}") for n, line in numbered)
        rows = Rows(str(path), objects, tuple(n for n, _ in numbered))
    elif path.suffix == ".csv":
        rows = _read_csv(path)
    elif path.suffix == ".json":
        try:
            values = json.loads(read_utf8(path))
        except json.JSONDecodeError as error:
            raise DataError(f"{path} line {error.lineno}: bad JSON ({error.msg})") from None
        if not isinstance(values, list) or not all(isinstance(v, dict) for v in values):
            raise DataError(f"{path}: expected a JSON list of objects (one object a line is .jsonl)")
        rows = rows_of(values, str(path))
    else:
        try:
            from pyarrow import ArrowException  # type: ignore[import-untyped]
            from pyarrow.parquet import read_table  # type: ignore[import-untyped]
        except ImportError:
            raise DataError(f"{path}: reading Parquet needs pyarrow; run: pip install pyarrow") from None
        try:
            rows = rows_of(read_table(path).to_pylist(), str(path))
        except (ArrowException, OSError) as error:
            raise DataError(f"{path}: not a readable Parquet file ({error})") from None
    if not len(rows):
        raise DataError(f"{path}: the file holds no rows")
    return rows


def read_utf8(path: Path) -> str:
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


def parse_object(text: str, where: str) -> Row:
    """One JSON object. Raises DataError when it is not JSON or not an object."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: bad JSON ({error.msg} at column {error.colno})") from None
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected a JSON object with column names, got {type(value).__name__}")
    return value


def _read_csv(path: Path) -> Rows:
    # a header line, then records; every value stays a string, blank records are skipped
    reader = csv.reader(io.StringIO(read_utf8(path), newline=""), strict=True)
    numbered, start = [], 1
    try:
        for record in reader:
            if record:
                numbered.append((start, record))  # a quoted field may span lines: where the record starts
            start = reader.line_num + 1
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
