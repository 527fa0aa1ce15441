"""The slow twin: one row at a time, plain concatenation, the model's own forward pass and full logits.

Every fast path must agree with this file, in loss and in prompt gradient.
"""

import torch
from torch.nn.functional import cross_entropy

from promptprior.backbone.frozen import Frozen
from promptprior.notation import Float, Tensor
from promptprior.tasks.sampling.batch import Batch


def reference_losses(frozen: Frozen, prompts: Float[Tensor, "P L D"], batch: Batch) -> Float[Tensor, " R"]:
    """Mean negative log-likelihood of each row's target."""
    one = encoder_decoder_row if frozen.card.is_encoder_decoder else causal_row
    return torch.stack([one(frozen, prompts, batch, row) for row in range(batch.rows)])


def causal_row(frozen: Frozen, prompts: Float[Tensor, "P L D"], batch: Batch, row: int) -> Float[Tensor, ""]:
    """Prompt, text and target as one sequence; the loss of the target's tokens."""
    prompt, text, target = parts(frozen, prompts, batch, row)
    ids = torch.cat([text, target])
    embeds = torch.cat([prompt, frozen.embed(ids)])[None]
    logits = frozen.model(inputs_embeds=embeds, use_cache=False).logits[0]
    start = len(prompt) + len(text)
    return cross_entropy(upcast(logits[start - 1 : start - 1 + len(target)]), target)


def encoder_decoder_row(frozen: Frozen, prompts: Float[Tensor, "P L D"], batch: Batch, row: int) -> Float[Tensor, ""]:
    """Prompt and text in the encoder, the target in the decoder."""
    prompt, text, target = parts(frozen, prompts, batch, row)
    embeds = torch.cat([prompt, frozen.embed(text)])[None]
    logits = frozen.model(inputs_embeds=embeds, labels=target[None], use_cache=False).logits[0]
    return cross_entropy(upcast(logits), target)


def parts(
    frozen: Frozen, prompts: Float[Tensor, "P L D"], batch: Batch, row: int
) -> tuple[Float[Tensor, "L D"], Tensor, Tensor]:
    """One row's prompt, text ids and target ids, without padding."""
    x = int(batch.text_index[row])
    prompt = prompts[int(batch.prompt_index[x])].to(frozen.device, frozen.dtype)
    text = batch.text_ids[x, : int(batch.text_lengths[x])]
    target = batch.target_ids[row, : int(batch.target_lengths[row])]
    return prompt, text.to(frozen.device), target.to(frozen.device)


def upcast(logits: Tensor) -> Tensor:
    """Logits in at least float32."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
