"""A task spec: a YAML file in lm-eval's words that says how rows of a data set become examples."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from promptprior.config.mapping import from_mapping, to_mapping
from promptprior.config.yaml_file import load_yaml
from promptprior.errors import DataError, SpecError, unknown_name
from promptprior.tasks.loading.readers import Row, Rows
from promptprior.tasks.loading.template import IDENTIFIER, MOST_SOURCE, Template, as_text, compile_template
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
CATALOGUE = Path(__file__).parents[1] / "catalogue"  # specs that promptprior ships
SHIPPED = "catalogue:"
MOST_INCLUDES = 10
MOST_CHOICES = 10_000
MOST_GENERATED = 32_768  # tokens of an answer
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
        optional = (choices, self.doc_to_group, self.doc_to_id, self.doc_filter)
        text = self.doc_to_text
        if self.description and IDENTIFIER.fullmatch(text):  # still a column, though words stand before it
            text = f"{{{{{text}}}}}"
        return Templates(
            compile_template(self.description + text, self.where),
            compile_template(self.doc_to_target, self.where),
            *(None if source is None else compile_template(source, self.where) for source in optional),
        )

    def question(self, row: Row, where: str) -> str:
        """The text of one row that a model reads. Raises DataError for an empty one, and as `Template.value` does."""
        template = self.templates.text
        text, columns = template.text(row, where, "doc_to_text"), template.columns
        # A template of words around empty columns is as silent as a blank one.
        blank = [v is None or v == [] or (isinstance(v, str) and not v.strip()) for v in map(row.get, columns)]
        if not text.strip() or (blank and all(blank)):
            named = ", ".join(map(repr, columns)) or "none"
            raise DataError(f"{where}: doc_to_text gives an empty text (columns: {named})")
        return text

    def keys(self) -> dict[str, object]:
        """What this spec says beside defaults, as `spec_from` reads it again."""
        said = {name: value for name, value in to_mapping(self).items() if name not in ("where", "metadata")}
        plain = {f.name: to_mapping(f.default) for f in fields(self) if f.default is not MISSING}
        keys = {name: value for name, value in said.items() if value != plain.get(name) and value != {}}
        length = {"generation_kwargs": {"max_gen_toks": self.max_gen_toks}} if "max_gen_toks" in keys else {}
        keys = {("metric_list" if name == "metrics" else name): value for name, value in keys.items()} | length
        keys.pop("max_gen_toks", None)
        return keys

    @property
    def fixed_choices(self) -> tuple[str, ...]:
        """The choices that all examples share; empty for free text and for choices that come from the row."""
        return self.doc_to_choice if isinstance(self.doc_to_choice, tuple) else ()


# --- reading ------------------------------------------------------------------------------------------


def read_spec(path: Path) -> TaskSpec:
    """The spec in a YAML file. Raises SpecError with file and key for anything that does not fit.

    As in lm-eval, a file that it includes gives what it does not say itself. A spec is input, so it may only name files
    beside or below itself, and specs that promptprior ships (`catalogue:NAME`): what it reads could otherwise be
    anything on this machine.
    """
    where, home, seen = str(path), Path(os.path.realpath(path.parent)), {os.path.realpath(path)}
    keys = load_yaml(path)
    while (included := keys.pop("include", None)) is not None:
        named = f"{path}: include: {str(included)[:200]!r}"
        if not isinstance(included, str) or not included or "\0" in included:
            raise SpecError(f"{named}: expected the name of one file beside or below this spec, as text")
        target, is_shipped = path.parent / included, included.startswith(SHIPPED)
        if is_shipped:  # by its name alone
            shipped = {file.stem: file for file in CATALOGUE.glob("*.yaml")}
            if (name := included.removeprefix(SHIPPED)) not in shipped:
                raise SpecError(f"{named}: {unknown_name('spec of the catalogue', name, shipped)}")
            target = shipped[name]
        real, is_beside = (
            os.path.realpath(target),
            not Path(included).is_absolute() and ".." not in Path(included).parts,
        )
        if not is_shipped and not (is_beside and Path(real).is_relative_to(home)):
            raise SpecError(f"{named}: expected a file beside or below this spec (copy it there), or {SHIPPED}NAME")
        if real in seen:
            raise SpecError(f"{named}: this spec includes itself, in a circle")
        if len(seen) > MOST_INCLUDES:
            raise SpecError(f"{named}: expected at most {MOST_INCLUDES} includes of one spec")
        seen.add(real)
        keys, path = {**load_yaml(target), **keys}, target
    return spec_from(keys, where)


def spec_from(raw: Mapping[str, object], where: str) -> TaskSpec:
    """A spec from the keys of its YAML file; `where` names the file in errors. Raises SpecError for a key or value that
    is not lm-eval's or ours, and where keys contradict each other."""
    known = [f.name for f in fields(TaskSpec) if f.name not in ("metrics", "max_gen_toks", "where")]
    known += ["metric_list", "generation_kwargs"]
    # A spec written for lm-eval keeps what lm-eval has no key for in metadata.promptprior, which wins.
    metadata = _block(raw.get("metadata") or {}, None, (), f"{where}: metadata")
    ours = _block(metadata.pop(OUR_BLOCK, {}), known, IGNORED_KEYS, f"{where}: metadata.{OUR_BLOCK}")
    keys = _block({**raw, **ours}, known, IGNORED_KEYS, where)
    keys["metadata"] = metadata
    if isinstance(keys.get("doc_to_target"), int):  # lm-eval: the right choice always stands at this place
        keys["doc_to_target"] = f"{{{{ {int(keys['doc_to_target'])} }}}}"

    if isinstance(keys.get("doc_to_choice"), Mapping):  # lm-eval: the values are the choices
        keys["doc_to_choice"] = list(keys["doc_to_choice"].values())

    # Without an output type, choices say that answers are ranked; without choices, the labels' names are ranked.
    output_type = keys.setdefault("output_type", "multiple_choice" if "doc_to_choice" in keys else "generate_until")
    if output_type == "generate_until" and "doc_to_choice" in keys:
        raise SpecError(f"{where}: doc_to_choice needs output_type: multiple_choice")
    if output_type == "multiple_choice" and not keys.setdefault("doc_to_choice", metadata.get("label_names")):
        raise SpecError(f"{where}: output_type multiple_choice needs doc_to_choice (a list or a template)")
    keys["metrics"] = metrics_from(keys.pop("metric_list", None), output_type, where)
    generation = keys.pop("generation_kwargs", {})
    if isinstance(generation, Mapping) and generation.get("do_sample") is True:
        raise SpecError(
            f"{where}: generation_kwargs.do_sample is true; expected false or nothing: answers are greedy here, and "
            "sampled ones would score differently"
        )
    keys |= _block(generation, ["max_gen_toks"], IGNORED_GENERATION_KEYS, f"{where}: generation_kwargs")
    if "dataset_kwargs" in keys:
        kwargs, known_kwargs = keys["dataset_kwargs"], ["revision", "data_files", "data_dir"]
        keys["dataset_kwargs"] = _block(kwargs, known_kwargs, IGNORED_DATASET_KEYS, f"{where}: dataset_kwargs")

    def as_written(value: Any) -> Any:  # versions, label names and choices are often written as numbers
        if isinstance(value, list):
            return [as_written(item) for item in value]
        return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value

    keys |= {name: as_written(value) for name, value in keys.items() if name in TEXT_KEYS}
    keys["metadata"] = {name: as_written(value) for name, value in metadata.items()}
    if isinstance(keys.get("doc_to_choice"), list):
        keys["doc_to_choice"] = as_written(keys["doc_to_choice"])
    spec = from_mapping(TaskSpec, keys, where)
    fixed, names = spec.doc_to_choice, spec.metadata.label_names
    if isinstance(fixed, tuple) and (len(fixed) < 2 or len(set(fixed)) < len(fixed) or "" in fixed):
        raise SpecError(f"{where}: doc_to_choice needs at least two different words, got {list(fixed)}")
    if isinstance(fixed, tuple) and names and len(names) != len(fixed):
        raise SpecError(f"{where}: {len(fixed)} choices but {len(names)} metadata.label_names; they must agree")
    if isinstance(fixed, tuple) and len(fixed) > MOST_CHOICES:
        raise SpecError(f"{where}: doc_to_choice has {len(fixed):,} choices; expected at most {MOST_CHOICES:,}")
    if not 1 <= spec.max_gen_toks <= MOST_GENERATED:
        bound = "at least 1" if spec.max_gen_toks < 1 else f"at most {MOST_GENERATED:,}"
        raise SpecError(f"{where}: generation_kwargs.max_gen_toks must be {bound}, got {spec.max_gen_toks}")
    if not spec.task.strip():
        raise SpecError(f"{where}: task is empty; expected a name")
    for key in TEXT_KEYS:
        if (length := len(getattr(spec, key) or "")) > MOST_SOURCE:
            raise SpecError(f"{where}: {key} has {length:,} characters; expected at most {MOST_SOURCE:,}")
    spec = replace(spec, where=where)
    _ = spec.templates  # bad Jinja fails here, before any data is read
    return spec


def _block(value: object, known: Sequence[str] | None, ignored: Sequence[str], where: str) -> dict[str, Any]:
    # The known keys of a mapping that are not null, all where `known` is None.
    if not isinstance(value, Mapping):
        raise SpecError(f"{where}: expected a mapping, got {value!r}")
    for key in value:
        if known is not None and key not in known and key not in ignored:
            raise SpecError(f"{where}: {unknown_name('key', str(key), known)}")
    return {key: part for key, part in value.items() if part is not None and (known is None or key in known)}


TEXT_KEYS = (
    "task", "doc_to_text", "doc_to_target", "doc_to_group", "doc_to_id", "doc_filter", "description",
    "target_delimiter", "dataset_path", "dataset_name", "training_split", "validation_split", "test_split",
)  # fmt: skip


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


# --- rendering ----------------------------------------------------------------------------------------


def render(spec: TaskSpec, rows: Rows) -> tuple[Example, ...]:
    """The examples of one split. Rows that doc_filter refuses are left out.

    Raises DataError with file, line and column for a missing or null column, an empty text or target, or a
    label outside the list.
    """
    templates, examples = spec.templates, []
    for i, row in enumerate(rows.values):
        where = rows.place(i)
        if not keeps_row(spec, row, where):
            continue
        text = spec.question(row, where)
        name = content_id(row) if templates.id is None else templates.id.text(row, where, "doc_to_id")
        group = "" if templates.group is None else templates.group.text(row, where, "doc_to_group")
        target = templates.target.value(row, where, "doc_to_target")
        if spec.output_type == "multiple_choice":
            choices = spec.fixed_choices or row_choices(spec, row, where)
            label = label_index(target, choices, spec.metadata.label_names, where)
            examples.append(Example(name, text, choices[label], choices=choices, label=label, group=group))
            continue
        if isinstance(target, Mapping):  # SQuAD's answers: {text: [...], answer_start: [...]}
            target = target.get("text", [])
        answers = target if isinstance(target, list | tuple) else [target]
        texts = [as_text(answer, where, "doc_to_target").strip() for answer in answers]
        references = tuple(dict.fromkeys(filter(None, texts)))
        if not references:
            raise DataError(f"{where}: doc_to_target gives an empty target")
        examples.append(Example(name, text, references[0], references=references, group=group))
    return with_own_ids(examples)


def with_own_ids(examples: Sequence[Example]) -> tuple[Example, ...]:
    """The examples, each with an id that no different one has: a column of customers' numbers tells none apart, so that
    later ones get "#2", "#3", … behind it. Equal examples may share one."""
    first: dict[str, Example] = {}
    out = []
    for example in examples:
        own, number = example, 1
        while (known := first.setdefault(own.id, own)) is not own and known != own:
            number += 1
            own = replace(example, id=f"{example.id}#{number}")
        out.append(own)
    return tuple(out)


def keeps_row(spec: TaskSpec, row: Row, where: str) -> bool:
    """Whether doc_filter keeps a row; text is judged by the words true and false."""
    template = spec.templates.filter
    if template is None:
        return True
    value = template.value(row, where, "doc_filter")
    return value.strip().casefold() not in ("", "false", "0") if isinstance(value, str) else bool(value)


def row_choices(spec: TaskSpec, row: Row, where: str) -> tuple[str, ...]:
    """The choices that stand in the row itself."""
    assert spec.templates.choices is not None
    value = spec.templates.choices.value(row, where, "doc_to_choice")
    if isinstance(value, list | tuple) and len(value) > MOST_CHOICES:
        raise DataError(f"{where}: doc_to_choice gives {len(value):,} answers; expected at most {MOST_CHOICES:,}")
    listed = value if isinstance(value, list | tuple) else ()
    choices = tuple(as_text(v, where, "doc_to_choice").strip() for v in listed)
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
    try:
        number = float(value)  # type: ignore[arg-type] # digits count as their number
    except (TypeError, ValueError, OverflowError):
        number = -1.0
    if not (number.is_integer() and 0 <= number < len(choices)):
        expected = f"0 to {len(choices) - 1} or one of {', '.join(map(repr, choices[:10]))}"
        more = ", …" if len(choices) > 10 else ""
        raise DataError(f"{where}: label {value!r} is outside the list (expected {expected}{more})")
    return int(number)
