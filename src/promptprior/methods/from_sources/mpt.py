"""MPT: one shared prompt times a matrix of rank one for each source, taught by the sources' own prompts.

Wang, Panda, Karlinsky, Feris, Sun, Kim 2023, "Multitask Prompt Tuning Enables Parameter-Efficient Transfer Learning"
(ICLR; arXiv 2303.02861). Parameterisation decomposed, rule descent on a distilled objective. A teacher is a prompt
tuned on one source (SPoT's source stage, all in one run). Theirs: strength 0.9, stochastic task sampling, rates 0.3
(shared) and 0.4 (rank one), the target's start; `methods.published` has the rest. Ours: u and v start from ones, the
layer and positions of the hidden states, how long teachers train. docs/rivals.md says why.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from promptprior.artifacts.artifact import Prior
from promptprior.config.training import Settings
from promptprior.cost import SCORED, Cost
from promptprior.methods.contract import Recipe
from promptprior.methods.learned import AdaptationInit, FitResult
from promptprior.methods.options import fact, option, target_option
from promptprior.methods.run_context import Episode, InitialParams, RunContext
from promptprior.methods.shared.curves import curve, sample_losses
from promptprior.methods.shared.joint_targets import target_groups, train_jointly
from promptprior.methods.shared.source_prompts import train_prompts
from promptprior.methods.workload import Workload
from promptprior.objectives.distillation import Distilled
from promptprior.parameterisations.decomposed import Decomposed, lr_multipliers_of
from promptprior.tasks.sampling.draws import MixtureDraws, StochasticDraws
from promptprior.tasks.task import Task


@dataclass(frozen=True)
class Mpt(Recipe):
    """A shared prompt and, for each source, u and v."""

    name: str = fact("mpt")
    needs_sources: bool = fact(True, init=False)
    distil: bool = option(True, "whether the sources' own prompts teach the shared one")
    strength: float = option(0.9, "weight of the distillation loss", least=0)
    teacher_steps: int = option(0, "steps that train the teachers; 0: as many as --source.steps", least=0)
    sampling: Literal["stochastic", "mixture"] = option(
        "stochastic", "batches of 2 to all tasks (as published), or of texts drawn one by one"
    )
    low_rank_speed: float = option(0.1, "what u and v, which start from 1, move by for a learning rate of 1", least=0)
    joint_steps: int = target_option(
        0, "steps in which all targets of a seed first train one shared prompt; it is frozen afterwards", least=0
    )
    needs_tokens: ClassVar[bool] = True
    read_prompts = "each_source"  # a batch of `sampling: stochastic` has half of them or more

    def fit(self, context: RunContext, sources: Sequence[Task], seed: int) -> FitResult:
        """Train the teachers, then the shared prompt and every source's u and v. The order of sources has no say."""
        sources = sorted(sources, key=lambda task: task.fingerprint)
        form = Decomposed(context.settings.length, context.backbone.width, len(sources))
        mixture, stage = context.mixture(sources, seed), context.settings.source
        cost, teachers, objective = Cost(), None, None
        if self.distil:
            longer = replace(context.settings, source=replace(stage, steps=self.teacher_steps or stage.steps))
            aside = replace(context, settings=longer, train=lambda run, _: context.train(run, "teachers"))
            taught = train_prompts(aside, sources, seed)
            cost, teachers = taught.cost, taught.params["prompt"]  # [K, L, D]
            objective = Distilled(context.backbone, form, teachers, self.strength)
        draws: MixtureDraws | StochasticDraws = mixture
        if self.sampling == "stochastic":
            draws = StochasticDraws(mixture.pools, mixture.rates, mixture.batch_size, seed)
        params = form.init(context.initial_prompt(seed, "mpt")[None])
        key = context.key(self, seed, *(t.fingerprint for t in sources))
        initial = InitialParams(form, params, lr_multipliers_of(1.0, self.low_rank_speed, context.backbone.scale))
        done = context.train(context.descent(key, stage, initial, draws, objective=objective), "source")
        diagnostics = {
            "sources": [task.name for task in sources],
            "source_loss": curve(done.history),
            "student_loss": sample_losses(context.backbone, form.of_tasks(done.params)[0], mixture),
            "teacher_loss": None if teachers is None else sample_losses(context.backbone, teachers, mixture),
        }
        return FitResult(form, done.params, diagnostics, done.cost + cost)

    def init(self, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode]) -> AdaptationInit:
        """Every episode at the shared prompt, with the means of the sources' u and v."""
        device = context.backbone.frozen.device
        multipliers = dict(lr_multipliers_of(1.0, self.low_rank_speed, context.backbone.scale))  # whatever the rate
        params = {name: torch.cat([p.params[name] for p in priors]).to(device) for name in ("shared", "u", "v")}
        params = {n: p if n == "shared" else p.mean(1, keepdim=True) for n, p in params.items()}
        if self.joint_steps:  # all targets of a group train one shared prompt together, which then stays as it is
            groups = target_groups(priors, episodes)
            form = Decomposed(context.settings.length, context.backbone.width, max(map(len, groups)))
            first = [members[0] for members in groups]
            start = {n: p[first] if n == "shared" else p[first].expand(-1, form.tasks, -1) for n, p in params.items()}
            trained = train_jointly(context, self, episodes, groups, InitialParams(form, start, {**multipliers}))
            params = {name: value.clone() for name, value in params.items()}
            for copy, members in enumerate(groups):
                params["shared"][members] = trained["shared"][copy]
                for name in ("u", "v"):
                    params[name][members, 0] = trained[name][copy, : len(members)]
            multipliers["shared"] = 0.0
        form = Decomposed(context.settings.length, context.backbone.width, 1)
        return AdaptationInit(form, params, lr_multipliers=multipliers)

    def workload(self, settings: Settings, sources: int = 1) -> Workload:
        """Its teachers train on as much as its own prompt, and then show it their states of every text."""
        steps = settings.source.steps
        passes = 1.0 + SCORED + (self.teacher_steps or steps) / max(1, steps) if self.distil else 1.0
        return replace(super().workload(settings, sources), source_passes=passes)


ARMS = (Mpt(), Mpt(name="mpt_no_distil", distil=False))  # the second is a control: the same stage without teachers
