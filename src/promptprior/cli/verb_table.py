"""The verbs, a line each; a verb's module is imported when it is used."""

from collections.abc import Mapping
from importlib import import_module

from promptprior.cli.verb import Verb

VERBS: Mapping[str, tuple[str, str]] = {
    "fit": ("learn a prior from source tasks", "promptprior.cli.verbs.fit_verb"),
    "adapt": ("turn a prior and a few examples of a target into a prompt", "promptprior.cli.verbs.adapt_verb"),
    "evaluate": ("score a prompt on a task", "promptprior.cli.verbs.evaluate_verb"),
    "predict": ("answer the rows of a file with a prompt", "promptprior.cli.verbs.predict_verb"),
    "compare": (
        "compare methods on targets, seeds and shots, and write a report",
        "promptprior.cli.verbs.compare_verb",
    ),
    "report": ("write the report of a results.jsonl again", "promptprior.cli.verbs.report_verb"),
    "similar": ("rank sources by how like a target they are", "promptprior.cli.verbs.similar_verb"),
    "tasks": ("list tasks, show one, or check a spec or data folder", "promptprior.cli.verbs.tasks_verb"),
    "import": ("read a prompt that PEFT, prompt-tuning or ATTEMPT wrote", "promptprior.cli.verbs.import_verb"),
    "export": ("write a prompt for PEFT, numpy, or into the model's vocabulary", "promptprior.cli.verbs.export_verb"),
    "inspect": ("describe a prior or prompt folder", "promptprior.cli.verbs.inspect_verb"),
}


def find_verb(name: str) -> Verb:
    """A verb by its name, which is known."""
    return import_module(VERBS[name][1]).VERB
