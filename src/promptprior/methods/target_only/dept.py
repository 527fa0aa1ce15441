"""DePT: a shorter prompt, and what it saves in parameters as a low-rank update of the text's own embeddings.

Shi, Lipani 2024, "DePT: Decomposed Prompt Tuning for Parameter-Efficient Fine-tuning" (ICLR; arXiv 2309.05173).
Parameterisation offset, rule descent, no sources. Theirs: the split of the budget, both starts, two rates. Ours: the
offsets belong to the text alone, never to pads or answers, and their product has no factor. docs/rivals.md says more.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from promptprior.artifacts.artifact import Prior
from promptprior.config.training import Settings
from promptprior.errors import SpecError
from promptprior.methods.contract import Recipe
from promptprior.methods.learned import AdaptationInit
from promptprior.methods.options import fact, option
from promptprior.methods.run_context import Episode, RunContext
from promptprior.parameterisations.offset import Offset
from promptprior.tasks.sampling.draws import generator


@dataclass(frozen=True)
class Dept(Recipe):
    """A short prompt and offsets, together as many numbers as a prompt of the full length."""

    name: str = fact("dept")
    short: int = option(0, "tokens of the short prompt; 0: six tenths of the prompt length", least=0)
    positions: int = option(256, "tokens of a text that get offsets, from its first", least=1)
    rank: int = option(
        0, "rank of the offsets; 0: as the numbers that the short prompt saves allow", least=0, most=2**16
    )
    low_rank_speed: float = option(0.1, "rate of both low-rank parts, as a multiple of the prompt's", least=0)

    needs_tokens: ClassVar[bool] = True

    def prompt_tokens(self, settings: Settings, texts: float, sources: int = 0) -> float:
        """The short prompt."""
        return self.short or max(1, round(0.6 * settings.length))

    def offset(self, context: RunContext) -> Offset:
        """The parameterisation. Raises SpecError for a short prompt that is longer than the whole."""
        length, width = context.settings.length, context.backbone.width
        short = int(self.prompt_tokens(context.settings, texts=1))
        if short > length:
            raise SpecError(
                f"short prompt of {short} tokens (option short of dept): expected at most --length {length}"
            )
        saved = (length - short) * width
        return Offset(short, self.positions, self.rank or max(1, saved // (self.positions + width)))

    def init(self, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode]) -> AdaptationInit:
        """A start of its own for every episode: that of prompt tuning with a short prompt, and offsets of zero."""
        form = self.offset(context)
        shorter = replace(context, settings=replace(context.settings, length=form.length))
        prompts = shorter.episode_prompts(episodes)["prompt"]  # [E, short, D]
        starts = [
            form.init(prompt, generator("offset", e.seed, e.task.name))
            for prompt, e in zip(prompts, episodes, strict=True)
        ]
        params = {name: torch.cat([start[name] for start in starts]) for name in starts[0]}
        return AdaptationInit(form, params, lr_multipliers=dict.fromkeys(("a", "b"), self.low_rank_speed))


ARMS = (Dept(),)
