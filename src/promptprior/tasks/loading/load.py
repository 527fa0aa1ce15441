"""Where tasks come from: spec files, folders and files, the Hub by catalogue name, and the built-in suite."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from promptprior.errors import DataError, SpecError, unknown_name
from promptprior.tasks.loading import inferred_spec as generic
from promptprior.tasks.loading.check import check_raise
from promptprior.tasks.loading.readers import SUFFIXES, Rows, read_rows, rows_of
from promptprior.tasks.loading.spec import TaskSpec, read_spec, render
from promptprior.tasks.loading.splits import complete, drop_shared
from promptprior.tasks.task import SPLITS, Split, Task

if TYPE_CHECKING:
    from promptprior.tasks.builtin.generator import Recipe

CATALOGUE = Path(__file__).parents[1] / "catalogue"
SPEC_FILE = "spec.yaml"
Limits = Mapping[Split, int]
SplitRows = dict[Split, Rows]


@dataclass(frozen=True)
class TaskCard:
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

    A path is a spec (.yaml), a data file (.csv, .jsonl, .json, .parquet) or a folder of
    {train,validation,test} files. A name is a folder of `data`, else (without `data`) a task of the built-in
    suite or a catalogue spec, read from the Hub; `builtin:NAME` and `hub:NAME` say which. `split_limits`
    takes a fixed sample of that many rows of a split. Raises SpecError or DataError before anything else
    happens when spec or data are wrong.
    """
    limits = split_limits or {}
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or looks_like_path(text):
        return load_path(Path(name_or_path), data, limits)
    if text.startswith("builtin:"):
        return load_builtin(text.removeprefix("builtin:"))
    if text.startswith("hub:"):
        return from_hub(catalogue_spec(text.removeprefix("hub:")), limits)
    if data is not None and (data / text).is_dir():
        return load_folder(data / text, limits)
    if text in builtin_names():
        return load_builtin(text)
    if data is not None:
        raise DataError(f"{data}: {unknown_name('task', text, [*folders(data), *builtin_names()])}")
    if text in catalogue_names():
        return from_hub(catalogue_spec(text), limits)
    raise SpecError(unknown_name("task", text, [*catalogue_names(), *builtin_names()]))


def looks_like_path(text: str) -> bool:
    """Whether a string is meant as a path: it has a folder separator or a known suffix."""
    return "/" in text or os.sep in text or Path(text).suffix in (*SUFFIXES, ".yaml", ".yml")


# --- local files --------------------------------------------------------------------------------------


def load_path(path: Path, data: Path | None, limits: Limits) -> Task:
    """A task from a spec file, a data file or a folder."""
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if path.is_dir():
        return load_folder(path, limits)
    if path.suffix in (".yaml", ".yml"):
        return load_spec_file(path, data, limits)
    rows = {"train": read_rows(path)}
    return build(generic.spec_from_columns(rows["train"], path.stem), rows, str(path), limits)  # type: ignore[arg-type]


def load_spec_file(path: Path, data: Path | None, limits: Limits) -> Task:
    """A task from a spec file: its data are the files it names, the folder it lies in, or the Hub's."""
    spec = read_spec(path)
    files = spec.dataset_kwargs.get("data_files")
    if spec.dataset_path in ("json", "csv", "parquet") and files is not None:
        return build(spec, named_files(files, path), str(path), limits)
    for folder in local_folders(spec, path, data):
        if split_files(folder):
            return build(spec, read_folder(folder), str(folder), limits)
    return from_hub(spec, limits)


def local_folders(spec: TaskSpec, path: Path, data: Path | None) -> Iterable[Path]:
    """Where a spec's data may lie: the folder it names, the task's folder in `data`, its own folder."""
    if spec.dataset_path is not None:
        yield path.parent / spec.dataset_path
    if data is not None:
        yield data / spec.task
    if spec.dataset_path is None:
        yield path.parent


def named_files(files: object, path: Path) -> SplitRows:
    """Rows of `dataset_kwargs.data_files`: one file, or a file for each split, relative to the spec."""
    given = files if isinstance(files, Mapping) else {"train": files}
    unknown = [name for name in given if name not in SPLITS]
    if unknown:
        raise SpecError(f"{path}: dataset_kwargs.data_files: {unknown_name('split', unknown[0], SPLITS)}")
    return {name: read_rows(path.parent / str(given[name])) for name in SPLITS if name in given}


def load_folder(folder: Path, limits: Limits) -> Task:
    """A task from a folder of split files, by its own spec, the catalogue's, or one derived from it."""
    rows = read_folder(folder)
    return build(folder_spec(folder, rows), rows, str(folder), limits)


def folder_spec(folder: Path, rows: SplitRows) -> TaskSpec:
    """The spec of a folder: its spec.yaml, the catalogue's of that name, or one from its card or columns."""
    if (folder / SPEC_FILE).is_file():
        return read_spec(folder / SPEC_FILE)
    if folder.name in catalogue_names():
        return catalogue_spec(folder.name)
    card = generic.read_card(folder / "task.json")
    if card:
        return generic.spec_from_card(card, folder.name, str(folder / "task.json"))
    return generic.spec_from_columns(next(iter(rows.values())), folder.name)


def read_folder(folder: Path) -> SplitRows:
    """The rows of every split file in a folder. Raises DataError when there is none."""
    files = split_files(folder)
    if not files:
        expected = ", ".join(f"train{suffix}" for suffix in SUFFIXES)
        raise DataError(f"{folder}: no training data; expected one of {expected}")
    return {name: read_rows(path) for name, path in files.items()}


def split_files(folder: Path) -> dict[Split, Path]:
    """The file of each split; the first of .jsonl, .csv, .parquet and .json that is there."""
    found: dict[Split, Path] = {}
    for name in SPLITS:
        paths = [path for suffix in SUFFIXES if (path := folder / f"{name}{suffix}").is_file()]
        if paths:
            found[name] = paths[0]
    return found


def build(spec: TaskSpec, rows: SplitRows, origin: str, limits: Limits) -> Task:
    """A checked task from rows: sampled to the limits, rendered, completed, and free of shared texts."""
    sampled = {name: part.sample(limits.get(name)) for name, part in rows.items()}
    rendered = {name: render(spec, part) for name, part in sampled.items()}
    for name, examples in rendered.items():
        if not examples:
            raise DataError(f"{rows[name].source}: split {name!r} is empty: doc_filter refuses every row")
    splits, carved = complete(rendered)
    splits, dropped = drop_shared(splits)
    left_out = sum(map(len, sampled.values())) - sum(map(len, rendered.values()))
    filtered = (f"{left_out} row(s) left out by doc_filter",) if left_out else ()
    cut = tuple(f"{n}: {len(sampled[n])} of {len(rows[n])} rows" for n in rows if n in limits)
    task = Task(
        name=spec.task,
        output_type=spec.output_type,
        metrics=spec.metrics,
        examples=splits,
        family=spec.metadata.family,
        version=spec.metadata.version,
        label_names=spec.metadata.label_names or spec.fixed_choices,
        target_delimiter=spec.target_delimiter,
        max_gen_toks=spec.max_gen_toks,
        origin="; ".join((origin, *cut, *filtered, *carved, *dropped)),
        licence=spec.metadata.licence,
    )
    return check_raise(task)


# --- the Hub ------------------------------------------------------------------------------------------


def from_hub(spec: TaskSpec, limits: Limits) -> Task:
    """A task from a Hub data set, in the splits its spec names. Code in a data set is never run."""
    if spec.dataset_path is None:
        raise SpecError(
            f"{spec.where}: task {spec.task!r} names no Hub data set (dataset_path); give a folder of data "
            f"(--data DIR with DIR/{spec.task}/train.jsonl)"
        )
    if spec.dataset_path.startswith((".", "/")):
        raise DataError(f"{spec.where}: dataset_path {spec.dataset_path!r} holds no train file")
    named = {"train": spec.training_split, "validation": spec.validation_split, "test": spec.test_split}
    rows = {name: hub_rows(spec, named[name] or "", limits.get(name)) for name in SPLITS if named[name]}
    origin = "/".join(filter(None, ("hub", spec.dataset_path, spec.dataset_name)))
    return build(spec, rows, origin, limits)


def hub_rows(spec: TaskSpec, split: str, limit: int | None) -> Rows:
    """The rows of one split of a Hub data set; a limit draws a fixed sample before rows become Python."""
    try:
        from datasets import load_dataset
    except ImportError:
        raise DataError(f"{spec.task}: Hub data sets need datasets; run: pip install datasets") from None
    source = "/".join(filter(None, ("hub", spec.dataset_path, spec.dataset_name, split)))
    try:
        table = load_dataset(spec.dataset_path, spec.dataset_name, split=split, **spec.dataset_kwargs)
    except Exception as error:  # the Hub client raises a dozen kinds: offline, gone, gated, a script
        raise DataError(
            f"{source}: cannot be read ({type(error).__name__}: {first_line(error)}); offline, point --data "
            f"at a folder with {spec.task}/train.jsonl, or run once online to fill the cache"
        ) from None
    if limit is not None and limit < len(table):
        table = table.shuffle(seed=0).select(range(limit))
    return rows_of(table.to_list(), source)


def first_line(error: Exception) -> str:
    """The first line of what an exception says."""
    return (str(error).splitlines() or [""])[0]


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


@cache
def builtin_names() -> tuple[str, ...]:
    """The tasks of the built-in suite."""
    from promptprior.tasks import builtin

    return tuple(builtin.names())


def load_builtin(name: str) -> Task:
    """A task of the built-in suite. Raises SpecError with near names."""
    from promptprior.tasks import builtin

    if name not in builtin_names():
        raise SpecError(unknown_name("built-in task", name, builtin_names()))
    return check_raise(builtin.load(name))


def folders(data: Path) -> tuple[str, ...]:
    """The tasks of a data folder: its folders with a train file. Raises DataError when it is no folder."""
    if not data.is_dir():
        raise DataError(f"{data}: no such data folder")
    return tuple(sorted(path.name for path in data.iterdir() if path.is_dir() and split_files(path)))


def available(data: Path | None = None) -> tuple[TaskCard, ...]:
    """Every task that `load_task` knows by name: the folders of `data`, the built-in suite, the Hub's.

    Catalogue specs that name no Hub data set are listed only where `data` has their folder.
    """
    from promptprior.tasks.builtin import RECIPES

    local = () if data is None else tuple(data / name for name in folders(data))
    specs = [catalogue_spec(name) for name in catalogue_names()]
    return (
        *map(folder_card, local),
        *map(builtin_card, RECIPES),
        *(spec_card(spec, "hub") for spec in specs if spec.dataset_path is not None),
    )


def folder_card(folder: Path) -> TaskCard:
    """The card of a data folder; sizes as its task.json tells them."""
    card = generic.read_card(folder / "task.json")
    sizes = card.get("num_rows")
    described = card or folder.name in catalogue_names()
    spec = folder_spec(folder, {} if described else read_folder(folder))
    return replace(spec_card(spec, "data"), name=folder.name, sizes=sizes if isinstance(sizes, dict) else {})


def builtin_card(recipe: "Recipe") -> TaskCard:
    """The card of a built-in task, told without making its examples."""
    return TaskCard(
        name=recipe.name,
        source="builtin",
        family=recipe.family,
        output_type="multiple_choice" if recipe.choice else "generate_until",
        metrics=recipe.metrics,
        licence=", ".join(dict.fromkeys(source.licence for source in recipe.sources)),
    )


def spec_card(spec: TaskSpec, source: str) -> TaskCard:
    """The card of a spec."""
    return TaskCard(
        name=spec.task,
        source=source,
        family=spec.metadata.family,
        output_type=spec.output_type,
        metrics=spec.metrics,
        labels=len(spec.metadata.label_names or spec.fixed_choices),
        licence=spec.metadata.licence,
    )
