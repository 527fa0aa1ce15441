"""Specs for data that has none: derived from a folder's task.json or from its column names."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from promptprior.errors import DataError
from promptprior.tasks.loading.readers import Rows, parsed_object, read_text
from promptprior.tasks.loading.spec import Metadata, TaskSpec
from promptprior.tasks.loading.template import IDENTIFIER
from promptprior.tasks.metrics import METRICS
from promptprior.tasks.task import OutputType

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


def spec_from_card(card: Mapping[str, object], name: str, where: str) -> TaskSpec:
    """A spec from a task.json: its input columns, one a line, then the label or the target column."""
    inputs = [str(c) for c in as_list(card.get("input_columns"))]
    columns = [str(c) for c in as_list(card.get("columns"))]
    names = tuple(str(n) for n in as_list(card.get("label_names")))
    target = "label" if names else target_column(columns, inputs)
    if not inputs or target is None:
        raise DataError(
            f"{where}: cannot tell inputs from answer (input_columns: {inputs}, columns: {columns}); "
            f"write a spec.yaml beside it\n{example_spec(name, columns)}"
        )
    output_type: OutputType = "multiple_choice" if names else "generate_until"
    return TaskSpec(
        task=name,
        doc_to_text=text_template(inputs, target),
        doc_to_target=target,
        output_type=output_type,
        metrics=metrics_of(str(card.get("metric", "")), output_type),
        doc_to_choice=names or None,
        metadata=Metadata(
            family=str(card.get("family", "other")), licence=str(card.get("licence", "")), label_names=names
        ),
        where=where,
    )


def read_card(path: Path) -> Mapping[str, object]:
    """A folder's task.json; empty when there is none. Raises DataError when it is not JSON."""
    return parsed_object(read_text(path), str(path)) if path.is_file() else {}


def as_list(value: object) -> list[object]:
    """A list, empty for null."""
    return list(value) if isinstance(value, list | tuple) else []


def target_column(columns: Sequence[str], inputs: Sequence[str]) -> str | None:
    """The column that holds the answer: the usual names, else the only column that is no input."""
    rest = [c for c in columns if c not in inputs and c not in ("id", "idx")]
    named = [c for c in TARGET_COLUMNS if c in rest]
    return named[0] if named else rest[0] if len(rest) == 1 else None


def text_template(inputs: Sequence[str], target: str) -> str:
    """`column: value` lines for several inputs, the bare value for one, then a cue for the answer."""
    if len(inputs) == 1:
        return f"{written(inputs[0])}\n{target.capitalize()}:"
    return "".join(f"{c}: {written(c)}\n" for c in inputs) + f"{target}:"


def written(column: str) -> str:
    """A column as a template writes it.

    >>> written("text"), written("my text")
    ('{{ text }}', '{{ doc["my text"] }}')
    """
    return f"{{{{ {column} }}}}" if IDENTIFIER.fullmatch(column) else f"{{{{ doc[{json.dumps(column)}] }}}}"


def metrics_of(words: str, output_type: OutputType) -> tuple[str, ...]:
    """Our metric names for a task.json's `metric`, such as accuracy+macro_f1; the usual ones for none."""
    free = output_type == "generate_until"
    known = {**METRIC_WORDS, "f1": "squad_f1" if free else "f1"}
    named = tuple(known.get(word, word) for word in words.split("+") if known.get(word, word) in METRICS)
    return named or (("exact_match",) if free else ("accuracy",))


def spec_from_columns(rows: Rows, name: str) -> TaskSpec:
    """A spec for rows of `text` and `label`, or of `prompt` and `completion`.

    Raises DataError that shows the spec to write for any other columns.
    """
    columns = list(rows.values[0])
    doc_to_id = "id" if "id" in columns else None
    if {"text", "label"} <= set(columns):
        return TaskSpec(
            task=name,
            doc_to_text="{{ text }}\nLabel:",
            doc_to_target="label",
            output_type="multiple_choice",
            metrics=("accuracy", "macro_f1"),
            doc_to_choice=label_words(rows),
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
        f"completion, or write a spec.yaml beside the file\n{example_spec(name, columns)}"
    )


def label_words(rows: Rows) -> tuple[str, ...]:
    """The label words of a `label` column in order: numbers by value, words by the alphabet."""
    for i, row in enumerate(rows.values):
        if row.get("label") in (None, ""):
            raise DataError(f"{rows.place(i)}: column 'label' is empty")
    words = sorted({str(row["label"]) for row in rows.values}, key=number_first)
    if len(words) < 2:
        raise DataError(f"{rows.source}: column 'label' holds one value only: {words}")
    return tuple(words)


def number_first(word: str) -> tuple[float, str]:
    """A sort key: digits by value, then words by the alphabet."""
    return (float(word), "") if word.isdecimal() else (float("inf"), word)


def example_spec(name: str, columns: Sequence[str]) -> str:
    """A spec.yaml to start from."""
    first, last = (columns[0], columns[-1]) if columns else ("question", "answer")
    return EXAMPLE_SPEC.format(name=json.dumps(name), first=written(first), last=written(last))
