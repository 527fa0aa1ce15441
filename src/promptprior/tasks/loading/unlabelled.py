"""Rows without answers, to be answered: the same templates as a task's, but nothing of the target is read."""

from dataclasses import replace
from pathlib import Path

from promptprior.errors import DataError
from promptprior.tasks.loading.load import (
    builtin_names,
    catalogue_names,
    catalogue_spec,
    folder_spec,
    load_builtin,
    looks_like_path,
    read_folder,
)
from promptprior.tasks.loading.readers import Row, Rows
from promptprior.tasks.loading.spec import TaskSpec, passes, read_spec, row_choices
from promptprior.tasks.task import Example, Task, content_id

NEVER_READ = "?"  # an example must have a target; prediction reads none


def unlabelled_task(name_or_path: str, rows: Rows, data: Path | None = None) -> Task:
    """A task whose test split is these rows, which need no answer columns.

    `name_or_path` is what `load_task` takes. A built-in task has no columns: its rows hold `text`, written as
    `promptprior tasks show` shows it. Raises SpecError for an unknown task, DataError for a missing column.
    """
    text = name_or_path.removeprefix("builtin:")
    in_data = data is not None and (data / text).is_dir()
    if not in_data and not looks_like_path(text) and text in builtin_names():
        task = load_builtin(text)
        sample = task.split("train")[0]
        choices = sample.choices
        return replace(task, examples={"test": tuple(plain_example(rows, i, choices) for i in range(len(rows)))})
    return task_of(task_spec(name_or_path, data), rows)


def task_spec(name_or_path: str, data: Path | None) -> TaskSpec:
    """The spec that `load_task` would render rows with."""
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        return read_spec(path)
    folder = data / name_or_path if data is not None and (data / name_or_path).is_dir() else path
    if folder.is_dir():
        return folder_spec(folder, read_folder(folder))
    name = name_or_path.removeprefix("hub:")
    if looks_like_path(name) or name not in catalogue_names():
        raise DataError(f"task {name_or_path!r} (--target): expected a spec file, a task folder or a task's name")
    return catalogue_spec(name)


def task_of(spec: TaskSpec, rows: Rows) -> Task:
    """The rows as the test split of a spec's task."""
    kept = [(row, rows.place(i)) for i, row in enumerate(rows.values) if passes(spec, row, rows.place(i))]
    return Task(
        name=spec.task,
        output_type=spec.output_type,
        metrics=spec.metrics,
        examples={"test": tuple(unanswered(spec, row, where) for row, where in kept)},
        family=spec.metadata.family,
        version=spec.metadata.version,
        label_names=spec.metadata.label_names or spec.fixed_choices,
        target_delimiter=spec.target_delimiter,
        max_gen_toks=spec.max_gen_toks,
        origin=rows.source,
    )


def unanswered(spec: TaskSpec, row: Row, where: str) -> Example:
    """A row's text, and its choices where it has any."""
    templates = spec.templates
    text = str(templates.text.value(row, where, "doc_to_text"))
    named = templates.id is not None and all(column in row for column in templates.id.columns)
    name = str(templates.id.value(row, where, "doc_to_id")) if templates.id and named else content_id(row)
    choices = spec.fixed_choices
    if templates.choices is not None:
        choices = row_choices(spec, row, where)
    return Example(id=name, text=text, target=NEVER_READ, choices=choices)


def plain_example(rows: Rows, index: int, choices: tuple[str, ...]) -> Example:
    """A row of a built-in task."""
    row = rows.values[index]
    text = row.get("text")
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{rows.place(index)}: a built-in task reads the column 'text' (columns: {', '.join(row)})")
    return Example(str(row.get("id") or content_id(row)), text, NEVER_READ, choices)
