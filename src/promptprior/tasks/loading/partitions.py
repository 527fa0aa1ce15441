"""Named settings of source and target tasks, as a data folder's partitions.json lists them.

Tasks that stand on both sides of a partition, or that share text across it, are refused by default: CrossFit's
non-NLI -> NLI trains on `sick` and tests on it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from promptprior.config.choices import Shared
from promptprior.errors import DataError, SpecError, unknown_name
from promptprior.untrusted import parse_json, path_kind, read_utf8

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

    In an entry `usable_train` wins over `train`, and `test` over `test_groups`. Raises DataError when the file is
    missing or no JSON.
    """
    path = file or data / PARTITIONS_FILE
    if path_kind(path) is None:
        raise DataError(f"{path}: no such file; a data folder without it has no named partitions")
    raw = parse_json(read_utf8(path), str(path))
    if not isinstance(raw, dict):
        raise DataError(f"{path}: expected an object of partitions, got {type(raw).__name__}")
    present = {folder.name for folder in data.iterdir() if folder.is_dir()}
    partitions = {}
    for name, entry in raw.items():
        if not isinstance(entry, dict) or "train" not in entry:
            continue
        sources, dev = _task_names(entry.get("usable_train", entry["train"])), _task_names(entry.get("dev"))
        targets = _task_names(entry.get("test", entry.get("test_groups")))
        shared = {*_task_names(entry.get("same_text_on_both_sides")), *_task_names(entry.get("task_on_both_sides"))}
        partitions[name] = Partition(
            name=name,
            kind=str(entry.get("kind", "")),
            sources=tuple(task for task in sources if task in present),
            dev=tuple(task for task in dev if task in present),
            targets=tuple(task for task in targets if task in present),
            absent=tuple(sorted({*sources, *dev, *targets} - present)),
            shared_text=tuple(sorted(shared & present)),
            note=str(entry.get("note", entry.get("description", ""))),
        )
    return partitions


def read_partition(data: Path, name: str, file: Path | None = None) -> Partition:
    """One partition. Raises DataError with near names."""
    partitions = read_partitions(data, file)
    if name not in partitions:
        raise DataError(f"{file or data / PARTITIONS_FILE}: {unknown_name('partition', name, partitions)}")
    return partitions[name]


def from_partition(
    settings: Mapping[str, object], wanted: Sequence[Literal["sources", "targets"]]
) -> dict[str, object]:
    """Settings with the sources and targets of the partition they name, but for those that are set themselves.

    A partition is restricted to the tasks that are in the data folder. `shared` says what to do with sources that are
    targets too or share text with them: "refuse" (the default) is an error, "drop" leaves them out, "keep" leaves them
    in. Single examples that a source shares with a target are dropped later, whatever is chosen (plan.separated).
    Raises SpecError without a data folder and where no source or target is left, DataError for an unknown partition.
    """
    name, data = settings.get("partition"), settings.get("data")
    missing = [side for side in wanted if not settings.get(side)]
    if not name or not missing:
        return dict(settings)
    if not data:
        raise SpecError(f"partition {name} (--partition) needs the folder of its tasks: --data FOLDER")
    shared, file = str(settings.get("shared", "refuse")), settings.get("partitions")
    if shared not in get_args(Shared):
        raise SpecError(unknown_name("choice", shared, get_args(Shared)) + " (--shared)")
    partition = read_partition(Path(str(data)), str(name), Path(str(file)) if file else None)
    where = f"partition {str(name)!r} of {data}"
    if not partition.targets:
        raise SpecError(
            f"{where}: none of its targets is there ({_first_names(partition.absent)} are absent); choose another "
            "partition or add the tasks"
        )
    leaking = sorted({*partition.shared_text, *(set(partition.sources) & set(partition.targets))})
    if leaking and shared == "refuse":
        raise SpecError(
            f"{where}: {_first_names(leaking)} stand on both sides or share text across them, so a gain there proves "
            "no transfer; drop them from the sources (--shared drop) or choose another partition"
        )
    sources = tuple(task for task in partition.sources if shared == "keep" or task not in leaking)
    if not sources:
        raise SpecError(f"{where}: no source is left; choose another partition")
    sides = {"sources": sources, "targets": partition.targets}
    return {**settings, **{side: sides[side] for side in missing}}


def _task_names(value: object) -> tuple[str, ...]:
    # the names of a list, or of every list inside an object, each once and in order
    if isinstance(value, Mapping):
        return tuple(dict.fromkeys(name for part in value.values() for name in _task_names(part)))
    return tuple(map(str, value)) if isinstance(value, list) else ()


def _first_names(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
