"""Documents, notebooks and docstrings pass the prose linter (`make prose`), and the linter finds what it should."""

import sys
from pathlib import Path

import pytest
from harper import Linter

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY / "tools"))

import prose  # noqa: E402


@pytest.fixture(scope="module")
def harper() -> Linter:
    return prose.linter()


@pytest.mark.parametrize("suffix", [".md", pytest.param(".py", marks=pytest.mark.slow)])
def test_documents_and_docstrings_are_clean(suffix: str, harper: Linter) -> None:
    words, paths = prose.known_words(), [path for path in prose.documents() if path.suffix == suffix]
    found = [str(finding) for path in paths for finding in prose.check(path, harper, words)]
    assert found == []


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("SpellCheck", "Adaptaton starts from a prior."),
        ("SpellCheck", "Scores come from the XQZ of a model."),  # an abbreviation that docs/notation.md lacks
        ("RepeatedWords", "It learns the the prior."),
        ("AnA", "This is an prior of many tasks."),
        ("LongSentences", f"It reads {', '.join(['a text'] * 20)} and a prompt."),
        ("Filler", "It simply learns."),
        ("Latin", "It reads files, e.g. tables."),
        ("RetiredWord", "The report has two exhibits."),
    ],
)
def test_the_linter_finds(rule: str, text: str, harper: Linter, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(f"# Page\n\nA line before.\n{text}\n")
    module = f'"""A module."""\n\n\ndef f():\n    """One line.\n\n    {text}\n    """\n'
    (tmp_path / "module.py").write_text(module)
    for name, line in (("page.md", 4), ("module.py", 7)):
        found = list(prose.check(tmp_path / name, harper, prose.known_words()))
        assert [(f.rule, f.line) for f in found] == [(rule, line)], name


def test_code_links_and_decimals_are_no_prose(harper: Linter, tmp_path: Path) -> None:
    page = "Xyzzq is not read in `xyzzq`, [a page](xyzzq.md), xyzzq_name, --xyzzq or notes/xyzzq.md; .75 is a number.\n"
    (tmp_path / "page.md").write_text(page + "\n```\nxyzzq\n```\n")
    assert [f.words for f in prose.check(tmp_path / "page.md", harper, set())] == ["Xyzzq"]


def test_every_word_of_the_vocabulary_is_sorted_and_needed() -> None:
    parts = prose.VOCABULARY.read_text(encoding="utf-8").strip().split("\n\n")[1:]
    for heading, *words in (part.splitlines() for part in parts):
        assert heading.startswith("# ")
        assert words == sorted(set(words)), heading
    words = prose.vocabulary()
    assert len(words) == len(set(words))
    plain = Linter(prose.Dialect.BRITISH)
    plain.set_lint_config({rule: rule == "SpellCheck" for rule in plain.get_default_lint_config()})
    assert [word for word in words if not plain.lint(f"We read {word} here.")] == []
    everything = "\n".join(prose.masked(prose.prose(path)) for path in prose.documents()).lower()
    assert [word for word in words if word.lower() not in everything] == []


def test_the_rules_that_are_off_are_rules_of_harper() -> None:
    assert prose.OFF.keys() <= prose.linter().get_default_lint_config().keys()
