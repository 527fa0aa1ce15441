"""The slow reference: one row at a time, plain concatenation, the model's own forward pass and full logits.

Every fast path must agree with this file, in loss and in prompt gradient.
"""

from typing import Any

import torch
from torch.nn.functional import cross_entropy

from promptprior.backbone.frozen import Frozen
from promptprior.backbone.key_values import KeyValues, Prompts, cache_argument, filled_cache
from promptprior.notation import Bool, Float, Tensor
from promptprior.tasks.sampling.batch import Batch


def reference_losses(
    frozen: Frozen, prompts: Prompts, batch: Batch, hidden: Bool[Tensor, "P L"] | None = None
) -> Float[Tensor, " R"]:
    """Mean negative log-likelihood of each row's target, in nats per token.

    Causal models read prompt, text and target as one sequence; encoder-decoders prompt and text in the encoder, the
    target in the decoder. A prefix is in the model's own cache before it reads anything. `hidden` names prompt tokens
    that no position attends to: an ordinary attention mask over the concatenation, with every token where it stood.
    """
    losses = []
    for row in range(batch.rows):
        x = int(batch.text_index[row])
        p = int(batch.prompt_index[x])
        text = batch.text_ids[x, : int(batch.text_lengths[x])].to(frozen.device)  # [T]
        target = batch.target_ids[row, : int(batch.target_lengths[row])].to(frozen.device)  # [U]
        is_encoder_decoder = frozen.card.is_encoder_decoder
        words = frozen.embed(text if is_encoder_decoder else torch.cat([text, target]))
        options: dict[str, Any] = {"labels": target[None]} if is_encoder_decoder else {}
        if isinstance(prompts, KeyValues):
            embeds, length = words[None], prompts.length
            cache = filled_cache(prompts, prompts.prefix_index(torch.tensor([p])), frozen)
            options[cache_argument(frozen.model)] = cache
            seen = len(target) if is_encoder_decoder else len(words)  # by what attends to the prefix
        else:
            embeds = torch.cat([prompts[p].to(frozen.device, frozen.dtype), words])[None]  # [1, S, D]
            length, seen = prompts.shape[1], len(words)
        if hidden is not None:
            mask = torch.ones(1, length + seen, dtype=torch.long, device=frozen.device)
            mask[0, :length] = ~hidden[p]
            in_decoder = is_encoder_decoder and isinstance(prompts, KeyValues)
            options["decoder_attention_mask" if in_decoder else "attention_mask"] = mask
            if not is_encoder_decoder:  # some families would else count positions over what is visible
                options["position_ids"] = torch.arange(length + seen, device=frozen.device)[None, -embeds.shape[1] :]
        reads_cache = isinstance(prompts, KeyValues) and not is_encoder_decoder  # with labels those need not be told
        logits = frozen.model(inputs_embeds=embeds, **options, use_cache=reads_cache).logits[0]
        if not is_encoder_decoder:
            first = embeds.shape[1] - len(target) - 1
            logits = logits[first : first + len(target)]
        losses.append(cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), target))
    return torch.stack(losses)
