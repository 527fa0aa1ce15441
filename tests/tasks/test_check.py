from collections.abc import Sequence
from pathlib import Path

import pytest

from promptprior.errors import DataError
from promptprior.tasks.loading.check import Problem, Shared, check_raise, check_task, conflicts, shared_text
from promptprior.tasks.loading.load import load_task
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


def test_labels_are_read_without_the_space_around_them(tmp_path: Path):
    file = tmp_path / "padded.csv"
    rows = [f"text {i},{' pos ' if i % 3 == 0 else 'neg' if i % 3 == 1 else 'pos'}" for i in range(30)]
    file.write_text("\n".join(["text,label", *rows]) + "\n")
    padded = load_task(file)
    assert padded.label_names == ("neg", "pos")
    assert {e.target for e in padded.split("train")} == {"neg", "pos"}
    file.write_text("text,label\na,x\nb,y\nc,  \n")
    with pytest.raises(DataError, match=r"line 4: column 'label' is empty"):
        load_task(file)


def test_labels_that_differ_by_case_are_refused_with_their_counts(tmp_path: Path):
    file = tmp_path / "cases.csv"
    rows = [f"text {i},{('pos', 'neg', 'neg', 'Pos')[i % 4]}" for i in range(18)]
    file.write_text("\n".join(["text,label", *rows]) + "\n")
    with pytest.raises(DataError, match=r"labels differ only by case: 'Pos' \(4 rows\), 'pos' \(5 rows\)"):
        load_task(file)


def test_one_text_with_two_answers_is_said(tmp_path: Path):
    file = tmp_path / "unclear.csv"
    rows = [f"text {i},{('pos', 'neg')[i % 2]}" for i in range(40)]
    file.write_text("\n".join(["text,label", *rows, "Text 5!,pos"]) + "\n")
    unclear = load_task(file)
    [line] = conflicts(unclear)
    assert line.endswith("have two different answers: 'text 5\\nLabel:' has 'neg', 'pos'")
    assert line.startswith("1 text(s) of ")
    assert Problem("warning", line) in check_task(unclear)
    file.write_text("\n".join(["text,label", *rows, "Text 5!,neg"]) + "\n")
    assert not conflicts(load_task(file))
