"""Particles of a posterior over params, by SVGD: the source stage of `bmtpt`, and a rule that `tpt`'s bank can borrow.

The likelihood is tempered: the mean loss over sources, weighted by `weighting`, counts as so many observations as there
are sources (or training examples) over `temperature`; the prior over a particle is N(0, (width * scale)^2) an entry.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from promptprior.config.training import Settings
from promptprior.methods.contract import Recipe
from promptprior.methods.options import option
from promptprior.methods.run_context import InitialParams, RunContext
from promptprior.methods.shared.gradient_conflict import agreement_weights, task_cosines
from promptprior.methods.shared.particle_diagnostics import HELD_OUT_STEPS
from promptprior.methods.shared.particles import GaussianPenalty
from promptprior.methods.workload import Workload
from promptprior.notation import Params
from promptprior.objectives.objective import PromptObjective
from promptprior.rules.optimiser import optimiser, stage_rate
from promptprior.rules.stein_kernels import KernelKind, make_kernel
from promptprior.rules.svgd import Repulsion, Svgd
from promptprior.tasks.sampling.draws import MixtureDraws, StratifiedDraws, generator
from promptprior.tasks.task import Task
from promptprior.train import Run

TOKENS = ("prompt", "bank", "own")  # parameters in the space of embeddings


@dataclass(frozen=True)
class PosteriorRecipe(Recipe):
    """M particles that stand for the posterior of all sources."""

    particles: int = option(5, "M, prompts that stand for the posterior", least=1, most=2**16)
    kernel: KernelKind = option("per_token", "rbf, per_token, projected, gradient (its subspace) or none")
    block: int = option(0, "coordinates in a block of kernel per_token; 0: whole tokens", least=0, most=2**16)
    dimensions: int = option(16, "dimensions of kernel projected", least=1, most=2**16)
    repulsion: float = option(1.0, "factor on the repulsive force; 1 is SVGD", least=0)
    first_repulsion: float | None = option(
        None, "the factor at the first step, moved linearly to --options.repulsion", least=0
    )
    weighting: Literal["balanced", "proportional", "counts", "agreement"] = option(
        "balanced",
        "likelihood of sources: balanced or proportional (tempered to one observation per source), counts (the true "
        "posterior), agreement (less for sources whose gradients oppose the others)",
    )
    temperature: float = option(1.0, "divides the log-likelihood", above=0)
    width: float = option(100.0, "of the Gaussian prior over source prompts, in embedding scales; 0: flat", least=0)
    jitter: float = option(
        0.5, "noise around one shared start, in embedding scales; 0: every particle its own start", least=0
    )
    budget: Literal["full", "steps", "batch"] = option(
        "full", "full: every particle trains as long as one prompt; steps or batch: divided by M, at one prompt's cost"
    )

    def source_run(
        self, context: RunContext, initial: InitialParams, sources: Sequence[Task], seed: int, key: str
    ) -> Run:
        """SVGD around one copy of anything, of a prompt or of a bank."""
        around = replace(initial, params=self.jittered(context, initial.params, seed))
        return self.particle_run(context, around, context.mixture(sources, seed), key)

    def jittered(self, context: RunContext, params: Params, seed: int) -> Params:
        """M copies of one, all but the first with noise on their tokens: one particle starts where a prompt does."""
        copies = {n: value.expand(self.particles, *value.shape[1:]).clone() for n, value in params.items()}
        generator_of_noise = generator("jitter", seed)
        for name in [n for n in TOKENS if n in params]:
            noise = torch.randn(copies[name].shape, generator=generator_of_noise).to(copies[name])  # [M, L, D]
            noise[0] = 0
            copies[name] += self.jitter * context.backbone.scale * noise
        return copies

    def particle_run(self, context: RunContext, initial: InitialParams, mixture: MixtureDraws, key: str) -> Run:
        """SVGD of M particles on the tempered posterior, within the budget. Of the mixture it takes pools and rates.

        Its batches are stratified: the posterior is one of all sources, so a step should see them all.
        """
        stage, scale = context.settings.source, context.backbone.scale
        size = mixture.batch_size
        if self.budget == "steps":
            stage = replace(stage, steps=max(1, stage.steps // self.particles))
        elif self.budget == "batch":
            size = max(1, size // self.particles)
        draws = StratifiedDraws(mixture.pools, mixture.rates, size, mixture.seed)
        objective = PromptObjective(context.backbone, initial.parameterisation)

        if self.weighting in ("proportional", "counts"):
            share = torch.tensor([float(len(pool.items)) for pool in draws.pools])  # [tasks]
        elif self.weighting == "agreement":
            middle = {name: value.mean(0, keepdim=True) for name, value in initial.params.items()}
            batches = [draws.batch(step) for step in HELD_OUT_STEPS]
            cosines = task_cosines(objective, middle, batches, len(draws.pools))
            share = agreement_weights(cosines).cpu()
        else:
            share = torch.ones(len(draws.pools))
        share = share / share.sum()
        observations = sum(len(p.items) for p in draws.pools) if self.weighting == "counts" else len(draws.pools)
        count = observations / self.temperature

        penalty = None
        if self.width:  # over every entry of a particle's prompt, or of its bank
            name, value = next(iter(initial.params.items()))
            strength = 1 / (2 * (self.width * scale) ** 2 * count)
            penalty = GaussianPenalty(torch.zeros_like(value), value.new_full((len(value),), strength), name)
        rate = stage_rate(stage, stage.learning_rates[:1], scale, initial.lr_multipliers)
        rule = Svgd(
            optimiser(stage.optimiser, rate, stage.weight_decay),
            make_kernel(self.kernel, self.block, self.dimensions),
            count=count,
            repulsion=Repulsion(self.repulsion, self.first_repulsion, max(1, stage.steps)),
            penalty=penalty,
            task_weights=(share / torch.tensor(draws.text_rates)).tolist(),
            clip=stage.clip,
            scale=scale,
        )
        return Run(key, objective, rule, initial.params, draws, stage.steps)

    def workload(self, settings: Settings, sources: int = 1) -> Workload:
        """M passes, where every particle trains as long as one prompt."""
        passes = float(self.particles) if self.budget == "full" else 1.0
        return replace(super().workload(settings, sources), source_passes=passes)
