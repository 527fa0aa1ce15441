"""Labelled examples as answered by a prompt that did not learn from them: what choices are made by."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from promptprior.tasks.metrics import Prediction
from promptprior.tasks.task import Example, Task


@dataclass(frozen=True)
class HeldOut:
    """A labelled example as answered by a prompt that did not learn from it.

    `target_nll` is the summed NLL in nats of each choice, or of the free answer (of an ensemble: minus the log of the
    mean probability, over the choices); `target_lengths` are their tokens.
    """

    example: Example
    target_nll: tuple[float, ...]
    target_lengths: tuple[int, ...]

    @property
    def right_nll(self) -> float:
        """NLL in nats of the right answer: among the choices (normalised over them), or per token of free text."""
        if not self.example.choices:
            return self.target_nll[0] / self.target_lengths[0]
        return -float(
            torch.log_softmax(-torch.tensor(self.target_nll, dtype=torch.float64), 0)[self.example.label or 0]
        )


def held_out_predictions(task: Task, answers: Sequence[HeldOut]) -> tuple[Prediction, ...]:
    """The likeliest choices; none for free text, which was not generated."""
    if not task.is_choice:
        return ()
    best = [min(range(len(a.target_nll)), key=a.target_nll.__getitem__) for a in answers]
    return tuple(
        Prediction(a.example.id, a.example.choices[b], b, a.target_nll, a.target_lengths)
        for a, b in zip(answers, best, strict=True)
    )
