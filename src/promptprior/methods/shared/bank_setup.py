"""How a bank of prompt tokens begins, on sources and on targets: what `tpt` and the meta-learners of a bank share.

Options are TPT's (Wu et al. 2023) and ours; docs/tpt.md says which are which.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from promptprior.artifacts.artifact import Prior
from promptprior.config.training import setting
from promptprior.cost import Cost
from promptprior.errors import SpecError
from promptprior.methods.from_sources.spot import Spot
from promptprior.methods.method import AdaptationInit, Episode, InitialParams, RunContext
from promptprior.notation import Float, Params, Tensor
from promptprior.parameterisations.bank import BANK_TENSORS, SCORING_TENSORS, Bank, Scoring, Selection
from promptprior.parameterisations.initial import FREQUENT, vocabulary_start
from promptprior.parameterisations.text_queries import Query, pooled
from promptprior.tasks.sampling.batch import Tokens, collate
from promptprior.tasks.sampling.draws import MixtureDraws, generator
from promptprior.tasks.task import Task

SAMPLE = 64  # texts of each source that centre, keys and diagnostics are taken from


@dataclass(frozen=True)
class BankRecipe:
    """A bank of tokens retrieved by each text, and a task prompt beside them."""

    bank_size: int = setting(60, "tokens in the bank")
    retrieve: int = setting(0, "tokens each text retrieves; 0: half of the prompt length")
    task_tokens: int = setting(0, "tokens of the task prompt; 0: what retrieval leaves of the prompt length")
    task_prompt: Literal["learned", "fresh", "none"] = setting(
        "learned", "learned: trained on the sources with the bank; fresh: new for each target (as released); none"
    )
    query: Query = setting("mean", "pool of the text's states: max (as released) or mean")
    query_layers: int = setting(
        0,
        "layers that read a text before it is pooled; 0: word embeddings (as released)",
        omit_from_hash_if_default=True,
    )
    centre: bool = setting(True, "take the sources' mean query from every query")
    query_rank: int = setting(0, "rank of a learned map of queries; 0: none")
    keys: Literal["tied", "separate", "texts"] = setting(
        "texts", "tied: tokens are their keys (as released); separate: start as the tokens; texts: as source queries"
    )
    scoring: Scoring = setting("cosine", "dot (as released), scaled, cosine; same and random are controls")
    selection: Selection = setting("hard", "hard (as released), straight_through, weighted or soft")
    temperature: float = setting(0.1, "of the softmax over scores")
    balance: float = setting(0.0, "weight of the term that evens out how often tokens are used")
    spread: float = setting(0.0, "weight of the term that keeps keys apart")
    budget: int = setting(0, "tokens of the bank open to each source; 0: all")
    start: Literal["frequent", "sources"] = setting(
        "frequent", "bank from frequent words, or from prompts trained on each source (SPoT's)"
    )
    freeze_bank: bool = setting(False, "adapt the task prompt alone")
    name: str = "tpt"

    def form(self, context: RunContext, own: int, **settings: Any) -> Bank:
        """The bank that a stage reads."""
        return Bank(
            context.backbone,
            size=self.bank_size,
            retrieve=self.retrieved(context),
            own=own,
            query=self.query,
            layers=self.query_layers,
            scoring=self.scoring,
            selection=self.selection,
            temperature=self.temperature,
            **settings,
        )

    def retrieved(self, context: RunContext) -> int:
        """K."""
        if self.retrieve:
            return self.retrieve
        return context.settings.length if self.task_prompt == "none" else max(1, context.settings.length // 2)

    def own(self, context: RunContext) -> int:
        """Tokens of the task prompt. Raises SpecError when retrieval leaves none."""
        if self.task_prompt == "none":
            return 0
        own = self.task_tokens or context.settings.length - self.retrieved(context)
        if own < 1:
            raise SpecError(
                f"prompt length {context.settings.length} (--length) leaves {own} tokens for the task prompt beside "
                f"{self.retrieved(context)} retrieved ones: give --options.task-tokens, or --options.task-prompt none"
            )
        return own

    def begun(
        self, context: RunContext, sources: Sequence[Task], draws: MixtureDraws, seed: int
    ) -> tuple[InitialParams, Cost]:
        """Where stage 1 starts, one copy, and what that cost."""
        own = self.own(context) if self.task_prompt == "learned" else 0
        form = self.form(context, own, tasks=len(sources), budget=self.budget, balance=self.balance, spread=self.spread)
        params, cost = self.started(context, sources, draws, own, seed)
        return InitialParams(form, params, self.frozen), cost

    @property
    def frozen(self) -> Mapping[str, float]:
        """Factors of what stage 1 does not train: the centre, and keys that nothing gives a gradient."""
        still = SCORING_TENSORS if self.selection == "hard" and not self.balance and not self.spread else ()
        return dict.fromkeys(("centre", *still), 0.0)

    def started(
        self, context: RunContext, sources: Sequence[Task], draws: MixtureDraws, own: int, seed: int
    ) -> tuple[Params, Cost]:
        """The parameters that stage 1 starts from, one copy, and what they cost."""
        bank, cost = self.started_bank(context, sources, seed)
        params = {"bank": bank}
        queries = self.sample_queries(context, draws, seed)
        if self.centre:
            params["centre"] = queries.mean(0)
            queries = queries - params["centre"]
        if self.keys == "texts":
            params["keys"] = drawn_rows(queries, self.bank_size, generator("keys", seed))
        elif self.keys == "separate":
            params["keys"] = bank - bank.mean(0) if self.centre else bank.clone()
        if self.query_rank:
            down = torch.randn(context.backbone.width, self.query_rank, generator=generator("map", seed))
            params["down"] = down.to(bank) / context.backbone.width**0.5
            params["up"] = torch.zeros_like(params["down"].T)
        if own:
            params["own"] = task_start(context, own, seed, self.name)
        return {name: value[None].contiguous() for name, value in params.items()}, cost

    def sample_queries(self, context: RunContext, draws: MixtureDraws, seed: int) -> Float[Tensor, "n D"]:
        """What some texts of each source ask."""
        sample = [collate(some) for some in samples(draws, seed)]
        return torch.cat([pooled(context.backbone, texts, self.query, self.query_layers) for texts in sample])

    def started_bank(
        self, context: RunContext, sources: Sequence[Task], seed: int
    ) -> tuple[Float[Tensor, "N D"], Cost]:
        """The bank's starting rows: frequent words, or the tokens of prompts trained on each source."""
        words = frequent_rows(context, self.bank_size, generator("bank", seed))
        if self.start == "frequent":
            return words, Cost()
        aside = replace(context, train=lambda run, stage: context.train(run, f"start-{stage}"))
        taught = Spot().fit(aside, sources, seed)
        tokens = taught.params["prompt"].flatten(0, 1)
        rows = drawn_rows(tokens, min(self.bank_size, len(tokens)), generator("rows", seed))
        return torch.cat([rows, words[len(rows) :]]), taught.cost

    def init(self, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode]) -> AdaptationInit:
        """Stage 2: every episode has a copy of its prior's bank (of several, their mean), and a task prompt."""
        device = context.backbone.frozen.device
        form = self.form(context, self.own(context))
        kept = [name for name in (*BANK_TENSORS, "centre") if name in priors[0].params]
        if self.task_prompt == "learned":
            kept.append("own")
        params = {name: torch.stack([prior.params[name].mean(0) for prior in priors]).to(device) for name in kept}
        if form.own and "own" not in params:
            params["own"] = torch.stack([task_start(context, form.own, e.seed, e.task.name) for e in episodes])
        frozen = BANK_TENSORS if self.freeze_bank else SCORING_TENSORS if self.selection == "hard" else ()
        return AdaptationInit(form, params, lr_multipliers=dict.fromkeys(("centre", *frozen), 0.0))


def frequent_rows(context: RunContext, count: int, g: torch.Generator) -> Float[Tensor, "n D"]:
    """Embeddings of frequent words; of small vocabularies, each as often as it takes."""
    frozen = context.backbone.frozen
    most = min(FREQUENT, len(frozen.vocabulary_embeddings) - len(set(frozen.tokenizer.all_special_ids)))
    rounds = [vocabulary_start(context.backbone, min(most, count - done), g) for done in range(0, count, most)]
    return torch.cat(rounds).detach().to(frozen.device)


def task_start(context: RunContext, own: int, *names: object) -> Float[Tensor, "1 own D"]:
    """A task prompt's start: frequent words."""
    return frequent_rows(context, own, generator("own", *names))[None]


def samples(draws: MixtureDraws, seed: int) -> list[list[Tokens]]:
    """Some texts of each source."""
    orders = [torch.randperm(len(p.items), generator=generator("sample", seed, p.task)).tolist() for p in draws.pools]
    return [[p.items[i] for i in order[:SAMPLE]] for p, order in zip(draws.pools, orders, strict=True)]


def drawn_rows(rows: Float[Tensor, "n D"], count: int, g: torch.Generator) -> Float[Tensor, "m D"]:
    """Rows drawn without repeats, as long as there are any."""
    rounds = -(-count // len(rows))
    order = torch.cat([torch.randperm(len(rows), generator=g) for _ in range(rounds)])[:count]
    return rows[order.to(rows.device)]
