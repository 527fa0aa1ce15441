"""Prior and a few labelled examples to a prompt.

All episodes (target x k x seed) of a method, and all ways to adapt each (variants of the method x learning rates), are
copies in one training run; dev shots pick the step and the way of each, and test examples are seen only by
`score_on_test`, when all is decided.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from promptprior.backbone import Backbone, training_tokens
from promptprior.config import to_mapping
from promptprior.errors import SpecError
from promptprior.evaluate import Exam, Marks, dev_scores, make_exam, mark
from promptprior.fit import make_lab
from promptprior.methods import Beginning, Episode, Lab, Method
from promptprior.notation import Float, Params, Tensor
from promptprior.prompts.artifact import Header, Prior, Prompt, TaskCard, versions
from promptprior.prompts.parameterisation import Parameterisation, parameterisation, plain_settings
from promptprior.rules.descent import Descent, Penalty
from promptprior.rules.objective import PromptObjective
from promptprior.rules.optimiser import optimiser
from promptprior.settings import Settings
from promptprior.tasks.draw import EpisodeDraws, Pool, k_shot
from promptprior.tasks.task import Task
from promptprior.train import Run, Trained
from promptprior.watch import WatchStage


@dataclass(frozen=True)
class Adapted:
    """An episode's prompt and how it came about.

    `curve` has train loss and dev score by step; seconds, rows and tokens are this episode's share of the run.
    """

    prompt: Prompt
    episode: Episode
    learning_rate: float | None
    best_step: int
    dev_score: float | None
    curve: tuple[dict[str, Any], ...]
    trainable: int
    seconds: float
    rows: int
    tokens: int
    variant: Mapping[str, object] = field(default_factory=dict)


def make_episode(task: Task, k: int, seed: int) -> Episode:
    """An episode with its draw of k training and k dev examples per class."""
    return Episode(task, k, seed, k_shot(task, k, seed))


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
    lab = make_lab(backbone, settings, home, watch, checkpoint_seconds)
    beginning = method.begin(lab, given, episodes)
    objective = PromptObjective(backbone, beginning.parameterisation)
    rates = settings.target.learning_rates if beginning.trains else (1.0,)
    done = lab.train(target_run(method, lab, objective, beginning, episodes, rates), "target")
    return [
        adapted(method, settings, backbone, beginning, episode, e, rates, done, len(episodes))
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
        if prior.header.method != method.name:
            raise SpecError(
                f"this prior was fitted by {prior.header.method!r}, not {method.name!r} (--method, --prior)"
            )
        fitted = prior.header.settings.get("length", length)
        if fitted != length:
            raise SpecError(f"this prior has prompts of length {fitted}, the settings say {length}: --length {fitted}")
    return each


def target_run(
    method: Method,
    lab: Lab,
    objective: PromptObjective,
    beginning: Beginning,
    episodes: Sequence[Episode],
    rates: Sequence[float],
) -> Run:
    """The one run that adapts all episodes in all ways: copy (e * V + v) * G + g is episode e, variant v, rate g."""
    stage = lab.settings.target
    ways = len(beginning.variants) * len(rates)
    copies = [(e, way % len(rates)) for e in range(len(episodes)) for way in range(ways)]
    exams = [make_exam(objective, e.task, e.shots.dev) for e in episodes]
    papers = [replace(exams[e], copy=c) for c, (e, _) in enumerate(copies)]
    tokens = [training_tokens(lab.backbone, e.task, e.shots.train) for e in episodes]
    rate = stage.rate(
        tuple(rates[g] for _, g in copies), lab.backbone.scale, at_every_rate_factors(beginning, len(rates))
    )
    return Run(
        key=lab.key(method, "target", *(e.key for e in episodes)),
        objective=objective,
        rule=Descent(
            optimiser(stage.optimiser, rate, stage.weight_decay),
            stage.clip,
            at_every_rate(beginning.penalty, len(rates)),
        ),
        params={n: p.repeat_interleave(len(rates), dim=0) for n, p in beginning.params.items()},
        draws=EpisodeDraws(
            [Pool(tokens[e], copy=c) for c, (e, _) in enumerate(copies)],
            stage.batch_size,
            [episodes[e].seed for e, _ in copies],
        ),
        steps=stage.steps if beginning.trains else 0,
        select=lambda params: dev_scores(objective, papers, params),
        select_every=stage.select_every,
        patience=stage.patience,
        looks=stage.looks,
    )


def at_every_rate_factors(beginning: Beginning, rates: int) -> dict[str, float | Tensor]:
    """The factors of copies that stand `rates` times in a row."""
    return {n: f.repeat_interleave(rates, dim=0) if isinstance(f, Tensor) else f for n, f in beginning.factors.items()}


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
    beginning: Beginning,
    episode: Episode,
    place: int,
    rates: Sequence[float],
    done: Trained,
    episodes: int,
) -> Adapted:
    """One episode's best copy, as an artifact with its story."""
    assert done.best is not None
    best = done.best
    ways = len(beginning.variants) * len(rates)
    copies = range(place * ways, (place + 1) * ways)
    chosen = max(copies, key=lambda c: (best.score[c], -best.nll[c]))
    params = {name: value[chosen : chosen + 1].clone() for name, value in done.params.items()}
    which, place_of_rate = divmod(chosen - copies.start, len(rates))
    variant = beginning.variants[which]
    rate = rates[place_of_rate] if beginning.trains else None
    story: dict[str, object] = {"learning_rate": rate, "best_step": best.step[chosen], "dev_score": best.score[chosen]}
    return Adapted(
        prompt=Prompt(
            prompt_header(method, settings, backbone, beginning.parameterisation, episode, {**variant, **story}), params
        ),
        episode=episode,
        learning_rate=rate,
        best_step=best.step[chosen],
        dev_score=best.score[chosen] if episode.task.is_choice else None,
        curve=tuple(curve_of(done.history, chosen, episode.task.is_choice)),
        trainable=trainable(beginning),
        seconds=done.seconds / episodes,
        rows=done.rows // episodes,
        tokens=done.tokens // episodes,
        variant=variant,
    )


def trainable(beginning: Beginning) -> int:
    """Numbers that adaptation may change, per episode."""
    moving = {n: p for n, p in beginning.params.items() if beginning.trains and moves(beginning.factors.get(n, 1.0))}
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
    form: Parameterisation,
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


def score_on_test(backbone: Backbone, adapted: Sequence[Adapted], limit: int | None = None) -> list[Marks]:
    """Scores of prompts adapted together on their tasks' test splits (the first `limit` examples), in one exam."""
    header = adapted[0].prompt.header
    form = parameterisation(header.parameterisation, header.parameterisation_settings, backbone)
    objective = PromptObjective(backbone, form)
    exams: dict[str, Exam] = {}
    for a in adapted:
        task = a.episode.task
        if task.fingerprint not in exams:
            exams[task.fingerprint] = make_exam(objective, task, task.split("test")[:limit])
    papers = [replace(exams[a.episode.task.fingerprint], copy=c) for c, a in enumerate(adapted)]
    return mark(objective, joined([a.prompt for a in adapted]), papers)


def joined(prompts: Sequence[Prompt]) -> Params:
    """The parameters of several prompts as copies."""
    names = prompts[0].params
    return {name: stack([p.params[name] for p in prompts]) for name in names}


def stack(values: Sequence[Float[Tensor, "1 *s"]]) -> Float[Tensor, "C *s"]:
    """Single copies as one tensor of copies."""
    return torch.cat(list(values))
