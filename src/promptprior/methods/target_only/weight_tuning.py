"""References: the same shots, batches, steps and selection, but weights of the trunk move instead of a prompt.

lora: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685), by PEFT's layers on
queries and values. bitfit: Ben Zaken et al. 2021, "BitFit" (arXiv 2106.10199), trains biases; Llama-like models have
none, so by default the scales of norms move as well. Ours: rates are absolute, since weights have no embedding scale,
and the grid has as many rates as the prompts' grid, in the same proportions (docs/references.md).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from promptprior.artifacts.artifact import Prior
from promptprior.backbone.weight_overrides import Which, lora_start
from promptprior.config.training import Settings
from promptprior.errors import SpecError
from promptprior.methods.method import AdaptationInit, Episode, FitResult, RunContext
from promptprior.notation import Params, Tensor
from promptprior.parameterisations.weights import LoraForm, OwnForm
from promptprior.tasks.sampling.draws import generator
from promptprior.tasks.task import Task

PROMPT_RATE = 0.3  # the rate of prompts that a reference's `rate` stands beside
RATE_HELP = f"absolute learning rate where prompts have {PROMPT_RATE} in units of the embedding scale"
RATES_HELP = "absolute learning rates to try; by default as many as --target.learning-rates, in the same proportions"


@dataclass(frozen=True)
class Lora:
    """Low-rank additions to linear modules, fresh for every episode."""

    rank: int = field(default=8, metadata={"help": "rank of each addition"})
    alpha: float = field(default=16.0, metadata={"help": "additions count alpha / rank"})
    modules: tuple[str, ...] = field(default=(), metadata={"help": "modules added to; by default PEFT's: q and v"})
    rate: float = field(default=1e-3, metadata={"help": RATE_HELP})
    learning_rates: tuple[float, ...] = field(default=(), metadata={"help": RATES_HELP})
    name: str = "lora"
    needs_sources: bool = False
    uses_shots: bool = True

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise SpecError(
                f"rank {self.rank}, alpha {self.alpha} (--options.lora.rank, --options.lora.alpha): expected at least "
                "1, and more than 0"
            )

    def fit(self, context: RunContext, sources: Sequence[Task], seed: int) -> FitResult:
        """Nothing to learn. Raises SpecError."""
        raise no_prior(self.name)

    def init(self, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode]) -> AdaptationInit:
        """LoRA's own start for every episode, seeded by task and seed: additions of zero."""
        form = LoraForm(self.rank, self.alpha, self.modules)
        trunk = form.answers(context.backbone)
        starts = [lora_start(trunk, generator("lora", e.seed, e.task.name)) for e in episodes]
        return AdaptationInit(
            form, stacked_weights(starts, context), rates=rates(context.settings, self.rate, self.learning_rates)
        )


@dataclass(frozen=True)
class Bitfit:
    """The trunk's own vectors, from where they stand."""

    which: Which = field(default="vectors", metadata={"help": "biases (as published), or vectors: norm scales too"})
    rate: float = field(default=1e-3, metadata={"help": RATE_HELP})
    learning_rates: tuple[float, ...] = field(default=(), metadata={"help": RATES_HELP})
    name: str = "bitfit"
    needs_sources: bool = False
    uses_shots: bool = True

    def fit(self, context: RunContext, sources: Sequence[Task], seed: int) -> FitResult:
        """Nothing to learn. Raises SpecError."""
        raise no_prior(self.name)

    def init(self, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode]) -> AdaptationInit:
        """The trunk as it is."""
        form = OwnForm(self.which)
        starts = [form.answers(context.backbone).start] * len(episodes)
        return AdaptationInit(
            form, stacked_weights(starts, context), rates=rates(context.settings, self.rate, self.learning_rates)
        )


def no_prior(name: str) -> SpecError:
    """The error of a method that is asked to fit."""
    return SpecError(f"method {name!r} has no prior to fit; use it with adapt or compare")


def rates(settings: Settings, rate: float, given: Sequence[float]) -> tuple[float, ...]:
    """The absolute rates to try: those given, or the prompts' grid moved to stand around `rate`.

    >>> rates(Settings(), 1e-3, ())
    (0.001,)
    """
    return tuple(given) or tuple(rate * r / PROMPT_RATE for r in settings.target.learning_rates)


def stacked_weights(each: Sequence[Mapping[str, Tensor]], context: RunContext) -> Params:
    """Weights as copies, in the dtype that prompts are kept in: half precision would swallow small steps."""
    kept = context.backbone.frozen.prompt_dtype
    return {name: torch.stack([weights[name] for weights in each]).to(kept) for name in each[0]}
