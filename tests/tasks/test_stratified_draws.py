"""Batches that see every task: shares, seeds, and likelihoods of tasks whose texts differ in length."""

from collections import Counter
from itertools import product

import pytest
import torch

from promptprior.notation import Params, Tensor
from promptprior.objectives.objective import loss_and_gradient
from promptprior.rules.svgd import reweighted
from promptprior.tasks.sampling.batch import Batch, Tokens
from promptprior.tasks.sampling.draws import Pool, StratifiedDraws
from tests.tasks.test_draws import same

SIZES, LENGTHS = (40, 7, 90, 25), (2, 30, 9, 60)
POOLS = [
    Pool([Tokens((1000 * t + i, *[9] * (LENGTHS[t] + i % 3)), ((1,),)) for i in range(size)], t)
    for t, size in enumerate(SIZES)
]
UNIFORM, PROPORTIONAL, SKEWED = [0.25] * 4, [size / sum(SIZES) for size in SIZES], [0.9, 0.07, 0.02, 0.01]
RATES = {"uniform": UNIFORM, "proportional": PROPORTIONAL, "skewed": SKEWED}
WANTED = torch.tensor([0.7, 0.1, 0.1, 0.1])


def draws(rates: str = "uniform", size: int = 6, seed: int = 13) -> StratifiedDraws:
    return StratifiedDraws(POOLS, RATES[rates], size, seed)


def counts(batch: Batch) -> list[int]:
    found = Counter(batch.task_index.tolist())
    return [found[t] for t in range(len(POOLS))]


@pytest.mark.parametrize(("rates", "size"), [*product(RATES, (4, 5, 8, 13))])
def test_every_step_sees_every_task_and_no_step_strays_from_its_rates(rates: str, size: int) -> None:
    made = draws(rates, size)
    assert sum(made.text_rates) == pytest.approx(1)
    assert min(made.text_rates) >= 1 / size - 1e-9
    for step in range(50):
        drawn = counts(made.batch(step))
        assert sum(drawn) == size
        assert min(drawn) >= 1
        assert all(abs(n - size * rate) < 1 for n, rate in zip(drawn, made.text_rates, strict=True))


@pytest.mark.parametrize(("rates", "size"), [*product(RATES, (1, 3, 5, 6, 9))])
def test_rates_hold_in_the_mean_over_steps_and_over_seeds(rates: str, size: int) -> None:
    wanted = size * torch.tensor(draws(rates, size).text_rates, dtype=torch.float64)
    over_steps = torch.tensor([draws(rates, size).counts(step) for step in range(400)]).double().mean(0)
    torch.testing.assert_close(over_steps, wanted, atol=0.02, rtol=0)
    over_seeds = torch.tensor([draws(rates, size, seed).counts(3) for seed in range(1000)]).double().mean(0)
    torch.testing.assert_close(over_seeds, wanted, atol=0.065, rtol=0)  # 4 standard errors of half a text


def test_rates_that_give_every_task_a_text_are_kept() -> None:
    assert draws("proportional", 60).text_rates == pytest.approx(PROPORTIONAL)
    assert draws("skewed", 3).text_rates == pytest.approx(SKEWED)  # fewer texts than tasks: they take turns


def test_it_is_a_function_of_seed_and_step_alone() -> None:
    forward = [draws().batch(step) for step in range(20)]
    backward = [draws().batch(step) for step in reversed(range(20))]
    assert all(same(a, b) for a, b in zip(forward, reversed(backward), strict=True))
    assert not all(same(a, draws(seed=14).batch(step)) for step, a in enumerate(forward))


def test_texts_of_a_task_are_as_likely_whatever_their_length() -> None:
    found = Counter(int(i) for step in range(600) for i in draws(size=8).batch(step).text_ids[:, 0] if i // 1000 == 1)
    expected = sum(found.values()) / SIZES[1]
    assert sum((found[1000 + i] - expected) ** 2 / expected for i in range(SIZES[1])) < 22.5  # chi-square, p = 0.001


class ByTask:
    """The loss of a row is linear in the entry of its task, so that a gradient shows what each task counts."""

    def losses(self, params: Params, batch: Batch) -> Tensor:
        place = batch.text_ids[:, 0] % 1000
        return params["x"][batch.row_copy, batch.row_task] * (1 + place / 10)

    def split(self, params: Params, batch: Batch, share: float = 1.0) -> list[Batch]:
        return [batch]


@pytest.mark.parametrize(("rates", "size"), [*product(RATES, (2, 6, 12))])
def test_likelihood_shares_are_as_wanted_and_the_gradient_is_that_of_all_data(rates: str, size: int) -> None:
    made = draws(rates, size)
    weights = (WANTED / torch.tensor(made.text_rates)).tolist()
    params, steps, realised = {"x": torch.zeros(1, 4)}, 200, torch.zeros(4, dtype=torch.float64)
    gradients = []
    for step in range(steps):
        batch = reweighted(made.batch(step), weights)
        realised.index_add_(0, batch.row_task, batch.weight.double() / (batch.weight_total or 0))
        gradients.append(loss_and_gradient(ByTask(), params, batch)[1]["x"][0].double())
    assert ((realised / steps - WANTED).abs() < 0.02).all()
    whole = torch.tensor([sum(1 + i / 10 for i in range(size)) / size for size in SIZES], dtype=torch.float64) * WANTED
    each = torch.stack(gradients)  # [steps, 4]
    assert ((each.mean(0) - whole).abs() < 4 * each.std(0) / steps**0.5 + 1e-3).all()
