"""Prior and a few labelled examples to a prompt.

All episodes (target x k x seed) of a method, and all ways to adapt each (variants of the method x learning rates), are
copies in one training run. Dev shots pick the step and the way of each. Test examples are seen only by `score_on_test`,
when all is decided. With `Settings.folds` dev shots teach as well (folds.py): in fold episodes, and then in a refit of
what was chosen.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import TypedDict, Unpack

import torch

from promptprior.adaptation.adapted import Adapted
from promptprior.adaptation.both_ways import answering_together, turned
from promptprior.adaptation.budget import Decision, decide, read_decisions, write_decisions
from promptprior.adaptation.choose import choose_candidate, held_out_of
from promptprior.adaptation.refit import adapt_as_copies, counted, with_head
from promptprior.artifacts.artifact import Prior
from promptprior.backbone import Backbone, load, training_tokens
from promptprior.backbone.quiet_loading import quiet_loading
from promptprior.config.choices import TestRows
from promptprior.config.mapping import stable_hash
from promptprior.config.training import Settings
from promptprior.cost import Cost
from promptprior.cost_estimate import adapting_cost, target_size
from promptprior.errors import SpecError
from promptprior.evaluate import EvalResult, PromptAnswers, PromptRequest, answer_requests
from promptprior.fit import RunControl, make_run_context
from promptprior.heads.fitted import without_head
from promptprior.methods import Episode, Recipe, check_recipe, make_method
from promptprior.methods.choosing import Choosing, candidate_runs, candidate_settings, candidates_of, trained_alike
from promptprior.parameterisations.parameterisation import Diagnosable
from promptprior.parameterisations.prefix import Prefix, prefix_form
from promptprior.parameterisations.registry import parameterisation
from promptprior.preflight import check_lengths, check_start, check_training_memory
from promptprior.rules.maml import MULTIPLIER
from promptprior.tasks import Task, load_task
from promptprior.tasks.sampling.draws import generator, k_shot, select_test

DIAGNOSED = 64  # texts of each task that diagnostics are taken from


def make_episode(task: Task, k: int, seed: int, settings: Settings | None = None) -> Episode:
    """An episode with its draw of k training and k dev examples per class, or as the settings say (`k_shot`).

    Equal task, k, seed and settings draw equal examples. Raises DataError where a class has too few examples, and
    SpecError for a k below 1.
    """
    s = settings or Settings()
    return Episode(task, k, seed, k_shot(task, k, seed, s.dev_limit, s.shots_are, s.dev_from))


class AutoOptions(TypedDict, total=False):
    """What `auto` can be given beside task, backbone and draw.

    `seconds`: start no candidate that is expected to end later; `data`: the folder that names of tasks are looked up
    in; `candidates`: names of methods, in order of cost; `settings`: training, folds and the like; `prior`: a prior
    whose method is one more candidate.
    """

    seconds: float | None
    data: Path | str | None
    candidates: Sequence[str] | None
    settings: Settings | None
    prior: Prior | None


def auto(
    task: Task | Path | str,
    backbone: Backbone | str = "smollm2",
    shots: int = 16,
    seed: int = 13,
    **options: Unpack[AutoOptions],
) -> Adapted:
    """The best answer that a few labelled examples can buy: several methods adapt, held-out answers choose (choose.py).

    A task is one that was loaded, or a name, file or folder; a backbone too, in the dtype "auto" of `load`. Of `shots`
    examples per class and as many again all are learned from. `result.prompt` is what `predict`, `evaluate` and
    `save_pretrained` take; `result.dev_score` is its score on examples held out, and the leaderboard stands in
    `result.prompt.header.scores["auto"]`. For checkpoints call `adapt` with make_method("auto") and a RunControl.
    Raises SpecError for unknown names, and what `load_task`, `load` and `adapt` raise.
    """
    given = {"candidates": options.get("candidates"), "seconds": options.get("seconds")}
    method = make_method("auto", {name: value for name, value in given.items() if value is not None})
    data = options.get("data")
    if not isinstance(task, Task):
        task = load_task(str(task), None if data is None else Path(data))
    if isinstance(backbone, str):
        with quiet_loading():
            backbone = load(backbone, dtype="auto")
    settings = options.get("settings") or Settings()
    episode = make_episode(task, shots, seed, settings)
    [adapted] = adapt(method, [episode], backbone, options.get("prior"), settings)
    return adapted


def adapt(
    method: Recipe,
    episodes: Sequence[Episode],
    backbone: Backbone,
    priors: Sequence[Prior] | Prior | None = None,
    settings: Settings | None = None,
    control: RunControl | None = None,
) -> list[Adapted]:
    """Turn a prior (one for all, or one per episode) into a prompt for every episode.

    A method that chooses among others (`auto`) has the prior's method as one more candidate. Its prompts' headers say
    in `scores["auto"]` what each candidate would have given.

    Raises what preflight.py finds before any work. Raises SpecError when the method is no recipe, when it needs a prior
    and there is none, when it cannot answer an episode's task, and when what it returns does not fit together. Raises
    ArtifactError for a prior of another backbone.
    """
    settings, control = settings or Settings(), control or RunControl()
    check_recipe(method)
    if isinstance(method, Choosing):
        return _adapt_and_choose(method, episodes, backbone, priors, settings, control)
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
    length = 0 if method.read_prompts == "none" else settings.length
    for episode in episodes:
        check_lengths(backbone, episode.task, [*episode.shots.train, *episode.shots.dev], length)
    checked = _checked_priors(method, episodes, priors, backbone, settings)
    if not method.adapts_one_by_one:
        return adapt_as_copies(method, make_run_context(backbone, settings, control), checked, episodes)
    adapted = []
    for e, episode in enumerate(episodes):
        context = make_run_context(backbone, settings, control.inside(f"episode{e}"))
        adapted += adapt_as_copies(method, context, checked[e : e + 1], [episode])
    return adapted


def _adapt_and_choose(
    method: Choosing,
    episodes: Sequence[Episode],
    backbone: Backbone,
    priors: Sequence[Prior] | Prior | None,
    settings: Settings,
    control: RunControl,
) -> list[Adapted]:
    """Adapt every candidate, in order of cost, and let held-out answers choose for each episode.

    Candidates that cannot answer a task are left out there, and those that the budget has no time for everywhere; every
    episode has an answer all the same. Raises SpecError where none can answer.
    """
    first = priors if isinstance(priors, Prior) or not priors else priors[0]
    candidates = candidates_of(method, first.header if isinstance(first, Prior) else None)
    priors_of = {c.name: _checked_priors(c, episodes, priors, backbone, settings) for c in candidates}
    names, drawn = [c.name for c in candidates], [e.key for e in episodes]
    key = stable_hash([method, settings, backbone.card.fingerprint, names, drawn])
    on_record = {decision.candidate: decision for decision in read_decisions(control.folder, key)}
    sizes = {e.task.fingerprint: target_size(backbone, e.task) for e in episodes} if method.seconds is not None else {}
    decisions, adapted = list[Decision](), [list[Adapted]() for _ in episodes]
    cannot = [{c.name: reason for c in candidates if (reason := c.serves(e.task))} for e in episodes]
    runs_of = dict[str, dict[int, list[Adapted]]]()  # by candidate, then by the place of the episode
    for candidate in candidates:
        served = [place for place, reasons in enumerate(cannot) if candidate.name not in reasons]
        if not served:
            continue
        own_settings, decision = candidate_settings(method, candidate, settings), on_record.get(candidate.name)
        before_it = [other for other in candidates if other.name in runs_of]
        trained = trained_alike(candidate, before_it, own_settings)
        if decision is None:
            own = [episodes[place] for place in served] if sizes else []
            work = sum(
                adapting_cost(candidate, sizes[e.task.fingerprint], e.k, own_settings, 0, trained is not None)
                for e in own
            )
            least, runs = 1, candidate_runs(method, candidate, settings)
            if trained is not None:  # its head reads all runs of the other
                least = runs = next(d.runs for d in decisions if d.candidate == trained.name)
            is_needed = not all(adapted[place] for place in served)
            decision = decide(candidate.name, work, (least, runs), decisions, method.seconds, is_needed)
            write_decisions(control.folder, key, [*decisions, decision])
        if decision.starts:
            start, before = monotonic(), backbone.meter.weighted
            if trained is not None:
                of_trained = runs_of[trained.name]
                given = {place: [with_head(candidate, backbone, run) for run in of_trained[place]] for place in served}
            else:
                asked = {place: (episodes[place], priors_of[candidate.name][place : place + 1]) for place in served}
                given = _run_candidate(candidate, asked, decision.runs, backbone, own_settings, control)
            runs_of[candidate.name] = given
            for place, runs_there in given.items():
                adapted[place].append(answering_together(runs_there))
            if not decision.seconds:  # a candidate that had ended before is not counted again
                decision = replace(decision, seconds=monotonic() - start, tokens=backbone.meter.weighted - before)
        decisions.append(decision)
        write_decisions(control.folder, key, decisions)
    for episode, of_episode in zip(episodes, adapted, strict=True):
        if not of_episode:
            raise SpecError(
                f"method {method.name!r}: none of {', '.join(names)} can answer task "
                f"{episode.task.name!r} (--options.candidates)"
            )
    not_run = {d.candidate: d.expected or 0.0 for d in decisions if not d.starts}
    return [
        choose_candidate(method.name, of_episode, method.blend, not_run, reasons)
        for of_episode, reasons in zip(adapted, cannot, strict=True)
    ]


def _run_candidate(
    candidate: Recipe,
    asked: Mapping[int, tuple[Episode, Sequence[Prior]]],
    runs: int,
    backbone: Backbone,
    settings: Settings,
    control: RunControl,
) -> dict[int, list[Adapted]]:
    """The runs of a candidate on episodes by their places, each with its prior where it has one, and with what it
    answers held out.

    With two `runs` the second is of the episodes turned round. It comes after the first, not beside it: together they
    would need twice the memory, and methods that share something over episodes would share it over both halves.
    """
    of_place = defaultdict[int, list[Adapted]](list)
    for way in range(runs):
        turns = {place: turned(episode) if way else episode for place, (episode, _) in asked.items()}
        own = {place: episode for place, episode in turns.items() if episode is not None}
        if not own:
            continue
        priors = [prior for place in own for prior in asked[place][1]] or None
        inside = control.inside(f"{candidate.name}-turned" if way else candidate.name)
        given = adapt(candidate, [*own.values()], backbone, priors, settings, inside)
        for place, one in zip(own, given, strict=True):
            asking: list[Cost] = []
            with counted(backbone, asking):
                answers = held_out_of(backbone, one)
            of_place[place].append(replace(one, out_of_fold=answers, cost=sum(asking, one.cost)))
    return of_place


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
        if not method.starts_from(header):
            raise SpecError(f"this prior was fitted by {header.method!r}, not {method.name!r} (--method, --prior)")
        for name, own in (("length", settings.length), ("form", settings.form), ("layers", list(settings.layers))):
            fitted = header.settings.get(name, "prompt" if name == "form" else [] if name == "layers" else own)
            if fitted != own:
                flag = ",".join(map(str, fitted)) if isinstance(fitted, list) else fitted
                raise SpecError(f"this prior has prompts of {name} {fitted}, the settings say {own}: --{name} {flag}")
    if settings.form == "prompt":
        return per_episode
    wanted, changed = prefix_form(backbone, settings.length, settings.layers), dict[int, Prior]()
    for identity, prior in {id(p): p for p in per_episode}.items():  # equal ones stay one
        header = prior.header
        form = parameterisation(header.parameterisation, header.parameterisation_settings, backbone)
        if not isinstance(form, Prefix):
            raise SpecError(
                f"this prior is {form.name!r}, the settings say form prefix: fit it again, or --form prompt"
            )
        params = {  # learned rates of single elements are shares of whatever unit
            name: value if name.startswith(MULTIPLIER) else value * (form.unit(value) / wanted.unit(value))
            for name, value in prior.params.items()
        }
        changed[identity] = Prior(header, params)
    return [changed[id(prior)] for prior in per_episode]


def score_on_test(
    backbone: Backbone, adapted: Sequence[Adapted], limit: int | None = None, rows: TestRows = "first"
) -> list[EvalResult]:
    """Scores of prompts on the examples of their tasks' test splits that `limit` and `rows` name (select_test).

    Prompts of one parameterisation are copies of one evaluation, members of blends among them. Raises as
    `evaluate.answer_requests` does, and SpecError for a limit below one row of each class of balanced rows.
    """
    return [answers.result for answers in answers_on_test(backbone, adapted, limit, rows)]


def answers_on_test(
    backbone: Backbone, adapted: Sequence[Adapted], limit: int | None = None, rows: TestRows = "first"
) -> list[PromptAnswers]:
    """What `score_on_test` scores: the answers of each prompt to its test examples. Raises as it does."""
    tasks = {a.episode.task.fingerprint: a.episode.task for a in adapted}
    tests = {key: select_test(task, limit, rows) for key, task in tasks.items()}
    requests = [PromptRequest(a.prompt, a.episode.task, tests[a.episode.task.fingerprint]) for a in adapted]
    return answer_requests(backbone, requests)


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
