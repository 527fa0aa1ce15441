"""Stochastic task sampling: how many tasks, which, and how a batch is shared among them."""

from collections import Counter

import pytest
import torch

from promptprior.tasks.sampling.batch import Tokens
from promptprior.tasks.sampling.draws import Pool, StochasticDraws, generator

STEPS = 3000


def draws(
    sizes: tuple[int, ...] = (8, 8, 8, 8), batch_size: int = 32, rates: tuple[float, ...] = ()
) -> StochasticDraws:
    pools = [Pool([Tokens((task, i), ((9,),)) for i in range(size)], task=task) for task, size in enumerate(sizes)]
    return StochasticDraws(pools, rates or (1 / len(sizes),) * len(sizes), batch_size, 13)


def shares(made: StochasticDraws) -> list[list[tuple[int, int]]]:
    return [made.shares(generator("test", step)) for step in range(STEPS)]


def test_a_step_is_a_pure_function_of_seed_and_step() -> None:
    one, two = draws(), draws()
    one.batch(4)
    assert torch.equal(one.batch(7).text_ids, two.batch(7).text_ids)
    assert not torch.equal(one.batch(7).text_ids, one.batch(8).text_ids)


def test_every_batch_is_full_and_its_texts_are_their_tasks() -> None:
    made = draws(sizes=(3, 5, 7))
    for step in range(50):
        batch = made.batch(step)
        assert batch.texts == 32
        assert torch.equal(batch.text_ids[:, 0], batch.task_index)
        assert torch.equal(batch.text_ids[:, 1], batch.example_index)
        assert (batch.step, batch.seeds) == (step, (13,))
        assert bool((batch.task_index.diff() >= 0).all())
        assert bool((batch.copy_index == 0).all())


def test_how_often_tasks_are_drawn_is_uniform_from_two_to_all() -> None:
    counts = Counter(len(s) for s in shares(draws()))
    assert counts.keys() == {2, 3, 4}
    for count in counts.values():
        assert count == pytest.approx(STEPS / 3, abs=5 * (STEPS * 2 / 9) ** 0.5)


def test_tasks_are_drawn_at_their_rates_with_replacement() -> None:
    rates = (0.5, 0.25, 0.15, 0.1)
    drawn = shares(draws(rates=rates))
    total = sum(map(len, drawn))
    seen = Counter(task for s in drawn for task, _ in s)
    for task, rate in enumerate(rates):
        assert seen[task] / total == pytest.approx(rate, abs=5 * (rate * (1 - rate) / total) ** 0.5)
    twice = sum(len({task for task, _ in s}) == 1 for s in drawn if len(s) == 2)
    pairs = sum(len(s) == 2 for s in drawn)
    expected = sum(rate**2 for rate in rates)  # both draws of a pair are the same task
    assert twice / pairs == pytest.approx(expected, abs=5 * (expected * (1 - expected) / pairs) ** 0.5)


def test_the_batch_is_split_evenly_and_one_draw_at_random_gets_the_rest() -> None:
    lucky: Counter[int] = Counter()
    for s in shares(draws(batch_size=11)):
        even, left = divmod(11, len(s))
        texts = [share for _, share in s]
        assert sorted(texts) == [even] * (len(s) - 1) + [even + left]
        if len(s) == 3:
            lucky[texts.index(even + left)] += 1
    total = lucky.total()
    assert lucky.keys() == {0, 1, 2}
    assert all(n == pytest.approx(total / 3, abs=5 * (total * 2 / 9) ** 0.5) for n in lucky.values())


@pytest.mark.parametrize(("sizes", "batch_size", "times"), [((5,), 4, {1}), ((5,) * 6, 3, {2, 3}), ((5, 5), 1, {1})])
def test_one_task_and_small_batches(sizes: tuple[int, ...], batch_size: int, times: set[int]) -> None:
    made = draws(sizes, batch_size)
    assert {len(s) for s in shares(made)} == times
    assert made.batch(0).texts == batch_size
