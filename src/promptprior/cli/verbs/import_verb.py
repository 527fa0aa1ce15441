"""promptprior import: a prompt that another tool wrote, as a prompt of this library."""

from dataclasses import dataclass, field
from pathlib import Path

from promptprior.cli.output import show
from promptprior.cli.verb import BACKBONE, DATA, FORCE, Verb
from promptprior.config.plan_file import check_output, plan_beside, save_plan
from promptprior.config.training import setting


@dataclass(frozen=True)
class ImportPlan:
    """The settings of `promptprior import`."""

    file: Path = field(metadata={"help": "PEFT folder, .npy, .pt, .pth, .bin or .safetensors file"})
    backbone: str = setting("smollm2", f"the model it was trained on: {BACKBONE}")
    task: str = setting("", "task it was trained for: a name, file or folder; evaluate then needs no --target")
    tensor: str | None = setting(None, "which tensor of the file, where several look like a prompt")
    data: Path | None = setting(None, DATA)
    output: Path = setting(Path("runs/imported"), "folder for the prompt, a PEFT adapter as well")
    force: bool = setting(False, FORCE)

    def run(self, dry_run: bool) -> None:
        """Read the file, check it against the backbone, and save it as a prompt."""
        from promptprior.artifacts.artifact import check_saveable
        from promptprior.artifacts.header import TaskCard
        from promptprior.artifacts.import_prompt import find_prompt, import_prompt
        from promptprior.backbone.frozen import load_frozen
        from promptprior.tasks import load_task

        check_output(self.output, "import", (self.file, self.task, self.data, self.backbone), force=self.force)
        found = find_prompt(self.file, tensor=self.tensor)  # before the backbone is loaded
        check_saveable(self.output)
        tasks = [load_task(self.task, self.data)] if self.task else []
        targets = tuple(TaskCard(task.name, task.version, task.fingerprint, "target", path=task.path) for task in tasks)
        card = load_frozen(self.backbone, "float32", "cpu").card
        prompt = import_prompt(self.file, card, targets, self.tensor)
        length, width = found.prompt.shape
        size = f"{found.prompt.std() / card.scale:.3g} x scale"
        line = f"{length} tokens of width {width} ({found.origin}), entries {size}"
        if dry_run:
            return print(f"{line}, for {card.name}, to {self.output}")
        prompt.save_pretrained(self.output)
        save_plan(self, plan_beside(self.output), "import", [self.output])
        said = {"output": self.output, "length": length, "width": width, "origin": found.origin}
        return show(f"{line}\n{self.output}", said)


VERB = Verb(
    "import",
    ImportPlan,
    ImportPlan.run,
    "promptprior import prefix_embeddings.pt --backbone org/model --task sst2 --output runs/imported",
    positional=("file",),
)
