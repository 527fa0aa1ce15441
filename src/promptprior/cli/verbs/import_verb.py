"""promptprior import: a prompt that another tool wrote, as a prompt of this library."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from promptprior.cli.plans import BACKBONE, DATA
from promptprior.cli.verb import Verb
from promptprior.config.training import setting

if TYPE_CHECKING:
    from promptprior.artifacts.header import TaskCard


@dataclass(frozen=True)
class ImportPlan:
    """Everything `promptprior import` is told."""

    file: Path = field(metadata={"help": "PEFT folder, .npy, .pt, .pth, .bin or .safetensors file"})
    backbone: str = setting("smollm2", f"the model it was trained on: {BACKBONE}")
    task: str = setting("", "task it was trained for: a name, file or folder; evaluate then needs no --target")
    tensor: str | None = setting(None, "which tensor of the file, where several look like a prompt")
    data: Path | None = setting(None, DATA)
    output: Path = setting(Path("runs/imported"), "folder for the prompt, a PEFT adapter as well")


def run(plan: ImportPlan, dry_run: bool) -> None:
    """Read the file, check it against the backbone, and save it as a prompt."""
    from promptprior.artifacts.artifact import check_saveable
    from promptprior.artifacts.import_prompt import find_prompt, import_prompt
    from promptprior.backbone.frozen import load_frozen

    found = find_prompt(plan.file, tensor=plan.tensor)  # before the backbone is loaded
    check_saveable(plan.output)
    tasks = task_cards(plan)
    card = load_frozen(plan.backbone, "float32", "cpu").card
    prompt = import_prompt(plan.file, card, tasks, plan.tensor)
    length, width = found.prompt.shape
    line = f"{length} tokens of width {width} ({found.origin}), entries {found.prompt.std() / card.scale:.3g} x scale"
    if dry_run:
        return print(f"{line}, for {card.name}, to {plan.output}")
    prompt.save_pretrained(plan.output)
    return print(f"{line}\n{plan.output}")


def task_cards(plan: ImportPlan) -> "tuple[TaskCard, ...]":
    """The task that was named, as the target."""
    from promptprior.artifacts.header import TaskCard
    from promptprior.tasks import load_task

    if not plan.task:
        return ()
    task = load_task(plan.task, plan.data)
    return (TaskCard(task.name, task.version, task.fingerprint, "target"),)


VERB = Verb(
    "import",
    ImportPlan,
    run,
    "promptprior import prefix_embeddings.pt --backbone org/model --task sst2 --output runs/imported",
    positional=("file",),
)
