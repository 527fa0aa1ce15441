import json
from pathlib import Path

import pytest

from promptprior.errors import DataError
from promptprior.tasks.loading.readers import Rows, read_data_file


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_jsonl_keeps_line_numbers_and_unusual_line_separators(tmp_path: Path) -> None:
    text = "a\u2028b"  # str.splitlines would break the row here
    path = write(tmp_path / "x.jsonl", json.dumps({"t": text}, ensure_ascii=False) + "\n\n" + '{"t": "c"}\n')
    rows = read_data_file(path)
    assert [row["t"] for row in rows.values] == [text, "c"]
    assert rows.lines == (1, 3)
    assert rows.place(1) == f"{path} line 3"


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    rows = read_data_file(write(tmp_path / "x.csv", "\ufefftext,label\nhi,1\n"))
    assert rows.values == ({"text": "hi", "label": "1"},)


def test_csv_quotes_line_breaks_and_line_numbers(tmp_path: Path) -> None:
    rows = read_data_file(write(tmp_path / "x.csv", 'text,label\n"a, ""b""\nc",0\nd,1\n'))
    assert rows.values == ({"text": 'a, "b"\nc', "label": "0"}, {"text": "d", "label": "1"})
    assert rows.lines == (2, 4)


def test_json_list_and_parquet_agree_with_jsonl(tmp_path: Path) -> None:
    values = [{"text": "a", "label": 0}, {"text": "b", "label": 1}]
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    parquet.write_table(pyarrow.Table.from_pylist(values), tmp_path / "x.parquet")
    write(tmp_path / "x.json", json.dumps(values))
    write(tmp_path / "x.jsonl", "\n".join(map(json.dumps, values)))
    read = [read_data_file(tmp_path / f"x.{suffix}").values for suffix in ("parquet", "json", "jsonl")]
    assert read == [tuple(values)] * 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b'{"t": "a"}\n{"t": "\xe9"}\n', r"line 2: not UTF-8 \(byte 0xe9 at offset 18: .*\); save the file"),
        ("x.csv", b"text\n\xff\n", r"line 2: not UTF-8 \(byte 0xff at offset 5"),
        ("x.jsonl", '{"t": 1}\n{"t": \n', r"line 2: not JSON \(Expecting value at column 7\)"),
        ("x.jsonl", "[1]\n", "line 1: expected a JSON object with column names, got list"),
        ("x.jsonl", "", "the file holds no rows"),
        ("x.csv", "", "the file holds no rows"),
        ("x.csv", "text,label\n", "the file holds no rows"),
        ("x.csv", "text,label\na,b,c\n", r"line 2: 3 fields, but the header has 2 \(text, label\); text with commas"),
        ("x.csv", "text,text\na,b\n", "line 1: the header names a column twice: text, text"),
        ("x.csv", 'text\n"a"b\n', r"line 2: bad CSV"),
        ("x.json", '{"a": 1}', r"expected a JSON list of objects \(one object a line is .jsonl\)"),
        ("x.json", "[\n{]", "line 2: not JSON"),
        ("x.parquet", "no parquet", "not a readable Parquet file"),
        ("x.txt", "a", r"cannot read '.txt'; expected one of .jsonl, .csv, .parquet, .json"),
    ],
)
def test_bad_files_say_where_and_what(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        read_data_file(write(tmp_path / name, content))
    assert str(tmp_path / name) in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x.jsonl: no such file"):
        read_data_file(tmp_path / "x.jsonl")


def test_a_sample_is_fixed_ordered_and_spread() -> None:
    rows = Rows("x", tuple({"n": n} for n in range(1000)), tuple(range(1, 1001)))
    sample = rows.sample(50)
    drawn = [row["n"] for row in sample.values]
    assert drawn == sorted(drawn) == [line - 1 for line in sample.lines]
    assert sample == rows.sample(50)
    assert max(drawn) > 900  # not the head of the file
    assert rows.sample(None) is rows is rows.sample(1000)
