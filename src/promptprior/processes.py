"""Several processes on one job, as torchrun and accelerate start them.

All of them run the same program on the same numbers. Expensive work is split and added up (gradients, losses), cheap
work is done by each; only the first process writes files and prints. With one process nothing here does anything.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # imported where it is used: files and reports must not wait for torch
    from torch import Tensor


def processes() -> int:
    """The number of processes on this job; 1 where torch.distributed was not started."""
    dist = sys.modules.get("torch.distributed")
    return dist.get_world_size() if dist is not None and dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """Which of them this is, from 0."""
    return sys.modules["torch.distributed"].get_rank() if processes() > 1 else 0


def is_first() -> bool:
    """Whether this process writes and prints."""
    return process_rank() == 0


def add_up(tensors: "Sequence[Tensor]") -> None:
    """Replace tensors of any shape by their sums over all processes, in one float64 message; all get the same bits."""
    if processes() == 1 or not tensors:
        return
    import torch
    import torch.distributed as dist

    flat_sum = torch.cat([t.detach().flatten().double() for t in tensors])
    if dist.get_backend() == "nccl":
        flat_sum = flat_sum.cuda()
    dist.all_reduce(flat_sum)
    for t, total in zip(tensors, flat_sum.split([t.numel() for t in tensors]), strict=True):
        t.detach().copy_(total.view(t.shape))


def all_decide(answer: bool, signum: int) -> tuple[bool, int]:
    """The first process's answer, for what depends on a clock, and the highest signal of any; the same in all
    processes."""
    if processes() == 1:
        return answer, signum
    import torch

    decision = torch.zeros(1 + processes())
    decision[0] = float(answer and is_first())
    decision[1 + process_rank()] = float(signum)
    add_up([decision])
    return bool(decision[0]), int(decision[1:].max())
