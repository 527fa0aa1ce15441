"""MPT-meta: a start for prompts, learned so that a few steps on a few examples take it far.

Qin, Joty, Li, Zhao 2023, "Learning to Initialize: Can Meta Learning Improve Cross-task Generalization in Prompt
Tuning?" (ACL 2023, arXiv 2302.08143). Parameterisation direct (or bank, which is ours), rules maml and reptile.
docs/meta.md has the mathematics, the paper's protocol, and where the authors' code and ours differ.

    maml      the gradient of the query loss through all inner steps (Finn et al. 2017)
    fomaml    the query gradient at the adapted copy
    reptile   where inner training leads, without queries (Nichol et al. 2018)
    meta_sgd  maml that also learns the rate of every element (Li et al. 2017); targets keep these rates
    imaml     the implicit gradient of a pulled-back inner loop (Rajeswaran et al. 2019), whose steps see the same texts

A meta-learner may by default use as many rows as the multi-task baseline (source steps x batch size), every row that
passes through the backbone counted once; a row of a Hessian product takes 2.5 times as long (`cost.SECOND_ORDER`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from promptprior.artifacts.artifact import Prior
from promptprior.methods.learned import AdaptationInit, FitResult
from promptprior.methods.options import fact
from promptprior.methods.run_context import Episode, InitialParams, RunContext, stacked
from promptprior.methods.shared.bank_setup import BankRecipe
from promptprior.methods.shared.curves import curve
from promptprior.methods.shared.meta_learner import MetaRecipe
from promptprior.rules.maml import MULTIPLIER
from promptprior.tasks.task import Task


@dataclass(frozen=True)
class MetaPromptTuning(MetaRecipe):
    """A meta-learned start for prompts, or for tpt's bank."""

    name: str = fact("maml")
    needs_sources: bool = fact(True, init=False)

    def fit(self, context: RunContext, sources: Sequence[Task], seed: int) -> FitResult:
        """Meta-learn the start on units of the sources."""
        if self.parameterisation == "bank":
            initial, _ = BankRecipe().initial_bank(context, sources, context.mixture(sources, seed), seed)
        else:
            initial = InitialParams(context.direct(), stacked([context.initial_prompt(seed, self.name)]))
        if self.rule == "meta_sgd":
            factors = {f"{MULTIPLIER}{name}": torch.ones_like(value) for name, value in initial.params.items()}
            initial = replace(initial, params={**initial.params, **factors})
        key = context.key(self, seed, *(t.fingerprint for t in sources))
        run = self.source_run(context, initial, sources, seed, key)
        done = context.train(run, "source")
        diagnostics = {
            "source_loss": curve(done.history),
            "units": len(sources) * self.units_per_task,
            "meta_updates": run.steps,
            "moved": [line["moved"] for line in done.history[:1] + done.history[-1:]],
        }
        return FitResult(initial.parameterisation, done.params, diagnostics, done.cost)

    def init(self, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode]) -> AdaptationInit:
        """Every episode starts from its prior's one start; Meta-SGD's factors multiply the rate of every element."""
        if self.parameterisation == "bank":
            return BankRecipe().init(context, priors, episodes)
        device = context.backbone.frozen.device
        params = stacked([prior.params["prompt"][0].to(device) for prior in priors])
        if self.rule != "meta_sgd":
            return AdaptationInit(context.direct(), params)
        factors = torch.stack([prior.params[f"{MULTIPLIER}prompt"][0] for prior in priors])
        return AdaptationInit(context.direct(), params, lr_multipliers={"prompt": factors.to(device)})


ARMS = (
    MetaPromptTuning(name="maml", rule="maml"),
    MetaPromptTuning(name="fomaml", rule="fomaml"),
    MetaPromptTuning(name="reptile", rule="reptile", inner_steps=4, inner_optimiser="adam", query_size=0),
    MetaPromptTuning(name="meta_sgd", rule="meta_sgd"),
    MetaPromptTuning(name="imaml", rule="imaml", inner_steps=4),
)
