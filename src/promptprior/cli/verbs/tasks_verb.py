"""promptprior tasks: list what there is, show one task, check a spec or a data folder."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from promptprior.cli.verb import Verb
from promptprior.config.training import setting
from promptprior.errors import DataError, PromptpriorError, SpecError

if TYPE_CHECKING:
    from promptprior.tasks import Task


@dataclass(frozen=True)
class TasksPlan:
    """Everything `promptprior tasks` is told."""

    action: Literal["list", "show", "check"] = setting("list", "list, show NAME, or check SPEC_OR_FOLDER")
    name: str = setting("", "the task to show, or the spec, data file or folder to check")
    data: Path | None = setting(None, "folder of task folders that names are looked up in")
    family: str = setting("", "list only this family")

    def __post_init__(self) -> None:
        if self.action != "list" and not self.name:
            raise SpecError(f"tasks {self.action} needs one more word: {self.action} NAME")


def run(plan: TasksPlan, dry_run: bool) -> None:  # noqa: ARG001 - reading costs nothing
    """List, show or check."""
    {"list": list_tasks, "show": show, "check": check}[plan.action](plan)


def list_tasks(plan: TasksPlan) -> None:
    """A line for every task that is known by name."""
    from promptprior.cli.score_lines import table
    from promptprior.tasks import available

    cards = [card for card in available(plan.data) if plan.family in ("", card.family)]
    if not cards:
        raise SpecError(f"no task of family {plan.family!r} (--family)")
    rows = [
        [
            c.name,
            c.source,
            c.family,
            "free text" if c.output_type == "generate_until" else "choice",
            ",".join(c.metrics),
        ]
        for c in cards
    ]
    print(table(["task", "from", "family", "answer", "metrics"], rows))


def show(plan: TasksPlan) -> None:
    """A task's sizes and its first training examples, as the model reads them."""
    from promptprior.tasks import load_task

    print("\n".join(task_lines(load_task(plan.name, plan.data))))


def task_lines(task: "Task") -> Iterator[str]:
    """What there is to know about a task."""
    yield f"{task.name}  family {task.family}  version {task.version}  fingerprint {task.fingerprint}"
    yield f"metrics   {', '.join(task.metrics)}"
    yield f"answers   {', '.join(task.label_names) or ('choices of each example' if task.is_choice else 'free text')}"
    yield f"examples  {', '.join(f'{name} {len(split)}' for name, split in task.examples.items())}"
    yield f"from      {task.origin}"
    yield f"licence   {task.licence or 'not stated'}"
    for example in task.split("train")[:2]:
        yield f"\n{example.text}[{task.target_delimiter}{example.target}]"


def check(plan: TasksPlan) -> None:
    """Check one task, or every task folder in a folder. Raises DataError when there is an error."""
    found = {name: problems(name, plan.data) for name in things_to_check(plan)}
    for name, (ok, lines) in found.items():
        print(f"{'ok     ' if ok else 'error  '}{name}", *(f"\n       {line}" for line in lines), sep="")
    bad = [name for name, (ok, _) in found.items() if not ok]
    if bad:
        raise DataError(f"{len(bad)} of {len(found)} cannot be used: {', '.join(bad[:10])}")


def things_to_check(plan: TasksPlan) -> list[str]:
    """The name itself, or the task folders inside it."""
    from promptprior.tasks.loading.load import folders, split_files

    path = Path(plan.name)
    if path.is_dir() and not split_files(path) and not list(path.glob("*.y*ml")) and folders(path):
        return [str(path / name) for name in folders(path)]
    return [plan.name]


def problems(name: str, data: Path | None) -> tuple[bool, list[str]]:
    """Whether a task loads, and what is wrong or worth knowing."""
    from promptprior.tasks import check_task, load_task

    try:
        path = Path(name)
        task = load_task(path if path.exists() else name, data)
    except PromptpriorError as error:
        return False, [str(error)]
    sizes = ", ".join(f"{split} {len(examples)}" for split, examples in task.examples.items())
    return True, [sizes, *(f"warning: {problem.message}" for problem in check_task(task))]


VERB = Verb("tasks", TasksPlan, run, "promptprior tasks list --data DIR", positional=("action", "name"))
