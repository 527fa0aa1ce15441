"""Is retrieval real? Which rows of a bank the texts of some tasks retrieve, how evenly, how alike they choose.

A bank whose every text gets the same rows is a plain prompt with extra steps: an overlap near 1 between texts says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import normalize, one_hot

from promptprior.backbone import Backbone
from promptprior.notation import Float, Int, Tensor

NAMED_ROWS = 20  # the most used rows of a bank are named by their nearest words
NEAREST_WORDS = 5


@dataclass(frozen=True)
class Retrieval:
    """What the texts of several tasks retrieved: K of `size` rows each, and which task each text is of."""

    chosen: Int[Tensor, "X K"]
    task: Int[Tensor, " X"]
    task_names: Sequence[str]
    size: int


@torch.no_grad()
def describe_retrieval(
    retrieval: Retrieval, bank: Float[Tensor, "N D"], backbone: Backbone, named_rows: int = NAMED_ROWS
) -> dict[str, object]:
    """How the rows of a bank are used, as plain JSON.

    `entropy` of use is in bits, at most log2 N. The overlaps are the mean Jaccard index of the rows of two texts of one
    task and of two tasks (None without such pairs). `overlap_if_random` is what independent draws of K of N rows would
    give. `map` holds the share of each task's texts that retrieve each row, `tokens` the most used rows with their size
    in embedding scales and the vocabulary entries of highest cosine.
    """
    chosen, task, names, size = retrieval.chosen, retrieval.task, list(retrieval.task_names), retrieval.size
    retrieved = chosen.shape[1]
    used = one_hot(chosen, size).sum(1).double()  # [X, N], one where a text retrieved a row
    share = torch.stack([used[task == t].mean(0) for t in range(len(names))])  # [tasks, N]
    rows_by_task = dict(zip(names, share, strict=True))
    use = share.mean(0)

    common = used @ used.T  # [X, X], rows that two texts share
    jaccard = common / (2 * retrieved - common)
    same_task = task[:, None] == task
    within = jaccard[same_task & ~torch.eye(len(jaccard), dtype=torch.bool)]
    between = jaccard[~same_task]

    order = use.argsort(descending=True)[:named_rows]
    rows = bank.detach().cpu()[order]
    rms = (rows.square().mean(1).sqrt() / backbone.scale).tolist()
    vocabulary = normalize(backbone.frozen.vocabulary_embeddings.float(), dim=-1)
    cosine = normalize(rows.to(vocabulary), dim=-1) @ vocabulary.T  # [rows, V]
    words = [
        [backbone.frozen.tokenizer.decode([i]) for i in ids]
        for ids in cosine.topk(NEAREST_WORDS, dim=1).indices.tolist()
    ]
    return {
        "rows": size,
        "retrieved": retrieved,
        "rows_used": int((share > 0).any(0).sum()),
        "dead_rows": int((share == 0).all(0).sum()),
        "rows_used_by_task": {name: int((row > 0).sum()) for name, row in rows_by_task.items()},
        "entropy": four_digits(entropy_bits(use / use.sum())),
        "entropy_by_task": {name: four_digits(entropy_bits(row / row.sum())) for name, row in rows_by_task.items()},
        "overlap_within_task": four_digits(float(within.mean())) if len(within) else None,
        "overlap_between_tasks": four_digits(float(between.mean())) if len(between) else None,
        "overlap_if_random": four_digits(retrieved / (2 * size - retrieved)),
        "distinct_sets": len(chosen.unique(dim=0)),
        "texts": len(chosen),
        "tasks": names,
        "map": [[round(value, 3) for value in row] for row in share.tolist()],
        "tokens": [
            {
                "row": row,
                "share": four_digits(float(share[:, row].mean())),
                "share_by_task": {name: four_digits(float(value[row])) for name, value in rows_by_task.items()},
                "rms": four_digits(size_in_scales),
                "words": nearest,
            }
            for row, size_in_scales, nearest in zip(order.tolist(), rms, words, strict=True)
        ],
    }


def entropy_bits(p: Float[Tensor, " N"]) -> float:
    """The entropy of probabilities.

    >>> entropy_bits(torch.tensor([0.25, 0.25, 0.25, 0.25]))
    2.0
    """
    return float(-(p * p.clamp(min=1e-300).log2()).sum())


def four_digits(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")
