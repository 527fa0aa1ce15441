"""What a verb is, and all verbs; a verb's module is imported when it is used."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from promptprior import plugins
from promptprior.config.mapping import Config
from promptprior.errors import SpecError, unknown_name

PLAN_FILE = "PLAN.yaml"
PLUGINS = "promptprior.verbs"  # the entry point group of verbs that other packages add

# Help lines of settings that several verbs have
DATA = "folder of task folders that names are looked up in"
BACKBONE = "Hub id, folder, .gguf file, or smollm2"
DTYPE = "auto, float32, bfloat16, float16 or float64"
DEVICE = "cuda, cpu, …; by default the first GPU, else the CPU"
TENSORBOARD = "folder for TensorBoard logs of every step (needs tensorboard)"
MLFLOW = "folder or URI for MLflow logs of every step (needs mlflow-skinny)"
FORCE = "replace what this command did not write itself; what it reads is never replaced"
OPTIONS = {"help": "options of the method itself: --options.retrieval weighted (promptprior methods show NAME)"}

VERBS: Mapping[str, tuple[str, str]] = {
    "fit": ("learn a prior from source tasks", "promptprior.cli.verbs.fit_verb"),
    "adapt": ("turn a prior and a few examples of a target into a prompt", "promptprior.cli.verbs.adapt_verb"),
    "evaluate": ("score a prompt on a task", "promptprior.cli.verbs.evaluate_verb"),
    "predict": ("answer the rows of a file with a prompt", "promptprior.cli.verbs.predict_verb"),
    "serve": ("answer over HTTP, with many prompts behind one model", "promptprior.cli.serve_verb"),
    "compare": ("compare methods on targets, seeds and shots, and report", "promptprior.cli.verbs.compare_verb"),
    "queue": ("run several plans of compare, one after the other", "promptprior.cli.verbs.queue_verb"),
    "report": ("write the report of a results.jsonl again", "promptprior.cli.verbs.report_verb"),
    "similar": ("rank sources by how like a target they are", "promptprior.cli.verbs.similar_verb"),
    "tasks": ("list tasks, show one, or check a spec or data folder", "promptprior.cli.verbs.tasks_verb"),
    "methods": ("list methods, or show the options of one", "promptprior.cli.verbs.methods_verb"),
    "import": ("read a prompt that PEFT, prompt-tuning or ATTEMPT wrote", "promptprior.cli.verbs.import_verb"),
    "export": ("write a prompt for PEFT, numpy, llama.cpp, vLLM and others", "promptprior.cli.verbs.export_verb"),
    "share": ("put a prior, a prompt or results on the Hub", "promptprior.cli.verbs.sharing.share_verb"),
    "fetch": ("get a prior, a prompt or results from the Hub", "promptprior.cli.verbs.sharing.fetch_verb"),
    "leaderboard": ("results of many people on one page", "promptprior.cli.verbs.sharing.leaderboard_verb"),
    "inspect": ("describe a prior or prompt folder", "promptprior.cli.verbs.inspect_verb"),
}


@dataclass(frozen=True)
class Verb:
    """A verb. `positional` names the settings that may be given without a flag, or PLAN_FILE.

    `run` gets the settings and whether to only say what it would do, and may return an exit code; `defaults` completes
    what was given, from the artifact that the settings name. `is_parallel`: whether torchrun may start it in several
    processes. `presets` is a folder of plan files that `--preset` names. `is_queue`: it takes several plan files, and
    `run` gets the settings of each by its name; flags win over all of them.
    """

    name: str
    settings: type[Config]
    run: Callable[[Any, bool], int | None]
    example: str
    positional: tuple[str, ...] = (PLAN_FILE,)
    defaults: Callable[[Mapping[str, object]], dict[str, object]] = dict
    is_parallel: bool = False
    presets: Path | None = None
    is_queue: bool = False


def tasks_of_partition(
    given: Mapping[str, object], sides: tuple[Literal["sources", "targets"], ...]
) -> dict[str, object]:
    """The settings with sources, or sources and targets, of the partition that they name."""
    if "partition" not in given:
        return dict(given)
    from promptprior.tasks.loading.partitions import from_partition

    return from_partition(given, sides)


def find_verb(name: str) -> Verb:
    """A verb by its name, ours or another package's. Raises SpecError, with near names, for an unknown one."""
    if name in VERBS:
        return import_module(VERBS[name][1]).VERB
    others = plugins.load_plugins(PLUGINS, VERBS)
    if name not in others:
        raise SpecError(unknown_name("verb", name, [*VERBS, *others]))
    verb = others[name]
    if not isinstance(verb, Verb) or verb.name != name:
        raise SpecError(f"entry point {others.describe(name)} is {verb!r}; expected a cli.verb.Verb of that name")
    return verb
