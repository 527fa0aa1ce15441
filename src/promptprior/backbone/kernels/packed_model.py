"""Attention over a packed batch as transformers calls it: one function serves every family that uses its interface."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.modeling_utils import PreTrainedModel

from promptprior.backbone.kernels.attention import NO_PREFIX, LayerPrefix, StagePlan, attend, causal_plans
from promptprior.backbone.kernels.attention_vjp import attention_backward, attention_forward
from promptprior.backbone.kernels.long_attention import attends_long
from promptprior.backbone.kernels.packing import Layout
from promptprior.notation import Float, Tensor

NAME = "promptprior_packed"
LAYOUT: ContextVar[tuple[Layout, Mapping[int, LayerPrefix]]] = ContextVar("layout")  # with the prefix of each layer


class LongAttention(torch.autograd.Function):
    """`attend` for long texts, whose scores are too many to keep: with the gradient that is written by hand, but where
    that will itself be differentiated."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, plans: list[StagePlan], *prefix: Tensor) -> Tensor:
        """The output [H, N, g, d], from q [H, N, g, d], k and v [H, N, d] and the layer's prefix."""
        out, activations = attention_forward(q, k, v, plans, (prefix[0], prefix[1]) if prefix else None)
        leaves, ctx.structure = tree_flatten(activations)
        ctx.plans, ctx.inputs = plans, 3 + len(prefix)
        ctx.save_for_backward(q, k, v, *prefix, *leaves)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of q, k and v [H, N, (g,) d], of nothing, and of the prefix's keys and values."""
        q, k, v, *prefix = inputs = ctx.saved_tensors[: ctx.inputs]
        if torch.is_grad_enabled():
            out = attend(q, k, v, ctx.plans, (prefix[0], prefix[1]) if prefix else None)
            wanted = [x for x in inputs if x.requires_grad]
            found = iter(torch.autograd.grad(out, wanted, gradient, create_graph=True))
            of_q, of_k, of_v, *of_prefix = (next(found) if x.requires_grad else None for x in inputs)
            return (of_q, of_k, of_v, None, *of_prefix)
        activations = tree_unflatten(list(ctx.saved_tensors[ctx.inputs :]), ctx.structure)
        *own, of_both = attention_backward(gradient, activations, ctx.plans)
        return (*own, None, *(of_both or ()))


def packed_attention(
    module: torch.nn.Module,
    query: Float[Tensor, "1 heads N d"],
    key: Float[Tensor, "1 H N d"],
    value: Float[Tensor, "1 H N d"],
    attention_mask: Tensor | None,  # noqa: ARG001  the layout says who sees whom
    **options: Any,
) -> tuple[Float[Tensor, "1 N heads d"], None]:
    """Attention of the packed sequence, of shape [1, N, heads, d]: each stage over the keys it may see, those of the
    layer's prefix included.

    `heads` query heads share H key heads. Of the interface's options it reads scaling, sliding_window and softcap.
    Raises NotImplementedError for score terms it does not know (attention sinks, learned position biases): the engine
    then falls back to plain concatenation.
    """
    if options.get("s_aux") is not None or options.get("position_bias") is not None:
        raise NotImplementedError("attention sinks and position biases have no packed form")
    (layout, prefixes), softcap, scaling = LAYOUT.get(), options.get("softcap"), options.get("scaling")
    prefix = prefixes.get(cast(int, module.layer_idx)) if prefixes else None
    heads, kv_heads, width = query.shape[1], key.shape[1], query.shape[-1]
    scaling = scaling if scaling is not None else width**-0.5
    # [H, N, g, d]: the g queries that share a key head stand together
    queries = query[0].view(kv_heads, heads // kv_heads, -1, width).transpose(1, 2)
    plans = causal_plans(layout, options.get("sliding_window"), prefix is not None)
    if softcap is None and any(attends_long(plan, query) for plan in plans):
        out = LongAttention.apply(queries * scaling, key[0], value[0], plans, *(prefix or ()))  # type: ignore[no-untyped-call]
    else:
        out = attend(queries * scaling, key[0], value[0], plans, prefix, softcap)
    return out.permute(1, 0, 2, 3).reshape(1, -1, heads, width), None


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, lambda *_, **__: None)


@contextmanager
def packed_model(
    model: PreTrainedModel, layout: Layout, prefixes: Mapping[int, LayerPrefix] = NO_PREFIX
) -> Iterator[None]:
    """Run the model's attention on a packed sequence, behind the prefixes of its layers; the attention it was loaded
    with is restored after."""
    before = model.config._attn_implementation
    token = LAYOUT.set((layout, prefixes))
    model.config._attn_implementation = NAME
    try:
        yield
    finally:
        model.config._attn_implementation = before
        LAYOUT.reset(token)
