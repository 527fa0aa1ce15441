"""Labelled examples as answered by a prompt that did not learn from them: what choices are made by."""

from collections.abc import Sequence
from dataclasses import dataclass

from promptprior.evaluate import EvalSet, TargetNLL, likeliest, right_nll
from promptprior.tasks.metrics import Prediction, score
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
        """NLL in nats of the right answer (evaluate.right_nll)."""
        return right_nll(self.example, self.target_nll, self.target_lengths)


def held_out_answers(eval_set: EvalSet, nll: TargetNLL) -> tuple[HeldOut, ...]:
    """The examples of an evaluation set, with the NLL that each of their targets got."""
    return tuple(
        HeldOut(example, tuple(values), tokens.target_lengths)
        for example, values, tokens in zip(eval_set.examples, nll, eval_set.tokens, strict=True)
    )


def held_out_predictions(task: Task, answers: Sequence[HeldOut]) -> tuple[Prediction, ...]:
    """The likeliest choices; none for free text, which was not generated."""
    if not task.is_choice:
        return ()
    return tuple(likeliest(a.example, a.target_nll, a.target_lengths) for a in answers)


def held_out_score(task: Task, answers: Sequence[HeldOut]) -> float | None:
    """The task's first metric of these answers; None for free text, and without answers."""
    predictions = held_out_predictions(task, answers)
    first = task.metrics[0]
    return score(task, [a.example for a in answers], predictions, [first])[first] if predictions else None
