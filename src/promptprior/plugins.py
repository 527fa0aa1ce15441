"""What other packages add to promptprior: objects that they declare as entry points, read when a name is asked for.

A package says in its pyproject.toml::

    [project.entry-points."promptprior.metrics"]
    kappa = "my_package.metrics:KAPPA"

The groups are ``promptprior.tasks``, ``.metrics``, ``.methods``, ``.parameterisations``, ``.rules``, ``.verbs`` and
``.report_tables``; the place that looks a name up says what an object of its group must be.
"""

import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from promptprior.errors import SpecError


@dataclass(frozen=True)
class Plugins(Mapping[str, object]):
    """The objects of one group by name. Listing imports nothing; asking for one imports its package alone."""

    group: str
    declared: Mapping[str, EntryPoint]

    def __getitem__(self, name: str) -> object:
        """The object of a name. Raises KeyError for an unknown name, SpecError where its package fails."""
        point = self.declared[name]
        try:
            return point.load()
        except Exception as error:  # importing a package runs its code: anything can go wrong
            raise SpecError(
                f"entry point {self.describe(name)} cannot be loaded: {error}; upgrade or uninstall that package"
            ) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self.declared)

    def __len__(self) -> int:
        return len(self.declared)

    def describe(self, name: str) -> str:
        """Name, value, group and package of an entry point, for messages."""
        point = self.declared[name]
        return f"{name!r} ({point.value}, group {self.group}, package {_package(point)})"


def load_plugins(group: str, own_names: Collection[str] = ()) -> Plugins:
    """The entry points of one group, such as "promptprior.metrics", as a mapping from name to object.

    Raises SpecError, naming the packages, where two packages declare one name or a package declares one of `own_names`,
    those that promptprior itself defines: a name must mean the same with and without the other package.
    """
    declared: dict[str, EntryPoint] = {}
    for point in _entry_points(group, tuple(sys.path)):
        if point.name in own_names or point.name in declared:
            other = _package(declared[point.name]) if point.name in declared else "promptprior itself"
            raise SpecError(
                f"entry point {point.name!r} ({point.value}, group {group}) of package {_package(point)} has a name "
                f"that {other} defines too; rename it there or uninstall the package"
            )
        declared[point.name] = point
    return Plugins(group, declared)


@cache
def _entry_points(group: str, _path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    # Reading all installed packages takes milliseconds, so once per path. A package that is there twice (installed and
    # in the working directory) declares the same point twice.
    return tuple(dict.fromkeys(sorted(entry_points(group=group), key=lambda point: (point.name, point.value))))


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "unknown"
