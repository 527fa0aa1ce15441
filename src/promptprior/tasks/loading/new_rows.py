"""Rows that come after a task: to be answered, when nothing of their target is read, or with answers, to be scored."""

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
from promptprior.tasks.loading.spec import TaskSpec, keeps_row, read_spec, render, row_choices
from promptprior.tasks.loading.template import as_text
from promptprior.tasks.task import Example, Split, Task, content_id
from promptprior.untrusted import path_kind

NEVER_READ = "?"  # an example must have a target; prediction reads none


def unlabelled_task(
    read_as: str | Task | TaskSpec, rows: Rows, data: Path | None = None, refuse_empty: bool = False
) -> tuple[Task, list[int]]:
    """A task whose test split is these rows, which need no answer columns, and the indices of the rows in it.

    Rows that the spec's doc_filter refuses are left out. `read_as` is what `load_task` takes, or what `reading_spec`
    gives. A built-in task has no columns: its rows hold `text`, written as `promptprior tasks show` shows it. Raises
    SpecError for an unknown task, DataError for a missing column, and with `refuse_empty` for a row that gives no text.
    """
    task = reading_spec(read_as, data) if isinstance(read_as, str) else read_as
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
            question = task.question(row, where) if refuse_empty else templates.text.text(row, where, "doc_to_text")
            has_id = templates.id is not None and all(column in row for column in templates.id.columns)
            own_id = templates.id.text(row, where, "doc_to_id") if templates.id and has_id else content_id(row)
            choices = task.fixed_choices if templates.choices is None else row_choices(task, row, where)
            examples.append(Example(own_id, question, NEVER_READ, choices))
            indices.append(i)
    if isinstance(task, Task):
        return replace(task, examples={"test": tuple(examples)}), indices
    return replace(task_of(task, {"test": tuple(examples)}, rows.source), licence=""), indices


def labelled_task(read_as: Task | TaskSpec, rows: Rows, split: Split = "test") -> Task:
    """A task whose `split` is these rows with their answers, rendered as the rows of `read_as` are.

    Raises DataError where `render` does, where doc_filter refuses all rows, and for a built-in task, which says of no
    column that it holds the answer.
    """
    if isinstance(read_as, Task):
        raise DataError(
            f"{rows.source}: task {read_as.name!r} is built in and reads no answers from columns; name a spec or a "
            "file with the columns text and label (--target)"
        )
    if not (examples := render(read_as, rows)):
        raise DataError(f"{rows.source}: no row is part of the task {read_as.task!r}: doc_filter refuses all of them")
    return task_of(read_as, {split: examples}, rows.source)


def reading_spec(name_or_path: str, data: Path | None = None) -> Task | TaskSpec:
    """The spec that `load_task` would render rows with; a whole task where there is none, as of the built-in suite.

    Raises SpecError and DataError for an unknown task.
    """
    path, text, name = Path(name_or_path), name_or_path.removeprefix("builtin:"), name_or_path.removeprefix("hub:")
    is_path, in_data = looks_like_path(name_or_path), data is not None and path_kind(data / text) == "folder"
    folder = data / name_or_path if data is not None and path_kind(data / name_or_path) == "folder" else path
    if not in_data and not is_path and text in builtin.names():
        return builtin.make_task(text)
    if path.suffix in (".yaml", ".yml"):
        return read_spec(path)
    if is_path and path.suffix.lower() in SUFFIXES:
        return spec_from_columns(read_data_file(path), path.stem)
    if path_kind(folder) == "folder":
        return folder_spec(folder, read_folder(folder))
    if not is_path and name in catalogue_names():
        return catalogue_spec(name)
    if not is_path and (plugged_in := plugin_task(name)) is not None:
        return plugged_in
    raise DataError(f"task {name_or_path!r} (--target): expected a task's name, file or folder")
