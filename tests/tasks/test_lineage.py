"""Tasks as the lineage of ATTEMPT has them: halves, label indices, metrics."""

from dataclasses import replace

import pytest
import torch

from promptprior.errors import DataError, SpecError
from promptprior.tasks.loading.lineage import halve_validation, index_labels, score_by
from promptprior.tasks.loading.splits import complete_splits
from promptprior.tasks.task import Example, Task


def rows(split: str, count: int) -> tuple[Example, ...]:
    choices = ("yes", "no", "maybe")
    return tuple(
        Example(f"{split}-{i}", f"{split} text {i}", choices[i % 3], choices=choices, label=i % 3) for i in range(count)
    )


def loaded(name: str, **counts: int) -> Task:
    """A task as loading completes it."""
    splits, notes = complete_splits({split: rows(split, n) for split, n in counts.items()})  # type: ignore[misc]
    return Task(name, "multiple_choice", ("accuracy", "macro_f1"), splits, origin="; ".join(("here", *notes)))


def names(examples: tuple[Example, ...]) -> list[str]:
    return [example.id for example in examples]


@pytest.mark.parametrize("with_test", [False, True])
def test_a_small_validation_set_is_halved_as_torch_permutes_it(with_test: bool) -> None:
    counts = {"train": 40, "validation": 11, **({"test": 9} if with_test else {})}
    halved = halve_validation(loaded("cb", **counts))
    order = torch.randperm(11, generator=torch.Generator().manual_seed(42)).tolist()  # the lineage's own two lines
    assert names(halved.examples["validation"]) == [f"validation-{i}" for i in order[:5]]
    assert names(halved.examples["test"]) == [f"validation-{i}" for i in order[5:]]
    assert sorted(names(halved.examples["train"])) == sorted(f"train-{i}" for i in range(40))  # nothing is carved out


def test_other_tasks_keep_their_splits() -> None:
    task = loaded("mnli", train=40, validation=11)
    assert halve_validation(task) is task
    with pytest.raises(DataError, match=r"task 'rte': 1 validation examples; halves \(--splits halved\) need two"):
        halve_validation(loaded("rte", train=8, validation=1, test=3))


def test_label_indices_answer_where_choices_are_shared() -> None:
    indexed = index_labels(loaded("cb", train=6, validation=3, test=3))
    assert [(e.target, e.choices, e.label) for e in indexed.examples["train"][:3]] == [
        (str(i), ("0", "1", "2"), i) for i in range(3)
    ]
    assert indexed.fingerprint != loaded("cb", train=6, validation=3, test=3).fingerprint
    own = [replace(e, choices=(e.id, "no"), target=e.id, label=0) for e in rows("train", 4)]
    by_row = Task("copa", "multiple_choice", ("accuracy",), {"train": tuple(own)})
    assert index_labels(by_row) is by_row


def test_another_metric_comes_first_and_must_be_known() -> None:
    task = loaded("cb", train=6, validation=3, test=3)
    assert score_by(task, {"cb": "macro_f1"}).metrics == ("macro_f1", "accuracy")
    assert score_by(task, {"rte": "macro_f1"}) is task
    with pytest.raises(SpecError, match="macro_f1"):
        score_by(task, {"cb": "macro_f2"})
