"""The engine against its slow twin: same losses, same prompt gradients, whatever else is in the batch."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from promptprior.backbone.engine import Backbone
from promptprior.backbone.forward.reference import reference_losses
from promptprior.backbone.forward.seq2seq import encoder_decoder_states
from promptprior.tasks.sampling.batch import Batch, Tokens, collate

from .tiny import CAUSAL, ENCODER_DECODER, FAMILIES, TrueFloat64, tiny

LOSS, GRADIENT = 1e-10, 1e-7


@pytest.fixture(autouse=True)
def true_float64() -> Iterator[None]:
    with TrueFloat64():
        yield


def random_batch(texts: int, choices: int, prompts: int, seed: int = 0, empty_text: bool = False) -> Batch:
    """Ragged texts and targets, reading prompts in no order."""
    g = torch.Generator().manual_seed(seed)

    def some(low: int, high: int) -> tuple[int, ...]:
        return tuple(torch.randint(2, 96, (int(torch.randint(low, high, (1,), generator=g)),), generator=g).tolist())

    items = [Tokens(some(1, 12), tuple(some(1, 5) for _ in range(choices))) for _ in range(texts)]
    if empty_text:
        items[0] = Tokens((), items[0].targets)
    return collate(items, copies=torch.randint(0, prompts, (texts,), generator=g).tolist())


def random_prompts(backbone: Backbone, prompts: int, length: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    made = torch.randn(prompts, length, backbone.width, generator=g, dtype=torch.float64) * backbone.scale
    return made.requires_grad_()


def assert_equal_to_reference(backbone: Backbone, batch: Batch, prompts: torch.Tensor) -> None:
    weights = torch.linspace(0.5, 2, batch.rows, dtype=torch.float64)
    slow = reference_losses(backbone.frozen, prompts, batch)
    fast = backbone.losses(prompts, batch)
    torch.testing.assert_close(fast, slow, rtol=0, atol=LOSS)
    if prompts.numel():
        expected = torch.autograd.grad(slow @ weights, prompts)[0]
        found = torch.autograd.grad(fast @ weights, prompts)[0]
        assert (found - expected).norm() <= GRADIENT * expected.norm()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("choices", [1, 3])
@pytest.mark.parametrize("prompts", [1, 3, 6])
def test_losses_and_gradients_equal_the_reference(family: str, choices: int, prompts: int) -> None:
    backbone = tiny(family)
    assert_equal_to_reference(backbone, random_batch(6, choices, prompts), random_prompts(backbone, prompts, 5))


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "t5"])
def test_no_prompt_at_all(family: str) -> None:
    backbone = tiny(family)
    assert_equal_to_reference(backbone, random_batch(4, 2, 1), random_prompts(backbone, 1, 0))


@pytest.mark.parametrize("family", ["llama", "gemma3", "bloom", "t5"])
@pytest.mark.parametrize("choices", [1, 3])
def test_an_empty_text_is_predicted_from_the_prompt(family: str, choices: int) -> None:
    backbone = tiny(family)
    batch = random_batch(4, choices, 2, empty_text=True)
    assert_equal_to_reference(backbone, batch, random_prompts(backbone, 2, 5))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("texts", [1, 3])
def test_texts_may_all_be_empty(family: str, texts: int) -> None:
    backbone = tiny(family)
    batch = collate([Tokens((), ((5, 6), (7,)))] * texts)
    assert_equal_to_reference(backbone, batch, random_prompts(backbone, 1, 4))


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_empty_prompt_before_empty_text_is_refused(family: str) -> None:
    backbone = tiny(family)
    with pytest.raises(ValueError, match="leaves nothing to predict"):
        backbone.losses(random_prompts(backbone, 1, 0), random_batch(2, 1, 1, empty_text=True))


@pytest.mark.parametrize("family", ["llama", "gemma3", "t5", "bart"])
def test_rows_are_independent(family: str) -> None:
    """Prompts together equal prompts apart, whatever the order of texts, the chunk size or the padding."""
    backbone, small = tiny(family), tiny(family, max_tokens=20)
    batch, prompts = random_batch(8, 2, 3), random_prompts(backbone, 3, 4)
    together = backbone.losses(prompts, batch)
    assert sum(1 for _ in small.split(batch, 4)) > 3
    torch.testing.assert_close(small.losses(prompts, batch), together, rtol=0, atol=LOSS)
    for x in range(batch.texts):
        alone = backbone.losses(prompts, batch.take(torch.tensor([x])))
        torch.testing.assert_close(alone, together[batch.text_index == x], rtol=0, atol=LOSS)
    gradient = torch.autograd.grad(together[batch.row_copy == 1].sum(), prompts)[0]
    assert gradient[1].abs().max() > 0
    assert gradient[[0, 2]].abs().max() == 0


@pytest.mark.parametrize("family", [*CAUSAL, "t5", "t5_gated"])
def test_second_derivatives_exist_and_are_right(family: str) -> None:
    """A Hessian-vector product through the fast route equals the one through the slow twin (MAML needs it)."""
    backbone = tiny(family)
    batch, prompts = random_batch(3, 2, 2), random_prompts(backbone, 2, 3)
    direction = torch.randn(prompts.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def product(losses: torch.Tensor) -> torch.Tensor:
        first = torch.autograd.grad(losses.sum(), prompts, create_graph=True)[0]
        return torch.autograd.grad((first * direction).sum(), prompts)[0]

    with sdpa_kernel(SDPBackend.MATH):
        expected = product(reference_losses(backbone.frozen, prompts, batch))
        found = product(backbone.losses(prompts, batch))
    assert (found - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize("family", ENCODER_DECODER)
@pytest.mark.parametrize("choices", [1, 3])
def test_the_padded_route_projects_an_encoding_once_for_all_choices(family: str, choices: int) -> None:
    backbone = replace(tiny(family), states=encoder_decoder_states)
    batch, prompts = random_batch(5, choices, 2), random_prompts(backbone, 2, 4)
    seen, layers = [], backbone.frozen.model.get_decoder().named_modules()
    for name, module in layers:
        if name.endswith(("encoder_attn.k_proj", "EncDecAttention.v")):
            own = module.forward
            module.forward = lambda x, own=own: seen.append(len(x)) or own(x)
    assert_equal_to_reference(backbone, batch, prompts)
    assert seen.count(batch.texts) == 2
    assert set(seen) <= {1, batch.texts}  # 1: the slow twin


def test_every_family_takes_the_fastest_route_that_knows_it() -> None:
    routes = {family: tiny(family).states.__name__ for family in CAUSAL}
    assert routes.pop("bloom") == "concatenated_states"
    assert {routes.pop(family) for family in ("llama", "mistral", "qwen2")} == {"llama_states"}
    assert set(routes.values()) == {"packed_states"}


def test_the_model_stays_frozen_in_eval_mode_and_keeps_its_attention() -> None:
    backbone = tiny("llama")
    before = backbone.frozen.model.config._attn_implementation
    backbone.frozen.model.train()
    batch, prompts = random_batch(3, 1, 1), random_prompts(backbone, 1, 3)
    backbone.losses(prompts, batch).sum().backward()
    assert not backbone.frozen.model.training
    assert all(p.grad is None for p in backbone.frozen.model.parameters())
    assert backbone.frozen.model.config._attn_implementation == before
