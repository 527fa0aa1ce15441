"""Specs as lm-evaluation-harness reads them. (Reading its simple YAML files needs nothing: the words agree.)"""

from promptprior.config.yaml_file import to_yaml
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
DATASET_KEYS = ("dataset_path", "dataset_name", "training_split", "validation_split", "test_split")
DOCUMENT_KEYS = ("output_type", "description", "doc_to_text", "doc_to_target", "target_delimiter")


def to_lm_eval(spec: TaskSpec) -> str:
    """The spec as a YAML file for `lm_eval --include_path`.

    What lm-eval has no key for (doc_to_group, doc_to_id, metrics it does not know) goes to `metadata.promptprior`,
    which it ignores and `read_spec` reads back. Raises SpecError for a spec it would score differently: one with
    doc_filter, one that reads `doc[...]`, or one with none of its metrics.
    """
    metrics = [LM_EVAL_NAMES[name] for name in spec.metrics if name in LM_EVAL_NAMES]
    reason = (
        "doc_filter has no counterpart but a Python function" if spec.doc_filter is not None
        else "doc['a name'] is not known there" if "doc[" in spec.doc_to_text + spec.doc_to_target
        else f"it knows none of the metrics {', '.join(spec.metrics)}" if not metrics
        else None
    )  # fmt: skip
    if reason:
        raise SpecError(f"{spec.where}: task {spec.task!r} cannot be written for lm-eval: {reason}")
    keys: dict[str, object] = {"task": spec.task}
    keys |= {key: value for key in DATASET_KEYS if (value := getattr(spec, key)) is not None}
    if spec.dataset_kwargs:
        keys["dataset_kwargs"] = dict(spec.dataset_kwargs)
    keys |= {key: getattr(spec, key) for key in DOCUMENT_KEYS}
    if spec.doc_to_choice is not None:
        keys["doc_to_choice"] = list(spec.fixed_choices) or spec.doc_to_choice
    keys["metric_list"] = [{"metric": name, "higher_is_better": True} for name in metrics]
    if spec.output_type == "generate_until":
        keys["generation_kwargs"] = {"until": ["\n"], "max_gen_toks": spec.max_gen_toks, "do_sample": False}
    metadata = {key: value for key, value in vars(spec.metadata).items() if value}
    if spec.metadata.label_names:
        metadata["label_names"] = list(spec.metadata.label_names)
    ours = {key: value for key in ("doc_to_group", "doc_to_id") if (value := getattr(spec, key)) is not None}
    keys["metadata"] = metadata | {OUR_BLOCK: {"metric_list": list(spec.metrics), **ours}}
    return to_yaml(keys)
