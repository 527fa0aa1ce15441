"""promptprior predict: answers of a prompt to the rows of a file."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from promptprior.cli.output import plan_beside, save_plan
from promptprior.cli.verb import BACKBONE, DATA, DEVICE, DTYPE, Verb
from promptprior.cli.verbs.evaluate_verb import settings_of_prompt
from promptprior.compare.plan import COMPILE, QUANTIZE
from promptprior.config.training import setting
from promptprior.errors import SpecError


@dataclass(frozen=True)
class PredictPlan:
    """The settings of `promptprior predict`. Backbone and target are the prompt's own unless given."""

    prompt: Path = field(metadata={"help": "folder that adapt (or PEFT) wrote"})
    input: Path = field(metadata={"help": "file of rows (.jsonl, .csv, .json, .parquet); they need no answers"})
    output: Path = field(metadata={"help": "file for the answers, a JSON object a line"})
    target: str = setting("", "task that says how rows are read: a spec file, a task folder or a name")
    data: Path | None = setting(None, DATA)
    backbone: str = setting("smollm2", BACKBONE)
    dtype: str = setting("auto", DTYPE)
    device: str | None = setting(None, DEVICE)
    quantize: str | None = setting(None, QUANTIZE)
    compile: bool = setting(False, COMPILE)

    def __post_init__(self) -> None:
        if not self.target:
            raise SpecError("target (--target) is missing: name the task that says how rows are read")

    def run(self, dry_run: bool) -> None:
        """Answer every row, in order; the file is whole or not there."""
        from promptprior.artifacts.artifact import Prompt
        from promptprior.cli.common import load_backbone
        from promptprior.evaluate import predict
        from promptprior.files import write_text
        from promptprior.tasks.loading.readers import read_data_file
        from promptprior.tasks.loading.unlabelled import unlabelled_task

        task = unlabelled_task(self.target, read_data_file(self.input), self.data)
        examples = task.split("test")
        backbone = load_backbone(self)
        prompt = Prompt.from_pretrained(self.prompt, backbone.card)
        if dry_run:
            return print(f"answer {len(examples)} rows of {self.input} with {self.prompt}, to {self.output}")
        answers = predict(prompt, task, backbone, examples)
        lines = [json.dumps(vars(answer), ensure_ascii=False) for answer in answers]
        write_text(self.output, "".join(f"{line}\n" for line in lines))
        save_plan(self, plan_beside(self.output))
        return print(self.output)


VERB = Verb(
    "predict",
    PredictPlan,
    PredictPlan.run,
    "promptprior predict --prompt runs/prompt --target my_task/spec.yaml --input rows.jsonl --output answers.jsonl",
    defaults=settings_of_prompt,
    is_parallel=True,
)
