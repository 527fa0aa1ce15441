"""The examples in docstrings are true."""

import doctest
import importlib
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src/promptprior"
FILES = [path for path in sorted(SOURCE.rglob("*.py")) if ">>>" in path.read_text()]


def test_there_are_examples() -> None:
    assert len(FILES) > 5
    ours = [doctest.DocTestFinder().find(importlib.import_module(module_of(path))) for path in FILES]
    assert sum(len(test.examples) for tests in ours for test in tests) > 20


def module_of(path: Path) -> str:
    return ".".join(("promptprior", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_examples(path: Path) -> None:
    assert doctest.testmod(importlib.import_module(module_of(path))).failed == 0
