"""Encoder-decoders: the prompt stands before the encoder input; choices of one text share its encoding."""

from contextlib import nullcontext

import torch

from promptprior.backbone.causal import kept_or_recomputed
from promptprior.backbone.frozen import Frozen
from promptprior.backbone.layout import ragged_arange
from promptprior.notation import Float, Int, Tensor
from promptprior.tasks.batch import Batch


def encoder_decoder_states(
    frozen: Frozen, prompts: Float[Tensor, "P L D"], batch: Batch, keep: bool = True
) -> Float[Tensor, "V D"]:
    """The final decoder state that predicts each target token, row after row."""
    with kept_or_recomputed(frozen.model, keep, nullcontext):
        encoded, mask = encode(frozen, prompts, batch)
        rows = batch.text_index.to(frozen.device)
        out = frozen.model.get_decoder()(
            input_ids=shifted(frozen, batch).to(frozen.device),
            encoder_hidden_states=encoded.index_select(0, rows),
            encoder_attention_mask=mask.index_select(0, rows),
            use_cache=False,
        )
    row = torch.arange(batch.rows).repeat_interleave(batch.target_lengths)
    place = ragged_arange(batch.target_lengths)
    return out.last_hidden_state[row.to(frozen.device), place.to(frozen.device)]


def encode(
    frozen: Frozen, prompts: Float[Tensor, "P L D"], batch: Batch
) -> tuple[Float[Tensor, "X S D"], Int[Tensor, "X S"]]:
    """Encoder output of prompt and text, and its mask."""
    used = prompts.to(frozen.device)[batch.prompt_index.to(frozen.device)].to(frozen.dtype)
    embeds = torch.cat([used, frozen.embed(batch.text_ids)], dim=1)
    lengths = prompts.shape[1] + batch.text_lengths
    mask = (torch.arange(embeds.shape[1]) < lengths[:, None]).long().to(frozen.device)
    out = frozen.model.get_encoder()(inputs_embeds=embeds, attention_mask=mask)
    return out.last_hidden_state, mask


def shifted(frozen: Frozen, batch: Batch) -> Int[Tensor, "R U"]:
    """Decoder input: the start token, then the target without its last token."""
    start = torch.full((batch.rows, 1), frozen.model.config.decoder_start_token_id)
    return torch.cat([start, batch.target_ids[:, :-1]], dim=1)
