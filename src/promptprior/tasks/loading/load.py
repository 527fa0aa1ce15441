"""Where tasks come from: spec files, folders and files, the Hub by catalogue name, the built-in suite, and packages.

Another package adds a task by an entry point of the group ``promptprior.tasks``: its name, and a callable that returns
the Task, or a mapping with the keys of a spec file (and `dataset_kwargs.data_files` as absolute paths, or a Hub
`dataset_path`).
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from promptprior import plugins
from promptprior.errors import DataError, SpecError, unknown_name
from promptprior.tasks import builtin
from promptprior.tasks.loading.check import check_raise
from promptprior.tasks.loading.inferred_spec import read_card, spec_from_card, spec_from_columns
from promptprior.tasks.loading.readers import SUFFIXES, Rows, memory_rows, read_data_file, rows_of
from promptprior.tasks.loading.spec import CATALOGUE, TaskSpec, read_spec, render, spec_from
from promptprior.tasks.loading.splits import complete_splits
from promptprior.tasks.task import SPLITS, Example, Split, Task
from promptprior.untrusted import path_kind

SPEC_FILE = "spec.yaml"
LOCAL_FORMATS = ("json", "csv", "parquet")  # dataset_path of files
Limits = Mapping[Split, int]
SplitRows = dict[Split, Rows]


@dataclass(frozen=True)
class TaskSummary:
    """One line of `promptprior tasks list`. `sizes` holds examples per split where that is known."""

    name: str
    source: str
    family: str
    output_type: str
    metrics: tuple[str, ...]
    labels: int = 0
    sizes: Mapping[str, int] = field(default_factory=dict)
    licence: str = ""


def load_task(name_or_path: str | Path, data: Path | None = None, split_limits: Limits | None = None) -> Task:
    """A task by path or by name, rendered and checked.

    A path is a spec (.yaml), a data file (.csv, .jsonl, .json, .parquet) or a folder of files named train, validation
    and test. A name is a folder of `data`, else a task of the built-in suite, of another package, or (without `data`) a
    catalogue spec, read from the Hub; `builtin:NAME` and `hub:NAME` say which. `split_limits` takes a fixed sample of
    that many rows of a split. Raises SpecError or DataError before anything else happens when spec or data are wrong.
    """
    limits = split_limits or {}
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or looks_like_path(text):
        return _load_path(Path(name_or_path), data, limits)
    if text.startswith("hub:"):
        return _from_hub(catalogue_spec(text.removeprefix("hub:")), limits)
    if text.startswith("builtin:"):
        return check_raise(builtin.make_task(text.removeprefix("builtin:")))
    if data is not None and path_kind(data / text) == "folder":
        return _load_path(data / text, data, limits)
    if text in builtin.names():
        return check_raise(builtin.make_task(text))
    if data is None and text in catalogue_names():
        return _from_hub(catalogue_spec(text), limits)
    plugged_in = plugin_task(text)
    if isinstance(plugged_in, TaskSpec):
        return _load_spec(plugged_in, None, data, limits)
    if plugged_in is not None:
        return plugged_in
    others = [*builtin.names(), *plugin_tasks()]
    if data is not None:
        raise DataError(f"{data}: {unknown_name('task', text, [*folders(data), *others])}")
    raise SpecError(unknown_name("task", text, [*catalogue_names(), *others]))


def task_from_rows(rows: Any, spec: Mapping[str, object] | None = None, name: str = "rows") -> Task:
    """A task of rows in memory: a pandas DataFrame, a sequence of mappings, or a mapping of splits to either.

    `spec` has the keys of a spec file (`doc_to_text: "{{ subject }}: {{ body }}"`); without it the columns are text and
    label, or prompt and completion, as in a file. Missing splits are carved out of train. A prompt that is adapted to
    such a task remembers how rows are read, so `predict` needs no file of it. Raises SpecError and DataError as
    `load_task` does, with the number of the row.

    >>> labels = ("good", "bad") * 10
    >>> task_from_rows([{"text": f"text {i}", "label": label} for i, label in enumerate(labels)]).label_names
    ('bad', 'good')
    """
    named = rows if isinstance(rows, Mapping) else {"train": rows}
    if unknown := [split for split in named if split not in SPLITS]:
        raise DataError(f"{name}: {unknown_name('split', str(unknown[0]), SPLITS)}")
    if "train" not in named:
        raise DataError(f"{name}: no split 'train' among {', '.join(named) or 'none'}; examples are learned from it")
    splits: SplitRows = {split: memory_rows(named[split], f"{name}:{split}") for split in SPLITS if split in named}
    read = spec_from_columns(splits["train"], name) if spec is None else spec_from({"task": name, **spec}, name)
    return replace(_build(read, splits, "rows in memory", {}), spec=read.keys())


def missing_tasks(names: Sequence[str], data: Path | None = None) -> tuple[str, ...]:
    """The names among these that `load_task` would not find; paths, and names that say where they are, count as there.

    >>> missing_tasks(["noun_plural", "no_such_task"])
    ('no_such_task',)
    """
    known = {*builtin.names(), *plugin_tasks(), *(catalogue_names() if data is None else ())}
    return tuple(
        name
        for name in names
        if not (looks_like_path(name) or name.startswith(("hub:", "builtin:")) or name in known)
        and (data is None or path_kind(data / name) != "folder")
    )


def looks_like_path(text: str) -> bool:
    """Whether a string is meant as a path: it has a folder separator, a known suffix, or names a file with another."""
    suffix = Path(text).suffix.lower()
    known = suffix in (*SUFFIXES, ".yaml", ".yml")
    return "/" in text or os.sep in text or known or (suffix != "" and path_kind(Path(text)) == "file")


# --- local files --------------------------------------------------------------------------------------


def _load_path(path: Path, data: Path | None, limits: Limits) -> Task:
    kind = path_kind(path)
    if kind is None:
        raise DataError(f"{path}: no such file or folder")
    if kind == "folder":
        split_rows = read_folder(path)
        task = _build(folder_spec(path, split_rows), split_rows, str(path), limits)
    elif path.suffix in (".yaml", ".yml"):
        task = _load_spec(read_spec(path), path.parent, data, limits)
    else:
        rows = read_data_file(path)
        task = _build(spec_from_columns(rows, path.stem), {"train": rows}, str(path), limits)
    return replace(task, path=os.path.abspath(path))


def _load_spec(spec: TaskSpec, home: Path | None, data: Path | None, limits: Limits) -> Task:
    # a spec's data are the files it names, a folder of split files, or the Hub's; paths are relative to the spec's
    # own folder, `home` (None for the spec of a package, which lies in none)
    files = spec.dataset_kwargs.get("data_files")
    if spec.dataset_path in LOCAL_FORMATS and files is not None:
        named, where = files if isinstance(files, Mapping) else {"train": files}, f"{spec.where}: dataset_kwargs"
        # As for the Hub, a split may have another name there; where none is given it has its own.
        said = (spec.training_split, spec.validation_split, spec.test_split)
        own = {split: name if name and name in named else split for split, name in zip(SPLITS, said, strict=True)}
        if unknown := [name for name in named if name not in own.values()]:
            raise SpecError(f"{where}.data_files: {unknown_name('split', str(unknown[0]), tuple(own.values()))}")
        if twice := [name for name, count in Counter(own.values()).items() if count > 1 and name in named]:
            raise SpecError(
                f"{where}.data_files: {twice[0]!r} is two splits at once (training_split, validation_split, "
                "test_split): what is tested would be learned from; name a file for each, or leave test_split out"
            )
        for file in named.values():
            if not isinstance(file, str):
                raise SpecError(f"{where}.data_files: expected the name of a file, got {file!r}")
        rows = {
            split: read_data_file((home or Path()) / str(named[own[split]])) for split in SPLITS if own[split] in named
        }
        return _build(spec, rows, spec.where, limits)
    candidates = [
        home / spec.dataset_path if home and spec.dataset_path is not None else None,
        data / spec.task if data is not None else None,
        home if spec.dataset_path is None else None,
    ]
    for folder in filter(None, candidates):
        if split_files(folder):
            return _build(spec, read_folder(folder), str(folder), limits)
    return _from_hub(spec, limits)


def folder_spec(folder: Path, rows: SplitRows) -> TaskSpec:
    """The spec of a folder: its spec.yaml, the catalogue's of that name, or one from its card or columns."""
    if path_kind(folder / SPEC_FILE) is not None:
        return read_spec(folder / SPEC_FILE)
    if folder.name in catalogue_names():
        return catalogue_spec(folder.name)
    card = read_card(folder / "task.json")
    if card:
        return spec_from_card(card, folder.name, str(folder / "task.json"))
    return spec_from_columns(next(iter(rows.values())), folder.name)


def read_folder(folder: Path) -> SplitRows:
    """The rows of every split file in a folder. Raises DataError when there is none."""
    files = split_files(folder)
    if not files:
        expected = ", ".join(f"train{suffix}" for suffix in SUFFIXES)
        raise DataError(f"{folder}: no training data; expected one of {expected}")
    return {name: read_data_file(path) for name, path in files.items()}


def split_files(folder: Path) -> dict[Split, Path]:
    """The file of each split; the first of .jsonl, .csv, .parquet and .json that is there."""
    files = {}
    for name in SPLITS:
        paths = [path for suffix in SUFFIXES if path_kind(path := folder / f"{name}{suffix}") in ("file", "other")]
        if paths:
            files[name] = paths[0]
    return files


def _build(spec: TaskSpec, rows: SplitRows, origin: str, limits: Limits) -> Task:
    # a checked task from rows: sampled to the limits, rendered, completed, and free of shared texts
    sampled = {name: part.sample(limits.get(name)) for name, part in rows.items()}
    rendered = {name: render(spec, part) for name, part in sampled.items()}
    for name, examples in rendered.items():
        if not examples:
            raise DataError(f"{rows[name].source}: split {name!r} is empty: doc_filter refuses every row")
    splits, notes = complete_splits(rendered)
    cut = [f"{name}: {len(sampled[name])} of {len(rows[name])} rows" for name in rows if name in limits]
    left_out = sum(map(len, sampled.values())) - sum(map(len, rendered.values()))
    filtered = [f"{left_out} row(s) left out by doc_filter"] if left_out else []
    return check_raise(task_of(spec, splits, "; ".join((origin, *cut, *filtered, *notes))))


def task_of(spec: TaskSpec, examples: Mapping[Split, tuple[Example, ...]], origin: str) -> Task:
    """The task that a spec describes, with these examples."""
    return Task(
        name=spec.task,
        output_type=spec.output_type,
        metrics=spec.metrics,
        examples=examples,
        family=spec.metadata.family,
        version=spec.metadata.version,
        label_names=spec.metadata.label_names or spec.fixed_choices,
        target_delimiter=spec.target_delimiter,
        max_gen_toks=spec.max_gen_toks,
        origin=origin,
        licence=spec.metadata.licence,
    )


# --- the Hub ------------------------------------------------------------------------------------------


def _from_hub(spec: TaskSpec, limits: Limits) -> Task:
    # in the splits that the spec names; code in a data set is never run
    if spec.dataset_path is None:
        raise SpecError(
            f"{spec.where}: task {spec.task!r} names no Hub data set (dataset_path); give a folder of data "
            f"(--data DIR with DIR/{spec.task}/train.jsonl)"
        )
    if spec.dataset_path.startswith((".", "/")):
        raise DataError(f"{spec.where}: dataset_path {spec.dataset_path!r} holds no train file")
    try:
        from datasets import load_dataset
    except ImportError:
        raise DataError(f"{spec.task}: Hub data sets need datasets; run: pip install datasets") from None
    origin = "/".join(filter(None, ("hub", spec.dataset_path, spec.dataset_name)))
    hub_names = (spec.training_split, spec.validation_split, spec.test_split)
    rows: SplitRows = {}
    for name, hub_name in zip(SPLITS, hub_names, strict=True):
        if not hub_name:
            continue
        source = f"{origin}/{hub_name}"
        try:
            table = load_dataset(spec.dataset_path, spec.dataset_name, split=hub_name, **spec.dataset_kwargs)
        except Exception as error:  # the Hub client raises a dozen kinds: offline, gone, gated, a script
            first_line = (str(error).splitlines() or [""])[0]
            raise DataError(
                f"{source}: cannot be read ({type(error).__name__}: {first_line}); offline, point --data "
                f"at a folder with {spec.task}/train.jsonl, or run once online to fill the cache"
            ) from None
        limit = limits.get(name)
        if limit is not None and limit < len(table):  # a fixed sample, before rows become Python
            table = table.shuffle(seed=0).select(range(limit))
        rows[name] = rows_of(table.to_list(), source)
    return _build(spec, rows, origin, limits)


# --- names --------------------------------------------------------------------------------------------


@cache
def catalogue_names() -> tuple[str, ...]:
    """The tasks the catalogue has a spec for."""
    return tuple(sorted(path.stem for path in CATALOGUE.glob("*.yaml")))


def catalogue_spec(name: str) -> TaskSpec:
    """The catalogue's spec of a name. Raises SpecError with near names."""
    if name not in catalogue_names():
        raise SpecError(unknown_name("task", name, catalogue_names()))
    return read_spec(CATALOGUE / f"{name}.yaml")


def plugin_tasks() -> plugins.Plugins:
    """The tasks that other packages declare. Raises SpecError where one has the name of ours."""
    return plugins.load_plugins("promptprior.tasks", own_names={*builtin.names(), *catalogue_names()})


def plugin_task(name: str) -> Task | TaskSpec | None:
    """The checked task of another package, or its spec; None where no package declares the name.

    Raises SpecError, naming package and entry point, for an object that is neither or a task of another name.
    """
    declared = plugin_tasks()
    if name not in declared:
        return None
    value, where = declared[name], f"entry point {declared.describe(name)}"
    if isinstance(value, Mapping):
        task: object = spec_from({"task": name, **value}, where)
    else:
        task = value() if callable(value) else value
    if not isinstance(task, Task | TaskSpec):
        raise SpecError(
            f"{where}: expected a callable that returns a Task, or a mapping with a spec's keys, got {task!r}"
        )
    own_name = task.task if isinstance(task, TaskSpec) else task.name
    if own_name != name:
        raise SpecError(f"{where}: gives a task named {own_name!r}; the two names must agree")
    return task if isinstance(task, TaskSpec) else check_raise(task)


def folders(data: Path) -> tuple[str, ...]:
    """The tasks of a data folder: its folders with a train file. Raises DataError when it is no folder."""
    if path_kind(data) != "folder":
        raise DataError(f"{data}: no such data folder")
    try:
        inside = sorted(data.iterdir())
    except OSError as error:
        raise DataError(f"{data}: cannot be read: {error.strerror}") from None
    return tuple(path.name for path in inside if path_kind(path) == "folder" and split_files(path))


def available(data: Path | None = None) -> tuple[TaskSummary, ...]:
    """Every task that `load_task` knows by name: the folders of `data`, the built-in suite, packages', the Hub's.

    Sizes of a folder are those its task.json tells. Catalogue specs that name no Hub data set are listed only where
    `data` has their folder. Built-in tasks are listed without making their examples. Raises SpecError for a spec and
    DataError for a folder that cannot be read.
    """
    summaries = []
    for folder in [] if data is None else [data / name for name in folders(data)]:
        card = read_card(folder / "task.json")
        spec = folder_spec(folder, {} if card or folder.name in catalogue_names() else read_folder(folder))
        sizes = card.get("num_rows")
        summary = _summary(spec, "data")
        summaries.append(replace(summary, name=folder.name, sizes=sizes if isinstance(sizes, dict) else {}))
    for recipe in builtin.RECIPES:
        output_type = "multiple_choice" if recipe.choice else "generate_until"
        licence = ", ".join(dict.fromkeys(source.licence for source in recipe.sources))
        summaries.append(
            TaskSummary(recipe.name, "builtin", recipe.family, output_type, recipe.metrics, licence=licence)
        )
    for name in plugin_tasks():
        if (plugged_in := plugin_task(name)) is not None:
            summaries.append(_summary(plugged_in, "package"))
    specs = map(catalogue_spec, catalogue_names())
    return (*summaries, *(_summary(spec, "hub") for spec in specs if spec.dataset_path is not None))


def _summary(task: TaskSpec | Task, source: str) -> TaskSummary:
    if isinstance(task, TaskSpec):
        task = task_of(task, {}, "")
    sizes: dict[str, int] = {name: len(examples) for name, examples in task.examples.items()}
    labels = len(task.label_names)
    return TaskSummary(task.name, source, task.family, task.output_type, task.metrics, labels, sizes, task.licence)
