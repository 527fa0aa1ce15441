"""BMTPT: a posterior over prompts from all source tasks, by SVGD; targets adapt under it as their prior.

Lee, Jeong, Yun, Kim 2023, "Bayesian Multi-Task Transfer Learning for Soft Prompt Tuning" (Findings of EMNLP; arXiv
2402.08594). Parameterisation direct (decomposed for several targets together), rule svgd. From the paper: the two
stages, SVGD over one posterior of all sources, the particles' aggregate as the target's start and the posterior as its
prior. NOT recovered, hence all ours: M, kernel and bandwidth, likelihood weights, steps, optimiser and rates, the
prior's form and width, how particles are aggregated and started. docs/bmtpt.md says why each is as it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch

from promptprior.artifacts.artifact import Prior
from promptprior.config.training import setting
from promptprior.errors import SpecError
from promptprior.evaluate import dev_scores, make_eval_set
from promptprior.methods.from_sources.multitask import loss_curve
from promptprior.methods.method import (
    AdaptationInit,
    Episode,
    FitResult,
    InitialParams,
    Method,
    RunContext,
    stacked,
    viewed,
)
from promptprior.methods.shared.gradient_conflict import agreement_weights, task_cosines
from promptprior.methods.shared.joint_targets import Joint, grouped, places_of
from promptprior.methods.shared.particles import (
    GaussianPenalty,
    PenaltyKind,
    StartKind,
    deviation,
    geometry,
    penalty,
    start,
    weights,
)
from promptprior.notation import Float, Params, Tensor
from promptprior.objectives.objective import Objective, PromptObjective, copies_of, copy_losses, mean_weights
from promptprior.parameterisations.decomposed import Decomposed, lr_multipliers_of
from promptprior.parameterisations.direct import Direct
from promptprior.rules.descent import Penalty
from promptprior.rules.optimiser import optimiser, stage_rate
from promptprior.rules.stein_kernels import KernelKind, make_kernel
from promptprior.rules.svgd import Repulsion, Svgd, reweighted
from promptprior.tasks.sampling.batch import Batch
from promptprior.tasks.sampling.draws import MixtureDraws, generator
from promptprior.tasks.task import Task
from promptprior.train import Run

TARGETS_ONLY = ("start", "penalty", "prior_width", "joint_steps", "low_rank_rate")
TOKENS = ("prompt", "bank", "own")  # parameters in the space of embeddings
JUDGED = range(10**9, 10**9 + 8)  # steps whose batches no training reaches


@dataclass(frozen=True)
class Bmtpt:
    """Particles of a posterior, and MAP under it."""

    particles: int = setting(5, "M, prompts that stand for the posterior")
    kernel: KernelKind = setting("per_token", "rbf, per_token, projected, gradient (its subspace) or none")
    block: int = setting(0, "coordinates in a block of kernel per_token; 0: whole tokens")
    dimensions: int = setting(16, "dimensions of kernel projected")
    repulsion: float = setting(1.0, "factor on the repulsive force; 1 is SVGD")
    first_repulsion: float | None = setting(None, "the factor at the first step, moved linearly to --repulsion")
    weighting: Literal["balanced", "proportional", "counts", "agreement"] = setting(
        "balanced",
        "likelihood of sources: balanced or proportional (tempered to one observation per source), counts (the true "
        "posterior), agreement (less for sources whose gradients oppose the others)",
    )
    temperature: float = setting(1.0, "divides the log-likelihood")
    width: float = setting(100.0, "of the Gaussian prior over source prompts, in embedding scales; 0: flat")
    jitter: float = setting(0.5, "noise around one shared start, in embedding scales; 0: every particle its own start")
    budget: Literal["full", "steps", "batch"] = setting(
        "full", "full: every particle trains as long as one prompt; steps or batch: divided by M, at one prompt's cost"
    )
    start: StartKind = setting("mean", "where targets start: mean, weighted, best (on dev) or sampled")
    penalty: PenaltyKind = setting("gaussian", "prior of targets: gaussian, mixture or none")
    prior_width: tuple[float, ...] = setting(
        (30.0, 300.0), "of the prior of targets, in embedding scales; of several, dev picks one for each episode"
    )
    joint_steps: int = setting(0, "steps in which all targets of a seed first train one decomposed prompt together")
    low_rank_rate: float = setting(0.01, "rate of the low-rank parts in those steps, absolute: they start from 1")
    ensemble: bool = setting(
        False,
        "also train the particles apart, to say how far an ensemble spreads (doubles the source cost)",
        omit_from_hash_if_default=True,
    )
    name: str = "bmtpt"
    needs_sources: bool = True
    uses_shots: bool = True

    def __post_init__(self) -> None:
        if self.particles < 1:
            raise SpecError(f"particles {self.particles} (--particles): expected at least 1")
        if self.temperature <= 0 or self.width < 0 or self.jitter < 0:
            raise SpecError(
                f"temperature {self.temperature}, width {self.width}, jitter {self.jitter} (--temperature, --width, "
                "--jitter): expected a positive temperature and no negative widths"
            )
        if not self.prior_width or min(self.prior_width) <= 0:
            raise SpecError(
                f"prior widths {self.prior_width} (--prior-width): expected positive numbers (for no prior: --penalty "
                "none)"
            )

    # Sources

    def source_view(self) -> Method:
        """The same particles, whatever targets make of them."""
        return viewed(self, type(self), TARGETS_ONLY)

    def fit(self, context: RunContext, sources: Sequence[Task], seed: int) -> FitResult:
        """Draw M particles from the posterior of all sources, and judge them."""
        begun = InitialParams(Direct(context.settings.length, context.backbone.width), self.started(context, seed))
        draws = context.mixture(sources, seed)
        run = self.particle_run(context, begun, draws, context.key(self, seed, *(t.fingerprint for t in sources)))
        done, rule = context.train(run, "source"), cast(Svgd, run.rule)
        apart = [context.train(alone(run), "ensemble")] if self.ensemble else []
        shares = torch.tensor(rule.task_weights) * torch.tensor(draws.rates)
        diagnostics = {
            "source_loss": loss_curve(done.history),
            "forces": force_curves(done.history),
            "task_weights": shares.tolist(),
            "count": rule.count,
            "spread": self.spread(context, begun.params, done.params, *(one.params for one in apart)),
            **self.judged(context, run.objective, done.params, cast(MixtureDraws, run.draws), rule),
        }
        return FitResult(begun.form, done.params, diagnostics, sum((run.cost for run in apart), done.cost))

    def spread(self, context: RunContext, *stages: Params) -> dict[str, float]:
        """How far an entry differs between particles (standard deviation, in embedding scales): at the start, as SVGD
        left them, and of an ensemble if there is one; beside the prior's own width."""
        names = ("start", "particles", "ensemble")
        found = [deviation(params["prompt"]) / context.backbone.scale for params in stages]
        return {**dict(zip(names, found, strict=False)), "prior": self.width}

    def run(self, context: RunContext, begun: InitialParams, sources: Sequence[Task], seed: int, key: str) -> Run:
        """SVGD around one copy of anything: of a prompt, or of tpt's bank."""
        around = replace(begun, params=self.jittered(context, begun.params, seed))
        return self.particle_run(context, around, context.mixture(sources, seed), key)

    def particle_run(self, context: RunContext, begun: InitialParams, draws: MixtureDraws, key: str) -> Run:
        """SVGD of M particles."""
        objective = PromptObjective(context.backbone, begun.form)
        draws, steps = self.budgeted(draws, context.settings.source.steps)
        shares = self.shares(objective, begun.params, draws)
        return Run(key, objective, self.rule(context, begun, draws, shares, steps), begun.params, draws, steps)

    def budgeted(self, draws: MixtureDraws, steps: int) -> tuple[MixtureDraws, int]:
        """Draws and steps, with what the budget divides divided by M."""
        if self.budget == "steps":
            return draws, max(1, steps // self.particles)
        if self.budget == "batch":
            return replace(draws, batch_size=max(1, draws.batch_size // self.particles)), steps
        return draws, steps

    def started(self, context: RunContext, seed: int) -> Params:
        """The particles' starts, the same for all arms: one prompt with noise around it, or M prompts."""
        if not self.jitter:
            return stacked([context.start(seed, "bmtpt", m) for m in range(self.particles)])
        return self.jittered(context, stacked([context.start(seed, "bmtpt", 0)]), seed)

    def jittered(self, context: RunContext, params: Params, seed: int) -> Params:
        """M copies of one, all but the first with noise on their tokens."""
        copies = {n: value.expand(self.particles, *value.shape[1:]).clone() for n, value in params.items()}
        noise = generator("jitter", seed)
        for name in [n for n in TOKENS if n in params]:
            added = torch.randn(copies[name].shape, generator=noise).to(copies[name])
            added[0] = 0  # a single particle starts where a prompt does
            copies[name] += self.jitter * context.backbone.scale * added
        return copies

    def shares(self, objective: PromptObjective, params: Params, draws: MixtureDraws) -> Float[Tensor, " tasks"]:
        """The share of the likelihood that each source has."""
        if self.weighting in ("proportional", "counts"):
            share = torch.tensor([float(len(pool.items)) for pool in draws.pools])
        elif self.weighting == "agreement":
            middle = {name: value.mean(0, keepdim=True) for name, value in params.items()}
            batches = [draws.batch(step) for step in JUDGED]
            share = agreement_weights(task_cosines(objective, middle, batches, len(draws.pools))).cpu()
        else:
            share = torch.ones(len(draws.pools))
        return share / share.sum()

    def rule(
        self,
        context: RunContext,
        begun: InitialParams,
        draws: MixtureDraws,
        shares: Float[Tensor, " tasks"],
        steps: int,
    ) -> Svgd:
        """SVGD on the tempered posterior."""
        stage = replace(context.settings.source, steps=steps)
        rate = stage_rate(stage, stage.learning_rates[:1], context.backbone.scale, begun.frozen)
        observations = sum(len(p.items) for p in draws.pools) if self.weighting == "counts" else len(draws.pools)
        count = observations / self.temperature
        return Svgd(
            optimiser(stage.optimiser, rate, stage.weight_decay),
            make_kernel(self.kernel, self.block, self.dimensions),
            count=count,
            repulsion=Repulsion(self.repulsion, self.first_repulsion, max(1, steps)),
            penalty=self.prompt_prior(context, begun.params, count),
            task_weights=(shares / torch.tensor(draws.rates)).tolist(),
            clip=stage.clip,
            scale=context.backbone.scale,
        )

    def prompt_prior(self, context: RunContext, params: Params, count: float) -> Penalty | None:
        """N(0, (width * scale)^2) over every entry of a particle's prompt, or of its bank."""
        if not self.width:
            return None
        name, value = next(iter(params.items()))
        strength = 1 / (2 * (self.width * context.backbone.scale) ** 2 * count)
        return GaussianPenalty(torch.zeros_like(value), value.new_full((len(value),), strength), name)

    def judged(
        self, context: RunContext, objective: Objective, params: Params, draws: MixtureDraws, rule: Svgd
    ) -> dict[str, object]:
        """How the particles lie, and whether their mean is as good as they are."""
        particles = params["prompt"]
        mean = particles.mean(0, keepdim=True)
        batches = [draws.batch(step) for step in JUDGED]
        losses = source_losses(objective, {"prompt": torch.cat([particles, mean])}, batches, rule.task_weights)
        weight = weights(losses[:-1], rule.count)
        return {
            "particle_loss": losses[:-1].tolist(),
            "mean_loss": float(losses[-1]),
            "effective_particles": float(1 / weight.square().sum()),
            "geometry": geometry(particles, context.backbone.scale),
            "gradient_cosines": task_cosines(objective, {"prompt": mean}, batches, len(draws.pools)).tolist(),
        }

    # Targets

    def init(self, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode]) -> AdaptationInit:
        """Every episode at the aggregate of its prior's particles, under each width of the prior term."""
        device = context.backbone.frozen.device
        distinct = list({id(prior): prior for prior in priors}.values())
        posteriors = torch.stack([prior.params["prompt"].to(device) for prior in distinct])
        which = places_of(priors)
        starts = self.target_starts(context, priors, posteriors[which], episodes)
        if self.joint_steps:
            starts = self.joined(context, starts, which, episodes)
        widths = self.prior_width if self.penalty != "none" else (1.0,)
        copies = [(e, w) for e in range(len(episodes)) for w in widths]
        prior_term = penalty(
            self.penalty,
            posteriors,
            [which[e] for e, _ in copies],
            [w for _, w in copies],
            [len(episodes[e].shots.train) for e, _ in copies],
            context.backbone.scale,
        )
        return AdaptationInit(
            Direct(context.settings.length, context.backbone.width),
            {"prompt": starts.repeat_interleave(len(widths), dim=0)},
            prior_term,
            variants=[{"prior_width": w} for w in widths] if prior_term else ({},),
        )

    def target_starts(
        self,
        context: RunContext,
        priors: Sequence[Prior],
        particles: Float[Tensor, "E M L D"],
        episodes: Sequence[Episode],
    ) -> Float[Tensor, "E L D"]:
        """The aggregate that each episode starts from."""
        if self.start == "best":
            losses = dev_losses(context, particles, episodes)
        else:
            losses = torch.tensor([cast(list[float], p.header.diagnostics["particle_loss"]) for p in priors])
        counts = [cast(float, p.header.diagnostics["count"]) for p in priors]
        return torch.stack(
            [
                start(own, self.start, loss, count, generator("sampled", e.seed, e.task.name))
                for own, loss, count, e in zip(particles, losses, counts, episodes, strict=True)
            ]
        )

    def joined(
        self, context: RunContext, starts: Float[Tensor, "E L D"], which: Sequence[int], episodes: Sequence[Episode]
    ) -> Float[Tensor, "E L D"]:
        """The starts after all targets of a group (one prior, k and seed) have trained a decomposed prompt together."""
        groups = grouped(which, episodes)
        lr_multipliers = lr_multipliers_of(
            context.settings.target.learning_rates[0], self.low_rank_rate, context.backbone.scale
        )
        joint = Joint(context, episodes, groups, self.joint_steps, lr_multipliers)
        form = Decomposed(context.settings.length, context.backbone.width, joint.targets)
        shared = torch.stack([starts[members].mean(0) for members in groups])
        pull = None if self.penalty == "none" else self.pull(context, shared, groups, episodes)
        prompts = form.of_tasks(context.train(joint.run(self, form, form.init(shared), pull), "joint").last)
        after = starts.clone()
        for copy, members in enumerate(groups):
            after[members] = prompts[copy, : len(members)]
        return after

    def pull(
        self,
        context: RunContext,
        shared: Float[Tensor, "G L D"],
        groups: Sequence[Sequence[int]],
        episodes: Sequence[Episode],
    ) -> Penalty:
        """The prior's middle width pulls the part that a group shares back to where it started."""
        shots = [sum(len(episodes[e].shots.train) for e in group) for group in groups]
        width = self.prior_width[len(self.prior_width) // 2] * context.backbone.scale
        return GaussianPenalty(shared, 1 / (2 * width**2 * torch.tensor(shots).to(shared)), "shared")


def alone(run: Run) -> Run:
    """The same run of particles that do not see each other."""
    return replace(run, key=f"{run.key}-apart", rule=replace(cast(Svgd, run.rule), kernel=make_kernel("none")))


def each_particle(prior: Prior) -> list[Prior]:
    """A prior of one particle for every particle."""
    found = prior.header.diagnostics
    losses = cast(list[float], found["particle_loss"])
    return [
        Prior(
            replace(prior.header, diagnostics={**found, "particle_loss": [losses[m]]}),
            {name: value[m : m + 1].clone() for name, value in prior.params.items()},
        )
        for m in range(len(losses))
    ]


@dataclass(frozen=True)
class BmtptChains(Bmtpt):
    """Control: M chains from the same starts on the same batches, each by itself, then treated as particles."""

    kernel: KernelKind = setting("none", "none: the chains do not see each other")
    name: str = "bmtpt_chains"


@dataclass(frozen=True)
class BmtptSingle(Bmtpt):
    """Control: one particle, which is descent on the mixture of sources, with the target prior around it."""

    particles: int = setting(1, "one")
    name: str = "bmtpt_single"


@dataclass(frozen=True)
class BmtptNoPrior(Bmtpt):
    """Control: the same particles and start, and plain descent on the target."""

    penalty: PenaltyKind = setting("none", "none: targets only start from the sources")
    name: str = "bmtpt_no_prior"

    def source_view(self) -> Method:
        """The particles of bmtpt."""
        return viewed(self, Bmtpt, TARGETS_ONLY)


@dataclass(frozen=True)
class BmtptPredictive(Bmtpt):
    """The posterior predictive (ours): every particle adapts under the prior around itself, and all answer together.

    The prompt of a target has M copies. Choices only: free text has no probabilities to average.
    """

    name: str = "bmtpt_predictive"

    def source_view(self) -> Method:
        """The particles of bmtpt."""
        return viewed(self, Bmtpt, TARGETS_ONLY)

    def init(self, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode]) -> AdaptationInit:
        """Every episode once for each particle, each with that particle's own prior."""
        apart = {id(prior): each_particle(prior) for prior in priors}
        members = [(one, e) for prior, e in zip(priors, episodes, strict=True) for one in apart[id(prior)]]
        begun = super().init(context, [one for one, _ in members], [e for _, e in members])
        count = len(members) // len(episodes)
        return replace(begun, variants=[*begun.variants] * count, together=count)


@torch.no_grad()
def source_losses(
    objective: Objective, params: Params, batches: Sequence[Batch], task_weights: Sequence[float] | None
) -> Float[Tensor, " C"]:
    """The mean loss of every copy on the same batches."""
    copies = copies_of(params)
    total = torch.zeros(copies, device=params["prompt"].device)
    for batch in batches:
        read = reweighted(batch, task_weights).tile(copies)
        for piece in objective.split(params, replace(read, weight=mean_weights(read, copies))):
            total += copy_losses(objective.losses(params, piece), piece.weight, piece, copies)
    return (total / len(batches)).cpu()


def dev_losses(
    context: RunContext, particles: Float[Tensor, "E M L D"], episodes: Sequence[Episode]
) -> Float[Tensor, "E M"]:
    """What each episode's dev shots say of each particle before adaptation, in nats."""
    objective = PromptObjective(context.backbone, Direct(context.settings.length, context.backbone.width))
    eval_sets = [make_eval_set(objective, e.task, e.shots.dev) for e in episodes]
    count = particles.shape[1]
    requests = [replace(eval_set, copy=e * count + m) for e, eval_set in enumerate(eval_sets) for m in range(count)]
    _, nll = dev_scores(objective, requests, {"prompt": particles.flatten(0, 1)})
    return nll.reshape(len(episodes), count)


def force_curves(history: Sequence[Mapping[str, object]], points: int = 20) -> dict[str, list[object]]:
    """What SVGD reported at evenly spaced steps: is there any repulsion, and do particles stay apart?"""
    names = ("repulsion_ratio", "kernel", "distance", "spread")
    lines = [line for line in history if "repulsion_ratio" in line]
    stride = max(1, len(lines) // points)
    return {name: [line[name] for line in lines[::stride]] for name in names}
