"""Meta-batches: disjoint sides, repeatable draws, one copy per unit."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from promptprior.errors import DataError, SpecError
from promptprior.tasks.sampling.batch import Tokens
from promptprior.tasks.sampling.draws import Pool
from promptprior.tasks.sampling.meta_draws import FewShotDraws, MetaDraws, Unit, units_of
from promptprior.tasks.task import Example, Task


def words(first: int, count: int) -> list[Tokens]:
    return [Tokens((first + i,), ((1,),)) for i in range(count)]


UNITS = [Unit(words(100 * u, 5), words(100 * u + 50, 3), task=u // 2) for u in range(4)]


def draws(**options: object) -> MetaDraws:
    made = MetaDraws(UNITS, units_per_step=3, inner_steps=4, support_size=2, query_size=2, seeds=[0])
    return replace(made, **options)  # type: ignore[arg-type]


def seen(batch: object, copy: int) -> list[int]:
    return batch.text_ids[batch.copy_index == copy, 0].tolist()  # type: ignore[attr-defined]


def test_a_step_is_a_pure_function_of_seed_and_step() -> None:
    first, again, other = draws().batch(3), draws().batch(3), draws().batch(4)
    assert torch.equal(first.query.text_ids, again.query.text_ids)  # type: ignore[union-attr]
    assert all(torch.equal(a.text_ids, b.text_ids) for a, b in zip(first.inner, again.inner, strict=True))
    assert not torch.equal(first.query.text_ids, other.query.text_ids)  # type: ignore[union-attr]


def test_every_copy_is_one_unit_with_its_own_sides() -> None:
    for step in range(20):
        batch = draws().batch(step)
        units = []
        for copy in range(3):
            query = seen(batch.query, copy)
            (unit,) = {word // 100 for word in query}
            support = [word for inner in batch.inner for word in seen(inner, copy)]
            assert {word // 100 for word in support} == {unit}
            assert all(word % 100 >= 50 for word in query)
            assert all(word % 100 < 50 for word in support)
            assert set(support) == {100 * unit + i for i in range(5)}  # eight places, all five seen
            assert batch.inner[0].task_index[batch.inner[0].copy_index == copy].tolist() == [unit // 2] * 2
            units.append(unit)
        assert len(set(units)) == 3


def test_every_unit_is_drawn_as_often() -> None:
    counts = torch.zeros(4)
    for step in range(200):
        ids = draws(units_per_step=1).batch(step).query.text_ids  # type: ignore[union-attr]
        counts[int(ids[0, 0]) // 100] += 1
    assert counts.min() > 30


def test_same_support_and_no_query() -> None:
    batch = draws(same_support=True, query_size=0).batch(0)
    assert batch.query is None
    assert all(torch.equal(batch.inner[0].text_ids, other.text_ids) for other in batch.inner)


def test_a_small_unit_gives_all_it_has() -> None:
    batch = draws(units=[Unit(words(0, 2), words(50, 1))], units_per_step=1, support_size=9, query_size=9).batch(0)
    assert sorted(seen(batch.inner[3], 0)) == [0, 1]
    assert seen(batch.query, 0) == [50]


def test_meta_learners_draw_for_themselves() -> None:
    both = draws(seeds=[5, 6]).batch(1)
    assert both.owner.tolist() == [0, 0, 0, 1, 1, 1]
    for owner, seed in enumerate((5, 6)):
        alone = draws(seeds=[seed]).batch(1)
        mine = [seen(both.query, 3 * owner + u) for u in range(3)]
        assert mine == [seen(alone.query, u) for u in range(3)]


def test_inner_and_query_batches_say_which_examples_and_which_draw_they_are() -> None:
    made = draws(seeds=[5, 6]).batch(3)
    assert made.query is not None
    for batch, first in (*((inner, 0) for inner in made.inner), (made.query, 50)):
        assert batch.example_index.tolist() == [word % 100 - first for word in batch.text_ids[:, 0].tolist()]
        assert (batch.step, batch.seeds) == (3, (5, 5, 5, 6, 6, 6))


def task(texts: Sequence[str], name: str = "t") -> Task:
    train = tuple(Example(str(i), text, "yes", ("yes", "no"), 0) for i, text in enumerate(texts))
    return Task(name, "multiple_choice", ("acc",), {"train": train}, label_names=("yes", "no"))


def number(of: Task, examples: Sequence[Example]) -> list[Tokens]:
    return [Tokens((int(e.id),), ((1,),)) for e in examples]


@pytest.mark.parametrize("shots", [None, 4])
def test_support_and_query_share_no_example_and_no_text(shots: int | None) -> None:
    made = task([f"word {i % 15}" for i in range(30)])
    units = units_of([made, made], number, 5, shots, seed=0)
    assert [u.task for u in units] == [0] * 5 + [1] * 5
    for unit in units:
        sides = [{t.text[0] % 15 for t in side} for side in (unit.support, unit.query)]
        assert not sides[0] & sides[1]
        assert len(unit.support) == (shots or 7)
        assert sum(map(len, sides)) == len(unit.support) + len(unit.query)
    assert len({tuple(t.text[0] for t in u.support) for u in units[:5]}) == 5


def test_pooled_units_have_both_sides_as_support() -> None:
    (unit,) = units_of([task([f"word {i}" for i in range(9)])], number, 1, None, seed=0, pooled=True)
    assert len(unit.support) == 9
    assert len(unit.query) == 0


def test_what_cannot_be_drawn_is_said() -> None:
    with pytest.raises(SpecError, match=r"5 units.*units_per_step.*1 to 4"):
        draws(units_per_step=5)
    with pytest.raises(SpecError, match="inner_steps 0"):
        draws(inner_steps=0)
    with pytest.raises(SpecError, match=r"units_per_task 6: expected 1 to 5"):
        units_of([], number, 6, None, seed=0)
    with pytest.raises(DataError, match=r"'t' has 1 distinct training example"):
        units_of([task(["same", "Same!"])], number, 1, None, seed=0)


def few_shot_pool(task: int, sizes: tuple[int, ...]) -> Pool:
    """Texts that are their own class's number, then their place in it."""
    return Pool([Tokens((10 + c, i), ((c,),)) for c, size in enumerate(sizes) for i in range(size)], task)


def test_few_shots_have_every_class_on_both_sides_and_share_no_text() -> None:
    draws = FewShotDraws([few_shot_pool(0, (9, 3, 1)), few_shot_pool(1, (5, 5, 5))], 2, support=4, query=3, seed=2)
    for step in range(20):
        batch = draws.batch(step)
        assert batch.unit_sizes == [
            int((batch.task_index == task).sum()) for task in batch.task_index.unique_consecutive()
        ]
        for task, sizes in ((0, {0: (4, 3), 1: (2, 1)}), (1, dict.fromkeys(range(3), (3, 2)))):
            own = batch.task_index == task
            for c in range(3):
                texts = own & (batch.target_ids[:, 0] == c)
                sides = [batch.text_ids[texts & (batch.weight == 0)], batch.text_ids[texts & (batch.weight != 0)]]
                assert tuple(map(len, sides)) == sizes.get(c, (0, 0))  # a class of one text is left out
                assert len(torch.cat(sides).unique(dim=0)) == sum(sizes.get(c, (0, 0)))
            assert torch.isclose(batch.weight[own].sum(), torch.tensor(1.0))
            assert batch.weight[own].sort(stable=True).values.equal(batch.weight[own])  # support stands first
    one, other, later = draws.batch(3), replace(draws).batch(3), draws.batch(4)
    assert all(torch.equal(getattr(one, n), getattr(other, n)) for n in ("text_ids", "weight", "unit_index"))
    assert not torch.equal(one.text_ids, later.text_ids)


def test_few_shots_of_many_classes_draw_some_anew_each_time() -> None:
    draws = FewShotDraws([few_shot_pool(0, (4,) * 12)], 1, support=1, query=1, seed=2, most_classes=5)
    drawn = [frozenset(draws.batch(step).target_ids[:, 0].tolist()) for step in range(30)]
    assert {len(classes) for classes in drawn} == {5}
    assert set().union(*drawn) == set(range(12))
