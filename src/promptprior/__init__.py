"""promptprior: learn soft prompts that transfer.

    sources ──fit──> Prior ──adapt (k examples)──> Prompt ──score_on_test──> scores ──compare──> report

    Task -> draw -> Batch ------------------------.
                                                  |--> backbone.losses(prompts, batch) -> [R]
    parameterisation.prompts(params, batch) ------'            |
                          rule.step(state, batch) <------------'      one training loop (train.py)

A soft prompt is only an input of a frozen model, so particles, tasks, episodes and learning rates are only more prompts
and more rows of one batch.

The names below are public (`__init__.pyi` says where each lives; it is imported on first use, so that `promptprior
--help` needs no torch). docs/extending.md lists the modules that other packages may import beside this one.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
