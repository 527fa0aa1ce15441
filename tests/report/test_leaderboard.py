"""The leaderboard: everybody's results on one page, the best first, with where they come from."""

import json
from pathlib import Path

import pytest

from promptprior.cli import main
from promptprior.errors import DataError
from promptprior.report.leaderboard import Entry, make_leaderboard
from tests.report.result_rows import result_row
from tests.report.test_page import Page


def results(folder: Path, **scores: float) -> Path:
    """The folder of one person: methods with their scores on the target `capital`, two seeds each."""
    folder.mkdir(parents=True)
    rows = [
        result_row(cell=f"{method}{seed}{score}", method=method, seed=seed, score=score + seed / 1000)
        for method, score in scores.items()
        for seed in (13, 21)
    ]
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_the_best_entry_stands_first_with_its_provenance(tmp_path: Path):
    results(tmp_path / "all" / "ann", prompt_tuning=0.5, spot=0.7)
    (tmp_path / "all" / "ann" / "plan.yaml").write_text("# written by promptprior compare\nseeds: [13]\n")
    results(tmp_path / "all" / "bob", prompt_tuning=0.5, multitask=0.6)
    entries = [*Entry.read(str(tmp_path / "all")), *Entry.read(f"eve={results(tmp_path / 'x', prompt_tuning=0.4)}")]
    assert [entry.person for entry in entries] == ["ann", "bob", "eve"]
    board = make_leaderboard(entries, "Board", "prompt_tuning")
    [table, sources, repeated, *_] = board.tables
    assert [row[2].text for row in table.rows] == [
        "spot (ann)", "multitask (bob)", "prompt_tuning (ann)", "prompt_tuning (bob)", "prompt_tuning (eve)",
    ]  # fmt: skip
    assert table.rows[0][5].numbers[0] == pytest.approx(0.717)
    made = ["promptprior compare plan.yaml", "SmolLM2-135M-Instruct (ab12cd34)", "promptprior 0.1.0, torch 2.13.0"]
    assert [cell.text for cell in sources.rows[0]][3:] == [*made, "4", "0"]
    assert sources.rows[1][3].text == "not said"
    assert [[c.text for c in row[3:6]] for row in repeated.rows] == [
        ["13", "ann, bob", "equal"],
        ["21", "ann, bob", "equal"],
    ]
    assert board.grid.baseline == "prompt_tuning (ann)"


def test_the_command_writes_one_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    ann, bob = results(tmp_path / "ann", prompt_tuning=0.5, spot=0.7), results(tmp_path / "bob", spot=0.6)
    words = ["leaderboard", f"{ann},<b>=x={bob}", "--output", str(tmp_path / "board.html")]
    assert main([*words, "--dry-run"]) == 0
    assert not (tmp_path / "board.html").exists()
    assert main(words) == 0
    page = Page(tmp_path / "board.html")
    assert page.cells.index("spot (ann)") < page.cells.index("spot (<b>=x)") < page.cells.index("prompt_tuning (ann)")
    assert "promptprior leaderboard" in page.text
    assert not [attributes for tag, attributes in page.tags if attributes.get("src") or attributes.get("href")]
    capsys.readouterr()
    for wrong, message in {
        f"{ann},{ann}": "two entries are called ann: say who they are (PERSON=FOLDER)",
        str(tmp_path / "none"): "no results.jsonl there, nor in a folder in it",
    }.items():
        assert main(["leaderboard", wrong, "--output", str(tmp_path / "other.html")]) == 2
        assert message in capsys.readouterr().err


def test_results_without_a_score_are_refused(tmp_path: Path):
    folder = results(tmp_path / "ann", spot=0.7)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "results.jsonl").write_text("")
    with pytest.raises(DataError, match="no result rows; leave it out"):
        Entry.read(str(tmp_path / "empty"))
    row = result_row(status="failed", score=None, scores={}, error="it diverged")
    (folder / "results.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match="no result row has a score"):
        make_leaderboard(Entry.read(str(folder)), "Board", "prompt_tuning")
