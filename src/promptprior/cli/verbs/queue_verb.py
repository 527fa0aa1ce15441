"""promptprior queue: several plans of compare, one after the other, at low priority."""

from collections.abc import Mapping
from functools import partial

from promptprior.cli.output import AS_JSON, command_line, show
from promptprior.cli.verb import Verb, tasks_of_partition
from promptprior.compare.plan import Plan


def run_plans(plans: Mapping[str, Plan], dry_run: bool) -> int:
    """Run what is missing of each plan, or say what that is. The exit code is 1 where one failed, or cells of one."""
    from promptprior.compare.study_queue import run_queue

    is_done = run_queue(plans, dry_run, command=command_line())
    if AS_JSON.get():  # what happens is told meanwhile, on stderr
        show("", {"plans": {name: plan.output for name, plan in plans.items()}, "failed": not is_done})
    return 0 if is_done else 1


VERB = Verb(
    "queue",
    Plan,
    run_plans,
    "promptprior queue experiments/field.yaml experiments/tpt.yaml --data DIR",
    defaults=partial(tasks_of_partition, sides=("sources", "targets")),
    is_queue=True,
)
