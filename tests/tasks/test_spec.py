from pathlib import Path

import pytest

from promptprior.errors import DataError, SpecError
from promptprior.tasks.loading.readers import Row, Rows, rows_of
from promptprior.tasks.loading.spec import CATALOGUE, TaskSpec, label_index, read_spec, render, spec_from
from promptprior.tasks.task import content_id

CHOICE = {
    "task": "mood",
    "output_type": "multiple_choice",
    "doc_to_text": "Review: {{text}}\nMood:",
    "doc_to_target": "label",
    "doc_to_choice": ["bad", "good"],
}
FREE = {"task": "capital", "doc_to_text": "{{question}}", "doc_to_target": "answers"}


def spec(**keys: object) -> TaskSpec:
    return spec_from({**CHOICE, **keys}, "mood.yaml")


def one(s: TaskSpec, **row: object) -> object:
    return render(s, rows_of([row], "train.jsonl"))[0]


def test_a_choice_example() -> None:
    row = {"text": "fine", "label": 1}
    (example,) = render(spec(), rows_of([row], "x"))
    assert example.text == "Review: fine\nMood:"
    assert (example.target, example.choices, example.label) == ("good", ("bad", "good"), 1)
    assert (example.id, example.references, example.group) == (content_id(row), (), "")


def test_free_text_keeps_every_accepted_answer_once() -> None:
    rows: list[Row] = [
        {"question": "q", "answers": [" Paris", "paris", "Paris"]},
        {"question": "q", "answers": {"text": ["Rome"], "answer_start": [3]}},
        {"question": "q", "answers": 42},
    ]
    examples = render(spec_from(FREE, "x"), rows_of(rows, "x"))
    assert [e.references for e in examples] == [("Paris", "paris"), ("Rome",), ("42",)]
    assert [e.target for e in examples] == ["Paris", "Rome", "42"]
    assert all(e.label is None and e.choices == () for e in examples)


def test_ids_that_different_rows_share_are_told_apart() -> None:
    rows: list[Row] = [{"id": "customer", "text": text, "label": 1} for text in ("a", "b", "a", "c")]
    made = render(spec(doc_to_id="id"), rows_of(rows, "x"))
    assert [e.id for e in made] == ["customer", "customer#2", "customer", "customer#3"]
    assert made[0] == made[2]


def test_ids_groups_filters_and_choices_from_the_row() -> None:
    s = spec(doc_to_choice="{{[a, b]}}", doc_to_id="{{n}}-x", doc_to_group="{{n // 2}}", doc_filter="{{label >= 0}}")
    rows: list[Row] = [{"text": "t", "a": "x", "b": "y", "n": n, "label": (n % 3) - 1} for n in range(6)]
    examples = render(s, rows_of(rows, "x"))
    assert [e.id for e in examples] == ["1-x", "2-x", "4-x", "5-x"]
    assert [e.group for e in examples] == ["0", "1", "2", "2"]
    assert [e.target for e in examples] == ["x", "y", "x", "y"]


@pytest.mark.parametrize(
    ("value", "label"), [(1, 1), ("1", 1), (1.0, 1), ("good", 1), (" good ", 1), ("POS", 1), (True, 1), (False, 0)]
)
def test_a_label_is_an_index_a_choice_or_a_name(value: object, label: int) -> None:
    assert label_index(value, ("bad", "good"), ("NEG", "POS"), "x") == label


def test_a_choice_that_is_a_digit_wins_over_an_index() -> None:
    assert label_index("1", ("1", "2"), (), "x") == 0
    assert label_index(1, ("1", "2"), (), "x") == 1


@pytest.mark.parametrize("value", [2, -1, "2", "fine", 0.5, [1], "nan", "inf"])
def test_a_label_outside_the_list_names_file_line_and_list(value: object) -> None:
    rows = Rows("train.jsonl", ({"text": "a", "label": 0}, {"text": "b", "label": value}), (1, 7))
    with pytest.raises(
        DataError, match=r"train.jsonl line 7: label .* is outside the list \(expected 0 to 1 or one of"
    ):
        render(spec(), rows)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"label": 0}, r"train.jsonl row 1: doc_to_text: missing column 'text' .*\(columns: label\)"),
        ({"text": "a"}, r"train.jsonl row 1: doc_to_target: missing column 'label' .*\(columns: text\)"),
        ({"text": "a", "label": None}, "doc_to_target: column 'label' is null"),
        ({"text": "a", "label": float("nan")}, "doc_to_target: column 'label' is NaN"),
        ({"text": "", "label": 0}, r"doc_to_text gives an empty text \(columns: 'text'\)"),
    ],
)
def test_rows_that_do_not_fit(row: Row, message: str) -> None:
    with pytest.raises(DataError, match=message):
        one(spec(), **row)


@pytest.mark.parametrize("answers", ["", "  ", [], [""], {"text": []}])
def test_an_empty_target(answers: object) -> None:
    with pytest.raises(DataError, match="x row 1: doc_to_target gives an empty target"):
        render(spec_from(FREE, "f"), rows_of([{"question": "q", "answers": answers}], "x"))


def test_choices_of_a_row_must_be_a_list_of_answers() -> None:
    with pytest.raises(DataError, match=r"doc_to_choice must give a list of at least two answers, got \['x'\]"):
        one(spec(doc_to_choice="{{[a]}}"), text="t", a="x", label=0)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"doc_to_txt": "a"}, r"mood.yaml: unknown key 'doc_to_txt'; did you mean 'doc_to_text'"),
        ({"doc_to_text": None}, "mood.yaml: 'doc_to_text' is missing"),
        ({"doc_to_text": "{{text"}, "mood.yaml: bad Jinja"),
        ({"doc_to_text": ["a"]}, r"mood.yaml: 'doc_to_text' is \['a'\]; expected text"),
        ({"output_type": "loglikelihood"}, "mood.yaml: 'output_type' is an unknown choice 'loglikelihood'"),
        ({"doc_to_choice": [False, True]}, r"'doc_to_choice\[0\]' is False; expected text; put it in quotes"),
        ({"doc_to_choice": ["a", "a"]}, r"doc_to_choice needs at least two different words, got \['a', 'a'\]"),
        ({"doc_to_choice": None}, "output_type multiple_choice needs doc_to_choice"),
        ({"doc_to_choice": 3}, "'doc_to_choice' is 3; expected text or a list"),
        ({"metadata": {"label_names": ["a", "b", "c"]}}, "2 choices but 3 metadata.label_names"),
        ({"metadata": {"licens": "MIT"}}, "mood.yaml in 'metadata': unknown key 'licens'; did you mean 'licence'"),
        ({"metadata": "x"}, "mood.yaml: metadata: expected a mapping, got 'x'"),
        ({"metric_list": ["acurracy"]}, "metric_list: unknown metric 'acurracy'; did you mean 'accuracy'"),
        ({"metric_list": "accuracy"}, "metric_list: expected a list of names"),
        ({"generation_kwargs": {"max_gen_toks": 0}}, "generation_kwargs.max_gen_toks must be at least 1, got 0"),
        ({"generation_kwargs": {"max_tokens": 3}}, "unknown key 'max_tokens'; did you mean 'max_gen_toks'"),
        ({"dataset_kwargs": {"revison": "x"}}, "unknown key 'revison'; did you mean 'revision'"),
        ({"output_type": "generate_until"}, "doc_to_choice needs output_type: multiple_choice"),
    ],
)
def test_specs_that_say_something_impossible(keys: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        spec(**keys)


def test_label_names_stand_in_for_choices() -> None:
    assert spec(doc_to_choice=None, metadata={"label_names": ["no", "yes"]}).fixed_choices == ("no", "yes")


def test_defaults_by_output_type() -> None:
    assert spec().metrics == ("accuracy",)
    free = spec_from(FREE, "x")
    assert (free.output_type, free.metrics, free.target_delimiter) == ("generate_until", ("exact_match",), " ")


def test_every_metric_a_spec_may_name_can_be_computed() -> None:
    from promptprior.tasks.loading.spec import LM_EVAL_METRICS
    from promptprior.tasks.metrics import METRICS

    assert spec(metric_list=list(METRICS)).metrics == tuple(METRICS)
    assert spec(metric_list=list(LM_EVAL_METRICS)).metrics == tuple(LM_EVAL_METRICS.values())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("doc_to_text: !function utils.f\n", r"x.yaml, line 1: '!function' runs Python code, which promptprior never"),
        ("task: a\n  b: c: d\n", "x.yaml, line 2: mapping values are not allowed here"),
        ("- a\n", "x.yaml: expected 'key: value' lines"),
        ("task: !!python/object/apply:os.system [ls]\n", "x.yaml, line 1: could not determine a constructor"),
    ],
)
def test_files_that_are_no_spec(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "x.yaml").write_text(content)
    with pytest.raises(SpecError, match=message):
        read_spec(tmp_path / "x.yaml")


def test_bare_yes_and_no_are_words(tmp_path: Path) -> None:
    keys = "task: x\ndoc_to_text: '{{q}}'\ndoc_to_target: label\ndoc_to_choice: [no, yes]\nmetadata: {version: 1.0}\n"
    (tmp_path / "x.yaml").write_text(keys)
    assert read_spec(tmp_path / "x.yaml").fixed_choices == ("no", "yes")
    assert read_spec(tmp_path / "x.yaml").metadata.version == "1.0"


def test_a_spec_may_include_one_that_the_package_ships(tmp_path: Path) -> None:
    (tmp_path / "short.yaml").write_text("include: catalogue:paws\ndoc_filter: '{{ sentence1 | length <= 40 }}'\n")
    assert read_spec(tmp_path / "short.yaml").doc_to_choice == read_spec(CATALOGUE / "paws.yaml").doc_to_choice
    (tmp_path / "near.yaml").write_text("include: catalogue:pawz\n")
    with pytest.raises(SpecError, match=r"near\.yaml: include.*'pawz'.*paws"):
        read_spec(tmp_path / "near.yaml")
    for path in sorted((Path(__file__).parents[2] / "experiments" / "tasks").glob("*.yaml")):
        read_spec(path)


def test_an_included_file_gives_what_the_spec_does_not_say(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("doc_to_text: '{{text}}'\ndoc_to_target: label\ndescription: Base.\n")
    (tmp_path / "x.yaml").write_text("include: base.yaml\ntask: x\ndescription: 'Mine. '\n")
    s = read_spec(tmp_path / "x.yaml")
    assert render(s, rows_of([{"text": "a", "label": "b"}], "x"))[0].text == "Mine. a"
