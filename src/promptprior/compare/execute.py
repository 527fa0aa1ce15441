"""The work itself: fit a prior, or adapt and test the cells of a group. Runs in any process, and writes no results."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from traceback import extract_tb
from typing import Any

from promptprior.adapt import adapt, answers_on_test, diagnose, make_episode
from promptprior.artifacts.artifact import Prior, Prompt, versions
from promptprior.backbone import BackboneCard
from promptprior.compare.plan import Cell
from promptprior.compare.progress import step_text
from promptprior.compare.schedule import PRIOR_COST, Fit, Group, Work, WorkerContext, prior_folder
from promptprior.config.mapping import from_mapping, to_mapping
from promptprior.cost import Cost
from promptprior.errors import ArtifactError, DiskError, PromptpriorError, SpecError
from promptprior.files import read_json
from promptprior.fit import RunControl, fit
from promptprior.methods.shared.source_prompts import source_labels
from promptprior.report.examples.kept_answers import CellAnswers, ExampleSet
from promptprior.report.results import BackboneName, CellCost, Parameters, Point, Row, ShotIds
from promptprior.rules.rule import Info
from promptprior.tasks.metrics import best_constant
from promptprior.train import read_checkpoint
from promptprior.watch import WatchStage, combine_watchers, step_logs

CHOICE_NUMBERS = ("score", "error", "nll", "seconds", "weight")  # of each candidate of a method that chooses

OnProgress = Callable[[str, float], None]
"""Called with what a piece of work does at the moment, and the share of it that is done."""


@dataclass(frozen=True)
class FittedPrior:
    """A prior, and what fitting it cost."""

    prior: Prior
    cost: Cost


@dataclass(frozen=True)
class FinishedCell:
    """A cell's result, its prompt, and its answers to single examples where they are kept."""

    row: Row
    prompt: Prompt
    answers: CellAnswers | None


@dataclass(frozen=True)
class Failure:
    """Why work failed, in a line; and whether a disk refused, so that all other work would fail too."""

    error: str
    is_disk: bool = False


Result = FittedPrior | tuple[FinishedCell, ...] | Failure


def do_work(
    context: WorkerContext, work: Work, fitted: FittedPrior | None, folder: Path, on_progress: OnProgress
) -> Result:
    """Do a piece of work, checkpointed in a folder. A failure of any kind is a result too: other work goes on."""

    def tell(stage: str, step: int, steps: int, info: Info) -> None:
        # Probing comes before the stage that counts.
        share = 0.0 if stage.endswith("probe") else step / max(steps, 1)
        on_progress(step_text(stage, step, steps, info), share)

    try:
        plan, log = context.plan, f"adapt-{work.method.name}-seed{work.seed}-{work.key[:8]}"
        log = f"fit-{folder.name}" if isinstance(work, Fit) else log
        logs = step_logs(plan.tensorboard, plan.mlflow, plan.output, log)
        watch = combine_watchers([lambda stage: partial(tell, stage), *logs])
        if isinstance(work, Group):
            return _adapt_group(context, work, fitted, folder, watch, on_progress)
        start, sources, settings = time.monotonic(), context.tasks.sources, context.plan.resolved()
        stages = sorted((folder / "checkpoints").glob("*/state.json"))
        earlier = sum(read_checkpoint(stage).spent.seconds for stage in stages)  # of runs that were killed
        prior = fit(work.method, sources, context.backbone, settings, work.seed, RunControl(folder, watch))
        counted: Any = prior.header.diagnostics["cost"]
        seconds = earlier + time.monotonic() - start
        cost = Cost(seconds, int(counted["rows"]), int(counted["tokens"]))
        on_cpu = {name: value.detach().cpu() for name, value in prior.params.items()}  # to be sent without a GPU
        return FittedPrior(replace(prior, params=on_cpu), cost)
    except DiskError as error:
        return Failure(str(error), is_disk=True)
    except Exception as error:  # an interruption is none
        text = f"{type(error).__name__}: {error}"
        if not isinstance(error, PromptpriorError) and error.__traceback__ is not None:
            place = extract_tb(error.__traceback__)[-1]
            text += f" ({Path(place.filename).name}, line {place.lineno})"
        return Failure(text)


def _adapt_group(
    context: WorkerContext,
    group: Group,
    fitted: FittedPrior | None,
    folder: Path,
    watch: WatchStage,
    on_progress: OnProgress,
) -> tuple[FinishedCell, ...]:
    """Adapt the cells of a group together, then test them. Its checkpoints stay until its results are on disk."""
    plan, backbone, settings = context.plan, context.backbone, context.plan.resolved()
    # A method that uses no shots is given the plan's first ones, which it does not see.
    draws = [(cell.k, cell.seed) if cell.k else (plan.shots[0], plan.seeds[0]) for cell in group.cells]
    episodes = [make_episode(cell.target, *draw, settings) for cell, draw in zip(group.cells, draws, strict=True)]
    prior, source_cost = (fitted.prior, fitted.cost) if fitted else (None, Cost())
    episodes_adapted = adapt(group.method, episodes, backbone, prior, settings, RunControl(folder, watch))
    on_progress("testing", 1.0)
    all_answers = answers_on_test(backbone, episodes_adapted, plan.test_limit, plan.test_rows)
    targets = {cell.target.fingerprint: cell.target for cell in group.cells}
    tests = {key: plan.test_of(target) for key, target in targets.items()}
    constants = {key: best_constant(target, tests[key]) for key, target in targets.items()}
    kept = {key: ExampleSet.of(t.name, tests[key], plan.answers) for key, t in targets.items() if plan.answers}
    diagnostics = diagnose(backbone, episodes_adapted, context.tasks.sources)

    # Rows repeat the plain numbers of their prior's diagnostics. Curves, maps and words stay with the prior.
    prior_numbers: dict[str, object] = {}
    for topic, value in (prior.header.diagnostics if prior else {}).items():
        if isinstance(value, Mapping):
            value = {name: number for name, number in value.items() if isinstance(number, int | float)}
        if topic != "cost" and value and isinstance(value, int | float | Mapping):  # the row has the cost already
            prior_numbers[topic] = value
    about_prior = {"prior": prior_numbers} if prior_numbers else {}

    finished = []
    for cell, adapted, answers, own in zip(group.cells, episodes_adapted, all_answers, diagnostics, strict=True):
        result, key = answers.result, cell.target.fingerprint
        blank, shots = failed_row(context, cell, ""), adapted.episode.shots
        about_choice: Any = adapted.prompt.header.scores.get("auto")  # numbers by candidate, and which was chosen
        if about_choice:
            lines = {line["method"]: {n: line[n] for n in CHOICE_NUMBERS} for line in about_choice["leaderboard"]}
            chosen, not_run = about_choice["chosen"], about_choice["not_run"]
            own = {**own, "auto": {"chosen": chosen, "leaderboard": lines, "not_run": not_run}}
        row = replace(
            blank,
            score=float(result.scores[blank.metric]),
            scores={**{name: float(value) for name, value in result.scores.items()}, "answer_nll": result.nll},
            dev_score=adapted.dev_score if cell.k else None,
            steps=max(point["step"] for point in adapted.curve),
            best_step=adapted.best_step if cell.k else None,
            curve=tuple(Point(**point) for point in adapted.curve) if cell.k else (),
            settings={**blank.settings, "learning_rate": adapted.learning_rate},
            cost=CellCost.of(adapted.cost, source_cost),
            parameters=Parameters(adapted.trainable, sum(p.numel() for p in adapted.prompt.params.values())),
            shots=ShotIds(tuple(e.id for e in shots.train), tuple(e.id for e in shots.dev)) if cell.k else blank.shots,
            diagnostics={**about_prior, **own},
            constant=constants[key],
            status="ok",
        )
        on_cpu = {name: value.detach().cpu() for name, value in adapted.prompt.params.items()}
        of_cell = CellAnswers.of(cell.key, tests[key], answers.predictions, kept[key]) if kept else None
        finished.append(FinishedCell(row, replace(adapted.prompt, params=on_cpu), of_cell))
    return tuple(finished)


def failed_row(context: WorkerContext, cell: Cell, error: str) -> Row:
    """The row of a cell that failed: everything but a score.

    `settings["prior"]` is the id of the prior it would start from: the name of its folder, `METHOD-seedN-HASH`.
    """
    plan, card, target, method = context.plan, context.backbone.card, cell.target, cell.method
    settings = {
        **to_mapping(plan.resolved()),
        "source_seed": plan.source_seed,
        "method": to_mapping(method, complete=True),  # an option that can be swept has its value in every row
        "dtype": str(context.backbone.frozen.dtype),
    }
    if method.needs_sources:
        settings["prior"] = prior_folder(context, method, plan.prior_seed(cell.seed)).name
    return Row(
        cell=cell.key,
        method=method.name,
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
        settings=settings,
        cost=CellCost.of(Cost(), Cost()),
        parameters=Parameters(0, 0),
        sources=source_labels(method, context.tasks.sources),
        n_test=len(plan.test_of(target)),
        backbone=BackboneName(card.name, card.fingerprint),
        shots=ShotIds((), ()),
        versions={name: str(value) for name, value in versions().items()},
        status="failed",
        error=error,
    )


def load_prior(folder: Path | None, backbone: BackboneCard) -> FittedPrior | None:
    """A prior that was saved; None for none. Raises ArtifactError when it is damaged or of another backbone."""
    if folder is None:
        return None
    file = folder / PRIOR_COST
    recorded = read_json(file)
    if not isinstance(recorded, dict) or recorded.keys() != Cost.__dataclass_fields__.keys():
        raise ArtifactError(f"{file}: expected seconds, rows and tokens; delete {folder} to fit this prior again")
    try:
        cost = from_mapping(Cost, recorded, str(file))
    except SpecError as error:
        raise ArtifactError(f"{error}; delete {folder} to fit this prior again") from error
    return FittedPrior(Prior.from_pretrained(folder / "prior", backbone), cost)
