from collections.abc import Sequence

import pytest

from promptprior.errors import DataError
from promptprior.tasks.loading.check import Shared, check_raise, check_task, shared_text
from promptprior.tasks.task import Example, Task


def example(name: str, text: str, label: int = 0) -> Example:
    choices = ("no", "yes")
    return Example(name, text, choices[label], choices, label)


def task(train: Sequence[Example], validation: Sequence[Example], test: Sequence[Example], name: str = "t") -> Task:
    splits = {"train": tuple(train), "validation": tuple(validation), "test": tuple(test)}
    return Task(name, "multiple_choice", ("accuracy",), splits, origin="here")  # type: ignore[arg-type]


SOUND = task([example("1", "a", 0), example("2", "b", 1)], [example("3", "c")], [example("4", "d")])


def test_a_sound_task_passes() -> None:
    assert check_task(SOUND) == ()
    assert check_raise(SOUND) is SOUND


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (task([], [example("1", "a")], [example("2", "b")]), r"task 't' \(here\): split 'train' is empty"),
        (task([example("1", "a")], [example("2", "b")], []), "split 'test' is empty"),
        (
            task([example("1", "a")], [example("2", "b")], [example("1", "c")]),
            r"1 id\(s\) stand in both train and test: 1",
        ),
        (task([example("1", "a")], [example("1", "b")], [example("2", "c")]), "both train and validation: 1"),
        (
            task([example("1", "A!")], [example("2", "b")], [example("3", "a")]),
            r"1 text\(s\) stand in both train and te",
        ),
    ],
)
def test_errors_stop_a_task(wrong: Task, message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_raise(wrong)


def test_warnings_are_told_and_pass() -> None:
    odd = task([example("1", "a"), example("1", "b")], [example("2", "c")], [example("3", "d", 1)])
    assert [p.message for p in check_task(odd)] == [
        "1 example(s) of train share an id with a different example",
        "no training example of class 'yes'",
    ]
    assert check_raise(odd) is odd


def test_errors_come_first() -> None:
    odd = task([example("1", "a")], [example("2", "c")], [])
    assert [p.level for p in check_task(odd)] == ["error", "warning"]


def test_shared_text_counts_test_texts_in_other_tasks_training() -> None:
    long = "A sentence that is long enough to be no accident, number {}"
    one = task([example(str(i), long.format(i)) for i in range(5)], [example("v", "v")], [example("t", "t")], "one")
    two = task(
        [example("x", "short")],
        [example("v", "v")],
        [example(str(i), long.format(i).upper()) for i in range(3, 9)],
        "two",
    )
    three = task([example("y", "short")], [example("v", "v")], [example("z", "short")], "three")
    assert shared_text([one, two, three]) == (Shared("one", "two", 2),)
    assert Shared("two", "three", 1) in shared_text([one, two, three], shortest=1)
