"""One prompt trained on the mixture of all sources, then adapted: the multi-task baseline (MTL in Qin et al. 2023).

Vu et al. 2022 call the same start "SPoT on a mixture". Parameterisation direct, rule descent. `multitask_long` is a
control of `bmtpt`: as many source updates, and tokens, as its five particles have together.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from promptprior.artifacts.artifact import Prior
from promptprior.config.training import Settings
from promptprior.methods.contract import Recipe
from promptprior.methods.learned import AdaptationInit, FitResult
from promptprior.methods.options import fact, option
from promptprior.methods.run_context import Episode, InitialParams, RunContext, stacked
from promptprior.methods.shared.curves import curve
from promptprior.methods.workload import Workload
from promptprior.tasks.task import Task

TIMES = {"multitask": 1, "multitask_long": 5}


@dataclass(frozen=True)
class Multitask(Recipe):
    """The shared prompt of all sources."""

    name: str = fact("multitask")
    needs_sources: bool = fact(True, init=False)
    times: int = option(  # it came later than multitask; multitask_long always had it
        1,
        "factor on the source steps",
        least=1,
        most=2**16,
        omit_from_hash_if=lambda arm: arm.name != "multitask_long" and arm.times == 1,
    )

    def fit(self, context: RunContext, sources: Sequence[Task], seed: int) -> FitResult:
        """Descend on batches of mixed sources."""
        stage = replace(context.settings.source, steps=context.settings.source.steps * self.times)
        initial = InitialParams(context.direct(), stacked([context.initial_prompt(seed, "multitask")]))
        key = context.key(self, seed, *(t.fingerprint for t in sources))
        done = context.train(context.descent(key, stage, initial, context.mixture(sources, seed)), "source")
        return FitResult(context.direct(), done.params, {"source_loss": curve(done.history)}, done.cost)

    def init(self, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode]) -> AdaptationInit:
        """Every episode starts from its prior's one prompt."""
        device = context.backbone.frozen.device
        return AdaptationInit(context.direct(), stacked([prior.params["prompt"][0].to(device) for prior in priors]))

    def workload(self, settings: Settings, sources: int = 1) -> Workload:
        """As many passes as its steps are multiplied by."""
        return replace(super().workload(settings, sources), source_passes=float(self.times))


ARMS = (
    *(Multitask(name=name, times=times) for name, times in TIMES.items()),
    Multitask(name="multitask_linear", prior_of="multitask", head="linear"),  # ours
)
