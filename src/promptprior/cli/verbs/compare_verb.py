"""promptprior compare: methods x targets x shots x seeds, to results.jsonl and report.html."""

from functools import partial
from pathlib import Path

from promptprior.cli.output import command_line
from promptprior.cli.verb import Verb, tasks_of_partition
from promptprior.compare.plan import Plan

PRESETS = Path(__file__).parents[2] / "compare" / "presets"


def run_comparison(plan: Plan, dry_run: bool) -> None:
    """Run what is missing of a comparison, or say what that is."""
    from promptprior.compare.run import compare, preview

    print(preview(plan) if dry_run else compare(plan, command=command_line()))


VERB = Verb(
    "compare",
    Plan,
    run_comparison,
    "promptprior compare --data DIR --methods prompt_tuning,multitask --sources sst2,trec --targets subj \\\n"
    "      --shots 16 --seeds 13,21 --steps 30 --output runs/first",
    defaults=partial(tasks_of_partition, sides=("sources", "targets")),
    presets=PRESETS,
)
