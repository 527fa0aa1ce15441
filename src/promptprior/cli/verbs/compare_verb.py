"""promptprior compare: methods x targets x shots x seeds, to results.jsonl and report.html."""

from collections.abc import Mapping
from pathlib import Path

from promptprior.cli.output import command_line
from promptprior.cli.verb import Verb
from promptprior.compare.plan import Plan

PRESETS = Path(__file__).parents[2] / "compare" / "presets"


def run_comparison(plan: Plan, dry_run: bool) -> None:
    """Run what is missing of a comparison, or say what that is."""
    from promptprior.compare.run import compare, preview

    print(preview(plan) if dry_run else compare(plan, command=command_line()))


def tasks_of_partition(given: Mapping[str, object]) -> dict[str, object]:
    """The settings with sources and targets of the partition that is named."""
    if "partition" not in given:
        return dict(given)
    from promptprior.tasks.loading.partitions import from_partition

    return from_partition(given, ("sources", "targets"))


VERB = Verb(
    "compare",
    Plan,
    run_comparison,
    "promptprior compare --data DIR --methods prompt_tuning,multitask --sources sst2,trec --targets subj \\\n"
    "      --shots 16 --seeds 13,21 --steps 30 --output runs/first",
    defaults=tasks_of_partition,
    presets=PRESETS,
)
