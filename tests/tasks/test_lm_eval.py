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
    return spec.doc_filter is None and "doc[" not in spec.doc_to_text and bool(set(spec.metrics) & set(LM_EVAL_NAMES))


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


@pytest.mark.parametrize(
    ("name", "reason"),
    [("snli", "doc_filter"), ("gap", r"doc\['a name'\]"), ("gsm8k", "none of the metrics number_match")],
)
def test_specs_lm_eval_would_score_differently_are_refused(name: str, reason: str) -> None:
    with pytest.raises(SpecError, match=f"task '{name}' cannot be written for lm-eval: .*{reason}"):
        to_lm_eval(catalogue_spec(name))
