import pytest

from promptprior.errors import DataError, SpecError
from promptprior.tasks.loading.template import compile_template


def value(source: str, **row: object) -> object:
    return compile_template(source).value(row, "f.jsonl line 3", "doc_to_text")


def test_columns_and_single_expressions_keep_their_type() -> None:
    assert value("label", label=2) == 2
    assert value("{{label}}", label=2) == 2
    assert value("{{ choices.text }}", choices={"text": ["a", "b"]}) == ["a", "b"]
    assert value("{{[one, two]}}", one="a", two="b") == ["a", "b"]
    assert value("{{- label -}}", label=1) == 1


def test_everything_else_is_text_with_newlines_kept() -> None:
    assert value("{{a}}, {{b}}\n", a=1, b="x") == "1, x\n"
    assert value("plain text, no braces") == "plain text, no braces"
    assert value("{% if a %}yes{% endif %}", a=True) == "yes"


def test_columns_with_spaces_and_lm_evals_filter() -> None:
    assert value("{{doc['my text']}}!", **{"my text": "hi"}) == "hi!"
    assert compile_template("{{doc['my text']}} {{b}}").columns == ("b", "my text")
    assert value("{{a | regex_replace('[0-9]', '#')}}", a="x1y2") == "x#y#"


@pytest.mark.parametrize(
    ("source", "row", "message"),
    [
        ("txt", {"text": "a"}, r"f.jsonl line 3: doc_to_text: missing column 'txt' in 'txt' \(columns: text\); write"),
        ("{{txt}}", {"text": "a", "id": 1}, r"missing column 'txt' in '{{txt}}' \(columns: text, id\)$"),
        ("A: {{txt}}", {"text": "a"}, "missing column 'txt'"),
        ("{{doc['my text']}}", {"text": "a"}, "missing column 'my text'"),
        ("text", {"text": None}, "column 'text' is null"),
        ("{{text}}", {"text": float("nan")}, "column 'text' is NaN"),
        ("A: {{text}}", {"text": None}, "column 'text' is null"),
        ("{{[a, b]}}", {"a": "x", "b": None}, "column 'b' is null"),
        ("{{a.b}}", {"a": {"c": 1}}, "has no attribute 'b'"),
        ("{{a | int / 0}}", {"a": "1"}, "division by zero"),
        ("{{a.index('z')}}", {"a": ["x"]}, "'z' is not in list"),
    ],
)
def test_rows_that_cannot_be_rendered(source: str, row: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        value(source, **row)


def test_bad_jinja_is_a_spec_error() -> None:
    with pytest.raises(SpecError, match=r"my.yaml: bad Jinja in '{{a': unexpected end of template"):
        compile_template("{{a", "my.yaml")


@pytest.mark.parametrize("source", ["{{ a.__class__.__mro__ }}", "x{{ a.__init__.__globals__ }}", "{{ a.append(1) }}"])
def test_templates_reach_no_python(source: str) -> None:
    row: list[object] = []
    with pytest.raises(DataError):
        value(source, a=row)
    assert row == []


def test_a_template_is_compiled_once() -> None:
    assert compile_template("{{once}}") is compile_template("{{once}}")
