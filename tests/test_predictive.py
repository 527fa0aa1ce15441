"""Averages of predictions against probabilities worked out by hand, and abstention on a case one can see."""

import math

import pytest

from promptprior.errors import DataError
from promptprior.metrics import Prediction
from promptprior.predictive import abstention_curve, averaged
from promptprior.tasks.task import Example

EXAMPLES = [
    Example(str(i), "x", choice, ("no", "yes"), label) for i, (choice, label) in enumerate([("yes", 1), ("no", 0)])
]


def prediction(example: int, probability: float) -> Prediction:
    """That says "yes" with a probability; likelihoods need not sum to one over the choices."""
    nll = (7 - math.log(1 - probability), 7 - math.log(probability))
    best = int(probability > 0.5)
    return Prediction(str(example), ("no", "yes")[best], best, nll, (1, 1))


def test_probabilities_are_averaged_not_votes() -> None:
    answers = [[prediction(0, p)] for p in (0.4, 0.4, 0.9)]
    made = averaged(EXAMPLES[:1], answers)[0]
    assert (made.choice, made.text) == (1, "yes")
    assert math.exp(-made.choice_nll[1]) == pytest.approx(1.7 / 3)
    assert sum(math.exp(-nll) for nll in made.choice_nll) == pytest.approx(1)


def test_free_text_cannot_be_averaged() -> None:
    with pytest.raises(DataError, match="example '0': free text has no probabilities"):
        averaged(EXAMPLES[:1], [[Prediction("0", "hello")]])


def test_abstention_answers_the_confident_first() -> None:
    made = abstention_curve(EXAMPLES, [prediction(0, 0.9), prediction(1, 0.6)])
    assert made == [(0.5, 1.0), (1.0, 0.5)]
