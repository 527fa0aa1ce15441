"""Prompt tuning from scratch, the base of every comparison; and the model without a prompt.

Lester, Al-Rfou, Constant 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning" (arXiv 2104.08691).
Parameterisation direct, rule descent, no prior. Their settings: length 100, Adafactor with rate 0.3 absolute, weight
decay 1e-5, batch 32, 30,000 steps on T5 1.1; ours are in config/training.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from promptprior.artifacts.artifact import Prior
from promptprior.methods.contract import Recipe
from promptprior.methods.learned import AdaptationInit
from promptprior.methods.options import fact
from promptprior.methods.run_context import Episode, RunContext
from promptprior.parameterisations.direct import Direct


@dataclass(frozen=True)
class PromptTuning(Recipe):
    """A fresh prompt for every target."""

    name: str = fact("prompt_tuning")

    def init(self, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode]) -> AdaptationInit:
        """A start of its own for every episode, seeded by task and seed."""
        return AdaptationInit(context.direct(), context.episode_prompts(episodes))


@dataclass(frozen=True)
class ZeroShot(Recipe):
    """No prompt and no training: what the backbone does by itself."""

    name: str = fact("zero_shot")
    uses_shots: bool = fact(False, init=False)
    trains: ClassVar[bool] = False
    read_prompts = "none"

    def init(self, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode]) -> AdaptationInit:
        """Prompts of length 0."""
        frozen, width = context.backbone.frozen, context.backbone.width
        empty = torch.zeros(len(episodes), 0, width, dtype=frozen.prompt_dtype, device=frozen.device)
        return AdaptationInit(Direct(0, width), {"prompt": empty})


ARMS = (PromptTuning(), ZeroShot())
