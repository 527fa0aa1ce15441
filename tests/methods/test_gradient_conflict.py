"""Gradient cosines of tasks against gradients taken one task at a time."""

import torch

from promptprior.methods.shared.gradient_conflict import LEAST, agreement_weights, task_cosines
from promptprior.objectives.objective import PromptObjective, loss_and_gradient
from promptprior.parameterisations.direct import Direct
from promptprior.tasks.sampling.batch import Tokens, collate
from tests.backbone.tiny import tiny


def test_cosines_are_those_of_the_tasks_own_gradients() -> None:
    backbone = tiny("gpt2")
    objective = PromptObjective(backbone, Direct(2, backbone.width))
    g = torch.Generator().manual_seed(0)
    params = {"prompt": torch.randn(1, 2, backbone.width, generator=g, dtype=torch.float64) * 0.1}
    items = [Tokens((5, 6), ((7,),)), Tokens((8,), ((9,),)), Tokens((9, 4), ((20,),))]
    made = task_cosines(objective, params, [collate(items, tasks=[0, 1, 1])], tasks=3)
    own = [collate(items[:1]), collate(items[1:])]
    a, b = (loss_and_gradient(objective, params, batch)[1]["prompt"].flatten() for batch in own)
    torch.testing.assert_close(made[0, 1], torch.cosine_similarity(a, b, dim=0))
    torch.testing.assert_close(made.diagonal()[:2], torch.ones(2, dtype=torch.float64))
    assert made[2].abs().max() == 0  # a task without rows


def test_weights_fall_with_disagreement_and_never_vanish() -> None:
    cosines = torch.tensor([[1.0, 0.8, -0.5], [0.8, 1.0, -0.5], [-0.5, -0.5, 1.0]])
    made = agreement_weights(cosines)
    torch.testing.assert_close(made.mean(), torch.tensor(1.0))
    torch.testing.assert_close(made[2] / made[0], torch.tensor(LEAST / 0.15))
    assert float(agreement_weights(torch.ones(1, 1))[0]) == 1
