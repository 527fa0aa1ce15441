from collections import Counter
from collections.abc import Sequence

import pytest
import torch

from promptprior.errors import DataError, SpecError
from promptprior.tasks.sampling.batch import Batch, Tokens
from promptprior.tasks.sampling.draws import (
    BUCKET,
    CROSSFIT_SEEDS,
    EpisodeDraws,
    MixtureDraws,
    Pool,
    generator,
    k_shot,
    mixture_rates,
    select_test,
)
from promptprior.tasks.task import Example, Task, normalised

CHOICES = ("bad", "good", "so so")


def choice(name: str, text: str, label: int) -> Example:
    return Example(name, text, CHOICES[label], CHOICES, label)


def task(train: Sequence[Example], test: Sequence[Example] = (), free: bool = False) -> Task:
    splits = {"train": tuple(train), "validation": (), "test": tuple(test)}
    return Task("t", "generate_until" if free else "multiple_choice", ("accuracy",), splits)  # type: ignore[arg-type]


LABELLED = task([choice(str(i), f"text {i}", i % 3) for i in range(150)], [choice("x", "TEXT 3!", 0)])


@pytest.mark.parametrize("seed", CROSSFIT_SEEDS)
@pytest.mark.parametrize("k", [1, 4, 16])
def test_k_shot_draws_k_of_each_class_twice_and_shares_nothing(k: int, seed: int) -> None:
    shots = k_shot(LABELLED, k, seed)
    for side in (shots.train, shots.dev):
        assert Counter(e.label for e in side) == {0: k, 1: k, 2: k}
    assert {e.id for e in shots.train}.isdisjoint({e.id for e in shots.dev})
    texts = [normalised(e.text) for e in (*shots.train, *shots.dev)]
    assert len(set(texts)) == len(texts)
    assert "text 3" not in texts  # it stands in test, in other letters
    assert set(shots.train) | set(shots.dev) <= set(LABELLED.split("train"))


def test_crossfits_seeds_draw_differently_and_each_the_same_again() -> None:
    assert CROSSFIT_SEEDS == (13, 21, 42, 87, 100)
    drawn = [k_shot(LABELLED, 16, seed).train for seed in CROSSFIT_SEEDS]
    assert len({frozenset(side) for side in drawn}) == 5
    assert drawn == [k_shot(LABELLED, 16, seed).train for seed in CROSSFIT_SEEDS]


def test_every_example_is_drawn_sooner_or_later() -> None:
    drawn = {e.id for seed in range(60) for e in k_shot(LABELLED, 8, seed).train}
    assert drawn == {e.id for e in LABELLED.split("train")} - {"3"}


def test_repeated_texts_are_drawn_once() -> None:
    repeated = task([choice(f"{i}-{j}", f"Text {i}{'!' * j}", i % 2) for i in range(12) for j in range(5)])
    shots = k_shot(repeated, 16, 13)
    assert (len(shots.train), len(shots.dev)) == (6, 6)


def test_small_classes_give_half_to_each_side() -> None:
    sizes = {0: 40, 1: 5, 2: 2}
    uneven = task([choice(f"{c}-{i}", f"{CHOICES[c]} {i}", c) for c, n in sizes.items() for i in range(n)])
    shots = k_shot(uneven, 16, 13)
    assert Counter(e.label for e in shots.train) == Counter(e.label for e in shots.dev) == {0: 16, 1: 2, 2: 1}


def test_a_limited_dev_leaves_the_rest_of_a_class_to_training() -> None:
    shots = k_shot(LABELLED, 1000, 13, dev_limit=7)
    assert Counter(e.label for e in shots.dev) == {0: 2, 1: 2, 2: 2}
    assert {e.id for e in shots.train} | {e.id for e in shots.dev} == {str(i) for i in range(150) if i != 3}
    assert len(shots.train) + len(shots.dev) == 149
    few = k_shot(LABELLED, 4, 13, dev_limit=1)
    assert few.train == k_shot(LABELLED, 4, 13).train
    assert Counter(e.label for e in few.dev) == {0: 1, 1: 1, 2: 1}


def test_free_text_and_choices_of_their_own_are_one_class() -> None:
    free = task([Example(str(i), f"q {i}", f"a {i}") for i in range(50)], free=True)
    own = task([Example(str(i), f"q {i}", "a", ("a", str(i)), 0) for i in range(50)])
    for one_class in (free, own):
        shots = k_shot(one_class, 16, 21)
        assert (len(shots.train), len(shots.dev)) == (16, 16)


def test_draws_that_cannot_be_made() -> None:
    with pytest.raises(SpecError, match="--dev-limit"):
        k_shot(LABELLED, 4, 13, dev_limit=0)
    with pytest.raises(SpecError, match="shots must be at least 1; got 0"):
        k_shot(LABELLED, 0, 13)
    lonely = task([choice("1", "a", 0), choice("2", "b", 0), choice("3", "c", 1)])
    with pytest.raises(DataError, match=r"task 't': class 1 has 1 usable training example\(s\); .* need at least 2"):
        k_shot(lonely, 4, 13)
    with pytest.raises(DataError, match="split 'train' is empty"):
        k_shot(task([]), 4, 13)


def test_rates_by_hand() -> None:
    sizes = [100, 300, 600]
    assert mixture_rates(sizes, "proportional").tolist() == pytest.approx([0.1, 0.3, 0.6])
    assert mixture_rates(sizes, "capped", cap=300).tolist() == pytest.approx([1 / 7, 3 / 7, 3 / 7])
    assert mixture_rates(sizes, "uniform").tolist() == pytest.approx([1 / 3] * 3)
    roots = [10.0, 300**0.5, 600**0.5]
    expected = [root / sum(roots) for root in roots]
    assert mixture_rates(sizes, "temperature", temperature=2).tolist() == pytest.approx(expected)
    assert mixture_rates(sizes, "temperature", temperature=1).tolist() == pytest.approx([0.1, 0.3, 0.6])
    assert mixture_rates(sizes, "temperature", temperature=1e9).tolist() == pytest.approx([1 / 3] * 3)
    with pytest.raises(SpecError, match="mixture rates 'cubic': expected one of proportional, capped"):
        mixture_rates(sizes, "cubic")  # type: ignore[arg-type]


def pool(size: int, task_index: int = 0, copy: int = 0, length: int = 1) -> Pool:
    """Items that tell where they come from: their first token is 1000 * task + their place."""
    items = [Tokens((1000 * task_index + i, *[9] * (length * (i % 7))), ((1,),)) for i in range(size)]
    return Pool(items, task_index, copy)


def names(batch: Batch) -> list[int]:
    return batch.text_ids[:, 0].tolist()


def same(one: Batch, other: Batch) -> bool:
    tensors = [name for name, value in vars(one).items() if isinstance(value, torch.Tensor)]
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in tensors)


def test_mixtures_are_a_function_of_seed_and_step_alone() -> None:
    pools = [pool(50, 0), pool(20, 1)]
    draws = MixtureDraws(pools, [0.5, 0.5], 4, seed=13)
    forward = [draws.batch(step) for step in range(40)]
    backward = [MixtureDraws(pools, [0.5, 0.5], 4, seed=13).batch(step) for step in reversed(range(40))]
    assert all(same(a, b) for a, b in zip(forward, reversed(backward), strict=True))
    assert not all(same(a, MixtureDraws(pools, [0.5, 0.5], 4, 14).batch(s)) for s, a in enumerate(forward))


def test_mixtures_follow_their_rates_and_reach_every_example() -> None:
    draws = MixtureDraws([pool(30, 0), pool(10, 1), pool(5, 2)], [0.6, 0.4, 0.0], 8, seed=1)
    batches = [draws.batch(step) for step in range(40 * BUCKET)]
    tasks = Counter(int(t) for batch in batches for t in batch.task_index)
    total = 8 * 40 * BUCKET
    assert tasks[2] == 0
    assert tasks[0] / total == pytest.approx(0.6, abs=4 * (0.24 / total) ** 0.5)
    assert {name for batch in batches for name in names(batch)} == {*range(30), *range(1000, 1010)}
    assert all(batch.texts == 8 for batch in batches)


def test_a_mixture_is_uniform_within_a_task_whatever_the_lengths() -> None:
    draws = MixtureDraws([pool(7, length=10)], [1.0], 4, seed=2)
    steps = 60 * BUCKET
    counts = Counter(name for step in range(steps) for name in names(draws.batch(step)))
    expected = 4 * steps / 7
    assert sum((counts[i] - expected) ** 2 / expected for i in range(7)) < 22.5  # chi-square, 6 d.f., p = 0.001


def test_lengths_are_alike_within_a_batch_and_shuffled_between() -> None:
    draws = MixtureDraws([pool(70, length=10)], [1.0], 8, seed=3)
    batches = [draws.batch(step) for step in range(BUCKET)]
    spread = [int(b.text_lengths.max() - b.text_lengths.min()) for b in batches]
    assert max(spread) <= 20
    longest = [int(b.text_lengths.max()) for b in batches]
    assert longest != sorted(longest)
    assert len({tuple(sorted(names(b))) for b in batches}) == BUCKET  # each deals its own part of the group


def test_episodes_give_every_copy_its_own_examples() -> None:
    pools = [pool(10, 0, copy=0), pool(3, 1, copy=1), pool(6, 2, copy=2)]
    batch = EpisodeDraws(pools, 4, [13, 21, 42]).batch(5)
    assert batch.copy_index.tolist() == [0] * 4 + [1] * 3 + [2] * 4  # a small pool gives all it has
    assert [name // 1000 for name in names(batch)] == batch.task_index.tolist() == batch.copy_index.tolist()


def test_an_epoch_of_an_episode_covers_its_pool() -> None:
    for size, per_step in ((10, 4), (8, 4), (3, 4), (1, 1), (7, 1)):
        draws = EpisodeDraws([pool(size)], per_step, [13])
        per_epoch = -(-size // min(size, per_step))
        for epoch in range(3):
            steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
            drawn = Counter(name for step in steps for name in names(draws.batch(step)))
            assert set(drawn) == set(range(size))
            assert max(drawn.values()) <= 2  # only the last step of an epoch starts over
        assert all(len(set(names(draws.batch(step)))) == min(size, per_step) for step in range(12))


def test_episodes_are_stateless_shuffled_and_seeded_apart() -> None:
    draws = EpisodeDraws([pool(40, 0, 0), pool(40, 0, 1)], 8, [13, 21])
    backward = {step: draws.batch(step) for step in reversed(range(20))}
    assert all(same(backward[step], draws.batch(step)) for step in range(20))
    assert names(draws.batch(0)) != names(draws.batch(5))  # the second epoch has another order
    assert names(draws.batch(0))[:8] != names(draws.batch(0))[8:]


def test_an_episode_draws_alike_alone_and_in_company() -> None:
    both = EpisodeDraws([pool(40, 0, 0), pool(9, 1, 1)], 4, [13, 21]).batch(7)
    alone = EpisodeDraws([pool(9, 1, 1)], 4, [21]).batch(7)
    assert names(both)[4:] == names(alone)


def test_random_streams_are_independent_by_name() -> None:
    def first(*words: object) -> int:
        return int(torch.randint(2**40, (1,), generator=generator(*words)))

    assert first(13, "a") == first(13, "a")
    assert len({first(13, "a"), first(13, "b"), first(14, "a"), first("13/a", "")}) == 4


def test_a_batch_says_which_examples_it_holds_and_which_draw_it_is() -> None:
    pools = [pool(50, 0), pool(20, 1)]
    for step in (0, 5, 17):
        mixed = MixtureDraws(pools, [0.5, 0.5], 4, seed=13).batch(step)
        assert mixed.example_index.tolist() == [name % 1000 for name in names(mixed)]
        assert (mixed.step, mixed.seeds) == (step, (13,))
        own = EpisodeDraws([pool(10, 0, 0), pool(3, 1, 1)], 4, [13, 21]).batch(step)
        assert own.example_index.tolist() == [name % 1000 for name in names(own)]
        assert (own.step, own.seeds) == (step, (13, 21))


def test_seeds_are_found_by_copy() -> None:
    batch = EpisodeDraws([pool(4, 0, 2), pool(4, 1, 0)], 2, [13, 21]).batch(0)
    assert batch.seeds == (21, -1, 13)  # no text trains copy 1


def test_balanced_test_rows_are_the_first_of_each_class_as_many_of_each():
    labels = [0, 0, 0, 0, 1, 0, 1, 2, 1, 2]
    examples = tuple(Example(str(i), f"text {i}", "abc"[y], ("a", "b", "c"), y) for i, y in enumerate(labels))
    task = Task("t", "multiple_choice", ("accuracy",), {"train": examples, "test": examples})
    assert [e.id for e in select_test(task, 7)] == list("0123456")
    assert [e.id for e in select_test(task, 7, "balanced")] == ["0", "1", "4", "6", "7", "9"]
    assert [e.id for e in select_test(task, None, "balanced")] == ["0", "1", "4", "6", "7", "9"]  # the rarest has two
    assert [e.id for e in select_test(task, 5, "balanced")] == ["0", "4", "7"]
    with pytest.raises(SpecError, match=r"test limit 2 \(--test-limit\): expected at least 3"):
        select_test(task, 2, "balanced")
    free = Task("f", "generate_until", ("exact_match",), {"train": examples, "test": examples})
    assert select_test(free, 4, "balanced") == examples[:4]


@pytest.mark.parametrize("k", [1, 2, 4, 16])
def test_k_in_total_is_spread_evenly_over_the_classes(k: int) -> None:
    for seed in CROSSFIT_SEEDS:
        shots = k_shot(LABELLED, k, seed, shots_are="total")
        assert len(shots.train) == len(shots.dev) == k
        counts = Counter(e.label for e in shots.train)
        assert {counts[label] for label in range(3)} <= {k // 3, k // 3 + 1}
        assert not {e.id for e in shots.train} & {e.id for e in shots.dev}
    more = {
        Counter(e.label for e in k_shot(LABELLED, 1, s, shots_are="total").train).most_common(1)[0][0]
        for s in range(40)
    }
    assert more == {0, 1, 2}  # which class has one more is drawn
    alike = k_shot(LABELLED, 12, 13, shots_are="total")
    assert alike == k_shot(LABELLED, 4, 13)  # of equal shares the draw is that of so many per class


def test_dev_may_be_the_validation_split() -> None:
    held_out = [choice(f"v{i}", f"other {i}", i % 3) for i in range(12)] + [choice("v12", "Text 5", 2)]
    mixed = Task("t", "multiple_choice", ("accuracy",), {**LABELLED.examples, "validation": tuple(held_out)})
    shots = k_shot(mixed, 1000, 13, dev_from="validation")
    assert Counter(e.id for e in shots.dev) == Counter(e.id for e in held_out)
    texts = {normalised(e.text) for e in (*held_out, *LABELLED.split("test"))}
    assert len(shots.train) == sum(normalised(e.text) not in texts for e in LABELLED.split("train"))
    assert Counter(e.label for e in k_shot(mixed, 4, 13, 6, dev_from="validation").dev) == {0: 2, 1: 2, 2: 2}
    with pytest.raises(DataError, match="split 'validation' is empty"):
        k_shot(LABELLED, 4, 13, dev_from="validation")
