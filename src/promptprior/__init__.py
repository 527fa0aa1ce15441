"""promptprior: learn soft prompts that transfer.

    sources ──fit──> Prior ──adapt (k examples)──> Prompt ──score_on_test──> scores ──compare──> report

    Task -> draw -> Batch ------------------------.
                                                  |--> backbone.losses(prompts, batch) -> [R]
    parameterisation.prompts(params, batch) ------'            |
                          rule.step(state, batch) <------------'      one training loop (train.py)

A soft prompt is only an input of a frozen model, so particles, tasks, episodes and learning rates are all just more
prompts and more rows of one batch.
"""

from promptprior.adapt import Adapted, adapt, make_episode, score_on_test
from promptprior.backbone import Backbone, load
from promptprior.fit import fit
from promptprior.methods import METHODS, make_method
from promptprior.prompts.artifact import Prior, Prompt
from promptprior.settings import Settings, Training
from promptprior.tasks import Task, load_task

__all__ = [
    "METHODS",
    "Adapted",
    "Backbone",
    "Prior",
    "Prompt",
    "Settings",
    "Task",
    "Training",
    "adapt",
    "fit",
    "load",
    "load_task",
    "make_episode",
    "make_method",
    "score_on_test",
]
