"""Data parallel: the texts of a batch split over processes.

Rows are independent given the prompts, so each process computes its own texts, and sums over rows add up
(`promptprior.processes`). Every process then makes the same update as one would alone.
"""

import torch

from promptprior.notation import Int, Tensor
from promptprior.processes import process_rank, processes
from promptprior.tasks.sampling.batch import Batch


def own_texts(batch: Batch) -> Int[Tensor, " K"]:
    """The texts of this process: neighbours, so that texts of one prompt mostly stay together; maybe none."""
    return torch.arange(batch.texts).tensor_split(processes())[process_rank()]


def own_share(batch: Batch) -> Batch | None:
    """The batch of this process's texts, weights untouched; None where there are more processes than texts."""
    texts = own_texts(batch)
    if len(texts) == batch.texts:
        return batch
    return batch.take(texts) if len(texts) else None
