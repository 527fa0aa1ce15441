"""Prompt tuning from scratch, the base of every comparison.

Lester, Al-Rfou, Constant 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning" (arXiv 2104.08691).
Parameterisation direct, rule descent, no prior. Their settings: length 100, Adafactor with rate 0.3 absolute, weight
decay 1e-5, batch 32, 30,000 steps on T5 1.1; ours are in settings.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from promptprior.artifacts.artifact import Prior
from promptprior.errors import SpecError
from promptprior.methods.method import AdaptationInit, Episode, FitResult, RunContext, stacked
from promptprior.parameterisations.direct import Direct
from promptprior.tasks.task import Task


@dataclass(frozen=True)
class PromptTuning:
    """A fresh prompt for every target."""

    name: str = "prompt_tuning"
    needs_sources: bool = False
    uses_shots: bool = True

    def fit(self, context: RunContext, sources: Sequence[Task], seed: int) -> FitResult:
        """Nothing to learn. Raises SpecError."""
        raise SpecError(f"method {self.name!r} has no prior to fit; use it with adapt or compare")

    def init(self, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode]) -> AdaptationInit:
        """A start of its own for every episode, seeded by task and seed."""
        starts = [context.start(e.seed, e.task.name, labels=e.task.label_names) for e in episodes]
        return AdaptationInit(Direct(context.settings.length, context.backbone.width), stacked(starts))


@dataclass(frozen=True)
class ZeroShot:
    """No prompt and no training: what the backbone does by itself."""

    name: str = "zero_shot"
    needs_sources: bool = False
    uses_shots: bool = False

    def fit(self, context: RunContext, sources: Sequence[Task], seed: int) -> FitResult:
        """Nothing to learn. Raises SpecError."""
        raise SpecError(f"method {self.name!r} has no prior to fit; use it with evaluate or compare")

    def init(self, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode]) -> AdaptationInit:
        """Prompts of length 0."""
        frozen = context.backbone.frozen
        empty = torch.zeros(len(episodes), 0, context.backbone.width, dtype=frozen.prompt_dtype, device=frozen.device)
        return AdaptationInit(Direct(0, context.backbone.width), {"prompt": empty}, trains=False)
