"""promptprior evaluate: scores of a prompt on a task."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from promptprior.cli.output import plan_beside, save_plan, score_lines
from promptprior.cli.verb import BACKBONE, DATA, DEVICE, DTYPE, Verb
from promptprior.compare.plan import COMPILE, QUANTIZE
from promptprior.config.mapping import merge_settings
from promptprior.config.training import setting
from promptprior.errors import SpecError


@dataclass(frozen=True)
class EvaluatePlan:
    """The settings of `promptprior evaluate`. Backbone and target are the prompt's own unless given."""

    prompt: Path = field(metadata={"help": "folder that adapt (or PEFT) wrote"})
    target: str = setting("", "task: a name, file or folder")
    split: Literal["train", "validation", "test"] = setting("test", "split to score on")
    limit: int | None = setting(None, "at most this many examples")
    data: Path | None = setting(None, DATA)
    backbone: str = setting("smollm2", BACKBONE)
    dtype: str = setting("auto", DTYPE)
    device: str | None = setting(None, DEVICE)
    quantize: str | None = setting(None, QUANTIZE)
    compile: bool = setting(False, COMPILE)
    abstention: bool = setting(False, "also accuracy on the most confident tenth of answers, two tenths, … all")
    json: bool = setting(False, "print one JSON object instead of a table")
    output: Path | None = setting(None, "write the JSON object to this file as well")

    def __post_init__(self) -> None:
        if not self.target:
            raise SpecError("target (--target) is missing: name the task to score on")

    def run(self, dry_run: bool) -> None:
        """Score a prompt and print its scores."""
        from promptprior.artifacts.artifact import Prompt
        from promptprior.cli.common import load_backbone
        from promptprior.evaluate import abstention, evaluate
        from promptprior.files import write_json
        from promptprior.tasks import load_task

        task = load_task(self.target, self.data)
        count = len(task.split(self.split)[: self.limit])
        backbone = load_backbone(self)
        prompt = Prompt.from_pretrained(self.prompt, backbone.card)
        if dry_run:
            return print(f"score {self.prompt} on {count} examples of {task.name}, split {self.split}")
        results = evaluate(prompt, task, backbone, self.split, self.limit)
        report = {
            "prompt": str(self.prompt),
            "task": task.name,
            "split": self.split,
            "examples": count,
            "scores": dict(results.scores),
            "answer_nll": results.nll,
        }
        curve = abstention(prompt, task, backbone, self.split, self.limit) if self.abstention else []
        if curve:
            report["abstention"] = [list(point) for point in curve]
        if self.output is not None:
            write_json(self.output, report)
            save_plan(self, plan_beside(self.output))
        confident = {f"accuracy of the surest {share:.0%}": accuracy for share, accuracy in curve}
        table = f"{task.name}, {count} of {self.split}\n{score_lines({**results.scores, **confident})}"
        return print(json.dumps(report) if self.json else table)


def settings_of_prompt(given: Mapping[str, object]) -> dict[str, object]:
    """The settings with backbone and target of the prompt that is named; what is given wins."""
    from promptprior.cli.common import header_at

    header = header_at(given, "prompt")
    if header is None:
        return dict(given)
    targets = [task.name for task in header.tasks if task.role == "target"]
    return merge_settings(given, {"backbone": header.backbone.name, **({"target": targets[0]} if targets else {})})


VERB = Verb(
    "evaluate",
    EvaluatePlan,
    EvaluatePlan.run,
    "promptprior evaluate --prompt runs/prompt --target adjective_polarity --split test",
    defaults=settings_of_prompt,
    is_parallel=True,
)
