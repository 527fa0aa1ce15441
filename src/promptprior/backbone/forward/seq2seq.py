"""Encoder-decoders: the prompt stands before the encoder input; choices of one text share its encoding.

They also share the keys and values that cross-attention makes of it, in every layer.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from transformers import PreTrainedModel

from promptprior.backbone.forward.causal import kept_or_recomputed, wrapped_forwards
from promptprior.backbone.frozen import Frozen
from promptprior.backbone.kernels.packing import ragged_arange
from promptprior.notation import Float, Int, Tensor
from promptprior.tasks.sampling.batch import Batch

PROJECTIONS = {"encoder_attn": ("k_proj", "v_proj"), "EncDecAttention": ("k", "v")}  # BART and its kin; T5 and its kin


def encoder_decoder_states(
    frozen: Frozen, prompts: Float[Tensor, "P L D"], batch: Batch, keep: bool = True
) -> Float[Tensor, "V D"]:
    """The final decoder state that predicts each target token, row after row."""
    with kept_or_recomputed(frozen.model, keep, nullcontext):
        encoded, mask = encode(frozen, prompts, batch)
    decoder, rows = frozen.model.get_decoder(), batch.text_index.to(frozen.device)
    route = partial(projected_once, decoder, encoded, rows)
    with route(), kept_or_recomputed(decoder, keep, route):
        out = decoder(
            input_ids=shifted(frozen, batch).to(frozen.device),
            encoder_hidden_states=encoded.index_select(0, rows),
            encoder_attention_mask=mask.index_select(0, rows),
            use_cache=False,
        )
    row = torch.arange(batch.rows).repeat_interleave(batch.target_lengths)
    place = ragged_arange(batch.target_lengths)
    return out.last_hidden_state[row.to(frozen.device), place.to(frozen.device)]


@contextmanager
def projected_once(
    decoder: PreTrainedModel, encoded: Float[Tensor, "X S D"], rows: Int[Tensor, " R"]
) -> Iterator[None]:
    """Inside, cross-attention makes keys and values of each text once, and hands every row those of its text."""
    linears = [m.get_submodule(k) for name, m in decoder.named_modules() for k in PROJECTIONS.get(last(name), ())]
    with wrapped_forwards(linears, lambda project: partial(handed_out, project, encoded, rows)):
        yield


def handed_out(project: Callable[[Tensor], Tensor], encoded: Tensor, rows: Tensor, _: Tensor) -> Tensor:
    """The projection of every text, once for each of its rows."""
    return project(encoded).index_select(0, rows)


def last(name: str) -> str:
    """The last part of a module's name."""
    return name.rpartition(".")[2]


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
