"""T5 without waste: an encoder without padding, and cross-attention that never projects the encoding.

The encoder runs hand-written blocks (block_vjp.py) over all texts as one ragged sequence; only attention sees padded
blocks. The decoder reads label positions alone, all choices of a text against one encoding. With few label tokens the
key and value projections of cross-attention move from the encoding to the queries,

    (x Wq) (E Wk)' = (x Wq Wk') E'        softmax(..) (E Wv) = (softmax(..) E) Wv

which is the same number by associativity, and saves two products over every encoded token in every layer. The encoding
is centred first: a softmax over its tokens, and a mean weighted by one, do not see a common shift, but float32 does.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from promptprior.backbone.forward.seq2seq import decoder_inputs
from promptprior.backbone.frozen import Frozen
from promptprior.backbone.kernels.attention import NO_PREFIX, LayerPrefix, Part, StagePlan, pack, unpack
from promptprior.backbone.kernels.block_vjp import Block, BlockRun, SharedInputs, run_blocks
from promptprior.backbone.kernels.elementwise import EAGER, Kernels
from promptprior.backbone.kernels.packing import Stage, on_device, ragged_arange, ragged_stage, rows_of_texts
from promptprior.backbone.key_values import KeyValues, Prompts, computed_tokens
from promptprior.notation import Bool, Float, Int, Tensor
from promptprior.tasks.sampling.batch import Batch

FAMILIES = ("T5ForConditionalGeneration", "MT5ForConditionalGeneration")


def t5_block(block: Any, model: PreTrainedModel) -> Block:
    """The weights of one encoder block."""
    attention, mlp = block.layer[0].SelfAttention, block.layer[-1].DenseReluDense
    gated = model.config.is_gated_act
    return Block(
        norm=block.layer[0].layer_norm.weight,
        q=attention.q,
        k=attention.k,
        v=attention.v,
        o=attention.o,
        mlp_norm=block.layer[-1].layer_norm.weight,
        gate=mlp.wi_0 if gated else None,
        up=mlp.wi_1 if gated else mlp.wi,
        down=mlp.wo,
        eps=block.layer[0].layer_norm.variance_epsilon,
        activation=model.config.dense_act_fn,
        heads=model.config.num_heads,
        kv_heads=model.config.num_heads,
    )


def t5_states(
    frozen: Frozen,
    prompts: Prompts,
    batch: Batch,
    keep: bool = True,
    kernels: Kernels = EAGER,
    hidden: Bool[Tensor, "P L"] | None = None,
) -> Float[Tensor, "V D"]:
    """The final decoder state that predicts each target token, row after row. A prefix stands before the decoder's own
    tokens, which attend to none of its positions that are `hidden`."""
    model, encoder, device = frozen.model, frozen.model.encoder, frozen.device
    length, text_lengths = computed_tokens(prompts), batch.text_lengths.cpu()
    used, reads = torch.unique(batch.prompt_index.cpu(), return_inverse=True)  # [P], [X]
    if isinstance(prompts, KeyValues):
        embedded_prompts = frozen.embed(batch.text_ids[0, :0])
    else:
        embedded_prompts = prompts.to(device)[used].to(frozen.dtype).flatten(0, 1)
    words = frozen.embed(batch.text_ids[torch.arange(batch.text_ids.shape[1]) < batch.text_lengths[:, None]])
    x = torch.cat([embedded_prompts, words])  # [P L + words, D]: what several texts read stands here once

    # Tokens stand [prompt, text, prompt, text, …]; each names the row of x that it reads
    starts = (length + text_lengths).cumsum(0) - text_lengths - length  # [X]
    prompt_tokens = (starts[:, None] + torch.arange(length)).flatten()  # [X L]
    source = torch.empty(len(reads) * length + int(text_lengths.sum()), dtype=torch.long)  # [N]
    is_text = torch.ones_like(source, dtype=torch.bool)
    is_text[prompt_tokens] = False
    source[prompt_tokens] = (reads[:, None] * length + torch.arange(length)).flatten()
    source[is_text] = len(used) * length + torch.arange(int(text_lengths.sum()))
    reads_prompt = torch.nn.functional.one_hot(reads).t().to(x)  # [P, X]
    inputs = SharedInputs(None, source.to(device), prompt_tokens.to(device), reads_prompt)
    if words.requires_grad:  # every token wants a gradient: nothing is gained by projecting shared rows once
        x, inputs = inputs.spread(x), SharedInputs()

    # All blocks share the relative positions of the first
    stage = on_device(ragged_stage(torch.arange(batch.texts), length + batch.text_lengths, 0)[0], device)
    bias = encoder.block[0].layer[0].SelfAttention.compute_bias(stage.size, stage.size)
    bias = bias.detach().contiguous()  # [1, H, S, S]; heads stood last
    pads = None if stage.is_full else ~stage.filled.view(stage.blocks, 1, 1, stage.size)
    plans = [StagePlan(0, stage.tokens, stage, (Part(0, pads),), bias[0][:, None, :, None, :])]
    runs = []
    for number, block in enumerate(encoder.block):
        weights, first = t5_block(block, model), inputs if number == 0 else SharedInputs()
        plain = partial(_plain_block, block=block, stage=stage, bias=bias, pads=pads)
        runs.append(BlockRun(weights, plans, first, plain, keep, kernels))
    encoded = pack(encoder.final_layer_norm(run_blocks(x, runs))[None], stage)[0]  # [X, S, D]

    # The decoder reads a grid [X, C]: the rows of each text, -1 where it has fewer than the most
    grid = rows_of_texts(torch.arange(batch.texts), batch.text_index).flatten()
    ids = decoder_inputs(frozen, batch)[grid.clamp(min=0)].to(device)  # [X C, U]
    before, unseen = NO_PREFIX, None  # what stands before each cell in each layer, and what of it is hidden
    if isinstance(prompts, KeyValues):
        text_of_cell = torch.arange(batch.texts).repeat_interleave(len(grid) // batch.texts)
        prompt_of_cell = batch.prompt_index.cpu()[text_of_cell]
        prefixes, place = torch.unique(prompts.prefix_index(prompt_of_cell), return_inverse=True)
        place = place.to(device)
        before = {
            layer: (keys.index_select(1, place).transpose(0, 1), values.index_select(1, place).transpose(0, 1))
            for layer, (keys, values) in prompts.by_layer(prefixes, frozen).items()
        }
        unseen = None if hidden is None else hidden.cpu()[prompt_of_cell][:, None, None, :].to(device)
    states = _decode_labels(model, ids, encoded, ~stage.filled.view(stage.blocks, -1), before, unseen)
    cell_of_row = torch.zeros(batch.rows, dtype=torch.long)
    cell_of_row[grid[grid >= 0]] = (grid >= 0).nonzero().flatten()
    lengths = batch.target_lengths.cpu()
    target_place = cell_of_row.repeat_interleave(lengths) * states.shape[1] + ragged_arange(lengths)  # [V]
    return states.flatten(0, 1).index_select(0, target_place.to(device))


def _plain_block(
    x: Float[Tensor, "N D"], block: Any, stage: Stage, bias: Tensor, pads: Bool[Tensor, "X 1 1 S"] | None
) -> Float[Tensor, "N D"]:
    """The block as transformers computes it, in operations that can be differentiated twice."""
    mask = None if pads is None else torch.zeros_like(pads, dtype=x.dtype).masked_fill(pads, torch.finfo(x.dtype).min)
    with sdpa_kernel(SDPBackend.MATH):
        out = block(pack(x[None], stage)[0], mask, bias)[0]
    return unpack(out[None], stage)[0]


def _decode_labels(
    model: PreTrainedModel,
    ids: Int[Tensor, "rows U"],
    encoded: Float[Tensor, "X S D"],
    pads: Bool[Tensor, "X S"],
    before: Mapping[int, LayerPrefix],
    unseen: Bool[Tensor, "rows 1 1 L"] | None,
) -> Float[Tensor, "rows U D"]:
    """The decoder's final states. Rows stand text after text, as many for each. `before` has keys and values
    [rows, H, L, d] for layers with a prefix."""
    decoder, size = model.decoder, ids.shape[1]
    x = decoder.embed_tokens(ids)
    length = next(iter(before.values()))[0].shape[2] if before else 0
    relative = decoder.block[0].layer[0].SelfAttention
    bias = relative.compute_bias(size, length + size, past_seen_tokens=length)  # [1, H, U, L + U]
    later = torch.ones(size, length + size, dtype=torch.bool, device=x.device).triu(length + 1)
    bias = bias.masked_fill(later, float("-inf"))
    own_bias = bias[..., length:]
    if unseen is not None:
        bias = torch.cat(
            [bias[..., :length].masked_fill(unseen, float("-inf")), own_bias.expand(len(ids), -1, -1, -1)], -1
        )
    centre = encoded.detach().mean(dim=1, keepdim=True)  # [X, 1, D]
    centred = encoded - centre
    for number, block in enumerate(decoder.block):
        # Causal attention among a row's label positions, and to its prefix
        h, attention = block.layer[0].layer_norm(x), block.layer[0].SelfAttention
        q, k, v = (_split_heads(linear(h), attention) for linear in (attention.q, attention.k, attention.v))
        if number in before:
            k, v = (torch.cat(pair, dim=2) for pair in zip(before[number], (k, v), strict=True))
        weights = _softmax(q @ k.transpose(-1, -2) + (bias if number in before else own_bias))  # [rows, H, U, L + U]
        x = x + attention.o((weights @ v).transpose(1, 2).flatten(2))

        # Attention of all rows of a text to its one encoding, which is projected only where that costs less
        h, attention = block.layer[1].layer_norm(x), block.layer[1].EncDecAttention
        queries = h.reshape(len(encoded), -1, h.shape[-1])  # [X, n, D] with n = choices * U
        q = _split_heads(attention.q(queries), attention)  # [X, H, n, d]
        heads, count, width = q.shape[1:]
        if count < width:
            # Both projections on the side of the queries: each head's weights meet the queries of all texts in one
            # product (`@` would copy the weights for every text)
            key_weight, value_weight = (linear.weight.view(heads, width, -1) for linear in (attention.k, attention.v))
            wide = torch.einsum("xhnd,hdk->xhnk", q, key_weight).flatten(1, 2)  # [X, H n, D]
            # [X, S, H n]: so the gradient of `centred` comes token after token, and adds up without being turned
            scores = (centred @ wide.transpose(1, 2)).masked_fill(pads[:, :, None], float("-inf"))
            mixed = (_softmax(scores, dim=1).transpose(1, 2) @ centred).unflatten(1, (heads, count))  # [X, H, n, D]
            attended = torch.einsum("xhnk,hdk->xhnd", mixed, value_weight)
        else:
            k, v = (_split_heads(linear(centred), attention) for linear in (attention.k, attention.v))  # [X, H, S, d]
            scores = (q @ k.transpose(-1, -2)).masked_fill(pads[:, None, None, :], float("-inf"))
            attended = _softmax(scores) @ v
        x = x + attention.o(attended.transpose(1, 2).flatten(2) + attention.v(centre)).view(h.shape)
        x = block.layer[2](x)
    return decoder.final_layer_norm(x)


def _split_heads(x: Float[Tensor, "R U hd"], attention: Any) -> Float[Tensor, "R H U d"]:
    return x.unflatten(2, (-1, attention.key_value_proj_dim)).transpose(1, 2)


def _softmax(scores: Tensor, dim: int = -1) -> Tensor:
    """Softmax in at least float32, rounded back."""
    return torch.softmax(scores, dim=dim, dtype=torch.promote_types(scores.dtype, torch.float32)).to(scores.dtype)
