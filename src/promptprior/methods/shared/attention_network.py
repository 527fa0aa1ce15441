"""The attention network of ATTEMPT: its options, how it starts, and one network shared by all targets of a group."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from promptprior.artifacts.artifact import Prior
from promptprior.backbone.text_queries import Query, pooled
from promptprior.cost import Cost
from promptprior.errors import SpecError
from promptprior.methods.contract import Recipe
from promptprior.methods.options import option
from promptprior.methods.run_context import Episode, InitialParams, RunContext
from promptprior.methods.shared.joint_targets import target_groups, train_jointly
from promptprior.notation import Float, Params, Tensor
from promptprior.parameterisations.initial import linear_init
from promptprior.parameterisations.retrieval.mixture import NETWORK, Attends, Mixture
from promptprior.tasks.sampling.batch import Tokens, collate
from promptprior.tasks.sampling.draws import generator
from promptprior.tasks.task import Task


@dataclass(frozen=True)
class AttentionRecipe(Recipe):
    """How texts attend to source prompts; docs/rivals.md says which choices are as released and which are ours."""

    SAMPLE: ClassVar[int] = 64  # texts of each source that queries are centred on

    attends: Attends = option("all", "all: sources and the target's own prompt (as released); sources")
    query: Query = option("max", "pool of the text's word embeddings: max (as released) or mean")
    centre: bool = option(False, "take the mean query of the target's shots from every query: texts differ more")
    rank: int = option(100, "width of the attention network's bottleneck", least=1, most=2**16)
    temperature: float = option(1.0, "of attention; 1 starts with scores of about one, on any backbone", above=0)
    absolute: bool = option(False, "temperature and queries in absolute numbers (as released)")
    attention_rate: float | None = option(
        0.003, "rate of the attention network, times the prompt's in embedding scales; none: the prompt's own", least=0
    )
    freeze_norm: bool = option(False, "leave the network's LayerNorm as it starts (as released)")

    needs_tokens: ClassVar[bool] = True

    @property
    def network_tensors(self) -> tuple[str, ...]:
        """The tensors that make attention of texts."""
        return (*NETWORK, "centre") if self.centre else NETWORK

    def mixture(self, context: RunContext, names: Sequence[str]) -> Mixture:
        """The parameterisation for sources of these names."""
        return Mixture(
            context.backbone,
            context.settings.length,
            names,
            query=self.query,
            attends=self.attends,
            temperature=self.temperature,
            absolute=self.absolute,
        )

    def multipliers(self, context: RunContext) -> dict[str, float]:
        """Rates beside the target prompt's: the network's weights are ratios and know no scale."""
        rate = 1.0 if self.attention_rate is None else self.attention_rate / context.backbone.scale
        norm = 0.0 if self.freeze_norm else rate
        fixed = {"sources": 0.0, "centre": 0.0} if self.centre else {"sources": 0.0}
        return {**fixed, "down": rate, "up": rate, "gain": norm, "shift": norm}

    def network(self, context: RunContext, texts: Sequence[Tokens], seed: int) -> Params:
        """One untrained network, as torch.nn.Linear and LayerNorm start theirs.

        Its centre is what these texts ask on average, most of what each of them asks.
        """
        frozen, width, draws = context.backbone.frozen, context.backbone.width, generator("attention", seed)
        start = {
            "down": linear_init(width, self.rank, fan_in=width, generator=draws),
            "up": linear_init(self.rank, width, fan_in=self.rank, generator=draws),
            "gain": torch.ones(width),
            "shift": torch.zeros(width),
        }
        network = {name: value[None].to(frozen.device, frozen.prompt_dtype) for name, value in start.items()}
        if self.centre:
            network["centre"] = pooled(context.backbone, collate(texts), self.query).mean(0, keepdim=True)  # [1, D]
        return network

    def source_network(
        self,
        context: RunContext,
        bank: Float[Tensor, "S L D"],
        names: Sequence[str],
        sources: Sequence[Task],
        seed: int,
    ) -> tuple[Params, Cost]:
        """The network after `self.attention_steps` steps with the sources as targets, and what that cost.

        Raises SpecError where the prompts in the bank are not those of the sources.
        """
        if len(sources) != len(bank):
            raise SpecError(
                f"the option attention-steps trains on the tasks of the source prompts: {len(bank)} prompts, "
                f"{len(sources)} tasks (--sources)"
            )
        draws = context.mixture(sources, seed)
        network = self.network(context, [token for pool in draws.pools for token in pool.items[: self.SAMPLE]], seed)
        params = {**network, "sources": bank[None], "target": bank[None]}  # one copy, each source a task
        form = self.mixture(context, names)
        initial = InitialParams(form, params, {**self.multipliers(context), "target": 0.0})
        key = context.key(self, "network", seed, *(t.fingerprint for t in sources))
        stage = replace(context.settings.source, steps=self.attention_steps)  # type: ignore[attr-defined]
        done = context.train(context.descent(key, stage, initial, draws), "network")
        # every tensor of a prior has as many copies as there are sources
        trained = {name: done.last[name].repeat_interleave(len(bank), dim=0) for name in self.network_tensors}
        return trained, done.cost

    def joint_network(
        self,
        context: RunContext,
        initial: InitialParams,
        priors: Sequence[Prior],
        episodes: Sequence[Episode],
    ) -> Params:
        """The episodes' params after all targets of a group have trained one attention network together."""
        groups, params = target_groups(priors, episodes), initial.params
        most = max(map(len, groups))
        filled = torch.tensor([[*members, *[members[0]] * (most - len(members))] for members in groups])  # [G, K]
        shared = {name: value[filled[:, 0]] for name, value in params.items() if name != "target"}
        if self.centre:
            shared["centre"] = torch.stack([params["centre"][members].mean(0) for members in groups])
        start = replace(initial, params={**shared, "target": params["target"][filled, 0]})
        trained = train_jointly(context, self, episodes, groups, start)
        after = {name: value.clone() for name, value in params.items()}
        for copy, members in enumerate(groups):
            after["target"][members, 0] = trained["target"][copy, : len(members)]
            for name in self.network_tensors:
                after[name][members] = trained[name][copy]
        return after
