"""Residual prompt tuning: a prompt plus what a small network makes of it, trained together from scratch.

Razdaibiedina, Mao, Hou, Khabsa, Lewis, Almahairi, Ba 2023 (Findings of ACL, arXiv 2305.03937); docs/rivals.md compares
their released code with ours. Parameterisation residual, rule descent, no prior. `residual_as_released` has their
code's settings: bottleneck 800, one network, LayerNorm's gain 1, one rate for all (0.3 absolute, AdamW, decay 1e-5,
batch 8, length 10). `residual_prompt_tuning` is ours: the gain starts at 0, so that training starts from the prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from promptprior.artifacts.artifact import Prior
from promptprior.methods.contract import Recipe
from promptprior.methods.learned import AdaptationInit
from promptprior.methods.options import fact, option
from promptprior.methods.run_context import Episode, RunContext
from promptprior.parameterisations.residual import NETWORK, Residual
from promptprior.tasks.sampling.draws import generator


@dataclass(frozen=True)
class ResidualPromptTuning(Recipe):
    """A fresh prompt and network for every target; the result is a plain prompt."""

    name: str = fact("residual_prompt_tuning")
    bottleneck: int = option(100, "width of the network's bottleneck", least=1)
    separate: bool = option(False, "a network for each token of the prompt, instead of one for all")
    gain: float = option(0.0, "where LayerNorm's gain starts, in embedding scales; 0: at the prompt itself", least=0)
    network_rate: float | None = option(
        0.03, "rate of the network, times the prompt's in embedding scales; none: the prompt's own rate", least=0
    )
    absolute: bool = option(False, "the prompt as it is into the network, and a gain in absolute numbers (as released)")

    needs_tokens: ClassVar[bool] = True

    def init(self, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode]) -> AdaptationInit:
        """Prompt tuning's start for every episode, and a network of its own."""
        length, width, scale = context.settings.length, context.backbone.width, context.backbone.scale
        unit = 1.0 if self.absolute else scale
        params = context.episode_prompts(episodes)
        form, count = Residual(length, width, unit), length if self.separate else 1
        networks = [
            form.init(self.bottleneck, count, self.gain * unit, generator("residual", e.seed, e.task.name))
            for e in episodes
        ]
        params |= {name: torch.stack([n[name] for n in networks]).to(params["prompt"]) for name in networks[0]}
        rate = 1.0 if self.network_rate is None else self.network_rate / scale
        return AdaptationInit(form, params, lr_multipliers=dict.fromkeys(NETWORK, rate))


ARMS = (
    ResidualPromptTuning(),
    ResidualPromptTuning(name="residual_as_released", bottleneck=800, gain=1.0, network_rate=None, absolute=True),
)
