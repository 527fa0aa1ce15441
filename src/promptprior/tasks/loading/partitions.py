"""Named settings of source and target tasks, as a data folder's partitions.json lists them."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from promptprior.errors import DataError, unknown_name
from promptprior.tasks.loading.readers import read_text

PARTITIONS_FILE = "partitions.json"


@dataclass(frozen=True)
class Partition:
    """Tasks to learn a prior from, to select on and to transfer to, all of them present in the data folder.

    `absent` names the tasks the file lists and the folder lacks. `shared_text` names the tasks that stand
    on both sides or share text across them: results on such targets prove no transfer.
    """

    name: str
    kind: str
    sources: tuple[str, ...]
    dev: tuple[str, ...]
    targets: tuple[str, ...]
    absent: tuple[str, ...] = ()
    shared_text: tuple[str, ...] = ()
    note: str = ""


def read_partitions(data: Path, file: Path | None = None) -> dict[str, Partition]:
    """Every partition of a data folder by name, as its partitions.json or another file lists them.

    Raises DataError when the file is missing or no JSON.
    """
    path = file or data / PARTITIONS_FILE
    if not path.is_file():
        raise DataError(f"{path}: no such file; a data folder without it has no named partitions")
    try:
        raw = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} line {error.lineno}: bad JSON ({error.msg})") from None
    if not isinstance(raw, dict):
        raise DataError(f"{path}: expected an object of partitions, got {type(raw).__name__}")
    present = {folder.name for folder in data.iterdir() if folder.is_dir()}
    return {name: partition_of(name, e, present) for name, e in raw.items() if isinstance(e, dict) and "train" in e}


def read_partition(data: Path, name: str, file: Path | None = None) -> Partition:
    """One partition. Raises DataError with near names."""
    partitions = read_partitions(data, file)
    if name not in partitions:
        raise DataError(f"{file or data / PARTITIONS_FILE}: {unknown_name('partition', name, partitions)}")
    return partitions[name]


def partition_of(name: str, entry: Mapping[str, object], present: Iterable[str]) -> Partition:
    """One entry of the file, restricted to the tasks that are present; `usable_train` wins over `train`."""
    sources = names_of(entry.get("usable_train", entry["train"]))
    dev, targets = names_of(entry.get("dev")), names_of(entry.get("test", entry.get("test_groups")))
    here = set(present)
    shared = (*names_of(entry.get("same_text_on_both_sides")), *names_of(entry.get("task_on_both_sides")))
    return Partition(
        name=name,
        kind=str(entry.get("kind", "")),
        sources=tuple(task for task in sources if task in here),
        dev=tuple(task for task in dev if task in here),
        targets=tuple(task for task in targets if task in here),
        absent=tuple(sorted({*sources, *dev, *targets} - here)),
        shared_text=tuple(sorted(set(shared) & here)),
        note=str(entry.get("note", entry.get("description", ""))),
    )


def names_of(value: object) -> tuple[str, ...]:
    """Task names of a list, or of every list inside an object, each once and in order."""
    if isinstance(value, Mapping):
        return tuple(dict.fromkeys(name for part in value.values() for name in names_of(part)))
    return tuple(map(str, value)) if isinstance(value, list) else ()
