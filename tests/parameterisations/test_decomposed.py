"""Decomposed prompts against the formula, one text at a time, and their two speeds."""

import pytest
import torch

from promptprior.errors import ArtifactError
from promptprior.objectives.objective import PromptObjective, loss_and_gradient
from promptprior.parameterisations.decomposed import Decomposed, lr_multipliers_of
from promptprior.parameterisations.direct import Direct
from promptprior.rules.descent import Descent
from promptprior.rules.optimiser import AdamW, Rate
from promptprior.tasks.sampling.batch import Tokens, collate
from tests.backbone.tiny import tiny

L, TASKS, COPIES = 3, 4, 2


def params(width: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    shapes = {"shared": (COPIES, L, width), "u": (COPIES, TASKS, L), "v": (COPIES, TASKS, width)}
    return {name: torch.randn(*shape, generator=g, dtype=torch.float64) for name, shape in shapes.items()}


def test_every_text_reads_its_copys_shared_prompt_times_its_tasks_outer_product() -> None:
    values = params(5)
    batch = collate([Tokens((2,), ((3,),))] * 3, copies=[0, 1, 1], tasks=[3, 0, 2])
    prompts, index = Decomposed(L, 5, TASKS).prompts(values, batch)
    for text, (copy, task) in enumerate([(0, 3), (1, 0), (1, 2)]):
        rank_one = torch.outer(values["u"][copy, task], values["v"][copy, task])
        torch.testing.assert_close(prompts[index[text]], values["shared"][copy] * rank_one)


def test_every_task_starts_at_the_shared_prompt_and_its_gradient_there_is_the_sum_over_tasks() -> None:
    backbone = tiny("gpt2")
    form = Decomposed(L, backbone.width, 2)
    shared = params(backbone.width)["shared"] * 0.1
    batch = collate([Tokens((5, 6), ((7,),)), Tokens((8,), ((9,),))] * 2, copies=[0, 0, 1, 1], tasks=[0, 1, 1, 0])
    loss, gradient = loss_and_gradient(PromptObjective(backbone, form), form.init(shared), batch)
    plain, direct = loss_and_gradient(PromptObjective(backbone, Direct(L, backbone.width)), {"prompt": shared}, batch)
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(gradient["shared"], direct["prompt"])
    assert gradient["u"].shape == (2, 2, L)
    assert not torch.allclose(gradient["u"][:, 0], gradient["u"][:, 1])


def test_one_task_folds_into_a_plain_prompt() -> None:
    values = {name: value if name == "shared" else value[:, :1] for name, value in params(5).items()}
    form = Decomposed(L, 5, 1)
    batch = collate([Tokens((2,), ((3,),))] * 2, copies=[0, 1])
    assert torch.equal(form.fold(values)["prompt"], form.prompts(values, batch)[0])
    with pytest.raises(ArtifactError, match="4 tasks is no single prompt"):
        Decomposed(L, 5, TASKS).fold(params(5))


def test_the_two_speeds() -> None:
    backbone = tiny("gpt2")
    scale = backbone.scale
    form = Decomposed(L, backbone.width, 1)
    rate = Rate((0.3,), scale, lr_multipliers=lr_multipliers_of(0.3, 0.01, scale))
    rule = Descent(AdamW(rate))
    before = form.init(params(backbone.width)["shared"] * 0.1)
    batch = collate([Tokens((5, 6), ((7,),)), Tokens((8,), ((9,),))], copies=[0, 1])
    after, _ = rule.step(rule.init(before), batch, PromptObjective(backbone, form))
    moved = {name: (after.params[name] - before[name]).abs().median() for name in before}
    torch.testing.assert_close(moved["shared"], torch.tensor(0.3 * scale, dtype=torch.float64), rtol=1e-3, atol=0)
    torch.testing.assert_close(moved["u"], torch.tensor(0.01, dtype=torch.float64), rtol=1e-3, atol=0)
