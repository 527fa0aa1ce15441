"""The slow reference: one row at a time, plain concatenation, the model's own forward pass and full logits.

Every fast path must agree with this file, in loss and in prompt gradient.
"""

import torch
from torch.nn.functional import cross_entropy

from promptprior.backbone.frozen import Frozen
from promptprior.notation import Bool, Float, Tensor
from promptprior.tasks.sampling.batch import Batch


def reference_losses(
    frozen: Frozen, prompts: Float[Tensor, "P L D"], batch: Batch, hidden: Bool[Tensor, "P L"] | None = None
) -> Float[Tensor, " R"]:
    """Mean negative log-likelihood of each row's target, in nats per token.

    Causal models read prompt, text and target as one sequence; encoder-decoders prompt and text in the encoder, the
    target in the decoder. `hidden` names prompt tokens that no position attends to: an ordinary attention mask over
    the concatenation, with every token where it stood.
    """
    losses = []
    for row in range(batch.rows):
        x = int(batch.text_index[row])
        p = int(batch.prompt_index[x])
        prompt = prompts[p].to(frozen.device, frozen.dtype)  # [L, D]
        text = batch.text_ids[x, : int(batch.text_lengths[x])].to(frozen.device)  # [T]
        target = batch.target_ids[row, : int(batch.target_lengths[row])].to(frozen.device)  # [U]
        if frozen.card.is_encoder_decoder:
            embeds, options = torch.cat([prompt, frozen.embed(text)])[None], {"labels": target[None]}
        else:
            embeds, options = torch.cat([prompt, frozen.embed(torch.cat([text, target]))])[None], {}
        if hidden is not None:
            mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=frozen.device)
            mask[0, : len(prompt)] = ~hidden[p]
            options["attention_mask"] = mask
            if not frozen.card.is_encoder_decoder:  # some families would else count positions over what is visible
                options["position_ids"] = torch.arange(embeds.shape[1], device=frozen.device)[None]
        logits = frozen.model(inputs_embeds=embeds, **options, use_cache=False).logits[0]
        if not frozen.card.is_encoder_decoder:
            first = len(prompt) + len(text) - 1
            logits = logits[first : first + len(target)]
        losses.append(cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), target))
    return torch.stack(losses)
