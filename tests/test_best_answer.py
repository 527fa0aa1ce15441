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
    for files in (("answers.jsonl", "trained.jsonl"), ("with_head.jsonl",)):
        import_module("best_answer").table([rows / name for name in files])
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    page = (REPOSITORY / "docs/best_answer.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 44  # a title and two lines of heads; 16 methods at k = 8, as many at k = 16; 3 of two draws
    assert [line for line in lines if line not in page] == []
