"""BMTPT: a posterior over prompts from all source tasks, by SVGD; targets adapt under it as their prior.

Lee, Jeong, Yun, Kim 2023, "Bayesian Multi-Task Transfer Learning for Soft Prompt Tuning" (Findings of EMNLP; arXiv
2402.08594). Parameterisation direct (decomposed for several targets together), rule svgd. From the paper: the two
stages, SVGD over one posterior of all sources, the particles' aggregate as the target's start and the posterior as its
prior. NOT recovered, hence all ours: M, kernel and bandwidth, likelihood weights, steps, optimiser and rates, the
prior's form and width, how particles are aggregated and started. docs/bmtpt.md says why each is as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch

from promptprior.artifacts.artifact import Prior
from promptprior.config.training import Settings
from promptprior.methods.learned import AdaptationInit, FitResult
from promptprior.methods.options import fact, option, target_option
from promptprior.methods.run_context import Episode, InitialParams, RunContext, stacked
from promptprior.methods.shared.curves import FORCES, curve
from promptprior.methods.shared.joint_targets import prior_index
from promptprior.methods.shared.particle_diagnostics import particle_report
from promptprior.methods.shared.particle_targets import joint_starts, target_starts
from promptprior.methods.shared.particles import PenaltyKind, StartKind, deviation, penalty
from promptprior.methods.shared.posterior import PosteriorRecipe
from promptprior.methods.workload import Workload
from promptprior.rules.stein_kernels import make_kernel
from promptprior.rules.svgd import Svgd
from promptprior.tasks.sampling.draws import StratifiedDraws
from promptprior.tasks.task import Task


@dataclass(frozen=True)
class Bmtpt(PosteriorRecipe):
    """Particles of a posterior over prompts, and MAP adaptation under it."""

    name: str = fact("bmtpt")
    needs_sources: bool = fact(True, init=False)
    revision: int = fact(1, init=False)  # 1: stratified batches, task weights that count in full
    start: StartKind = target_option("mean", "where targets start: mean, weighted, best (on dev) or sampled")
    penalty: PenaltyKind = target_option("gaussian", "prior of targets: gaussian, mixture or none")
    prior_width: tuple[float, ...] = target_option(
        (30.0, 300.0), "of that prior, in embedding scales; of several, dev picks one", above=0, at_least_one=True
    )
    joint_steps: int = target_option(
        0, "steps in which all targets of a seed first train one decomposed prompt together", least=0
    )
    low_rank_rate: float = target_option(0.01, "absolute rate of its low-rank parts, which start from 1", above=0)
    ensemble: bool = option(
        False, "also train the particles apart, to compare spreads (twice the cost)", omit_from_hash_if_default=True
    )

    def fit(self, context: RunContext, sources: Sequence[Task], seed: int) -> FitResult:
        """Draw M particles from the posterior of all sources, and describe them."""
        starts = [context.initial_prompt(seed, "bmtpt", m) for m in range(1 if self.jitter else self.particles)]
        params = self.jittered(context, stacked(starts), seed) if self.jitter else stacked(starts)
        key = context.key(self, seed, *(t.fingerprint for t in sources))
        run = self.particle_run(context, InitialParams(context.direct(), params), context.mixture(sources, seed), key)
        rule, draws, done = cast(Svgd, run.rule), cast(StratifiedDraws, run.draws), context.train(run, "source")
        chains = []
        if self.ensemble:  # the same particles, unseen by each other
            apart = replace(run, key=f"{run.key}-apart", rule=replace(rule, kernel=make_kernel("none")))
            chains.append(context.train(apart, "ensemble"))
        stages = (params, done.params, *(chain.params for chain in chains))
        spreads = [deviation(stage["prompt"]) / context.backbone.scale for stage in stages]
        diagnostics = {
            "source_loss": curve(done.history),
            "forces": {name: curve(done.history, name) for name in FORCES},
            "task_weights": (torch.tensor(rule.task_weights) * torch.tensor(draws.text_rates)).tolist(),
            "count": rule.count,
            "spread": {**dict(zip(("start", "particles", "ensemble"), spreads, strict=False)), "prior": self.width},
            **particle_report(run.objective, done.params["prompt"], draws, rule),
        }
        return FitResult(context.direct(), done.params, diagnostics, sum((c.cost for c in chains), done.cost))

    def init(self, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode]) -> AdaptationInit:
        """Every episode at the aggregate of its prior's particles, under each width of the prior term."""
        distinct = list({id(prior): prior for prior in priors}.values())
        posteriors = torch.stack([prior.params["prompt"].to(context.backbone.frozen.device) for prior in distinct])
        which = prior_index(priors)
        starts = target_starts(context, self.start, priors, posteriors[which], episodes)  # [E, L, D]
        if self.joint_steps:
            width = self.prior_width[len(self.prior_width) // 2] if self.penalty != "none" else None
            starts = joint_starts(context, self, starts, priors, episodes, width)
        widths = self.prior_width if self.penalty != "none" else (1.0,)
        copies = [(e, width) for e in range(len(episodes)) for width in widths]
        prior_term = penalty(
            self.penalty,
            posteriors,
            [which[e] for e, _ in copies],
            [width for _, width in copies],
            [len(episodes[e].shots.train) for e, _ in copies],
            context.backbone.scale,
        )
        params = {"prompt": starts.repeat_interleave(len(widths), dim=0)}
        variants = [{"prior_width": width} for width in widths] if prior_term else ({},)
        return AdaptationInit(context.direct(), params, prior_term, variants=variants)

    def workload(self, settings: Settings, sources: int = 1) -> Workload:
        """Its passes again with an ensemble of chains; a copy for each width, and of each particle where all adapt."""
        own, members = super().workload(settings, sources), self.particles if self.is_ensemble else 1
        passes = own.source_passes * (1 + self.ensemble)
        copies = (len(self.prior_width) if self.penalty != "none" else 1) * members
        return replace(own, source_passes=passes, adaptation_copies=copies, answering_prompts=members)


ARMS = (
    Bmtpt(),
    Bmtpt(name="bmtpt_chains", kernel="none"),  # control: chains from the same starts that do not see each other
    Bmtpt(name="bmtpt_single", particles=1),  # control: descent on the mixture of sources, the target prior around it
    Bmtpt(name="bmtpt_no_prior", prior_of="bmtpt", penalty="none"),  # control: targets only start from the posterior
    Bmtpt(name="bmtpt_linear", prior_of="bmtpt", head="linear"),  # ours: a linear head behind the adapted prompt
    Bmtpt(name="bmtpt_predictive", prior_of="bmtpt", is_ensemble=True),  # ours: every particle adapts, all answer
)
