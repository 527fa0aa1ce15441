"""Data parallel: the texts of a batch split over processes, one gradient.

Rows are independent given the prompts, so each process computes the losses of its own texts and all processes add up
their gradients. Started with torchrun or accelerate, every process then makes the same update as one would alone.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist

from promptprior.notation import Int, Tensor
from promptprior.tasks.batch import Batch


def processes() -> int:
    """How many processes work together; 1 where torch.distributed was not started."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def own_texts(batch: Batch) -> Int[Tensor, " K"]:
    """The texts of this process: neighbours, so that texts of one prompt mostly stay together; maybe none."""
    rank = dist.get_rank() if processes() > 1 else 0
    return torch.arange(batch.texts).tensor_split(processes())[rank]


def own_share(batch: Batch) -> Batch | None:
    """The batch of this process's texts, weights untouched; None where there are more processes than texts."""
    texts = own_texts(batch)
    return batch.take(texts) if len(texts) else None


def add_up(tensors: Sequence[Tensor]) -> None:
    """Replace every tensor by its sum over all processes, in one message. Nothing happens for one process."""
    if processes() == 1 or not tensors:
        return
    joined = torch.cat([t.detach().flatten().double() for t in tensors])
    dist.all_reduce(joined)
    for t, total in zip(tensors, joined.split([t.numel() for t in tensors]), strict=True):
        t.detach().copy_(total.view(t.shape))
