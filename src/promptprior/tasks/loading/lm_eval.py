"""Tasks as lm-evaluation-harness reads them: a spec alone, or a task with its rows.

(Reading its simple YAML files needs nothing: the words agree.)
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from promptprior.config.yaml_file import to_yaml
from promptprior.errors import SpecError
from promptprior.files import make_folder, write_text
from promptprior.tasks.loading.load import LOCAL_FORMATS, SPEC_FILE
from promptprior.tasks.loading.spec import OUR_BLOCK, TaskSpec
from promptprior.tasks.metrics import squad_normalised
from promptprior.tasks.task import SPLITS, Example, OutputType, Task

# Metrics that are the same number there. (Its exact_match of ranked choices asks whether greedy text is the choice, and
# its BLEU goes to 100 and reads one reference.)
LM_EVAL_NAMES: Mapping[OutputType, Mapping[str, str]] = {
    "multiple_choice": {"accuracy": "acc", "acc_norm": "acc_norm", "f1": "f1", "matthews_correlation": "mcc"},
    "generate_until": {"exact_match": "exact_match"},
}
# What we score of generated text: its first line that is not blank, compared as SQuAD does.
FIRST_LINE = r"\S[^\n\r\v\f\x1c-\x1e\x85\u2028\u2029]*"
SQUAD_IGNORES = (r"[!-/:-@\[-`{-~]", r"(?i)\b(a|an|the)\b", r"^\s+|\s+$|\s+(?=\s)")
DATASET_KEYS = ("dataset_path", "dataset_name", "training_split", "validation_split", "test_split")
DOCUMENT_KEYS = ("output_type", "description", "doc_to_text", "doc_to_target", "target_delimiter")
SPLIT_KEYS = dict(zip(SPLITS, ("training_split", "validation_split", "test_split"), strict=True))
DATE = re.compile(r"\d{4}-\d\d-\d\d([T ].*)?", re.DOTALL)


def to_lm_eval(spec: TaskSpec) -> str:
    """The spec as a YAML file for `lm_eval --include_path`.

    What lm-eval has no key for (doc_to_group, doc_to_id, metrics it does not know) goes to `metadata.promptprior`,
    which it ignores and `read_spec` reads back. Raises SpecError for a spec it would score differently: one with
    doc_filter, one that reads `doc[...]`, or one with none of its metrics; and for a spec that names no data. Rows are
    not seen here: a label that is neither the choice's text nor its index, or a text that ends in spaces, is read
    differently there. `write_lm_eval` has no such limits.
    """
    where = f"{spec.where}: task {spec.task!r}"
    files = spec.dataset_kwargs.get("data_files") if spec.dataset_path in LOCAL_FORMATS else None
    reason = (
        "doc_filter has no counterpart but a Python function" if spec.doc_filter is not None
        else "doc['a name'] is not known there" if "doc[" in spec.doc_to_text + spec.doc_to_target
        else "it names no data (dataset_path)" if spec.dataset_path is None
        else None
    )  # fmt: skip
    if reason:
        raise _refusal(where, f"{reason}; write its rows as well (promptprior tasks export)")
    ours: dict[str, object] = {"metric_list": list(spec.metrics)}
    keys: dict[str, object] = {"task": spec.task}
    keys |= {key: value for key in DATASET_KEYS if (value := getattr(spec, key)) is not None}
    if spec.dataset_kwargs:
        keys["dataset_kwargs"] = dict(spec.dataset_kwargs)
    if files is not None:  # from the spec's folder here, from the folder lm_eval is started in there
        home = Path(spec.where).absolute().parent
        named = files if isinstance(files, Mapping) else {"train": files}
        keys["dataset_kwargs"] = {"data_files": {split: str(home / str(file)) for split, file in named.items()}}
        keys |= {SPLIT_KEYS[split]: split for split in SPLITS if split in named}
    keys |= {key: getattr(spec, key) for key in DOCUMENT_KEYS}
    if spec.doc_to_text != (bare := spec.doc_to_text.rstrip()):  # spaces after a text are its delimiter here
        ours |= {"doc_to_text": spec.doc_to_text, "target_delimiter": spec.target_delimiter}
        is_choice = spec.output_type == "multiple_choice"
        keys |= {"target_delimiter": ""} if is_choice else {"doc_to_text": bare}
    if spec.doc_to_choice is not None:
        keys["doc_to_choice"] = list(spec.fixed_choices) or spec.doc_to_choice
    keys |= _scoring(spec.output_type, spec.metrics, spec.max_gen_toks, where)
    metadata = {key: value for key, value in vars(spec.metadata).items() if value}
    if spec.metadata.label_names:
        metadata["label_names"] = list(spec.metadata.label_names)
    ours |= {key: value for key in ("doc_to_group", "doc_to_id") if (value := getattr(spec, key)) is not None}
    keys["metadata"] = metadata | {OUR_BLOCK: ours}
    return to_yaml(keys)


def write_lm_eval(task: Task, folder: Path) -> Path:
    """Write any task for `lm_eval --include_path FOLDER --tasks NAME`: its rows as the model reads them, and a YAML.

    The folder gets `spec.yaml`, which is returned, and `train.jsonl`, `validation.jsonl` and `test.jsonl`, which it
    names by absolute paths; lm-eval scores the test split. With a causal model it comes to the same numbers as
    `evaluate` does for a prompt without tokens (method zero_shot). The folder is a task for `load_task` as well, and
    replaces an earlier export in one step. Raises SpecError for a task that lm-eval would score differently (see
    docs/tasks.md), DiskError when the disk refuses.
    """
    where = f"task {task.name!r}"
    keys: dict[str, object] = {"task": task.name, "dataset_path": "json"}
    data = {split: str(folder.resolve() / f"{split}.jsonl") for split in task.examples}
    keys["dataset_kwargs"] = {"data_files": data}
    keys |= {SPLIT_KEYS[split]: split for split in task.examples}
    keys |= {"output_type": task.output_type, "doc_to_text": "text"}
    keys["doc_to_target"] = "label" if task.is_choice else "references"
    everything = [example for examples in task.examples.values() for example in examples]
    fixed = len({example.choices for example in everything}) == 1
    if task.is_choice:
        keys["doc_to_choice"] = list(everything[0].choices) if fixed else "choices"
    # lm-eval puts the delimiter behind the spaces that a text ends in; here these take its place. So it goes to texts.
    spaced = any(example.text != example.text.rstrip() for example in everything)
    in_texts = task.is_choice and spaced
    if in_texts and task.target_delimiter.strip():
        raise _refusal(where, f"some texts end in spaces, and target_delimiter is {task.target_delimiter!r}")
    keys["target_delimiter"] = "" if in_texts else task.target_delimiter
    keys |= _scoring(task.output_type, task.metrics, task.max_gen_toks, where)
    metadata: dict[str, object] = {"version": task.version, "family": task.family}
    metadata |= {"licence": task.licence} if task.licence else {}
    metadata |= {"label_names": list(task.label_names)} if task.label_names and fixed else {}
    ours: dict[str, object] = {"metric_list": list(task.metrics), "doc_to_id": "id"}
    ours |= {"doc_to_group": "group"} if all(example.group for example in everything) else {}
    keys["metadata"] = metadata | {OUR_BLOCK: ours}

    def row_of(example: Example) -> dict[str, object]:
        bare = example.text.rstrip()
        spaces = (example.text[len(bare) :] or task.target_delimiter) if in_texts else ""
        row: dict[str, object] = {"id": example.id, "text": bare + spaces}
        if not task.is_choice:
            references = example.references or (example.target,)
            if emptied := [reference for reference in references if not squad_normalised(reference)]:
                raise _refusal(
                    where, f"row {example.id}: exact_match there takes any answer without words for {emptied[0]!r}"
                )
            row["references"] = list(references)
        else:
            row |= {"label": example.label} | ({} if fixed else {"choices": list(example.choices)})
        return row | ({"group": example.group} if example.group else {})

    rows = {split: [row_of(example) for example in examples] for split, examples in task.examples.items()}
    texts = [str(row["text"]) for part in rows.values() for row in part]
    answers = [answer for example in everything for answer in (example.choices or example.references)]
    if all(map(DATE.fullmatch, texts)) or (not (task.is_choice and fixed) and all(map(DATE.fullmatch, answers))):
        raise _refusal(where, "all texts or answers are dates, which its reader of files turns into times")

    def write(partial: Path) -> None:
        for split, part in rows.items():
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
            write_text(partial / f"{split}.jsonl", lines)
        write_text(partial / SPEC_FILE, to_yaml(keys))

    make_folder(folder, write)
    return folder / SPEC_FILE


def _scoring(output_type: OutputType, metrics: tuple[str, ...], most: int, where: str) -> dict[str, object]:
    # The keys that make lm-eval score as we do.
    names = LM_EVAL_NAMES[output_type]
    known = [names[name] for name in metrics if name in names]
    if not known:
        raise _refusal(where, f"it knows none of the metrics {', '.join(metrics)}")
    if output_type == "multiple_choice":
        return {"metric_list": [{"metric": name, "higher_is_better": True} for name in known]}
    compared = {"ignore_case": True, "regexes_to_ignore": list(SQUAD_IGNORES)}
    first_line = [{"function": "regex", "regex_pattern": FIRST_LINE, "fallback": ""}, {"function": "take_first"}]
    return {
        "metric_list": [{"metric": name, "higher_is_better": True, **compared} for name in known],
        # No stop text: a model that begins with a line break would have said nothing.
        "generation_kwargs": {"until": [], "max_gen_toks": most, "do_sample": False},
        "filter_list": [{"name": "first_line", "filter": first_line}],
    }


def _refusal(where: str, reason: str) -> SpecError:
    return SpecError(f"{where} cannot be written for lm-eval: {reason}")
