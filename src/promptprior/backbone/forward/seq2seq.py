"""Encoder-decoders: the prompt stands before the encoder input; choices of one text share its encoding.

They also share the keys and values that cross-attention makes of it, in every layer.
"""

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch

from promptprior.backbone.forward.causal import gradient_checkpointing, wrapped_forwards
from promptprior.backbone.frozen import Frozen
from promptprior.backbone.kernels.packing import ragged_arange
from promptprior.backbone.key_values import KeyValues, Prompts, cache_argument, filled_cache
from promptprior.notation import Bool, Float, Int, Tensor
from promptprior.tasks.sampling.batch import Batch

PROJECTIONS = {"encoder_attn": ("k_proj", "v_proj"), "EncDecAttention": ("k", "v")}  # BART and its kin; T5 and its kin


def encoder_decoder_states(
    frozen: Frozen,
    prompts: Prompts,
    batch: Batch,
    keep: bool = True,
    hidden: Bool[Tensor, "P L"] | None = None,
) -> Float[Tensor, "V D"]:
    """The final decoder state that predicts each target token, row after row. Neither encoder nor decoder attends to
    the prompt tokens that are `hidden`. A prefix stands before the decoder's own tokens, in the model's own cache,
    which cannot be filled twice, so that all is kept there (`keep` is for prompts of tokens)."""
    with gradient_checkpointing(frozen.model, nullcontext, enabled=not keep):
        encoded, mask = encode(frozen, prompts, batch, hidden)
    decoder, text = frozen.model.get_decoder(), batch.text_index.to(frozen.device)
    options: dict[str, Any] = {"use_cache": False}
    if isinstance(prompts, KeyValues):
        prompt_of_row = batch.prompt_index.cpu()[batch.text_index.cpu()]
        cache = filled_cache(prompts, prompts.prefix_index(prompt_of_row), frozen)
        seen = torch.ones(batch.rows, prompts.length + batch.target_ids.shape[1], dtype=torch.long)
        if hidden is not None:
            seen[:, : prompts.length] = ~hidden.cpu()[prompt_of_row]
        options = {"use_cache": True, cache_argument(decoder): cache, "attention_mask": seen.to(frozen.device)}
    # Cross-attention makes keys and values of each text once, and every row reads those of its text
    attentions = ((module, PROJECTIONS.get(name.rpartition(".")[2], ())) for name, module in decoder.named_modules())
    linears = [module.get_submodule(child) for module, children in attentions for child in children]
    sharing = partial(wrapped_forwards, linears, lambda project: lambda _: project(encoded).index_select(0, text))
    with sharing(), gradient_checkpointing(decoder, sharing, enabled=not keep and not options["use_cache"]):
        out = decoder(
            input_ids=decoder_inputs(frozen, batch).to(frozen.device),
            encoder_hidden_states=encoded.index_select(0, text),  # [R, S, D]
            encoder_attention_mask=mask.index_select(0, text),
            **options,
        )
    row = torch.arange(batch.rows).repeat_interleave(batch.target_lengths)  # [V]
    column = ragged_arange(batch.target_lengths)
    return out.last_hidden_state[row.to(frozen.device), column.to(frozen.device)]


def encode(
    frozen: Frozen, prompts: Prompts, batch: Batch, hidden: Bool[Tensor, "P L"] | None = None
) -> tuple[Float[Tensor, "X S D"], Int[Tensor, "X S"]]:
    """Encoder output of prompt and text, and its mask: 0 for padding and for `hidden` prompt tokens. The encoder sees
    nothing of a prefix."""
    length, embeds = 0, frozen.embed(batch.text_ids)
    if isinstance(prompts, KeyValues):
        hidden = None
    else:
        length = prompts.shape[1]
        used = prompts.to(frozen.device)[batch.prompt_index.to(frozen.device)].to(frozen.dtype)
        embeds = torch.cat([used, embeds], dim=1)
    mask = torch.arange(embeds.shape[1]) < (length + batch.text_lengths)[:, None]
    if hidden is not None:
        mask[:, :length] &= ~hidden.cpu()[batch.prompt_index]
    mask = mask.long().to(frozen.device)
    return frozen.model.get_encoder()(inputs_embeds=embeds, attention_mask=mask).last_hidden_state, mask


def decoder_inputs(frozen: Frozen, batch: Batch) -> Int[Tensor, "R U"]:
    """The start token, then the target without its last token."""
    start = torch.full((batch.rows, 1), frozen.model.config.decoder_start_token_id)
    return torch.cat([start, batch.target_ids[:, :-1]], dim=1)
