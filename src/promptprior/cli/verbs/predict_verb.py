"""promptprior predict: answers of a prompt to the rows of a file."""

import json

from promptprior.cli.plan_file import beside, save_plan
from promptprior.cli.plans import PredictPlan
from promptprior.cli.verb import Verb
from promptprior.cli.verbs.evaluate_verb import prompt_defaults


def run(plan: PredictPlan, dry_run: bool) -> None:
    """Answer every row, in order; the file is whole or not there."""
    from promptprior.artifacts.artifact import Prompt
    from promptprior.cli.common import load_backbone
    from promptprior.evaluate import predict
    from promptprior.files import write_text
    from promptprior.tasks.loading.readers import read_data_file
    from promptprior.tasks.loading.unlabelled import unlabelled_task

    task = unlabelled_task(plan.target, read_data_file(plan.input), plan.data)
    examples = task.split("test")
    backbone = load_backbone(plan)
    prompt = Prompt.from_pretrained(plan.prompt, backbone.card)
    if dry_run:
        return print(f"answer {len(examples)} rows of {plan.input} with {plan.prompt}, to {plan.output}")
    answers = predict(prompt, task, backbone, examples)
    lines = [json.dumps(vars(answer), ensure_ascii=False) for answer in answers]
    write_text(plan.output, "".join(f"{line}\n" for line in lines))
    save_plan(plan, beside(plan.output))
    return print(plan.output)


VERB = Verb(
    "predict",
    PredictPlan,
    run,
    "promptprior predict --prompt runs/prompt --target my_task/spec.yaml --input rows.jsonl --output answers.jsonl",
    defaults=prompt_defaults,
    is_parallel=True,
)
