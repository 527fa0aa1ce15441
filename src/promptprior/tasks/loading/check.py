"""What can be wrong with a task, found before anything is trained on it."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Literal

from promptprior.errors import DataError
from promptprior.tasks.task import SPLITS, Example, Split, Task, normalised

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
    splits = {name: task.examples.get(name, ()) for name in SPLITS}
    ids = {name: {e.id for e in examples} for name, examples in splits.items()}
    texts = {name: {normalised(e.text) for e in examples} for name, examples in splits.items()}
    errors = [f"split {name!r} is empty" for name in SPLITS if not splits[name]]
    for earlier, later in combinations(SPLITS, 2):  # an id in both: an example is learned from and tested on
        if both := sorted(ids[earlier] & ids[later]):
            listed = ", ".join(both[:5]) + (", …" if len(both) > 5 else "")
            errors.append(f"{len(both)} id(s) stand in both {earlier} and {later}: {listed}")
    for earlier, later in combinations(SPLITS, 2):  # loading drops such texts: a task was built by hand
        if shared := len(texts[earlier] & texts[later]):
            errors.append(f"{shared} text(s) stand in both {earlier} and {later}")
    warnings = []
    for name, examples in splits.items():
        if repeats := len({(e.id, e.text, e.target) for e in examples}) - len(ids[name]):
            warnings.append(f"{repeats} example(s) of {name} share an id with a different example")
    choices = {e.choices for examples in splits.values() for e in examples}
    if task.is_choice and len(choices) == 1:  # classes that are asked for but never shown
        shown = {e.label for e in splits["train"]}
        absent = [choice for label, choice in enumerate(choices.pop()) if label not in shown]
        if absent:
            warnings.append(f"no training example of class {', '.join(map(repr, absent[:10]))}")
    warnings += conflicts(task)
    return (*(Problem("error", message) for message in errors), *(Problem("warning", w) for w in warnings))


def conflicts(task: Task) -> list[str]:
    """A line for every split of a choice task in which one text has two different answers."""
    lines = []
    for name in SPLITS if task.is_choice else ():
        alike: dict[tuple[str, tuple[str, ...]], list[Example]] = defaultdict(list)
        for example in task.examples.get(name, ()):
            alike[normalised(example.text), example.choices].append(example)
        if unclear := [examples for examples in alike.values() if len({e.target for e in examples}) > 1]:
            text, answers = unclear[0][0].text[:40], ", ".join(sorted({repr(e.target) for e in unclear[0]}))
            lines.append(f"{len(unclear)} text(s) of {name} have two different answers: {text!r} has {answers}")
    return lines


def check_raise(task: Task) -> Task:
    """The task itself. Raises DataError with all of its errors; warnings pass."""
    errors = [problem.message for problem in check_task(task) if problem.level == "error"]
    if errors:
        raise DataError(f"task {task.name!r} ({task.origin}): " + "; ".join(errors))
    return task


def shared_text(tasks: Sequence[Task], shortest: int = SHARED_TEXT_LENGTH) -> tuple[Shared, ...]:
    """Every ordered pair of tasks where test texts of the second stand in training of the first.

    Texts are compared as rendered, case-folded words only, and count from `shortest` characters on.
    """
    sides: tuple[Split, Split] = ("train", "test")
    train, test = (
        {t.name: {text for e in t.examples.get(s, ()) if len(text := normalised(e.text)) >= shortest} for t in tasks}
        for s in sides
    )
    pairs = [Shared(a, b, len(train[a] & test[b])) for a, b in permutations(train, 2)]
    return tuple(sorted((p for p in pairs if p.texts), key=lambda p: -p.texts))
