"""All labelled examples of an episode count: cross-validation says how to adapt, then all of them teach.

With F folds an episode is F fold episodes, copies of one run: each learns from the other folds and is asked about its
own. What dev chooses (variant, rate, step) is chosen by the mean over an episode's folds, so it is the same for all of
them; answers to an example come from the copy that did not learn from it. The refit then trains on all examples with
exactly what was chosen. Stratified folds: Kohavi 1995. Standard errors: Efron and Stein 1981 (jackknife).
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from promptprior.adaptation.held_out import HeldOut, held_out_answers, held_out_predictions
from promptprior.evaluate import eval_set_losses, make_eval_set
from promptprior.methods import AdaptationInit, Episode
from promptprior.notation import Float, Params, Tensor
from promptprior.objectives.weight_objective import Answering
from promptprior.tasks.metrics import score
from promptprior.tasks.sampling.draws import Shots, class_of, generator
from promptprior.tasks.task import Example, Task
from promptprior.train import Best, Select, Trained

GROUPS = 200  # of examples, left out in turn for a standard error


@dataclass(frozen=True)
class Way:
    """How a prompt was trained: the place of its variant among so many, its rate as the grid has it, and its steps.

    `standing` is what dev said, in the mean over folds: score and minus NLL (nats), higher is better.
    """

    variant: int
    variants: int
    rate: float
    steps: int
    standing: tuple[float, float]


def fold_episodes(episode: Episode, folds: int) -> list[Episode]:
    """An episode for each fold: its dev is the fold, its train all other examples. Below 2 folds: the episode itself.

    Examples of each class are shuffled by the seed and dealt out in turn, the next class where the last one ended, so
    folds differ by one example at most, and by one of each class. Fewer examples than folds are a fold each. Every
    class keeps an example to learn from, since a draw has at least two of each.
    """
    if folds < 2:
        return [episode]
    shots, by_class = episode.shots, defaultdict[str, list[Example]](list)
    for example in sorted((*shots.train, *shots.dev), key=lambda e: e.id):
        by_class[str(class_of(episode.task, example))].append(example)
    dealt: list[Example] = []
    for name, examples in sorted(by_class.items()):
        order = torch.randperm(len(examples), generator=generator(episode.seed, episode.task.name, "folds", name))
        dealt += [examples[i] for i in order.tolist()]
    count = min(folds, len(dealt))
    fold_of = {example.id: place % count for place, example in enumerate(dealt)}
    both = (*shots.train, *shots.dev)
    return [
        replace(
            episode,
            shots=Shots(tuple(e for e in both if fold_of[e.id] != f), tuple(e for e in both if fold_of[e.id] == f)),
            fold=f,
        )
        for f in range(count)
    ]


def whole_episode(episode: Episode) -> Episode:
    """The episode of a refit: all its examples teach. They are dev too, for an `init` that asks dev where to start."""
    every = (*episode.shots.train, *episode.shots.dev)
    return replace(episode, shots=Shots(every, every))


def mean_over_folds(select: Select, folds: Sequence[int], ways: int) -> Select:
    """What selection sees with folds: every copy has the mean score and NLL over its episode's folds in its way.

    `folds` counts the folds of each episode, `ways` the copies of each fold; the folds of an episode stand together.
    """

    def means(params: Params) -> tuple[Float[Tensor, " C"], Float[Tensor, " C"]]:
        merits, nll = (values.reshape(-1, ways).clone() for values in select(params))  # [folds of all episodes, ways]
        for values in (merits, nll):
            first = 0
            for count in folds:
                values[first : first + count] = values[first : first + count].mean(0)
                first += count
        return merits.flatten(), nll.flatten()

    return means


def init_of_rows(init: AdaptationInit, rows: Sequence[int]) -> AdaptationInit:
    """The same start of some copies only, which must differ; their params, multipliers and penalty, in this order."""
    penalty = init.penalty

    def penalty_of_rows(params: Params) -> Float[Tensor, " C"]:
        assert penalty is not None  # it knows all copies: the others stand where they started
        index = {name: torch.tensor(rows, device=value.device) for name, value in params.items()}
        every = {name: init.params[name].detach().index_copy(0, index[name], value) for name, value in params.items()}
        values = penalty(every)
        return values[torch.tensor(rows, device=values.device)]

    return replace(
        init,
        params={name: value[list(rows)] for name, value in init.params.items()},
        penalty=None if penalty is None else penalty_of_rows,
        lr_multipliers={n: m[list(rows)] if isinstance(m, Tensor) else m for n, m in init.lr_multipliers.items()},
    )


@torch.no_grad()
def answer_held_out(
    objective: Answering, params: Params, episodes: Sequence[Episode], ensemble_size: int
) -> list[tuple[HeldOut, ...]]:
    """Every episode's dev examples, answered by its own `ensemble_size` copies of the params [E * ensemble_size, ...]
    together."""
    sets = [
        replace(make_eval_set(objective, e.task, e.shots.dev, copy=place * ensemble_size), ensemble_size=ensemble_size)
        for place, e in enumerate(episodes)
    ]
    return [held_out_answers(*of) for of in zip(sets, eval_set_losses(objective, params, sets), strict=True)]


def jackknife_error(task: Task, answers: Sequence[HeldOut]) -> float | None:
    """The standard error over examples of the task's first metric; None for free text and for a single example.

    The metric is taken with one of g = min(examples, 200) groups left out in turn:

        error^2 = (g - 1) / g  sum over groups of (score without the group - mean of these)^2

    With accuracy and groups of one this is the standard deviation of right and wrong over sqrt(examples).
    """
    groups = min(len(answers), GROUPS)
    if not task.is_choice or groups < 2:
        return None
    predictions, values = held_out_predictions(task, answers), []
    for group in range(groups):
        rest = [place for place in range(len(answers)) if place % groups != group]
        scores = score(task, [answers[p].example for p in rest], [predictions[p] for p in rest])
        values.append(float(scores[task.metrics[0]]))
    mean = sum(values) / groups
    return ((groups - 1) / groups * sum((value - mean) ** 2 for value in values)) ** 0.5


def join_folds(folds: Sequence[Trained], patience: int | None) -> Trained:
    """Runs of the folds of one episode, with the same copies, as one run of which dev says the mean over folds.

    The best step of each copy is found in their histories (dev scores and NLL of six digits), by score, then NLL, until
    `patience` evaluations in a row were no better. `best.params` and `params` are no fold's: they are the first one's.
    """
    first = folds[0]
    if first.best is None:  # dev was not asked
        return first
    by_step = [{line["step"]: line for line in fold.history if "dev_nll" in line} for fold in folds]
    history, best = [], list[tuple[float, float, int, int]]()  # of each copy: score, -NLL, step, evaluations since
    for line in first.history:
        if "dev_nll" in line:
            scores, nlls = (
                [sum(values) / len(folds) for values in zip(*(own[line["step"]][name] for own in by_step), strict=True)]
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
    return replace(first, best=chosen, history=history)
