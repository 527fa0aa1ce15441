"""A task spec: a YAML file in lm-eval's words that says how rows of a data set become examples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import get_args

import yaml

from promptprior.errors import DataError, SpecError, unknown_name
from promptprior.tasks.loading.readers import Row, Rows
from promptprior.tasks.loading.template import Template, compile_template
from promptprior.tasks.metrics import metric
from promptprior.tasks.task import Example, OutputType, content_id

LM_EVAL_METRICS = {
    "acc": "accuracy",
    "mcc": "matthews_correlation",
    "em": "exact_match",
    "rougeLsum": "rougeL",
}
IGNORED_KEYS = (
    "tag", "group", "group_alias", "task_alias", "num_fewshot", "fewshot_split", "fewshot_config",
    "fewshot_delimiter", "repeats", "should_decontaminate", "doc_to_decontamination_query", "filter_list",
    "weight_by_size", "class",
)  # fmt: skip
OUR_BLOCK = "promptprior"  # where specs written for lm-eval keep what it has no key for
IGNORED_GENERATION_KEYS = ("until", "do_sample", "temperature", "top_p", "top_k", "num_beams")
IGNORED_DATASET_KEYS = ("trust_remote_code",)  # never passed on: data sets that need code do not load


@dataclass(frozen=True)
class Metadata:
    """What a spec says about its task: `version` changes whenever the rendered text would."""

    version: str = "1"
    family: str = "other"
    licence: str = ""
    source: str = ""
    citation: str = ""
    label_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Templates:
    """A spec's compiled templates; the optional ones are None where the spec is silent."""

    text: Template
    target: Template
    choices: Template | None
    group: Template | None
    id: Template | None
    filter: Template | None


@dataclass(frozen=True)
class TaskSpec:
    """How rows become examples. The words are lm-eval's; doc_to_group, doc_to_id and doc_filter are ours.

    doc_to_text, doc_to_target, doc_to_choice, doc_to_group and doc_to_id are Jinja templates or column
    names. For a choice task the target is the index or the text of the right choice; for free text it may be
    a list of accepted answers. Rows for which doc_filter is false are left out. `where` is the file the spec
    was read from. The three split names are those of the Hub data set; local folders use their file names.
    """

    task: str
    doc_to_text: str
    doc_to_target: str
    output_type: OutputType = "generate_until"
    metrics: tuple[str, ...] = ()
    doc_to_choice: str | tuple[str, ...] | None = None
    doc_to_group: str | None = None
    doc_to_id: str | None = None
    doc_filter: str | None = None
    description: str = ""
    target_delimiter: str = " "
    max_gen_toks: int = 32
    dataset_path: str | None = None
    dataset_name: str | None = None
    dataset_kwargs: Mapping[str, object] = field(default_factory=dict)
    training_split: str | None = "train"
    validation_split: str | None = None
    test_split: str | None = None
    metadata: Metadata = Metadata()
    where: str = field(default="task spec", compare=False)

    @cached_property
    def templates(self) -> Templates:
        """Every template, compiled once. Raises SpecError for bad Jinja."""
        choices = self.doc_to_choice if isinstance(self.doc_to_choice, str) else None
        return Templates(
            text=compile_template(self.description + self.doc_to_text, self.where),
            target=compile_template(self.doc_to_target, self.where),
            choices=None if choices is None else compile_template(choices, self.where),
            group=self.optional(self.doc_to_group),
            id=self.optional(self.doc_to_id),
            filter=self.optional(self.doc_filter),
        )

    def optional(self, source: str | None) -> Template | None:
        """A compiled template, or None."""
        return None if source is None else compile_template(source, self.where)

    @property
    def fixed_choices(self) -> tuple[str, ...]:
        """The choices that all examples share; empty for free text and for choices that come from the row."""
        return self.doc_to_choice if isinstance(self.doc_to_choice, tuple) else ()


# --- reading ------------------------------------------------------------------------------------------


def read_spec(path: Path) -> TaskSpec:
    """The spec in a YAML file. Raises SpecError with file and key for anything that does not fit."""
    return spec_from(read_yaml(path), str(path))


def read_yaml(path: Path) -> Mapping[str, object]:
    """A YAML mapping, with lm-eval's `include: other.yaml` merged in below its own keys."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpecError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: not UTF-8 (byte offset {error.start})") from None
    except yaml.YAMLError as error:
        raise SpecError(yaml_problem(path, error)) from None
    if not isinstance(raw, dict):
        raise SpecError(f"{path}: expected a YAML mapping with doc_to_text and so on, got {raw!r}")
    included = raw.pop("include", None)
    return raw if included is None else {**read_yaml(path.parent / str(included)), **raw}


def yaml_problem(path: Path, error: yaml.YAMLError) -> str:
    """One sentence for a file that is not YAML, or that wants to run code."""
    mark = getattr(error, "problem_mark", None)
    where = f"{path} line {mark.line + 1}" if mark else str(path)
    if "!function" in str(error):
        return (
            f"{where}: '!function' runs Python code, which promptprior never does; write the step as a Jinja "
            "template (doc_to_text, doc_to_target, doc_to_choice, doc_filter)"
        )
    return f"{where}: not YAML ({getattr(error, 'problem', error)})"


def spec_from(raw: Mapping[str, object], where: str) -> TaskSpec:
    """A spec from the keys of its YAML file; `where` names the file in errors."""
    known = [f.name for f in fields(TaskSpec) if f.name not in ("metrics", "max_gen_toks", "where")]
    known += ["metric_list", "generation_kwargs"]
    raw = {**raw, **our_block(raw, where)}
    check_keys(raw, known, IGNORED_KEYS, where)
    raw = {key: value for key, value in raw.items() if key in known and value is not None}
    for key in ("task", "doc_to_text", "doc_to_target"):
        if key not in raw:
            raise SpecError(f"{where}: the key {key!r} is missing")
    if isinstance(raw["doc_to_target"], int):  # lm-eval: the right choice always stands at this place
        raw["doc_to_target"] = f"{{{{ {int(raw['doc_to_target'])} }}}}"
    output_type = output_type_of(raw, where)
    metadata = metadata_from(raw.get("metadata", {}), where)
    spec = TaskSpec(
        **{key: text_of(raw[key], f"{where}: {key}") for key in TEXT_KEYS if key in raw},
        output_type=output_type,
        metrics=metrics_from(raw.get("metric_list"), output_type, where),
        doc_to_choice=choices_from(raw, output_type, metadata, where),
        max_gen_toks=max_gen_toks_from(raw.get("generation_kwargs", {}), where),
        dataset_kwargs=dataset_kwargs_from(raw.get("dataset_kwargs", {}), where),
        metadata=metadata,
        where=where,
    )
    _ = spec.templates  # bad Jinja fails here, before any data is read
    return spec


TEXT_KEYS = (
    "task", "doc_to_text", "doc_to_target", "doc_to_group", "doc_to_id", "doc_filter", "description",
    "target_delimiter", "dataset_path", "dataset_name", "training_split", "validation_split", "test_split",
)  # fmt: skip


def check_keys(raw: Mapping[str, object], known: Sequence[str], ignored: Sequence[str], where: str) -> None:
    """Raises SpecError, with near names, for a key that is neither known nor on the list of ignored ones."""
    for key in raw:
        if key not in known and key not in ignored:
            raise SpecError(f"{where}: {unknown_name('key', str(key), known)}")


def our_block(raw: Mapping[str, object], where: str) -> Mapping[str, object]:
    """The keys a spec written for lm-eval keeps in `metadata.promptprior`; they win over the outer ones."""
    metadata = mapping_of(raw.get("metadata") or {}, f"{where}: metadata")
    return mapping_of(metadata.get(OUR_BLOCK, {}), f"{where}: metadata.{OUR_BLOCK}")


def mapping_of(value: object, where: str) -> Mapping[str, object]:
    """A mapping, or SpecError."""
    if not isinstance(value, Mapping):
        raise SpecError(f"{where}: expected a mapping, got {value!r}")
    return value


def text_of(value: object, where: str) -> str:
    """A string; numbers are written out. YAML's bare yes/no are refused: they are booleans."""
    if isinstance(value, bool):
        raise SpecError(f"{where}: {value!r} is a YAML boolean; write the word in quotes")
    if isinstance(value, int | float):
        return str(value)
    if not isinstance(value, str):
        raise SpecError(f"{where}: expected text, got {value!r}")
    return value


def output_type_of(raw: Mapping[str, object], where: str) -> OutputType:
    """The output type; without one, choices say that answers are ranked."""
    name = raw.get("output_type", "multiple_choice" if "doc_to_choice" in raw else "generate_until")
    if name not in get_args(OutputType):
        raise SpecError(f"{where}: {unknown_name('output_type', str(name), get_args(OutputType))}")
    return name  # type: ignore[return-value]


def metadata_from(raw: object, where: str) -> Metadata:
    """The metadata block; `label_names` is a list, the rest is text."""
    given = {k: v for k, v in mapping_of(raw, f"{where}: metadata").items() if v is not None and k != OUR_BLOCK}
    known = [f.name for f in fields(Metadata)]
    check_keys(given, known, (), f"{where}: metadata")
    names = given.pop("label_names", [])
    texts = {key: text_of(value, f"{where}: metadata.{key}") for key, value in given.items()}
    return Metadata(**texts, label_names=text_list(names, f"{where}: metadata.label_names"))


def text_list(value: object, where: str) -> tuple[str, ...]:
    """A list of strings."""
    if not isinstance(value, list | tuple):
        raise SpecError(f"{where}: expected a list of strings, got {value!r}")
    return tuple(text_of(item, f"{where}[{i}]") for i, item in enumerate(value))


def metrics_from(raw: object, output_type: OutputType, where: str) -> tuple[str, ...]:
    """Names from `metric_list`: plain names or lm-eval's mappings, lm-eval's spellings translated."""
    if raw is None:
        return ("accuracy",) if output_type == "multiple_choice" else ("exact_match",)
    if not isinstance(raw, list) or not raw:
        raise SpecError(f"{where}: metric_list: expected a list of names or of {{metric: name}}, got {raw!r}")
    names = [item.get("metric") if isinstance(item, dict) else item for item in raw]
    translated = [LM_EVAL_METRICS.get(str(name), str(name)) for name in names]
    for name in translated:
        try:
            metric(name)
        except SpecError as error:
            raise SpecError(f"{where}: metric_list: {error}") from None
    return tuple(dict.fromkeys(translated))


def choices_from(
    raw: Mapping[str, object], output_type: OutputType, metadata: Metadata, where: str
) -> str | tuple[str, ...] | None:
    """The choices: a template, or a list of different words; label_names where the spec gives none."""
    given = raw.get("doc_to_choice", metadata.label_names or None)
    if output_type == "generate_until":
        if "doc_to_choice" in raw:
            raise SpecError(f"{where}: doc_to_choice needs output_type: multiple_choice")
        return None
    if given is None:
        raise SpecError(f"{where}: output_type multiple_choice needs doc_to_choice (a list or a template)")
    if isinstance(given, str):
        return given
    choices = text_list(given, f"{where}: doc_to_choice")
    if len(choices) < 2 or len(set(choices)) < len(choices) or "" in choices:
        raise SpecError(f"{where}: doc_to_choice needs at least two different words, got {list(choices)}")
    if metadata.label_names and len(metadata.label_names) != len(choices):
        raise SpecError(
            f"{where}: {len(choices)} choices but {len(metadata.label_names)} metadata.label_names; they must agree"
        )
    return choices


def max_gen_toks_from(raw: object, where: str) -> int:
    """How many tokens may be generated; the other generation keys of lm-eval are ignored."""
    given = mapping_of(raw, f"{where}: generation_kwargs")
    check_keys(given, ["max_gen_toks"], IGNORED_GENERATION_KEYS, f"{where}: generation_kwargs")
    value = given.get("max_gen_toks", TaskSpec.max_gen_toks)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SpecError(f"{where}: generation_kwargs.max_gen_toks must be at least 1, got {value!r}")
    return value


def dataset_kwargs_from(raw: object, where: str) -> Mapping[str, object]:
    """The few data set options that are read: a revision, and files or a folder inside the data set."""
    given = mapping_of(raw, f"{where}: dataset_kwargs")
    known = ("revision", "data_files", "data_dir")
    check_keys(given, known, IGNORED_DATASET_KEYS, f"{where}: dataset_kwargs")
    return {key: value for key, value in given.items() if key in known}


# --- rendering ----------------------------------------------------------------------------------------


def render(spec: TaskSpec, rows: Rows) -> tuple[Example, ...]:
    """The examples of one split. Rows that doc_filter refuses are left out.

    Raises DataError with file, line and column for a missing or null column, an empty text or target, or a
    label outside the list.
    """
    kept = ((row, rows.place(i)) for i, row in enumerate(rows.values))
    return tuple(render_row(spec, row, where) for row, where in kept if passes(spec, row, where))


def passes(spec: TaskSpec, row: Row, where: str) -> bool:
    """Whether doc_filter keeps a row; text is judged by the words true and false."""
    template = spec.templates.filter
    if template is None:
        return True
    value = template.value(row, where, "doc_filter")
    return value.strip().casefold() not in ("", "false", "0") if isinstance(value, str) else bool(value)


def render_row(spec: TaskSpec, row: Row, where: str) -> Example:
    """One example."""
    templates = spec.templates
    text = str(templates.text.value(row, where, "doc_to_text"))
    check_text(text, templates.text, row, where)
    name = content_id(row) if templates.id is None else str(templates.id.value(row, where, "doc_to_id"))
    group = "" if templates.group is None else str(templates.group.value(row, where, "doc_to_group"))
    target = templates.target.value(row, where, "doc_to_target")
    if spec.output_type == "generate_until":
        references = references_of(target, where)
        return Example(name, text, references[0], references=references, group=group)
    choices = spec.fixed_choices or row_choices(spec, row, where)
    label = label_index(target, choices, spec.metadata.label_names, where)
    return Example(name, text, choices[label], choices=choices, label=label, group=group)


def check_text(text: str, template: Template, row: Row, where: str) -> None:
    """Raises DataError for a text that says nothing: it is blank, or all columns it is made of are empty."""
    silent = template.columns and all(row.get(c) in ("", [], None) for c in template.columns)
    if silent or not text.strip():
        named = ", ".join(map(repr, template.columns)) or "none"
        raise DataError(f"{where}: doc_to_text gives an empty text (columns: {named})")


def references_of(value: object, where: str) -> tuple[str, ...]:
    """The accepted answers of a free-text example, each once, the first being the target."""
    if isinstance(value, Mapping):  # SQuAD's answers: {text: [...], answer_start: [...]}
        value = value.get("text", [])
    answers = list(value) if isinstance(value, list | tuple) else [value]
    references = tuple(dict.fromkeys(text for a in answers if (text := str(a).strip())))
    if not references:
        raise DataError(f"{where}: doc_to_target gives an empty target")
    return references


def row_choices(spec: TaskSpec, row: Row, where: str) -> tuple[str, ...]:
    """The choices that stand in the row itself."""
    assert spec.templates.choices is not None
    value = spec.templates.choices.value(row, where, "doc_to_choice")
    choices = tuple(str(v).strip() for v in value) if isinstance(value, list | tuple) else ()
    if len(choices) < 2 or "" in choices:
        raise DataError(f"{where}: doc_to_choice must give a list of at least two answers, got {value!r}")
    return choices


def label_index(value: object, choices: Sequence[str], label_names: Sequence[str], where: str) -> int:
    """The index of the right choice, from an index, a choice's text or a label's name.

    >>> label_index("yes", ("no", "yes"), (), ""), label_index(1, ("no", "yes"), (), "")
    (1, 1)
    """
    if isinstance(value, str):
        for names in (choices, label_names):
            if value.strip() in names:
                return names.index(value.strip())
    index = whole_number(value)
    if index is None or not 0 <= index < len(choices):
        expected = f"0 to {len(choices) - 1} or one of {', '.join(map(repr, choices[:10]))}"
        more = ", …" if len(choices) > 10 else ""
        raise DataError(f"{where}: label {value!r} is outside the list (expected {expected}{more})")
    return index


def whole_number(value: object) -> int | None:
    """An int from a number or its digits; None for anything else.

    >>> whole_number("2"), whole_number(1.0), whole_number("two")
    (2, 1, None)
    """
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return int(number) if number.is_integer() else None
