"""What several verbs build from their settings before they call the library."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from promptprior.artifacts.artifact import artifact_folder, is_foreign, ready_names
from promptprior.artifacts.header import Header, Kind, TaskCard, read_header
from promptprior.backbone import Backbone
from promptprior.backbone.engine import Meter
from promptprior.compare.progress import ProgressDisplay, duration, say_to_stderr
from promptprior.cost_estimate import tokens_per_second
from promptprior.errors import ArtifactError, SpecError
from promptprior.tasks import Task
from promptprior.tasks.loading.check import conflicts
from promptprior.tasks.loading.new_rows import reading_spec
from promptprior.tasks.loading.spec import TaskSpec
from promptprior.tasks.sampling.batch import Batch


def cost_line(backbone: Backbone, task: Task, length: int, tokens: float) -> str:
    """Tokens, and the time they take here, measured on two small steps."""
    pace = tokens_per_second(backbone, task, length)
    return f"about {tokens:,.0f} tokens, {duration(tokens / pace)} at {pace:,.0f} tokens a second"


def holds_own(folder: Path, kind: Kind) -> bool:
    """Whether a folder holds a prior that `fit` wrote, or a prompt that `adapt` wrote and not `import`."""
    try:
        header = read_header(folder)[0]
    except ArtifactError:
        return False
    return header.kind == kind and header.origin == "promptprior"


def header_at(given: Mapping[str, object], key: str) -> Header | None:
    """The header of the artifact that a setting names; none for PEFT's folders, which have no header."""
    if given.get(key) is None:
        return None
    folder = artifact_folder(Path(str(given[key])))
    if not folder.is_dir():
        ready = ", ".join(ready_names("priors" if key == "prior" else "prompts"))
        raise ArtifactError(f"{folder} (--{key}): no such folder; with the library come {ready}")
    return None if is_foreign(folder) else read_header(folder)[0]


def warn_of_conflicts(tasks: Iterable[Task]) -> None:
    """Say, on stderr, of each task where one text has two different answers."""
    for task in tasks:
        for line in conflicts(task):
            say_to_stderr(f"warning: task {task.name}: {line}")


def target_of_prompt(prompt: Path, data: Path | None) -> tuple[str, TaskCard]:
    """What loads the task that a prompt was adapted to, and what the prompt remembers of it.

    Raises SpecError where the prompt names no task, and as `Header.find_target` does.
    """
    header = header_at({"prompt": prompt}, "prompt")
    found = header.find_target(prompt, data) if header is not None else None
    if found is None:
        raise SpecError(f"target (--target) is missing: {prompt} does not say which task it is for; name the task")
    return found


def task_to_read_as(prompt: Path, target: str, data: Path | None) -> tuple[str, Task | TaskSpec]:
    """What says how new rows are read: the task that is named, else the prompt's own; and what loads it, nothing where
    the prompt alone keeps it. Raises as `target_of_prompt` and `reading_spec` do."""
    if target:
        return target, reading_spec(target, data)
    name, card = target_of_prompt(prompt, data)
    return "" if card.is_of_memory else name, card.rows_read_as(name, prompt, data)


@dataclass
class ProgressMeter(Meter):
    """A backbone's meter that shows how many of `total` texts it has read."""

    label: str = ""
    total: int = 1
    texts: int = 0
    display: ProgressDisplay = field(default_factory=lambda: ProgressDisplay(say_to_stderr))

    def count(self, batch: Batch, length: int) -> None:
        """Add one chunk, and show how far the work is."""
        super().count(batch, length)
        self.texts += batch.texts
        share = min(1.0, self.texts / max(self.total, 1))
        left = duration((time.monotonic() - self.display.start) * (1 - share) / share)
        self.display.show(f"{100 * share:3.0f}% {self.label} · {left} left", (self.label, share))
