"""Prompt arithmetic: what training added to a shared start for each source, summed, is where a target starts.

Belanec, Ostermann, Srba, Bielikova 2024, "Task Prompt Vectors: Effective Initialization through Multi-Task Soft-Prompt
Transfer" (arXiv 2408.01119; ECML PKDD 2025): tau_s = P_s - P_0, and a target starts from P_0 + tau_a + tau_b. Source
stage: SPoT's, all prompts from one start. Parameterisation direct, rule descent. Their settings (T5-base): length 50,
AdamW, rate 0.3 absolute, decay 1e-5, batch 32 on sources and 8 on targets, coefficient 1; which vectors are summed is
chosen by hand. Ours: the `top` sources most like the target, by SPoT's task embeddings, and scales that dev picks from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from promptprior.artifacts.artifact import Prior
from promptprior.config.training import setting
from promptprior.errors import SpecError
from promptprior.methods.from_sources.spot import Spot
from promptprior.methods.method import AdaptationInit, Episode, FitResult, Method, RunContext
from promptprior.methods.shared.source_prompts import similarities, source_bank
from promptprior.notation import Float, Tensor
from promptprior.parameterisations.direct import Direct
from promptprior.tasks.task import Task


@dataclass(frozen=True)
class PromptArithmetic:
    """The shared start plus weighted task vectors."""

    combine: Literal["sum", "mean", "weighted"] = setting(
        "sum", "weights of the task vectors: sum (all 1), mean, or weighted (by similarity, summing to 1)"
    )
    top: int = setting(2, "the most similar sources, whose vectors are combined; 0: all sources")
    scales: tuple[float, ...] = setting((1.0,), "factors on the combined vector; of several, dev picks one")
    probe_steps: int = setting(10, "steps that give a target its embedding")
    source_prompts: tuple[Path, ...] = setting((), "prompts that others trained, instead of training on sources")
    source_start: Path | None = setting(None, "the start that given source prompts share; none: their mean")
    name: str = "prompt_arithmetic"
    needs_sources: bool = True
    uses_shots: bool = True

    def __post_init__(self) -> None:
        if self.top < 0 or not self.scales:
            raise SpecError(
                f"top {self.top}, scales {self.scales} (--top, --scales): expected 0 or more, and at least one scale"
            )

    def source_view(self) -> Method:
        """SPoT's source prompts."""
        return Spot(source_prompts=self.source_prompts, source_start=self.source_start)

    def fit(self, context: RunContext, sources: Sequence[Task], seed: int) -> FitResult:
        """One prompt per source, all from one start."""
        return self.source_view().fit(context, sources, seed)

    def init(self, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode]) -> AdaptationInit:
        """Every episode at the shared start plus its sum of task vectors, at every scale."""
        added = self.added(context, priors, episodes)
        starts = [
            source_bank(context, prior)[1] + scale * vector
            for prior, vector in zip(priors, added, strict=True)
            for scale in self.scales
        ]
        variants = [{"scale": scale} for scale in self.scales]
        return AdaptationInit(
            Direct(context.settings.length, context.backbone.width), {"prompt": torch.stack(starts)}, variants=variants
        )

    def added(
        self, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode]
    ) -> list[Float[Tensor, "L D"]]:
        """The combined task vector of each episode."""
        banks = [source_bank(context, prior) for prior in priors]
        if self.top == 0 and self.combine != "weighted":
            task_similarity = [torch.ones(len(bank)) for bank, _ in banks]
        else:
            task_similarity = similarities(context, priors, episodes, self.probe_steps)
        weights = [self.weights(like) for like in task_similarity]
        return [torch.tensordot(w.to(b), b - s, dims=1) for w, (b, s) in zip(weights, banks, strict=True)]

    def weights(self, task_similarity: Float[Tensor, " S"]) -> Float[Tensor, " S"]:
        """What each source's task vector is multiplied by."""
        chosen = torch.zeros_like(task_similarity)
        chosen[task_similarity.topk(min(self.top or len(task_similarity), len(task_similarity))).indices] = 1
        if self.combine == "sum":
            return chosen
        share = chosen if self.combine == "mean" else chosen * (task_similarity.clamp(min=0) + 1e-6)
        return share / share.sum()
