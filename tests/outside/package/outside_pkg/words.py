"""promptprior words TASK: how many words, and how many different ones, each split of a task has. Loads no model."""

from dataclasses import dataclass

from promptprior.cli.verb import Verb
from promptprior.config.training import setting
from promptprior.errors import SpecError


@dataclass(frozen=True)
class WordsPlan:
    """The settings of `promptprior words`."""

    task: str = setting("", "task: a name, file or folder")

    def __post_init__(self) -> None:
        if not self.task:
            raise SpecError("task (--task) is missing: name the task whose words are counted")

    def run(self, dry_run: bool) -> None:
        """Print one line for each split."""
        from promptprior.tasks import load_task  # here, so that --help stays fast

        for split, examples in load_task(self.task).examples.items():
            words = [word for example in examples for word in example.text.split()]
            print(f"{split}: {len(words)} words, {len(set(words))} different")


VERB = Verb("words", WordsPlan, WordsPlan.run, "promptprior words article", positional=("task",))
