"""The executor that works in this process, one piece after the other.

An executor takes work from a queue, does it somewhere, and yields each piece with its result. It writes no results:
run.py does, before it asks for the next piece.
"""

from collections.abc import Generator

from promptprior.compare.execute import Result, do_work, load_prior
from promptprior.compare.progress import ProgressDisplay
from promptprior.compare.schedule import Fit, Queue, Work, WorkerContext, work_folder


def run_locally(context: WorkerContext, queue: Queue, progress: ProgressDisplay) -> Generator[tuple[Work, Result]]:
    """Do all work of a queue."""

    def on_progress(text: str, share: float) -> None:
        [work] = queue.running
        progress.within = share * work.tokens
        progress.tell(f"{work.label} · {text}", share)

    while work := queue.take():
        fitted = load_prior(None if isinstance(work, Fit) else work.prior, context.backbone.card)
        yield work, do_work(context, work, fitted, work_folder(context.plan.output, work), on_progress)
