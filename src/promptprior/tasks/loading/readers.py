"""Rows of a data set as they stand in a file, each with the place an error can point at."""

import csv
import io
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from promptprior.errors import DataError
from promptprior.untrusted import MOST_BYTES, check_memory, check_regular, parse_json, path_kind, read_utf8

Row = Mapping[str, object]
UNPACKED = 6  # bytes of memory for a byte of text: the text, its lines, and the rows as dictionaries
SUFFIXES = (".jsonl", ".csv", ".parquet", ".json")
MOST_FIELD = 2**31 - 1  # characters of a CSV field: what of it is read as text has a bound of its own
MOST_STREAMED = 2**50  # bytes of a file that is read in blocks
PARQUET_ROWS = 256  # read at once
MOST_UNFOLDED, UNFOLDING = 2**28, 200  # bytes of a Parquet file's rows, if that is so many times its own size


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


def memory_rows(rows: Any, source: str) -> Rows:
    """The rows of a pandas DataFrame, whose missing values become null, or of a sequence of mappings, from 1.

    Raises DataError for anything else, for no rows, and for two columns of one name.
    """
    if hasattr(rows, "columns") and hasattr(rows, "to_dict"):  # without importing pandas
        names = [str(column) for column in rows.columns]
        if len(set(names)) < len(names):
            raise DataError(f"{source}: two columns have one name: {', '.join(names)}")
        plain = rows.astype(object).where(rows.notna(), None)
        values = [dict(zip(names, row, strict=True)) for row in plain.itertuples(index=False, name=None)]
    else:
        values = list(rows) if isinstance(rows, Iterable) and not isinstance(rows, str | bytes | Mapping) else [rows]
        for place, row in enumerate(values, 1):
            if not isinstance(row, Mapping):
                what = f"expected a mapping of columns to values, got {type(row).__name__}; or give a DataFrame"
                raise DataError(f"{source} row {place}: {what}")
    if not values:
        raise DataError(f"{source}: there are no rows")
    return rows_of(values, source)


def read_data_file(path: Path) -> Rows:
    """The rows of a .jsonl file (one object a line, blank lines skipped), .csv, .json (a list of objects) or .parquet.

    Raises DataError, with file and line, for a missing, empty or unreadable file, and one that is no regular file or
    too large. So it does for broken UTF-8, bad JSON, a row that is no object, and a CSV row that does not fit its
    header.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"{path}: cannot read {path.suffix!r}; expected one of {', '.join(SUFFIXES)}")
    if path_kind(path) is None:
        raise DataError(f"{path}: no such file")
    if suffix != ".parquet":
        check_regular(path)  # before the size of memory: a file that is too large for all is told so on every machine
        check_memory(UNPACKED * path.stat().st_size, f"{path}: its rows", "split the file or leave columns out")
    if suffix == ".jsonl":
        # not splitlines(): JSON strings may hold U+2028 and other characters it would break at
        numbered = [(n, line) for n, line in enumerate(read_utf8(path).split("\n"), 1) if line.strip()]
        objects = tuple(parse_object(line, str(path), n) for n, line in numbered)
        rows = Rows(str(path), objects, tuple(n for n, _ in numbered))
    elif suffix == ".csv":
        records = list(_csv_records(io.StringIO(read_utf8(path), newline=""), str(path)))
        rows = Rows(str(path), tuple(row for _, row in records), tuple(line for line, _ in records))
    elif suffix == ".json":
        values = parse_json(read_utf8(path), str(path))
        if not isinstance(values, list) or not all(isinstance(v, dict) for v in values):
            raise DataError(f"{path}: expected a JSON list of objects (one object a line is .jsonl)")
        rows = rows_of(values, str(path))
    else:
        rows = _read_parquet(path)
    if not len(rows):
        raise DataError(f"{path}: the file holds no rows")
    return rows


def parse_object(text: str, where: str, line: int | None = None) -> Row:
    """One JSON object, which is a line of the file `where` or all of it. Raises DataError when it is none."""
    value = parse_json(text, where, line=line)
    if not isinstance(value, dict):
        place = where if line is None else f"{where} line {line}"
        raise DataError(f"{place}: expected a JSON object with column names, got {type(value).__name__}")
    return value


def _read_parquet(path: Path) -> Rows:
    try:
        from pyarrow import ArrowException  # type: ignore[import-untyped]
        from pyarrow.parquet import ParquetFile  # type: ignore[import-untyped]
    except ImportError:
        raise DataError(f"{path}: reading Parquet needs pyarrow; run: pip install pyarrow") from None
    check_regular(path)
    values: list[Row] = []
    size = 0
    try:
        with ParquetFile(path) as file:
            # in small parts: a dictionary of a few words may unfold to more rows than memory holds
            for part in file.iter_batches(batch_size=PARQUET_ROWS, use_threads=False):
                size += part.nbytes
                if size > min(MOST_BYTES, max(MOST_UNFOLDED, UNFOLDING * path.stat().st_size)):
                    reason = f"its rows unfold to {size:,} bytes and more; split the file or leave columns out"
                    raise DataError(f"{path}: {reason}")
                values += part.to_pylist()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: one of rows {len(values) + 1} and later is not UTF-8 ({error.reason})") from None
    except MemoryError:
        raise DataError(f"{path}: its rows need more memory than there is; split the file") from None
    except (ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({error})") from None
    return rows_of(values, str(path))


def stream_rows(path: Path, size: int, source: str = "") -> Iterator[Rows]:
    """The rows of a data file as `read_data_file` gives them, at most `size` at a time, in memory for as many.

    CSV and JSONL files may be larger than memory; of the other formats the whole file is read first. `source` is what
    errors call the file. Raises DataError as `read_data_file` does, when it comes to the row.
    """
    source = source or str(path)
    if path.suffix.lower() not in (".csv", ".jsonl"):
        rows = read_data_file(path)
        for start in range(0, len(rows), size):
            end = start + size
            yield Rows(rows.source, rows.values[start:end], rows.lines[start:end], rows.unit)
        return
    check_regular(path, most=MOST_STREAMED)
    is_csv, count, place = path.suffix.lower() == ".csv", 0, 0

    def checked_lines() -> Iterator[str]:
        nonlocal place
        for line in file:
            place += 1
            if "\0" in line:
                raise DataError(f"{source} line {place}: a NUL character; this is UTF-16 or no text at all")
            yield line

    with path.open(encoding="utf-8-sig", newline="" if is_csv else "\n") as file:
        objects = ((n, parse_object(line, source, n)) for n, line in enumerate(checked_lines(), 1) if line.strip())
        numbered = _csv_records(checked_lines(), source) if is_csv else objects
        try:
            while block := list(islice(numbered, size)):
                count += len(block)
                yield Rows(source, tuple(row for _, row in block), tuple(line for line, _ in block))
        except UnicodeDecodeError as error:
            byte = f"byte 0x{error.object[error.start]:02x}: {error.reason}"
            with path.open("rb") as raw:  # text is decoded some kilobytes ahead of its lines
                line = next(n for n, part in enumerate(raw, 1) if part.decode("utf-8", "ignore").encode() != part)
            raise DataError(f"{source} line {line}: not UTF-8 ({byte}); save the file as UTF-8") from None
    if not count:
        raise DataError(f"{source}: the file holds no rows")


def _csv_records(lines: Iterable[str], source: str) -> Iterator[tuple[int, Row]]:
    # the records below the header, each with the line that it starts at: a quoted field may span lines. Every value
    # stays a string, blank records are skipped
    reader, header, start = csv.reader(lines, strict=True), list[str](), 1
    longest = csv.field_size_limit(MOST_FIELD)
    try:
        for record in reader:
            line, start = start, reader.line_num + 1
            if not record:
                continue
            if header and len(record) != len(header):
                raise DataError(
                    f"{source} line {line}: {len(record)} fields, but the header has {len(header)} "
                    f"({', '.join(header)}); text with commas or line breaks must stand in double quotes"
                )
            if header:
                yield line, dict(zip(header, record, strict=True))
                continue
            header = record
            if len(header) == 1 and (other := re.search(r"[;\t|]", header[0])):
                name = "a tab" if other[0] == "\t" else repr(other[0])
                raise DataError(
                    f"{source} line 1: fields seem to be separated by {name}; expected commas: save it as CSV with "
                    "commas"
                )
            if len(set(header)) < len(header):
                raise DataError(f"{source} line 1: the header names a column twice: {', '.join(header)}")
    except csv.Error as error:
        if "end of data" in str(error):
            reason = "a double quote opens a field and none closes it"
            raise DataError(f"{source} line {start}: bad CSV ({reason})") from None
        raise DataError(f"{source} line {reader.line_num}: bad CSV ({error})") from None
    finally:
        csv.field_size_limit(longest)
