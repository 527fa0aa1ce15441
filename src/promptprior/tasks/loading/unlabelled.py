"""Rows without answers, to be answered: the same templates as a task's, but nothing of the target is read."""

from dataclasses import replace
from pathlib import Path

from promptprior.errors import DataError
from promptprior.tasks import builtin
from promptprior.tasks.loading.inferred_spec import spec_from_columns
from promptprior.tasks.loading.load import (
    catalogue_names,
    catalogue_spec,
    folder_spec,
    looks_like_path,
    plugin_task,
    read_folder,
    task_of,
)
from promptprior.tasks.loading.readers import SUFFIXES, Rows, read_data_file
from promptprior.tasks.loading.spec import TaskSpec, keeps_row, read_spec, row_choices
from promptprior.tasks.loading.template import as_text
from promptprior.tasks.task import Example, Task, content_id
from promptprior.untrusted import path_kind

NEVER_READ = "?"  # an example must have a target; prediction reads none


def unlabelled_task(name_or_path: str, rows: Rows, data: Path | None = None) -> tuple[Task, list[int]]:
    """A task whose test split is these rows, which need no answer columns, and the indices of the rows in it.

    Rows that the spec's doc_filter refuses are left out. `name_or_path` is what `load_task` takes. A built-in task has
    no columns: its rows hold `text`, written as `promptprior tasks show` shows it. Raises SpecError for an unknown
    task, DataError for a missing column.
    """
    return rendered_rows(row_reader(name_or_path, data), rows)


def row_reader(name_or_path: str, data: Path | None = None) -> Task | TaskSpec:
    """What renders rows of a task: the spec that `load_task` would render them with, or the whole task where there is
    none. Raises SpecError for an unknown task, DataError for a file that cannot be read."""
    path, text, name = Path(name_or_path), name_or_path.removeprefix("builtin:"), name_or_path.removeprefix("hub:")
    is_path, in_data = looks_like_path(name_or_path), data is not None and path_kind(data / text) == "folder"
    folder = data / name_or_path if data is not None and path_kind(data / name_or_path) == "folder" else path
    task: Task | TaskSpec | None
    if not in_data and not is_path and text in builtin.names():
        task = builtin.make_task(text)
    elif path.suffix in (".yaml", ".yml"):
        task = read_spec(path)
    elif is_path and path.suffix.lower() in SUFFIXES:
        task = spec_from_columns(read_data_file(path), path.stem)
    elif path_kind(folder) == "folder":
        task = folder_spec(folder, read_folder(folder))
    elif not is_path and name in catalogue_names():
        task = catalogue_spec(name)
    else:
        task = None if is_path else plugin_task(name)
    if task is None:
        raise DataError(f"task {name_or_path!r} (--target): expected a task's name, file or folder")
    return task


def rendered_rows(task: Task | TaskSpec, rows: Rows) -> tuple[Task, list[int]]:
    """Rows as the test split of a task, by what `row_reader` found, and the indices of those that are in it. Raises
    DataError for a missing column."""
    examples, indices = [], []
    for i, row in enumerate(rows.values):
        where = rows.place(i)
        if isinstance(task, Task):
            question = row.get("text")
            if not isinstance(question, str) or not question.strip():
                raise DataError(f"{where}: a built-in task reads the column 'text' (columns: {', '.join(row)})")
            question, choices = as_text(question, where, "column 'text'"), task.split("train")[0].choices
            examples.append(Example(str(row.get("id") or content_id(row)), question, NEVER_READ, choices))
            indices.append(i)
        elif keeps_row(task, row, where):
            templates = task.templates
            question = templates.text.text(row, where, "doc_to_text")
            has_id = templates.id is not None and all(column in row for column in templates.id.columns)
            own_id = templates.id.text(row, where, "doc_to_id") if templates.id and has_id else content_id(row)
            choices = task.fixed_choices if templates.choices is None else row_choices(task, row, where)
            examples.append(Example(own_id, question, NEVER_READ, choices))
            indices.append(i)
    if isinstance(task, Task):
        return replace(task, examples={"test": tuple(examples)}), indices
    return replace(task_of(task, {"test": tuple(examples)}, rows.source), licence=""), indices
