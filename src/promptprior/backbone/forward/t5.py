"""T5 without waste: an encoder without padding, and cross-attention that never projects the encoding.

The encoder runs hand-written blocks (block.py) over all texts as one ragged sequence; only attention sees padded
blocks. The decoder reads label positions alone, all choices of a text against one encoding. With few label tokens the
key and value projections of cross-attention move from the encoding to the queries,

    (x Wq) (E Wk)' = (x Wq Wk') E'        softmax(..) (E Wv) = (softmax(..) E) Wv

which is the same number by associativity, and saves two products over every encoded token in every layer. The encoding
is centred first: a softmax over its tokens, and a mean weighted by one, do not see a common shift, but float32 does.
"""

from functools import partial
from typing import Any

import torch
from torch.nn import Linear
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from promptprior.backbone.forward.seq2seq import shifted
from promptprior.backbone.frozen import Frozen
from promptprior.backbone.kernels.attention import packed, unpacked
from promptprior.backbone.kernels.attention_vjp import Part, StagePlan
from promptprior.backbone.kernels.block_vjp import ACTIVATIONS, EAGER, Block, Kernels, Pass, run_block
from promptprior.backbone.kernels.packing import Stage, ragged_stage, ragged_take, rows_of
from promptprior.backbone.kernels.shared_inputs import Entry, Leading, Repeated
from promptprior.notation import Bool, Float, Int, Tensor
from promptprior.tasks.sampling.batch import Batch

FAMILIES = ("T5ForConditionalGeneration", "MT5ForConditionalGeneration")


def serves(model: PreTrainedModel) -> bool:
    """Whether this file knows the model. In float16 T5 overflows: transformers clamps it, we do not."""
    if type(model).__name__ not in FAMILIES or model.dtype == torch.float16:
        return False
    blocks = [block_of(block, model) for block in model.encoder.block]
    cross = [block.layer[1].EncDecAttention for block in model.decoder.block]
    read = [*(x for block in blocks for x in block.linears), *(x for c in cross for x in (c.k, c.v))]
    return all(block.activation in ACTIVATIONS for block in blocks) and all(type(linear) is Linear for linear in read)


def block_of(block: Any, model: PreTrainedModel) -> Block:
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
    frozen: Frozen, prompts: Float[Tensor, "P L D"], batch: Batch, keep: bool = True, kernels: Kernels = EAGER
) -> Float[Tensor, "V D"]:
    """The final decoder state that predicts each target token, row after row."""
    encoded, stage = encoded_texts(frozen, prompts, batch, keep, kernels)
    grid = rows_of(torch.arange(batch.texts), batch.text_index).flatten()  # rows of each text; -1 where it has fewer
    ids = shifted(frozen, batch)[grid.clamp(min=0)].to(frozen.device)
    states = decoded(frozen.model, ids, encoded, ~stage.filled.view(stage.blocks, -1))
    row_place = torch.zeros(batch.rows, dtype=torch.long)
    row_place[grid[grid >= 0]] = (grid >= 0).nonzero().flatten()
    reads = torch.arange(batch.target_ids.shape[1]) < batch.target_lengths[:, None]
    return states[row_place.to(frozen.device)][reads.to(frozen.device)]


def encoded_texts(
    frozen: Frozen, prompts: Float[Tensor, "P L D"], batch: Batch, keep: bool, kernels: Kernels
) -> tuple[Float[Tensor, "X S D"], Stage]:
    """The encoder's output for each prompt and text, and where its tokens stand."""
    length, encoder = prompts.shape[1], frozen.model.encoder
    lengths = length + batch.text_lengths
    stage = ragged_stage(torch.arange(batch.texts), lengths, 0)[0].to(frozen.device)
    used, reads = torch.unique(batch.prompt_index.cpu(), return_inverse=True)
    rows = prompts.to(frozen.device)[used].to(frozen.dtype).flatten(0, 1)
    words = frozen.embed(ragged_take(batch.text_ids, batch.text_lengths))
    x = torch.cat([rows, words])
    entry: Entry = repeated(length, reads, batch.text_lengths.cpu(), x)
    if words.requires_grad:  # every token wants a gradient: nothing is gained by projecting shared rows once
        x, entry = entry.spread(x), Leading()
    for work in passes(frozen.model, stage, entry, keep, kernels):
        x = run_block(x, work)
    return packed(encoder.final_layer_norm(x)[None], stage)[0], stage


def repeated(
    length: int, reads: Int[Tensor, " X"], text_lengths: Int[Tensor, " X"], x: Float[Tensor, "S D"]
) -> Repeated:
    """How the tokens [prompt, text, prompt, text, …] read the rows x = [all prompts, all texts]."""
    prompts = torch.nn.functional.one_hot(reads).t()
    first = (length + text_lengths).cumsum(0) - text_lengths - length
    places = (first[:, None] + torch.arange(length)).flatten()
    source = torch.empty(len(reads) * length + int(text_lengths.sum()), dtype=torch.long)
    of_text = torch.ones_like(source, dtype=torch.bool)
    of_text[places] = False
    source[places] = (reads[:, None] * length + torch.arange(length)).flatten()
    source[of_text] = len(prompts) * length + torch.arange(int(text_lengths.sum()))
    return Repeated(source.to(x.device), places.to(x.device), prompts.to(x))


def passes(model: PreTrainedModel, stage: Stage, entry: Entry, keep: bool, kernels: Kernels) -> list[Pass]:
    """One pass per encoder block; all share the relative positions of the first."""
    first = model.encoder.block[0].layer[0].SelfAttention
    bias = first.compute_bias(stage.size, stage.size).detach().contiguous()  # [1, H, S, S]; heads stood last
    pads = None if stage.is_full else ~stage.filled.view(stage.blocks, 1, 1, stage.size)
    plan = StagePlan(0, stage.tokens, stage, (Part(0, pads),), bias[0][:, None, :, None, :])
    return [
        Pass(
            block=block_of(block, model),
            plans=[plan],
            entry=Leading() if place else entry,
            query_rotary=None,
            key_rotary=None,
            rows=None,
            keep=keep,
            plain=partial(plain_block, block=block, stage=stage, bias=bias, pads=pads),
            kernels=kernels,
        )
        for place, block in enumerate(model.encoder.block)
    ]


def plain_block(
    x: Float[Tensor, "N D"], block: Any, stage: Stage, bias: Tensor, pads: Bool[Tensor, "X 1 1 S"] | None
) -> Float[Tensor, "N D"]:
    """The block as transformers computes it, in operations that can be differentiated twice."""
    hidden = None if pads is None else torch.zeros_like(pads, dtype=x.dtype).masked_fill(pads, torch.finfo(x.dtype).min)
    with sdpa_kernel(SDPBackend.MATH):
        out = block(packed(x[None], stage)[0], hidden, bias)[0]
    return unpacked(out[None], stage)[0]


def decoded(
    model: PreTrainedModel, ids: Int[Tensor, "rows U"], encoded: Float[Tensor, "X S D"], pads: Bool[Tensor, "X S"]
) -> Float[Tensor, "rows U D"]:
    """The decoder's final states. Rows stand text after text, as many for each."""
    decoder = model.decoder
    x = decoder.embed_tokens(ids)
    size = ids.shape[1]
    bias = decoder.block[0].layer[0].SelfAttention.compute_bias(size, size)
    later = torch.ones(size, size, dtype=torch.bool, device=x.device).triu(1)
    bias = bias.masked_fill(later, float("-inf"))
    centre = encoded.detach().mean(dim=1, keepdim=True)
    centred = encoded - centre
    for block in decoder.block:
        x = x + self_attention(block.layer[0].layer_norm(x), block.layer[0].SelfAttention, bias)
        x = x + cross_attention(block.layer[1].layer_norm(x), block.layer[1].EncDecAttention, centred, centre, pads)
        x = block.layer[2](x)
    return decoder.final_layer_norm(x)


def self_attention(h: Float[Tensor, "R U D"], attention: Any, bias: Tensor) -> Float[Tensor, "R U D"]:
    """Causal attention among a row's label positions."""
    q, k, v = (by_head(linear(h), attention) for linear in (attention.q, attention.k, attention.v))
    weights = softmax(q @ k.transpose(-1, -2) + bias)
    return attention.o((weights @ v).transpose(1, 2).flatten(2))


def cross_attention(
    h: Float[Tensor, "R U D"],
    attention: Any,
    centred: Float[Tensor, "X S D"],
    centre: Float[Tensor, "X 1 D"],
    pads: Bool[Tensor, "X S"],
) -> Float[Tensor, "R U D"]:
    """Attention of all rows of a text to its one encoding, which is projected only where that costs less."""
    queries = h.reshape(centred.shape[0], -1, h.shape[-1])  # [X, choices * U, D]
    q = by_head(attention.q(queries), attention)
    reassociate = queries.shape[1] < attention.key_value_proj_dim
    attend = projected_queries if reassociate else projected_keys
    seen = attend(q, attention, centred, pads).transpose(1, 2).flatten(2)
    return attention.o(seen + attention.v(centre)).view(h.shape)


def projected_queries(
    q: Float[Tensor, "X H n d"], attention: Any, encoded: Float[Tensor, "X S D"], pads: Bool[Tensor, "X S"]
) -> Float[Tensor, "X H n d"]:
    """Cross-attention with both projections moved to the side of the queries.

    Each head's weights meet the queries of all texts in one product (`@` would copy the weights for every text).
    """
    heads, rows, width = q.shape[1], q.shape[2], q.shape[3]
    key_weight, value_weight = (linear.weight.view(heads, width, -1) for linear in (attention.k, attention.v))
    wide = torch.einsum("xhnd,hdk->xhnk", q, key_weight).flatten(1, 2)  # [X, H n, D]
    # [X, S, H n]: so the gradient of `encoded` comes token after token, and adds up without being turned
    scores = (encoded @ wide.transpose(1, 2)).masked_fill(pads[:, :, None], float("-inf"))
    mixed = (softmax(scores, dim=1).transpose(1, 2) @ encoded).unflatten(1, (heads, rows))
    return torch.einsum("xhnk,hdk->xhnd", mixed, value_weight)


def projected_keys(
    q: Float[Tensor, "X H n d"], attention: Any, encoded: Float[Tensor, "X S D"], pads: Bool[Tensor, "X S"]
) -> Float[Tensor, "X H n d"]:
    """Cross-attention as usual: cheaper when there are many label tokens."""
    k, v = (by_head(linear(encoded), attention) for linear in (attention.k, attention.v))
    scores = (q @ k.transpose(-1, -2)).masked_fill(pads[:, None, None, :], float("-inf"))
    return softmax(scores) @ v


def by_head(x: Float[Tensor, "R U hd"], attention: Any) -> Float[Tensor, "R H U d"]:
    """Heads apart."""
    return x.unflatten(2, (-1, attention.key_value_proj_dim)).transpose(1, 2)


def softmax(scores: Tensor, dim: int = -1) -> Tensor:
    """Softmax in at least float32, rounded back."""
    return torch.softmax(scores, dim=dim, dtype=torch.promote_types(scores.dtype, torch.float32)).to(scores.dtype)
