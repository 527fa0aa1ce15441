"""The prompts of a folder, looked at again and again: a prompt is added, replaced or removed while others are asked.

What is served is one immutable value that takes the place of the last one, so a request sees a prompt as it was or as
it is, never half of each. A folder that cannot be read is reported, and the prompt that it was before stays.
"""

import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from promptprior.artifacts.artifact import Prompt
from promptprior.artifacts.header import HEADER_FILE
from promptprior.artifacts.peft_format import CONFIG_FILE
from promptprior.backbone import BackboneCard
from promptprior.errors import ArtifactError, DataError, PromptpriorError
from promptprior.evaluate import PromptRequest
from promptprior.parameterisations.registry import form_class
from promptprior.tasks.loading.new_rows import NEVER_READ, unlabelled_task
from promptprior.tasks.loading.readers import rows_of
from promptprior.tasks.loading.spec import TaskSpec
from promptprior.tasks.loading.template import as_text
from promptprior.tasks.task import Example, Task

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
RETRY = 30.0  # seconds until a folder that could not be read is read again: the cause may lie outside of it
FREE_TEXT = Task("free text", "generate_until", ("exact_match",), {})  # of a prompt that names no task

Stamp = tuple[tuple[str, int, int, int], ...]
"""Name, time of change in nanoseconds, size and inode of every file of a folder: when it differs, it is read again."""


@dataclass(frozen=True, eq=False)
class ServedPrompt:
    """A prompt by its name, and what renders rows of its task (None: texts are read as they are)."""

    name: str
    prompt: Prompt
    reader: Task | TaskSpec | None
    stamp: Stamp

    @property
    def is_choice(self) -> bool:
        """Whether it answers with a label; else with free text."""
        return self.reader is not None and self.reader.output_type == "multiple_choice"

    @property
    def writes_stepwise(self) -> bool:
        """Whether its text can be handed out token by token: not where it changes the model's weights."""
        return not self.is_choice and not hasattr(form_class(self.prompt.header.parameterisation), "answers")

    @property
    def longest_answer(self) -> int:
        """Tokens that are generated unless a request says another number."""
        reader = FREE_TEXT if self.reader is None else self.reader
        return reader.max_gen_toks

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The keys that a row needs."""
        if not isinstance(self.reader, TaskSpec):
            return ("text",)
        read = self.reader.templates
        used = (read.text, read.choices, read.filter)
        return tuple(sorted({column for template in used if template is not None for column in template.columns}))

    @property
    def choices(self) -> tuple[str, ...]:
        """The labels that all texts share; () for free text, and where each row has its own."""
        if self.prompt.header.choices or not self.is_choice:
            return self.prompt.header.choices
        return self.reader.fixed_choices if isinstance(self.reader, TaskSpec) else self.ask(["?"]).examples[0].choices

    def ask(self, texts: Sequence[str | Mapping[str, object]]) -> PromptRequest:
        """What the prompt is asked about texts, or about rows with the columns of its task, rendered as in training.

        Raises DataError for a row without its columns, one that the task leaves out, and a text of nothing.
        """
        rows: list[Mapping[str, object]] = []
        for number, text in enumerate(texts, 1):
            if isinstance(text, str):
                if len(self.columns) != 1:
                    keys = ", ".join(map(repr, self.columns))
                    raise DataError(f"texts row {number}: prompt {self.name!r} reads {keys}: send an object of these")
                text = {self.columns[0]: text}
            rows.append(text)
        named = rows_of(rows, "texts")
        if self.reader is None:
            if missing := [named.place(i) for i, row in enumerate(rows) if "text" not in row]:
                raise DataError(f"{missing[0]}: prompt {self.name!r} reads 'text'")
            plain = [as_text(row["text"], named.place(i), "text") for i, row in enumerate(rows)]
            if empty := [named.place(i) for i, text in enumerate(plain) if not text.strip()]:
                raise DataError(f"{empty[0]}: the text is empty; send some words")
            task, asked = FREE_TEXT, tuple(Example(str(i), text, NEVER_READ) for i, text in enumerate(plain))
        else:
            task, indices = unlabelled_task(self.reader, named, refuse_empty=True)
            if left_out := sorted({*range(len(rows))} - {*indices}):
                raise DataError(f"{named.place(left_out[0])}: the task of {self.name!r} leaves it out (doc_filter)")
            asked = task.examples["test"]
        return PromptRequest(self.prompt, task, asked)


@dataclass(frozen=True)
class Broken:
    """A folder that is not served as it stands, and why; `read_at` is when it was last tried (time.monotonic)."""

    reason: str
    stamp: Stamp
    read_at: float


@dataclass(frozen=True)
class Contents:
    """What is served, and what could not be read, by name. `missing` had a folder until the last look."""

    prompts: Mapping[str, ServedPrompt] = field(default_factory=dict)
    broken: Mapping[str, Broken] = field(default_factory=dict)
    missing: frozenset[str] = frozenset()


def prompt_folders(folder: Path) -> list[Path]:
    """A folder where it is a prompt's own, else the prompts' folders in it, by name."""
    whole, inside = folder.resolve(), sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    found = [p for p in (whole, *inside) if (p / HEADER_FILE).is_file() or (p / CONFIG_FILE).is_file()]
    return found[:1] if whole in found else found


@dataclass
class PromptFolder:
    """A folder of prompt folders, or one prompt folder; `contents` is replaced as a whole by `look`.

    `check` raises where the backbone cannot read a prompt. `say` is told of every change.
    """

    folder: Path
    card: BackboneCard
    check: Callable[[Prompt], None]
    say: Callable[..., None]
    data: Path | None = None
    contents: Contents = field(default_factory=Contents)
    looking: threading.Lock = field(default_factory=threading.Lock)

    def look(self) -> None:
        """Read what is new or has changed. Raises DataError where the folder itself has gone."""
        with self.looking:
            self._look()

    def _look(self) -> None:
        if not self.folder.is_dir():
            raise DataError(f"{self.folder}: no such folder; a server reads prompts from a folder of prompt folders")
        last, paths = self.contents, prompt_folders(self.folder)
        prompts: dict[str, ServedPrompt] = {}
        broken: dict[str, Broken] = {}
        for path in paths:
            name, known = path.name, last.prompts.get(path.name)
            if known is not None:
                prompts[name] = known
            try:
                stats = [(file.name, file.stat()) for file in sorted(path.iterdir()) if file.is_file()]
            except OSError:  # it has just gone, or is being replaced: the next look sees how it ends
                continue
            stamp = tuple((file, s.st_mtime_ns, s.st_size, s.st_ino) for file, s in stats)
            failed = last.broken.get(name)
            if failed is not None and failed.stamp == stamp and time.monotonic() - failed.read_at < RETRY:
                broken[name] = failed
                continue
            if known is not None and known.stamp == stamp:
                continue
            try:
                prompts[name] = self.read(path, stamp)
                self.say("prompt", prompt=name, change="added" if known is None else "replaced")
            except (PromptpriorError, OSError) as error:
                broken[name] = Broken(str(error), stamp, time.monotonic())
                if failed is None or (failed.stamp, failed.reason) != (stamp, str(error)):
                    kept = "the one before is served" if known is not None else "it is not served"
                    self.say("broken prompt", level="warning", prompt=name[:100], reason=str(error), kept=kept)
        # A folder that is replaced in two renames is away for a moment: one look without it is not its end
        gone = last.prompts.keys() - prompts.keys()
        prompts |= {name: last.prompts[name] for name in gone - last.missing}
        for name in gone & last.missing:
            self.say("prompt", prompt=name, change="removed")
        self.contents = Contents(prompts, broken, frozenset(gone - last.missing))

    def read(self, path: Path, stamp: Stamp) -> ServedPrompt:
        """The prompt in a folder. Raises a PromptpriorError where it is damaged, another backbone's, or of a task that
        cannot be found."""
        if not re.match(NAME, path.name):
            raise ArtifactError(
                f"{path.name!r}: expected a name of at most 100 letters, digits, dots, dashes and underscores that "
                "begins with a letter or digit: rename the folder"
            )
        prompt = Prompt.from_pretrained(path, self.card)
        self.check(prompt)
        found, reader = prompt.header.find_target(path, self.data), None
        if found is not None:
            name, card = found
            reader = card.rows_read_as(name, path, self.data)
        return ServedPrompt(path.name, prompt, reader, stamp)
