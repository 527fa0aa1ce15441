"""Specs as lm-evaluation-harness reads them. (Reading its simple YAML files needs nothing: the words agree.)"""

from collections.abc import Mapping

import yaml

from promptprior.errors import SpecError
from promptprior.tasks.loading.spec import OUR_BLOCK, TaskSpec

LM_EVAL_NAMES = {
    "accuracy": "acc",
    "acc_norm": "acc_norm",
    "f1": "f1",
    "matthews_correlation": "mcc",
    "exact_match": "exact_match",
    "bleu": "bleu",
}
OURS = ("doc_to_group", "doc_to_id")


def to_lm_eval(spec: TaskSpec) -> str:
    """The spec as a YAML file for `lm_eval --include_path`.

    What lm-eval has no key for (doc_to_group, doc_to_id, metrics it does not know) goes to `metadata.promptprior`,
    which it ignores and `read_spec` reads back. Raises SpecError for a spec it would score differently: one with
    doc_filter, one that reads `doc[...]`, or one with none of its metrics.
    """
    metrics = [LM_EVAL_NAMES[name] for name in spec.metrics if name in LM_EVAL_NAMES]
    for reason in unexportable(spec, metrics):
        raise SpecError(f"{spec.where}: task {spec.task!r} cannot be written for lm-eval: {reason}")
    keys = {**dataset_keys(spec), **document_keys(spec)}
    keys["metric_list"] = [{"metric": name, "higher_is_better": True} for name in metrics]
    if spec.output_type == "generate_until":
        keys["generation_kwargs"] = {"until": ["\n"], "max_gen_toks": spec.max_gen_toks, "do_sample": False}
    keys["metadata"] = metadata_keys(spec)
    return yaml.safe_dump(keys, sort_keys=False, allow_unicode=True, width=110)


def unexportable(spec: TaskSpec, metrics: list[str]) -> list[str]:
    """Why lm-eval would not compute the same score."""
    reasons = []
    if spec.doc_filter is not None:
        reasons.append("doc_filter has no counterpart but a Python function")
    if "doc[" in spec.doc_to_text + spec.doc_to_target:
        reasons.append("doc['a name'] is not known there")
    if not metrics:
        reasons.append(f"it knows none of the metrics {', '.join(spec.metrics)}")
    return reasons


def dataset_keys(spec: TaskSpec) -> dict[str, object]:
    """Where the rows come from."""
    keys = ("dataset_path", "dataset_name", "training_split", "validation_split", "test_split")
    given = {"task": spec.task, **{key: getattr(spec, key) for key in keys}}
    return {key: value for key, value in given.items() if value is not None} | (
        {"dataset_kwargs": dict(spec.dataset_kwargs)} if spec.dataset_kwargs else {}
    )


def document_keys(spec: TaskSpec) -> dict[str, object]:
    """How a row becomes text."""
    keys: dict[str, object] = {
        "output_type": spec.output_type,
        "description": spec.description,
        "doc_to_text": spec.doc_to_text,
        "doc_to_target": spec.doc_to_target,
        "target_delimiter": spec.target_delimiter,
    }
    if spec.doc_to_choice is not None:
        fixed = spec.fixed_choices
        keys["doc_to_choice"] = list(fixed) if fixed else spec.doc_to_choice
    return keys


def metadata_keys(spec: TaskSpec) -> Mapping[str, object]:
    """What lm-eval carries along without reading it; our own keys in a block of their own."""
    told = {key: value for key, value in vars(spec.metadata).items() if value}
    names = {"label_names": list(spec.metadata.label_names)} if spec.metadata.label_names else {}
    ours = {key: getattr(spec, key) for key in OURS if getattr(spec, key) is not None}
    return {**told, **names, OUR_BLOCK: {"metric_list": list(spec.metrics), **ours}}
