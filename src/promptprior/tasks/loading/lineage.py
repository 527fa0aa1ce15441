"""Tasks as the papers that build on ATTEMPT's code have them: halved validation sets, label indices as answers.

BMTPT, TPT, ATTEMPT and MPT share this pipeline (Asai et al. 2022's code, after Compacter's). Its texts are "field:
value" pairs behind the task's name; ours are those of the task's spec.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch

from promptprior.errors import DataError
from promptprior.tasks.loading.splits import MOVED
from promptprior.tasks.metrics import metric
from promptprior.tasks.task import Task

HALVED = frozenset(
    ("cola", "rte", "mrpc", "stsb", "wnli", "cb", "copa", "multirc", "wic", "wsc", "boolq", "superglue_rte", "scitail",
     "xsum")
)  # fmt: skip
"""Their small sets. Of others, 1,000 training examples are dev and the public validation set is the test."""
SPLIT_SEED = 42


def halve_validation(task: Task) -> Task:
    """A small task of the lineage with its validation set cut in half, dev first; other tasks as they are.

    The halves are those of torch.randperm with seed 42, as published: theirs too where the rows are in the published
    order and none is dropped. A test split of its own (SciTail) is left aside. What was carved out of train for dev, as
    there was no test split, teaches again. Raises DataError for fewer than two validation examples.
    """
    if task.name not in HALVED:
        return task
    splits = dict(task.examples)
    if MOVED in task.origin:  # the validation split became the test, and dev was carved out of train
        whole = splits["test"]
        splits["train"] = (*splits["train"], *splits.get("validation", ()))
    else:
        whole = splits.get("validation", ())
    if len(whole) < 2:
        raise DataError(f"task {task.name!r}: {len(whole)} validation examples; halves (--splits halved) need two")
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(SPLIT_SEED)).tolist()
    middle = len(whole) // 2
    splits["validation"] = tuple(whole[i] for i in order[:middle])
    splits["test"] = tuple(whole[i] for i in order[middle:])
    return replace(task, examples=splits, origin=f"{task.origin}; validation halved with seed {SPLIT_SEED}")


def index_labels(task: Task) -> Task:
    """The same task with label indices ("0", "1", …) as its answers, where all examples share one list of choices."""
    every = [example for examples in task.examples.values() for example in examples]
    if not task.is_choice or len({example.choices for example in every}) != 1:
        return task
    choices = tuple(map(str, range(len(every[0].choices))))
    examples = {
        split: tuple(replace(e, target=str(e.label), choices=choices) for e in rows)
        for split, rows in task.examples.items()
    }
    return replace(task, examples=examples)


def score_by(task: Task, metrics: Mapping[str, str]) -> Task:
    """The same task with the metric that `metrics` has for its name first. Raises SpecError for an unknown metric."""
    if task.name not in metrics:
        return task
    first = metrics[task.name]
    metric(first)
    return replace(task, metrics=(first, *(name for name in task.metrics if name != first)))
