"""Rows without answers, to be answered: the same templates as a task's, but nothing of the target is read."""

from dataclasses import replace
from pathlib import Path

from promptprior.errors import DataError
from promptprior.tasks import builtin
from promptprior.tasks.loading.load import (
    catalogue_names,
    catalogue_spec,
    folder_spec,
    looks_like_path,
    plugin_task,
    read_folder,
    task_of,
)
from promptprior.tasks.loading.readers import Rows
from promptprior.tasks.loading.spec import TaskSpec, keeps_row, read_spec, row_choices
from promptprior.tasks.task import Example, Task, content_id

NEVER_READ = "?"  # an example must have a target; prediction reads none


def unlabelled_task(name_or_path: str, rows: Rows, data: Path | None = None) -> Task:
    """A task whose test split is these rows, which need no answer columns.

    `name_or_path` is what `load_task` takes. A built-in task has no columns: its rows hold `text`, written as
    `promptprior tasks show` shows it. Raises SpecError for an unknown task, DataError for a missing column.
    """
    task = _task_or_spec(name_or_path, data)
    examples = []
    for i, row in enumerate(rows.values):
        where = rows.place(i)
        if isinstance(task, Task):
            text = row.get("text")
            if not isinstance(text, str) or not text.strip():
                raise DataError(f"{where}: a built-in task reads the column 'text' (columns: {', '.join(row)})")
            choices = task.split("train")[0].choices
            examples.append(Example(str(row.get("id") or content_id(row)), text, NEVER_READ, choices))
        elif keeps_row(task, row, where):
            templates = task.templates
            text = str(templates.text.value(row, where, "doc_to_text"))
            has_id = templates.id is not None and all(column in row for column in templates.id.columns)
            name = str(templates.id.value(row, where, "doc_to_id")) if templates.id and has_id else content_id(row)
            choices = task.fixed_choices if templates.choices is None else row_choices(task, row, where)
            examples.append(Example(name, text, NEVER_READ, choices))
    if isinstance(task, Task):
        return replace(task, examples={"test": tuple(examples)})
    return replace(task_of(task, {"test": tuple(examples)}, rows.source), licence="")


def _task_or_spec(name_or_path: str, data: Path | None) -> Task | TaskSpec:
    # the spec that `load_task` would render rows with; a whole task where there is none
    path, text = Path(name_or_path), name_or_path.removeprefix("builtin:")
    in_data = data is not None and (data / text).is_dir()
    if not in_data and not looks_like_path(text) and text in builtin.names():
        return builtin.make_task(text)
    if path.suffix in (".yaml", ".yml"):
        return read_spec(path)
    folder = data / name_or_path if data is not None and (data / name_or_path).is_dir() else path
    if folder.is_dir():
        return folder_spec(folder, read_folder(folder))
    name = name_or_path.removeprefix("hub:")
    if not looks_like_path(name) and name in catalogue_names():
        return catalogue_spec(name)
    plugged_in = None if looks_like_path(name) else plugin_task(name)
    if plugged_in is None:
        raise DataError(f"task {name_or_path!r} (--target): expected a spec file, a task folder or a task's name")
    return plugged_in
