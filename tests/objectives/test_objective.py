"""The gradient that rules follow: of each copy's own mean, in pieces, whatever else is in the batch."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from promptprior.backbone.forward.reference import reference_losses
from promptprior.notation import Params, Tensor
from promptprior.objectives.objective import PromptObjective, copy_losses, loss_and_gradient, mean_weights
from promptprior.parameterisations.direct import Direct
from promptprior.rules.curvature import hessian_product
from promptprior.tasks.sampling.batch import Batch
from tests.backbone.tiny import TrueFloat64, tiny
from tests.world import random_batch

LENGTH, COPIES = 3, 3
READS = [0, 1, 0, 0, 1, 0, 1, 1]  # copy 2 has no rows


@pytest.fixture(autouse=True)
def true_float64():
    with TrueFloat64():
        yield


def objective(**options: int) -> PromptObjective:
    backbone = tiny("llama", **options)
    return PromptObjective(backbone, Direct(LENGTH, backbone.width))


def prompts(made: PromptObjective) -> Params:
    g = torch.Generator().manual_seed(1)
    shape = (COPIES, LENGTH, made.backbone.width)
    return {"prompt": torch.randn(shape, generator=g, dtype=torch.float64) * made.backbone.scale}


def whole(made: PromptObjective, params: Params, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Each copy's plain mean over its own rows, in one piece."""
    leaf = params["prompt"].clone().requires_grad_()
    rows = made.losses({"prompt": leaf}, batch)
    owner = batch.copy_index[batch.text_index]
    means = [rows[owner == c].mean() if bool((owner == c).any()) else rows.new_zeros(()) for c in range(COPIES)]
    loss = torch.stack(means)
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


@pytest.mark.parametrize("choices", [1, 3])
@pytest.mark.parametrize("max_tokens", [1, 25, 10_000])
def test_pieces_give_the_gradient_of_every_copys_mean(choices: int, max_tokens: int) -> None:
    batch = random_batch(8, READS, choices=choices)
    expected_loss, expected = whole(objective(), prompts(objective()), batch)
    made = objective(max_tokens=max_tokens)
    pieces = list(made.split(prompts(made), batch))
    assert len(pieces) == {1: 8, 10_000: 1}.get(max_tokens, len(pieces))
    assert len(pieces) > 1 or max_tokens == 10_000
    loss, gradient = loss_and_gradient(made, prompts(made), batch)
    torch.testing.assert_close(loss, expected_loss, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient["prompt"], expected, rtol=1e-9, atol=1e-13)
    assert expected.abs().amax((1, 2))[:2].min() > 0


def test_a_copy_without_rows_has_no_loss_and_no_gradient() -> None:
    made = objective()
    loss, gradient = loss_and_gradient(made, prompts(made), random_batch(8, READS))
    assert loss[2] == 0
    assert bool((gradient["prompt"][2] == 0).all())
    assert bool((loss[:2] > 0).all())


def test_copying_the_rows_of_a_batch_changes_nothing() -> None:
    made, batch = objective(), random_batch(8, READS)
    doubled = random_batch(8, READS).take(torch.arange(8)).tile(1)
    twice = Batch(
        **{
            name: torch.cat([value, value + (8 if name == "text_index" else 0)])
            for name, value in vars(doubled).items()
            if name not in ("copy_index", "prompt_index", "step", "seeds", "weight_total")
        },
        copy_index=batch.copy_index.repeat(2),
        prompt_index=batch.prompt_index.repeat(2),
    )
    loss, gradient = loss_and_gradient(made, prompts(made), batch)
    loss2, gradient2 = loss_and_gradient(made, prompts(made), twice)
    assert twice.rows == 2 * batch.rows
    torch.testing.assert_close(loss2, loss, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient2["prompt"], gradient["prompt"], rtol=1e-9, atol=1e-13)


def test_weights_make_a_weighted_mean_within_each_copy() -> None:
    made, batch = objective(), random_batch(8, READS)
    weighted = replace(batch, weight=torch.tensor([3.0, 1, 0, 1, 1, 2, 4, 0]))
    loss, _ = loss_and_gradient(made, prompts(made), weighted)
    rows = made.losses(prompts(made), batch)
    by_hand = (3 * rows[0] + rows[3] + 2 * rows[5]) / 6, (rows[1] + rows[4] + 4 * rows[6]) / 6
    torch.testing.assert_close(loss[:2], torch.stack(by_hand), rtol=0, atol=1e-12)
    assert mean_weights(weighted, COPIES).tolist() == pytest.approx([3 / 6, 1 / 6, 0, 1 / 6, 1 / 6, 2 / 6, 4 / 6, 0])
    assert copy_losses(torch.ones(8), mean_weights(weighted, COPIES), weighted, COPIES).tolist() == [1, 1, 0]


def test_params_are_left_as_they_were() -> None:
    made = objective()
    params = prompts(made)
    kept = params["prompt"].clone()
    loss_and_gradient(made, params, random_batch(8, READS))
    assert torch.equal(params["prompt"], kept)
    assert not params["prompt"].requires_grad
    assert params["prompt"].grad is None


@dataclass(frozen=True)
class Blanked(Direct):
    """A prompt whose first token nobody reads in copy 0, and whose second nobody reads in copy 1."""

    def hidden(self, params: Params, batch: Batch) -> Tensor:
        hidden = torch.zeros(params["prompt"].shape[:2], dtype=torch.bool)
        hidden[0, 0] = hidden[1, 1] = True
        return hidden


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_hidden_tokens_are_those_that_the_parameterisation_names(family: str) -> None:
    backbone, batch = tiny(family, max_tokens=40), random_batch(8, READS)
    made = PromptObjective(backbone, Blanked(LENGTH, backbone.width))
    params = prompts(made)
    hidden = made.parameterisation.hidden(params, batch)  # type: ignore[attr-defined]
    leaf = params["prompt"].clone().requires_grad_()
    expected = reference_losses(backbone.frozen, leaf, batch, hidden)
    with torch.no_grad():
        torch.testing.assert_close(made.losses(params, batch), expected, rtol=1e-7, atol=1e-9)
    loss, gradient = loss_and_gradient(made, params, batch)
    means = [expected[batch.row_copy == c].mean() for c in range(2)]
    torch.testing.assert_close(loss[:2], torch.stack(means).detach(), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(
        gradient["prompt"], torch.autograd.grad(torch.stack(means).sum(), leaf)[0], rtol=1e-6, atol=1e-9
    )
    assert float(gradient["prompt"][hidden].abs().max()) == 0
    assert float(gradient["prompt"][:2][~hidden[:2]].abs().min(0).values.max()) > 0
    plain = PromptObjective(backbone, Direct(LENGTH, backbone.width)).losses(params, batch)
    assert bool((made.losses(params, batch) - plain).abs().min() > 1e-6)
    assert made.generate(params, batch, 5) == backbone.generate(
        params["prompt"], batch, 5, first_line=True, hidden=hidden
    )


def test_hessian_products_leave_hidden_tokens_out() -> None:
    backbone, batch = tiny("llama"), random_batch(8, READS)
    made = PromptObjective(backbone, Blanked(LENGTH, backbone.width))
    params, step = prompts(made), 1e-5
    g = torch.Generator().manual_seed(2)
    vector = {"prompt": torch.randn(params["prompt"].shape, generator=g, dtype=torch.float64)}
    up, down = (
        loss_and_gradient(made, {"prompt": params["prompt"] + s * vector["prompt"]}, batch)[1]["prompt"]
        for s in (step, -step)
    )
    found = hessian_product(made, params, batch, vector)["prompt"]
    assert (found - (up - down) / (2 * step)).norm() <= 1e-5 * found.norm()
    assert float(found[0, 0].abs().max()) == 0


class Cramped(torch.autograd.Function):
    """Memory runs out on the way back, when half of the work is done."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")


@dataclass(frozen=True)
class Small(PromptObjective):
    """Fits two texts at once; of more than two, `way` says when that shows."""

    way: str = "forward"

    def losses(self, params: Params, batch: Batch) -> Tensor:
        losses = super().losses(params, batch)
        if batch.texts <= 2:
            return losses
        if self.way == "forward":
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 1 bytes")
        return Cramped.apply(losses)


@pytest.mark.parametrize("way", ["forward", "backward"])
@pytest.mark.parametrize("max_tokens", [60, 10_000])
def test_what_does_not_fit_is_halved_and_nothing_is_counted_twice(way: str, max_tokens: int) -> None:
    made, batch = objective(max_tokens=max_tokens), random_batch(8, READS, choices=2)
    params = prompts(made)
    small = Small(made.backbone, made.parameterisation, way)
    loss, gradient = loss_and_gradient(made, params, batch)
    with pytest.warns(UserWarning, match="texts at once do not fit into memory: halved"):
        loss2, gradient2 = loss_and_gradient(small, params, batch)
    torch.testing.assert_close(loss2, loss, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient2["prompt"], gradient["prompt"], rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("way", ["forward", "backward"])
def test_hessian_products_are_halved_too(way: str) -> None:
    made, batch = objective(), random_batch(8, READS)
    params, vector = prompts(made), {"prompt": torch.ones_like(prompts(made)["prompt"])}
    expected = hessian_product(made, params, batch, vector)["prompt"]
    with pytest.warns(UserWarning, match="halved"):
        found = hessian_product(Small(made.backbone, made.parameterisation, way), params, batch, vector)["prompt"]
    assert (found - expected).norm() <= 1e-7 * expected.norm()
