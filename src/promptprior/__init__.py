"""promptprior: learn soft prompts that transfer.

    sources ──fit──> Prior ──adapt (k examples)──> Prompt ──score_on_test──> scores ──compare──> report

    Task -> draw -> Batch ------------------------.
                                                  |--> backbone.losses(prompts, batch) -> [R]
    parameterisation.prompts(params, batch) ------'            |
                          rule.step(state, batch) <------------'      one training loop (train.py)

A soft prompt is only an input of a frozen model, so particles, tasks, episodes and learning rates are all just more
prompts and more rows of one batch.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from promptprior.adapt import Adapted, adapt, make_episode, score_on_test
    from promptprior.artifacts.artifact import Prior, Prompt
    from promptprior.backbone import Backbone, load
    from promptprior.compare.plan import Plan
    from promptprior.compare.run import compare
    from promptprior.config.training import Settings, Training
    from promptprior.evaluate import evaluate, predict
    from promptprior.fit import RunControl, fit
    from promptprior.guard import guarded
    from promptprior.methods import METHODS, make_method
    from promptprior.report.page import write_report
    from promptprior.tasks import Task, load_task

HOMES = {
    "METHODS": "methods",
    "Adapted": "adapt",
    "Backbone": "backbone",
    "Plan": "compare.plan",
    "Prior": "artifacts.artifact",
    "Prompt": "artifacts.artifact",
    "RunControl": "fit",
    "Settings": "config.training",
    "Task": "tasks",
    "Training": "config.training",
    "adapt": "adapt",
    "compare": "compare.run",
    "evaluate": "evaluate",
    "fit": "fit",
    "guarded": "guard",
    "load": "backbone",
    "load_task": "tasks",
    "make_episode": "adapt",
    "make_method": "methods",
    "predict": "evaluate",
    "score_on_test": "adapt",
    "write_report": "report.page",
}
"""Where each public name lives. They are imported on first use: `promptprior --help` then needs no torch."""

__all__ = [
    "METHODS",
    "Adapted",
    "Backbone",
    "Plan",
    "Prior",
    "Prompt",
    "RunControl",
    "Settings",
    "Task",
    "Training",
    "adapt",
    "compare",
    "evaluate",
    "fit",
    "guarded",
    "load",
    "load_task",
    "make_episode",
    "make_method",
    "predict",
    "score_on_test",
    "write_report",
]


def __getattr__(name: str) -> object:
    """A public name, from the module it lives in."""
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
    globals()[name] = value
    return value


class Package(ModuleType):
    """This module's type: `adapt` means the function, though importing the file adapt.py would set it otherwise."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = Package
