"""The verbs, a line each; a verb's module is imported when it is used."""

from collections.abc import Mapping
from importlib import import_module

from promptprior.cli.verb import Verb

VERBS: Mapping[str, tuple[str, str]] = {
    "fit": ("learn a prior from source tasks", "promptprior.cli.fit"),
    "adapt": ("turn a prior and a few examples of a target into a prompt", "promptprior.cli.adapt"),
    "evaluate": ("score a prompt on a task", "promptprior.cli.evaluate"),
    "predict": ("answer the rows of a file with a prompt", "promptprior.cli.predict"),
    "compare": ("compare methods on targets, seeds and shots, and write a report", "promptprior.cli.compare"),
    "report": ("write the report of a results.jsonl again", "promptprior.cli.report"),
    "similar": ("rank sources by how like a target they are", "promptprior.cli.similar"),
    "tasks": ("list tasks, show one, or check a spec or data folder", "promptprior.cli.tasks"),
    "import": ("read a prompt that PEFT, prompt-tuning or ATTEMPT wrote", "promptprior.cli.importing"),
    "export": ("write a prompt for PEFT, numpy, or into the model's vocabulary", "promptprior.cli.export"),
    "inspect": ("describe a prior or prompt folder", "promptprior.cli.inspect"),
}


def find_verb(name: str) -> Verb:
    """A verb by its name, which is known."""
    return import_module(VERBS[name][1]).VERB
