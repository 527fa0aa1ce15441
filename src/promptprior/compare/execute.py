"""The work itself: fit a prior, or adapt and test the cells of a group. Runs in any process, and writes no results."""

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from promptprior.adapt import Adapted, adapt, diagnose, make_episode, score_on_test
from promptprior.artifacts.artifact import Prior, versions
from promptprior.compare.plan import Cell, Plan
from promptprior.compare.schedule import Fit, Group, WorkerContext
from promptprior.compare.store import Finished, Fitted
from promptprior.config.mapping import to_mapping
from promptprior.config.training import Settings
from promptprior.cost import Cost
from promptprior.evaluate import EvalResult
from promptprior.fit import RunControl, fit
from promptprior.methods import Episode
from promptprior.methods.shared.source_prompts import source_labels
from promptprior.notation import Params
from promptprior.report.results import BackboneName, CellCost, Parameters, Point, Row, ShotIds
from promptprior.watch import WatchStage, combine_watchers, tensorboard


def fit_prior(worker_context: WorkerContext, work: Fit, folder: Path, watch: WatchStage) -> Fitted:
    """Fit a prior, checkpointed and saved in a folder."""
    start = time.monotonic()
    settings = worker_context.plan.resolved()
    heard = watched(worker_context.plan, f"fit-{folder.name}", watch)
    prior = fit(
        work.method,
        worker_context.tasks.sources,
        worker_context.backbone,
        settings,
        work.seed,
        RunControl(folder, heard),
    )
    counted = prior.header.diagnostics["cost"]
    assert isinstance(counted, dict)
    cost = Cost(time.monotonic() - start, int(counted["rows"]), int(counted["tokens"]))
    return Fitted(replace(prior, params=on_cpu(prior.params)), cost)


def adapt_group(
    worker_context: WorkerContext,
    group: Group,
    fitted: Fitted | None,
    folder: Path,
    watch: WatchStage,
    testing: Callable[[], None],
) -> tuple[Finished, ...]:
    """Adapt the cells of a group together, then test them; the checkpoints in the folder go when all is done."""
    plan, backbone = worker_context.plan, worker_context.backbone
    settings = plan.resolved()
    episodes = [episode_of(cell, plan, settings) for cell in group.cells]
    prior, source = (fitted.prior, fitted.cost) if fitted else (None, Cost())
    heard = watched(plan, f"adapt-{group.method.name}-seed{group.seed}-{group.key[:8]}", watch)
    done = adapt(group.method, episodes, backbone, prior, settings, RunControl(folder, heard))
    testing()
    results = score_on_test(backbone, done, plan.test_limit)
    told = diagnose(backbone, done, worker_context.tasks.sources)
    shutil.rmtree(folder, ignore_errors=True)
    return tuple(
        Finished(
            good_row(worker_context, cell, adapted, evaluate_requests, source, {**prior_numbers(prior), **says}),
            replace(adapted.prompt, params=on_cpu(adapted.prompt.params)),
        )
        for cell, adapted, evaluate_requests, says in zip(group.cells, done, results, told, strict=True)
    )


def episode_of(cell: Cell, plan: Plan, settings: Settings) -> Episode:
    """The episode of a cell. A method that uses no shots is given the plan's first ones, which it does not see."""
    return make_episode(cell.target, cell.k or plan.shots[0], cell.seed or plan.seeds[0], settings.dev_limit)


def prior_numbers(prior: Prior | None) -> dict[str, object]:
    """What a prior says of itself in plain numbers, by topic, as the topic "prior" of the results that start from it.

    Curves, maps and words stay with the prior; its cost stands in the row already.
    """
    told = dict(prior.header.diagnostics) if prior else {}
    told.pop("cost", None)
    topics = {name: numbers_in(value) if isinstance(value, Mapping) else value for name, value in told.items()}
    kept = {name: value for name, value in topics.items() if value and isinstance(value, int | float | Mapping)}
    return {"prior": kept} if kept else {}


def numbers_in(topic: Mapping[str, object]) -> dict[str, int | float]:
    """The plain numbers of one topic."""
    return {name: value for name, value in topic.items() if isinstance(value, int | float)}


def watched(plan: Plan, name: str, watch: WatchStage) -> WatchStage:
    """Who watches, and TensorBoard where the plan names a folder."""
    return watch if plan.tensorboard is None else combine_watchers([watch, tensorboard(plan.tensorboard / name)])


def on_cpu(params: Params) -> Params:
    """Parameters that can be sent to a machine without a GPU."""
    with torch.no_grad():
        return {name: value.detach().cpu() for name, value in params.items()}


def good_row(
    worker_context: WorkerContext,
    cell: Cell,
    adapted: Adapted,
    evaluate_requests: EvalResult,
    source: Cost,
    diagnostics: Mapping[str, object],
) -> Row:
    """The row of a finished cell."""
    metric = cell.target.metrics[0]
    blank = failed_row(worker_context, cell, "")
    shots = adapted.episode.shots
    stored = sum(p.numel() for p in adapted.prompt.params.values())
    ids = ShotIds(tuple(e.id for e in shots.train), tuple(e.id for e in shots.dev)) if cell.k else ShotIds((), ())
    return replace(
        blank,
        score=float(evaluate_requests.scores[metric]),
        scores={name: float(value) for name, value in evaluate_requests.scores.items()}
        | {"answer_nll": evaluate_requests.nll},
        dev_score=adapted.dev_score if cell.k else None,
        steps=max(point["step"] for point in adapted.curve),
        best_step=adapted.best_step if cell.k else None,
        curve=tuple(Point(**point) for point in adapted.curve) if cell.k else (),
        settings={**blank.settings, "learning_rate": adapted.learning_rate},
        cost=CellCost.of(adapted.cost, source),
        parameters=Parameters(adapted.trainable, stored),
        shots=ids,
        diagnostics=diagnostics,
        status="ok",
        error="",
    )


def failed_row(worker_context: WorkerContext, cell: Cell, error: str) -> Row:
    """The row of a cell that failed: everything but a score."""
    plan, card, target = worker_context.plan, worker_context.backbone.card, cell.target
    dtype = str(worker_context.backbone.frozen.dtype)
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
        settings={**flat_settings(plan), "method": to_mapping(cell.method), "dtype": dtype},
        cost=CellCost.of(Cost(), Cost()),
        parameters=Parameters(0, 0),
        sources=source_labels(cell.method, worker_context.tasks.sources),
        n_test=len(target.split("test")[: plan.test_limit]),
        backbone=BackboneName(card.name, card.fingerprint),
        shots=ShotIds((), ()),
        versions={name: str(value) for name, value in versions().items()},
        status="failed",
        error=error,
    )


def flat_settings(plan: Plan) -> dict[str, object]:
    """The settings a cell ran with, as plain values."""
    return {**to_mapping(plan.resolved()), "source_seed": plan.source_seed}
