"""MPT: one shared prompt times a matrix of rank one for each source, taught by the sources' own prompts.

Wang, Panda, Karlinsky, Feris, Sun, Kim 2023, "Multitask Prompt Tuning Enables Parameter-Efficient Transfer Learning"
(ICLR; arXiv 2303.02861). Parameterisation decomposed, rule descent on a distilled objective. A teacher is a prompt
tuned on one source (SPoT's source stage, all in one run). Theirs: strength 0.9, stochastic task sampling, rates 0.3
(shared) and 0.4 (rank one), the target's start; `published_settings` has the rest. Ours: u and v start from ones, the
layer and positions of the hidden states, how long teachers train. docs/rivals.md says why.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from promptprior.artifacts.artifact import Prior
from promptprior.backbone import Backbone
from promptprior.config.training import Settings, Training, setting
from promptprior.cost import Cost
from promptprior.errors import SpecError
from promptprior.methods.from_sources.multitask import loss_curve
from promptprior.methods.method import AdaptationInit, Episode, FitResult, Method, RunContext, viewed
from promptprior.methods.shared.joint_targets import Joint, grouped, places_of
from promptprior.methods.shared.source_prompts import trained_prompts
from promptprior.notation import Float, Params, Tensor
from promptprior.objectives.distillation import Distilled
from promptprior.objectives.objective import PromptObjective
from promptprior.parameterisations.decomposed import Decomposed, lr_multipliers_of
from promptprior.tasks.sampling.batch import Batch, collate
from promptprior.tasks.sampling.draws import Draws, MixtureDraws
from promptprior.tasks.sampling.stochastic_draws import StochasticDraws
from promptprior.tasks.task import Task
from promptprior.train import Run

SAMPLE = 16  # texts of each source that teachers and students are judged on


@dataclass(frozen=True)
class Mpt:
    """A shared prompt and, for each source, u and v."""

    distil: bool = setting(True, "whether the sources' own prompts teach the shared one")
    strength: float = setting(0.9, "weight of the distillation loss")
    teacher_steps: int = setting(0, "steps that train the teachers; 0: as many as --source.steps")
    sampling: Literal["stochastic", "mixture"] = setting(
        "stochastic", "batches of 2 to all tasks (as published), or of texts drawn one by one"
    )
    low_rank_speed: float = setting(0.1, "what u and v, which start from 1, move by for a learning rate of 1")
    joint_steps: int = setting(
        0, "steps in which all targets of a seed first train one shared prompt; it is frozen afterwards"
    )
    name: str = "mpt"
    needs_sources: bool = True
    uses_shots: bool = True

    def __post_init__(self) -> None:
        if self.strength < 0 or self.low_rank_speed < 0:
            raise SpecError(
                f"strength {self.strength}, low-rank speed {self.low_rank_speed} (--strength, --low-rank-speed): "
                "expected no negative numbers"
            )

    # Sources

    def source_view(self) -> Method:
        """The same shared prompt, whether targets train together or not."""
        return viewed(self, type(self), ("joint_steps",))

    def fit(self, context: RunContext, sources: Sequence[Task], seed: int) -> FitResult:
        """Train the teachers, then the shared prompt and every source's u and v. The order of sources has no say."""
        sources = sorted(sources, key=lambda task: task.fingerprint)
        form = Decomposed(context.settings.length, context.backbone.width, len(sources))
        taught = self.teachers(context, sources, seed) if self.distil else None
        teachers = taught.params["prompt"] if taught else None
        draws = context.mixture(sources, seed)
        done = context.train(self.run(context, form, teachers, draws, sources, seed), "source")
        diagnostics = {
            "sources": [task.name for task in sources],
            "source_loss": loss_curve(done.history),
            "student_loss": judged(context.backbone, form.of_tasks(done.params)[0], draws),
            "teacher_loss": judged(context.backbone, teachers, draws) if teachers is not None else None,
        }
        return FitResult(form, done.params, diagnostics, done.cost + (taught.cost if taught else Cost()))

    def teachers(self, context: RunContext, sources: Sequence[Task], seed: int) -> FitResult:
        """A prompt tuned on each source."""
        stage = context.settings.source
        settings = replace(context.settings, source=replace(stage, steps=self.teacher_steps or stage.steps))
        aside = replace(context, settings=settings, train=lambda run, _: context.train(run, "teachers"))
        return trained_prompts(aside, sources, seed)

    def run(
        self,
        context: RunContext,
        form: Decomposed,
        teachers: Float[Tensor, "K L D"] | None,
        mixture: MixtureDraws,
        sources: Sequence[Task],
        seed: int,
    ) -> Run:
        """The source stage."""
        stage = context.settings.source
        objective = PromptObjective(context.backbone, form)
        if teachers is not None:
            objective = Distilled(context.backbone, form, teachers, self.strength)
        draws: Draws[Batch] = mixture
        if self.sampling == "stochastic":
            draws = StochasticDraws(mixture.pools, mixture.rates, mixture.batch_size, seed)
        key = context.key(self, seed, *(t.fingerprint for t in sources))
        return context.descent(
            key, stage, objective, form.init(context.start(seed, "mpt")[None]), draws, self.speeds(context)
        )

    def speeds(self, context: RunContext) -> dict[str, float]:
        """The factors of u and v, whatever the learning rate."""
        return dict(lr_multipliers_of(1.0, self.low_rank_speed, context.backbone.scale))

    # Targets

    def init(self, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode]) -> AdaptationInit:
        """Every episode at the shared prompt, with the means of the sources' u and v."""
        device = context.backbone.frozen.device
        params = {name: torch.cat([p.params[name] for p in priors]).to(device) for name in ("shared", "u", "v")}
        params = {n: p if n == "shared" else p.mean(1, keepdim=True) for n, p in params.items()}
        lr_multipliers = self.speeds(context)
        if self.joint_steps:
            params = self.joined(context, params, places_of(priors), episodes)
            lr_multipliers["shared"] = 0.0  # it stays the one prompt of all targets
        return AdaptationInit(
            Decomposed(context.settings.length, context.backbone.width, 1), params, lr_multipliers=lr_multipliers
        )

    def joined(self, context: RunContext, params: Params, which: Sequence[int], episodes: Sequence[Episode]) -> Params:
        """The params after all targets of a group have trained one shared prompt together."""
        groups = grouped(which, episodes)
        joint = Joint(context, episodes, groups, self.joint_steps, self.speeds(context))
        form = Decomposed(context.settings.length, context.backbone.width, joint.targets)
        first = [members[0] for members in groups]
        started = {n: p[first] if n == "shared" else p[first].expand(-1, form.tasks, -1) for n, p in params.items()}
        done = context.train(joint.run(self, form, started), "joint").last
        after = {name: value.clone() for name, value in params.items()}
        for copy, members in enumerate(groups):
            after["shared"][members] = done["shared"][copy]
            for name in ("u", "v"):
                after[name][members, 0] = done[name][copy, : len(members)]
        return after


@dataclass(frozen=True)
class MptNoDistil(Mpt):
    """Control: the same source stage without teachers."""

    distil: bool = setting(False, "no teachers")
    name: str = "mpt_no_distil"


@torch.no_grad()
def judged(backbone: Backbone, prompts: Float[Tensor, "K L D"], draws: MixtureDraws) -> list[float]:
    """The mean loss of every source's prompt on a few of its texts."""
    some = [pool.items[:SAMPLE] for pool in draws.pools]
    batch = collate([item for items in some for item in items], [k for k, items in enumerate(some) for _ in items])
    losses = backbone.losses(prompts, batch)
    return [float(part.mean()) for part in losses.split([len(items) for items in some])]


def published_options(scale: float) -> dict[str, Any]:
    """The paper's rates on a backbone of this embedding scale: 0.4 for u and v where the shared prompt has 0.3."""
    return {"strength": 0.9, "low_rank_speed": 0.4 * scale / 0.3}


def published_settings(scale: float, source_examples: int, target_examples: int) -> Settings:
    """The paper's settings on a backbone of this embedding scale, for so many examples: 100 tokens, AdamW at 0.3.

    5 epochs on the sources, 20 on a target (what the public code family has for small tasks), batch 32, sources drawn
    by their size capped at 2^18. Recalled, or from the code family, not from the paper itself: see docs/rivals.md.
    """
    plain = Training(batch_size=32, learning_rates=(0.3 / scale,), warmup=500, weight_decay=1e-5)
    source = replace(plain, steps=-(-5 * source_examples // 32))
    target = replace(plain, steps=-(-20 * target_examples // 32), eval_every=500)
    return Settings(length=100, mixture="capped", source=source, target=target)
