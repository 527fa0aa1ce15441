"""Prior and a few labelled examples to a prompt.

All episodes (target x k x seed) of a method, and all ways to adapt each (variants of the method x learning rates), are
copies in one training run; dev shots pick the step and the way of each, and test examples are seen only by
`score_on_test`, when all is decided.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from promptprior.artifacts.artifact import Header, Prior, Prompt, TaskCard, versions
from promptprior.backbone import Backbone, training_tokens
from promptprior.config.mapping import stable_hash, to_mapping
from promptprior.config.training import Settings
from promptprior.cost import Cost
from promptprior.errors import SpecError
from promptprior.evaluate import EvalResult, EvalSet, dev_scores, evaluate_requests, make_eval_set, prompt_objective
from promptprior.fit import RunControl, make_run_context
from promptprior.methods import AdaptationInit, Episode, Recipe, RunContext, check_recipe
from promptprior.notation import Float, Params, Tensor
from promptprior.objectives.objective import copies_of
from promptprior.objectives.weight_objective import Answering, objective_of
from promptprior.parameterisations.form_check import check_form
from promptprior.parameterisations.parameterisation import Diagnosable
from promptprior.parameterisations.prefix import Prefix, in_other_units, prefix_form
from promptprior.parameterisations.registry import folded, parameterisation, plain_settings
from promptprior.preflight import check_lengths, check_start, check_training_memory, length_of_prompt
from promptprior.rules.descent import Descent
from promptprior.rules.maml import MULTIPLIER
from promptprior.rules.optimiser import optimiser, stage_rate
from promptprior.rules.rule import Rule
from promptprior.tasks.metrics import merit
from promptprior.tasks.sampling.batch import Batch, collate
from promptprior.tasks.sampling.draws import EpisodeDraws, Pool, generator, k_shot
from promptprior.tasks.task import Task
from promptprior.train import Run, Trained

DIAGNOSED = 64  # texts of each task that diagnostics are taken from


@dataclass(frozen=True)
class Adapted:
    """An episode's prompt and how it came about.

    `curve` has train loss and dev score by step, `cost` is this episode's share of the run; `trainable` counts the
    numbers that adaptation learned.
    """

    prompt: Prompt
    episode: Episode
    learning_rate: float | None
    best_step: int
    dev_score: float | None
    curve: tuple[dict[str, Any], ...]
    trainable: int
    cost: Cost
    variant: Mapping[str, object] = field(default_factory=dict)


def make_episode(task: Task, k: int, seed: int, dev_limit: int | None = None) -> Episode:
    """An episode with its draw of k training and k dev examples per class (dev: at most `dev_limit` in all)."""
    return Episode(task, k, seed, k_shot(task, k, seed, dev_limit))


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
    earlier: list[Trained] = []

    def train_and_count(run: Run, stage: str) -> Trained:
        earlier.append(context.train(run, stage))
        return earlier[-1]

    init = initial_adaptation(method, replace(context, train=train_and_count), priors, episodes)
    check_adaptation(method, init, episodes, context.backbone)
    objective = objective_of(context.backbone, init.parameterisation)
    rates = (init.learning_rates or context.settings.target.learning_rates) if method.trains else (1.0,)
    done = context.train(target_run(method, context, objective, init, episodes, rates), "target")
    cost = sum((trained.cost for trained in earlier), done.cost).shared_by(len(episodes))
    finished = _FinishedRun(method, context, init, rates, done, cost)
    return [finished.best_of(e, episode) for e, episode in enumerate(episodes)]


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
    stage, count = context.settings.target, len(rates)
    copies = [(e, g) for e in range(len(episodes)) for _ in init.variants for g in range(count)]
    eval_sets = [make_eval_set(objective, e.task, e.shots.dev) for e in episodes]
    requests = [replace(eval_sets[e], copy=c) for c, (e, _) in enumerate(copies)]
    tokens = [context.tokens(e.task, e.shots.train) for e in episodes]
    multipliers = {
        name: m.repeat_interleave(count, dim=0) if isinstance(m, Tensor) else m
        for name, m in init.lr_multipliers.items()
    }
    unit = 1.0 if init.learning_rates else context.backbone.scale
    rate = stage_rate(stage, tuple(rates[g] for _, g in copies), unit, multipliers)
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
    return Run(
        key=context.key(method, "target", *(e.key for e in episodes)),
        objective=objective,
        rule=init.wrap_rule(rule) if init.wrap_rule is not None else rule,
        params={name: value.repeat_interleave(count, dim=0) for name, value in init.params.items()},
        draws=EpisodeDraws(
            [Pool(tokens[e], copy=c) for c, (e, _) in enumerate(copies)],
            stage.batch_size,
            [episodes[e].seed for e, _ in copies],
        ),
        steps=stage.steps if method.trains else 0,
        select=lambda params: dev_scores(objective, requests, params),
        eval_every=stage.eval_every,
        patience=stage.patience,
        eval_steps=stage.eval_steps,
    )


@dataclass(frozen=True)
class _FinishedRun:
    """A finished adaptation of all episodes; `cost` is the share of each."""

    method: Recipe
    context: RunContext
    init: AdaptationInit
    rates: Sequence[float]
    done: Trained
    cost: Cost

    def best_of(self, place: int, episode: Episode) -> Adapted:
        """One episode's best copy (of each part that answers as an ensemble), as an artifact with its history."""
        method, init, best = self.method, self.init, self.done.best
        assert best is not None
        ways, size = len(init.variants) * len(self.rates), init.ensemble_size

        def standing(copy: int) -> tuple[float, float]:
            return best.score[copy], -best.nll[copy]

        first, part = place * ways, ways // size
        members = [max(range(first + m * part, first + (m + 1) * part), key=standing) for m in range(size)]
        chosen = max(members, key=standing)
        variant_place, rate_place = divmod(chosen - first, len(self.rates))
        variant = init.variants[variant_place]
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
            cost=self.cost,
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
    for place, a in enumerate(adapted):
        header = a.prompt.header
        alike[stable_hash([header.parameterisation, header.parameterisation_settings])].append(place)
    results: dict[int, EvalResult] = {}
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
            requests.append(replace(eval_sets[task.fingerprint], copy=first, ensemble_size=size))
            first += size
        params = {name: torch.cat([a.prompt.params[name] for a in group]) for name in group[0].prompt.params}
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
        form.diagnose(a.prompt.params, {**beside, a.episode.task.name: texts[a.episode.task.fingerprint, "test"]})
        for a in adapted
    ]
