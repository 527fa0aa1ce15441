"""One prompt trained on the mixture of all sources, then adapted: the multi-task baseline (MTL in Qin et al. 2023).

Vu et al. 2022 call the same start "SPoT on a mixture". Parameterisation direct, rule descent.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from promptprior.artifacts.artifact import Prior
from promptprior.config.training import setting
from promptprior.methods.method import AdaptationInit, Episode, FitResult, RunContext, stacked
from promptprior.objectives.objective import PromptObjective
from promptprior.parameterisations.direct import Direct
from promptprior.tasks.task import Task


@dataclass(frozen=True)
class Multitask:
    """The shared prompt of all sources."""

    times: int = setting(1, "factor on the source steps", omit_from_hash_if_default=True)
    name: str = "multitask"
    needs_sources: bool = True
    uses_shots: bool = True

    def fit(self, context: RunContext, sources: Sequence[Task], seed: int) -> FitResult:
        """Descend on batches of mixed sources."""
        form = Direct(context.settings.length, context.backbone.width)
        stage = replace(context.settings.source, steps=context.settings.source.steps * self.times)
        key = context.key(self, seed, *(t.fingerprint for t in sources))
        params = stacked([context.start(seed, "multitask")])
        run = context.descent(
            key, stage, PromptObjective(context.backbone, form), params, context.mixture(sources, seed)
        )
        done = context.train(run, "source")
        return FitResult(form, done.params, {"source_loss": loss_curve(done.history)}, done.cost)

    def init(self, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode]) -> AdaptationInit:
        """Every episode starts from its prior's one prompt."""
        device = context.backbone.frozen.device
        return AdaptationInit(
            Direct(context.settings.length, context.backbone.width),
            stacked([prior.params["prompt"][0].to(device) for prior in priors]),
        )


@dataclass(frozen=True)
class MultitaskLong(Multitask):
    """Control of `bmtpt`: one prompt with as many source updates, and tokens, as its five particles have together."""

    times: int = setting(5, "factor on the source steps")
    name: str = "multitask_long"


def loss_curve(history: Sequence[dict[str, object]], points: int = 20) -> list[object]:
    """The mean source loss at evenly spaced steps, for the artifact's diagnostics."""
    losses = [line["loss"] for line in history if "loss" in line]
    stride = max(1, len(losses) // points)
    return losses[::stride]
