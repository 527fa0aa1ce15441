"""Running a comparison: fit each method's prior per seed, adapt its episodes as copies of one run, test, write.

Results are one JSON line per cell in results.jsonl, written by this process as soon as they are known, whoever did the
work. If interrupted, rerun it: finished cells are kept, and unfinished work resumes from its checkpoint, which goes
only when its results are on disk.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from promptprior.artifacts.header import HEADER_FILE
from promptprior.backbone import Backbone
from promptprior.compare.execute import Failure, FittedPrior, failed_row, load_prior
from promptprior.compare.executors.local import run_locally
from promptprior.compare.plan import Cell, Plan, Tasks, cells, load_backbone, unserved
from promptprior.compare.progress import ProgressDisplay, Say, duration, say_to_stderr
from promptprior.compare.schedule import (
    PRIOR_COST,
    WORK,
    Fit,
    Group,
    Queue,
    Work,
    WorkerContext,
    group_key,
    is_fitted,
    plan_groups,
    remaining_work,
    work_folder,
)
from promptprior.config.plan_file import check_output, is_plan_of, save_plan
from promptprior.cost_estimate import tokens_per_second
from promptprior.errors import DiskError, SpecError
from promptprior.files import append_lines, check_room, claimed, remove_folder, write_json
from promptprior.preflight import check_lengths, check_metrics, check_start, free_width
from promptprior.report.page import write_report
from promptprior.report.results import read_rows
from promptprior.report.similarity_gain import SIMILARITY_FILE, read_similarity, write_similarity
from promptprior.tasks import Split, load_task
from promptprior.tasks.loading.check import conflicts
from promptprior.tasks.task import normalised
from promptprior.train import read_checkpoint
from promptprior.watch import tensorboard

RESULTS, PLAN, PAGE = "results.jsonl", "plan.yaml", "report.html"
ROW_BYTES = 16_384  # roughly, of a cell's row, and of its prompt's header and card
REPORT_SHARE = 0.05  # of the time, at most, goes into reports before the last


@dataclass(frozen=True)
class ComparisonOutcome:
    """The report of a comparison, how many cells it has, and the errors of those that failed."""

    page: Path
    cells: int
    errors: tuple[str, ...]


def compare(plan: Plan, backbone: Backbone | None = None, say: Say = say_to_stderr, command: str = "") -> Path:
    """Run what is missing of a plan and write its report; returns the path of report.html. See `run_plan`."""
    return run_plan(plan, backbone, say, command).page


def run_plan(
    plan: Plan, backbone: Backbone | None = None, say: Say = say_to_stderr, command: str = ""
) -> ComparisonOutcome:
    """Run what is missing of a plan and write its report.

    Everything that can be wrong with settings, tasks and backbone is found before the first step. A cell that fails is
    tried again (`retries`), then recorded with its error, and tried again by the next call; other cells go on. Raises
    ArtifactError while another comparison writes to the same folder, and DiskError, before the first step or when it
    happens, for a disk that is full.
    """
    if plan.tensorboard is not None:
        tensorboard(plan.tensorboard)  # raises now where its package is missing
    context, wanted = _load(plan, backbone)
    tasks, path = context.tasks, plan.output / SIMILARITY_FILE
    left_out = unserved(plan, tasks)

    def write() -> Path:
        """The report of what is on disk of these cells, in their order: good rows, and the last error of the others."""
        rows = read_rows(plan.output / RESULTS)
        by_cell = {row.cell: row for row in rows} | {row.cell: row for row in rows if row.is_ok}
        return write_report(
            [by_cell[cell.key] for cell in wanted if cell.key in by_cell],
            plan.output / PAGE,
            "promptprior comparison",
            expected=len(wanted),
            command=command,
            task_similarity=read_similarity(path),
            left_out=left_out,
        )

    cluster: AbstractContextManager[object] = nullcontext()
    if plan.engine == "ray" and plan.address:  # before anything is written; one of this machine starts with its work
        from promptprior.compare.executors.ray_driver import ray_connection

        cluster = ray_connection(plan.address)
    with cluster, claimed(plan.output):
        done = _finished_keys(plan)
        finished = sum(cell.key in done for cell in wanted)
        prompt_bytes = 4 * plan.resolved().length * free_width(context.backbone, plan.resolved())
        check_room(plan.output, (len(wanted) - finished) * (prompt_bytes + ROW_BYTES))
        save_plan(replace(plan, settings=plan.resolved(), steps=None), plan.output / PLAN, "compare")
        for name, count in tasks.left_out.items():
            say(f"source {name}: {count} training examples left out because a target holds the same text")
        for line in left_out:
            say(f"left out: {line}")
        for task in (*tasks.sources, *tasks.targets):
            for line in conflicts(task):
                say(f"warning: task {task.name}: {line}")
        if plan.similarity:
            from promptprior.compare.task_similarity import SimilarityProbe, task_similarity

            measured, pairs = read_similarity(path), {(s.name, t.name) for s in tasks.sources for t in tasks.targets}
            if measured is None or not pairs <= {(pair.source, pair.target) for pair in measured.pairs}:
                say(f"similarity of {len(tasks.sources)} sources and {len(tasks.targets)} targets")
                probe = SimilarityProbe(shots=plan.shots[-1], seed=plan.seeds[0])
                similarity = task_similarity(tasks.targets, tasks.sources, context.backbone, plan.resolved(), probe)
                write_similarity(similarity, path)
        say(f"{len(wanted)} cells: {finished} finished before, {len(wanted) - finished} to run")
        left = remaining_work(context, wanted, done)
        if again := sum(len(work.known) for work in left if isinstance(work, Group)):
            say(f"{again} finished cells run again beside missing ones of their group; their results stay as they are")
        if left:
            _run_work(context, left, write, say)
        _remove_checkpoints(plan, wanted)
        page, rows = write(), read_rows(plan.output / RESULTS)
        good, failed = {row.cell for row in rows if row.is_ok}, {row.cell: row.error for row in rows if not row.is_ok}
        errors = tuple(failed.get(cell.key, "no result") for cell in wanted if cell.key not in good)
    if errors:
        say(f"{len(errors)} of {len(wanted)} cells failed; the same command tries them again. The first: {errors[0]}")
    return ComparisonOutcome(page, len(wanted), errors)


def preview(plan: Plan, backbone: Backbone | None = None) -> str:
    """A page on the fits and cells that are missing, with estimated tokens and time; runs nothing."""
    context, wanted = _load(plan, backbone)
    tasks, done, card = context.tasks, _finished_keys(plan), context.backbone.card
    finished = sum(cell.key in done for cell in wanted)
    lines = [
        f"{len(wanted)} cells: {finished} finished before, {len(wanted) - finished} to run",
        f"backbone {card.name} ({card.fingerprint}), {context.backbone.frozen.dtype}",
        "sources: " + (", ".join(f"{s.name} ({len(s.split('train'))})" for s in tasks.sources) or "none"),
        "targets: " + ", ".join(f"{t.name} ({len(t.split('test')[: plan.test_limit])} to test)" for t in tasks.targets),
    ]
    lines += [f"  left out: {line}" for line in unserved(plan, tasks)]
    left = remaining_work(context, wanted, done)
    if not left:
        return "\n".join([*lines, "nothing to run; the report would be written again"])
    for work in left:
        does = "fit" if isinstance(work, Fit) else f"adapt and test {len(work.cells)} cells"
        if isinstance(work, Group) and work.known:
            does += f" ({len(work.known)} of them finished, for the same batches)"
        lines.append(f"  {work.label}: {does} {work.tokens:,.0f} tokens")
    pace = tokens_per_second(context.backbone, tasks.targets[0], plan.resolved().length)
    total = sum(work.tokens for work in left)
    time_needed = f"{duration(total / pace)} at {pace:,.0f} tokens a second in one process"
    return "\n".join([*lines, f"about {total:,.0f} tokens, {time_needed}"])


def _load(plan: Plan, backbone: Backbone | None) -> tuple[WorkerContext, list[Cell]]:
    """What work is done with, and the cells that are wanted.

    Raises SpecError where no method can answer any target, and ArtifactError where files of others are in the way.
    """
    is_own = bool(read_rows(plan.output / RESULTS)) or is_plan_of(plan.output / PLAN, "compare")
    for name in (PLAN, PAGE):
        check_output(plan.output / name, "compare", (*plan.sources, *plan.targets), force=None, is_own=is_own)
    tasks = load_tasks(plan)
    left_out = unserved(plan, tasks)
    if len(left_out) == len(plan.methods) * len(tasks.targets):
        raise SpecError(f"nothing to compare (--methods, --targets): {'; '.join(left_out)}")
    for target in tasks.targets:
        check_metrics(target, plan.test_limit)
    context, settings = WorkerContext(plan, tasks, backbone or load_backbone(plan)), plan.resolved()
    check_start(context.backbone, settings)
    for source in tasks.sources:
        check_lengths(context.backbone, source, source.split("train"), settings.length)
    for target in tasks.targets:
        texts = [*target.split("train"), *target.split("test")[: plan.test_limit]]
        check_lengths(context.backbone, target, texts, settings.length)
    return context, cells(plan, tasks, context.backbone)


def load_tasks(plan: Plan) -> Tasks:
    """The tasks of a plan, checked; sources lose the examples whose normalised text stands in a target.

    Raises SpecError for a task on both sides, and for two of one name: in tables they would be one.
    """
    limits: dict[Split, int] | None = {"train": plan.train_limit} if plan.train_limit else None
    sources = [load_task(name, plan.data, limits) for name in plan.sources]
    targets = [load_task(name, plan.data) for name in plan.targets]
    for flag, side in (("--sources", sources), ("--targets", targets)):
        if twice := [name for name, count in Counter(task.name for task in side).items() if count > 1]:
            origins = ", ".join(task.origin for task in side if task.name == twice[0])
            raise SpecError(
                f"two tasks are called {twice[0]!r} ({flag}: {origins}), and tables tell tasks by their names: rename "
                "one (its file or folder, or the key 'task' of its spec)"
            )
    for target in targets:
        target.split("test")  # raises now where there is none
    on_both_sides = {t.fingerprint for t in targets} & {s.fingerprint for s in sources}
    if on_both_sides:
        names = sorted(s.name for s in sources if s.fingerprint in on_both_sides)
        raise SpecError(f"{', '.join(names)} (--sources, --targets): the same task stands on both sides")
    target_texts = {normalised(e.text) for t in targets for split in t.examples.values() for e in split}
    cleaned, left_out = [], {}
    for source in sources:
        examples = {
            split: tuple(e for e in rows if normalised(e.text) not in target_texts)
            for split, rows in source.examples.items()
        }
        dropped = len(source.examples["train"]) - len(examples["train"])
        if dropped:
            left_out[source.name] = dropped
        cleaned.append(replace(source, examples=examples) if dropped else source)
    return Tasks(tuple(cleaned), tuple(targets), left_out)


def _finished_keys(plan: Plan) -> set[str]:
    """Keys of the cells that have a good row on disk."""
    return {row.cell for row in read_rows(plan.output / RESULTS) if row.is_ok}


def _remove_checkpoints(plan: Plan, wanted: Sequence[Cell]) -> None:
    """Remove checkpoints of finished work, which a kill may have left; those of unfinished work stay."""
    done = _finished_keys(plan)
    for group in plan_groups(plan, wanted):
        for part in (group, *((cell,) for cell in group)):  # failed groups come again cell by cell
            if all(cell.key in done for cell in part):
                remove_folder(plan.output / WORK / group_key(part))
    for cost in (plan.output / "priors").glob(f"*/{PRIOR_COST}"):
        remove_folder(cost.parent / "checkpoints")
    with suppress(OSError):  # not empty, or not there
        (plan.output / WORK).rmdir()


def _run_work(context: WorkerContext, left: list[Work], write: Callable[[], Path], say: Say) -> None:
    """Do all work that is left, save what comes of it, and keep the report up to date."""
    output, card = context.plan.output, context.backbone.card
    for folder in {work.prior for work in left if not isinstance(work, Fit) and work.prior}:
        if is_fitted(folder):
            load_prior(folder, card)  # raises ArtifactError for a damaged one, before any work
    for work in left:
        for path in sorted(work_folder(output, work).rglob("state.json")):
            read_checkpoint(path)  # likewise
    progress, queue = ProgressDisplay(say, sum(work.tokens for work in left)), Queue(left, context.plan.retries)
    executor, report_seconds, report_end = run_locally, 0.0, -1e9
    if context.plan.engine == "ray":
        from promptprior.compare.executors.ray_driver import run_on_ray as executor
    with closing(progress), closing(executor(context, queue, progress)) as results:
        for work, result in results:
            queue.running.remove(work)
            has_new_rows = not isinstance(work, Fit)
            if isinstance(result, Failure):
                if result.is_disk:
                    raise DiskError(f"{work.label}: {result.error}; run the same command again: finished work is kept")
                given_up = queue.fail(work)
                say(f"{work.label}: failed{'' if given_up else ', to be tried again'}: {result.error}")
                if given_up:
                    failed = [failed_row(context, cell, result.error).to_json() for cell in given_up]
                    append_lines(output / RESULTS, failed)
                has_new_rows = bool(given_up)
            elif isinstance(work, Fit):
                assert isinstance(result, FittedPrior)
                if not (work.folder / "prior" / HEADER_FILE).exists():  # fitted on a machine without this folder
                    result.prior.save_pretrained(work.folder / "prior")
                write_json(work.folder / PRIOR_COST, asdict(result.cost))  # last: the prior is complete (is_fitted)
                remove_folder(work.folder / "checkpoints")
            else:
                assert isinstance(result, tuple)
                new = [finished for finished in result if finished.row.cell not in work.known]
                for finished in new:  # prompts come before rows: a row says that all of its cell is there
                    finished.prompt.save_pretrained(output / "prompts" / finished.row.cell)
                append_lines(output / RESULTS, [finished.row.to_json() for finished in new])
                remove_folder(work_folder(output, work))
            progress.done = progress.total - sum(work.tokens for work in [*queue.waiting, *queue.running])
            progress.within = 0.0
            if has_new_rows and time.monotonic() - report_end >= report_seconds / REPORT_SHARE:
                report_start = time.monotonic()
                try:
                    write()
                except DiskError as error:  # results come first; the last report must be written
                    say(f"no report yet: {error}")
                report_end = time.monotonic()
                report_seconds = report_end - report_start
    say(f"finished in {duration(time.monotonic() - progress.start)}")
