"""promptprior queue: several plans of compare, one after the other, at low priority."""

from collections.abc import Mapping
from functools import partial

from promptprior.cli.output import command_line
from promptprior.cli.verb import Verb, tasks_of_partition
from promptprior.compare.plan import Plan


def run_plans(plans: Mapping[str, Plan], dry_run: bool) -> int:
    """Run what is missing of each plan, or say what that is. The exit code is 1 where one failed, or cells of one."""
    from promptprior.compare.study_queue import run_queue

    return 0 if run_queue(plans, dry_run, command=command_line()) else 1


VERB = Verb(
    "queue",
    Plan,
    run_plans,
    "promptprior queue experiments/field.yaml experiments/tpt.yaml --data DIR",
    defaults=partial(tasks_of_partition, sides=("sources", "targets")),
    is_queue=True,
)
