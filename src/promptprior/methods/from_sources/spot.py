"""SPoT: a prompt for every source; a target starts from the sources most like it.

Vu et al. 2022, "SPoT: Better Frozen Model Adaptation through Soft Prompt Transfer" (arXiv 2110.07904). A task's
embedding is the mean of its prompt's tokens after a short training; similarity is the cosine. Parameterisation direct,
rule descent; all source prompts train as copies of one run. Their settings: 262,144 steps, batch 32, rate 0.3; probing
after 10,000 steps. Ours: the cosine is taken on what training ADDED to the start (all prompts share one start per
seed), because at few-shot step counts the start dominates the prompt itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from promptprior.artifacts.artifact import Prior
from promptprior.config.training import Settings
from promptprior.methods.contract import Recipe
from promptprior.methods.learned import AdaptationInit, FitResult
from promptprior.methods.options import fact, option, target_option
from promptprior.methods.run_context import Episode, RunContext, stacked
from promptprior.methods.shared.source_prompts import prior_prompts, read_prompts, source_similarities, train_prompts
from promptprior.methods.workload import Workload
from promptprior.notation import Float, Tensor
from promptprior.tasks.task import Task


@dataclass(frozen=True)
class Spot(Recipe):
    """Source prompts retrieved by task embedding."""

    name: str = fact("spot")
    needs_sources: bool = fact(True, init=False)
    retrieval: Literal["best", "weighted"] = target_option(
        "best", "start from the best source, or the similarity-weighted mean of the top ones"
    )
    top: int = target_option(3, "sources in the weighted mean", least=1)
    probe_steps: int = target_option(10, "steps of target training that give a target its embedding", least=0)
    source_prompts: tuple[Path, ...] = option(
        (), "prompts that others trained, instead of training on sources", omit_from_hash_if_default=True
    )
    source_start: Path | None = option(
        None, "the start that given source prompts share; none: their mean", omit_from_hash_if_default=True
    )

    read_prompts = "each_source"

    def fit(self, context: RunContext, sources: Sequence[Task], seed: int) -> FitResult:
        """One prompt per source, trained or read from files."""
        if self.source_prompts:
            return read_prompts(context, self.source_prompts, self.source_start)
        return train_prompts(context, sources, seed)

    def init(self, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode]) -> AdaptationInit:
        """Embed every episode's target by a short training, then start from the sources most like it."""
        similarities = source_similarities(context, priors, episodes, self.probe_steps)
        banks = [prior_prompts(context, prior)[0] for prior in priors]
        starts = [self.retrieve(bank, similarity) for bank, similarity in zip(banks, similarities, strict=True)]
        return AdaptationInit(context.direct(), stacked(starts))

    def workload(self, settings: Settings, sources: int = 1) -> Workload:
        """A step reads as many texts of each source."""
        texts = max(1, settings.source.batch_size // sources) * sources
        return replace(super().workload(settings, sources), source_texts=texts)

    def retrieve(self, bank: Float[Tensor, "S L D"], similarity: Float[Tensor, " S"]) -> Float[Tensor, "L D"]:
        """The start that source prompts and their similarity to the target give."""
        if self.retrieval == "best":
            return bank[similarity.argmax()]
        weights, sources = similarity.clamp(min=0).topk(min(self.top, len(bank)))
        weights = weights + 1e-6  # sources that are all unlike count alike
        return torch.tensordot(weights / weights.sum(), bank[sources], dims=1)


ARMS = (Spot(),)
