"""Prior and a few labelled examples to a prompt.

All episodes (target x k x seed) of a method, and all ways to adapt each (variants of the method x learning rates), are
copies in one training run; dev shots pick the step and the way of each, and test examples are seen only by
`score_on_test`, when all is decided. With `Settings.folds` dev shots teach as well (folds.py): in fold episodes, and
then in a refit of what was chosen.
"""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch

from promptprior.adaptation.adapted import Adapted
from promptprior.adaptation.choose import choose_candidate
from promptprior.adaptation.fit_head import fit_heads
from promptprior.adaptation.folds import (
    Way,
    answer_held_out,
    fold_episodes,
    init_of_rows,
    jackknife_error,
    join_folds,
    mean_over_folds,
    whole_episode,
)
from promptprior.adaptation.held_out import HeldOut, held_out_predictions
from promptprior.artifacts.artifact import Header, Prior, Prompt, TaskCard, versions
from promptprior.artifacts.blending import BLEND
from promptprior.backbone import Backbone, training_tokens
from promptprior.config.mapping import stable_hash, to_mapping
from promptprior.config.training import Settings
from promptprior.cost import Cost
from promptprior.errors import SpecError
from promptprior.evaluate import (
    EvalResult,
    EvalSet,
    dev_scores,
    evaluate,
    evaluate_requests,
    make_eval_set,
    prompt_heads,
    prompt_objective,
)
from promptprior.fit import RunControl, make_run_context
from promptprior.heads.fitted import with_head, without_head
from promptprior.heads.head import Head
from promptprior.heads.named_heads import NAMED_HEADS
from promptprior.methods import AdaptationInit, Episode, Recipe, RunContext, check_recipe, make_method
from promptprior.methods.choosing import Choosing
from promptprior.notation import Float, Params, Tensor
from promptprior.objectives.objective import copies_of
from promptprior.objectives.weight_objective import Answering, objective_of
from promptprior.parameterisations.form_check import check_form
from promptprior.parameterisations.parameterisation import Diagnosable
from promptprior.parameterisations.prefix import Prefix, in_other_units, prefix_form
from promptprior.parameterisations.registry import Form, folded, parameterisation, plain_settings
from promptprior.preflight import check_lengths, check_start, check_training_memory, length_of_prompt
from promptprior.processes import add_up
from promptprior.rules.averaging import Averaging
from promptprior.rules.descent import Descent
from promptprior.rules.maml import MULTIPLIER
from promptprior.rules.optimiser import optimiser, stage_rate
from promptprior.rules.rule import Rule
from promptprior.rules.stopping import StopCopies
from promptprior.tasks.metrics import merit, score
from promptprior.tasks.sampling.batch import Batch, collate
from promptprior.tasks.sampling.draws import EpisodeDraws, Pool, generator, k_shot
from promptprior.tasks.task import Task
from promptprior.train import Run, Trained

EMA_DECAY = 0.9  # of the average of params along the path (Training.average)
DIAGNOSED = 64  # texts of each task that diagnostics are taken from


def make_episode(task: Task, k: int, seed: int, settings: Settings | None = None) -> Episode:
    """An episode with its draw of k training and k dev examples per class, or as the settings say (`k_shot`)."""
    s = settings or Settings()
    return Episode(task, k, seed, k_shot(task, k, seed, s.dev_limit, s.shots_are, s.dev_from))


def adapt(
    method: Recipe,
    episodes: Sequence[Episode],
    backbone: Backbone,
    priors: Sequence[Prior] | Prior | None = None,
    settings: Settings | None = None,
    control: RunControl | None = None,
) -> list[Adapted]:
    """Turn a prior (one for all, or one per episode) into a prompt for every episode.

    Raises what preflight.py finds before any work; SpecError when the method is no recipe, when it needs a prior and
    there is none, when it cannot answer an episode's task, and when what it returns does not fit together;
    ArtifactError for a prior of another backbone.
    """
    settings, control = settings or Settings(), control or RunControl()
    check_recipe(method)
    if isinstance(method, Choosing):
        return _adapt_and_choose(method, episodes, backbone, settings, control)
    if method.needs_tokens:
        settings.require_tokens(f"method {method.name!r}")
    for episode in episodes:
        if reason := method.serves(episode.task):
            raise SpecError(f"method {method.name!r} cannot answer task {episode.task.name!r}: {reason}")
    check_start(backbone, settings)
    texts = [example.text for episode in episodes for example in episode.shots.train]
    longest = max((len(text.encode(errors="replace")) for text in texts), default=0)
    copies = len(episodes) * len(settings.target.learning_rates)
    check_training_memory(backbone, settings, settings.target, copies, longest)
    for episode in episodes:
        check_lengths(backbone, episode.task, [*episode.shots.train, *episode.shots.dev], settings.length)
    checked = _checked_priors(method, episodes, priors, backbone, settings)
    if not method.adapts_one_by_one:
        return _adapt_as_copies(method, make_run_context(backbone, settings, control), checked, episodes)
    adapted = []
    for e, episode in enumerate(episodes):
        context = make_run_context(backbone, settings, control.inside(f"episode{e}"))
        adapted += _adapt_as_copies(method, context, checked[e : e + 1], [episode])
    return adapted


def _adapt_and_choose(
    method: Recipe, episodes: Sequence[Episode], backbone: Backbone, settings: Settings, control: RunControl
) -> list[Adapted]:
    """Adapt every candidate, in order of cost, and let held-out answers choose for each episode.

    Candidates that cannot answer a task are left out there. Raises SpecError where none can.
    """
    assert isinstance(method, Choosing)
    settings = settings if settings.folds else replace(settings, folds=method.folds)
    start, adapted = time.monotonic(), [list[Adapted]() for _ in episodes]
    for candidate in map(make_method, method.candidates):
        if isinstance(candidate, Choosing) or candidate.needs_sources:
            raise SpecError(
                f"candidate {candidate.name!r} (--options.candidates): expected a method that learns from targets alone"
            )
        spent = time.monotonic() - start
        if all(adapted) and method.seconds is not None and spent > method.seconds:
            break
        served = [place for place, episode in enumerate(episodes) if candidate.serves(episode.task) is None]
        if served:
            own = [episodes[place] for place in served]
            given = adapt(candidate, own, backbone, None, settings, control.inside(candidate.name))
            for place, one in zip(served, given, strict=True):
                adapted[place].append(one)
    for episode, given in zip(episodes, adapted, strict=True):
        if not given:
            raise SpecError(
                f"method {method.name!r}: none of {', '.join(method.candidates)} can answer task "
                f"{episode.task.name!r} (--options.candidates)"
            )
    return [choose_candidate(method.name, given, method.blend) for given in adapted]


def recipe_head(method: Recipe, init: AdaptationInit | None = None) -> Head | None:
    """The head of a method, with the settings that its start names; None where the choices' likelihood answers."""
    named = NAMED_HEADS.get(method.head)
    return init.head if named is not None and init is not None and init.head is not None else named


def _checked_priors(
    method: Recipe,
    episodes: Sequence[Episode],
    priors: Sequence[Prior] | Prior | None,
    backbone: Backbone,
    settings: Settings,
) -> list[Prior]:
    """One prior per episode, each of this method, backbone, prompt length and form; none for methods without sources.

    Prefixes have units, which other numbers than these may have measured (another dtype): they are changed to these.
    """
    if not method.needs_sources:
        return []
    if priors is None:
        raise SpecError(f"method {method.name!r} starts from a prior: fit one first, or give --prior FOLDER")
    per_episode = [priors] * len(episodes) if isinstance(priors, Prior) else list(priors)
    if len(per_episode) != len(episodes):
        raise SpecError(f"{len(per_episode)} priors for {len(episodes)} episodes: expected one, or one for each")
    for header in (prior.header for prior in per_episode):
        header.backbone.check(backbone.card, f"the prior of {header.method}")
        if header.method != method.name and header.settings.get("prior_of") != method.source_recipe().name:
            raise SpecError(f"this prior was fitted by {header.method!r}, not {method.name!r} (--method, --prior)")
        for name, own in (("length", settings.length), ("form", settings.form), ("layers", list(settings.layers))):
            fitted = header.settings.get(name, "prompt" if name == "form" else [] if name == "layers" else own)
            if fitted != own:
                raise SpecError(f"this prior has prompts of {name} {fitted}, the settings say {own}: --{name} {fitted}")
    if settings.form == "prompt":
        return per_episode
    form = prefix_form(backbone, settings.length, settings.layers)
    changed = {id(p): Prior(p.header, _in_units_of(form, p, backbone)) for p in per_episode}  # equal ones stay one
    return [changed[id(p)] for p in per_episode]


def _in_units_of(form: Prefix, prior: Prior, backbone: Backbone) -> Params:
    """A prior's params in the units of a form; learned rates of single elements are shares of whatever unit."""
    fitted = parameterisation(prior.header.parameterisation, prior.header.parameterisation_settings, backbone)
    if not isinstance(fitted, Prefix):
        raise SpecError(f"this prior is {fitted.name!r}, the settings say form prefix: fit it again, or --form prompt")
    prompts = {n: value for n, value in prior.params.items() if not n.startswith(MULTIPLIER)}
    return {**prior.params, **in_other_units(fitted, form, prompts)}


def _adapt_as_copies(
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
        finished = _run_all_ways(method, counting, priors, episodes)
        init, adapted = finished.init, [finished.best_of(e, episode) for e, episode in enumerate(episodes)]
    if (head := recipe_head(method, init)) is not None:
        with _counted(context.backbone, costs):
            adapted = _with_fitted_heads(head, context.backbone, adapted)
    cost = sum(costs, Cost()).shared_by(len(episodes))
    return [replace(one, cost=cost) for one in adapted]


def _run_all_ways(
    method: Recipe,
    context: RunContext,
    priors: Sequence[Prior],
    episodes: Sequence[Episode],
    folds: Sequence[int] = (),
) -> "_FinishedRun":
    """All variants and rates of all episodes in one run; of `folds` (counts) of one episode dev says the mean."""
    init = initial_adaptation(method, context, priors, episodes)
    check_adaptation(method, init, episodes, context.backbone)
    if method.head != "verbalizer" and init.ensemble_size > 1:
        raise SpecError(f"method {method.name!r}: its prompts answer together, and a head reads one (--options.head)")
    objective = objective_of(context.backbone, init.parameterisation)
    rates = (init.learning_rates or context.settings.target.learning_rates) if method.trains else (1.0,)
    run = target_run(method, context, objective, init, episodes, rates)
    if run.select is not None and any(count > 1 for count in folds):
        run = replace(run, select=mean_over_folds(run.select, folds, len(init.variants) * len(rates)))
    return _FinishedRun(method, context, init, rates, context.train(run, "target"))


@contextmanager
def _counted(backbone: Backbone, costs: list[Cost]) -> Iterator[None]:
    """Adds to `costs` what is read and how long it takes inside."""
    start, meter = time.monotonic(), backbone.meter
    before = torch.tensor([meter.rows, meter.tokens])
    yield
    read = torch.tensor([meter.rows, meter.tokens]) - before
    add_up([read])
    costs.append(Cost(time.monotonic() - start, *read.tolist()))


def _with_fitted_heads(head: Head, backbone: Backbone, adapted: Sequence[Adapted]) -> list[Adapted]:
    """Adapted prompts of one form, each with a head that all its shots have taught.

    Dev scores are the head's: out of fold, or without folds of a head that the training shots alone have taught.
    """
    objective = prompt_objective(adapted[0].prompt, backbone)
    params = {n: torch.cat([a.prompt.params[n] for a in adapted]) for n in adapted[0].prompt.params}
    fitted = fit_heads(head, objective, params, [a.episode for a in adapted])
    headed = []
    for a, one in zip(adapted, fitted, strict=True):
        header, task = a.prompt.header, a.episode.task
        held = a.out_of_fold or one.on_dev
        examples, said = [answer.example for answer in held], header.scores["dev"]
        value = score(task, examples, held_out_predictions(task, held))[task.metrics[0]] if held else None
        header = replace(
            header,
            head=head.name,
            head_settings=to_mapping(head),
            choices=a.episode.shots.train[0].choices,
            scores={**header.scores, "dev": {**said, "dev_score": value}},  # type: ignore[dict-item]
        )
        prompt = Prompt(header, with_head(a.prompt.params, one.head))
        taught = sum(number.numel() for number in one.head.params.values())
        headed.append(replace(a, prompt=prompt, dev_score=value, trainable=a.trainable + taught))
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
        finished = _run_all_ways(method, context, of_parts, held, [len(own) for own in parts])
        ways = [finished.ways_of(place) for place in places]
        rows = [copy for place in range(len(held)) for copy in finished.members(place)]
        answering = [(finished.init.parameterisation, {n: v[rows] for n, v in finished.done.params.items()}, held)]

    size, answers, head = finished.init.ensemble_size, list[Sequence[HeldOut]](), recipe_head(method, finished.init)
    with _counted(backbone, costs):
        for form, params, asked in answering:
            objective = objective_of(backbone, form)
            if head is None:
                answers += answer_held_out(objective, params, asked, size)
            else:
                answers += [one.on_dev for one in fit_heads(head, objective, params, asked)]

    wholes = [whole_episode(episode) for episode in episodes]
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
) -> "_FinishedRun":
    """The folds of one episode, each in a run of its own, as one run of which dev says the mean.

    Patience, which a fold cannot know, is applied when all are known.
    """
    target = context.settings.target
    patient = replace(context, settings=replace(context.settings, target=replace(target, patience=None)))
    runs = [_run_all_ways(method, _in_stage(patient, f"fold{f}"), priors, [fold]) for f, fold in enumerate(folds)]
    return replace(runs[0], context=context, done=join_folds([run.done for run in runs], target.patience))


def _train_chosen(
    method: Recipe,
    context: RunContext,
    priors: Sequence[Prior],
    episodes: Sequence[Episode],
    ways: Sequence[Sequence[Way]],
) -> tuple[AdaptationInit, Params]:
    """Where episodes start, and where each member of each stands after its own steps at its variant and rate.

    Params [E * members, ...]. The schedule is that of the whole stage.
    """
    init = initial_adaptation(method, context, priors, episodes)
    check_adaptation(method, init, episodes, context.backbone)
    if len(init.variants) != ways[0][0].variants:
        raise SpecError(
            f"method {method.name!r}: init returned {ways[0][0].variants} variants for a part of the examples and "
            f"{len(init.variants)} for all of them; what was chosen cannot be found again: set folds to 0 (--folds)"
        )
    chosen = [(e, way) for e, own in enumerate(ways) for way in own]
    some = init_of_rows(init, [e * len(init.variants) + way.variant for e, way in chosen])
    key = context.key(method, "chosen", *(e.key for e in episodes), *(way for _, way in chosen))
    objective = objective_of(context.backbone, init.parameterisation)
    run = run_of_copies(context, objective, some, [(episodes[e], way.rate) for e, way in chosen], key)
    steps = tuple(way.steps for _, way in chosen)
    run = replace(run, rule=StopCopies(run.rule, steps), steps=max(steps), select=None)
    return init, context.train(run, "target").params


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
class _FinishedRun:
    """A finished adaptation of all episodes."""

    method: Recipe
    context: RunContext
    init: AdaptationInit
    rates: Sequence[float]
    done: Trained

    def members(self, place: int) -> list[int]:
        """The best copies of the episode at a place, one of each part that answers as an ensemble."""
        best, ways = self.done.best, len(self.init.variants) * len(self.rates)
        assert best is not None
        part = ways // self.init.ensemble_size
        starts = range(place * ways, (place + 1) * ways, part)
        return [max(range(s, s + part), key=lambda copy: (best.score[copy], -best.nll[copy])) for s in starts]

    def ways_of(self, place: int) -> list[Way]:
        """How these copies were trained."""
        best, rates, count = self.done.best, self.rates, len(self.init.variants)
        assert best is not None
        return [
            Way(c // len(rates) % count, count, rates[c % len(rates)], best.step[c], (best.score[c], -best.nll[c]))
            for c in self.members(place)
        ]

    def best_of(self, place: int, episode: Episode) -> Adapted:
        """One episode's best copy (of each part that answers as an ensemble), as an artifact with its history."""
        method, init, best = self.method, self.init, self.done.best
        assert best is not None
        members, size = self.members(place), init.ensemble_size
        chosen = max(members, key=lambda copy: (best.score[copy], -best.nll[copy]))
        variant_place, rate_place = divmod(chosen, len(self.rates))
        variant = init.variants[variant_place % len(init.variants)]
        rate = self.rates[rate_place] if method.trains else None
        score, step = merit(episode.task.metrics[0], best.score[chosen]), best.step[chosen]

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
            tasks=(TaskCard(task.name, task.version, task.fingerprint, "target", ids, task.path),),
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
            dev_score=score if task.is_choice else None,
            curve=tuple(self.curve(chosen, task)),
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


def score_on_test(backbone: Backbone, adapted: Sequence[Adapted], limit: int | None = None) -> list[EvalResult]:
    """Scores of prompts on their tasks' test splits (the first `limit` examples).

    Prompts of one parameterisation are copies of one evaluation.
    """
    alike: dict[str, list[int]] = defaultdict(list)
    results: dict[int, EvalResult] = {}
    for place, a in enumerate(adapted):
        header = a.prompt.header
        if header.parameterisation == BLEND:
            results[place] = evaluate(a.prompt, a.episode.task, backbone, "test", limit)
            continue
        alike[stable_hash([header.parameterisation, header.parameterisation_settings])].append(place)
    for places in alike.values():
        group = [adapted[place] for place in places]
        objective = prompt_objective(group[0].prompt, backbone)
        eval_sets: dict[str, EvalSet] = {}
        requests: list[EvalSet] = []
        first = 0  # the copy that the next prompt's copies start at
        for a in group:
            task, size = a.episode.task, copies_of(a.prompt.params)
            if task.fingerprint not in eval_sets:
                check_lengths(backbone, task, task.split("test")[:limit], length_of_prompt(a.prompt))
                eval_sets[task.fingerprint] = make_eval_set(objective, task, task.split("test")[:limit])
            heads = prompt_heads(a.prompt)
            requests.append(replace(eval_sets[task.fingerprint], copy=first, ensemble_size=size, heads=heads))
            first += size
        forms = [without_head(a.prompt.params) for a in group]
        params = {name: torch.cat([form[name] for form in forms]) for name in forms[0]}
        results.update(zip(places, evaluate_requests(objective, params, requests), strict=True))
    return [results[place] for place in range(len(adapted))]


def diagnose(backbone: Backbone, adapted: Sequence[Adapted], others: Sequence[Task] = ()) -> list[Mapping[str, object]]:
    """What each prompt's parameterisation reports of itself, by topic; nothing where it has nothing to report.

    It is shown texts of the target's test split and of the training splits of other tasks, without their answers.
    """
    header = adapted[0].prompt.header
    form = parameterisation(header.parameterisation, header.parameterisation_settings, backbone)
    if not isinstance(form, Diagnosable):
        return [{} for _ in adapted]
    texts = {}
    for task, split in [*((t, "train") for t in others), *((a.episode.task, "test") for a in adapted)]:
        examples = task.split(split)
        order = torch.randperm(len(examples), generator=generator("diagnosed", task.name)).tolist()
        texts[task.fingerprint, split] = training_tokens(backbone, task, [examples[i] for i in order[:DIAGNOSED]])
    beside = {task.name: texts[task.fingerprint, "train"] for task in others}
    return [
        form.diagnose(
            without_head(a.prompt.params), {**beside, a.episode.task.name: texts[a.episode.task.fingerprint, "test"]}
        )
        for a in adapted
    ]
