"""A prompt behind which a closed-form head on a few shots is best (ours): adapting is one forward pass and one solve.

The objective (objectives/ridge_objective.py) is R2D2's, Bertinetto et al. 2019, "Meta-learning with differentiable
closed-form solvers" (arXiv 1805.08136): ridge regression fitted to the support of a task answers its query, and the
gradient passes through the solution. There it moves a network, here a prompt. Parameterisation direct, rule descent,
head linear. A target's head reads the site that was trained for, and chooses strength and scale anew (docs/methods.md).
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, cast

from promptprior.artifacts.artifact import Prior
from promptprior.backbone import Backbone, Pooling, Site
from promptprior.config.training import Settings
from promptprior.errors import PromptpriorWarning, SpecError
from promptprior.heads.linear import LONE_SCALE, LONE_STRENGTH, Linear
from promptprior.methods.contract import Recipe
from promptprior.methods.learned import AdaptationInit, FitResult
from promptprior.methods.options import fact, option
from promptprior.methods.run_context import Episode, InitialParams, RunContext, stacked
from promptprior.methods.shared.curves import curve
from promptprior.methods.workload import Workload
from promptprior.objectives.ridge_objective import RidgeObjective
from promptprior.tasks.sampling.draws import Pool, class_of
from promptprior.tasks.sampling.meta_draws import FewShotDraws
from promptprior.tasks.task import Task, normalised

LOG_RATE = 0.1  # a step moves log strength and log scale by this, where it moves prompts by an embedding scale


@dataclass(frozen=True)
class RidgePrior(Recipe):
    """A prompt that is meta-learned for the linear head of one site."""

    name: str = fact("ridge_prior")
    needs_sources: bool = fact(True, init=False)
    layer: int | None = option(None, "the layer whose states the head reads; by default the middle one", least=1)
    pooling: Pooling = option("mean", "how a text's states become one: mean or last")
    support: int = option(4, "texts of each class that a unit's head is fitted to", least=1, most=2**16)
    query: int = option(4, "texts of each class that it is judged on", least=1, most=2**16)
    units_per_step: int = option(2, "source tasks in a step, at most all there are", least=1, most=2**16)
    most_classes: int = option(8, "classes of a unit; tasks with more draw some anew each time", least=2, most=2**16)

    trains: ClassVar[bool] = False  # the head is fitted in closed form

    def site(self, backbone: Backbone) -> Site:
        """Where states are read. Raises SpecError for a layer that the model does not have."""
        layer = max(1, backbone.layers // 2) if self.layer is None else self.layer
        if layer > backbone.layers:
            raise SpecError(
                f"layer {layer} (option layer of {self.name}): expected 1 to {backbone.layers}, the blocks of "
                f"{backbone.card.name}"
            )
        return Site(layer, self.pooling)

    def fit(self, context: RunContext, sources: Sequence[Task], seed: int) -> FitResult:
        """Descend on the loss of heads that were fitted to parts of the sources; those without classes are left out."""
        draws, left_out = self.draws(context, sources, seed)
        prompt = stacked([context.initial_prompt(seed, self.name)])["prompt"]
        one = prompt.new_ones(1)
        start = {"prompt": prompt, "log_strength": (one * LONE_STRENGTH).log(), "log_scale": (one * LONE_SCALE).log()}
        rate = LOG_RATE / context.backbone.scale
        initial = InitialParams(context.direct(), start, {"log_strength": rate, "log_scale": rate})
        objective = RidgeObjective(context.backbone, initial.parameterisation, self.site(context.backbone))
        key = context.key(self, seed, *(t.fingerprint for t in sources))
        done = context.train(
            context.descent(key, context.settings.source, initial, draws, objective=objective), "source"
        )
        diagnostics = {
            "site": list(objective.site),
            "source_loss": curve(done.history),
            "left_out": left_out,
            "strength": done.params["log_strength"].exp().tolist(),
            "scale": done.params["log_scale"].exp().tolist(),
        }
        return FitResult(context.direct(), {"prompt": done.params["prompt"]}, diagnostics, done.cost)

    def draws(self, context: RunContext, sources: Sequence[Task], seed: int) -> tuple[FewShotDraws, list[str]]:
        """Units of the sources, and the names of those that give none."""
        pools, left_out = list[Pool](), list[str]()
        for task in sources:
            texts = list({normalised(e.text): e for e in reversed(task.split("train"))}.values())
            labels = [class_of(task, example) for example in texts]
            if "all" not in labels and sum(labels.count(label) > 1 for label in set(labels)) > 1:
                pools.append(Pool(context.tokens(task, texts), len(pools)))
            else:
                left_out.append(task.name)
        why = "method {} learns from choice tasks with the same two or more classes for all examples, two texts of each"
        if not pools:
            raise SpecError(f"{why.format(repr(self.name))}; got {', '.join(left_out)} (--sources)")
        if left_out:
            text = f"{why.format(repr(self.name))}: left out {', '.join(left_out)}"
            warnings.warn(text, PromptpriorWarning, stacklevel=2)
        units = min(self.units_per_step, len(pools))
        return FewShotDraws(pools, units, self.support, self.query, seed, self.most_classes), left_out

    def init(self, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode]) -> AdaptationInit:
        """Every episode has its prior's prompt, and a linear head looks at the site that the prior was trained for."""
        sites = sorted({Site(*cast(tuple[int, Pooling], prior.header.diagnostics["site"])) for prior in priors})
        layers, poolings = (tuple(dict.fromkeys(part)) for part in zip(*sites, strict=True))
        head = Linear(layers, poolings) if self.head == "linear" else None
        device = context.backbone.frozen.device
        params = stacked([prior.params["prompt"][0].to(device) for prior in priors])
        return AdaptationInit(context.direct(), params, head=head)

    def workload(self, settings: Settings, sources: int = 1) -> Workload:
        """Texts of its units, with four classes each at most, are read up to the middle layer, the head's own."""
        texts = min(self.units_per_step, sources) * min(4, self.most_classes) * (self.support + self.query)
        return replace(super().workload(settings, sources), source_texts=texts, source_passes=0.5, head_depth=0.5)


ARMS = (RidgePrior(head="linear"),)
