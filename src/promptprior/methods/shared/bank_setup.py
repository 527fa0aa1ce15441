"""How a bank of prompt tokens starts, on sources and on targets: what `tpt` and the meta-learners of a bank share.

Options are TPT's (Wu et al. 2023) and ours; docs/tpt.md says which are which.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch

from promptprior.artifacts.artifact import Prior
from promptprior.backbone.text_queries import Query, pooled
from promptprior.config.training import Settings
from promptprior.cost import Cost
from promptprior.errors import SpecError
from promptprior.methods.contract import Recipe
from promptprior.methods.learned import AdaptationInit
from promptprior.methods.options import fact, option, target_option
from promptprior.methods.run_context import Episode, InitialParams, RunContext
from promptprior.methods.shared.source_prompts import train_prompts
from promptprior.notation import Float, Tensor
from promptprior.parameterisations.initial import FREQUENT, vocabulary_start
from promptprior.parameterisations.retrieval.bank import BANK_TENSORS, SCORING_TENSORS, Bank, Scoring, Selection
from promptprior.tasks.sampling.batch import Tokens, collate
from promptprior.tasks.sampling.draws import MixtureDraws, generator
from promptprior.tasks.task import Task

SAMPLE = 64  # texts of each source that centre, keys and diagnostics are taken from


@dataclass(frozen=True)
class BankRecipe(Recipe):
    """A bank of tokens retrieved by each text, and a task prompt beside them."""

    name: str = fact("tpt")
    bank_size: int = option(60, "tokens in the bank", least=1, most=2**16)
    retrieve: int = option(0, "tokens each text retrieves; 0: half of the prompt length", least=0, most=2**16)
    task_tokens: int = option(
        0, "tokens of the task prompt; 0: what retrieval leaves of the prompt length", least=0, most=2**16
    )
    task_prompt: Literal["learned", "fresh", "none"] = option(
        "learned", "learned: trained on the sources with the bank; fresh: new for each target (as released); none"
    )
    query: Query = option("mean", "pool of the text's states: max (as released) or mean")
    query_layers: int = option(
        0,
        "layers that read a text before it is pooled; 0: word embeddings (as released)",
        least=0,
        most=2**16,
        omit_from_hash_if_default=True,
    )
    centre: bool = option(True, "take the sources' mean query from every query")
    query_rank: int = option(0, "rank of a learned map of queries; 0: none", least=0, most=2**16)
    keys: Literal["tied", "separate", "texts"] = option(
        "texts", "tied: tokens are their keys (as released); separate: start as the tokens; texts: as source queries"
    )
    scoring: Scoring = option("cosine", "dot (as released), scaled, cosine; same and random are controls")
    selection: Selection = option("hard", "hard (as released), straight_through, weighted or soft")
    temperature: float = option(0.1, "of the softmax over scores", above=0)
    balance: float = option(0.0, "weight of the term that evens out how often tokens are used", least=0)
    spread: float = option(0.0, "weight of the term that keeps keys apart", least=0)
    budget: int = option(0, "tokens of the bank open to each source; 0: all", least=0, most=2**16)
    start: Literal["frequent", "sources"] = option(
        "frequent", "bank from frequent words, or from prompts trained on each source (SPoT's)"
    )
    freeze_bank: bool = target_option(False, "adapt the task prompt alone")

    needs_tokens: ClassVar[bool] = True

    def bank(self, context: RunContext, own: int, **settings: Any) -> Bank:
        """The parameterisation that a stage reads, with a task prompt of `own` tokens."""
        return Bank(
            context.backbone,
            size=self.bank_size,
            retrieve=self.retrieved_tokens(context.settings),
            own=own,
            query=self.query,
            layers=self.query_layers,
            scoring=self.scoring,
            selection=self.selection,
            temperature=self.temperature,
            **settings,
        )

    def retrieved_tokens(self, settings: Settings) -> int:
        """K."""
        if self.retrieve:
            return self.retrieve
        return settings.length if self.task_prompt == "none" else max(1, settings.length // 2)

    def own_tokens(self, settings: Settings) -> int:
        """Tokens of the task prompt. Raises SpecError when retrieval leaves none."""
        if self.task_prompt == "none":
            return 0
        length, retrieved = settings.length, self.retrieved_tokens(settings)
        own = self.task_tokens or length - retrieved
        if own < 1:
            raise SpecError(
                f"prompt length {length} (--length) leaves {own} tokens for the task prompt beside {retrieved} "
                "retrieved ones: give --options.task-tokens, or --options.task-prompt none"
            )
        return own

    def prompt_tokens(self, settings: Settings, texts: float, sources: int = 0) -> float:
        """A prompt for each text, as if no two retrieved the same rows; one for all where they do so by design."""
        own = self.own_tokens(settings) if self.task_prompt == "learned" or not sources else 0
        are_alike = self.scoring == "same" and self.selection == "hard"
        return (self.retrieved_tokens(settings) + own) * (1 if are_alike else texts)

    def initial_bank(
        self, context: RunContext, sources: Sequence[Task], draws: MixtureDraws, seed: int
    ) -> tuple[InitialParams, Cost]:
        """Where stage 1 starts, one copy, and what that cost."""
        context.settings.require_tokens("a bank of tokens (--options.parameterisation)")
        backbone, own = context.backbone, self.own_tokens(context.settings) if self.task_prompt == "learned" else 0
        form = self.bank(context, own, tasks=len(sources), budget=self.budget, balance=self.balance, spread=self.spread)
        rows, cost = frequent_rows(context, self.bank_size, generator("bank", seed)), Cost()  # [N, D]
        if self.start == "sources":
            aside = replace(context, train=lambda run, stage: context.train(run, f"start-{stage}"))
            taught = train_prompts(aside, sources, seed)
            tokens, cost = taught.params["prompt"].flatten(0, 1), taught.cost
            learned = draw_rows(tokens, min(self.bank_size, len(tokens)), generator("rows", seed))
            rows = torch.cat([learned, rows[len(learned) :]])

        params = {"bank": rows}
        batches = [collate(texts) for texts in sample_texts(draws, seed)]
        queries = torch.cat([pooled(backbone, batch, self.query, self.query_layers) for batch in batches])  # [n, D]
        if self.centre:
            params["centre"] = queries.mean(0)
            queries = queries - params["centre"]
        if self.keys == "texts":
            params["keys"] = draw_rows(queries, self.bank_size, generator("keys", seed))
        elif self.keys == "separate":
            params["keys"] = rows - rows.mean(0) if self.centre else rows.clone()
        if self.query_rank:
            down = torch.randn(backbone.width, self.query_rank, generator=generator("map", seed))
            params["down"] = down.to(rows) / backbone.width**0.5
            params["up"] = torch.zeros_like(params["down"].T)
        if own:
            params["own"] = task_tokens(context, own, seed, self.name)
        # stage 1 trains neither the centre, nor keys that nothing gives a gradient
        still = SCORING_TENSORS if self.selection == "hard" and not self.balance and not self.spread else ()
        copies = {name: value[None].contiguous() for name, value in params.items()}
        return InitialParams(form, copies, dict.fromkeys(("centre", *still), 0.0)), cost

    def init(self, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode]) -> AdaptationInit:
        """Stage 2: every episode has a copy of its prior's bank (of several, their mean), and a task prompt."""
        form = self.bank(context, self.own_tokens(context.settings))
        names = [name for name in (*BANK_TENSORS, "centre") if name in priors[0].params]
        if self.task_prompt == "learned":
            names.append("own")
        device = context.backbone.frozen.device
        params = {name: torch.stack([prior.params[name].mean(0) for prior in priors]).to(device) for name in names}
        if form.own and "own" not in params:
            params["own"] = torch.stack([task_tokens(context, form.own, e.seed, e.task.name) for e in episodes])
        frozen = BANK_TENSORS if self.freeze_bank else SCORING_TENSORS if self.selection == "hard" else ()
        still = {name: 0.0 for name in ("centre", *frozen) if name in params}
        return AdaptationInit(form, params, lr_multipliers=still)


def frequent_rows(context: RunContext, count: int, g: torch.Generator) -> Float[Tensor, "n D"]:
    """Embeddings of frequent words; of small vocabularies, each as often as it takes."""
    frozen = context.backbone.frozen
    most = min(FREQUENT, len(frozen.vocabulary_embeddings) - len(set(frozen.tokenizer.all_special_ids)))
    rounds = [vocabulary_start(context.backbone, min(most, count - done), g) for done in range(0, count, most)]
    return torch.cat(rounds).detach().to(frozen.device)


def task_tokens(context: RunContext, own: int, *names: object) -> Float[Tensor, "1 own D"]:
    """A task prompt's start: frequent words."""
    return frequent_rows(context, own, generator("own", *names))[None]


def sample_texts(draws: MixtureDraws, seed: int) -> list[list[Tokens]]:
    """Some texts of each source."""
    orders = [torch.randperm(len(p.items), generator=generator("sample", seed, p.task)).tolist() for p in draws.pools]
    return [[p.items[i] for i in order[:SAMPLE]] for p, order in zip(draws.pools, orders, strict=True)]


def draw_rows(rows: Float[Tensor, "n D"], count: int, g: torch.Generator) -> Float[Tensor, "m D"]:
    """Rows drawn without repeats, as long as there are any."""
    rounds = -(-count // len(rows))
    order = torch.cat([torch.randperm(len(rows), generator=g) for _ in range(rounds)])[:count]
    return rows[order.to(rows.device)]
