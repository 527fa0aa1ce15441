"""What a comparison would run and cost, without running it."""

from collections.abc import Sequence

from promptprior.backbone import Backbone
from promptprior.compare.cost_estimate import tokens_per_second
from promptprior.compare.plan import Plan, cells
from promptprior.compare.progress import duration
from promptprior.compare.run import load_tasks
from promptprior.compare.schedule import Fit, Work, WorkerContext, works
from promptprior.compare.store import finished_rows


def preview(plan: Plan, backbone: Backbone | None = None) -> str:
    """A page on the fits and cells that are missing, with estimated tokens and time."""
    tasks = load_tasks(plan)
    worker_context = WorkerContext(plan, tasks, backbone or plan.load_backbone())
    wanted = cells(plan, tasks, worker_context.backbone)
    done = finished_rows(plan.output, wanted)
    card = worker_context.backbone.card
    lines = [
        f"{len(wanted)} cells: {len(done)} finished before, {len(wanted) - len(done)} to run",
        f"backbone {card.name} ({card.fingerprint}), {worker_context.backbone.frozen.dtype}",
        "sources: " + (", ".join(f"{s.name} ({len(s.split('train'))})" for s in tasks.sources) or "none"),
        "targets: " + ", ".join(f"{t.name} ({len(t.split('test')[: plan.test_limit])} to test)" for t in tasks.targets),
    ]
    return "\n".join([*lines, *work_lines(worker_context, works(worker_context, wanted, done))])


def work_lines(worker_context: WorkerContext, left: Sequence[Work]) -> list[str]:
    """A line for each piece of work, and the sum."""
    if not left:
        return ["nothing to run; the report would be written again"]
    pace = tokens_per_second(
        worker_context.backbone, worker_context.tasks.targets[0], worker_context.plan.resolved().length
    )
    total = sum(work.tokens for work in left)
    lines = [f"  {work.label}: {doing(work)} {work.tokens:,.0f} tokens" for work in left]
    return [
        *lines,
        f"about {total:,.0f} tokens, {duration(total / pace)} at {pace:,.0f} tokens a second in one process",
    ]


def doing(work: Work) -> str:
    """What a piece of work does."""
    return "fit" if isinstance(work, Fit) else f"adapt and test {len(work.cells)} cells"
