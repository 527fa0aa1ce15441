"""Running a comparison: fit each method's prior per seed, adapt all its episodes as copies of one run, test, write.

Results are one JSON line per cell in results.jsonl, written as soon as they are known. Killed at any moment and started
again, finished cells are kept, and the run at hand resumes from its checkpoint.
"""

import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from promptprior.adapt import Adapted, adapt, diagnosed, make_episode, score_on_test
from promptprior.backbone import Backbone, load
from promptprior.compare.estimate import cell_cost, source_cost
from promptprior.compare.plan import RESULTS_VERSION, Cell, Plan, Tasks, cells, separated
from promptprior.compare.progress import Progress, Say, duration, say_to_stderr
from promptprior.compare.report import write_report
from promptprior.compare.rows import BackboneName, Cost, Parameters, Point, Row, ShotIds, read_rows
from promptprior.config import dump_yaml, stable_hash, to_mapping
from promptprior.errors import PromptpriorError
from promptprior.evaluate import Marks
from promptprior.files import append_line, read_json, write_json, write_text
from promptprior.fit import fit, source_settings
from promptprior.methods import Method, source_stage
from promptprior.prompts.artifact import Prior, versions
from promptprior.tasks import Split, load_task

RESULTS, REPORT = "results.jsonl", "report.html"


def compare(plan: Plan, backbone: Backbone | None = None, say: Say = say_to_stderr, command: str = "") -> Path:
    """Run what is missing of a plan and write its report; returns the path of report.html.

    Everything that can be wrong with settings, tasks and backbone is found before the first step. A cell that fails is
    recorded with its error and tried again by the next call; other cells go on.
    """
    tasks = load_tasks(plan)
    backbone = backbone or load(plan.backbone, plan.dtype, plan.device)
    wanted = cells(plan, tasks, backbone)
    plan.output.mkdir(parents=True, exist_ok=True)
    write_text(plan.output / "plan.yaml", dump_yaml(plan))
    for name, count in tasks.left_out.items():
        say(f"source {name}: {count} training examples left out because a target holds the same text")
    done = finished(plan.output, wanted)
    missing = [cell for cell in wanted if cell.key not in done]
    say(f"{len(wanted)} cells: {len(done)} finished before, {len(missing)} to run")
    run_groups(plan, tasks, backbone, missing, wanted, say, command)
    return report(plan, wanted, command)


def load_tasks(plan: Plan) -> Tasks:
    """The tasks of a plan, checked, and sources cleaned of the targets' texts."""
    limits: dict[Split, int] | None = {"train": plan.train_limit} if plan.train_limit else None
    sources = [load_task(name, plan.data, limits) for name in plan.sources]
    targets = [load_task(name, plan.data) for name in plan.targets]
    for target in targets:
        target.split("test")
    return separated(sources, targets)


def finished(output: Path, wanted: Sequence[Cell]) -> dict[str, Row]:
    """The good rows of these cells that are on disk; of several for one cell the last."""
    path = output / RESULTS
    rows = read_rows(path) if path.exists() else ()
    keys = {cell.key for cell in wanted}
    return {row.cell: row for row in rows if row.is_ok and row.cell in keys}


def report(plan: Plan, wanted: Sequence[Cell], command: str) -> Path:
    """The report of what is on disk of these cells: good rows, and the last error of the others."""
    done = finished(plan.output, wanted)
    keys = {cell.key for cell in wanted} - set(done)
    failed = {row.cell: row for row in read_rows(plan.output / RESULTS) if row.cell in keys}
    return write_report(
        [*done.values(), *failed.values()],
        plan.output / REPORT,
        "promptprior comparison",
        expected=len(wanted),
        command=command,
    )


def run_groups(
    plan: Plan, tasks: Tasks, backbone: Backbone, missing: list[Cell], wanted: list[Cell], say: Say, command: str
) -> None:
    """Run the missing cells, those of one method and seed together, and refresh the report after each group."""
    if not missing:
        return
    groups = grouped(plan, tasks, backbone, missing)
    progress = Progress(sum(g.fitting + g.adapting for g in groups), backbone, say)
    for group in groups:
        try:
            run_group(plan, tasks, backbone, group, progress)
        except (PromptpriorError, RuntimeError) as error:
            say(f"{group.method.name}, seed {group.seed}: failed: {error}")
            for cell in group.cells:
                append_line(plan.output / RESULTS, failed_row(plan, tasks, backbone, cell, error).to_json())
        report(plan, wanted, command)
    say(f"all done in {duration(time.monotonic() - progress.started)}")


def prior_folder(plan: Plan, tasks: Tasks, backbone: Backbone, method: Method, seed: int) -> Path:
    """Where the prior of a method and seed is kept. Another setting of the source stage has another folder; methods
    and settings that differ only on targets share one."""
    stage = source_stage(method)
    key = stable_hash(
        [
            RESULTS_VERSION,
            backbone.card.fingerprint,
            str(backbone.frozen.dtype),
            to_mapping(stage),
            to_mapping(source_settings(plan.resolved())),
            [s.fingerprint for s in tasks.sources],
        ]
    )
    return plan.output / "priors" / f"{stage.name}-seed{seed}-{key[:8]}"


@dataclass(frozen=True)
class Group:
    """Missing cells of one method and seed, and estimated tokens: of fitting their prior, 0 if it is there or fitted
    for an earlier group, and of adapting and testing them."""

    method: Method
    seed: int
    cells: list[Cell]
    fitting: float
    adapting: float


def grouped(plan: Plan, tasks: Tasks, backbone: Backbone, missing: Sequence[Cell]) -> list[Group]:
    """The missing cells by method and seed, in order."""
    groups: list[Group] = []
    there: set[Path] = set()
    settings = plan.resolved()
    for (method, seed), group in groupby(missing, lambda c: (c.method, c.seed)):
        some = list(group)
        folder = prior_folder(plan, tasks, backbone, method, plan.prior_seed(seed))
        fits = method.needs_sources and folder not in there and not (folder / "cost.json").exists()
        there.add(folder)
        source = source_cost(backbone, tasks.sources, settings.source, settings.length) if fits else 0.0
        groups.append(Group(method, seed, some, source, sum(cell_cost(backbone, cell, plan) for cell in some)))
    return groups


def run_group(plan: Plan, tasks: Tasks, backbone: Backbone, group: Group, progress: Progress) -> None:
    """Fit, adapt, test and write down the cells of one method and seed."""
    method, seed, some = group.method, group.seed, group.cells
    label = f"{method.name}, seed {seed}" if seed else method.name
    prior, source = fitted(plan, tasks, backbone, method, plan.prior_seed(seed), label, group.fitting, progress)
    episodes = [make_episode(cell.target, cell.k or plan.shots[0], cell.seed or plan.seeds[0]) for cell in some]
    work = plan.output / "work" / stable_hash([cell.key for cell in some])
    watch, over = progress.stage(label, group.adapting)
    done = adapt(method, episodes, backbone, prior, plan.resolved(), work, watch)
    progress.tell(f"{label} · testing", group.adapting, force=True)
    marks = score_on_test(backbone, done, plan.test_limit)
    told = diagnosed(backbone, done, tasks.sources)
    for cell, adapted, mark, says in zip(some, done, marks, told, strict=True):
        adapted.prompt.save_pretrained(plan.output / "prompts" / cell.key)
        row = replace(good_row(plan, tasks, backbone, cell, adapted, mark, source), diagnostics=says)
        append_line(plan.output / RESULTS, row.to_json())
    shutil.rmtree(work, ignore_errors=True)
    over()


def fitted(
    plan: Plan,
    tasks: Tasks,
    backbone: Backbone,
    method: Method,
    seed: int,
    label: str,
    cost: float,
    progress: Progress,
) -> tuple[Prior | None, dict[str, float]]:
    """The prior of a method and seed, fitted or loaded, and what fitting it cost."""
    free = {"seconds": 0.0, "rows": 0, "tokens": 0}
    if not method.needs_sources:
        return None, free
    folder = prior_folder(plan, tasks, backbone, method, seed)
    if (folder / "cost.json").exists():
        return Prior.from_pretrained(folder / "prior", backbone.card), read_json(folder / "cost.json")
    watch, over = progress.stage(label, cost)
    start = time.monotonic()
    prior = fit(source_stage(method), tasks.sources, backbone, plan.resolved(), seed, folder, watch)
    counted = prior.header.diagnostics["cost"]
    assert isinstance(counted, dict)
    spent = {**counted, "seconds": time.monotonic() - start}
    write_json(folder / "cost.json", spent)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    over()
    return prior, spent


def good_row(
    plan: Plan,
    tasks: Tasks,
    backbone: Backbone,
    cell: Cell,
    adapted: Adapted,
    mark: Marks,
    source: dict[str, float],
) -> Row:
    """The row of a finished cell."""
    metric = cell.target.metrics[0]
    blank = failed_row(plan, tasks, backbone, cell, None)
    shots = adapted.episode.shots
    stored = sum(p.numel() for p in adapted.prompt.params.values())
    ids = ShotIds(tuple(e.id for e in shots.train), tuple(e.id for e in shots.dev)) if cell.k else ShotIds((), ())
    return replace(
        blank,
        score=float(mark.scores[metric]),
        scores={name: float(value) for name, value in mark.scores.items()} | {"answer_nll": mark.nll},
        dev_score=adapted.dev_score if cell.k else None,
        steps=max(point["step"] for point in adapted.curve),
        best_step=adapted.best_step if cell.k else None,
        curve=tuple(Point(**point) for point in adapted.curve) if cell.k else (),
        settings={**blank.settings, "learning_rate": adapted.learning_rate},
        cost=Cost(
            adapted.seconds,
            adapted.rows,
            adapted.tokens,
            float(source["seconds"]),
            int(source["rows"]),
            int(source["tokens"]),
        ),
        parameters=Parameters(adapted.trainable, stored),
        shots=ids,
        status="ok",
        error="",
    )


def failed_row(plan: Plan, tasks: Tasks, backbone: Backbone, cell: Cell, error: Exception | None) -> Row:
    """The row of a cell that failed: everything but a score."""
    target = cell.target
    return Row(
        cell=cell.key,
        method=cell.method.name,
        target=target.name,
        family=target.family,
        k=cell.k,
        seed=cell.seed,
        split="test",
        metric=target.metrics[0],
        score=None,
        scores={},
        dev_score=None,
        steps=0,
        best_step=None,
        curve=(),
        settings={**flat_settings(plan), "method": to_mapping(cell.method), "dtype": str(backbone.frozen.dtype)},
        cost=Cost(0.0, 0, 0, 0.0, 0, 0),
        parameters=Parameters(0, 0),
        sources=tuple(s.name for s in tasks.sources) if cell.method.needs_sources else (),
        n_test=len(target.split("test")[: plan.test_limit]),
        backbone=BackboneName(backbone.card.name, backbone.card.fingerprint),
        shots=ShotIds((), ()),
        versions={name: str(value) for name, value in versions().items()},
        status="failed",
        error=f"{type(error).__name__}: {error}",
    )


def flat_settings(plan: Plan) -> dict[str, object]:
    """The settings a cell ran with, as plain values."""
    return {**to_mapping(plan.resolved()), "source_seed": plan.source_seed}


def command_line() -> str:
    """The command that this process was started with, for reports."""
    return " ".join(["promptprior", *sys.argv[1:]])
