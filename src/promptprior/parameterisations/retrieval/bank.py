"""The parameterisation `bank`: N prompt tokens, of which each text retrieves its own K (TPT, Wu et al. 2023).

    q   = pool of the text's states over its own positions, minus `centre`, plus a low-rank map of itself
    s_n = score(q, key_n),   I = the K best rows in bank order,   prompt = [value_I ; task prompt]

Texts that retrieve the same rows share one prompt, so that the engine computes each distinct prefix once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch.nn.functional import normalize

from promptprior.backbone import Backbone
from promptprior.backbone.text_queries import Query, QueryCache
from promptprior.errors import SpecError
from promptprior.notation import Float, Int, Params, Tensor
from promptprior.parameterisations.retrieval.bank_diagnostics import Retrieval, describe_retrieval
from promptprior.tasks.sampling.batch import Batch, Tokens, collate

Scoring = Literal["dot", "scaled", "cosine", "same", "random"]
Selection = Literal["hard", "straight_through", "weighted", "soft"]
SCORING_TENSORS = ("keys", "down", "up")  # hard selection gives them no gradient
BANK_TENSORS = ("bank", *SCORING_TENSORS)


@dataclass(frozen=True)
class Bank:
    """Retrieved tokens, then `own` tokens of the task.

    params: "bank" Float[C, N, D], the values. Optional: "keys" Float[C, N, D] (without it values are their own keys);
    "centre" Float[C, D], taken from queries; "down" Float[C, D, r] and "up" Float[C, r, D], the query map; "own"
    Float[C, S, own, D], one prompt per task, or S = 1 for all.

    `layers`: states are word embeddings (0, as released), or what that many early layers make of the text alone.
    `scoring`: dot (as released), scaled (dot / sqrt D), cosine; same (every text gets the same rows) and random (a
    hash of the text) are controls. `selection`: hard passes no gradient to scores. straight_through has hard's prompts
    and the gradient of each chosen row's log-probability. weighted multiplies rows by K softmax(s_I / temperature).
    soft cuts the bank into K slots of N / K neighbours and mixes each slot by its softmax. `tasks` and `budget`: task t
    of `tasks` sees only a window of `budget` rows (0: all). `balance` and `spread` weigh the terms of `penalty`. Raises
    SpecError for numbers that do not fit together.
    """

    backbone: Backbone
    size: int
    retrieve: int
    own: int = 0
    query: Query = "max"
    layers: int = 0
    scoring: Scoring = "dot"
    selection: Selection = "hard"
    temperature: float = 1.0
    balance: float = 0.0
    spread: float = 0.0
    tasks: int = 1
    budget: int = 0
    name: str = "bank"
    cache: QueryCache = field(default_factory=QueryCache, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        most = self.backbone.layers if self.layers else 0
        if not 0 <= self.layers <= most:
            raise SpecError(
                f"query layers {self.layers} (--options.query-layers): expected 0 to {most} ({self.backbone.card.name})"
            )
        if not 1 <= self.retrieve <= (self.budget or self.size) <= self.size:
            raise SpecError(
                f"bank of {self.size} tokens, budget {self.budget or 'all'}, retrieve {self.retrieve} (--options."
                "bank-size, budget, retrieve): expected 1 <= retrieve <= budget <= bank size"
            )
        if self.selection == "soft" and (self.size % self.retrieve or self.budget):
            raise SpecError(
                f"selection soft cuts the bank into slots: bank size {self.size} must be a multiple of retrieve "
                f"{self.retrieve}, and budget ({self.budget}) must be 0"
            )
        if self.temperature <= 0:
            raise SpecError(f"temperature {self.temperature} (--options.temperature): expected a positive number")

    @property
    def length(self) -> int:
        """L: retrieved tokens and the task's own."""
        return self.retrieve + self.own

    def prompts(self, params: Params, batch: Batch) -> tuple[Float[Tensor, "P L D"], Int[Tensor, " X"]]:
        """One prompt for every distinct (copy, task prompt, retrieved rows); one per text where weights differ."""
        scores, bank = self.scores(params, batch), params["bank"]
        has_task_prompts = self.own > 0 and params["own"].shape[1] > 1
        copy = batch.copy_index
        task = batch.task_index if has_task_prompts else torch.zeros_like(batch.task_index)
        index = torch.arange(batch.texts)
        if self.selection == "soft":  # each slot's rows, mixed by the softmax of their scores
            p = torch.softmax(scores.unflatten(1, (self.retrieve, -1)) / self.temperature, dim=-1)  # [X, K, N / K]
            # same and random score in float64
            tokens = torch.einsum("xkn,xknd->xkd", p.to(bank.dtype), bank.unflatten(1, (self.retrieve, -1))[copy])
        else:
            chosen = self._best(scores)  # [X, K]
            # Without gradients straight-through is hard selection: its weights are exactly one.
            is_hard = self.selection == "hard" or (self.selection == "straight_through" and not torch.is_grad_enabled())
            if is_hard:  # texts that chose the same rows share a prompt
                distinct = torch.cat([copy[:, None], task[:, None], chosen.cpu()], dim=1)  # [X, 2 + K]
                distinct, index = distinct.unique(dim=0, return_inverse=True)
                copy, task, chosen = distinct[:, 0], distinct[:, 1], distinct[:, 2:]
            tokens = bank[copy.to(bank.device)[:, None], chosen.to(bank.device)]  # [P, K, D]
            if not is_hard:
                if self.selection == "weighted":  # mean one over a text's rows
                    weights = torch.softmax(scores.gather(1, chosen) / self.temperature, dim=1) * self.retrieve
                else:  # exactly one, with the gradient of log p
                    log_p = torch.log_softmax(scores / self.temperature, dim=1).gather(1, chosen)
                    weights = torch.exp(log_p - log_p.detach())
                tokens = tokens * weights.to(bank.dtype)[..., None]
        return torch.cat([tokens, params["own"][copy, task]], dim=1) if self.own else tokens, index

    def retrieved(self, params: Params, batch: Batch) -> Int[Tensor, "X K"]:
        """The bank rows each text retrieves, ascending; the likeliest of every slot under soft selection."""
        return self._best(self.scores(params, batch))

    def scores(self, params: Params, batch: Batch) -> Float[Tensor, "X N"]:
        """How well each row of its copy's bank suits each text; -inf outside the text's window."""
        device = params["bank"].device
        if self.scoring == "same":
            scores = -torch.arange(self.size, dtype=torch.float64, device=device).expand(batch.texts, -1)
        elif self.scoring == "random":  # a hash of the text's own tokens, in [0, 1)
            position = torch.arange(batch.text_ids.shape[1])
            ids = (batch.text_ids + 1) * (position < batch.text_lengths[:, None])  # [X, T], zero behind the text
            seed = (ids * (position * 7919 % 9973 + 1)).sum(1) % 999983  # [X]
            mixed = torch.sin(seed[:, None].double() * 12.9898 + torch.arange(self.size) * 78.233) * 43758.5453
            scores = (mixed - mixed.floor()).to(device)
        else:
            query, keys = self.queries(params, batch), params.get("keys", params["bank"])
            if self.scoring == "cosine":
                query, keys = normalize(query, dim=-1), normalize(keys, dim=-1)
            scores = torch.einsum("xd,cnd->cxn", query, keys)[batch.copy_index, torch.arange(batch.texts)]
            scores = scores / query.shape[-1] ** 0.5 if self.scoring == "scaled" else scores
        if not self.budget:
            return scores
        # Windows of the tasks are spread evenly over the bank.
        start = torch.round(batch.task_index * (self.size - self.budget) / max(1, self.tasks - 1))[:, None]
        row = torch.arange(self.size)
        outside = (row < start) | (row >= start + self.budget)  # [X, N]
        return scores.masked_fill(outside.to(device), -torch.inf)

    def queries(self, params: Params, batch: Batch) -> Float[Tensor, "X D"]:
        """What each text asks the bank."""
        query = self.cache.pooled(self.backbone, batch, self.query, self.layers).to(params["bank"])
        if "centre" in params:
            query = query - params["centre"][batch.copy_index]
        if "down" in params:
            down, up = params["down"][batch.copy_index], params["up"][batch.copy_index]  # [X, D, r], [X, r, D]
            query = query + (query[:, None] @ down @ up)[:, 0]
        return query

    def penalty(self, params: Params, batch: Batch) -> Float[Tensor, " C"] | None:
        """balance x N sum_n f_n p_n (Fedus et al. 2022, equation 4) + spread x mean squared cosine of two rows.

        f_n is the share of a copy's retrievals that chose row n, p_n its mean softmax: the sum is 1 when use is even,
        and 0 for a copy without texts. Its gradient raises the scores of rows that are used too little, which hard
        selection alone can never do.
        """
        copies, size = params["bank"].shape[:2]
        total = params["bank"].new_zeros(copies)
        if self.balance and self.scoring not in ("same", "random"):  # those scores depend on no parameter
            scores = self.scores(params, batch)
            used = torch.zeros_like(scores).scatter(1, self._best(scores), 1 / self.retrieve)  # [X, N]
            p = torch.softmax(scores / self.temperature, dim=1)
            copy = batch.copy_index.to(scores.device)
            zeros = scores.new_zeros(copies, size)
            texts = zeros[:, 0].index_add(0, copy, torch.ones_like(scores[:, 0])).clamp(min=1)  # [C]
            f, p = zeros.index_add(0, copy, used), zeros.index_add(0, copy, p)  # [C, N], sums over texts
            total = total + self.balance * (self.size * (f * p).sum(1) / texts**2)
        if self.spread:
            unit = normalize(params.get("keys", params["bank"]), dim=-1)
            squares = (unit @ unit.transpose(1, 2)).square()  # [C, N, N]; the diagonal is one
            total = total + self.spread * ((squares.sum((1, 2)) - size) / max(1, size * (size - 1)))
        return total if total.requires_grad else None

    def counts(self, params: Params) -> dict[str, int]:
        """Parameters of a copy, three ways: the bank with all that scores it, a task's own, what a text retrieves."""
        width = self.backbone.width
        bank = sum(params[name][0].numel() for name in BANK_TENSORS if name in params)
        return {"bank": bank, "task": self.own * width, "retrieved": self.retrieve * width}

    @torch.no_grad()
    def diagnose(self, params: Params, texts: Mapping[str, Sequence[Tokens]]) -> dict[str, object]:
        """Whether retrieval is real (bank_diagnostics.py), and how many parameters there are."""
        task = [t for t, tokens in enumerate(texts.values()) for _ in tokens]
        batch = collate([text for tokens in texts.values() for text in tokens], [0] * len(task), task)
        retrieval = Retrieval(self.retrieved(params, batch).cpu(), torch.tensor(task), tuple(texts), self.size)
        report = describe_retrieval(retrieval, params["bank"][0], self.backbone)
        return {"retrieval": report, "parameters": self.counts(params)}

    def _best(self, scores: Float[Tensor, "X N"]) -> Int[Tensor, "X K"]:
        # The rows with the highest scores, in bank order; the best of every slot under soft selection.
        if self.selection == "soft":
            slots = scores.unflatten(1, (self.retrieve, -1))
            return slots.argmax(-1) + torch.arange(0, self.size, slots.shape[-1], device=scores.device)
        return scores.topk(self.retrieve, dim=1).indices.sort(dim=1).values
