"""Examples of a task as tokens of a backbone: with the right answer to learn from, or with all choices to rank."""

from collections.abc import Sequence

from promptprior.backbone.engine import Backbone
from promptprior.tasks.sampling.batch import Tokens
from promptprior.tasks.task import Example, Task


def training_tokens(backbone: Backbone, task: Task, examples: Sequence[Example]) -> list[Tokens]:
    """Each example's text with its right answer; a free-text answer also teaches where to end."""
    return backbone.tokens(
        [e.text for e in examples], [[e.target] for e in examples], task.target_delimiter, end=not task.is_choice
    )


def ranking_tokens(backbone: Backbone, task: Task, examples: Sequence[Example]) -> list[Tokens]:
    """Each example's text with all its choices, in label order."""
    return backbone.tokens([e.text for e in examples], [e.choices for e in examples], task.target_delimiter)
