"""All labelled examples of an episode count: cross-validation says how to adapt, then all of them teach.

With F folds an episode is F fold episodes, copies of one run: each learns from the other folds and is asked about its
own. What dev chooses (variant, rate, step) is chosen by the mean over an episode's folds, so it is the same for all of
them; answers to an example come from the copy that did not learn from it. The refit then trains on all examples with
exactly what was chosen. Stratified folds: Kohavi 1995. Standard errors: Efron and Stein 1981 (jackknife).
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from promptprior.adaptation.held_out import HeldOut, held_out_answers, held_out_predictions
from promptprior.evaluate import eval_set_losses, make_eval_set
from promptprior.methods import Episode
from promptprior.notation import Params
from promptprior.objectives.weight_objective import Answering
from promptprior.tasks.metrics import resampled_score
from promptprior.tasks.sampling.draws import Shots, class_of, generator
from promptprior.tasks.task import Example, Task

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
    score_of = resampled_score(task, [answer.example for answer in answers], held_out_predictions(task, answers))
    places = range(len(answers))
    values = [score_of([place for place in places if place % groups != group]) for group in range(groups)]
    mean = sum(values) / groups
    return ((groups - 1) / groups * sum((value - mean) ** 2 for value in values)) ** 0.5
