"""Two processes make the update that one would."""

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from promptprior.backbone.chunking import own_share
from promptprior.notation import Tensor
from promptprior.processes import add_up, processes

from .test_engine import random_batch, random_prompts
from .tiny import tiny

STEPS = 3
TEXTS = (5, 1)


def descend(texts: int) -> Tensor:
    """A few steps of gradient descent on the mean loss, each process on its own texts."""
    torch.set_num_threads(1)
    backbone = tiny("llama", torch.float32)
    batch = random_batch(texts, 2, 2)
    prompts = random_prompts(backbone, 2, 3).detach().float().requires_grad_()
    for _ in range(STEPS):
        share = own_share(batch)
        prompts.grad = torch.zeros_like(prompts)
        if share is not None:
            (backbone.losses(prompts, share).sum() / batch.rows).backward()
        add_up([prompts.grad])
        with torch.no_grad():
            prompts -= 0.1 * prompts.grad
    return prompts.detach()


def one_of_two(rank: int, folder: str) -> None:
    """What each process runs."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save([descend(texts) for texts in TEXTS], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_make_the_update_of_one(tmp_path: Path) -> None:
    """Also where one of them has no text at all."""
    mp.spawn(one_of_two, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for texts, one, other in zip(TEXTS, first, second, strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, descend(texts), rtol=0, atol=1e-5)


def test_one_process_is_left_alone() -> None:
    assert processes() == 1
    batch, some = random_batch(4, 1, 1), torch.ones(3)
    share = own_share(batch)
    assert share is not None
    assert share.texts == 4
    add_up([some])
    assert some.tolist() == [1, 1, 1]
