"""Is retrieval real? Which rows of a bank the texts of some tasks retrieve, how evenly, how alike they choose.

A bank whose every text gets the same rows is a plain prompt with extra steps: overlap between inputs near 1 says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import normalize, one_hot

from promptprior.backbone import Backbone
from promptprior.notation import Bool, Float, Int, Params, Tensor
from promptprior.tasks.sampling.batch import Tokens, collate

if TYPE_CHECKING:
    from promptprior.parameterisations.bank import Bank

TOP = 20  # rows that are named by their words


@dataclass(frozen=True)
class Retrieval:
    """What texts of several tasks retrieved: K rows of N each, and the task each text is of."""

    chosen: Int[Tensor, "X K"]
    task: Int[Tensor, " X"]
    names: tuple[str, ...]
    size: int

    @property
    def used(self) -> Bool[Tensor, "X N"]:
        """Which rows each text retrieved."""
        return one_hot(self.chosen, self.size).sum(1).bool()

    @property
    def map(self) -> Float[Tensor, "S N"]:
        """The share of each task's texts that retrieve each row."""
        used = self.used.double()
        return torch.stack([used[self.task == t].mean(0) for t in range(len(self.names))])


@torch.no_grad()
def retrieval(form: "Bank", params: Params, texts: Mapping[str, Sequence[Tokens]], copy: int = 0) -> Retrieval:
    """What the texts of each task retrieve from one copy of the bank."""
    task = [t for t, some in enumerate(texts.values()) for _ in some]
    batch = collate([one for some in texts.values() for one in some], [copy] * len(task), task)
    return Retrieval(form.retrieved(params, batch).cpu(), torch.tensor(task), tuple(texts), form.size)


def summary(found: Retrieval) -> dict[str, object]:
    """The small table that every prior carries.

    `entropy` of use in bits, at most log2 N; `overlap` is the mean Jaccard index of the rows of two texts, within a
    task and between tasks, beside `overlap_if_random`, what independent draws of K rows of N would give.
    """
    map_ = found.map
    within, between = overlaps(found)
    retrieve = found.chosen.shape[1]
    return {
        "rows": found.size,
        "retrieved": retrieve,
        "rows_used": int((map_ > 0).any(0).sum()),
        "dead_rows": int((map_ == 0).all(0).sum()),
        "rows_used_by_task": {name: int((row > 0).sum()) for name, row in zip(found.names, map_, strict=True)},
        "entropy": short(entropy(map_.mean(0))),
        "entropy_by_task": {name: short(entropy(row)) for name, row in zip(found.names, map_, strict=True)},
        "overlap_within_task": within,
        "overlap_between_tasks": between,
        "overlap_if_random": short(retrieve / (2 * found.size - retrieve)),
        "distinct_sets": len(found.chosen.unique(dim=0)),
        "texts": len(found.chosen),
    }


def overlaps(found: Retrieval) -> tuple[float | None, float | None]:
    """Mean Jaccard index over pairs of texts of one task, and over pairs of different tasks; None without pairs."""
    used = found.used.double()
    common = used @ used.T
    jaccard = common / (2 * found.chosen.shape[1] - common)
    alike = found.task[:, None] == found.task
    pairs = ~torch.eye(len(jaccard), dtype=torch.bool)
    return mean_or_none(jaccard[alike & pairs]), mean_or_none(jaccard[~alike])


def mean_or_none(values: Float[Tensor, " n"]) -> float | None:
    """The mean to four digits."""
    return short(float(values.mean())) if len(values) else None


def entropy(use: Float[Tensor, " N"]) -> float:
    """Bits of how often rows are used.

    >>> entropy(torch.tensor([1.0, 1.0, 1.0, 1.0]))
    2.0
    """
    p = use / use.sum()
    return float(-(p * p.clamp(min=1e-300).log2()).sum())


def short(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")


@torch.no_grad()
def nearest_words(backbone: Backbone, rows: Float[Tensor, "n D"], count: int = 5) -> list[list[str]]:
    """The vocabulary entries whose embeddings have the highest cosine with each row, best first."""
    table = normalize(backbone.frozen.vocabulary_embeddings.float(), dim=-1)
    task_similarity = normalize(rows.to(table), dim=-1) @ table.T
    return [
        [backbone.frozen.tokenizer.decode([i]) for i in ids]
        for ids in task_similarity.topk(count, dim=1).indices.tolist()
    ]


def full_table(
    form: "Bank", params: Params, found: Retrieval, copy: int = 0, top: int = TOP
) -> list[dict[str, object]]:
    """The most used rows: share of texts by task, norm in units of the embedding scale, nearest words."""
    map_ = found.map
    order = map_.mean(0).argsort(descending=True)[:top]
    bank = params["bank"][copy].detach().cpu()[order]
    words = nearest_words(form.backbone, bank)
    norms = (bank.square().mean(1).sqrt() / form.backbone.scale).tolist()
    return [
        {
            "row": row,
            "share": short(float(map_[:, row].mean())),
            "share_by_task": {n: short(float(s)) for n, s in zip(found.names, map_[:, row], strict=True)},
            "rms": short(norm),
            "words": near,
        }
        for row, norm, near in zip(order.tolist(), norms, words, strict=True)
    ]


def map_rows(found: Retrieval) -> list[list[float]]:
    """The task x token map as plain numbers of three decimals."""
    return [[round(v, 3) for v in row] for row in found.map.tolist()]


def described(form: "Bank", params: Params, texts: Mapping[str, Sequence[Tokens]]) -> dict[str, object]:
    """All there is to know of what some texts of some tasks retrieve from one copy, as plain JSON.

    `summary`, with the map of `tasks` x rows and the most used `tokens` as `full_table` has them.
    """
    found = retrieval(form, params, texts)
    table = full_table(form, params, found)
    return {**summary(found), "tasks": list(found.names), "map": map_rows(found), "tokens": table}
