"""ATTEMPT: a prompt for every text, its task's own plus an attention-weighted sum of frozen source prompts.

Asai, Salehi, Peters, Hajishirzi 2022 (EMNLP, arXiv 2205.11961); docs/rivals.md compares their released code with ours.
Source stage: SPoT's, a prompt for each source. Targets train their own prompt and the attention network, at two rates.
Parameterisation mixture, rule descent. Released settings are `attempt_as_released`; `attempt` is ours: temperature and
queries free of the backbone's scale, a rate for the attention network that is applied, and the most similar source as
the target's start, where they take the first one that is listed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import torch

from promptprior.artifacts.artifact import Prior
from promptprior.config.training import Settings
from promptprior.methods.contract import Recipe
from promptprior.methods.from_sources.spot import Spot
from promptprior.methods.learned import AdaptationInit, FitResult
from promptprior.methods.options import fact, option, target_option
from promptprior.methods.run_context import Episode, InitialParams, RunContext, stacked
from promptprior.methods.shared.attention_network import AttentionRecipe
from promptprior.methods.shared.source_prompts import prior_prompts, source_similarities
from promptprior.methods.workload import Workload
from promptprior.tasks.task import Task


@dataclass(frozen=True)
class Attempt(AttentionRecipe):
    """An attentional mixture of source prompts and the target's own."""

    name: str = fact("attempt")
    needs_sources: bool = fact(True, init=False)
    start: Literal["similar", "first", "fresh"] = target_option(
        "similar", "the target's prompt: the most similar source's, the first source's (as released), or a fresh one"
    )
    probe_steps: int = target_option(10, "steps that give a target its embedding (start similar)", least=0)
    attention_steps: int = option(0, "steps that train the attention network on the sources first", least=0)
    joint_steps: int = target_option(
        0, "steps in which all targets of a seed first train one attention network together", least=0
    )
    source_prompts: tuple[Path, ...] = option((), "prompts that others trained, instead of training on sources")
    source_start: Path | None = option(None, "the start that given source prompts share; none: their mean")

    def source_recipe(self) -> Recipe:
        """SPoT's source prompts; an attention network trained on sources is this method's own."""
        if self.attention_steps:
            return super().source_recipe()
        return Spot(source_prompts=self.source_prompts, source_start=self.source_start)

    def fit(self, context: RunContext, sources: Sequence[Task], seed: int) -> FitResult:
        """Source prompts and, with `attention_steps`, an attention network trained with the sources as targets."""
        taught = replace(self, attention_steps=0).source_recipe().fit(context, sources, seed)
        if not self.attention_steps:
            return taught
        names = cast(Sequence[str], taught.diagnostics["sources"])
        network, cost = self.source_network(context, taught.params["prompt"], names, sources, seed)
        return replace(taught, params={**taught.params, **network}, cost=taught.cost + cost)

    def init(self, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode]) -> AdaptationInit:
        """Every episode at its start, with a network that no other episode trains (unless in `joint_steps` before)."""
        frozen = context.backbone.frozen
        banks = [prior_prompts(context, prior)[0] for prior in priors]
        if self.attention_steps:
            networks = [{n: prior.params[n][:1].to(frozen.device) for n in self.network_tensors} for prior in priors]
        else:
            networks = [self.network(context, context.tokens(e.task, e.shots.train), e.seed) for e in episodes]
        if self.start == "fresh":
            starts = context.episode_prompts(episodes)["prompt"]  # [E, L, D]
        elif self.start == "first":
            starts = torch.stack([bank[0] for bank in banks])
        else:
            similarities = source_similarities(context, priors, episodes, self.probe_steps)
            starts = stacked([bank[s.argmax()] for bank, s in zip(banks, similarities, strict=True)])["prompt"]
        params = {
            **{name: torch.cat([network[name] for network in networks]) for name in self.network_tensors},
            "sources": torch.stack(banks),  # [E, S, L, D]
            "target": starts[:, None],  # [E, 1, L, D]
        }
        params = {name: value.to(frozen.prompt_dtype) for name, value in params.items()}
        names = [str(name) for name in cast(Sequence[object], priors[0].header.diagnostics["sources"])]
        form, multipliers = self.mixture(context, names), self.multipliers(context)
        if self.joint_steps:
            params = self.joint_network(context, InitialParams(form, params, multipliers), priors, episodes)
        return AdaptationInit(form, params, lr_multipliers=multipliers)

    def workload(self, settings: Settings, sources: int = 1) -> Workload:
        """The attention network trains after the source prompts; only a similar start needs the probe."""
        passes = 1.0 + self.attention_steps / max(1, settings.source.steps)
        before = self.joint_steps + (self.probe_steps if self.start == "similar" else 0)
        return replace(super().workload(settings, sources), source_passes=passes, steps_before=before)

    def prompt_tokens(self, settings: Settings, texts: float, sources: int = 0) -> float:
        """A prompt for each source; on targets for each text."""
        return settings.length * (sources or texts)


ARMS = (
    Attempt(),
    Attempt(  # the released code's attention: temperature 2087, queries as they are, one rate, a fixed LayerNorm
        name="attempt_as_released",
        start="first",
        temperature=2087.0,
        absolute=True,
        attention_rate=None,
        freeze_norm=True,
    ),
)
