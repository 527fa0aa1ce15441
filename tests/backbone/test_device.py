"""What a step asks of an accelerator: numbers that the host waits for are paid with an idle device."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from promptprior.backbone import Site
from promptprior.backbone.forward.reference import reference_losses
from promptprior.notation import Tensor
from promptprior.tasks.sampling.batch import Tokens, collate
from tests.backbone.test_engine import random_batch, random_prompts
from tests.backbone.tiny import FAMILIES, tiny

# In other families transformers itself looks at its masks, once in a forward pass
SILENT = ("llama", "mistral", "qwen2", "opt", "bloom", "t5", "t5_gated")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # on a GPU these are the tests of the GPU


@pytest.mark.parametrize("choices", [1, 3])
@pytest.mark.parametrize("family", SILENT)
def test_the_host_waits_for_no_number_of_a_step(family: str, choices: int) -> None:
    """On the meta device there are none: item, tolist, nonzero, unique and copies to the host all fail."""
    backbone = tiny(family, torch.float32)
    texts = [tuple(range(5, 5 + size)) for size in (3, 15, 6, 4)]  # longer than Mistral's window
    batch = collate([Tokens(text, ((7, 8), (9,), (7,))[:choices]) for text in texts], copies=[0, 1, 0, 1])
    backbone.frozen.model.to("meta")
    prompts = torch.zeros(2, 4, backbone.width, device="meta", requires_grad=True)
    losses = backbone.losses(prompts, batch)
    losses.sum().backward()
    assert losses.shape == (4 * choices,)
    assert prompts.grad is not None
    assert prompts.grad.device.type == "meta"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_device_computes_what_the_cpu_does_in_float64(family: str) -> None:
    """Losses, gradients, Hessian products and states in float32 on the device, against one row at a time."""
    exact, device = tiny(family), tiny(family, torch.float32)
    device.frozen.model.to(DEVICE)
    batch, prompts = random_batch(6, 2, 3), random_prompts(exact, 3, 5)
    vector = torch.randn(prompts.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def derivatives(losses: Tensor, at: Tensor) -> tuple[Tensor, ...]:
        [gradient] = torch.autograd.grad(losses.double().sum(), at, create_graph=True)
        [product] = torch.autograd.grad((gradient.double() * vector.to(at.device)).sum(), at)
        return tuple(x.detach().double().cpu() for x in (losses, gradient, product))

    here = prompts.detach().float().to(DEVICE).requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
        expected = derivatives(reference_losses(exact.frozen, prompts, batch), prompts)
        found = derivatives(device.for_second_order().losses(here, batch), here)
    for ours, theirs, tolerance in zip(found, expected, (1e-5, 1e-4, 1e-3), strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < tolerance
    states = device.text_states(here.detach(), batch, [Site(1, "mean")]).double().cpu()
    torch.testing.assert_close(
        states, exact.text_states(prompts.detach(), batch, [Site(1, "mean")]), rtol=1e-4, atol=1e-4
    )
