"""Prefix tuning: free keys and values of every layer for each target, in place of a prompt of tokens.

Li, Liang 2021, "Prefix-Tuning: Optimizing Continuous Prompts for Generation" (arXiv 2101.00190); Liu, Ji, Fu, Tam, Du,
Yang, Tang 2022, "P-Tuning v2" (arXiv 2110.07602). Parameterisation prefix, rule descent, no prior. Theirs: a prefix in
all layers; Li and Liang make it by a network, P-Tuning v2 without, as we do. Ours: the start is what the model caches
of prompt tuning's start, so that step 0 is prompt tuning's; rates are in units of each layer's keys and values.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from promptprior.artifacts.artifact import Prior
from promptprior.methods.contract import Recipe
from promptprior.methods.learned import AdaptationInit
from promptprior.methods.options import fact, option
from promptprior.methods.run_context import Episode, RunContext


@dataclass(frozen=True)
class PrefixTuning(Recipe):
    """A fresh prefix for every target."""

    name: str = fact("prefix_tuning")
    speed: float = option(0.1, "rate, as a multiple of --target.learning-rates", above=0)

    read_prompts = "none"

    def init(self, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode]) -> AdaptationInit:
        """A start of its own for every episode, seeded by task and seed."""
        own = replace(context, settings=replace(context.settings, form="prefix"))
        return AdaptationInit(own.direct(), own.episode_prompts(episodes), lr_multipliers={"prompt": self.speed})


ARMS = (PrefixTuning(),)
