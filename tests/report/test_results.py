"""The contract of a result row: strict, and the same there and back; and rows as a table."""

import io
import json

import pytest

from promptprior.errors import DataError, SpecError
from promptprior.report.results import Row, read_rows, rows_table
from tests.report.result_rows import result_row


def test_there_and_back():
    value = result_row()
    row = Row.from_json(value)
    assert json.loads(json.dumps(row.to_json())) == json.loads(json.dumps(value))
    assert Row.from_json(row.to_json()) == row


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"scor": 1}, "line 3: unknown key 'scor'; did you mean 'score'"),
        ({"k": "16"}, "line 3: 'k' is '16'; expected a whole number"),
        ({"k": True}, "line 3: 'k' is True; expected a whole number"),
        ({"seed": 1.5}, "line 3: 'seed' is 1.5; expected a whole number"),
        ({"score": float("nan")}, "line 3: 'score' is nan; expected a finite number"),
        ({"method": None}, "line 3: 'method' is None; expected text"),
        ({"sources": "a"}, "line 3: 'sources' is 'a'; expected a list"),
        ({"sources": [1]}, r"line 3: 'sources\[0\]' is 1; expected text"),
        ({"scores": {"accuracy": "x"}}, r"line 3: 'scores.accuracy' is 'x'; expected a number"),
        ({"cost": {"seconds": 1}}, r"line 3: 'cost.rows' is missing; .* \(missing too: tokens, source_seconds"),
        ({"curve": [{"step": 1}]}, r"line 3: 'curve\[0\].train_loss' is missing"),
        ({"status": "done"}, r"line 3: 'status' is an unknown choice 'done'; \(known: failed, ok\)"),
        ({"score": None}, "line 3: score: an ok cell needs a number, got null"),
        ({"status": "failed", "error": "x"}, "line 3: a failed cell needs score null and an error"),
        ({"status": "failed", "score": None}, "line 3: a failed cell needs score null and an error"),
    ],
)
def test_anything_else_is_refused(change, text):
    with pytest.raises(DataError, match=text):
        Row.from_json(result_row() | change, "line 3")


def test_results_written_before_diagnostics_still_load():
    old = result_row()
    del old["diagnostics"]
    assert Row.from_json(old) == Row.from_json(result_row(diagnostics={}))
    new = result_row(diagnostics={"retrieval": {"rows": 8, "tasks": ["capital"], "map": [[0.5, 1.0]]}})
    assert Row.from_json(json.loads(json.dumps(new))).to_json()["diagnostics"] == new["diagnostics"]
    with pytest.raises(DataError, match=r"row: 'diagnostics' is \[\]; expected 'key: value' settings"):
        Row.from_json(result_row(diagnostics=[]))


def test_a_missing_key_is_named():
    value = result_row()
    del value["family"]
    with pytest.raises(DataError, match="row: 'family' is missing"):
        Row.from_json(value)
    with pytest.raises(DataError, match=r"row: expected an object, got \[\]"):
        Row.from_json([])


def test_the_last_line_of_a_cell_counts(tmp_path):
    path = tmp_path / "results.jsonl"
    failed = result_row(status="failed", score=None, scores={}, error="boom")
    lines = [failed, result_row(cell="other"), result_row(score=0.75)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"cell": "cut o')
    assert [(r.cell, r.score) for r in read_rows(path)] == [("c0", 0.75), ("other", 0.5)]
    assert read_rows(tmp_path / "absent.jsonl") == ()


def test_a_bad_line_is_named(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(result_row()) + "\n" + json.dumps(result_row(k=None)) + "\n")
    with pytest.raises(DataError, match=r"results.jsonl, row 2: 'k' is None; expected a whole number"):
        read_rows(path)


def test_older_rows_know_no_constant_answer():
    older = {name: value for name, value in result_row().items() if name != "constant"}
    assert Row.from_json(older).constant is None
    assert Row.from_json(result_row(constant=0.6)).constant == 0.6


def test_rows_are_a_table_that_pandas_reads():
    pandas = pytest.importorskip("pandas", reason="needs pandas and pyarrow: pip install 'promptprior[hub]'")
    failed = {"cell": "c1", "score": None, "scores": {}, "status": "failed", "error": "x\ny"}
    changes = [{"settings": {"rate": 1, "flag": True, "rates": [1, 2], "target": {"steps": 5}}}, failed]
    rows = [Row.from_json(result_row(**change)) for change in changes]
    rows.append(Row.from_json(result_row(cell="c2", settings={"rate": 0.5, "flag": "auto"})))
    for suffix, read in ((".parquet", pandas.read_parquet), (".csv", pandas.read_csv)):
        frame = read(io.BytesIO(rows_table(rows, suffix)))
        assert list(frame["cell"]) == ["c0", "c1", "c2"]
        assert list(frame["settings.rate"].dropna()) == [1.0, 0.5]
        assert list(frame["settings.flag"].dropna()) == ["true", "auto"]
        assert frame["settings.rates"][0] == "[1, 2]"
        assert (frame["settings.target.steps"][0], frame["k"].tolist()) == (5, [16, 16, 16])
        assert frame["score"].isna().tolist() == [False, True, False]
        assert frame["error"][1] == "x\ny"
        assert {"scores.accuracy", "cost.seconds", "backbone.name", "versions.torch"} <= set(frame.columns)
        assert not {"curve", "shots", "diagnostics"} & set(frame.columns)
    with pytest.raises(SpecError, match=r"\.csv or \.parquet"):
        rows_table(rows, ".xlsx")
