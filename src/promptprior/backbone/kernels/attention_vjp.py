"""Attention over a packed batch with its gradient written by hand: first order only, nothing copied to be shared.

The same mathematics as `attend`, which stays the definition (any family, differentiable twice). Here the
plans, and so the masks, are made once per pass instead of once per layer, and the backward pass is five products and
one fused softmax per stage. Long texts see their own past through a fused kernel (long_attention.py).

    S = Q K' + bias      W = softmax(S)      O = W V
    dW = dO V'      dS = W (dW - rowsum(dW W))      dQ = dS K      dK = dS' Q      dV = W' dO
"""

from itertools import accumulate
from typing import NamedTuple

import torch

from promptprior.backbone.kernels.attention import LayerPrefix, Part, StagePlan, unpack
from promptprior.backbone.kernels.long_attention import attends_long, causal, causal_backward
from promptprior.notation import Float, Tensor

Blocks = Float[Tensor, "H _ _ d"]  # of one stage: [H, B, S, d]
LEAST_COLUMNS = 16  # of a softmax on a CPU: torch takes shorter rows number by number, ten times slower


class SavedAttention(NamedTuple):
    """What the backward pass reads, stage by stage: blocks of queries, keys and values, and the softmax weights. The
    keys and values of a prefix stand behind those of the last stage. Of a stage with long texts the weights are those
    of what is not its own past, and `wholes` has its output and the log of its sum of exponentials."""

    queries: list[Tensor]
    keys: list[Tensor]
    values: list[Tensor]
    weights: list[Tensor]
    wholes: list[tuple[Tensor, Tensor] | None]


def attention_forward(
    q: Float[Tensor, "H N g d"],
    k: Float[Tensor, "H N d"],
    v: Float[Tensor, "H N d"],
    plans: list[StagePlan],
    prefix: LayerPrefix | None = None,
) -> tuple[Float[Tensor, "H N g d"], SavedAttention]:
    """Attention of every stage, behind the prefix that plans have seen; `q` is scaled already."""
    before: tuple[list[Tensor], list[Tensor]] = ([], []) if prefix is None else ([prefix[0]], [prefix[1]])
    keys, values = ([*(p.blocks(x) for p in plans), *own] for x, own in zip((k, v), before, strict=True))
    activations = SavedAttention([p.blocks(q) for p in plans], keys, values, [], [])
    outputs = []
    for plan, query in zip(plans, activations.queries, strict=True):
        past = plan.parts[-1] if attends_long(plan, query) else None
        parts = plan.parts if past is None else plan.parts[:-1]
        scores = []
        for part in parts:
            key = _part_blocks(part, activations.keys)
            score = (_product_rows(query, key) @ key.transpose(-1, -2)).view(*query.shape[:4], -1)  # [H, B, S, g, K]
            if plan.bias is not None:
                score += plan.bias
            scores.append(score if part.hidden is None else score.masked_fill_(part.hidden, float("-inf")))
        all_scores = _joined(scores, query, float("-inf"))
        out, log_sum = None, None
        if past is None:
            weights = torch.softmax(all_scores.flatten(2, 3), dim=-1)  # [H, B, S g, K], over all parts at once
        else:
            own, of_own = causal(query, activations.keys[past.source], activations.values[past.source])
            wide = all_scores.to(of_own.dtype)
            log_sum = torch.logaddexp(of_own, wide.logsumexp(-1))  # [H, B, S, g], of all there is
            weights = (wide - log_sum[..., None]).exp_().to(query.dtype).flatten(2, 3)
            out = own * (of_own - log_sum).exp_()[..., None].to(own.dtype)
        for part, weight in zip(parts, _cut(weights, scores), strict=True):
            value = _part_blocks(part, activations.values)
            more = _product_rows(weight, value) @ value
            out = more if out is None else out.add_(more.view(out.shape))
        assert out is not None
        outputs.append(out.view(query.shape))
        activations.weights.append(weights)
        activations.wholes.append(None if log_sum is None else (outputs[-1], log_sum))
    return _as_tokens(outputs, plans), activations


def attention_backward(
    gradient: Float[Tensor, "H N g d"], activations: SavedAttention, plans: list[StagePlan]
) -> tuple[Float[Tensor, "H N g d"], Float[Tensor, "H N d"], Float[Tensor, "H N d"], LayerPrefix | None]:
    """The gradients of queries, keys and values, and of the prefix where there is one, from that of the output."""
    query_grads = []
    key_grads: list[Tensor | None] = [None] * len(activations.keys)
    value_grads: list[Tensor | None] = [None] * len(activations.values)
    for plan, query, weights, whole in zip(
        plans, activations.queries, activations.weights, activations.wholes, strict=True
    ):
        parts = plan.parts if whole is None else plan.parts[:-1]
        out = plan.blocks(gradient)  # dO [H, B, S, g, d]
        if not plan.stage.is_full:  # pads repeat a token; as gradients they are zero
            out.mul_(plan.stage.filled.view(plan.stage.blocks, -1, 1, 1))

        # dW, then dS = W (dW - rowsum(dW W)) in one kernel
        pieces = []
        for part in parts:
            value = _part_blocks(part, activations.values)
            piece = _product_rows(out, value) @ value.transpose(-1, -2)
            pieces.append(piece.view(*weights.shape[:3], -1))
        weight_grad = _joined(pieces, weights, 0.0)  # [H, B, S g, K]
        query_grad: Tensor | None = None
        if whole is None:
            score_grad = torch.ops.aten._softmax_backward_data(weight_grad, weights, -1, weights.dtype)
        else:
            along = torch.linalg.vecdot(*(x.to(whole[1].dtype) for x in (out, whole[0])))  # [H, B, S, g]
            score_grad = weights * (weight_grad - along.flatten(2, 3)[..., None]).to(weights.dtype)
            past = plan.parts[-1]
            keys_and_values = activations.keys[past.source], activations.values[past.source]
            query_grad, key_grad, value_grad = causal_backward(out, query, *keys_and_values, whole)
            _add(key_grads, past, activations.keys, key_grad)
            _add(value_grads, past, activations.values, value_grad)

        # dQ sums over parts; dK and dV go back to the stage whose keys they were
        for part, weight, score in zip(parts, _cut(weights, pieces), _cut(score_grad, pieces), strict=True):
            key = _part_blocks(part, activations.keys)
            score, weight = (_turnable(_product_rows(x, key)) for x in (score, weight))
            more = score @ key
            query_grad = more if query_grad is None else query_grad.add_(more.view(query_grad.shape))
            key_grad = score.transpose(-1, -2) @ _product_rows(query, key)
            value_grad = weight.transpose(-1, -2) @ _product_rows(out, key)
            _add(key_grads, part, activations.keys, key_grad)
            _add(value_grads, part, activations.values, value_grad)
        assert query_grad is not None
        query_grads.append(query_grad.view(query.shape))
    has_prefix = len(key_grads) > len(plans)
    of_q, of_k, of_v = (
        _as_tokens([x for x in grads[: len(plans)] if x is not None], plans)  # each stage sees itself: none is None
        for grads in (query_grads, key_grads, value_grads)
    )
    of_prefix = (key_grads[-1], value_grads[-1]) if has_prefix else None
    return of_q, of_k, of_v, of_prefix  # type: ignore[return-value]  # nor is that of a prefix


def _joined(pieces: list[Tensor], like: Float[Tensor, "*n _"], fill: float) -> Float[Tensor, "*n K"]:
    """Pieces side by side; without any, no columns. Where a softmax wants more columns, they hold `fill`."""
    missing = LEAST_COLUMNS - sum(piece.shape[-1] for piece in pieces)
    if pieces and missing > 0 and like.is_cpu:
        pieces = [*pieces, pieces[0].new_full((*pieces[0].shape[:-1], missing), fill)]
    return pieces[0] if len(pieces) == 1 else torch.cat([like[..., :0], *pieces], dim=-1)


def _cut(joined: Float[Tensor, "*n K"], pieces: list[Tensor]) -> list[Tensor]:
    """What was joined, as pieces of these widths; columns behind them are left out."""
    ends = accumulate(piece.shape[-1] for piece in pieces)
    return [joined[..., end - piece.shape[-1] : end] for end, piece in zip(ends, pieces, strict=True)]


def _add(totals: list[Tensor | None], part: Part, blocks: list[Blocks], gradient: Blocks) -> None:
    """Add the gradient of a part's keys (or values) to that of the stage whose they are; the first one is the total."""
    total = totals[part.source]
    if part.prompt_of is not None:
        total = torch.zeros_like(blocks[part.source]) if total is None else total
        totals[part.source] = total.index_add_(1, part.prompt_of, gradient)
    else:
        totals[part.source] = gradient if total is None else total.add_(gradient)


def _part_blocks(part: Part, blocks: list[Blocks]) -> Blocks:
    """A part's keys (or values), among those of all stages."""
    own = blocks[part.source]
    return own if part.prompt_of is None else own.index_select(1, part.prompt_of)


def _product_rows(x: Tensor, keys: Blocks) -> Float[Tensor, "H Bk n last"]:
    """Query blocks that share keys as the rows of one product."""
    return x.reshape(x.shape[0], keys.shape[1], -1, x.shape[-1])


def _turnable(x: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """A part of a wider table as the transposed operand of a product. In half precision on a CPU the product would copy
    it, and more slowly than here."""
    return x.contiguous() if x.is_cpu and x.itemsize == 2 else x


def _as_tokens(blocks: list[Tensor], plans: list[StagePlan]) -> Float[Tensor, "H N *g d"]:
    """The blocks of all stages as the packed sequence."""
    pieces = [unpack(x, plan.stage) for plan, x in zip(plans, blocks, strict=True)]
    return torch.cat(pieces, dim=1) if len(pieces) > 1 else pieces[0]
