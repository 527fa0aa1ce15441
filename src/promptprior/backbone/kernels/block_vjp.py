"""One pre-norm transformer block with its gradient written by hand, for frozen weights.

    x -> RMS norm -> q, k, v -> rotary -> attention -> o -> + x -> RMS norm -> gate and up -> down -> +

Autograd would keep about thirty tensors per block and run a hundred elementwise kernels; this keeps eight and runs two
dozen, adds residuals inside the products, and never computes a weight gradient. It serves Llama, Mistral and Qwen2
(llama.py) and the encoders of T5 (t5.py). `plain`, the same block as transformers computes it, takes over where a
second derivative is asked for.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.nn import Linear
from torch.utils._pytree import tree_flatten, tree_unflatten

from promptprior.backbone.kernels.attention import LayerPrefix, StagePlan
from promptprior.backbone.kernels.attention_vjp import SavedAttention, attention_backward, attention_forward
from promptprior.backbone.kernels.elementwise import ACTIVATIONS, Kernels, Rotary
from promptprior.notation import Float, Int, Tensor

KEYS = 512  # that a token may see on average: what chunks are cut by


@dataclass(frozen=True, eq=False)
class Block:
    """The weights of one block. `gate` is None where the activation has no gate."""

    norm: Float[Tensor, " D"]
    q: Linear
    k: Linear
    v: Linear
    o: Linear
    mlp_norm: Float[Tensor, " D"]
    gate: Linear | None
    up: Linear
    down: Linear
    eps: float
    activation: str
    heads: int
    kv_heads: int

    @property
    def linears(self) -> tuple[Linear, ...]:
        """Every projection."""
        return tuple(x for x in (self.q, self.k, self.v, self.o, self.gate, self.up, self.down) if x is not None)


@dataclass(frozen=True, eq=False)
class SharedInputs:
    """Which input row each token reads, and which rows want a gradient: always the first ones.

    Before the first attention a token's numbers depend on the token alone. So what several texts repeat is normed and
    projected once, and below the first attention no gradient is carried to tokens that are never trained.

    Without `source` each token is a row of its own, and the first `trained` rows want a gradient (None: all of them).
    With it token t reads row `source[t]`; the rows are P prompts of L tokens, which need a gradient, then the tokens
    of the texts. `prompt_tokens` names the tokens that read a prompt, text after text, and `reads[p, x]` is 1 where
    text x reads prompt p.
    """

    trained: int | None = None
    source: Int[Tensor, " N"] | None = None
    prompt_tokens: Int[Tensor, " XL"] | None = None
    reads: Float[Tensor, "P X"] | None = None

    def spread(self, x: Float[Tensor, "S w"]) -> Float[Tensor, "N w"]:
        """What each token reads."""
        return x if self.source is None else x.index_select(0, self.source)

    def collect(self, gradient: Float[Tensor, "N w"]) -> Float[Tensor, "n w"]:
        """The gradient of the rows that want one, given that of every token: the transpose of `spread`."""
        if self.prompt_tokens is None or self.reads is None:
            return gradient[: self.trained]
        # The sum over the texts that read a prompt, as a product: it adds up in float32 also where half goes in
        of_texts = gradient.index_select(0, self.prompt_tokens).view(self.reads.shape[1], -1)  # [X, L w]
        return (self.reads @ of_texts).view(-1, gradient.shape[1])  # [P L, w]


@dataclass(frozen=True, eq=False)
class BlockRun:
    """What one run through a block needs besides its input.

    `inputs` says how tokens read the input's rows, and which of these need a gradient. `plain` is the block as
    transformers computes it, from what tokens read and the keys and values of `prefix` (where it has one). `keep` says
    whether to keep activations for the backward pass or compute them again. `query_rotary` carries the score's scale;
    `rows` are the tokens whose output is needed.
    """

    block: Block
    plans: list[StagePlan]
    inputs: SharedInputs
    plain: Callable[..., Float[Tensor, "N D"]]
    keep: bool
    kernels: Kernels
    query_rotary: Rotary | None = None
    key_rotary: Rotary | None = None
    rows: Int[Tensor, " V"] | None = None
    prefix: LayerPrefix | None = None


class SavedActivations(NamedTuple):
    """Activations of one block that its backward pass reads."""

    scale: Tensor  # [S, 1], of the first norm
    middle: Tensor  # [V, D], after attention
    middle_scale: Tensor  # [V, 1], of the second norm
    gate: Tensor  # [V, F]
    up: Tensor  # [V, F]
    attention: SavedAttention


def saved_entries(block: Block, keys: int = KEYS) -> int:
    """How many numbers `SavedActivations` and the input hold per token, where a token sees this many keys."""
    widths = [linear.out_features for linear in block.linears if linear not in (block.o, block.down)]
    return 2 * len(block.norm) + sum(widths) + block.heads * keys


def run_blocks(x: Float[Tensor, "S D"], runs: Iterable[BlockRun]) -> Float[Tensor, "V D"]:
    """The output of the last block; each block is one node of autograd's graph."""
    for run in runs:
        x = BlockFunction.apply(x, run, *(run.prefix or ()))  # type: ignore[no-untyped-call]
    return x


class BlockFunction(torch.autograd.Function):
    """A block as one node of autograd's graph."""

    @staticmethod
    def forward(ctx: Any, x: Float[Tensor, "S D"], run: BlockRun, *prefix: Tensor) -> Float[Tensor, "V D"]:
        """The block's output. `prefix` are the run's keys and values, where it has any."""
        out, activations = block_forward(x, run)
        leaves, ctx.structure = tree_flatten(activations if run.keep else ())
        ctx.run, ctx.inputs = run, 1 + len(prefix)
        ctx.save_for_backward(x, *prefix, *leaves)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Float[Tensor, "V D"]) -> tuple[Tensor | None, ...]:
        """The gradients of the input [S, D], of nothing, and of the prefix's keys and values; through `plain` where
        those gradients will themselves be differentiated."""
        run: BlockRun = ctx.run
        x, *prefix = ctx.saved_tensors[: ctx.inputs]
        leaves = list(ctx.saved_tensors[ctx.inputs :])
        if torch.is_grad_enabled():
            out = run.plain(run.inputs.spread(x), *prefix)
            out = out if run.rows is None else out.index_select(0, run.rows)
            wanted = [tensor for tensor in (x, *prefix) if tensor.requires_grad]
            grads = iter(torch.autograd.grad(out, wanted, gradient, create_graph=True))
            first, *others = (next(grads) if tensor.requires_grad else None for tensor in (x, *prefix))
            return (first, None, *others)
        activations = tree_unflatten(leaves, ctx.structure) if run.keep else block_forward(x, run)[1]

        # The forward pass read backwards: of y = x W' the gradient is dx = dy W; a residual's is added in the norm's
        block, collect, kernels = run.block, run.inputs.collect, run.kernels
        inner = gradient @ block.down.weight  # [V, F]
        if block.gate is None:
            h = ACTIVATIONS[block.activation][1](inner, activations.up) @ block.up.weight  # [V, D]
        else:
            up, gate = kernels.activate_backward(inner, activations.gate, activations.up, block.activation)
            h = (up @ block.up.weight).addmm_(gate, block.gate.weight)
        middle = kernels.rms_backward(h, activations.middle, block.mlp_norm, activations.middle_scale, gradient)

        tokens = run.plans[-1].end
        attended = middle @ block.o.weight  # [V, H g d]
        if run.rows is not None:  # tokens whose output was not needed get no gradient
            attended = attended.new_zeros(tokens, attended.shape[1]).index_copy_(0, run.rows, attended)
        of_output = _by_head(attended, block.heads, block.kv_heads)
        q, k, v, of_prefix = attention_backward(of_output, activations.attention, run.plans)
        if not ctx.needs_input_grad[0]:  # below the first prefix nothing is trained
            return (None, None, *(of_prefix or ()))

        h = collect(_by_token(kernels.rotate(q, run.query_rotary, back=True))) @ block.q.weight  # [n, D]
        h.addmm_(collect(_by_token(kernels.rotate(k[:, :, None], run.key_rotary, back=True))), block.k.weight)
        h.addmm_(collect(_by_token(v[:, :, None])), block.v.weight)
        if run.rows is not None:
            middle = middle.new_zeros(tokens, middle.shape[1]).index_copy_(0, run.rows, middle)
        n = len(h)  # rows that want no gradient get zero
        trained = kernels.rms_backward(h, x[:n], block.norm, activations.scale[:n], collect(middle))
        trained = trained if n == len(x) else torch.cat([trained, trained.new_zeros(len(x) - n, x.shape[1])])
        return (trained, None, *(of_prefix or ()))


def block_forward(x: Float[Tensor, "S D"], run: BlockRun) -> tuple[Float[Tensor, "V D"], SavedActivations]:
    """The block's output and what its gradient needs."""
    block, spread, kernels = run.block, run.inputs.spread, run.kernels
    h, scale = kernels.rms(x, block.norm, block.eps)  # [S, D], [S, 1]
    q = kernels.rotate(_by_head(spread(block.q(h)), block.heads, block.kv_heads), run.query_rotary)  # [H, N, g, d]
    k = kernels.rotate(_by_head(spread(block.k(h)), block.kv_heads, block.kv_heads), run.key_rotary)[
        :, :, 0
    ]  # [H, N, d]
    v = _by_head(spread(block.v(h)), block.kv_heads, block.kv_heads)[:, :, 0].contiguous()
    out, attention = attention_forward(q, k, v, run.plans, run.prefix)
    attended, residual = _by_token(out), spread(x)  # [N, H g d], [N, D]
    if run.rows is not None:
        attended, residual = attended.index_select(0, run.rows), residual.index_select(0, run.rows)
    middle = _add_product(residual, attended, block.o)  # [V, D]
    h, middle_scale = kernels.rms(middle, block.mlp_norm, block.eps)
    up = block.up(h)  # [V, F]
    gate = up if block.gate is None else block.gate(h)
    inner = kernels.activate(gate, None if block.gate is None else up, block.activation)
    activations = SavedActivations(scale, middle, middle_scale, gate, up, attention)
    return _add_product(middle, inner, block.down), activations


def _by_head(x: Float[Tensor, "N hd"], heads: int, kv_heads: int) -> Float[Tensor, "H N g d"]:
    """A view with key heads in front; queries that share a key head stand together."""
    return x.view(len(x), kv_heads, heads // kv_heads, -1).permute(1, 0, 2, 3)


def _by_token(x: Float[Tensor, "H N g d"]) -> Float[Tensor, "N hd"]:
    """The inverse of `_by_head`."""
    return x.permute(1, 0, 2, 3).reshape(x.shape[1], -1)


def _add_product(x: Float[Tensor, "N D"], inner: Float[Tensor, "N F"], linear: Linear) -> Float[Tensor, "N D"]:
    """x + linear(inner), the addition inside the product."""
    x = x if linear.bias is None else x + linear.bias
    return torch.addmm(x, inner, linear.weight.t())
