from promptprior.tasks.loading.splits import CARVED_MOST, complete_splits
from promptprior.tasks.task import Example


def examples(n: int, word: str = "text", group: bool = False) -> tuple[Example, ...]:
    return tuple(Example(f"{word}{i}", f"{word} {i}", "a", group=str(i // 3) if group else "") for i in range(n))


def test_three_given_splits_stay_as_they_are() -> None:
    given = {"train": examples(3, "a"), "validation": examples(2, "b"), "test": examples(1, "c")}
    assert complete_splits(given) == (given, ())


def test_a_labelled_validation_split_is_the_test_where_there_is_none() -> None:
    splits, notes = complete_splits({"train": examples(100), "validation": examples(7, "v")})
    assert splits["test"] == examples(7, "v")
    assert len(splits["validation"]) == 10
    assert len(splits["train"]) == 90
    assert notes == (
        "test is the labelled validation split",
        "validation carved out of train by content (10 examples)",
    )


def test_one_split_gives_three_that_share_nothing_and_lose_nothing() -> None:
    splits, notes = complete_splits({"train": examples(100)})
    parts = [set(splits[name]) for name in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [81, 9, 10]
    assert set.union(*parts) == set(examples(100))
    assert len(notes) == 2


def carve(given: tuple[Example, ...]) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """What stays in train, and what is carved out of it for validation."""
    splits, _ = complete_splits({"train": given, "test": examples(1, "of another kind")})
    return splits["train"], splits["validation"]


def test_carving_depends_on_content_not_on_order() -> None:
    forward, backward = carve(examples(50)), carve(examples(50)[::-1])
    assert set(forward[1]) == set(backward[1])
    assert len(forward[1]) == 5


def test_groups_and_repeated_texts_stay_on_one_side() -> None:
    kept, taken = carve(examples(99, group=True))
    assert {e.group for e in kept}.isdisjoint({e.group for e in taken})
    repeated = tuple(Example(str(i), f"Text  {i % 10}!", "a") for i in range(100))
    kept, taken = carve(repeated)
    assert {e.text for e in kept}.isdisjoint({e.text for e in taken})
    assert len(taken) == 10


def test_carving_has_a_least_and_a_most() -> None:
    assert [len(part) for part in carve(examples(2))] == [1, 1]
    assert [len(part) for part in carve(examples(1))] == [1, 0]
    assert len(carve(examples(20_000))[1]) == CARVED_MOST


def test_texts_of_later_splits_leave_the_earlier_ones() -> None:
    def texts(*words: str) -> tuple[Example, ...]:
        return tuple(Example(w, w, "a") for w in words)

    given = {"train": texts("One!", "two", "three"), "validation": texts("TWO", "four"), "test": texts("one", "four.")}
    splits, notes = complete_splits(given)
    assert [e.text for e in splits["train"]] == ["three"]
    assert [e.text for e in splits["validation"]] == ["TWO"]
    assert splits["test"] == given["test"]
    assert notes == (
        "1 validation example(s) dropped whose text stands in a later split",
        "2 train example(s) dropped whose text stands in a later split",
    )
