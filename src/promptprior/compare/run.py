"""Running a comparison: fit each method's prior per seed, adapt its episodes as copies of one run, test, write.

Results are one JSON line per cell in results.jsonl, written by this process as soon as they are known, whoever did the
work. Killed at any moment and started again, finished cells are kept, and unfinished work resumes from its checkpoint.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from promptprior.backbone import Backbone
from promptprior.compare.execute import failed_row
from promptprior.compare.executors.executor import Engine, Failure, Result
from promptprior.compare.executors.local import LocalEngine
from promptprior.compare.plan import Cell, Plan, Tasks, cells, separated
from promptprior.compare.progress import Progress, Say, duration, say_to_stderr
from promptprior.compare.schedule import Fit, Group, Queue, Work, WorkerContext, is_kept, works
from promptprior.compare.store import RESULTS, Fitted, finished_rows, keep_finished, keep_prior, keep_row, kept_prior
from promptprior.config.mapping import dump_yaml
from promptprior.files import claimed, write_text
from promptprior.report.page import write_report
from promptprior.report.results import read_rows
from promptprior.report.similarity_gain import SIMILARITY_FILE, read_similarity, write_similarity
from promptprior.tasks import Split, load_task
from promptprior.watch import tensorboard

REPORT = "report.html"
REPORT_SHARE = 0.05  # of the time, at most, goes into reports before the last


def compare(plan: Plan, backbone: Backbone | None = None, say: Say = say_to_stderr, command: str = "") -> Path:
    """Run what is missing of a plan and write its report; returns the path of report.html.

    Everything that can be wrong with settings, tasks and backbone is found before the first step. A cell that fails is
    tried again (`retries`), then recorded with its error, and tried again by the next call; other cells go on. Raises
    ArtifactError while another comparison writes to the same folder.
    """
    if plan.tensorboard is not None:
        tensorboard(plan.tensorboard)
    tasks = load_tasks(plan)
    worker_context = WorkerContext(plan, tasks, backbone or plan.load_backbone())
    wanted = cells(plan, tasks, worker_context.backbone)
    with claimed(plan.output):
        return run_plan(worker_context, wanted, say, command)


def run_plan(worker_context: WorkerContext, wanted: Sequence[Cell], say: Say, command: str) -> Path:
    """Run what is missing of a plan whose folder nobody else writes to."""
    plan, tasks = worker_context.plan, worker_context.tasks
    write_text(plan.output / "plan.yaml", dump_yaml(plan))
    for name, count in tasks.left_out.items():
        say(f"source {name}: {count} training examples left out because a target holds the same text")
    if plan.similarity:
        keep_likeness(worker_context, say)
    done = finished_rows(plan.output, wanted)
    say(f"{len(wanted)} cells: {len(done)} finished before, {len(wanted) - len(done)} to run")
    run_works(worker_context, works(worker_context, wanted, done), lambda: report(plan, wanted, command), say)
    return report(plan, wanted, command)


def load_tasks(plan: Plan) -> Tasks:
    """The tasks of a plan, checked, and sources cleaned of the targets' texts."""
    limits: dict[Split, int] | None = {"train": plan.train_limit} if plan.train_limit else None
    sources = [load_task(name, plan.data, limits) for name in plan.sources]
    targets = [load_task(name, plan.data) for name in plan.targets]
    for target in targets:
        target.split("test")
    return separated(sources, targets)


def keep_likeness(worker_context: WorkerContext, say: Say) -> None:
    """Measure how like sources and targets are and keep it beside the results, unless it is there already."""
    from promptprior.compare.task_similarity import task_similarity

    plan, tasks, path = worker_context.plan, worker_context.tasks, worker_context.plan.output / SIMILARITY_FILE
    kept = read_similarity(path)
    wanted = {(s.name, t.name) for s in tasks.sources for t in tasks.targets}
    if kept is not None and wanted <= {(pair.source, pair.target) for pair in kept.pairs}:
        return
    say(f"similarity of {len(tasks.sources)} sources and {len(tasks.targets)} targets")
    shots, seed = plan.shots[-1], plan.seeds[0]
    write_similarity(
        task_similarity(tasks.targets, tasks.sources, worker_context.backbone, plan.resolved(), shots, seed), path
    )


def report(plan: Plan, wanted: Sequence[Cell], command: str) -> Path:
    """The report of what is on disk of these cells, in their order: good rows, and the last error of the others."""
    rows = read_rows(plan.output / RESULTS)
    known = {row.cell: row for row in rows} | {row.cell: row for row in rows if row.is_ok}
    return write_report(
        [known[cell.key] for cell in wanted if cell.key in known],
        plan.output / REPORT,
        "promptprior comparison",
        expected=len(wanted),
        command=command,
        task_similarity=read_similarity(plan.output / SIMILARITY_FILE),
    )


def run_works(worker_context: WorkerContext, left: list[Work], write: Callable[[], Path], say: Say) -> None:
    """Do all work that is left, and keep the report up to date."""
    if not left:
        return
    check_priors(worker_context, left)
    progress, pages = Progress(sum(work.tokens for work in left), say), Pages(write)
    queue = Queue(left, worker_context.plan.retries)
    engine = engine_for(worker_context, progress, len(left))
    try:
        while queue.waiting or engine.running:
            while engine.has_room and (work := queue.take()):
                engine.start(work)
            over = engine.wait()
            if over:
                has_new_rows = settle(worker_context, queue, *over, say)
                progress.reached(sum(work.tokens for work in [*queue.waiting, *engine.running]))
                if has_new_rows:
                    pages.refresh()
    finally:
        engine.close()
    say(f"all done in {duration(time.monotonic() - progress.started)}")


def check_priors(worker_context: WorkerContext, left: Sequence[Work]) -> None:
    """Raise ArtifactError for a kept prior that is damaged, before any work."""
    for folder in {work.prior for work in left if not isinstance(work, Fit) and work.prior}:
        if is_kept(folder):
            kept_prior(folder, worker_context.backbone.card)


def engine_for(worker_context: WorkerContext, progress: Progress, most: int) -> Engine:
    """The engine that the plan names, for at most so many pieces of work."""
    if worker_context.plan.engine == "ray":
        from promptprior.compare.executors.ray_driver import ray_engine

        return ray_engine(worker_context, progress, most)
    return LocalEngine(worker_context, progress)


def settle(worker_context: WorkerContext, queue: Queue, work: Work, result: Result, say: Say) -> bool:
    """Write down what work came to: a prior, results, or, when it has failed too often, its cells' error. Whether there
    are new rows."""
    if isinstance(result, Failure):
        given_up = queue.fail(work)
        say(f"{work.label}: failed{'' if given_up else ', to be tried again'}: {result.error}")
        for cell in given_up:
            keep_row(worker_context.plan.output, failed_row(worker_context, cell, result.error))
        return bool(given_up)
    if isinstance(result, Fitted):
        assert isinstance(work, Fit)
        keep_prior(work.folder, result)
        return False
    assert isinstance(work, Group)
    keep_finished(worker_context.plan.output, [one for one in result if one.row.cell not in work.known])
    return True


@dataclass
class Pages:
    """The report, refreshed after new results, but for a small share of the time only."""

    write: Callable[[], Path]
    spent: float = 0.0
    ended: float = -1e9

    def refresh(self) -> None:
        """Write the report, unless the last one is too near for what it took."""
        start = time.monotonic()
        if start - self.ended >= self.spent / REPORT_SHARE:
            self.write()
            self.ended = time.monotonic()
            self.spent = self.ended - start
