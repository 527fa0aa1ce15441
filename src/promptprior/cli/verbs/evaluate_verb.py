"""promptprior evaluate: scores of a prompt on a task."""

import json
from collections.abc import Mapping

from promptprior.cli.plan_file import beside, save_plan
from promptprior.cli.plans import EvaluatePlan
from promptprior.cli.verb import Verb


def run(plan: EvaluatePlan, dry_run: bool) -> None:
    """Score a prompt and print what it came to."""
    from promptprior.artifacts.artifact import Prompt
    from promptprior.cli.common import load_backbone
    from promptprior.cli.score_lines import score_lines
    from promptprior.evaluate import abstention, evaluate
    from promptprior.files import write_json
    from promptprior.tasks import load_task

    task = load_task(plan.target, plan.data)
    n = len(task.split(plan.split)[: plan.limit])
    backbone = load_backbone(plan)
    prompt = Prompt.from_pretrained(plan.prompt, backbone.card)
    if dry_run:
        return print(f"score {plan.prompt} on {n} examples of {task.name}, split {plan.split}")
    results = evaluate(prompt, task, backbone, plan.split, plan.limit)
    result = {
        "prompt": str(plan.prompt),
        "task": task.name,
        "split": plan.split,
        "examples": n,
        "scores": dict(results.scores),
        "answer_nll": results.nll,
    }
    curve = abstention(prompt, task, backbone, plan.split, plan.limit) if plan.abstention else []
    if curve:
        result["abstention"] = [list(point) for point in curve]
    if plan.output is not None:
        write_json(plan.output, result)
        save_plan(plan, beside(plan.output))
    confident = {f"accuracy of the surest {share:.0%}": accuracy for share, accuracy in curve}
    table = f"{task.name}, {n} of {plan.split}\n{score_lines({**results.scores, **confident})}"
    return print(json.dumps(result) if plan.json else table)


def prompt_defaults(given: Mapping[str, object]) -> dict[str, object]:
    """A prompt brings its backbone and target; what is given wins."""
    from promptprior.cli.common import filled, header_at

    header = header_at(given, "prompt")
    if header is None:
        return dict(given)
    targets = [task.name for task in header.tasks if task.role == "target"]
    return filled(given, {"backbone": header.backbone.name, **({"target": targets[0]} if targets else {})})


VERB = Verb(
    "evaluate",
    EvaluatePlan,
    run,
    "promptprior evaluate --prompt runs/prompt --target adjective_polarity --split test",
    defaults=prompt_defaults,
    is_parallel=True,
)
