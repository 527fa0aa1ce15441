"""What is learned: tasks as data, where they come from, how answers are scored, and how batches are drawn.

Only the draws (`promptprior.tasks.sampling`) need torch; they are imported when one of their names is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from promptprior.tasks.loading.check import Problem, Shared, check_raise, check_task, shared_text
from promptprior.tasks.loading.lm_eval import to_lm_eval
from promptprior.tasks.loading.load import TaskSummary, available, catalogue_names, catalogue_spec, load_task
from promptprior.tasks.loading.partitions import Partition, read_partition, read_partitions
from promptprior.tasks.loading.spec import Metadata, TaskSpec, read_spec, render, spec_from
from promptprior.tasks.task import SPLITS, Example, Split, Task

if TYPE_CHECKING:
    from promptprior.tasks.sampling import (
        CROSSFIT_SEEDS,
        Batch,
        Draws,
        EpisodeDraws,
        MixtureDraws,
        Pool,
        Shots,
        Tokens,
        collate,
        k_shot,
        mixture_rates,
    )

__all__ = [
    "CROSSFIT_SEEDS",
    "SPLITS",
    "Batch",
    "Draws",
    "EpisodeDraws",
    "Example",
    "Metadata",
    "MixtureDraws",
    "Partition",
    "Pool",
    "Problem",
    "Shared",
    "Shots",
    "Split",
    "Task",
    "TaskSpec",
    "TaskSummary",
    "Tokens",
    "available",
    "catalogue_names",
    "catalogue_spec",
    "check_raise",
    "check_task",
    "collate",
    "k_shot",
    "load_task",
    "mixture_rates",
    "read_partition",
    "read_partitions",
    "read_spec",
    "render",
    "shared_text",
    "spec_from",
    "to_lm_eval",
]


def __getattr__(name: str) -> Any:
    if name in __all__:  # what is not imported above is a draw
        return getattr(import_module("promptprior.tasks.sampling"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
