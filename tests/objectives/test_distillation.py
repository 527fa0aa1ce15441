"""The distilled objective against brute force: full logits of the model itself, one text at a time, in float64."""

from dataclasses import replace

import pytest
import torch

from promptprior.backbone import Backbone
from promptprior.backbone.kernels import lm_head as head
from promptprior.errors import SpecError
from promptprior.notation import Params, Tensor
from promptprior.objectives.distillation import Distilled
from promptprior.objectives.objective import PromptObjective, loss_and_gradient
from promptprior.parameterisations.decomposed import Decomposed
from promptprior.rules.descent import Descent
from promptprior.rules.optimiser import AdamW, Rate
from promptprior.tasks.sampling.batch import Batch
from tests.backbone.tiny import TrueFloat64, tiny
from tests.world import random_batch

LENGTH, TASKS, STRENGTH = 3, 2, 0.9
TASK_OF = [0, 1, 1, 0, 1]


@pytest.fixture(autouse=True)
def true_float64():
    with TrueFloat64():
        yield


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch() -> Batch:
    return replace(random_batch(len(TASK_OF)), task_index=torch.tensor(TASK_OF))


def student(backbone: Backbone) -> Params:
    form = Decomposed(LENGTH, backbone.width, TASKS)
    begun = form.init(noise(1, LENGTH, backbone.width, seed=1) * backbone.scale)
    return {name: value + 0.1 * noise(*value.shape, seed=2) * (name != "shared") for name, value in begun.items()}


def distilled(backbone: Backbone, strength: float = STRENGTH) -> Distilled:
    teachers = noise(TASKS, LENGTH, backbone.width, seed=3) * backbone.scale
    return Distilled(backbone, Decomposed(LENGTH, backbone.width, TASKS), teachers, strength)


def seen(backbone: Backbone, prompt: Tensor, made: Batch, text: int) -> tuple[Tensor, Tensor, Tensor]:
    """Targets, log-probabilities and last hidden states at the target positions, by the model's own forward pass."""
    ids = made.text_ids[text, : made.text_lengths[text]]
    target = made.target_ids[text, : made.target_lengths[text]]
    model, u = backbone.frozen.model, len(target)
    if backbone.frozen.card.is_encoder_decoder:
        embeds = torch.cat([prompt, backbone.frozen.embed(ids)])[None]
        out = model(inputs_embeds=embeds, labels=target[None], output_hidden_states=True)
        states = out.decoder_hidden_states[-1][0]
        return target, out.logits[0].log_softmax(-1), states
    embeds = torch.cat([prompt, backbone.frozen.embed(torch.cat([ids, target]))])[None]
    out = model(inputs_embeds=embeds, output_hidden_states=True)
    places = slice(len(prompt) + len(ids) - 1, len(prompt) + len(ids) - 1 + u)
    return target, out.logits[0, places].log_softmax(-1), out.hidden_states[-1][0, places]


def brute_force(made: Distilled, params: Params, of: Batch) -> Tensor:
    """Each row's loss as the paper writes it."""
    rows = []
    for text in range(of.texts):
        task = int(of.task_index[text])
        prompt = params["shared"][0] * torch.outer(params["u"][0, task], params["v"][0, task])
        target, q, ours = seen(made.backbone, prompt, of, text)
        with torch.no_grad():
            _, p, theirs = seen(made.backbone, made.teachers[task], of, text)
        ce = -q[torch.arange(len(target)), target].mean()
        kl = (p.exp() * (p - q)).sum(-1).mean()
        rows.append(ce + made.strength * (kl + (ours - theirs).square().mean()))
    return torch.stack(rows)


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5", "bart"])
def test_losses_and_gradients_are_those_of_the_formula(family: str) -> None:
    made = distilled(tiny(family))
    params = {name: value.requires_grad_() for name, value in student(made.backbone).items()}
    found, expected = made.losses(params, batch()), brute_force(made, params, batch())
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
    for one, other in zip(
        *(torch.autograd.grad(x.mean(), list(params.values())) for x in (found, expected)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
        assert float(other.abs().max()) > 0


def test_pieces_of_the_batch_and_of_the_head_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = loss_and_gradient(distilled(tiny("llama")), student(tiny("llama")), batch())
    made = distilled(tiny("llama", max_tokens=20))
    assert len(list(made.split(student(made.backbone), batch()))) > 1
    monkeypatch.setattr(head, "LOGITS_AT_ONCE", 96)  # one state at a time
    pieces = loss_and_gradient(made, student(made.backbone), batch())
    torch.testing.assert_close(pieces[0], whole[0], rtol=1e-10, atol=0)
    for name, gradient in whole[1].items():
        torch.testing.assert_close(pieces[1][name], gradient, rtol=1e-8, atol=1e-11)


def test_teachers_get_no_gradient_and_stay_as_they_were() -> None:
    made = distilled(tiny("llama"))
    teachers = made.teachers.clone().requires_grad_()
    params = {name: value.requires_grad_() for name, value in student(made.backbone).items()}
    replace(made, teachers=teachers).losses(params, batch()).sum().backward()
    assert teachers.grad is None
    assert all(value.grad is not None for value in params.values())
    assert torch.equal(teachers, made.teachers)


def test_a_student_that_is_its_teacher_pays_only_its_loss() -> None:
    backbone = tiny("llama")
    params = student(backbone)
    form = Decomposed(LENGTH, backbone.width, TASKS)
    same = Distilled(backbone, form, form.of_tasks(params)[0], strength=1e3)
    torch.testing.assert_close(
        same.losses(params, batch()), PromptObjective(backbone, form).losses(params, batch()), rtol=1e-10, atol=1e-10
    )


def test_hidden_tokens_cannot_be_distilled() -> None:
    class Blanked(Decomposed):
        def hidden(self, params: Params, batch: Batch) -> Tensor:
            return torch.zeros(TASKS, LENGTH, dtype=torch.bool)

    made = distilled(tiny("llama"))
    blanked = replace(made, parameterisation=Blanked(LENGTH, made.backbone.width, TASKS))
    with pytest.raises(SpecError, match="'decomposed' hides prompt tokens; distillation"):
        blanked.losses(student(made.backbone), batch())


def test_strength_zero_is_plain_training() -> None:
    backbone = tiny("llama")
    made, plain = distilled(backbone, 0.0), PromptObjective(backbone, Decomposed(LENGTH, backbone.width, TASKS))
    rule = Descent(AdamW(Rate((0.3,), backbone.scale)))
    one, other = rule.init(student(backbone)), rule.init(student(backbone))
    for _ in range(3):
        (one, info), (other, expected) = rule.step(one, batch(), made), rule.step(other, batch(), plain)
        torch.testing.assert_close(info["loss"], expected["loss"], rtol=1e-12, atol=0)
    for name, value in other.params.items():
        torch.testing.assert_close(one.params[name], value, rtol=1e-9, atol=1e-12)


def test_both_parts_are_there_and_never_negative() -> None:
    made = distilled(tiny("llama"))
    params = student(made.backbone)
    states = made.backbone.target_states(
        made.parameterisation.prompts(params, batch())[0], batch().reading(torch.tensor(TASK_OF))
    )
    taught = made.backbone.target_states(made.teachers, batch().reading(batch().task_index))
    assert bool((made.backbone.divergences(states, taught, batch()) > 0).all())
    assert float(made.backbone.divergences(states, states, batch()).abs().max()) < 1e-12
    plain = made.backbone.state_losses(states, batch())
    assert bool((made.losses(params, batch()) > plain).all())


def test_work_under_the_teachers_is_counted() -> None:
    made = distilled(tiny("llama"))
    before = made.backbone.meter.rows
    made.losses(student(made.backbone), batch())
    assert made.backbone.meter.rows - before == 2 * len(TASK_OF)
