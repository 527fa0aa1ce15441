"""Prompt arithmetic: what training added to a shared start for each source, summed, is where a target starts.

Belanec, Ostermann, Srba, Bielikova 2024, "Task Prompt Vectors: Effective Initialization through Multi-Task Soft-Prompt
Transfer" (arXiv 2408.01119; ECML PKDD 2025): tau_s = P_s - P_0, and a target starts from P_0 + tau_a + tau_b. Source
stage: SPoT's, all prompts from one start. Parameterisation direct, rule descent. Their settings (T5-base): length 50,
AdamW, rate 0.3 absolute, decay 1e-5, batch 32 on sources and 8 on targets, coefficient 1; which vectors are summed is
chosen by hand. Ours: the `top` sources most like the target, by SPoT's task embeddings, and scales that dev picks from.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from promptprior.artifacts.artifact import Prior
from promptprior.config.training import Settings
from promptprior.methods.contract import Recipe
from promptprior.methods.from_sources.spot import Spot
from promptprior.methods.learned import AdaptationInit
from promptprior.methods.options import fact, option, target_option
from promptprior.methods.run_context import Episode, RunContext, stacked
from promptprior.methods.shared.source_prompts import prior_prompts, source_similarities
from promptprior.methods.workload import Workload
from promptprior.notation import Float, Tensor


@dataclass(frozen=True)
class PromptArithmetic(Recipe):
    """The shared start plus weighted task vectors."""

    name: str = fact("prompt_arithmetic")
    needs_sources: bool = fact(True, init=False)
    combine: Literal["sum", "mean", "weighted"] = target_option(
        "sum", "weights of the task vectors: sum (all 1), mean, or weighted (by similarity, summing to 1)"
    )
    top: int = target_option(2, "the most similar sources, whose vectors are combined; 0: all sources", least=0)
    scales: tuple[float, ...] = target_option(
        (1.0,), "factors on the combined vector; of several, dev picks one", at_least_one=True, least=-1e6, most=1e6
    )
    probe_steps: int = target_option(10, "steps that give a target its embedding", least=0)
    source_prompts: tuple[Path, ...] = option((), "prompts that others trained, instead of training on sources")
    source_start: Path | None = option(None, "the start that given source prompts share; none: their mean")

    def source_recipe(self) -> Recipe:
        """SPoT's source prompts: one per source, all from one start."""
        return Spot(source_prompts=self.source_prompts, source_start=self.source_start)

    def init(self, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode]) -> AdaptationInit:
        """Every episode at the shared start plus its sum of task vectors, at every scale."""
        prompts = [prior_prompts(context, prior) for prior in priors]  # ([S, L, D], [L, D]) each
        if self.top == 0 and self.combine != "weighted":
            similarities = [torch.ones(len(trained)) for trained, _ in prompts]
        else:
            similarities = source_similarities(context, priors, episodes, self.probe_steps)
        starts = []
        for (trained, start), similarity in zip(prompts, similarities, strict=True):
            vector = torch.tensordot(self.weights(similarity).to(trained), trained - start, dims=1)  # [L, D]
            starts += [start + scale * vector for scale in self.scales]
        return AdaptationInit(context.direct(), stacked(starts), variants=[{"scale": s} for s in self.scales])

    def weights(self, similarity: Float[Tensor, " S"]) -> Float[Tensor, " S"]:
        """What each source's task vector is multiplied by."""
        chosen = torch.zeros_like(similarity)
        chosen[similarity.topk(min(self.top or len(similarity), len(similarity))).indices] = 1
        if self.combine == "sum":
            return chosen
        share = chosen if self.combine == "mean" else chosen * (similarity.clamp(min=0) + 1e-6)
        return share / share.sum()

    def workload(self, settings: Settings, sources: int = 1) -> Workload:
        """A probe where similarity to sources has a say, and a copy for each scale."""
        before = 0 if self.top == 0 and self.combine != "weighted" else self.probe_steps
        return replace(super().workload(settings, sources), steps_before=before, adaptation_copies=len(self.scales))


ARMS = (PromptArithmetic(),)
