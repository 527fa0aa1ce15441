"""What a step asks of an accelerator: numbers that the host waits for are paid with an idle device."""

import pytest
import torch

from promptprior.tasks.sampling.batch import Tokens, collate
from tests.backbone.tiny import tiny

# In other families transformers itself looks at its masks, once in a forward pass
FAMILIES = ("llama", "mistral", "qwen2", "opt", "bloom", "t5", "t5_gated")


@pytest.mark.parametrize("choices", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
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
