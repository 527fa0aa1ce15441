"""promptprior compare: methods x targets x shots x seeds, to results.jsonl and report.html."""

from functools import partial
from pathlib import Path

from promptprior.cli.output import command_line, show
from promptprior.cli.verb import Verb, tasks_of_partition
from promptprior.compare.plan import Plan

PRESETS = Path(__file__).parents[2] / "compare" / "presets"


def run_comparison(plan: Plan, dry_run: bool) -> int:
    """Run what is missing of a comparison, or say what that is.

    The exit code is 1 where cells failed, 2 where all did.
    """
    from promptprior.compare.run import preview, run_plan

    if dry_run:
        print(preview(plan))
        return 0
    outcome = run_plan(plan, command=command_line())
    report = {"page": str(outcome.page), "cells": outcome.cells, "failed": len(outcome.errors), "best": outcome.best}
    show(str(outcome.page), report)
    return 0 if not outcome.errors else 2 if len(outcome.errors) == outcome.cells else 1


VERB = Verb(
    "compare",
    Plan,
    run_comparison,
    "promptprior compare --data DIR --methods prompt_tuning,multitask --sources sst2,trec --targets subj \\\n"
    "      --shots 16 --seeds 13,21 --steps 30 --output runs/first",
    defaults=partial(tasks_of_partition, sides=("sources", "targets")),
    presets=PRESETS,
)
