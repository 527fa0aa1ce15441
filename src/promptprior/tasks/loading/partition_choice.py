"""The two sides of a named partition, refused where what stands on one leaks into the other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from promptprior.config.choices import Shared
from promptprior.errors import SpecError, unknown_name
from promptprior.tasks.loading.partitions import Partition, read_partition


@dataclass(frozen=True)
class Sides:
    """Source and target names of a partition; `dropped` are sources left out because they share text with others."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    dropped: tuple[str, ...] = ()


def sides(data: Path, name: str, shared: Shared = "refuse", file: Path | None = None) -> Sides:
    """Sources and targets of a partition of a data folder, restricted to the tasks that are there.

    `file` lists the partitions, by default the folder's partitions.json.

    Tasks that stand on both sides, or that share text across them, are an error by default (CrossFit's non-NLI -> NLI
    trains on `sick` and tests on it); "drop" leaves them out of the sources, "keep" leaves them in. Single examples
    that a source shares with a target are dropped later, whatever is chosen (plan.separated). Raises SpecError when no
    target is there, DataError for an unknown partition.
    """
    partition = read_partition(data, name, file)
    if not partition.targets:
        raise SpecError(
            f"partition {name!r} of {data}: none of its targets is there ({listed(partition.absent)} are absent); "
            "choose another partition or add the tasks"
        )
    leaking = leaks(partition)
    if leaking and shared == "refuse":
        raise SpecError(
            f"partition {name!r} of {data}: {listed(leaking)} stand on both sides or share text across them, so a "
            "gain there proves no transfer; drop them from the sources (--shared drop) or choose another partition"
        )
    dropped = tuple(task for task in partition.sources if task in leaking) if shared == "drop" else ()
    sources = tuple(task for task in partition.sources if task not in dropped)
    if not sources:
        raise SpecError(f"partition {name!r} of {data}: no source is left; choose another partition")
    return Sides(sources, partition.targets, dropped)


def leaks(partition: Partition) -> tuple[str, ...]:
    """The tasks that make a partition leak, sorted."""
    return tuple(sorted({*partition.shared_text, *(set(partition.sources) & set(partition.targets))}))


def listed(names: tuple[str, ...]) -> str:
    """The first few names."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def from_partition(given: Mapping[str, object], wanted: Sequence[Literal["sources", "targets"]]) -> dict[str, object]:
    """Settings with the sources and targets of the partition they name, but for those that are given themselves.

    Raises SpecError where a partition is named without a data folder, and all that `sides` raises.
    """
    name = given.get("partition")
    missing = [side for side in wanted if not given.get(side)]
    if not name or not missing:
        return dict(given)
    if not given.get("data"):
        raise SpecError(f"partition {name} (--partition) needs the folder of its tasks: --data FOLDER")
    shared, file = str(given.get("shared", "refuse")), given.get("partitions")
    if shared not in get_args(Shared):
        raise SpecError(unknown_name("choice", shared, get_args(Shared)) + " (--shared)")
    found = sides(Path(str(given["data"])), str(name), cast(Shared, shared), Path(str(file)) if file else None)
    return {**given, **{side: getattr(found, side) for side in missing}}
