"""Reptile against SGD, hand-run inner loops, and the faults of the authors' code."""

import pytest
import torch

from promptprior.errors import TrainingError
from promptprior.notation import Params, Tensor
from promptprior.objectives.objective import PromptObjective
from promptprior.parameterisations.direct import Direct
from promptprior.rules.descent import Descent
from promptprior.rules.inner import Inner, InnerAdam, InnerSgd, broadcast_to_units
from promptprior.rules.optimiser import Adafactor, AdamW, Optimiser, Rate, Sgd
from promptprior.rules.reptile import Reptile
from promptprior.tasks.sampling.batch import Batch, Tokens, collate
from promptprior.tasks.sampling.meta_draws import MetaBatch
from tests.backbone.tiny import tiny
from tests.rules.meta_toys import Toy, meta_numbers, numbers, plain_step, unit_loss, wave
from tests.rules.test_maml import TOY, close, meta_rows, start, two_parts


@pytest.mark.parametrize("outer", [Sgd(Rate((0.03,))), AdamW(Rate((0.1,))), Adafactor(Rate((0.1,)))])
def test_one_inner_step_is_descent(outer: Optimiser) -> None:
    """On the same rows: the units' mean gradient is the gradient of one batch where every unit counts alike."""
    values = [[1, 4], [2, 6], [3, 5]]
    meta = MetaBatch((numbers(values),), None, torch.zeros(3, dtype=torch.long))
    plain = numbers([[v for some in values for v in some]])
    reptile, descent = Reptile(outer, Inner(InnerSgd(0.7, scale=0.3))), Descent(outer)
    left, right = reptile.init(start()), descent.init(start())
    for _ in range(3):
        left, info = reptile.step(left, meta, TOY)
        right, other = descent.step(right, plain, TOY)
        close(left.params["prompt"], right.params["prompt"], 1e-7)
        assert info["loss"].item() == pytest.approx(other["loss"].item(), rel=1e-6)


@pytest.mark.parametrize("inner", [InnerSgd(0.02, scale=2.0), InnerAdam(0.1, scale=0.5)])
def test_follows_the_displacement_of_a_hand_run_inner_loop(inner: InnerSgd | InnerAdam) -> None:
    params, batch, loss = start(), meta_numbers(4), unit_loss(TOY)
    ends = []
    for u in range(3):
        p, memory = {"prompt": params["prompt"][0]}, [{"prompt": torch.zeros(2, 2).double()}] * 2
        for k, support in enumerate(batch.inner):
            leaf = {"prompt": p["prompt"].clone().requires_grad_()}
            (g,) = torch.autograd.grad(loss(leaf, u, support), leaf["prompt"])
            p, memory = plain_step(inner, p, {"prompt": g}, memory, {}, k)
        ends.append(p["prompt"])
    unit = inner.rate * inner.scale ** (2 if isinstance(inner, InnerSgd) else 1)
    # outer SGD with rate `unit` moves by the mean displacement itself
    state, _ = (rule := Reptile(Sgd(Rate((unit,))), Inner(inner))).step(rule.init(params), batch, TOY)
    close(state.params["prompt"][0], torch.stack(ends).mean(0), 1e-7)


def test_needs_no_query_and_one_engine_call_per_inner_step() -> None:
    """Cheap: K calls and K backward passes for any number of units."""
    calls = []

    class Counting(Toy):
        def losses(self, params: Params, batch: Batch) -> Tensor:
            calls.append(batch.texts)
            return super().losses(params, batch)

    batch = meta_numbers(4, units=5)
    rule = Reptile(Sgd(Rate((0.1,))), Inner(InnerSgd(0.1)))
    rule.step(rule.init(start()), MetaBatch(batch.inner, None, batch.owner), Counting(wave))
    assert len(calls) == 4


def test_displacement_survives_the_rounding_of_large_prompts() -> None:
    """papers.md 3.6.1: entries of 15 in float32 swallow steps of 3e-5 times a small gradient; summed steps do not."""
    params = {"prompt": 15 + torch.rand(1, 2, 2)}
    gradients = Toy(lambda p, v: 1e-3 * (p["prompt"] * v).sum())
    batch = meta_numbers(10, units=2)
    trajectory = Inner(InnerSgd(3e-5)).run(gradients, broadcast_to_units(params, batch.owner), batch.inner)
    assert torch.equal(trajectory.end["prompt"], trajectory.start["prompt"])  # what the authors' code subtracted
    means = torch.zeros(2)
    for b in batch.inner:
        means += torch.stack([b.text_ids[b.copy_index == u, 0].float().mean() for u in range(2)])
    assert torch.allclose(trajectory.displacement["prompt"], (1e-3 * means)[:, None, None].expand(2, 2, 2), rtol=1e-5)
    rule = Reptile(Sgd(Rate((1.0,))), Inner(InnerSgd(3e-5)))
    with pytest.raises(TrainingError, match="moved 2 of 2 units"):  # and such a rate is refused all the same
        rule.step(rule.init(params), batch, gradients)


def test_partial_adaptation_leaves_the_rest() -> None:
    params = {**start(), "shared": start(seed=1)["prompt"]}
    rule = Reptile(Sgd(Rate((0.1,))), Inner(InnerSgd(0.1), names=("prompt",)))
    state, _ = rule.step(rule.init(params), meta_numbers(2), Toy(two_parts))
    assert torch.equal(state.params["shared"], params["shared"])
    assert not torch.equal(state.params["prompt"], params["prompt"])


@pytest.mark.parametrize("inner", [InnerSgd(1.0), InnerAdam(0.1)])
def test_loss_falls_on_a_model(inner: InnerSgd | InnerAdam) -> None:
    """papers.md 3.6.1: the released Reptile ended where it had begun (7.81 -> 7.82)."""
    objective = PromptObjective(tiny("llama", torch.float32), Direct(3, 32))
    rule = Reptile(AdamW(Rate((0.05,))), Inner(inner))
    state = rule.init({"prompt": torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(0))})
    batch = meta_rows(3)
    losses = []
    for _ in range(8):
        state, info = rule.step(state, batch, objective)
        losses.append(info["loss"].item())
    assert losses[-1] < losses[0] - 0.2
    assert info["moved"].item() > 1e-3
    assert info["adapted_loss"].item() < info["loss"].item()


def test_units_of_unlike_sizes_count_alike() -> None:
    few = collate([Tokens((3,), ((1,),)), *[Tokens((6,), ((1,),))] * 5], [0, *[1] * 5])
    rule = Reptile(Sgd(Rate((1.0,))), Inner(InnerSgd(1.0)))
    toy = Toy(lambda p, v: (p["prompt"] * v).sum())
    state, _ = rule.step(rule.init(start()), MetaBatch((few,), None, torch.tensor([0, 0])), toy)
    close(state.params["prompt"], start()["prompt"] - (3 + 6) / 2, 1e-7)
