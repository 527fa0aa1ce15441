"""Prior and a few labelled examples to a prompt.

All episodes (target x k x seed) of a method, and all ways to adapt each (variants of the method x learning rates), are
copies in one training run; dev shots pick the step and the way of each, and test examples are seen only by
`score_on_test`, when all is decided. With `Settings.folds` dev shots teach as well (folds.py): in fold episodes, and
then in a refit of what was chosen.
"""

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from promptprior.adaptation.adapted import Adapted
from promptprior.adaptation.choose import choose_candidate
from promptprior.adaptation.refit import adapt_as_copies
from promptprior.artifacts.artifact import Prior
from promptprior.artifacts.blending import BLEND
from promptprior.backbone import Backbone, training_tokens
from promptprior.config.mapping import stable_hash
from promptprior.config.training import Settings
from promptprior.errors import SpecError
from promptprior.evaluate import (
    EvalResult,
    EvalSet,
    evaluate,
    evaluate_requests,
    make_eval_set,
    prompt_heads,
    prompt_objective,
)
from promptprior.fit import RunControl, make_run_context
from promptprior.heads.fitted import without_head
from promptprior.methods import Episode, Recipe, check_recipe, make_method
from promptprior.methods.choosing import Choosing
from promptprior.notation import Params
from promptprior.objectives.objective import copies_of
from promptprior.parameterisations.parameterisation import Diagnosable
from promptprior.parameterisations.prefix import Prefix, in_other_units, prefix_form
from promptprior.parameterisations.registry import parameterisation
from promptprior.preflight import check_lengths, check_start, check_training_memory, length_of_prompt
from promptprior.rules.maml import MULTIPLIER
from promptprior.tasks.sampling.draws import generator, k_shot
from promptprior.tasks.task import Task

DIAGNOSED = 64  # texts of each task that diagnostics are taken from


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
        return adapt_as_copies(method, make_run_context(backbone, settings, control), checked, episodes)
    adapted = []
    for e, episode in enumerate(episodes):
        context = make_run_context(backbone, settings, control.inside(f"episode{e}"))
        adapted += adapt_as_copies(method, context, checked[e : e + 1], [episode])
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
