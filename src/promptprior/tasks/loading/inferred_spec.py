"""Specs for data that has none: derived from a folder's task.json or from its column names."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from promptprior.errors import DataError
from promptprior.tasks.loading.readers import Rows, parse_object
from promptprior.tasks.loading.sandbox import is_null
from promptprior.tasks.loading.spec import Metadata, TaskSpec
from promptprior.tasks.loading.template import IDENTIFIER, as_text
from promptprior.tasks.metrics import METRICS
from promptprior.untrusted import path_kind, read_utf8

METRIC_WORDS = {
    "em": "exact_match",
    "em_final_number": "number_match",
    "f1a": "f1",
    "macro_f1_of_against_favor": "f1_against_favor",
}
TARGET_COLUMNS = ("target", "answer", "answers", "completion", "label")
EXAMPLE_SPEC = """task: {name}
output_type: generate_until
doc_to_text: '{first}'
doc_to_target: '{last}'
"""


def read_card(path: Path) -> Mapping[str, object]:
    """A folder's task.json; empty when there is none. Raises DataError when it is not JSON."""
    return parse_object(read_utf8(path), str(path)) if path_kind(path) else {}


def spec_from_card(card: Mapping[str, object], name: str, where: str) -> TaskSpec:
    """A spec from a task.json: its input columns, one a line, then the label or the target column.

    The target is the column of a usual name, else the only one that is no input. The card's metric, such as
    accuracy+macro_f1, is translated to our names; what is unknown gives way to the usual metric.
    """
    lists = [card.get(key) for key in ("input_columns", "columns", "label_names")]
    inputs, columns, names = ([str(v) for v in value] if isinstance(value, list) else [] for value in lists)
    rest = [column for column in columns if column not in (*inputs, "id", "idx")]
    usual = [column for column in TARGET_COLUMNS if column in rest]
    target = "label" if names else usual[0] if usual else rest[0] if len(rest) == 1 else None
    if not inputs or target is None:
        raise DataError(
            f"{where}: cannot tell inputs from answer (input_columns: {inputs}, columns: {columns}); "
            f"write a spec.yaml beside it\n{_example_spec(name, columns)}"
        )
    text = f"{_column(inputs[0])}\n{target.capitalize()}:"
    if len(inputs) > 1:
        text = "".join(f"{column}: {_column(column)}\n" for column in inputs) + f"{target}:"
    words = METRIC_WORDS if names else {**METRIC_WORDS, "f1": "squad_f1"}
    metrics = [words.get(word, word) for word in str(card.get("metric", "")).split("+")]
    return TaskSpec(
        task=name,
        doc_to_text=text,
        doc_to_target=target,
        output_type="multiple_choice" if names else "generate_until",
        metrics=tuple(m for m in metrics if m in METRICS) or (("accuracy",) if names else ("exact_match",)),
        doc_to_choice=tuple(names) or None,
        metadata=Metadata(
            family=str(card.get("family", "other")), licence=str(card.get("licence", "")), label_names=tuple(names)
        ),
        where=where,
    )


def spec_from_columns(rows: Rows, name: str) -> TaskSpec:
    """A spec for rows of `text` and `label`, or of `prompt` and `completion`.

    Labels stand in order: numbers by value, words by the alphabet; space around them is no part of them. Raises
    DataError for an empty label, a single one, and two that differ only by case, and, for any other columns, one that
    shows the spec to write.
    """
    columns = list(rows.values[0])
    doc_to_id = "id" if "id" in columns else None
    if {"text", "label"} <= set(columns):
        counts: Counter[str] = Counter()
        for i, row in enumerate(rows.values):
            value = row.get("label")
            label = "" if is_null(value) else as_text(value, rows.place(i), "column 'label'").strip()
            if not label:
                raise DataError(f"{rows.place(i)}: column 'label' is empty{' (NaN)' if value != value else ''}")
            counts[label] += 1
        spellings: dict[str, list[str]] = defaultdict(list)
        for label in sorted(counts):
            spellings[label.casefold()].append(label)
        for alike in spellings.values():
            if len(alike) > 1:
                listed = ", ".join(f"{label!r} ({counts[label]} rows)" for label in alike)
                raise DataError(
                    f"{rows.source}: labels differ only by case: {listed}; write them alike, or, if they are different "
                    "answers, list them as doc_to_choice in a spec.yaml"
                )
        labels = sorted(counts, key=lambda w: (float(w), "") if w.isdecimal() else (float("inf"), w))
        if len(labels) < 2:
            raise DataError(f"{rows.source}: column 'label' holds one value only: {labels}")
        return TaskSpec(
            task=name,
            doc_to_text="{{ text }}\nLabel:",
            doc_to_target="label",
            output_type="multiple_choice",
            metrics=("accuracy", "macro_f1"),
            doc_to_choice=tuple(labels),
            doc_to_id=doc_to_id,
            where=rows.source,
        )
    if {"prompt", "completion"} <= set(columns):
        return TaskSpec(
            task=name,
            doc_to_text="prompt",
            doc_to_target="completion",
            metrics=("exact_match",),
            doc_to_id=doc_to_id,
            where=rows.source,
        )
    raise DataError(
        f"{rows.source}: columns {', '.join(columns)} say no task; name them text and label, or prompt and "
        f"completion, or write a spec.yaml beside the file\n{_example_spec(name, columns)}"
    )


def _column(name: str) -> str:
    # a column as a template writes it: {{ text }}, but {{ doc["my text"] }}
    return f"{{{{ {name} }}}}" if IDENTIFIER.fullmatch(name) else f"{{{{ doc[{json.dumps(name)}] }}}}"


def _example_spec(name: str, columns: Sequence[str]) -> str:
    first, last = (columns[0], columns[-1]) if columns else ("question", "answer")
    return EXAMPLE_SPEC.format(name=json.dumps(name), first=_column(first), last=_column(last))
