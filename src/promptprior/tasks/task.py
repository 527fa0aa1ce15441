"""What is learned: a task as a frozen value, already rendered to text."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from promptprior.errors import DataError, unknown_name

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
OutputType = Literal["multiple_choice", "generate_until"]


@dataclass(frozen=True)
class Example:
    """One labelled example, rendered: the text a model reads and the answer it should give.

    `choices` are the candidate answers of this example in label order (empty for free text), `label` the
    index of the right one. `references` are all accepted answers of a free-text example (the first is
    `target`). `group` joins examples that are scored together (the answers of one MultiRC question).
    """

    id: str
    text: str
    target: str
    choices: tuple[str, ...] = ()
    label: int | None = None
    references: tuple[str, ...] = ()
    group: str = ""


@dataclass(frozen=True)
class Task:
    """A task with its examples. `metrics[0]` is the score that selection and tables use.

    `target_delimiter` stands between text and answer for causal models (lm-eval's word). `version` changes
    whenever the rendered text would. `origin` and `licence` say where the examples come from, `path` which file or
    folder they were loaded from, absolute, where it was one; `spec` the keys of the spec that rows in memory were read
    by.
    """

    name: str
    output_type: OutputType
    metrics: tuple[str, ...]
    examples: Mapping[Split, tuple[Example, ...]] = field(repr=False)
    family: str = "other"
    version: str = "1"
    label_names: tuple[str, ...] = ()
    target_delimiter: str = " "
    max_gen_toks: int = 32
    origin: str = ""
    licence: str = ""
    path: str = ""
    spec: Mapping[str, object] = field(default_factory=dict, repr=False)

    def split(self, name: str) -> tuple[Example, ...]:
        """The examples of one split. Raises DataError when the task has no such split or it is empty."""
        if name not in self.examples:
            raise DataError(f"task {self.name!r}: {unknown_name('split', name, self.examples)}")
        examples = self.examples[name]  # type: ignore[index]
        if not examples:
            raise DataError(f"task {self.name!r}: split {name!r} is empty")
        return examples

    @property
    def is_choice(self) -> bool:
        """Whether answers are ranked from a list instead of generated."""
        return self.output_type == "multiple_choice"

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits over everything that reaches the model: the key of stored results."""
        seen = hashlib.sha256(
            json.dumps([self.name, self.version, self.output_type, self.metrics, self.target_delimiter]).encode()
        )
        for split in SPLITS:
            for example in self.examples.get(split, ()):
                seen.update(json.dumps([split, *vars(example).values()]).encode())
        return seen.hexdigest()[:16]


def content_id(row: Mapping[str, object]) -> str:
    """A stable id for a row that has none: twelve hex digits of its content.

    >>> content_id({"text": "a"}) == content_id({"text": "a"})
    True
    """
    text = json.dumps(row, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def normalised(text: str) -> str:
    """Text as compared when splits must not share examples: case-folded words and nothing else.

    >>> normalised("Hello,  World!")
    'hello world'
    """
    return " ".join("".join(c if c.isalnum() else " " for c in text.casefold()).split())
