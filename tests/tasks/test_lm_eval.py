from pathlib import Path

import pytest
import yaml

from promptprior.errors import SpecError
from promptprior.tasks.loading.lm_eval import LM_EVAL_NAMES, to_lm_eval
from promptprior.tasks.loading.load import catalogue_names, catalogue_spec
from promptprior.tasks.loading.readers import rows_of
from promptprior.tasks.loading.spec import TaskSpec, read_spec, render, spec_from

# Written for this test in the shape lm-evaluation-harness's simple tasks have.
SIMPLE = """
tag: [some_suite]
task: weather
dataset_path: someone/weather
dataset_name: null
dataset_kwargs: {trust_remote_code: true}
output_type: multiple_choice
training_split: train
validation_split: validation
test_split: null
num_fewshot: 0
doc_to_text: "Q: {{question}}\\nA:"
doc_to_target: "{{choices.label.index(answerKey)}}"
doc_to_choice: "{{choices.text}}"
should_decontaminate: true
doc_to_decontamination_query: question
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
metadata: {version: 1.0}
"""


def test_a_simple_lm_eval_task_loads_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "weather.yaml").write_text(SIMPLE)
    spec = read_spec(tmp_path / "weather.yaml")
    assert spec.metrics == ("accuracy", "acc_norm")
    assert spec.metadata.version == "1.0"
    assert spec.dataset_kwargs == {}  # remote code is never asked for
    row = {"question": "Snow?", "choices": {"text": ["cold", "hot"], "label": ["A", "B"]}, "answerKey": "B"}
    (example,) = render(spec, rows_of([row], "x"))
    assert (example.text, example.target, example.label) == ("Q: Snow?\nA:", "hot", 1)


def test_a_target_that_always_stands_at_one_place() -> None:
    keys = {"task": "t", "doc_to_text": "{{q}}", "doc_to_choice": "{{[a, b]}}", "doc_to_target": 1}
    (example,) = render(spec_from(keys, "x"), rows_of([{"q": "?", "a": "no", "b": "yes"}], "x"))
    assert (example.target, example.label) == ("yes", 1)


def exportable(spec: TaskSpec) -> bool:
    known = set(spec.metrics) & set(LM_EVAL_NAMES[spec.output_type])
    reads_rows = spec.doc_filter is None and "doc[" not in spec.doc_to_text
    return reads_rows and spec.dataset_path is not None and bool(known)


def test_what_is_written_for_lm_eval_reads_back_as_the_same_spec() -> None:
    specs = [spec for name in catalogue_names() if exportable(spec := catalogue_spec(name))]
    assert len(specs) > 60
    for spec in specs:
        assert spec_from(yaml.safe_load(to_lm_eval(spec)), "x") == spec


def test_lm_eval_sees_its_own_names_only() -> None:
    written = yaml.safe_load(to_lm_eval(catalogue_spec("multirc")))
    assert written["metric_list"] == [{"metric": "f1", "higher_is_better": True}]
    assert "doc_to_group" not in written
    assert written["metadata"]["promptprior"]["metric_list"] == ["f1", "grouped_exact_match"]


def test_spaces_that_a_text_ends_in_are_its_delimiter() -> None:
    keys = {"task": "t", "dataset_path": "a/b", "doc_to_text": "{{q}} ", "doc_to_target": "a"}
    choice, free = spec_from({**keys, "doc_to_choice": ["x", "y"]}, "x"), spec_from(keys, "x")
    written = [yaml.safe_load(to_lm_eval(spec)) for spec in (choice, free)]
    assert [(w["doc_to_text"], w["target_delimiter"]) for w in written] == [("{{q}} ", ""), ("{{q}}", " ")]
    assert [spec_from(w, "x") for w in written] == [choice, free]


def test_words_before_a_column_leave_it_a_column() -> None:
    spec = spec_from({"task": "t", "description": "Read. ", "doc_to_text": "q", "doc_to_target": "a"}, "x")
    (example,) = render(spec, rows_of([{"q": "?", "a": "!"}], "x"))
    assert example.text == "Read. ?"


def test_the_values_of_a_mapping_are_the_choices() -> None:
    keys = {"task": "t", "doc_to_text": "q", "doc_to_target": "a", "doc_to_choice": {"A": "no", "B": 1}}
    assert spec_from(keys, "x").doc_to_choice == ("no", "1")


def test_sampled_answers_are_refused() -> None:
    keys = {"task": "t", "doc_to_text": "q", "doc_to_target": "a", "generation_kwargs": {"do_sample": True}}
    with pytest.raises(SpecError, match=r"generation_kwargs\.do_sample is true; expected false"):
        spec_from(keys, "x")


@pytest.mark.parametrize(
    ("name", "reason"),
    [("snli", "doc_filter"), ("gap", r"doc\['a name'\]"), ("gsm8k", "none of the metrics number_match")],
)
def test_specs_lm_eval_would_score_differently_are_refused(name: str, reason: str) -> None:
    with pytest.raises(SpecError, match=f"task '{name}' cannot be written for lm-eval: .*{reason}"):
        to_lm_eval(catalogue_spec(name))
