"""Prompt tuning from scratch, the base of every comparison.

Lester, Al-Rfou, Constant 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning" (arXiv 2104.08691).
Parameterisation direct, rule descent, no prior. Their settings: length 100, Adafactor with rate 0.3 absolute, weight
decay 1e-5, batch 32, 30,000 steps on T5 1.1; ours are in settings.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from promptprior.errors import SpecError
from promptprior.methods.method import Beginning, Episode, Lab, Learned, stacked
from promptprior.prompts.artifact import Prior
from promptprior.prompts.parameterisation import Direct
from promptprior.tasks.task import Task


@dataclass(frozen=True)
class PromptTuning:
    """A fresh prompt for every target."""

    name: str = "prompt_tuning"
    needs_sources: bool = False
    uses_shots: bool = True

    def learn(self, lab: Lab, sources: Sequence[Task], seed: int) -> Learned:
        """Nothing to learn. Raises SpecError."""
        raise SpecError(f"method {self.name!r} has no prior to fit; use it with adapt or compare")

    def begin(self, lab: Lab, priors: Sequence[Prior], episodes: Sequence[Episode]) -> Beginning:
        """A start of its own for every episode, seeded by task and seed."""
        starts = [lab.start(e.seed, e.task.name, labels=e.task.label_names) for e in episodes]
        return Beginning(Direct(lab.settings.length, lab.backbone.width), stacked(starts))


@dataclass(frozen=True)
class ZeroShot:
    """No prompt and no training: what the backbone does by itself."""

    name: str = "zero_shot"
    needs_sources: bool = False
    uses_shots: bool = False

    def learn(self, lab: Lab, sources: Sequence[Task], seed: int) -> Learned:
        """Nothing to learn. Raises SpecError."""
        raise SpecError(f"method {self.name!r} has no prior to fit; use it with evaluate or compare")

    def begin(self, lab: Lab, priors: Sequence[Prior], episodes: Sequence[Episode]) -> Beginning:
        """Prompts of length 0."""
        frozen = lab.backbone.frozen
        empty = torch.zeros(len(episodes), 0, lab.backbone.width, dtype=frozen.prompt_dtype, device=frozen.device)
        return Beginning(Direct(0, lab.backbone.width), {"prompt": empty}, trains=False)
