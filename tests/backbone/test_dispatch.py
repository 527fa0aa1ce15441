"""The choice of a route: it proves itself, falls back with one warning, and halves what does not fit."""

import warnings
from dataclasses import replace

import pytest
import torch

from promptprior.backbone import as_backbone, engine
from promptprior.backbone.forward import dispatch, llama, t5
from promptprior.backbone.forward.dispatch import kept_per_token
from promptprior.backbone.forward.llama import llama_states
from promptprior.backbone.forward.reference import reference_losses
from promptprior.backbone.frozen import Frozen
from promptprior.backbone.kernels.block_vjp import KEYS, saved_entries
from promptprior.notation import Tensor
from promptprior.tasks.sampling.batch import Batch, Tokens, collate

from .test_engine import random_batch, random_prompts
from .tiny import FAMILIES, tiny


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_passes_its_check(family: str, dtype: torch.dtype) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        tiny(family, dtype, check=True)


def test_a_route_that_disagrees_is_left_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(frozen: Frozen, prompts: Tensor, batch: Batch, keep: bool = True) -> Tensor:
        return llama_states(frozen, 1.1 * prompts, batch, keep)

    monkeypatch.setattr(dispatch.llama, "llama_states", wrong)
    with pytest.warns(UserWarning, match=r"tiny-llama.*the fast route wrong has losses that differ") as caught:
        backbone = tiny("llama", torch.float32, check=True)
    assert len(caught) == 1
    assert backbone.states is dispatch.packed_states


def test_a_route_that_fails_is_left_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> Tensor:
        raise NotImplementedError("no sinks")

    monkeypatch.setattr(dispatch, "packed_states", broken)
    with pytest.warns(UserWarning, match="fails \\(no sinks\\)"):
        assert tiny("gpt2", torch.float32, check=True).states is dispatch.concatenated_states


def test_what_does_not_fit_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny("llama")
    batch, prompts = random_batch(7, 2, 2), random_prompts(backbone, 2, 3)
    expected = backbone.losses(prompts, batch)
    prompts = prompts.detach()
    run, sizes = type(backbone).chunk_losses, []

    def limited(self: object, prompts: Tensor, piece: Batch) -> Tensor:
        sizes.append(piece.texts)
        if piece.texts > 2:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 1 bytes")
        return run(backbone, prompts, piece)

    monkeypatch.setattr(type(backbone), "chunk_losses", limited)
    with pytest.warns(UserWarning, match="7 texts at once do not fit"):
        found = backbone.losses(prompts, batch)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert sizes == [7, 3, 1, 2, 4, 2, 2]


def test_a_text_that_never_fits_and_any_other_error_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> Tensor:
        raise RuntimeError("something else")

    backbone = tiny("llama")
    monkeypatch.setattr(type(backbone), "chunk_losses", failing)
    with pytest.raises(RuntimeError, match="something else"):
        backbone.losses(random_prompts(backbone, 1, 3).detach(), random_batch(4, 1, 1))


@pytest.mark.parametrize("family", FAMILIES)
def test_activations_computed_again_change_nothing(family: str) -> None:
    """With `recompute` only block inputs are kept; sharing survives, and so does every digit."""
    kept, recomputed = (tiny(family, torch.float32, recompute=r) for r in (False, True))
    batch, prompts = random_batch(5, 2, 2), random_prompts(kept, 2, 4)
    expected, found = (torch.autograd.grad(b.losses(prompts, batch).sum(), prompts)[0] for b in (kept, recomputed))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_chunks_and_recomputed_activations_change_nothing_where_tokens_are_hidden(family: str) -> None:
    hidden, gradients = torch.tensor([[True, False, False, True], [False, True, False, False]]), []
    for backbone in (tiny(family, torch.float32), tiny(family, torch.float32, max_tokens=30, recompute=True)):
        batch, prompts = random_batch(6, 2, 2), random_prompts(backbone, 2, 4).detach().float().requires_grad_()
        gradients.append(torch.autograd.grad(backbone.losses(prompts, batch, hidden).sum(), prompts)[0])
        assert backbone.meter.rows == batch.rows
    assert (gradients[0] - gradients[1]).norm() <= 1e-5 * gradients[1].norm()


@pytest.mark.parametrize(("family", "layers"), [("llama", 2), ("t5", 2), ("t5_gated", 2)])
def test_the_memory_of_a_hand_written_route_is_counted_right(family: str, layers: int) -> None:
    """What autograd is asked to keep, against the count that sizes chunks."""
    backbone = tiny(family, torch.float32)
    texts, length, size = 24, 6, 10
    items = [Tokens(tuple(range(2, 2 + size)), ((5,),))] * texts
    batch, prompts = collate(items), random_prompts(backbone, 1, length).detach().float().requires_grad_()
    kept: dict[int, int] = {}

    def noted(x: Tensor) -> Tensor:
        kept[x.data_ptr()] = x.numel()
        return x

    with torch.autograd.graph.saved_tensors_hooks(noted, lambda x: x):
        backbone.losses(prompts, batch)
    model = backbone.frozen.model
    weights = {p.data_ptr() for p in model.parameters()}
    found = sum(n for at, n in kept.items() if at not in weights)
    block = (
        llama.llama_block(model.model.layers[0], model)
        if family == "llama"
        else t5.t5_block(model.encoder.block[0], model)
    )
    tokens = texts * size + (length if family == "llama" else texts * length)
    counted = saved_entries(block, keys=length + size) * tokens * layers
    assert 0.7 * counted <= found <= 1.35 * counted  # beside: the last norm, decoder and head
    assert kept_per_token(backbone.frozen, backbone.states) == saved_entries(block)


@pytest.mark.parametrize("at", [0, 10, 20])
def test_one_long_text_makes_no_chunk_of_short_ones_long(at: int) -> None:
    """Attention pads texts to the longest of their chunk, so memory goes with its square; losses stay."""
    backbone = tiny("llama", torch.float32)
    sizes = [3] * 20
    sizes.insert(at, 90)
    batch, prompts = collate([Tokens(tuple(range(2, 2 + n)), ((5,),)) for n in sizes]), random_prompts(backbone, 1, 4)
    whole = backbone.losses(prompts.float(), batch)
    cut = replace(backbone, max_tokens=180)
    chunks = list(cut.split(batch, 4))
    assert [size for chunk in chunks for size in chunk.text_lengths.tolist()] == sizes
    assert sum(sizes) + len(sizes) + 4 < cut.max_tokens, "tokens alone would cut nothing"
    assert 2 <= len(chunks) <= 3
    for chunk in chunks:
        longest = int(chunk.text_lengths.max())
        assert chunk.texts * longest * (4 + longest) <= KEYS * cut.max_tokens
    torch.testing.assert_close(cut.losses(prompts.float(), batch), whole)


@pytest.mark.parametrize("at", [0, 10, 20])
def test_a_long_text_is_computed_by_itself_where_padding_costs_time(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny("llama", torch.float32)
    sizes = [3] * 20
    sizes.insert(at, 40)
    batch, prompts = collate([Tokens(tuple(range(2, 2 + n)), ((5,),)) for n in sizes]), random_prompts(backbone, 1, 4)
    whole = backbone.losses(prompts.float(), batch)
    assert len(list(backbone.split(batch, 4))) == 1
    monkeypatch.setattr(engine, "KEYS", 10)
    chunks = [chunk.text_lengths.tolist() for chunk in backbone.split(batch, 4)]
    assert [size for chunk in chunks for size in chunk] == sizes
    assert [40] in chunks
    assert len(chunks) == (2 if at in (0, 20) else 3)
    torch.testing.assert_close(backbone.losses(prompts.float(), batch), whole)
    alike = collate([Tokens(tuple(range(2, 42)), ((5,),))] * 20)
    assert len(list(backbone.split(alike, 4))) == 1, "texts of one length pad nothing"


class Int8(torch.nn.Module):
    """A weight-only quantised linear layer, as quantisation libraries put in place of the ordinary one."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.step = linear.weight.abs().amax(dim=1, keepdim=True) / 127
        self.register_buffer("rounded", (linear.weight / self.step).round().to(torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.rounded * self.step).to(x.dtype).t()


def test_a_quantised_model_takes_a_route_that_asks_for_no_weights() -> None:
    frozen = tiny("llama", torch.float32).frozen
    for layer in frozen.model.model.layers:
        layer.mlp.up_proj = Int8(layer.mlp.up_proj)
    backbone = as_backbone(frozen)
    assert backbone.states is dispatch.packed_states
    batch, prompts = random_batch(4, 2, 2), random_prompts(backbone, 2, 3).detach().float().requires_grad_()
    found = torch.autograd.grad(backbone.losses(prompts, batch).sum(), prompts)[0]
    expected = torch.autograd.grad(reference_losses(frozen, prompts, batch).sum(), prompts)[0]
    assert (found - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_half_precision_is_near_float32(family: str, dtype: torch.dtype) -> None:
    batch, gradients = random_batch(5, 1, 2), []
    for precision in (dtype, torch.float32):
        backbone = tiny(family, precision)
        prompts = random_prompts(backbone, 2, 4).detach().float().requires_grad_()
        losses = backbone.losses(prompts, batch)
        assert losses.dtype == torch.float32
        gradients.append(torch.autograd.grad(losses.sum(), prompts)[0])
    assert (gradients[0] - gradients[1]).norm() <= (0.03 if dtype == torch.float16 else 0.25) * gradients[1].norm()
