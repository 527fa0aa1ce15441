"""Sharpness-aware minimisation, and a method that moves by it on sources and on targets.

Foret et al. 2021 (arXiv 2010.01412): step along the gradient at params + radius * gradient / |gradient|.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from promptprior.artifacts.artifact import Prior
from promptprior.methods import AdaptationInit, Episode, FitResult, InitialParams, Recipe, RunContext, fact, option
from promptprior.notation import Float, Params, Tensor
from promptprior.objectives.objective import Objective, loss_and_gradient
from promptprior.rules.averaging import Averaging
from promptprior.rules.rule import Info, Rule, State, answer
from promptprior.tasks import Task
from promptprior.tasks.sampling.batch import Batch


@dataclass(frozen=True)
class Shifted:
    """An objective at params plus a shift."""

    objective: Objective
    shift: Params

    def losses(self, params: Params, batch: Batch) -> Float[Tensor, " R"]:
        return self.objective.losses({name: value + self.shift[name] for name, value in params.items()}, batch)

    def split(self, params: Params, batch: Batch, share: float = 1.0) -> Iterable[Batch]:
        return self.objective.split(params, batch, share)


@dataclass(frozen=True)
class Sam:
    """Any rule, shown the objective `radius` uphill of each copy. It remembers nothing: the state is the rule's own."""

    rule: Rule[Batch]
    radius: float

    def init(self, params: Params) -> State:
        return self.rule.init(params)

    def step(self, state: State, batch: Batch, objective: Objective) -> tuple[State, Info]:
        """The rule's step; "loss" is that of the params, not the one uphill."""
        loss, gradient = loss_and_gradient(objective, state.params, batch)
        norm = torch.stack([g.flatten(1).square().sum(1) for g in gradient.values()]).sum(0).sqrt()  # [C]
        scale = self.radius / norm.clamp(min=torch.finfo(norm.dtype).tiny)
        shift = {name: g * scale.view(-1, *[1] * (g.dim() - 1)) for name, g in gradient.items()}
        after, info = self.rule.step(state, batch, Shifted(objective, shift))
        return after, {**info, "loss": loss}

    def answer(self, state: State) -> Params:
        return answer(self.rule, state)


@dataclass(frozen=True)
class SamMultitask(Recipe):
    """`multitask` with flat minima on both sides, and the average of the target's steps as its answer."""

    name: str = fact("sam_multitask")
    needs_sources: bool = fact(True, init=False)
    radius: float = option(0.05, "how far uphill the gradient is taken, in embedding scales", least=0)

    def fit(self, context: RunContext, sources: Sequence[Task], seed: int) -> FitResult:
        """One prompt on the mixture of all sources."""
        draws = context.mixture(sources, seed)
        start = InitialParams(context.direct(), {"prompt": context.initial_prompt(seed, self.name)[None]})
        run = context.descent(context.key(self, seed), context.settings.source, start, draws)
        done = context.train(replace(run, rule=Sam(run.rule, self.radius * context.backbone.scale)), "source")
        return FitResult(start.parameterisation, done.params, cost=done.cost)

    def init(self, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode]) -> AdaptationInit:
        """That prompt, moved by SAM around descent and answered for by the mean of its steps."""
        radius = self.radius * context.backbone.scale
        params = {"prompt": torch.cat([prior.params["prompt"] for prior in priors])}
        return AdaptationInit(context.direct(), params, wrap_rule=lambda descent: Averaging(Sam(descent, radius)))


SAM_MULTITASK = SamMultitask()
