"""Compiled elementwise work: the same numbers, few graphs, and the uncompiled route where a compiler fails.

Dynamo alone ("eager") captures the graphs here; what inductor makes of them is checked whenever a backbone is loaded.
"""

from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.multiprocessing as mp
from torch._dynamo.testing import CompileCounter

from promptprior.backbone.forward import dispatch
from promptprior.backbone.forward.llama import llama_states
from promptprior.backbone.forward.t5 import t5_states
from promptprior.backbone.kernels.elementwise import compile_kernels

from .test_engine import random_batch, random_prompts
from .tiny import tiny

HAND_WRITTEN = {"llama": llama_states, "t5": t5_states, "t5_gated": t5_states}


def same_gradients_in_few_graphs(family: str, dtype: torch.dtype) -> None:
    """Whatever the number of texts, choices and prompt tokens."""
    torch._dynamo.reset()
    graphs = CompileCounter()
    plain = tiny(family, dtype)
    fused = replace(plain, states=partial(HAND_WRITTEN[family], kernels=compile_kernels(graphs)))
    for texts in (5, 2, 7, 3, 1):
        batch = random_batch(texts, 1 + texts % 2, 2, seed=texts)
        prompts = random_prompts(plain, 2, 1 + texts).detach().float().requires_grad_()
        expected, found = (torch.autograd.grad(b.losses(prompts, batch).sum(), prompts)[0] for b in (plain, fused))
        assert (found - expected).norm() <= (1e-5 if dtype == torch.float32 else 0.05) * expected.norm()
    assert 2 <= graphs.frame_count <= 12, graphs.frame_count  # five functions; dynamo may take a size of one apart


def the_same_route_uncompiled_without_a_compiler() -> None:
    """With one warning."""

    def broken(*_: object) -> None:
        raise RuntimeError("no C++ compiler")

    torch._dynamo.reset()
    dispatch.compile_kernels = lambda: compile_kernels(broken)
    with pytest.warns(UserWarning, match="llama_states, compiled, fails"):
        backbone = tiny("llama", torch.float32, check=True, compile=True)
    assert backbone.states is llama_states


def everything(rank: int) -> None:
    """In a process of its own, where nothing checks the shapes of arguments: dynamo cannot look through that."""
    for family in HAND_WRITTEN:
        for dtype in (torch.float32, torch.bfloat16):
            same_gradients_in_few_graphs(family, dtype)
    the_same_route_uncompiled_without_a_compiler()


@pytest.mark.slow
def test_compiled_blocks_give_the_same_gradients_in_few_graphs_or_are_left() -> None:
    mp.spawn(everything, nprocs=1)


def test_second_derivatives_leave_the_compiled_route() -> None:
    route = partial(llama_states, kernels=compile_kernels("eager"), keep=False)
    after = replace(tiny("llama"), states=route).for_second_order().states
    assert isinstance(after, partial)
    assert after.func is dispatch.packed_states
    assert after.keywords == {"keep": False}
    encoder_decoder = replace(tiny("t5"), states=partial(t5_states, kernels=compile_kernels("eager")))
    assert encoder_decoder.for_second_order().states.keywords.keys() == {"kernels"}


def test_other_families_have_nothing_to_compile() -> None:
    assert tiny("gpt2", torch.float32, compile=True).states is dispatch.packed_states
