"""The page of the best answer has the numbers of its rows."""

from importlib import import_module
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


def test_the_tables_of_the_page_are_what_the_rows_say(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    rows = REPOSITORY / "docs/studies/results/best_answer"
    import_module("best_answer").table([rows / "answers.jsonl", rows / "trained.jsonl"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    page = (REPOSITORY / "docs/best_answer.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 37  # two tables: a title, two lines of heads; 15 methods at k = 8 and 16 at k = 16
    assert [line for line in lines if line not in page] == []
