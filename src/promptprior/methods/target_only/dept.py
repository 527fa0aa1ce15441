"""DePT: a shorter prompt, and what it saves in parameters as a low-rank update of the text's own embeddings.

Shi, Lipani 2024, "DePT: Decomposed Prompt Tuning for Parameter-Efficient Fine-tuning" (ICLR; arXiv 2309.05173).
Parameterisation offset, rule descent, no sources. Theirs: the split of the budget, both starts, two rates. Ours: the
offsets belong to the text alone, never to pads or answers, and their product has no factor. docs/rivals.md says more.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from promptprior.artifacts.artifact import Prior
from promptprior.config.training import Settings, Training, setting
from promptprior.errors import SpecError
from promptprior.methods.method import AdaptationInit, Episode, RunContext
from promptprior.methods.target_only.prompt_tuning import PromptTuning
from promptprior.parameterisations.offset import Offset
from promptprior.tasks.sampling.draws import generator


@dataclass(frozen=True)
class Dept(PromptTuning):
    """A short prompt and offsets, together as many numbers as a prompt of the full length."""

    short: int = setting(0, "tokens of the short prompt; 0: six tenths of the prompt length")
    positions: int = setting(256, "tokens of a text that get offsets, from its first")
    rank: int = setting(0, "rank of the offsets; 0: as the numbers that the short prompt saves allow, at least 1")
    low_rank_speed: float = setting(0.1, "rate of both low-rank parts, as a multiple of the prompt's")
    name: str = "dept"

    def __post_init__(self) -> None:
        if min(self.short, self.rank, self.low_rank_speed) < 0 or self.positions < 1:
            raise SpecError(
                f"short {self.short}, positions {self.positions}, rank {self.rank}, low-rank speed "
                f"{self.low_rank_speed} (--short, --positions, --rank, --low-rank-speed): expected at least 0, 1, 0, 0"
            )

    def form(self, context: RunContext) -> Offset:
        """The parameterisation. Raises SpecError for a short prompt that is longer than the whole."""
        length = context.settings.length
        short = self.short or max(1, round(0.6 * length))
        if short > length:
            raise SpecError(
                f"short prompt of {short} tokens (--options.dept.short): expected at most --length {length}"
            )
        saved = (length - short) * context.backbone.width
        return Offset(short, self.positions, self.rank or max(1, saved // (self.positions + context.backbone.width)))

    def init(self, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode]) -> AdaptationInit:
        """A start of its own for every episode: that of prompt tuning with a short prompt."""
        form = self.form(context)
        brief = replace(context, settings=replace(context.settings, length=form.length))
        begun = [
            form.init(
                brief.start(e.seed, e.task.name, labels=e.task.label_names), generator("offset", e.seed, e.task.name)
            )
            for e in episodes
        ]
        params = {name: torch.cat([one[name] for one in begun]) for name in begun[0]}
        return AdaptationInit(form, params, lr_multipliers=dict.fromkeys(("a", "b"), self.low_rank_speed))


def published_options(short: int = 40, low_rank_rate: float = 5e-3) -> dict[str, Any]:
    """The released script: 40 tokens and rank 45 (60 and 30, 80 and 15 elsewhere) over 256 positions.

    `low_rank_rate` is absolute like the prompt's 0.3; they search 5e-3, 0.3 and 5e-4. Raises SpecError for others.
    """
    ranks = {40: 45, 60: 30, 80: 15}
    if short not in ranks:
        raise SpecError(f"no published settings for a short prompt of {short} tokens: there are 40, 60 and 80")
    return {"short": short, "rank": ranks[short], "positions": 256, "low_rank_speed": low_rank_rate / 0.3}


def published_settings(scale: float) -> Settings:
    """The released script on a backbone of this embedding scale: AdamW at 0.3 and 0.4, 40,000 steps of 32, 500 warm-up.

    The script asks for a weight decay of 1e-5, but makes its own optimiser, which has none.
    """
    rates = (0.3 / scale, 0.4 / scale)
    target = Training(steps=40_000, batch_size=32, learning_rates=rates, warmup=500, eval_every=1000)
    return Settings(length=100, target=target)
