"""Episodes of a method as copies of one training run, with what follows it: folds and refit, heads, cost.

With `Settings.folds` dev shots teach as well (folds.py): in fold episodes, which choose, and then in a refit of what
was chosen.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from promptprior.adaptation.adapted import Adapted
from promptprior.adaptation.fit_head import fit_heads
from promptprior.adaptation.folds import (
    Way,
    answer_held_out,
    fold_episodes,
    jackknife_error,
)
from promptprior.adaptation.held_out import HeldOut, held_out_score
from promptprior.adaptation.runs import FinishedRun, check_adaptation, initial_adaptation, run_all_ways, run_of_copies
from promptprior.artifacts.artifact import Prior, Prompt
from promptprior.backbone import Backbone
from promptprior.config.mapping import to_mapping
from promptprior.cost import Cost
from promptprior.errors import SpecError
from promptprior.evaluate import prompt_objective
from promptprior.heads.fitted import PREFIX
from promptprior.heads.head import Head
from promptprior.heads.named_heads import NAMED_HEADS
from promptprior.methods import AdaptationInit, Episode, Recipe, RunContext
from promptprior.notation import Float, Params, Tensor
from promptprior.objectives.weight_objective import objective_of
from promptprior.parameterisations.registry import Form, folded, plain_settings
from promptprior.processes import add_up
from promptprior.rules.stopping import StopCopies
from promptprior.tasks.sampling.draws import Shots
from promptprior.train import Best, Run, Trained


def adapt_as_copies(
    method: Recipe, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode]
) -> list[Adapted]:
    """Adapt episodes as copies of one run; what the method trains to find where they start is part of the cost."""
    costs: list[Cost] = []

    def train_and_count(run: Run, stage: str) -> Trained:
        trained = context.train(run, stage)
        costs.append(trained.cost)
        return trained

    counting = replace(context, train=train_and_count)
    if context.settings.folds:
        init, adapted = _adapt_with_folds(method, counting, priors, episodes, costs)
    else:
        finished = run_all_ways(method, counting, priors, episodes)
        init, adapted = finished.init, [finished.best_of(e, episode) for e, episode in enumerate(episodes)]
    if (head := recipe_head(method, init)) is not None:
        with counted(context.backbone, costs):
            adapted = _with_fitted_heads(head, context.backbone, adapted)
    cost = sum(costs, Cost()).shared_by(len(episodes))
    return [replace(one, cost=cost) for one in adapted]


@contextmanager
def counted(backbone: Backbone, costs: list[Cost]) -> Iterator[None]:
    """Adds to `costs` what is read and how long it takes inside."""
    start, meter = time.monotonic(), backbone.meter
    before = torch.tensor([meter.rows, meter.tokens])
    yield
    read = torch.tensor([meter.rows, meter.tokens]) - before
    add_up([read])
    costs.append(Cost(time.monotonic() - start, *read.tolist()))


def with_head(method: Recipe, backbone: Backbone, adapted: Adapted) -> Adapted:
    """What another method has trained, as `method` answers with it, which differs from that one in its head alone. Its
    cost is that of the head."""
    head, costs, header = NAMED_HEADS[method.head], list[Cost](), adapted.prompt.header
    header = replace(header, method=method.name, settings={**header.settings, "method": to_mapping(method)})
    bare = replace(adapted, prompt=Prompt(header, adapted.prompt.params), out_of_fold=())
    with counted(backbone, costs):
        [headed] = _with_fitted_heads(head, backbone, [bare])
    return replace(headed, cost=sum(costs, Cost()))


def _with_fitted_heads(head: Head, backbone: Backbone, adapted: Sequence[Adapted]) -> list[Adapted]:
    """Adapted prompts of one form, each with a head that all its shots have taught.

    Dev scores are the head's, out of fold. Without folds they are those of a head that the training shots alone have
    taught, or, where these have taught the prompt as well, of heads that other dev shots have taught with them. They
    are the one point of the curve where nothing was trained.
    """
    objective = prompt_objective(adapted[0].prompt, backbone)
    params = {n: torch.cat([a.prompt.params[n] for a in adapted]) for n in adapted[0].prompt.params}
    fitted = fit_heads(head, objective, params, [a.episode for a in adapted])
    headed = []
    for a, one in zip(adapted, fitted, strict=True):
        header = a.prompt.header
        answers = a.out_of_fold or (one.on_dev if a.learning_rate is None else one.on_dev_folds)
        value = held_out_score(a.episode.task, answers)
        said = header.scores["dev"]
        header = replace(
            header,
            head=head.name,
            head_settings=to_mapping(head),
            choices=a.episode.shots.train[0].choices,
            scores={**header.scores, "dev": {**said, "dev_score": value}},  # type: ignore[dict-item]
        )
        own = {PREFIX + n: v[None].clone(memory_format=torch.contiguous_format) for n, v in one.head.params.items()}
        prompt = Prompt(header, {**a.prompt.params, **own})
        taught = sum(number.numel() for number in one.head.params.values())
        nll = float(np.mean([answer.right_nll for answer in answers])) if answers else None
        curve = a.curve or ({"step": 0, "train_loss": None, "dev_score": value, "dev_nll": nll},)
        headed.append(
            replace(
                a,
                prompt=prompt,
                dev_score=value,
                curve=curve,
                trainable=a.trainable + taught,
                out_of_fold=tuple(answers),
            )
        )
    return headed


def _adapt_with_folds(
    method: Recipe, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode], costs: list[Cost]
) -> tuple[AdaptationInit, list[Adapted]]:
    """Choose by dev or by cross-validation, answer what was held out, and train again on all examples (folds.py).

    What answering reads is added to `costs`; training adds its own.
    """
    backbone = context.backbone
    parts = [fold_episodes(episode, context.settings.folds) for episode in episodes]
    held = [part for own in parts for part in own]
    places = [0, *accumulate(map(len, parts))][:-1]  # of each episode's first part
    if method.adapts_one_by_one and len(held) > 1:
        finished = _run_fold_by_fold(method, context, priors, held)
        ways, answering = [finished.ways_of(0)], list[tuple[Form, Params, list[Episode]]]()
        for f, part in enumerate(held):  # at the step that all folds chose, which only now is known
            init, params = _train_chosen(method, _in_stage(context, f"fold{f}-again"), priors, [part], ways)
            answering.append((init.parameterisation, params, [part]))
    else:
        of_parts = [prior for prior, own in zip(priors, parts, strict=True) for _ in own] if priors else []
        finished = run_all_ways(method, context, of_parts, held, [len(own) for own in parts])
        ways = [finished.ways_of(place) for place in places]
        rows = [copy for place in range(len(held)) for copy in finished.members(place)]
        answering = [(finished.init.parameterisation, {n: v[rows] for n, v in finished.done.params.items()}, held)]

    size, answers, head = finished.init.ensemble_size, list[Sequence[HeldOut]](), recipe_head(method, finished.init)
    with counted(backbone, costs):
        for form, params, asked in answering:
            objective = objective_of(backbone, form)
            if head is None:
                answers += answer_held_out(objective, params, asked, size)
            else:
                answers += [one.on_dev for one in fit_heads(head, objective, params, asked)]

    wholes = []  # all their examples teach; they are dev too, for an `init` that asks dev where to start
    for episode in episodes:
        every = (*episode.shots.train, *episode.shots.dev)
        wholes.append(replace(episode, shots=Shots(every, every)))
    init, params = _train_chosen(method, _in_stage(context, "refit"), priors, wholes, ways)
    adapted = []
    for e, (episode, place) in enumerate(zip(episodes, places, strict=True)):
        one = finished.best_of(place, episode)
        form, own = folded(init.parameterisation, {n: v[e * size : (e + 1) * size].clone() for n, v in params.items()})
        given = {a.example.id: a for part in answers[place : place + len(parts[e])] for a in part}
        out_of_fold = tuple(given[x.id] for x in wholes[e].shots.train if x.id in given)
        error, header = jackknife_error(episode.task, out_of_fold), one.prompt.header
        variant = init.variants[max(ways[e], key=lambda way: way.standing).variant]
        said: Any = header.scores["dev"]
        about = {**said, **variant, "dev_error": error, "folds": len(parts[e])}
        header = replace(
            header,
            parameterisation=form.name,
            parameterisation_settings=plain_settings(form),
            scores={**header.scores, "dev": about},
        )
        prompt = Prompt(header, own)
        adapted.append(replace(one, prompt=prompt, variant=variant, dev_error=error, out_of_fold=out_of_fold))
    return init, adapted


def _in_stage(context: RunContext, name: str) -> RunContext:
    """The same context with a name before each stage's: its checkpoints have folders of their own."""
    return replace(context, train=lambda run, stage: context.train(run, f"{name}-{stage}"))


def _run_fold_by_fold(
    method: Recipe, context: RunContext, priors: Sequence[Prior], folds: Sequence[Episode]
) -> FinishedRun:
    """The folds of one episode, each in a run of its own, as one run of which dev says the mean over folds.

    The best step of each copy is found in their histories (dev scores and NLL of six digits), by score, then NLL, until
    `patience` evaluations in a row were no better. A fold cannot know that, so it is applied when all are known.
    `best.params` and `params` are the first fold's alone.
    """
    target, patience = context.settings.target, context.settings.target.patience
    patient = replace(context, settings=replace(context.settings, target=replace(target, patience=None)))
    runs = [run_all_ways(method, _in_stage(patient, f"fold{f}"), priors, [fold]) for f, fold in enumerate(folds)]
    first = runs[0].done
    if first.best is None:  # dev was not asked
        return replace(runs[0], context=context)
    by_step = [{line["step"]: line for line in run.done.history if "dev_nll" in line} for run in runs]
    history, best = [], list[tuple[float, float, int, int]]()  # of each copy: score, -NLL, step, evaluations since
    for line in first.history:
        if "dev_nll" in line:
            scores, nlls = (
                [sum(values) / len(runs) for values in zip(*(own[line["step"]][name] for own in by_step), strict=True)]
                for name in ("dev_merit", "dev_nll")
            )
            line = {**line, "dev_merit": scores, "dev_nll": nlls}
            now = [(score, -nll, line["step"], 0) for score, nll in zip(scores, nlls, strict=True)]
            best = [
                new if (patience is None or old[3] < patience) and new[:2] > old[:2] else (*old[:3], old[3] + 1)
                for new, old in zip(now, best or [(-math.inf, 0.0, 0, 0)] * len(now), strict=True)
            ]
        history.append(line)
    merits, minus_nll, steps, waited = zip(*best, strict=True)
    chosen = Best(
        params=first.best.params, step=steps, score=merits, nll=tuple(-value for value in minus_nll), waited=waited
    )
    return replace(runs[0], context=context, done=replace(first, best=chosen, history=history))


def _train_chosen(
    method: Recipe,
    context: RunContext,
    priors: Sequence[Prior],
    episodes: Sequence[Episode],
    ways: Sequence[Sequence[Way]],
) -> tuple[AdaptationInit, Params]:
    """Where episodes start, and where each member of each stands after its own steps at its variant and rate.

    Params [E * members, ...]. The schedule is that of the whole stage; what trains nothing stays where it starts.
    """
    init = initial_adaptation(method, context, priors, episodes)
    check_adaptation(method, init, episodes, context.backbone)
    if len(init.variants) != ways[0][0].variants:
        raise SpecError(
            f"method {method.name!r}: init returned {ways[0][0].variants} variants for a part of the examples and "
            f"{len(init.variants)} for all of them; what was chosen cannot be found again: set folds to 0 (--folds)"
        )
    chosen = [(e, way) for e, own in enumerate(ways) for way in own]
    rows = [e * len(init.variants) + way.variant for e, way in chosen]  # of the start; all differ

    def penalty_of_rows(params: Params) -> Float[Tensor, " C"]:
        assert init.penalty is not None  # it knows all copies: the others stand where they started
        index = {name: torch.tensor(rows, device=value.device) for name, value in params.items()}
        every = {name: init.params[name].detach().index_copy(0, index[name], value) for name, value in params.items()}
        values = init.penalty(every)
        return values[torch.tensor(rows, device=values.device)]

    some = replace(
        init,
        params={name: value[rows] for name, value in init.params.items()},
        penalty=None if init.penalty is None else penalty_of_rows,
        lr_multipliers={n: m[rows] if isinstance(m, Tensor) else m for n, m in init.lr_multipliers.items()},
    )
    if not method.trains:
        return init, some.params
    key = context.key(method, "chosen", *(e.key for e in episodes), *(way for _, way in chosen))
    objective = objective_of(context.backbone, init.parameterisation)
    run = run_of_copies(context, objective, some, [(episodes[e], way.rate) for e, way in chosen], key)
    steps = tuple(way.steps for _, way in chosen)
    run = replace(run, rule=StopCopies(run.rule, steps), steps=max(steps), select=None)
    return init, context.train(run, "target").params


def recipe_head(method: Recipe, init: AdaptationInit | None = None) -> Head | None:
    """The head of a method, with the settings that its start names; None where the choices' likelihood answers."""
    named = NAMED_HEADS.get(method.head)
    return init.head if named is not None and init is not None and init.head is not None else named
