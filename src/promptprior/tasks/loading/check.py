"""What can be wrong with a task, found before anything is trained on it."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Literal

from promptprior.errors import DataError
from promptprior.tasks.task import SPLITS, Task, normalised

SHARED_TEXT_LENGTH = 40  # shorter texts coincide by chance: "yes", "great movie"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong. An error stops the task from loading; a warning is worth knowing."""

    level: Literal["error", "warning"]
    message: str


@dataclass(frozen=True)
class Shared:
    """How many test texts of `target` also stand in the training split of `source`."""

    source: str
    target: str
    texts: int


def check_task(task: Task) -> tuple[Problem, ...]:
    """Everything wrong with a task's examples; errors first."""
    found = [*empty_splits(task), *repeated_ids(task), *shared_texts(task), *missing_classes(task)]
    return tuple(sorted(found, key=lambda problem: problem.level))


def check_raise(task: Task) -> Task:
    """The task itself. Raises DataError with all of its errors; warnings pass."""
    errors = [problem.message for problem in check_task(task) if problem.level == "error"]
    if errors:
        raise DataError(f"task {task.name!r} ({task.origin}): " + "; ".join(errors))
    return task


def empty_splits(task: Task) -> Iterable[Problem]:
    """A task is trained, selected and tested on: all three splits must hold something."""
    for name in SPLITS:
        if not task.examples.get(name):
            yield Problem("error", f"split {name!r} is empty")


def repeated_ids(task: Task) -> Iterable[Problem]:
    """The same id in two splits says that one example is learned from and tested on."""
    ids = {name: {e.id for e in task.examples.get(name, ())} for name in SPLITS}
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        both = sorted(ids[one] & ids[other])  # type: ignore[index]
        if both:
            listed = ", ".join(both[:5]) + (", …" if len(both) > 5 else "")
            yield Problem("error", f"{len(both)} id(s) stand in both {one} and {other}: {listed}")
    for name in SPLITS:
        examples = task.examples.get(name, ())
        repeats = len({(e.id, e.text, e.target) for e in examples}) - len(ids[name])
        if repeats:
            yield Problem("warning", f"{repeats} example(s) of {name} share an id with a different example")


def shared_texts(task: Task) -> Iterable[Problem]:
    """Texts that stand in two splits; loading drops them, so this speaks of tasks built by hand."""
    texts = {name: {normalised(e.text) for e in task.examples.get(name, ())} for name in SPLITS}
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        both = len(texts[one] & texts[other])  # type: ignore[index]
        if both:
            yield Problem("error", f"{both} text(s) stand in both {one} and {other}")


def missing_classes(task: Task) -> Iterable[Problem]:
    """Classes that are asked for but never shown."""
    if not task.is_choice or len({e.choices for s in SPLITS for e in task.examples.get(s, ())}) != 1:
        return
    shown = Counter(e.label for e in task.examples.get("train", ()))
    choices = next(e.choices for s in SPLITS for e in task.examples.get(s, ()))
    absent = [choice for label, choice in enumerate(choices) if not shown[label]]
    if absent:
        named = ", ".join(map(repr, absent[:10]))
        yield Problem("warning", f"no training example of class {named}")


def shared_text(tasks: Sequence[Task], shortest: int = SHARED_TEXT_LENGTH) -> tuple[Shared, ...]:
    """Every ordered pair of tasks where test texts of the second stand in training of the first.

    Texts are compared as rendered, case-folded words only, and count from `shortest` characters on.
    """
    train = {t.name: long_texts(t, "train", shortest) for t in tasks}
    test = {t.name: long_texts(t, "test", shortest) for t in tasks}
    pairs = [Shared(a, b, len(train[a] & test[b])) for a, b in permutations(train, 2)]
    return tuple(sorted((p for p in pairs if p.texts), key=lambda p: -p.texts))


def long_texts(task: Task, split: Literal["train", "test"], shortest: int) -> set[str]:
    """The normalised texts of one split that are long enough to be told apart."""
    return {text for e in task.examples.get(split, ()) if len(text := normalised(e.text)) >= shortest}
