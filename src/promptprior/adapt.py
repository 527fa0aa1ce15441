"""Prior and a few labelled examples to a prompt.

All episodes (target x k x seed) of a method, and all ways to adapt each (variants of the method x learning rates), are
copies in one training run; dev shots pick the step and the way of each, and test examples are seen only by
`score_on_test`, when all is decided.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from promptprior.artifacts.artifact import Header, Prior, Prompt, TaskCard, versions
from promptprior.backbone import Backbone, training_tokens
from promptprior.config.mapping import stable_hash, to_mapping
from promptprior.config.training import Settings
from promptprior.cost import Cost
from promptprior.errors import SpecError
from promptprior.evaluate import EvalResult, EvalSet, dev_scores, evaluate_requests, make_eval_set, prompt_objective
from promptprior.fit import make_run_context
from promptprior.methods import AdaptationInit, Episode, Method, OneByOne, RunContext, source_stage
from promptprior.notation import Float, Params, Tensor
from promptprior.objectives.objective import copies_of
from promptprior.objectives.weight_objective import Answering, objective_of
from promptprior.parameterisations.parameterisation import Diagnosable
from promptprior.parameterisations.registry import Form, folded, parameterisation, plain_settings
from promptprior.rules.descent import Descent, Penalty
from promptprior.rules.optimiser import optimiser, stage_rate
from promptprior.tasks.sampling.batch import Tokens
from promptprior.tasks.sampling.draws import EpisodeDraws, Pool, generator, k_shot
from promptprior.tasks.task import Split, Task
from promptprior.train import Run, Trained
from promptprior.watch import WatchStage

DIAGNOSED = 64  # texts of each task that diagnostics are taken from


@dataclass(frozen=True)
class Adapted:
    """An episode's prompt and how it came about.

    `curve` has train loss and dev score by step; `cost` is this episode's share of the run.
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
    method: Method,
    episodes: Sequence[Episode],
    backbone: Backbone,
    priors: Sequence[Prior] | Prior | None = None,
    settings: Settings | None = None,
    folder: Path | str | None = None,
    watch: WatchStage | None = None,
    checkpoint_seconds: float = 30.0,
) -> list[Adapted]:
    """Turn a prior (one for all, or one per episode) into a prompt for every episode.

    Raises SpecError when the method needs a prior and there is none, ArtifactError for a prior of another backbone.
    """
    settings = settings or Settings()
    home = Path(folder) if folder is not None else None
    given = checked_priors(method, episodes, priors, backbone, settings.length)
    if not isinstance(method, OneByOne):
        return adapt_together(
            method, make_run_context(backbone, settings, home, watch, checkpoint_seconds), given, episodes
        )
    done = []
    for e, episode in enumerate(episodes):
        place = home / f"episode{e}" if home is not None else None
        context = make_run_context(backbone, settings, place, watch, checkpoint_seconds)
        done += adapt_together(method, context, given[e : e + 1], [episode])
    return done


def adapt_together(
    method: Method, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode]
) -> list[Adapted]:
    """Adapt episodes as copies of one run; what the method trains to find their beginning is part of the cost."""
    before: list[Trained] = []

    def train_before(run: Run, stage: str) -> Trained:
        before.append(context.train(run, stage))
        return before[-1]

    initial = method.init(replace(context, train=train_before), priors, episodes)
    objective = objective_of(context.backbone, initial.parameterisation)
    rates = (initial.rates or context.settings.target.learning_rates) if initial.trains else (1.0,)
    done = context.train(target_run(method, context, objective, initial, episodes, rates), "target")
    done = replace(done, cost=sum((run.cost for run in before), done.cost))
    return [
        adapted(method, context.settings, context.backbone, initial, episode, e, rates, done, len(episodes))
        for e, episode in enumerate(episodes)
    ]


def checked_priors(
    method: Method,
    episodes: Sequence[Episode],
    priors: Sequence[Prior] | Prior | None,
    backbone: Backbone,
    length: int,
) -> list[Prior]:
    """One prior per episode, each of this method, backbone and prompt length; none for methods without sources."""
    if not method.needs_sources:
        return []
    if priors is None:
        raise SpecError(f"method {method.name!r} starts from a prior: fit one first, or give --prior FOLDER")
    each = [priors] * len(episodes) if isinstance(priors, Prior) else list(priors)
    if len(each) != len(episodes):
        raise SpecError(f"{len(each)} priors for {len(episodes)} episodes: expected one, or one for each")
    for prior in each:
        prior.header.backbone.check(backbone.card, f"the prior of {prior.header.method}")
        if not serves(prior.header, method):
            raise SpecError(
                f"this prior was fitted by {prior.header.method!r}, not {method.name!r} (--method, --prior)"
            )
        fitted = prior.header.settings.get("length", length)
        if fitted != length:
            raise SpecError(f"this prior has prompts of length {fitted}, the settings say {length}: --length {fitted}")
    return each


def serves(header: Header, method: Method) -> bool:
    """Whether a method starts from priors like this one: its own, or those of a method with the same source stage."""
    return header.method == method.name or header.settings.get("prior_of") == source_stage(method).name


def target_run(
    method: Method,
    context: RunContext,
    objective: Answering,
    initial: AdaptationInit,
    episodes: Sequence[Episode],
    rates: Sequence[float],
) -> Run:
    """The one run that adapts all episodes in all ways: copy (e * V + v) * G + g is episode e, variant v, rate g."""
    stage = context.settings.target
    ways = len(initial.variants) * len(rates)
    copies = [(e, way % len(rates)) for e in range(len(episodes)) for way in range(ways)]
    eval_sets = [make_eval_set(objective, e.task, e.shots.dev) for e in episodes]
    requests = [replace(eval_sets[e], copy=c) for c, (e, _) in enumerate(copies)]
    tokens = [training_tokens(context.backbone, e.task, e.shots.train) for e in episodes]
    unit = 1.0 if initial.rates else context.backbone.scale
    rate = stage_rate(stage, tuple(rates[g] for _, g in copies), unit, repeated_multipliers(initial, len(rates)))
    return Run(
        key=context.key(method, "target", *(e.key for e in episodes)),
        objective=objective,
        rule=Descent(
            optimiser(stage.optimiser, rate, stage.weight_decay),
            stage.clip,
            at_every_rate(initial.penalty, len(rates)),
        ),
        params={n: p.repeat_interleave(len(rates), dim=0) for n, p in initial.params.items()},
        draws=EpisodeDraws(
            [Pool(tokens[e], copy=c) for c, (e, _) in enumerate(copies)],
            stage.batch_size,
            [episodes[e].seed for e, _ in copies],
        ),
        steps=stage.steps if initial.trains else 0,
        select=lambda params: dev_scores(objective, requests, params),
        eval_every=stage.eval_every,
        patience=stage.patience,
        eval_steps=stage.eval_steps,
    )


def repeated_multipliers(initial: AdaptationInit, rates: int) -> dict[str, float | Tensor]:
    """The factors of copies that stand `rates` times in a row."""
    return {
        n: f.repeat_interleave(rates, dim=0) if isinstance(f, Tensor) else f for n, f in initial.lr_multipliers.items()
    }


def moves(factor: float | Tensor) -> bool:
    """Whether a parameter whose rate has this factor is trained at all."""
    return bool((factor != 0).any()) if isinstance(factor, Tensor) else factor != 0


def at_every_rate(penalty: Penalty | None, rates: int) -> Penalty | None:
    """The penalty of copies that stand `rates` times in a row."""
    if penalty is None or rates == 1:
        return penalty

    def repeated(params: Params) -> Float[Tensor, " C"]:
        each = [penalty({name: value[g::rates] for name, value in params.items()}) for g in range(rates)]
        return torch.stack(each, dim=1).flatten()

    return repeated


def adapted(
    method: Method,
    settings: Settings,
    backbone: Backbone,
    initial: AdaptationInit,
    episode: Episode,
    place: int,
    rates: Sequence[float],
    done: Trained,
    episodes: int,
) -> Adapted:
    """One episode's best copy (of each part that answers together), as an artifact with its story."""
    assert done.best is not None
    best = done.best
    ways = len(initial.variants) * len(rates)
    copies = range(place * ways, (place + 1) * ways)

    def merit(copy: int) -> tuple[float, float]:
        return best.score[copy], -best.nll[copy]

    members = [max(part, key=merit) for part in parts(copies, initial.together)]
    chosen = max(members, key=merit)
    trained = {name: value[members].clone() for name, value in done.params.items()}
    form, params = folded(initial.parameterisation, trained)
    which, place_of_rate = divmod(chosen - copies.start, len(rates))
    variant = initial.variants[which]
    rate = rates[place_of_rate] if initial.trains else None
    story: dict[str, object] = {"learning_rate": rate, "best_step": best.step[chosen], "dev_score": best.score[chosen]}
    return Adapted(
        prompt=Prompt(prompt_header(method, settings, backbone, form, episode, {**variant, **story}), params),
        episode=episode,
        learning_rate=rate,
        best_step=best.step[chosen],
        dev_score=best.score[chosen] if episode.task.is_choice else None,
        curve=tuple(curve_of(done.history, chosen, episode.task.is_choice)),
        trainable=trainable(initial) * initial.together,
        cost=done.cost.shared_by(episodes),
        variant=variant,
    )


def parts(copies: range, count: int) -> list[range]:
    """Equal parts of a range, in order.

    >>> parts(range(4, 10), 2)
    [range(4, 7), range(7, 10)]
    """
    size = len(copies) // count
    return [copies[start : start + size] for start in range(0, len(copies), size)]


def trainable(initial: AdaptationInit) -> int:
    """Numbers that adaptation may change, per episode."""
    moving = {n: p for n, p in initial.params.items() if initial.trains and moves(initial.lr_multipliers.get(n, 1.0))}
    return sum(p[0].numel() for p in moving.values())


def curve_of(history: Sequence[dict[str, Any]], copy: int, has_score: bool) -> list[dict[str, Any]]:
    """One copy's learning curve: train loss, and what dev said where it was asked."""
    points = []
    for line in history:
        dev = "dev_nll" in line
        points.append(
            {
                "step": line["step"],
                "train_loss": line["loss"][copy] if "loss" in line else None,
                "dev_score": line["dev_score"][copy] if dev and has_score else None,
                "dev_nll": line["dev_nll"][copy] if dev else None,
            }
        )
    return points


def prompt_header(
    method: Method,
    settings: Settings,
    backbone: Backbone,
    form: Form,
    episode: Episode,
    story: dict[str, object],
) -> Header:
    """What a prompt says about itself."""
    task, shots = episode.task, episode.shots
    ids = tuple(e.id for e in (*shots.train, *shots.dev))
    return Header(
        kind="prompt",
        method=method.name,
        settings={
            **to_mapping(settings),
            "method": to_mapping(method),
            "k": episode.k,
            "seed": episode.seed,
            "dtype": str(backbone.frozen.dtype),
        },
        parameterisation=form.name,
        parameterisation_settings=plain_settings(form),
        backbone=backbone.card,
        tasks=(TaskCard(task.name, task.version, task.fingerprint, "target", ids),),
        scores={"dev": story},
        versions=versions(),
    )


def score_on_test(backbone: Backbone, adapted: Sequence[Adapted], limit: int | None = None) -> list[EvalResult]:
    """Scores of prompts on their tasks' test splits (the first `limit` examples); those of one form in one exam."""
    alike: dict[str, list[int]] = defaultdict(list)
    for place, a in enumerate(adapted):
        header = a.prompt.header
        alike[stable_hash([header.parameterisation, header.parameterisation_settings])].append(place)
    results: dict[int, EvalResult] = {}
    for places in alike.values():
        results.update(zip(places, score_alike(backbone, [adapted[p] for p in places], limit), strict=True))
    return [results[place] for place in range(len(adapted))]


def score_alike(backbone: Backbone, adapted: Sequence[Adapted], limit: int | None) -> list[EvalResult]:
    """Scores on test of prompts of one form, as copies."""
    objective = prompt_objective(adapted[0].prompt, backbone)
    eval_sets: dict[str, EvalSet] = {}
    for a in adapted:
        task = a.episode.task
        if task.fingerprint not in eval_sets:
            eval_sets[task.fingerprint] = make_eval_set(objective, task, task.split("test")[:limit])
    requests: list[EvalSet] = []
    for a in adapted:
        first = requests[-1].copy + requests[-1].together if requests else 0
        eval_set = eval_sets[a.episode.task.fingerprint]
        requests.append(replace(eval_set, copy=first, together=copies_of(a.prompt.params)))
    return evaluate_requests(objective, joined([a.prompt for a in adapted]), requests)


def diagnosed(
    backbone: Backbone, adapted: Sequence[Adapted], others: Sequence[Task] = ()
) -> list[Mapping[str, object]]:
    """What each prompt's parameterisation says of itself, by topic; nothing for those that have nothing to say.

    It is shown texts of the target's test split and of the training splits of other tasks, without their answers.
    """
    header = adapted[0].prompt.header
    form = parameterisation(header.parameterisation, header.parameterisation_settings, backbone)
    if not isinstance(form, Diagnosable):
        return [{} for _ in adapted]
    beside = {task.name: some_texts(backbone, task, "train") for task in others}
    own = {a.episode.task.fingerprint: some_texts(backbone, a.episode.task, "test") for a in adapted}
    return [
        form.diagnose(a.prompt.params, {**beside, a.episode.task.name: own[a.episode.task.fingerprint]})
        for a in adapted
    ]


def some_texts(backbone: Backbone, task: Task, split: Split) -> list[Tokens]:
    """A fixed sample of a split, tokenised."""
    examples = task.split(split)
    order = torch.randperm(len(examples), generator=generator("diagnosed", task.name)).tolist()
    return training_tokens(backbone, task, [examples[i] for i in order[:DIAGNOSED]])


def joined(prompts: Sequence[Prompt]) -> Params:
    """The parameters of several prompts as copies."""
    names = prompts[0].params
    return {name: stack([p.params[name] for p in prompts]) for name in names}


def stack(values: Sequence[Float[Tensor, "M *s"]]) -> Float[Tensor, "C *s"]:
    """The copies of several prompts as one tensor of copies."""
    return torch.cat(list(values))
