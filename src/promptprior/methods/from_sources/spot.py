"""SPoT: a prompt for every source; a target starts from the sources most like it.

Vu et al. 2022, "SPoT: Better Frozen Model Adaptation through Soft Prompt Transfer" (arXiv 2110.07904). A task's
embedding is the mean of its prompt's tokens after a short training; similarity is the cosine. Parameterisation direct,
rule descent; all source prompts train as copies of one run. Their settings: 262,144 steps, batch 32, rate 0.3; probing
after 10,000 steps. Ours: the cosine is taken on what training ADDED to the start (all prompts share one start per
seed), because at few-shot step counts the start dominates the prompt itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from promptprior.artifacts.artifact import Prior
from promptprior.config.training import setting
from promptprior.methods.method import AdaptationInit, Episode, FitResult, Method, RunContext, stacked, viewed
from promptprior.methods.shared.source_prompts import given_prompts, similarities, source_bank, trained_prompts
from promptprior.notation import Float, Tensor
from promptprior.parameterisations.direct import Direct
from promptprior.tasks.task import Task


@dataclass(frozen=True)
class Spot:
    """Source prompts retrieved by task embedding.

    `retrieval`: "best" starts from the most similar source, "weighted" from the cosine-weighted mean of the `top` most
    similar. `probe_steps`: steps of the short target training that gives the target its embedding.
    """

    retrieval: Literal["best", "weighted"] = setting(
        "best", "start from the best source, or the weighted mean of the top ones"
    )
    top: int = setting(3, "sources in the weighted mean")
    probe_steps: int = setting(10, "steps that give a target its embedding")
    source_prompts: tuple[Path, ...] = setting(
        (), "prompts that others trained, instead of training on sources", omit_from_hash_if_default=True
    )
    source_start: Path | None = setting(
        None, "the start that given source prompts share; none: their mean", omit_from_hash_if_default=True
    )
    name: str = "spot"
    needs_sources: bool = True
    uses_shots: bool = True

    def source_view(self) -> Method:
        """The same source prompts, however targets retrieve them."""
        return viewed(self, type(self), ("retrieval", "top", "probe_steps"))

    def fit(self, context: RunContext, sources: Sequence[Task], seed: int) -> FitResult:
        """One prompt per source, trained or given."""
        if self.source_prompts:
            return given_prompts(context, self.source_prompts, self.source_start)
        return trained_prompts(context, sources, seed)

    def init(self, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode]) -> AdaptationInit:
        """Embed every episode's target by a short training, then start from the sources most like it."""
        task_similarity = similarities(context, priors, episodes, self.probe_steps)
        starts = [
            self.retrieve(source_bank(context, prior)[0], like)
            for prior, like in zip(priors, task_similarity, strict=True)
        ]
        return AdaptationInit(Direct(context.settings.length, context.backbone.width), stacked(starts))

    def retrieve(self, bank: Float[Tensor, "S L D"], similarity: Float[Tensor, " S"]) -> Float[Tensor, "L D"]:
        """The start that retrieval makes of source prompts and their similarity to the target."""
        if self.retrieval == "best":
            return bank[similarity.argmax()]
        weights, places = similarity.clamp(min=0).topk(min(self.top, len(bank)))
        weights = weights + 1e-6  # sources that are all unlike count alike
        return torch.tensordot(weights / weights.sum(), bank[places], dims=1)
