"""Several processes on one job, as torchrun and accelerate start them.

All of them run the same program on the same numbers. What is dear is split and added up (gradients, losses); what is
cheap is done by each; only the first process writes files and prints. With one process nothing here does anything.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist

from promptprior.notation import Tensor


def processes() -> int:
    """How many processes work together; 1 where torch.distributed was not started."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def own_place() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if processes() > 1 else 0


def is_first() -> bool:
    """Whether this process writes and prints."""
    return own_place() == 0


def add_up(tensors: Sequence[Tensor]) -> None:
    """Replace every tensor by its sum over all processes, in one message and in float64; all get the same bits."""
    if processes() == 1 or not tensors:
        return
    joined = torch.cat([t.detach().flatten().double() for t in tensors])
    wire = joined.cuda() if dist.get_backend() == "nccl" else joined
    dist.all_reduce(wire)
    for t, total in zip(tensors, wire.split([t.numel() for t in tensors]), strict=True):
        t.detach().copy_(total.view(t.shape))


def agreed(answer: bool) -> bool:
    """What the first process answers, in every process: for what depends on a clock."""
    said = torch.tensor(float(answer and is_first()))
    add_up([said])
    return bool(said)


@contextmanager
def joined_processes() -> Iterator[None]:
    """Meet the other processes that torchrun or accelerate started, and part from them at the end.

    "cuda" is each process's own device inside.
    """
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()
