"""References: the same shots, batches, steps and selection, but weights of the model move instead of a prompt.

lora: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685), by PEFT's layers on
queries and values. lora_linear (ours): the same training, but a linear head on the states of the moved model answers,
fitted to all shots (docs/log.md). bitfit: Ben Zaken et al. 2021, "BitFit" (arXiv 2106.10199), trains biases; Llama-like
models have none, so by default the scales of norms move as well. fine_tuning: every weight, one target at a time. Ours:
rates are absolute, since weights have no embedding scale, and the grid has as many rates as the prompts' grid, in the
same proportions (docs/references.md).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from math import sqrt
from typing import ClassVar, Literal

import torch

from promptprior.artifacts.artifact import Prior
from promptprior.methods.contract import Recipe
from promptprior.methods.learned import AdaptationInit
from promptprior.methods.options import fact, option
from promptprior.methods.run_context import Episode, RunContext
from promptprior.notation import Tensor
from promptprior.parameterisations.registry import Form
from promptprior.parameterisations.weights import LoraForm, OwnForm
from promptprior.tasks.sampling.draws import generator
from promptprior.tasks.task import Task

PROMPT_RATE = 0.3  # the rate of prompts that a reference's `rate` stands beside


@dataclass(frozen=True)
class WeightRecipe(Recipe):
    """What methods that move weights share: their absolute learning rates."""

    rate: float = option(
        1e-3, f"absolute learning rate where prompts have {PROMPT_RATE} in units of the embedding scale", above=0
    )
    learning_rates: tuple[float, ...] = option(
        (), "absolute rates to try; by default as many as --target.learning-rates, in the same proportions", above=0
    )

    read_prompts = "none"

    def weight_init(self, context: RunContext, form: Form, starts: Sequence[Mapping[str, Tensor]]) -> AdaptationInit:
        """Each episode's weights as copies, [E, *shape], in the prompts' dtype: half precision swallows small steps."""
        kept = context.backbone.frozen.prompt_dtype
        params = {name: torch.stack([weights[name] for weights in starts]).to(kept) for name in starts[0]}
        target = context.settings.target
        unit = context.backbone.scale if target.rate_unit == "absolute" else 1.0
        grid = tuple(self.rate * r / (PROMPT_RATE * unit) for r in target.learning_rates)
        return AdaptationInit(form, params, learning_rates=self.learning_rates or grid)


@dataclass(frozen=True)
class Lora(WeightRecipe):
    """Low-rank additions to linear modules, fresh for every episode."""

    name: str = fact("lora")
    rank: int = option(8, "rank of each addition", least=1, most=2**12)
    alpha: float = option(16.0, "additions count alpha / rank", above=0)
    modules: tuple[str, ...] = option((), "modules added to; by default PEFT's: q and v")

    def serves(self, task: Task) -> str | None:
        """Nothing without the package that has its layers."""
        return super().serves(task) if find_spec("peft") else "it needs a package: pip install 'promptprior[peft]'"

    def init(self, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode]) -> AdaptationInit:
        """LoRA's own start for every episode, seeded by task and seed: additions of zero. `A` is uniform within one
        over the square root of its input, `B` zero."""
        form = LoraForm(self.rank, self.alpha, self.modules)
        shapes, starts = form.answers(context.backbone).start, []
        for episode in episodes:
            g = generator("lora", episode.seed, episode.task.name)
            start = {name: torch.zeros(like.shape, dtype=like.dtype) for name, like in shapes.items()}
            for name, value in start.items():  # drawn on the CPU
                if ".lora_A." in name:
                    torch.nn.init.kaiming_uniform_(value, a=sqrt(5), generator=g)
            starts.append({name: value.to(shapes[name].device) for name, value in start.items()})
        return self.weight_init(context, form, starts)


@dataclass(frozen=True)
class Bitfit(WeightRecipe):
    """The model's own vectors, from where they stand."""

    name: str = fact("bitfit")
    which: Literal["vectors", "biases"] = option("vectors", "biases (as published), or vectors: norm scales too")

    def init(self, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode]) -> AdaptationInit:
        """The model as it is."""
        form = OwnForm(self.which)
        return self.weight_init(context, form, [form.answers(context.backbone).start] * len(episodes))


@dataclass(frozen=True)
class FineTuning(WeightRecipe):
    """Every weight of the model, episode after episode: four times the model in float32 for each rate of the grid."""

    name: str = fact("fine_tuning")
    rate: float = option(3e-5, f"absolute learning rate where prompts have {PROMPT_RATE}", above=0)

    adapts_one_by_one: ClassVar[bool] = True

    def init(self, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode]) -> AdaptationInit:
        """The model as it is."""
        form = OwnForm("all")
        return self.weight_init(context, form, [form.answers(context.backbone).start] * len(episodes))


ARMS = (Lora(), Lora(name="lora_linear", head="linear"), Bitfit(), FineTuning())
