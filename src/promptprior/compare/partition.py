"""The two sides of a named partition, refused where what stands on one leaks into the other."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from promptprior.errors import SpecError
from promptprior.tasks.partitions import Partition, read_partition

Shared = Literal["refuse", "drop", "keep"]


@dataclass(frozen=True)
class Sides:
    """Source and target names of a partition; `dropped` are sources left out because they share text with others."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    dropped: tuple[str, ...] = ()


def sides(data: Path, name: str, shared: Shared = "refuse") -> Sides:
    """Sources and targets of a partition of a data folder, restricted to the tasks that are there.

    Tasks that stand on both sides, or that share text across them, are an error by default (CrossFit's non-NLI -> NLI
    trains on `sick` and tests on it); "drop" leaves them out of the sources, "keep" leaves them in. Single examples
    that a source shares with a target are dropped later, whatever is chosen (plan.separated). Raises SpecError when no
    target is there, DataError for an unknown partition.
    """
    partition = read_partition(data, name)
    if not partition.targets:
        raise SpecError(
            f"partition {name!r} of {data}: none of its targets is there ({listed(partition.absent)} are absent); "
            "choose another partition or add the tasks"
        )
    leaking = leaks(partition)
    if leaking and shared == "refuse":
        raise SpecError(
            f"partition {name!r} of {data}: {listed(leaking)} stand on both sides or share text across them, so a "
            "gain there proves no transfer; drop them from the sources (shared drop) or choose another partition"
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
