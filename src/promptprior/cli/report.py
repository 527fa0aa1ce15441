"""promptprior report: a results.jsonl as a page."""

from dataclasses import dataclass, field
from pathlib import Path

from promptprior.cli.saved import command_line
from promptprior.cli.verb import Verb
from promptprior.errors import DataError
from promptprior.settings import setting


@dataclass(frozen=True)
class ReportPlan:
    """Everything `promptprior report` is told."""

    results: Path = field(metadata={"help": "results.jsonl that compare wrote"})
    output: Path | None = setting(None, "the page; by default report.html beside the results")
    title: str = setting("promptprior comparison", "heading of the page")
    baseline: str = setting("prompt_tuning", "method that the others are compared with")


def run(plan: ReportPlan, dry_run: bool) -> None:
    """Write the page and say where it is."""
    from promptprior.compare.report import write_report

    if not plan.results.is_file():
        raise DataError(f"{plan.results}: no such file; expected the results.jsonl of a comparison")
    output = plan.output or plan.results.with_name("report.html")
    if dry_run:
        return print(f"read {plan.results}, write {output}")
    return print(write_report(plan.results, output, plan.title, baseline=plan.baseline, command=command_line()))


VERB = Verb(
    "report",
    ReportPlan,
    run,
    "promptprior report runs/first/results.jsonl --output report.html",
    positional=("results",),
)
