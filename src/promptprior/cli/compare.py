"""promptprior compare: methods x targets x shots x seeds, to results.jsonl and report.html."""

from promptprior.cli.saved import command_line
from promptprior.cli.verb import Verb
from promptprior.compare.plan import Plan


def run(plan: Plan, dry_run: bool) -> None:
    """Run what is missing of a comparison, or say what that is."""
    from promptprior.compare.preview import preview
    from promptprior.compare.run import compare

    if dry_run:
        return print(preview(plan))
    return print(compare(plan, command=command_line()))


VERB = Verb(
    "compare",
    Plan,
    run,
    "promptprior compare --data DIR --methods prompt_tuning,multitask --sources sst2,trec --targets subj \\\n"
    "      --shots 16 --seeds 13,21 --steps 30 --output runs/first",
)
