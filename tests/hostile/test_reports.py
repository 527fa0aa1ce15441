"""Hostile results.jsonl: broken lines, numbers that no cell can have, odd diagnostics, names with parts of paths."""

# ruff: noqa: E501  # tables of cases, a case a line

import json
from typing import Any

import pytest

from tests.hostile.harness import Case, ForkServer
from tests.report.result_rows import grid_rows, result_row

SMALL = grid_rows(
    ks=(4,), seeds=(13, 21), targets={"is_prime": ("numbers", 0.5, 0.1), "antonym": ("lexical", 0.5, 0.1)}
)
GOOD_LINES = "".join(json.dumps(row) + "\n" for row in SMALL)
REPORT = ("report", "r.jsonl", "--output", "page.html")


def results(name: str, lines: str | bytes, refused: str, *words: str) -> Case:
    return Case(name, (*REPORT, *words), {"r.jsonl": lines}, refused)


def row(refused: str, **changes: Any) -> Case:
    """Good rows, then one with a change; of a value that is a mapping the given keys."""
    whole = result_row(cell="odd")
    for key, value in changes.items():
        whole[key] = {**whole[key], **value} if isinstance(value, dict) and whole[key] else value
    text = ", ".join(f"{key} {value!r}" for key, value in changes.items())
    return results(
        text[:80],
        GOOD_LINES + json.dumps(whole) + "\n",
        f"row {len(SMALL) + 1}: .*(?:{refused})|line {len(SMALL) + 1}: .*(?:{refused})",
    )


def retrieval(refused: str, **values: Any) -> Case:
    return row(f"diagnostics.retrieval.{refused}", diagnostics={"retrieval": values})


HUGE = 10**299
CASES = [
    results("no bytes", "", "nothing to report"),
    results("empty lines", "\n\n\n", "nothing to report"),
    results("a broken line", GOOD_LINES + "{\n" + GOOD_LINES, f"r.jsonl line {len(SMALL) + 1}: not JSON.*delete this line"),
    results("text", "zebra\n", "r.jsonl line 1: not JSON"),
    results("NUL", GOOD_LINES + "\0" * 99 + "\n", "line .*not JSON"),
    results("no UTF-8", b"\xff\xfe\n", "r.jsonl line 1: .*utf-8"),
    results("deep lists", "[" * 100_000 + "\n", "r.jsonl line 1: .*nested"),
    results("a list", "[]\n", "row 1: expected an object"),
    results("a list of 10 MB", json.dumps(["x" * 10**7]) + "\n", "row 1: expected an object"),
    results("a number", "3\n", "row 1: expected an object"),
    results("a row of no keys", "{}\n", "row 1: 'cell'.*missing"),
    results("a score of 400 digits", GOOD_LINES + json.dumps(result_row(score=10**400)) + "\n", "digits"),
    results("a key twice", '{"cell": "a", "cell": "b"}\n', "line 1: .*twice"),
    results("half of a surrogate pair", GOOD_LINES + json.dumps(result_row(error="\ud800")) + "\n", "surrogate"),
    results("baseline zebra", GOOD_LINES, "unknown method 'zebra'.*--baseline", "--baseline", "zebra"),
    results("baseline ../x", GOOD_LINES, r"unknown method '\.\./x'.*--baseline", "--baseline", "../x"),
    results("baseline of no name", GOOD_LINES, "unknown method ''.*--baseline", "--baseline", ""),
    results("page onto the results", GOOD_LINES, "reads", "--markdown", "r.jsonl"),
    results("tables into a file", GOOD_LINES, "--csv", "--csv", "r.jsonl"),
    Case("results that are not there", ("report", "zebra.jsonl"), {}, "zebra.jsonl: no such file"),
    row("score", score="0.5"),
    row("score: 1e.308 is no result", score=1e308),
    row("is no result", score=-1e308),
    row("score", score=float("nan")),
    row("is no result", score=HUGE),
    row("score.*null", score=None),
    row("scores", scores={"accuracy": "x"}),
    row("scores|is no result", scores={"accuracy": 1e308}),
    row("dev_score|is no result", dev_score=1e308),
    row("k -1", k=-1),
    row("is no result", k=HUGE),
    row("'k'", k="4"),
    row("seed -1", seed=-1),
    row("steps -1", steps=-1),
    row("n test -1", n_test=-1),
    row("seconds -1", cost={"seconds": -1.0}),
    row("is no result", cost={"tokens": HUGE}),
    row("cost.rows", cost={"rows": "x"}),
    row("curve", curve="x"),
    row("curve", curve=[1]),
    row("curve.*step", curve=[{"step": "x", "train_loss": 1.0, "dev_score": None, "dev_nll": None}]),
    row("is no result", curve=[{"step": 1, "train_loss": 1e308, "dev_score": None, "dev_nll": None}]),
    row("settings", settings=[1]),
    row("is no result", settings={"a": [1e308]}),
    row("status", status="zebra"),
    row("failed cell", status="failed"),
    row("diagnostics", diagnostics=[1]),
    row("diagnostics.a.b: 1e.308 is no result", diagnostics={"a": {"b": 1e308}}),
    row("is no result", diagnostics={"a": float("nan")}),
    row("method", method=3),
    row("target", target=None),
    retrieval("tasks", tasks="abc", map=[]),
    retrieval("tasks", tasks=[1], map=[[0.5]]),
    retrieval("map", tasks=["a"], map=[]),
    retrieval("map", map="x"),
    retrieval("map", tasks=["a"], map=[["x"]]),
    retrieval("map", tasks=["a"], map=[0.5]),
    retrieval("map", tasks=["a"], map=[[-1.0, 0.5]]),
    retrieval("tokens", tokens=[1]),
    retrieval("tokens", tokens="zebra"),
    retrieval("tokens", tokens=[{"row": 1}]),
    retrieval("tokens", tokens=[{"row": 1, "words": 3, "share": 0.1, "rms": 1.0}]),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_hostile_result_is_refused(case: Case, server: ForkServer) -> None:
    server.check(case)


ODD: dict[str, dict[str, Any]] = {
    "names of paths": {"method": "../../etc/x", "target": "/etc/passwd", "family": "..", "sources": ["../a"]},
    "names of HTML": {"method": "<script>alert(1)</script>", "target": "</td><b>", "error": "<img src=x>"},
    "names of no letters": {"method": "", "target": "", "family": "", "metric": ""},
    "a prior that is a list": {"settings": {"prior": [1, {"a": 2}]}},
    "diagnostics of every kind": {"diagnostics": {"a": [1], "": {"": 1}, "b": None, "c": "x", "retrieval": 3, "d": {"e": [[]]}}},
    "no retrieval": {"diagnostics": {"retrieval": {"tasks": ["a"], "map": [[]]}}},
    "a retrieval that adds up to nothing": {"diagnostics": {"retrieval": {"tasks": ["a"], "map": [[0, 0]]}}},
    "a loss of 1e29": {"metric": "zebra", "score": 1e29, "curve": [{"step": 2, "train_loss": 1e29, "dev_score": 1e29, "dev_nll": -1e29}]},
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_an_odd_result_is_reported(name: str, server: ForkServer) -> None:
    lines = GOOD_LINES + "".join(json.dumps(result_row(cell=f"c{s}", seed=s, **ODD[name])) + "\n" for s in (13, 21))
    words = (*REPORT, "--markdown", "page.md", "--csv", "tables")
    outcome = server.check(Case(name, words, {"r.jsonl": lines}, prints="page.html", cpu_seconds=30))
    assert "tables/" in outcome.out
    assert ".." not in outcome.out


@pytest.mark.slow
def test_five_hundred_seeds_are_reported_in_little_memory(server: ForkServer) -> None:
    """A bootstrap that held every run against every run in every draw took 24 GB for nine hundred."""
    rows = grid_rows(ks=(4,), seeds=range(500), targets={"antonym": ("lexical", 0.5, 0.1)})
    kept = [row for row in rows if row["method"] in ("prompt_tuning", "multitask")]
    assert len(kept) == 1000
    lines = "".join(json.dumps(row) + "\n" for row in kept)
    server.check(Case("500 seeds", REPORT, {"r.jsonl": lines}, prints="page.html", cpu_seconds=30))
