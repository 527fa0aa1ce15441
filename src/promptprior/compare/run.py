"""Running a comparison: fit each method's prior per seed, adapt its episodes as copies of one run, test, write.

Results are one JSON line per cell in results.jsonl, written by this process as soon as they are known, whoever did the
work. If interrupted, rerun it: finished cells are kept, and unfinished work resumes from its checkpoint, which goes
only when its results are on disk.
"""

import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from promptprior.artifacts.header import HEADER_FILE
from promptprior.backbone import Backbone
from promptprior.compare.execute import Failure, FittedPrior, failed_row, load_prior
from promptprior.compare.executors.local import run_locally
from promptprior.compare.plan import Cell, Plan, Tasks, cells, load_backbone, unserved
from promptprior.compare.power import power_lines
from promptprior.compare.progress import ProgressDisplay, Say, duration, report_failure, say_to_stderr
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
from promptprior.config.comparison_folder import ANSWERS, PAGE, PLAN, RESULTS, SIMILARITY, WANTED
from promptprior.config.plan_file import check_output, is_plan_of, save_plan
from promptprior.cost_estimate import tokens_per_second
from promptprior.errors import DataError, DiskError, SpecError
from promptprior.files import append_lines, check_room, claimed, remove_folder, write_json
from promptprior.preflight import check_lengths, check_metrics, check_start, free_width
from promptprior.report.examples.kept_answers import ANSWER_BYTES, ExampleSet, example_line, read_answers
from promptprior.report.page import Report, make_report
from promptprior.report.results import Wanted, read_rows
from promptprior.report.similarity_gain import read_similarity, write_similarity
from promptprior.tasks import Split, Task, load_task
from promptprior.tasks.loading.check import conflicts
from promptprior.tasks.loading.lineage import halve_validation, index_labels, score_by
from promptprior.tasks.loading.load import missing_tasks
from promptprior.tasks.task import normalised
from promptprior.train import read_checkpoint
from promptprior.watch import step_logs

ROW_BYTES = 16_384  # roughly, of a cell's row, and of its prompt's header and card
REPORT_SHARE = 0.05  # of the time, at most, goes into reports before the last


@dataclass(frozen=True)
class ComparisonOutcome:
    """The report of a comparison, how many cells it has, the errors of those that failed, and `Report.best`."""

    page: Path
    cells: int
    errors: tuple[str, ...]
    best: tuple[dict[str, Any], ...] = ()


def compare(plan: Plan, backbone: Backbone | None = None, say: Say = say_to_stderr, command: str = "") -> Path:
    """Run what is missing of a plan and write its report; returns the path of report.html.

    If interrupted, call it again: finished cells are kept. A cell that fails is recorded with its error. Raises
    SpecError and DataError for what is wrong with settings, tasks or backbone, before the first step; ArtifactError
    while another comparison writes to the same folder; DiskError for a disk that is full.
    """
    return run_plan(plan, backbone, say, command).page


def run_plan(
    plan: Plan,
    backbone: Backbone | None = None,
    say: Say = say_to_stderr,
    command: str = "",
    progress: ProgressDisplay | None = None,
) -> ComparisonOutcome:
    """Run what is missing of a plan and write its report; of a plan with a sweep, one combination after the other.

    Everything that can be wrong with settings, tasks and backbone is found before the first step. A cell that fails is
    tried again (`retries`), then recorded with its error, and tried again by the next call; other cells go on. Raises
    ArtifactError while another comparison writes to the same folder, and DiskError, before the first step or when it
    happens, for a disk that is full. `progress` is that of a queue of plans, of which this is one.
    """
    step_logs(plan.tensorboard, plan.mlflow, plan.output)  # raises now where a package is missing
    runs = load_plan(plan, backbone)
    context, wanted, path = runs[0].context, [cell for run in runs for cell in run.cells], plan.output / SIMILARITY
    tasks, answers_file = context.tasks, plan.output / ANSWERS
    left_out = [f"task {name}, which is not there (--data)" for name in tasks.missing]
    left_out += dict.fromkeys(line for run in runs for line in unserved(run.context.plan, tasks))

    def write() -> Report:
        """The report of what is on disk of these cells, in their order: good rows, and the last error of the others."""
        rows = read_rows(plan.output / RESULTS)
        by_cell = {row.cell: row for row in rows} | {row.cell: row for row in rows if row.is_ok}
        report = make_report(
            [by_cell[cell.key] for cell in wanted if cell.key in by_cell],
            "promptprior comparison",
            missing=sum(cell.key not in by_cell for cell in wanted),
            command=command,
            task_similarity=read_similarity(path),
            left_out=left_out,
            contrasts=plan.contrast_pairs(),
            published=plan.published,
            sweep=tuple(plan.swept()),
            answers=read_answers(answers_file) if plan.answers else None,
        )
        report.write_page(plan.output / PAGE)
        return report

    cluster: AbstractContextManager[object] = nullcontext()
    if plan.engine == "ray" and plan.address:  # before anything is written; one of this machine starts with its work
        from promptprior.compare.executors.ray_driver import ray_connection

        cluster = ray_connection(plan.address)
    with cluster, claimed(plan.output):
        done = _finished_keys(plan)
        finished = sum(cell.key in done for cell in wanted)
        need = 0
        for run in runs:
            settings = run.context.plan.resolved()
            prompt_bytes = 4 * settings.length * free_width(context.backbone, settings)
            cell_bytes = prompt_bytes + ROW_BYTES + ANSWER_BYTES * plan.answers
            need += sum(cell.key not in done for cell in run.cells) * cell_bytes
        check_room(plan.output, need)
        saved = replace(plan, settings=plan.resolved(), steps=None, sweep=plan.swept())
        save_plan(saved, plan.output / PLAN, "compare")
        write_json(plan.output / WANTED, asdict(Wanted(tuple(cell.key for cell in wanted), tuple(left_out))))
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
        left = work_left(runs)
        if again := sum(len(work.known) for _, works in left for work in works if isinstance(work, Group)):
            say(f"{again} finished cells run again beside missing ones of their group; their results stay as they are")
        for folder in {work.prior for _, works in left for work in works if isinstance(work, Group) and work.prior}:
            if is_fitted(folder):
                load_prior(folder, context.backbone.card)  # raises ArtifactError for a damaged one, before any work
        for work in (work for _, works in left for work in works):
            for file in sorted(work_folder(plan.output, work).rglob("state.json")):
                read_checkpoint(file)  # likewise
        answered: Collection[str] = ()  # cells; a kill may have come between their answers and rows
        if left and plan.answers:  # lines of answers name these
            examples = [ExampleSet.of(target.name, plan.test_of(target), plan.answers) for target in tasks.targets]
            kept = read_answers(answers_file)
            append_lines(answers_file, [example_line(one) for one in examples if one.key not in kept.sets])
            answered = kept.cells.keys()
        progress, start = progress or ProgressDisplay(say, total_tokens(left)), time.monotonic()
        after = progress.later
        for i, (run, works) in enumerate(left):
            if run.name:
                say(run.name)
            progress.later = after + total_tokens(left) - total_tokens(left[: i + 1])
            fitted_before = [work for work in works if isinstance(work, Fit) and is_fitted(work.folder)]
            to_do = [work for work in works if work not in fitted_before]
            _run_work(run.context, to_do, answered, write, progress)
        if left:
            say(f"finished in {duration(time.monotonic() - start)}")
        rows = read_rows(plan.output / RESULTS)
        good, failed = {row.cell for row in rows if row.is_ok}, {row.cell: row.error for row in rows if not row.is_ok}
        # a kill may have left checkpoints of finished work; those of other work stay
        for group in (group for run in runs for group in plan_groups(run.context.plan, run.cells)):
            for part in (group, *((cell,) for cell in group)):  # failed groups come again cell by cell
                if all(cell.key in good for cell in part):
                    remove_folder(plan.output / WORK / group_key(part))
        for cost in (plan.output / "priors").glob(f"*/{PRIOR_COST}"):
            remove_folder(cost.parent / "checkpoints")
        with suppress(OSError):  # not empty, or not there
            (plan.output / WORK).rmdir()
        report = write()
        errors = tuple(failed.get(cell.key, "no result") for cell in wanted if cell.key not in good)
    if errors:
        failed_cells = f"{len(errors)} of {len(wanted)} cells failed"
        report_failure(say, f"{failed_cells}; the same command tries them again. The first: {errors[0]}")
    for best in report.best:
        say(best["says"])
    return ComparisonOutcome(plan.output / PAGE, len(wanted), errors, tuple(report.best))


def preview(plan: Plan, backbone: Backbone | None = None) -> str:
    """A page on the fits and cells that are missing, with estimated tokens and time; runs nothing."""
    runs, done = load_plan(plan, backbone), _finished_keys(plan)
    context, wanted = runs[0].context, [cell for run in runs for cell in run.cells]
    tasks, card = context.tasks, context.backbone.card
    finished = sum(cell.key in done for cell in wanted)
    lines = [
        f"{len(wanted)} cells: {finished} finished before, {len(wanted) - finished} to run",
        f"backbone {card.name} ({card.fingerprint}), {context.backbone.frozen.dtype}",
        "sources: " + (", ".join(f"{s.name} ({len(s.split('train'))})" for s in tasks.sources) or "none"),
        "targets: " + ", ".join(f"{t.name} ({len(plan.test_of(t))} to test)" for t in tasks.targets),
    ]
    lines += dict.fromkeys(f"  left out: {line}" for run in runs for line in unserved(run.context.plan, tasks))
    lines += [f"  not in {plan.data}: {', '.join(tasks.missing)}"] if tasks.missing else []
    known = [row for row in read_rows(plan.output / RESULTS) if row.cell in {cell.key for cell in wanted}]
    lines += power_lines(plan, len(tasks.targets), known)
    left = work_left(runs)
    if not left:
        return "\n".join([*lines, "nothing to run; the report would be written again"])
    listed = set[str]()
    for run, works in left:
        lines += [f"{run.name}: {sum(cell.key not in done for cell in run.cells)} cells to run"] if run.name else []
        for work in works:
            if work.key in listed:
                continue
            listed.add(work.key)
            does = "fit" if isinstance(work, Fit) else f"adapt and test {len(work.cells)} cells"
            if isinstance(work, Group) and work.known:
                does += f" ({len(work.known)} of them finished, for the same batches)"
            lines.append(f"  {work.label}: {does} {work.tokens:,.0f} tokens")
    pace = tokens_per_second(context.backbone, tasks.targets[0], plan.resolved().length)
    total = total_tokens(left)
    time_needed = f"{duration(total / pace)} at {pace:,.0f} tokens a second in one process"
    return "\n".join([*lines, f"about {total:,.0f} tokens, {time_needed}"])


@dataclass(frozen=True, eq=False)
class Combination:
    """A plan without sweep, and its cells that no earlier combination has. A plain plan is one, its name empty."""

    name: str
    context: WorkerContext
    cells: tuple[Cell, ...]


def load_plan(plan: Plan, backbone: Backbone | None) -> list[Combination]:
    """What work is done with, and the cells that are wanted.

    Raises SpecError where no method can answer any target, and ArtifactError where files of others are in the way.
    """
    is_own = bool(read_rows(plan.output / RESULTS)) or is_plan_of(plan.output / PLAN, "compare")
    for name in (PLAN, PAGE):
        check_output(plan.output / name, "compare", (*plan.sources, *plan.targets), force=None, is_own=is_own)
    tasks, plans = load_tasks(plan), plan.combinations()
    for one in plans.values():
        left_out = unserved(one, tasks)
        if len(left_out) == len(plan.methods) * len(tasks.targets):
            raise SpecError(f"nothing to compare (--methods, --targets): {'; '.join(left_out)}")
    for target in tasks.targets:
        check_metrics(target, plan.test_limit, plan.test_rows)
    longest = max(plans.values(), key=lambda one: one.settings.length)
    backbone, length = backbone or load_backbone(longest), longest.settings.length
    for one in plans.values():
        check_start(backbone, one.resolved())
    for source in tasks.sources:
        check_lengths(backbone, source, source.split("train"), length)
    for target in tasks.targets:
        check_lengths(backbone, target, [*target.split("train"), *plan.test_of(target)], length)
    runs, seen = list[Combination](), set[str]()
    for name, one in plans.items():
        new = tuple(cell for cell in cells(one, tasks, backbone) if cell.key not in seen)
        runs.append(Combination(name, WorkerContext(one, tasks, backbone), new))
        seen |= {cell.key for cell in new}
    return runs


def work_left(runs: Sequence[Combination]) -> list[tuple[Combination, list[Work]]]:
    """The combinations that have work left, with that work; each has the fits that it needs, which others may share."""
    done = _finished_keys(runs[0].context.plan)  # of the folder that all write to
    left = [(run, remaining_work(run.context, run.cells, done)) for run in runs]
    return [(run, works) for run, works in left if works]


def total_tokens(left: Sequence[tuple[Combination, list[Work]]]) -> float:
    """The estimated tokens of all work that is left; a fit that several combinations share counts once."""
    return sum({work.key: work.tokens for _, works in left for work in works}.values())


def load_tasks(plan: Plan) -> Tasks:
    """The tasks of a plan, checked; sources lose the examples whose normalised text stands in a target.

    Raises SpecError for a task on both sides, and for two of one name: in tables they would be one. Raises DataError,
    naming all of them, where several names are not there and the plan does not allow it.
    """
    limits: dict[Split, int] | None = {"train": plan.train_limit} if plan.train_limit else None
    sides = {"sources": plan.sources, "targets": plan.targets}
    missing = {side: missing_tasks(names, plan.data) for side, names in sides.items()}
    absent, where = sorted({*missing["sources"], *missing["targets"]}), plan.data or "the catalogue"
    if len(absent) > 1 and not plan.allow_missing:  # of one, load_task says what names are near
        named = [f"{len(m)} of {len(sides[side])} {side} ({', '.join(m)})" for side, m in missing.items() if m]
        raise DataError(
            f"{where}: {' and '.join(named)} are not there; add their folders (--data), or go on without "
            "(--allow-missing)"
        )
    if plan.allow_missing:
        sides = {side: tuple(name for name in names if name not in absent) for side, names in sides.items()}
        if gone := [side for side, names in missing.items() if names and not sides[side]]:
            raise DataError(f"{where}: none of the {gone[0]} is there ({', '.join(missing[gone[0]])}; --data)")

    def prepared(task: Task) -> Task:
        task = halve_validation(task) if plan.splits == "halved" else task
        return index_labels(task) if plan.labels == "index" else task

    sources = [prepared(load_task(name, plan.data, limits)) for name in sides["sources"]]
    targets = [score_by(prepared(load_task(name, plan.data)), plan.metrics) for name in sides["targets"]]
    stray = sorted(set(plan.metrics) - {*plan.targets, *(task.name for task in targets)})
    if stray and plan.published is None:  # a preset has metrics for all its targets, and flags may name others
        raise SpecError(f"metrics of {', '.join(stray)} (--metrics): not among --targets")
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
        if not examples["train"]:  # all of its texts stand in targets
            continue
        cleaned.append(replace(source, examples=examples) if dropped else source)
    if sources and not cleaned:
        raise SpecError(f"{', '.join(left_out)} (--sources): every training text stands in a target; choose others")
    return Tasks(tuple(cleaned), tuple(targets), left_out, tuple(absent))


def _finished_keys(plan: Plan) -> set[str]:
    """Keys of the cells that have a good row on disk."""
    return {row.cell for row in read_rows(plan.output / RESULTS) if row.is_ok}


def _run_work(
    context: WorkerContext,
    left: list[Work],
    answered: Collection[str],
    write: Callable[[], object],
    progress: ProgressDisplay,
) -> None:
    """Do all work that is left, save what comes of it, and keep the report up to date. The answers of the cells
    `answered` are on disk already."""
    output, say = context.plan.output, progress.say
    queue = Queue(left, context.plan.retries)
    executor, report_seconds, report_end = run_locally, 0.0, -1e9
    if context.plan.engine == "ray":
        from promptprior.compare.executors.ray_driver import run_on_ray as executor
    elif context.plan.engine == "processes":
        from promptprior.compare.executors.process_pool import run_in_processes as executor
    with closing(progress), closing(executor(context, queue, progress)) as results:
        for work, result in results:
            queue.running.remove(work)
            has_new_rows = not isinstance(work, Fit)
            if isinstance(result, Failure):
                if result.is_disk:
                    raise DiskError(f"{work.label}: {result.error}; run the same command again: finished work is kept")
                given_up = queue.fail(work)
                again = "" if given_up else ", to be tried again"
                report_failure(say, f"{work.label}: failed{again}: {result.error}")
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
                for finished in new:  # prompts and answers come first: a row says that all of its cell is there
                    finished.prompt.save_pretrained(output / "prompts" / finished.row.cell)
                if kept := [asdict(f.answers) for f in new if f.answers and f.row.cell not in answered]:
                    append_lines(output / ANSWERS, kept)
                append_lines(output / RESULTS, [finished.row.to_json() for finished in new])
                remove_folder(work_folder(output, work))
            waiting = sum(work.tokens for work in [*queue.waiting, *queue.running])
            progress.done = max(0.0, progress.total - progress.later - waiting)
            progress.within = 0.0
            if has_new_rows and time.monotonic() - report_end >= report_seconds / REPORT_SHARE:
                report_start = time.monotonic()
                try:
                    write()
                except DiskError as error:  # results come first; the last report must be written
                    say(f"no report yet: {error}")
                report_end = time.monotonic()
                report_seconds = report_end - report_start
