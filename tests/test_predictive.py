"""Averages of predictions against probabilities worked out by hand, and abstention on a case one can see."""

import math

import pytest
import torch

from promptprior.adapt import adapt, make_episode
from promptprior.errors import DataError
from promptprior.evaluate import abstention_curve, abstention_tenths, average_predictions, evaluate, predict
from promptprior.methods import make_method
from promptprior.tasks.metrics import Prediction
from promptprior.tasks.task import Example
from tests.backbone.tiny import tiny
from tests.world import choice_task, early, short, text_task

EXAMPLES = [
    Example(str(i), "x", choice, ("no", "yes"), label) for i, (choice, label) in enumerate([("yes", 1), ("no", 0)])
]


def prediction(example: int, probability: float) -> Prediction:
    """That says "yes" with a probability; likelihoods need not sum to one over the choices."""
    nll = (7 - math.log(1 - probability), 7 - math.log(probability))
    best = int(probability > 0.5)
    return Prediction(str(example), ("no", "yes")[best], best, nll, (1, 1))


def test_what_averages_choices_does_not_serve_free_text() -> None:
    method = make_method("bmtpt_predictive")
    assert method.serves(choice_task("words", early)) is None
    assert "free text has no choices" in str(method.serves(text_task("free", str.upper)))


def test_probabilities_are_averaged_not_votes() -> None:
    answers = [[prediction(0, p)] for p in (0.4, 0.4, 0.9)]
    made = average_predictions(EXAMPLES[:1], answers)[0]
    assert (made.choice, made.text) == (1, "yes")
    assert math.exp(-made.choice_nll[1]) == pytest.approx(1.7 / 3)
    assert sum(math.exp(-nll) for nll in made.choice_nll) == pytest.approx(1)


def test_free_text_cannot_be_averaged() -> None:
    with pytest.raises(DataError, match="example '0': free text has no probabilities"):
        average_predictions(EXAMPLES[:1], [[Prediction("0", "hello")]])


def test_abstention_answers_the_confident_first() -> None:
    made = abstention_curve(EXAMPLES, [prediction(0, 0.9), prediction(1, 0.6)])
    assert made == [(0.5, 1.0), (1.0, 0.5)]


def test_a_prompt_abstains_in_tenths() -> None:
    backbone, task = tiny("llama", torch.float32), choice_task("target", early)
    prompt = adapt(make_method("prompt_tuning"), [make_episode(task, 2, 13)], backbone, None, short())[0].prompt
    examples = task.split("test")[:20]
    answers = predict(prompt, task, backbone, examples)
    curve = abstention_tenths(examples, answers)
    assert [share for share, _ in curve] == pytest.approx([i / 10 for i in range(1, 11)])
    assert curve[-1][1] == pytest.approx(evaluate(prompt, task, backbone, limit=20).scores["accuracy"])
    sure = max(answers, key=lambda p: abs(p.choice_nll[0] - p.choice_nll[1]))
    right = {e.id: e.label for e in examples}
    assert curve[0][1] in ((0.5, 1.0) if right[sure.example_id] == sure.choice else (0.0, 0.5))
