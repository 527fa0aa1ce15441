"""The posterior predictive: what several prompts adapted from one posterior answer together, and when to abstain.

p(y | x) = mean over prompts of p(y | x, prompt), over the choices of each example. Ours: BMTPT keeps one prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from promptprior.adapt import Adapted, prior_copies
from promptprior.artifacts.artifact import Prompt
from promptprior.backbone import Backbone
from promptprior.errors import DataError
from promptprior.evaluate import mean_probability, predict
from promptprior.tasks.metrics import Prediction, score
from promptprior.tasks.task import Example, Split, Task

__all__ = ["Together", "abstention", "abstention_curve", "averaged", "prior_copies", "score_together"]


@dataclass(frozen=True)
class Together:
    """Test scores of each prompt, of all together, and what abstaining gains: (share answered, accuracy on it)."""

    alone: tuple[dict[str, float], ...]
    together: dict[str, float]
    abstention: tuple[tuple[float, float], ...]


def score_together(backbone: Backbone, adapted: Sequence[Adapted], limit: int | None = None) -> Together:
    """Scores on the test split of prompts adapted to one target. Raises DataError for several, or for free text."""
    task = adapted[0].episode.task
    if {a.episode.task.fingerprint for a in adapted} != {task.fingerprint}:
        raise DataError("prompts that answer together must be of one target; got several: score each task's alone")
    examples = task.split("test")[:limit]
    answers = [predict(a.prompt, task, backbone, examples) for a in adapted]
    both = averaged(examples, answers)
    return Together(
        tuple(score(task, examples, one) for one in answers),
        score(task, examples, both),
        tuple(abstention_curve(examples, both)),
    )


def averaged(examples: Sequence[Example], answers: Sequence[Sequence[Prediction]]) -> list[Prediction]:
    """One prediction for each example from those of several prompts: mean probabilities of its choices.

    `choice_nll` is then minus the logarithm of the mean, normalised over the choices. Raises DataError for free text.
    """
    return [averaged_one(e, ps) for e, ps in zip(examples, zip(*answers, strict=True), strict=True)]


def averaged_one(example: Example, predictions: Sequence[Prediction]) -> Prediction:
    """The mean of several predictions of one example."""
    if not predictions[0].choice_nll:
        raise DataError(f"example {example.id!r}: free text has no probabilities to average; use a choice task")
    nll = mean_probability([p.choice_nll for p in predictions])
    best = nll.index(min(nll))
    return replace(predictions[0], choice=best, text=example.choices[best], choice_nll=tuple(nll))


def abstention(
    prompt: Prompt, task: Task, backbone: Backbone, split: Split = "test", limit: int | None = None
) -> list[tuple[float, float]]:
    """Accuracy of a prompt on the tenth of a split that it is most confident of, on two tenths, … and on all.

    Raises DataError for free text, which has no confidence.
    """
    if not task.is_choice:
        raise DataError(f"task {task.name!r} is free text: abstention ranks answers by the probability of a choice")
    examples = task.split(split)[:limit]
    curve = abstention_curve(examples, predict(prompt, task, backbone, examples))
    places = sorted({max(1, round(len(curve) * tenth / 10)) for tenth in range(1, 11)})
    return [curve[place - 1] for place in places]


def abstention_curve(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[tuple[float, float]]:
    """Accuracy on the most confident share of examples, for every share: answer less, be right more often.

    >>> abstention_curve(examples, predictions)[-1]  # doctest: +SKIP
    (1.0, 0.81)
    """
    confidence = np.array([float(torch.softmax(-torch.tensor(p.choice_nll), 0).max()) for p in predictions])
    right = np.array([p.choice == e.label for p, e in zip(predictions, examples, strict=True)], dtype=float)
    order = np.argsort(-confidence, kind="stable")
    count = np.arange(1, len(order) + 1)
    return [(float(n / len(order)), float(s / n)) for n, s in zip(count, right[order].cumsum(), strict=True)]
