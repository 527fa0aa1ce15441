"""The one training run that adapts a method's episodes in all ways: where it starts, its copies, what comes of it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from promptprior.adaptation.adapted import Adapted
from promptprior.adaptation.folds import Way
from promptprior.artifacts.artifact import Header, Prior, Prompt, TaskCard, versions
from promptprior.backbone import Backbone, training_tokens
from promptprior.config.mapping import to_mapping
from promptprior.cost import Cost
from promptprior.errors import SpecError
from promptprior.evaluate import dev_scores, make_eval_set
from promptprior.methods import AdaptationInit, Episode, Recipe, RunContext
from promptprior.notation import Float, Params, Tensor
from promptprior.objectives.objective import copies_of
from promptprior.objectives.weight_objective import Answering, objective_of
from promptprior.parameterisations.form_check import check_form
from promptprior.parameterisations.parameterisation import AnsweringForm
from promptprior.parameterisations.registry import folded, plain_settings
from promptprior.preflight import check_lengths
from promptprior.rules.averaging import Averaging
from promptprior.rules.descent import Descent
from promptprior.rules.optimiser import optimiser, stage_rate
from promptprior.rules.rule import Rule
from promptprior.tasks.metrics import merit
from promptprior.tasks.sampling.batch import Batch, collate
from promptprior.tasks.sampling.draws import EpisodeDraws, Pool
from promptprior.tasks.task import Task
from promptprior.train import Run, Trained

EMA_DECAY = 0.9  # of the average of params along the path (Training.average)


def initial_adaptation(
    method: Recipe, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode]
) -> AdaptationInit:
    """Where a method starts its episodes; of an ensemble, every episode once for each copy of its prior."""
    if not method.is_ensemble:
        return method.init(context, priors, episodes)
    copies_of_prior = {id(prior): prior_copies(prior) for prior in priors}
    members = [(c, e) for prior, e in zip(priors, episodes, strict=True) for c in copies_of_prior[id(prior)]]
    init = method.init(context, [prior for prior, _ in members], [episode for _, episode in members])
    size = len(members) // len(episodes)
    return replace(init, variants=[*init.variants] * size, ensemble_size=size * init.ensemble_size)


def prior_copies(prior: Prior) -> list[Prior]:
    """A prior of one copy for every copy of a prior, such as the particles of a posterior.

    Of its diagnostics, lists with a number for each particle ("particle_loss") are cut with it.
    """
    diagnostics = prior.header.diagnostics
    losses = diagnostics.get("particle_loss")
    copies = []
    for c in range(copies_of(prior.params)):
        own = {**diagnostics, "particle_loss": [losses[c]]} if isinstance(losses, list) else diagnostics
        params = {name: value[c : c + 1].clone() for name, value in prior.params.items()}
        copies.append(Prior(replace(prior.header, diagnostics=own), params))
    return copies


def check_adaptation(method: Recipe, init: AdaptationInit, episodes: Sequence[Episode], backbone: Backbone) -> None:
    """Raise SpecError, naming method and field, unless what `init` returned fits together and answers a small batch."""
    where = f"method {method.name!r}: init returned"
    if not isinstance(init, AdaptationInit):
        raise SpecError(f"{where} {init!r}; expected an AdaptationInit (promptprior.methods)")
    if not init.variants or init.ensemble_size < 1 or len(init.variants) % init.ensemble_size:
        raise SpecError(
            f"{where} {len(init.variants)} variants and ensemble_size {init.ensemble_size}; expected at least one "
            "variant, and as many for each member of the ensemble"
        )
    stray = sorted(set(init.lr_multipliers) - set(init.params))
    if stray:
        raise SpecError(
            f"{where} lr_multipliers for {', '.join(stray)}; its params are {', '.join(sorted(init.params))}"
        )
    copies = len(episodes) * len(init.variants)
    task, shots = episodes[0].task, episodes[0].shots
    probe = collate(training_tokens(backbone, task, shots.train[:2]), [0] * len(shots.train[:2]))
    try:
        check_form(init.parameterisation, init.params, probe, backbone, copies)
    except SpecError as error:
        raise SpecError(f"{where} {error} ({len(episodes)} episodes x {len(init.variants)} variants)") from error


def run_all_ways(
    method: Recipe,
    context: RunContext,
    priors: Sequence[Prior],
    episodes: Sequence[Episode],
    folds: Sequence[int] = (),
) -> "FinishedRun":
    """All variants and rates of all episodes in one run; of `folds` (counts) of one episode dev says the mean.

    A method that trains nothing, in the one way there is, and answers by a head has no run: nothing is to be chosen,
    and dev is to be asked of the head, not of the choices' likelihood.
    """
    init = initial_adaptation(method, context, priors, episodes)
    check_adaptation(method, init, episodes, context.backbone)
    form = init.parameterisation
    if not isinstance(form, AnsweringForm) and form.length > context.settings.length:  # a bank's prompts, say
        for episode in episodes:
            check_lengths(context.backbone, episode.task, [*episode.shots.train, *episode.shots.dev], form.length)
    if method.head != "verbalizer" and init.ensemble_size > 1:
        raise SpecError(f"method {method.name!r}: its prompts answer together, and a head reads one (--options.head)")
    objective = objective_of(context.backbone, init.parameterisation)
    rates = (init.learning_rates or context.settings.target.learning_rates) if method.trains else (1.0,)
    if method.head != "verbalizer" and not method.trains and len(init.variants) == 1:
        done = Trained(init.params, init.params, init.params, best=None, history=[], steps=0, cost=Cost())
        return FinishedRun(method, context, init, rates, done)
    run = target_run(method, context, objective, init, episodes, rates)
    select, ways = run.select, len(init.variants) * len(rates)

    def mean_over_folds(params: Params) -> tuple[Float[Tensor, " C"], Float[Tensor, " C"]]:
        # Every copy has the mean score and NLL over its episode's folds, which stand together, in its way.
        assert select is not None
        merits, nll = (values.reshape(-1, ways).clone() for values in select(params))  # [folds of all episodes, ways]
        for values in (merits, nll):
            first = 0
            for count in folds:
                values[first : first + count] = values[first : first + count].mean(0)
                first += count
        return merits.flatten(), nll.flatten()

    if select is not None and any(count > 1 for count in folds):
        run = replace(run, select=mean_over_folds)
    return FinishedRun(method, context, init, rates, context.train(run, "target"))


def target_run(
    method: Recipe,
    context: RunContext,
    objective: Answering,
    init: AdaptationInit,
    episodes: Sequence[Episode],
    rates: Sequence[float],
) -> Run:
    """The one run that adapts all episodes in all ways: copy (e * V + v) * G + g is episode e, variant v, rate g."""
    copies = [(episode, rate) for episode in episodes for _ in init.variants for rate in rates]
    run = run_of_copies(context, objective, init, copies, context.key(method, "target", *(e.key for e in episodes)))
    return run if method.trains else replace(run, steps=0)


def run_of_copies(
    context: RunContext, objective: Answering, init: AdaptationInit, copies: Sequence[tuple[Episode, float]], key: str
) -> Run:
    """The run of these copies, each an episode at a rate; one or as many for each copy of the params of `init`."""
    stage, count = context.settings.target, len(copies) // len(next(iter(init.params.values())))
    distinct = {id(episode): episode for episode, _ in copies}
    eval_sets = {i: make_eval_set(objective, e.task, e.shots.dev) for i, e in distinct.items()}
    requests = [replace(eval_sets[id(episode)], copy=c) for c, (episode, _) in enumerate(copies)]
    tokens = {i: context.tokens(e.task, e.shots.train) for i, e in distinct.items()}
    multipliers = {
        name: m.repeat_interleave(count, dim=0) if isinstance(m, Tensor) else m
        for name, m in init.lr_multipliers.items()
    }
    unit = 1.0 if init.learning_rates else context.backbone.scale
    rate = stage_rate(stage, tuple(rate for _, rate in copies), unit, multipliers)
    penalty = init.penalty

    def penalty_at_every_rate(params: Params) -> Float[Tensor, " C"]:
        assert penalty is not None
        per_rate = [penalty({name: value[g::count] for name, value in params.items()}) for g in range(count)]
        return torch.stack(per_rate, dim=1).flatten()

    rule: Rule[Batch] = Descent(
        optimiser(stage.optimiser, rate, stage.weight_decay),
        stage.clip,
        penalty_at_every_rate if penalty is not None and count > 1 else penalty,
    )
    rule = init.wrap_rule(rule) if init.wrap_rule is not None else rule
    if stage.average != "none":
        is_mean = stage.average == "swa"
        rule = Averaging(rule, None if is_mean else EMA_DECAY, stage.steps // 2 + 1 if is_mean else 1)
    return Run(
        key=key,
        objective=objective,
        rule=rule,
        params={name: value.repeat_interleave(count, dim=0) for name, value in init.params.items()},
        draws=EpisodeDraws(
            [Pool(tokens[id(episode)], copy=c) for c, (episode, _) in enumerate(copies)],
            stage.batch_size,
            [episode.seed for episode, _ in copies],
        ),
        steps=stage.steps,
        select=lambda params: dev_scores(objective, requests, params),
        eval_every=stage.dev_every,
        patience=stage.patience,
        eval_steps=stage.eval_steps,
    )


@dataclass(frozen=True)
class FinishedRun:
    """A finished adaptation of all episodes. Without `done.best` each has one copy, which dev was not asked about."""

    method: Recipe
    context: RunContext
    init: AdaptationInit
    rates: Sequence[float]
    done: Trained

    def members(self, place: int) -> list[int]:
        """The best copies of the episode at a place, one of each part that answers as an ensemble."""
        best, ways = self.done.best, len(self.init.variants) * len(self.rates)
        if best is None:
            return [place]
        part = ways // self.init.ensemble_size
        starts = range(place * ways, (place + 1) * ways, part)
        return [max(range(s, s + part), key=lambda copy: (best.score[copy], -best.nll[copy])) for s in starts]

    def ways_of(self, place: int) -> list[Way]:
        """How these copies were trained."""
        best, rates, count = self.done.best, self.rates, len(self.init.variants)
        if best is None:
            return [Way(0, 1, rates[0], 0, (0.0, 0.0))]
        return [
            Way(c // len(rates) % count, count, rates[c % len(rates)], best.step[c], (best.score[c], -best.nll[c]))
            for c in self.members(place)
        ]

    def best_of(self, place: int, episode: Episode) -> Adapted:
        """One episode's best copy (of each part that answers as an ensemble), as an artifact with its history."""
        method, init, best = self.method, self.init, self.done.best
        members, size = self.members(place), init.ensemble_size
        chosen, step, score = members[0], 0, None
        if best is not None:
            chosen = max(members, key=lambda copy: (best.score[copy], -best.nll[copy]))
            step = best.step[chosen]
            if episode.task.is_choice:  # free text has no score: dev asked for its likelihood alone
                score = merit(episode.task.metrics[0], best.score[chosen])
        variant_place, rate_place = divmod(chosen, len(self.rates))
        variant = init.variants[variant_place % len(init.variants)]
        rate = self.rates[rate_place] if method.trains else None
        form, params = folded(
            init.parameterisation, {name: value[members].clone() for name, value in self.done.params.items()}
        )
        backbone, task, shots = self.context.backbone, episode.task, episode.shots
        ids = tuple(e.id for e in (*shots.train, *shots.dev))
        header = Header(
            kind="prompt",
            method=method.name,
            settings={
                **to_mapping(self.context.settings),
                "method": to_mapping(method),
                "k": episode.k,
                "seed": episode.seed,
                "dtype": str(backbone.frozen.dtype),
            },
            parameterisation=form.name,
            parameterisation_settings=plain_settings(form),
            backbone=backbone.card,
            tasks=(TaskCard(task.name, task.version, task.fingerprint, "target", ids, task.path, task.spec),),
            scores={"dev": {**variant, "learning_rate": rate, "best_step": step, "dev_score": score}},
            versions=versions(),
        )
        trainable = init.trainable
        if trainable is None:
            multipliers = {name: torch.as_tensor(init.lr_multipliers.get(name, 1.0)) for name in init.params}
            moving = [name for name in init.params if method.trains and bool((multipliers[name] != 0).any())]
            trainable = sum(init.params[name][0].numel() for name in moving)
        return Adapted(
            prompt=Prompt(header, params),
            episode=episode,
            learning_rate=rate,
            best_step=step,
            dev_score=score,
            curve=tuple(self.curve(chosen, task)) if best else (),
            trainable=trainable * size,
            cost=self.done.cost,
            variant=variant,
        )

    def curve(self, copy: int, task: Task) -> list[dict[str, Any]]:
        """One copy's learning curve: train loss, and dev score and NLL at the steps where dev was evaluated.

        The score is the task's first metric; the history of the run has its merit.
        """
        points = []
        for line in self.done.history:
            on_dev = "dev_nll" in line
            points.append(
                {
                    "step": line["step"],
                    "train_loss": line["loss"][copy] if "loss" in line else None,
                    "dev_score": merit(task.metrics[0], line["dev_merit"][copy]) if on_dev and task.is_choice else None,
                    "dev_nll": line["dev_nll"][copy] if on_dev else None,
                }
            )
        return points
