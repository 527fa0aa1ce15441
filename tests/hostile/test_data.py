"""Hostile data files: encodings, numbers, nesting, names, things that are no files, Parquet, rows to predict."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.hostile.harness import GOOD_CSV, GOOD_ROWS, SHORT, TINY, Case, Content, ForkServer, jsonl


def show(name: str, file: str, content: Content | None = None, refused: str = "", *, target: str | None = None) -> Case:
    """`tasks show` of one file, which `load_task` reads as every other verb does."""
    files = {} if content is None else {file: content}
    return Case(
        name, ("tasks", "show", file if target is None else target), files, refused, "" if refused else "licence"
    )


def as_json(*rows: object) -> str:
    return json.dumps([*GOOD_ROWS, *rows])


def link_to(target: str) -> Callable[[Path], object]:
    return lambda path: path.symlink_to(target)


def parquet(make: Callable[[object], Mapping[str, object]]) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        pa = pytest.importorskip("pyarrow")
        from pyarrow.parquet import write_table

        write_table(pa.table(make(pa)), path)

    return write


def bad_utf8(pa: object) -> Mapping[str, object]:
    texts = pa.array([b"fine", b"broken \xff\xfe"] * 20).cast(pa.binary())  # type: ignore[attr-defined]
    offsets = pa.StringArray.from_buffers(40, texts.buffers()[1], texts.buffers()[2])  # type: ignore[attr-defined]
    return {"text": offsets, "label": ["a", "b"] * 20}


def unfolds(pa: object) -> Mapping[str, object]:
    # three words of a megabyte, named by 9,000 rows: 20 KB on the disk, 9 GB as rows
    words = pa.array([letter * 2**20 for letter in "abc"])  # type: ignore[attr-defined]
    indices = pa.array([i % 3 for i in range(9000)], pa.int32())  # type: ignore[attr-defined]
    label = pa.array(["a", "b"] * 4500)  # type: ignore[attr-defined]
    return {"text": pa.DictionaryArray.from_arrays(indices, words), "label": label}  # type: ignore[attr-defined]


def sparse(size: int) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        with path.open("wb") as file:
            file.truncate(size)

    return write


def many_lines(line: str, count: int) -> str:
    return jsonl(*[line] * count)


NUL_UTF16 = GOOD_CSV.encode("utf-16-le")
DEEP = "[" * 100_000 + "]" * 100_000
DEEP_OBJECT = '{"a":' * 50_000 + "1" + "}" * 50_000
DIGITS = "9" * 5000

ENCODINGS = [
    show("utf-8 with a byte order mark", "x.csv", b"\xef\xbb\xbf" + GOOD_CSV.encode()),
    show("jsonl with a byte order mark", "x.jsonl", b"\xef\xbb\xbf" + jsonl().encode()),
    show("json with a byte order mark", "x.json", b"\xef\xbb\xbf" + as_json().encode()),
    show("Windows line ends", "x.csv", GOOD_CSV.replace("\n", "\r\n")),
    show("old Macintosh line ends", "x.csv", GOOD_CSV.replace("\n", "\r")),
    show("jsonl with Windows line ends", "x.jsonl", jsonl().replace("\n", "\r\n")),
    show("utf-16 csv", "x.csv", GOOD_CSV.encode("utf-16"), "x.csv line 1: not UTF-8.*UTF-16"),
    show("utf-16 without a mark", "x.csv", NUL_UTF16, "x.csv line 1: .*NUL.*UTF-16.*UTF-8"),
    show("utf-16 jsonl", "x.jsonl", jsonl().encode("utf-16"), "x.jsonl line 1: not UTF-8.*UTF-16"),
    show("utf-32 csv", "x.csv", GOOD_CSV.encode("utf-32"), "x.csv line 1: "),
    show("latin-1 csv", "x.csv", GOOD_CSV.encode() + "café,low\n".encode("latin-1"), "x.csv line 42: not UTF-8"),
    show("cp1252 quotes", "x.csv", GOOD_CSV.encode() + b"\x93hi\x94,low\n", "x.csv line 42: not UTF-8.*0x93"),
    show("overlong utf-8", "x.csv", GOOD_CSV.encode() + b"\xc0\xaf,low\n", "x.csv line 42: not UTF-8"),
    show("utf-8 of a surrogate", "x.csv", GOOD_CSV.encode() + b"\xed\xa0\x80,low\n", "x.csv line 42: not UTF-8"),
    show("gzip named csv", "x.csv", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03", "x.csv line 1: not UTF-8"),
    show("zip named jsonl", "x.jsonl", b"PK\x03\x04\x14\x00\xff\xfe", "x.jsonl line 1: "),
    show("NUL in a csv text", "x.csv", GOOD_CSV + "a\0b,low\n", "x.csv line 42: .*NUL"),
    show("NUL in a csv header", "x.csv", GOOD_CSV.replace("text,", "te\0xt,", 1), "x.csv line 1: .*NUL"),
    show("NUL in a jsonl line", "x.jsonl", jsonl('{"text": "a\0b", "label": "low"}'), "x.jsonl line 41: "),
    show("escaped NUL in a jsonl text", "x.jsonl", jsonl({"text": "a\0b", "label": "low"})),
    show("only NULs", "x.csv", b"\0" * 1000, "x.csv line 1: .*NUL"),
    show("emoji and combining marks", "x.jsonl", jsonl({"text": "👩‍👩‍👧 é \u202e right to left", "label": "low"})),
    show("an emoji as escaped pairs", "x.jsonl", jsonl('{"text": "\\ud83d\\ude00", "label": "low"}')),
    show("surrogate in a text", "x.jsonl", jsonl('{"text": "a \\ud800 b", "label": "low"}'), "line 41: .*surrogate"),
    show("surrogate in a label", "x.jsonl", jsonl('{"text": "a", "label": "\\udc80"}'), "line 41: .*surrogate"),
    show("surrogate in an id", "x.jsonl", jsonl('{"id": "\\ud800", "text": "a", "label": "low"}'), "line 41: .*surrog"),
    show("surrogate in a key", "x.jsonl", jsonl('{"text": "a", "label": "low", "\\ud800": 1}'), "line 41: .*surrogate"),
    show("surrogate in a list", "x.jsonl", jsonl('{"text": "a", "label": "low", "l": ["\\uDFFF"]}'), "line 41: .*surr"),
    show("surrogate in json", "x.json", as_json({"text": "\ud800", "label": "low"}), "x.json.*surrogate"),
    show("pairs the wrong way round", "x.jsonl", jsonl('{"text": "\\ude00\\ud83d", "label": "low"}'), "surrogate"),
]

JSON = [
    show("label of 400 digits", "x.jsonl", jsonl({"text": "a", "label": 10**399}), "line 41: .*400 digits"),
    show("label of 5000 digits", "x.jsonl", jsonl(f'{{"text": "a", "label": {DIGITS}}}'), "line 41: .*5,000 digits"),
    show(
        "unused number of 5000 digits", "x.jsonl", jsonl(f'{{"text": "a", "label": "low", "n": -{DIGITS}}}'), "digits"
    ),
    show("json of 5000 digits", "x.json", f"[{DIGITS}]", "x.json.*digits"),
    show("a number that overflows", "x.jsonl", jsonl('{"text": "a", "label": 1e999}'), "line 41: .*1e999"),
    show("Infinity", "x.jsonl", jsonl('{"text": "a", "label": Infinity}'), "line 41: .*Infinity"),
    show("minus Infinity in json", "x.json", '[{"text": "a", "label": -Infinity}]', "x.json.*-Infinity"),
    show("NaN as a label", "x.jsonl", jsonl('{"text": "a", "label": NaN}'), "line 41: .*label.*(NaN|null|empty)"),
    show("NaN as a text", "x.jsonl", jsonl('{"text": NaN, "label": "low"}'), "line 41: .*text.*NaN"),
    show("NaN where nothing reads it", "x.jsonl", jsonl('{"text": "a b", "label": "low", "score": NaN}')),
    show("deep lists in jsonl", "x.jsonl", jsonl(DEEP), "line 41: .*nested"),
    show("deep objects in jsonl", "x.jsonl", jsonl(DEEP_OBJECT), "line 41: .*nested"),
    show("deep lists in a column", "x.jsonl", jsonl(f'{{"text": {DEEP}, "label": "low"}}'), "line 41: .*nested"),
    show("lists 600 deep", "x.jsonl", jsonl(f'{{"text": "a", "label": "low", "l": {"[" * 600}{"]" * 600}}}'), "nested"),
    show("deep lists in json", "x.json", DEEP, "x.json.*nested"),
    show("open deep lists in json", "x.json", "[" * 100_000, "x.json.*nested"),
    show("duplicate key", "x.jsonl", jsonl('{"text": "a", "text": "b", "label": "low"}'), "line 41: .*'text'.*twice"),
    show("duplicate inner key", "x.jsonl", jsonl('{"text": "a", "label": "low", "m": {"k": 1, "k": 2}}'), "'k'.*twice"),
    show("duplicate key in json", "x.json", '[{"text": "a", "text": "b"}]', "x.json.*'text'.*twice"),
    show("escaped duplicate key", "x.jsonl", jsonl('{"label": "a", "l\\u0061bel": "b"}'), "'label'.*twice"),
    show("a list as a row", "x.jsonl", jsonl([1, 2]), "line 41: expected a JSON object"),
    show("a number as a row", "x.jsonl", jsonl(5), "line 41: expected a JSON object"),
    show("cut off in the middle", "x.jsonl", jsonl('{"text": "a", "la'), "line 41: not JSON"),
    show("two objects on a line", "x.jsonl", jsonl('{"text": "a"} {"text": "b"}'), "line 41: not JSON"),
    show("an object in .json", "x.json", '{"text": "a", "label": "b"}', "expected a JSON list of objects"),
    show("json lines named json", "x.json", jsonl(), "x.json"),
    show("single quotes", "x.jsonl", jsonl("{'text': 'a', 'label': 'low'}"), "line 41: not JSON"),
    show("a comment", "x.jsonl", jsonl("// {}"), "line 41: not JSON"),
    show("html named jsonl", "x.jsonl", "<!DOCTYPE html>\n<html></html>\n", "line 1: not JSON"),
    show("an empty object", "x.jsonl", jsonl({}), "line 41: .*label"),
    show("an empty file", "x.jsonl", "", "no rows"),
    show("blank lines only", "x.jsonl", "\n \n\n", "no rows"),
    show("an empty list", "x.json", "[]", "no rows"),
    show("null", "x.json", "null", "expected a JSON list"),
    show("a list of lists", "x.json", "[[1]]", "expected a JSON list of objects"),
    show(
        "100,000 keys in a row", "x.jsonl", jsonl({"text": "a", "label": "low", **{f"k{i}": i for i in range(100_000)}})
    ),
    show("20,000 short rows", "x.jsonl", many_lines('{"text": "a b", "label": "low"}', 20_000)),
]

TEXTS = [
    show("text a list", "x.jsonl", jsonl({"text": ["a", "b"], "label": "low"}), "line 41: .*text.*list"),
    show("text an object", "x.jsonl", jsonl({"text": {"a": 1}, "label": "low"}), "line 41: .*text.*(dict|object)"),
    show("text of spaces", "x.jsonl", jsonl({"text": "  \t ", "label": "low"}), "line 41: .*empty text"),
    show("csv text of spaces", "x.csv", GOOD_CSV + "   ,low\n", "line 42: .*empty text"),
    show("text of wide spaces", "x.jsonl", jsonl({"text": "\u3000\u00a0", "label": "low"}), "line 41: .*empty text"),
    show("text empty", "x.jsonl", jsonl({"text": "", "label": "low"}), "line 41: .*empty text"),
    show("text null", "x.jsonl", jsonl({"text": None, "label": "low"}), "line 41: .*text.*null"),
    show("text missing", "x.jsonl", jsonl({"label": "low"}), "line 41: .*text"),
    show("text a number", "x.jsonl", jsonl({"text": 5, "label": "low"})),
    show("label a list", "x.jsonl", jsonl({"text": "a", "label": ["low"]}), "line 41: .*label.*list"),
    show("label an object", "x.jsonl", jsonl({"text": "a", "label": {"a": 1}}), "line 41: .*label.*(dict|object)"),
    show("label of spaces", "x.jsonl", jsonl({"text": "a", "label": "  "}), "line 41: .*label.*empty"),
    show("label null", "x.jsonl", jsonl({"text": "a", "label": None}), "line 41: .*label.*empty"),
    show(
        "completion an object",
        "x.json",
        json.dumps([{"prompt": "a", "completion": {"b": 1}}] * 30),
        "completion|target",
    ),
    show("text of 10 MB", "x.jsonl", jsonl({"text": "ab " * 3_400_000, "label": "low"}), "line 41: .*characters"),
    show("csv text of 10 MB", "x.csv", GOOD_CSV + "ab " * 3_400_000 + ",low\n", "line 42"),
    show("label of 10 MB", "x.jsonl", jsonl({"text": "a", "label": "l" * 10_000_000}), "line 41: .*label.*characters"),
    show("10 MB that nothing reads", "x.jsonl", jsonl({"text": "a b c", "label": "low", "raw": "x" * 10_000_000})),
    show("a line of 10 MB that is no JSON", "x.jsonl", jsonl("x" * 10_000_000), "line 41: not JSON"),
    show(
        "target of 10 MB",
        "x.json",
        json.dumps([{"prompt": f"a {i}", "completion": "b" * 400_000} for i in range(30)]),
        "chara",
    ),
    show("one label only", "x.jsonl", "".join('{"text": "a", "label": "low"}\n' for _ in range(9)), "one value only"),
]

CSV = [
    show("semicolons", "x.csv", GOOD_CSV.replace(",", ";"), "x.csv.*';'.*comma"),
    show("tabs in csv", "x.csv", GOOD_CSV.replace(",", "\t"), "x.csv.*tab.*comma"),
    show("bars in csv", "x.csv", GOOD_CSV.replace(",", "|"), "x.csv.*'|'.*comma"),
    show("tsv", "x.tsv", GOOD_CSV.replace(",", "\t"), r"x.tsv: cannot read '.tsv'"),
    show("tsv in a folder", "d/x.tsv", GOOD_CSV.replace(",", "\t"), r"x.tsv: cannot read '.tsv'"),
    show("upper case suffix", "x.CSV", GOOD_CSV),
    show("upper case jsonl", "x.JSONL", jsonl()),
    show("xlsx", "x.xlsx", b"PK\x03\x04", r"x.xlsx: cannot read '.xlsx'"),
    show("txt", "x.txt", "a\n", r"x.txt: cannot read '.txt'"),
    show("a quote that never ends", "x.csv", GOOD_CSV + '"open,low\n', "x.csv line 42: .*quot"),
    show("a stray quote", "x.csv", GOOD_CSV + '"a"b,low\n', "x.csv line 42: "),
    show("too many fields", "x.csv", GOOD_CSV + "a,b,c\n", "x.csv line 42: 3 fields"),
    show("too few fields", "x.csv", GOOD_CSV + "a\n", "x.csv line 42: 1 fields"),
    show("header only", "x.csv", "text,label\n", "no rows"),
    show("a column twice", "x.csv", GOOD_CSV.replace("text,label", "text,text", 1), "twice"),
    show("no header", "x.csv", GOOD_CSV.split("\n", 1)[1], "x.csv"),
    show("a column without a name", "x.csv", "text,label,\n" + "a,b,c\nd,e,f\n" * 5, "x.csv"),
    show("a field of 200,000 characters", "x.csv", GOOD_CSV + "a" * 200_000 + ",low\n"),
    show("100,000 columns", "x.csv", ",".join(f"c{i}" for i in range(100_000)) + "\n", "x.csv"),
    show("html in a header", "x.csv", "<script>,\x1b[31m\na,b\n", "x.csv"),
]

PATHS = [
    show("a name of 300 characters", "x.csv", None, "name too long|no such file", target="a" * 300 + ".csv"),
    show("a name of 5000 characters", "x.csv", None, "name too long|no such file", target="a" * 5000 + ".csv"),
    show("a task of 300 characters", "x.csv", None, "unknown task|too long", target="a" * 300),
    show("a task of 5000 characters", "x.csv", None, "unknown task|too long", target="a" * 5000),
    show("a NUL-like path", "x.csv", None, "no such file", target="a/\x01.csv"),
    show("an escape sequence in a path", "x.csv", None, r"\\x1b", target="\x1b[31mred.csv"),
    show("a file that is not there", "x.csv", None, "x.csv: no such file"),
    show("a folder named csv", "x.csv/readme", "", "no training data", target="x.csv"),
    show("a link to itself", "x.csv", link_to("x.csv"), "x.csv"),
    show("a link to nothing", "x.csv", link_to("nowhere.csv"), "x.csv: no such file"),
    Case(
        "two links in a circle",
        ("tasks", "show", "a.csv"),
        {"a.csv": link_to("b.csv"), "b.csv": link_to("a.csv")},
        "a.csv",
    ),
    show("a folder that holds itself", "d/train.csv/more", link_to("../.."), "no training data", target="d/"),
    show("a pipe", "x.csv", os.mkfifo, "x.csv: .*no regular file"),
    show("a pipe as jsonl", "x.jsonl", os.mkfifo, "x.jsonl: .*no regular file"),
    show("a pipe in a folder", "d/train.jsonl", os.mkfifo, "train.jsonl: .*no regular file", target="d/"),
    show("/dev/zero", "x.csv", link_to("/dev/zero"), "x.csv: .*no regular file"),
    show("/dev/urandom as parquet", "x.parquet", link_to("/dev/urandom"), "x.parquet: .*no regular file"),
    show("/dev/stdin", "x.json", link_to("/dev/stdin"), "x.json"),
    show("/proc/self/mem", "x.csv", link_to("/proc/self/mem"), "x.csv: cannot be read"),
    show("/proc/self/mem as parquet", "x.parquet", link_to("/proc/self/mem"), "x.parquet"),
    show("a file in /proc", "x.json", link_to("/proc/self/status"), "x.json"),
    show("a hole of 100 GB", "x.csv", sparse(100 * 2**30), "x.csv: .*bytes.*at most"),
    show("a hole of 100 GB as parquet", "x.parquet", sparse(100 * 2**30), "x.parquet: "),
    show("an empty name", "x.csv", None, "one more word|no such|unknown", target=""),
    show("a dot", "x.txt", "", "no training data|unknown task", target="./"),
    show("a path through a file", "x.csv", GOOD_CSV, "x.csv/y.csv", target="x.csv/y.csv"),
    Case(
        "a task.json that is deep", ("tasks", "show", "d/"), {"d/train.csv": GOOD_CSV, "d/task.json": DEEP}, "task.json"
    ),
    Case(
        "a task.json that is a list", ("tasks", "show", "d/"), {"d/train.csv": GOOD_CSV, "d/task.json": "[]"}, "task.js"
    ),
    Case(
        "a task.json of odd values",
        ("tasks", "show", "d/"),
        {"d/train.csv": GOOD_CSV, "d/task.json": '{"input_columns": 5, "metric": [], "num_rows": 1e400}'},
        "task.json",
    ),
    Case(
        "a task.json that is a pipe",
        ("tasks", "show", "d/"),
        {"d/train.csv": GOOD_CSV, "d/task.json": os.mkfifo},
        "task.j",
    ),
    Case(
        "an output of 300 characters",
        ("adapt", "--target", "x.csv", *TINY, "--output", "o" * 300),
        {"x.csv": GOOD_CSV},
        "too long|300 characters",
    ),
    Case("check a name of 5000 characters", ("tasks", "check", "a" * 5000), {}, "unknown task|too long|cannot be used"),
    Case("check a pipe", ("tasks", "check", "x.csv"), {"x.csv": os.mkfifo}, "x.csv"),
    Case("check a folder of links", ("tasks", "check", "d"), {"d/t/train.csv": link_to("train.csv")}, "d"),
    Case("a data folder of 5000 characters", ("tasks", "list", "--data", "a" * 5000), {}, "too long"),
    Case(
        "a data folder that is a file",
        ("tasks", "list", "--data", "x.csv"),
        {"x.csv": GOOD_CSV},
        "x.csv: no such data fol",
    ),
    Case("a folder of one bad task", ("tasks", "list", "--data", "d"), {"d/t/train.jsonl": DEEP}, "line 1: .*nested"),
    Case(
        "partitions that are deep",
        ("fit", "--data", "d", "--partition", "p", "--output", "o", "--backbone", "MODEL"),
        {"d/t/train.csv": GOOD_CSV, "d/partitions.json": '{"p": ' + DEEP + "}"},
        "partitions.json.*nested",
    ),
    Case(
        "partitions twice",
        ("fit", "--data", "d", "--partition", "p", "--output", "o", "--backbone", "MODEL"),
        {"d/t/train.csv": GOOD_CSV, "d/partitions.json": '{"p": {"train": ["t"]}, "p": {}}'},
        "partitions.json.*'p'.*twice",
    ),
    Case(
        "partitions of odd values",
        ("fit", "--data", "d", "--partition", "p", "--output", "o", "--backbone", "MODEL"),
        {"d/t/train.csv": GOOD_CSV, "d/partitions.json": '{"p": {"train": 5, "test": {"a": {"b": [[]]}}}}'},
        "partition",
    ),
]

PARQUET = [
    show(
        "a parquet file",
        "x.parquet",
        parquet(lambda pa: {"text": [r["text"] for r in GOOD_ROWS], "label": ["a", "b"] * 20}),
    ),
    show("broken UTF-8 in parquet", "x.parquet", parquet(bad_utf8), "x.parquet.*UTF-8"),
    show("a dictionary that unfolds", "x.parquet", parquet(unfolds), "x.parquet.*(bytes|memory)"),
    show(
        "binary text",
        "x.parquet",
        parquet(lambda pa: {"text": [b"a", b"b"] * 20, "label": ["a", "b"] * 20}),
        "row 1.*text.*bytes",
    ),
    show(
        "binary labels",
        "x.parquet",
        parquet(lambda pa: {"text": ["a", "b"] * 20, "label": [b"a", b"b"] * 20}),
        "label.*bytes",
    ),
    show(
        "lists in parquet",
        "x.parquet",
        parquet(lambda pa: {"text": [["a"]] * 20, "label": ["a", "b"] * 10}),
        "row 1.*text.*list",
    ),
    show(
        "nulls in parquet",
        "x.parquet",
        parquet(lambda pa: {"text": [None, "b"] * 20, "label": ["a", "b"] * 20}),
        "row 1.*null",
    ),
    show(
        "NaN in parquet",
        "x.parquet",
        parquet(lambda pa: {"text": ["a"] * 20, "label": [float("nan"), 1.0] * 10}),
        "label",
    ),
    show("no rows in parquet", "x.parquet", parquet(lambda pa: {"text": pa.array([], pa.string())}), "no rows"),  # type: ignore[attr-defined]
    show("csv named parquet", "x.parquet", GOOD_CSV, "not a readable Parquet file"),
    show("an empty parquet file", "x.parquet", "", "not a readable Parquet file"),
    show(
        "a parquet footer that lies",
        "x.parquet",
        b"PAR1" + b"\xff" * 100 + b"\xff\xff\xff\x7fPAR1",
        "not a readable Parquet file",
    ),
]

PREDICT = (
    "predict",
    "--prompt",
    "PROMPT",
    "--target",
    "builtin:article",
    "--backbone",
    "MODEL",
    "--output",
    "out.jsonl",
)


def predict(name: str, content: Content, refused: str = "", file: str = "rows.jsonl") -> Case:
    return Case(name, (*PREDICT, "--input", file), {file: content}, refused)


PREDICTED = [
    predict("rows to predict", '{"text": "a"}\n'),
    predict("predict a surrogate", '{"text": "\\ud800"}\n', "rows.jsonl line 1: .*surrogate"),
    predict("predict deep json", DEEP, "rows.jsonl line 1: .*nested"),
    predict("predict 5000 digits", f'{{"text": {DIGITS}}}', "rows.jsonl line 1: .*digits"),
    predict("predict a duplicate key", '{"text": "a", "text": "b"}', "'text'.*twice"),
    predict("predict an empty text", '{"text": "a"}\n{"text": ""}\n', "rows.jsonl line 2: "),
    predict("predict spaces", '{"text": "  "}\n', "rows.jsonl line 1: "),
    predict("predict a list", '{"text": ["a"]}\n', "rows.jsonl line 1: "),
    predict("predict 10 MB", json.dumps({"text": "a" * 10_000_000}), "rows.jsonl line 1: .*characters"),
    predict("predict from a pipe", os.mkfifo, "rows.jsonl: .*no regular file"),
    predict("predict from /dev/zero", link_to("/dev/zero"), "rows.jsonl: .*no regular file"),
    predict("predict from a folder", lambda path: path.mkdir(), "rows.jsonl"),
    predict("predict utf-16", '{"text": "a"}'.encode("utf-16"), "rows.jsonl line 1: not UTF-8"),
    predict("predict tsv", "text\na\n", "cannot read '.tsv'", file="rows.tsv"),
]

ADAPTED = [
    Case(
        f"adapt: {case.name}",
        ("adapt", "--target", case.words[2], *TINY, *SHORT, "--output", "out"),
        case.files,
        case.refused,
    )
    for case in [*ENCODINGS, *JSON, *TEXTS, *PATHS]
    if case.name
    in (
        "utf-16 without a mark",
        "surrogate in a text",
        "label of 5000 digits",
        "deep lists in jsonl",
        "text of 10 MB",
        "/dev/zero",
        "a name of 300 characters",
    )
]

UNREADABLE = [
    Case(
        "a file that may not be read", ("tasks", "show", "x.csv"), {"x.csv": GOOD_CSV}, "x.csv: .*[Pp]ermission denied"
    ),
    Case(
        "a spec that may not be read",
        ("tasks", "show", "x.yaml"),
        {"x.yaml": "task: x"},
        "x.yaml: .*[Pp]ermission denied",
    ),
    Case(
        "a folder that may not be read", ("tasks", "show", "d/"), {"d/train.csv": GOOD_CSV}, "d.*[Pp]ermission denied"
    ),
    Case(
        "a folder that may not be entered",
        ("tasks", "show", "d/train.csv"),
        {"d/train.csv": GOOD_CSV},
        "[Pp]ermission denied",
    ),
    Case(
        "a data folder that may not be read",
        ("tasks", "list", "--data", "d"),
        {"d/t/train.csv": GOOD_CSV},
        "ermission denied",
    ),
]


@pytest.mark.parametrize("case", [*ENCODINGS, *JSON, *TEXTS, *CSV, *PATHS, *PARQUET, *PREDICTED, *ADAPTED], ids=str)
def test_data(case: Case, server: ForkServer):
    server.check(case)


@pytest.mark.parametrize("case", UNREADABLE, ids=str)
def test_data_that_may_not_be_read(case: Case, server: ForkServer):
    server.check(case.closed())
