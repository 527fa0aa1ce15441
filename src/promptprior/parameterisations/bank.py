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
from promptprior.backbone.early_layers import check_layers
from promptprior.errors import SpecError
from promptprior.notation import Float, Int, Params, Tensor
from promptprior.parameterisations.bank_diagnostics import described
from promptprior.parameterisations.text_queries import Asked, Query
from promptprior.tasks.sampling.batch import Batch, Tokens

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

    `layers`: states are word embeddings (0, as released), or what that many first layers make of the text alone.
    `scoring`: dot (as released), scaled (dot / sqrt D), cosine; same (every text gets the same rows) and random (a
    hash of the text) are controls. `selection`: hard passes no gradient to scores; straight_through has hard's prompts
    and the gradient of each chosen row's log-probability; weighted multiplies rows by K softmax(s_I / temperature);
    soft cuts the bank into K slots of N / K neighbours and mixes each slot by its softmax. `tasks` and `budget`: task t
    of `tasks` sees only a window of `budget` rows (0: all). `balance` and `spread` weigh the terms of `penalty`.
    Raises SpecError for numbers that do not fit together.
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
    asked: Asked = field(default_factory=Asked, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_layers(self.backbone, self.layers)
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

    @property
    def is_learned(self) -> bool:
        """Whether scores depend on parameters."""
        return self.scoring not in ("same", "random")

    def prompts(self, params: Params, batch: Batch) -> tuple[Float[Tensor, "P L D"], Int[Tensor, " X"]]:
        """One prompt for every distinct (copy, task prompt, retrieved rows); one per text where weights differ."""
        scores = self.scores(params, batch)
        copy, task = batch.copy_index, self.own_index(params, batch)
        if self.selection == "soft":
            return self.joined(params, self.blended(params, scores, copy), copy, task), torch.arange(batch.texts)
        chosen = self.best(scores)
        if self.selection == "hard" or (self.selection == "straight_through" and not torch.is_grad_enabled()):
            distinct = torch.cat([copy[:, None], task[:, None], chosen.cpu()], dim=1)
            distinct, index = distinct.unique(dim=0, return_inverse=True)
            copy, task, chosen = distinct[:, 0], distinct[:, 1], distinct[:, 2:]
            return self.joined(params, rows_of(params["bank"], copy, chosen), copy, task), index
        values = rows_of(params["bank"], copy, chosen) * self.weights(scores, chosen)[..., None]
        return self.joined(params, values, copy, task), torch.arange(batch.texts)

    def retrieved(self, params: Params, batch: Batch) -> Int[Tensor, "X K"]:
        """The bank rows each text retrieves, ascending; the likeliest of every slot under soft selection."""
        return self.best(self.scores(params, batch))

    def scores(self, params: Params, batch: Batch) -> Float[Tensor, "X N"]:
        """How well each row of its copy's bank suits each text; -inf outside the text's window."""
        device = params["bank"].device
        if self.scoring == "same":
            scores = -torch.arange(self.size, dtype=torch.float64, device=device).expand(batch.texts, -1)
        elif self.scoring == "random":
            scores = hashed(batch, self.size).to(device)
        else:
            scores = self.similarity(self.queries(params, batch), params.get("keys", params["bank"]), batch.copy_index)
        return scores if not self.budget else scores.masked_fill(self.closed(batch.task_index).to(device), -torch.inf)

    def similarity(
        self, query: Float[Tensor, "X D"], keys: Float[Tensor, "C N D"], copy: Int[Tensor, " X"]
    ) -> Float[Tensor, "X N"]:
        """Dot products of queries and their copy's keys, scaled as `scoring` says."""
        if self.scoring == "cosine":
            query, keys = normalize(query, dim=-1), normalize(keys, dim=-1)
        scores = torch.einsum("xd,cnd->cxn", query, keys)[copy, torch.arange(len(copy))]
        return scores / query.shape[-1] ** 0.5 if self.scoring == "scaled" else scores

    def queries(self, params: Params, batch: Batch) -> Float[Tensor, "X D"]:
        """What each text asks the bank."""
        query = self.asked.pooled(self.backbone, batch, self.query, self.layers).to(params["bank"])
        if "centre" in params:
            query = query - params["centre"][batch.copy_index]
        if "down" in params:
            down, up = params["down"][batch.copy_index], params["up"][batch.copy_index]
            query = query + (query[:, None] @ down @ up)[:, 0]
        return query

    def best(self, scores: Float[Tensor, "X N"]) -> Int[Tensor, "X K"]:
        """The rows with the highest scores, in bank order; the best of every slot under soft selection."""
        if self.selection == "soft":
            slots = scores.unflatten(1, (self.retrieve, -1))
            return slots.argmax(-1) + torch.arange(0, self.size, slots.shape[-1], device=scores.device)
        return scores.topk(self.retrieve, dim=1).indices.sort(dim=1).values

    def weights(self, scores: Float[Tensor, "X N"], chosen: Int[Tensor, "X K"]) -> Float[Tensor, "X K"]:
        """Factors of the chosen rows, with mean 1; exactly 1 under straight-through."""
        if self.selection == "weighted":
            return torch.softmax(scores.gather(1, chosen) / self.temperature, dim=1) * self.retrieve
        log_p = torch.log_softmax(scores / self.temperature, dim=1).gather(1, chosen)
        return torch.exp(log_p - log_p.detach())

    def blended(self, params: Params, scores: Float[Tensor, "X N"], copy: Int[Tensor, " X"]) -> Float[Tensor, "X K D"]:
        """Each slot's rows, mixed by the softmax of their scores."""
        p = torch.softmax(scores.unflatten(1, (self.retrieve, -1)) / self.temperature, dim=-1)
        bank = params["bank"].unflatten(1, (self.retrieve, -1))
        return torch.einsum("xkn,xknd->xkd", p, bank[copy])

    def own_index(self, params: Params, batch: Batch) -> Int[Tensor, " X"]:
        """Which of the task prompts each text reads."""
        several = self.own > 0 and params["own"].shape[1] > 1
        return batch.task_index if several else torch.zeros_like(batch.task_index)

    def joined(
        self, params: Params, tokens: Float[Tensor, "P K D"], copy: Int[Tensor, " P"], task: Int[Tensor, " P"]
    ) -> Float[Tensor, "P L D"]:
        """Retrieved tokens with the task's own behind them."""
        return torch.cat([tokens, params["own"][copy, task]], dim=1) if self.own else tokens

    def closed(self, task: Int[Tensor, " X"]) -> Tensor:
        """Rows outside each task's window, Bool[X, N]; windows are spread evenly over the bank."""
        start = torch.round(task * (self.size - self.budget) / max(1, self.tasks - 1))[:, None]
        row = torch.arange(self.size)
        return (row < start) | (row >= start + self.budget)

    def penalty(self, params: Params, batch: Batch) -> Float[Tensor, " C"] | None:
        """balance x N sum_n f_n p_n (Fedus et al. 2022, eq. 4) + spread x mean squared cosine of two rows.

        f_n is the share of a copy's retrievals that chose row n, p_n its mean softmax: 1 when use is even. Its gradient
        raises the scores of rows that are used too little, which hard selection alone can never do.
        """
        total = params["bank"].new_zeros(params["bank"].shape[0])
        if self.balance and self.is_learned:
            total = total + self.balance * self.imbalance(params, batch)
        if self.spread:
            total = total + self.spread * mean_squared_cosine(params.get("keys", params["bank"]))
        return total if total.requires_grad else None

    def imbalance(self, params: Params, batch: Batch) -> Float[Tensor, " C"]:
        """N sum_n f_n p_n of every copy; 0 for a copy without texts."""
        scores = self.scores(params, batch)
        used = torch.zeros_like(scores).scatter(1, self.best(scores), 1 / self.retrieve)
        p = torch.softmax(scores / self.temperature, dim=1)
        copy = batch.copy_index.to(scores.device)
        blank = scores.new_zeros(params["bank"].shape[:2])
        texts = blank[:, 0].index_add(0, copy, torch.ones_like(scores[:, 0])).clamp(min=1)
        f, p = blank.index_add(0, copy, used), blank.index_add(0, copy, p)
        return self.size * (f * p).sum(1) / texts**2

    def counts(self, params: Params) -> dict[str, int]:
        """Parameters of a copy, three ways: the bank with all that scores it, a task's own, what a text retrieves."""
        width = self.backbone.width
        bank = sum(params[name][0].numel() for name in BANK_TENSORS if name in params)
        return {"bank": bank, "task": self.own * width, "retrieved": self.retrieve * width}

    def diagnose(self, params: Params, texts: Mapping[str, Sequence[Tokens]]) -> dict[str, object]:
        """Whether retrieval is real (bank_diagnostics.py), and how many parameters there are."""
        return {"retrieval": described(self, params, texts), "parameters": self.counts(params)}


def rows_of(
    bank: Float[Tensor, "C N D"], copy: Int[Tensor, " P"], chosen: Int[Tensor, "P K"]
) -> Float[Tensor, "P K D"]:
    """Chosen rows of each one's copy."""
    return bank[copy.to(bank.device)[:, None], chosen.to(bank.device)]


def hashed(batch: Batch, size: int) -> Float[Tensor, "X N"]:
    """Numbers in [0, 1) that look random and depend on each text's tokens alone."""
    place = torch.arange(batch.text_ids.shape[1])
    kept = (batch.text_ids + 1) * (place < batch.text_lengths[:, None])
    seed = (kept * (place * 7919 % 9973 + 1)).sum(1) % 999983
    mixed = torch.sin(seed[:, None].double() * 12.9898 + torch.arange(size) * 78.233) * 43758.5453
    return mixed - mixed.floor()


def mean_squared_cosine(rows: Float[Tensor, "C N D"]) -> Float[Tensor, " C"]:
    """How alike the rows of each copy are: 0 for orthogonal ones, 1 for copies of one row."""
    unit = normalize(rows, dim=-1)
    squares = (unit @ unit.transpose(1, 2)).square()
    count = rows.shape[1]
    return (squares.sum((1, 2)) - count) / max(1, count * (count - 1))
