"""Long texts read their own past through a fused kernel: the same numbers, in memory that grows with the text."""

from collections.abc import Iterator

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from promptprior.backbone import Site
from promptprior.backbone.forward.reference import reference_losses
from promptprior.backbone.kernels import long_attention
from promptprior.notation import Tensor
from promptprior.tasks.sampling.batch import Tokens, collate

from .test_engine import assert_equal_to_reference, random_batch, random_prompts
from .test_prefix import assert_equal, random_prefixes
from .tiny import CAUSAL, TrueFloat64, tiny


@pytest.fixture(autouse=True)
def short_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of four slots take the fused kernel."""
    monkeypatch.setattr(long_attention, "LONG", 4)


@pytest.fixture
def true_float64() -> Iterator[None]:
    with TrueFloat64():
        yield


@pytest.mark.usefixtures("true_float64")
@pytest.mark.parametrize("family", CAUSAL)
@pytest.mark.parametrize("choices", [1, 3])
@pytest.mark.parametrize(("prompts", "length"), [(1, 5), (3, 5), (6, 2), (1, 0)])
def test_losses_and_gradients_equal_the_reference(family: str, choices: int, prompts: int, length: int) -> None:
    backbone, batch = tiny(family), random_batch(6, choices, prompts)
    assert_equal_to_reference(backbone, batch, random_prompts(backbone, prompts, length))


@pytest.mark.usefixtures("true_float64")
@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral", "gpt2"])
def test_prefixes_do_too(family: str) -> None:
    backbone, batch = tiny(family), random_batch(6, 2, 3)
    prefix = random_prefixes(backbone, 3)
    assert_equal(backbone.losses(prefix, batch), reference_losses(backbone.frozen, prefix, batch), prefix, batch)


@pytest.mark.usefixtures("true_float64")
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_second_derivatives_go_through_the_definition(family: str) -> None:
    backbone, batch = tiny(family), random_batch(4, 2, 2)
    vector = torch.randn(2, 3, backbone.width, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    products = []
    for losses in (backbone.for_second_order().losses, lambda at, b: reference_losses(backbone.frozen, at, b)):
        prompts = random_prompts(backbone, 2, 3)
        with sdpa_kernel(SDPBackend.MATH):
            [gradient] = torch.autograd.grad(losses(prompts, batch).sum(), prompts, create_graph=True)
            products.append(torch.autograd.grad((gradient * vector).sum(), prompts)[0])
    assert (products[0] - products[1]).norm() < 1e-7 * products[1].norm()


def test_the_kernel_is_what_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, batch, calls = tiny("llama"), random_batch(6, 1, 1), list[int]()
    causal = long_attention.causal
    monkeypatch.setattr(
        "promptprior.backbone.kernels.attention_vjp.causal",
        lambda q, k, v: (calls.append(q.shape[2]), causal(q, k, v))[1],
    )
    backbone.losses(random_prompts(backbone, 1, 5), batch)
    longest = int((batch.text_lengths + batch.target_lengths - 1).max())
    assert calls == [5, longest] * backbone.layers


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_half_the_digits_are_as_good_as_without(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against float64, in losses: the fused kernel's rounding is no larger than that of written-out scores."""
    exact, rough, batch = tiny("llama"), tiny("llama", dtype), random_batch(6, 2, 1)
    prompts = random_prompts(exact, 1, 5).detach()
    truth = exact.losses(prompts, batch)
    fused = (rough.losses(prompts.float(), batch) - truth).norm()
    monkeypatch.setattr(long_attention, "LONG", 10**9)
    assert fused <= 2 * (rough.losses(prompts.float(), batch) - truth).norm()


def test_states_of_texts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, batch = tiny("llama"), random_batch(6, 2, 3)
    prompts, sites = random_prompts(backbone, 3, 4).detach(), [Site(1, "mean"), Site(2, "last")]
    found = backbone.text_states(prompts, batch, sites)
    monkeypatch.setattr(long_attention, "LONG", 10**9)
    torch.testing.assert_close(found, backbone.text_states(prompts, batch, sites), rtol=0, atol=1e-11)


def kept_for_backward(size: int) -> int:
    """Numbers that autograd is asked to keep of two texts of a size."""
    backbone = tiny("llama", torch.float32)
    batch = collate([Tokens(tuple(2 + n % 90 for n in range(size)), ((5,),))] * 2)
    kept: dict[int, int] = {}

    def noted(x: Tensor) -> Tensor:
        kept[x.data_ptr()] = x.numel()
        return x

    with torch.autograd.graph.saved_tensors_hooks(noted, lambda x: x):
        backbone.losses(random_prompts(backbone, 1, 4).float(), batch)
    weights = {p.data_ptr() for p in backbone.frozen.model.parameters()}
    return sum(n for at, n in kept.items() if at not in weights)


def test_what_is_kept_grows_with_the_text_and_not_with_its_square() -> None:
    short, middle, long = (kept_for_backward(size) for size in (20, 60, 100))
    assert long - middle == pytest.approx(middle - short, rel=0.05)
