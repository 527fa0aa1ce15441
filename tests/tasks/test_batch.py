from dataclasses import replace

import pytest
import torch

from promptprior.tasks.sampling.batch import Batch, Tokens, collate

ITEMS = [
    Tokens((1, 2, 3), ((7,), (8, 9))),
    Tokens((4,), ((5, 6, 7),)),
    Tokens((5, 5), ((1,), (2,), (3, 4))),
]


def rows_of(batch: Batch) -> list[tuple[list[int], list[int], int, int, float]]:
    """A batch told row by row, without padding: text, target, copy, prompt, weight."""
    out = []
    for r in range(batch.rows):
        x = int(batch.text_index[r])
        text = batch.text_ids[x, : batch.text_lengths[x]].tolist()
        target = batch.target_ids[r, : batch.target_lengths[r]].tolist()
        out.append((text, target, int(batch.row_copy[r]), int(batch.prompt_index[x]), float(batch.weight[r])))
    return out


def test_collate_pads_on_the_right_and_keeps_every_row() -> None:
    batch = collate(ITEMS, copies=[0, 1, 1], tasks=[4, 5, 6])
    assert (batch.texts, batch.rows) == (3, 6)
    expected = [
        (list(item.text), list(target), copy, copy, 1.0)
        for item, copy in zip(ITEMS, [0, 1, 1], strict=True)
        for target in item.targets
    ]
    assert rows_of(batch) == expected
    assert batch.row_task.tolist() == [4, 4, 5, 6, 6, 6]
    assert batch.text_ids.tolist() == [[1, 2, 3], [4, 0, 0], [5, 5, 0]]


def test_tile_is_every_copy_reading_the_same_texts() -> None:
    batch = collate(ITEMS)
    tiled = batch.tile(3)
    assert (tiled.texts, tiled.rows) == (9, 18)
    assert rows_of(tiled) == [(text, target, m, m, w) for m in range(3) for text, target, _, _, w in rows_of(batch)]
    assert (tiled.text_index.diff() >= 0).all()
    assert tiled.task_index.tolist() == batch.task_index.tolist() * 3


def test_tiling_once_changes_nothing() -> None:
    batch = collate(ITEMS)
    assert rows_of(batch.tile(1)) == rows_of(batch)


@pytest.mark.parametrize("kept", [[0], [1], [0, 2], [1, 2], [0, 1, 2]])
def test_take_equals_collating_the_chosen_texts(kept: list[int]) -> None:
    batch, expected = collate(ITEMS).take(torch.tensor(kept)), collate([ITEMS[k] for k in kept])
    assert rows_of(batch) == rows_of(expected)
    assert batch.text_ids.shape == expected.text_ids.shape  # padding is cut to what is left
    assert batch.target_ids.shape == expected.target_ids.shape
    assert batch.text_index.tolist() == expected.text_index.tolist()


def test_taking_every_copy_apart_from_a_tiled_batch_gives_the_batch_back() -> None:
    batch = collate(ITEMS)
    part = batch.tile(4).take(torch.arange(6, 9))
    assert [(text, target) for text, target, *_ in rows_of(part)] == [(t, u) for t, u, *_ in rows_of(batch)]
    assert part.copy_index.tolist() == [2, 2, 2]


def test_reading_moves_prompts_only() -> None:
    batch = collate(ITEMS)
    moved = batch.reading(torch.tensor([2, 0, 1]))
    assert moved.prompt_index.tolist() == [2, 0, 1]
    assert torch.equal(moved.text_ids, batch.text_ids)
    assert torch.equal(batch.prompt_index, torch.zeros(3, dtype=torch.long))


def test_to_moves_every_tensor() -> None:
    moved = replace(collate(ITEMS), step=7, seeds=(13,)).to("meta")
    assert all(value.is_meta for value in vars(moved).values() if isinstance(value, torch.Tensor))
    assert (moved.step, moved.seeds) == (7, (13,))


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "a batch needs at least one text"),
        ([Tokens((1,), ())], "at least one target"),
        ([Tokens((1,), ((),))], "every target at least one token"),
    ],
)
def test_there_must_be_something_to_score(items: list[Tokens], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        collate(items)


def test_a_batch_of_empty_texts_is_fine() -> None:
    assert rows_of(collate([Tokens((), ((3,),))])) == [([], [3], 0, 0, 1.0)]


def test_without_a_draw_a_batch_knows_no_example_step_or_seed() -> None:
    batch = collate(ITEMS)
    assert (batch.example_index.tolist(), batch.step, batch.seeds) == ([-1, -1, -1], -1, ())
    bare = Batch(**{n: v for n, v in vars(batch).items() if n not in ("example_index", "step", "seeds")})
    assert bare.example_index.tolist() == [-1, -1, -1]
    assert batch.tile(2).seeds == ()


def test_examples_step_and_seeds_follow_their_texts() -> None:
    batch = collate(ITEMS, [0, 1, 1], examples=[4, 5, 6], step=9, seeds=(13, 21))
    assert batch.take(torch.tensor([0, 2])).example_index.tolist() == [4, 6]
    assert batch.reordered(torch.tensor([2, 0, 1]))[0].example_index.tolist() == [6, 4, 5]
    assert batch.reading(torch.tensor([0, 0, 0])).example_index.tolist() == [4, 5, 6]
    for same in (batch.take(torch.tensor([1])), batch.reordered(torch.tensor([2, 0, 1]))[0], batch.to("cpu")):
        assert (same.step, same.seeds) == (9, (13, 21))
    tiled = collate(ITEMS, examples=[4, 5, 6], step=9, seeds=(13,)).tile(2)
    assert tiled.example_index.tolist() == [4, 5, 6] * 2
    assert (tiled.step, tiled.seeds) == (9, (13, 13))  # every particle reads the one draw
