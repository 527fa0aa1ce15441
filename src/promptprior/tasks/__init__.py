"""What is learned: tasks as data, where they come from, and how batches are drawn from them."""

from promptprior.tasks.loading.check import Problem, Shared, check_raise, check_task, shared_text
from promptprior.tasks.loading.lm_eval import to_lm_eval
from promptprior.tasks.loading.load import TaskCard, available, catalogue_names, catalogue_spec, load_task
from promptprior.tasks.loading.partitions import Partition, read_partition, read_partitions
from promptprior.tasks.loading.spec import Metadata, TaskSpec, read_spec, render, spec_from
from promptprior.tasks.sampling.batch import Batch, Tokens, collate
from promptprior.tasks.sampling.draws import (
    CROSSFIT_SEEDS,
    Draws,
    EpisodeDraws,
    MixtureDraws,
    Pool,
    Shots,
    k_shot,
    mixture_rates,
)
from promptprior.tasks.task import SPLITS, Example, Split, Task

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
    "TaskCard",
    "TaskSpec",
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
