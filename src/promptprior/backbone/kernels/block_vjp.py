"""One pre-norm transformer block with its gradient written by hand, for frozen weights.

    x -> RMS norm -> q, k, v -> rotary -> attention -> o -> + x -> RMS norm -> gate and up -> down -> +

Autograd would keep some thirty tensors per block and run a hundred elementwise kernels; this keeps eight and runs
two dozen, adds residuals inside the products, and never computes a weight gradient. It serves Llama, Mistral and
Qwen2 (llama.py) and the encoders of T5 (t5.py). `plain`, the same block as transformers computes it, takes over where a
second derivative is asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch.nn import Linear
from torch.nn import functional as F

from promptprior.backbone.kernels.attention_vjp import Attended, StagePlan, attention_backward, attention_forward
from promptprior.backbone.kernels.shared_inputs import Entry, grown
from promptprior.notation import Float, Int, Tensor

Rotary = tuple[Float[Tensor, "N half"], Float[Tensor, "N half"]]


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
class Pass:
    """What one run through a block needs besides its input.

    `entry` says how tokens read the input's rows, and which of these want a gradient; `query_rotary` carries the
    score's scale; `rows` are the tokens whose output is needed (None: all); `keep` says whether to keep activations for
    the backward pass or compute them again; `plain` is the block as transformers computes it, from what tokens read.
    """

    block: Block
    plans: list[StagePlan]
    entry: Entry
    query_rotary: Rotary | None
    key_rotary: Rotary | None
    rows: Int[Tensor, " V"] | None
    keep: bool
    plain: Callable[[Float[Tensor, "N D"]], Float[Tensor, "N D"]]
    kernels: "Kernels"


@dataclass(frozen=True)
class Kept:
    """Activations of one block that its backward pass reads."""

    scale: Float[Tensor, "N 1"]
    middle: Float[Tensor, "V D"]
    middle_scale: Float[Tensor, "V 1"]
    gate: Float[Tensor, "V F"]
    up: Float[Tensor, "V F"]
    attended: Attended

    def tensors(self) -> list[Tensor]:
        """All tensors, in order."""
        return [self.scale, self.middle, self.middle_scale, self.gate, self.up, *self.attended.tensors()]

    @classmethod
    def of(cls, tensors: list[Tensor]) -> "Kept":
        """The inverse of `tensors`."""
        scale, middle, middle_scale, gate, up, *attended = tensors
        return cls(scale, middle, middle_scale, gate, up, Attended.of(attended))


def kept_entries(block: Block, keys: int = 512) -> int:
    """How many numbers `Kept` and the input hold per token, where a token sees this many keys."""
    widths = [linear.out_features for linear in block.linears if linear not in (block.o, block.down)]
    return 2 * len(block.norm) + sum(widths) + block.heads * keys


def run_block(x: Float[Tensor, "S D"], work: Pass) -> Float[Tensor, "V D"]:
    """The block's output, as one node of autograd's graph."""
    return HandWritten.apply(x, work)  # type: ignore[no-untyped-call]


class HandWritten(torch.autograd.Function):
    """A block as one node of the graph."""

    @staticmethod
    def forward(ctx: Any, x: Float[Tensor, "S D"], work: Pass) -> Float[Tensor, "V D"]:
        """The block's output."""
        out, kept = block_forward(x, work)
        ctx.work = work
        ctx.save_for_backward(x, *(kept.tensors() if work.keep else ()))
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Float[Tensor, "V D"]) -> tuple[Float[Tensor, "S D"], None]:
        """The gradient of the input; through `plain` where that gradient will itself be differentiated."""
        x, *tensors = ctx.saved_tensors
        if torch.is_grad_enabled():
            return plain_gradient(x, gradient, ctx.work), None
        kept = Kept.of(tensors) if tensors else block_forward(x, ctx.work)[1]
        return block_backward(gradient, x, kept, ctx.work), None


def plain_gradient(x: Tensor, gradient: Tensor, work: Pass) -> Tensor:
    """The input's gradient as a differentiable function of input and output gradient."""
    out = work.plain(work.entry.spread(x))
    out = out if work.rows is None else out.index_select(0, work.rows)
    return torch.autograd.grad(out, x, gradient, create_graph=True)[0]


def block_forward(x: Float[Tensor, "S D"], work: Pass) -> tuple[Float[Tensor, "V D"], Kept]:
    """The block's output and what its gradient needs."""
    block, spread, kernels = work.block, work.entry.spread, work.kernels
    h, scale = kernels.rms(x, block.norm, block.eps)
    q = turned(by_head(spread(block.q(h)), block.heads, block.kv_heads), work.query_rotary)
    k = turned(by_head(spread(block.k(h)), block.kv_heads, block.kv_heads), work.key_rotary)[:, :, 0]
    v = by_head(spread(block.v(h)), block.kv_heads, block.kv_heads)[:, :, 0].contiguous()
    seen, attended = attention_forward(q, k, v, work.plans)
    seen = taken(by_token(seen), work.rows)
    middle = added_product(taken(spread(x), work.rows), seen, block.o)
    h, middle_scale = kernels.rms(middle, block.mlp_norm, block.eps)
    up = block.up(h)
    gate = up if block.gate is None else block.gate(h)
    inner = kernels.activated(gate, None if block.gate is None else up, block.activation)
    return added_product(middle, inner, block.down), Kept(scale, middle, middle_scale, gate, up, attended)


def block_backward(
    gradient: Float[Tensor, "V D"], x: Float[Tensor, "S D"], kept: Kept, work: Pass
) -> Float[Tensor, "S D"]:
    """The gradient of the block's input, zero for rows that want none."""
    block, gathered, kernels = work.block, work.entry.gathered, work.kernels
    h = mlp_backward(gradient, kept, block, kernels)
    middle = kernels.rms_backward(h, kept.middle, block.mlp_norm, kept.middle_scale, gradient)
    tokens = work.plans[-1].end
    seen = placed(middle @ block.o.weight, work.rows, tokens)
    q, k, v = attention_backward(by_head(seen, block.heads, block.kv_heads), kept.attended, work.plans)
    h = gathered(by_token(turned_back(q, work.query_rotary))) @ block.q.weight
    h.addmm_(gathered(by_token(turned_back(k[:, :, None], work.key_rotary))), block.k.weight)
    h.addmm_(gathered(by_token(v[:, :, None])), block.v.weight)
    residual, n = gathered(placed(middle, work.rows, tokens)), len(h)
    return grown(kernels.rms_backward(h, x[:n], block.norm, kept.scale[:n], residual), len(x))


def mlp_backward(gradient: Float[Tensor, "V D"], kept: Kept, block: Block, kernels: "Kernels") -> Float[Tensor, "V D"]:
    """The gradient of what enters the feed-forward layer."""
    inner = gradient @ block.down.weight
    if block.gate is None:
        return ACTIVATIONS[block.activation][1](inner, kept.up) @ block.up.weight
    up, gate = kernels.activated_backward(inner, kept.gate, kept.up, block.activation)
    return (up @ block.up.weight).addmm_(gate, block.gate.weight)


def rms(x: Float[Tensor, "N D"], weight: Float[Tensor, " D"], eps: float) -> tuple[Tensor, Float[Tensor, "N 1"]]:
    """x / sqrt(mean(x^2) + eps) * weight, rounded where transformers rounds, and the factor."""
    wide = x.to(wider(x.dtype))
    scale = torch.linalg.vecdot(wide, wide)[:, None].div_(x.shape[-1]).add_(eps).rsqrt_()
    return (wide * scale).to(x.dtype).mul_(weight), scale


def rms_backward(
    gradient: Float[Tensor, "N D"], x: Tensor, weight: Tensor, scale: Float[Tensor, "N 1"], residual: Tensor
) -> Float[Tensor, "N D"]:
    """The gradient of the norm's input, plus the residual's."""
    wide = x.to(wider(x.dtype))
    raised = (gradient * weight).to(wide.dtype)
    along = torch.linalg.vecdot(raised, wide)[:, None] * scale.pow(3).div_(-x.shape[-1])
    return raised.mul_(scale).addcmul_(wide, along).add_(residual).to(x.dtype)


def wider(dtype: torch.dtype) -> torch.dtype:
    """What norms compute in: at least float32."""
    return torch.promote_types(dtype, torch.float32)


def by_head(x: Float[Tensor, "N hd"], heads: int, kv_heads: int) -> Float[Tensor, "H N g d"]:
    """A view with key heads in front; queries that share a key head stand together."""
    return x.view(len(x), kv_heads, heads // kv_heads, -1).permute(1, 0, 2, 3)


def by_token(x: Float[Tensor, "H N g d"]) -> Float[Tensor, "N hd"]:
    """The inverse of `by_head`."""
    return x.permute(1, 0, 2, 3).reshape(x.shape[1], -1)


def turned(x: Float[Tensor, "H N g d"], rotary: Rotary | None) -> Float[Tensor, "H N g d"]:
    """Rotary positions, written in head order in the same pass."""
    return (
        x.contiguous() if rotary is None else rotated(x, rotary, torch.empty(x.shape, dtype=x.dtype, device=x.device))
    )


def turned_back(x: Float[Tensor, "H N g d"], rotary: Rotary | None) -> Float[Tensor, "H N g d"]:
    """The transpose of `turned`, laid out token after token."""
    if rotary is None:
        return x
    out = torch.empty_like(x.permute(1, 0, 2, 3), memory_format=torch.contiguous_format).permute(1, 0, 2, 3)
    return rotated(x, (rotary[0], -rotary[1]), out)


def rotated(x: Float[Tensor, "H N g d"], rotary: Rotary, out: Tensor) -> Tensor:
    """Each pair (x_i, x_{i + d/2}) turned by its angle, into `out`."""
    cos, sin = rotary[0][:, None], rotary[1][:, None]
    (a, b), (first, second) = x.chunk(2, dim=-1), out.chunk(2, dim=-1)
    torch.mul(a, cos, out=first).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=second).addcmul_(a, sin)
    return out


def added_product(x: Float[Tensor, "N D"], inner: Float[Tensor, "N F"], linear: Linear) -> Float[Tensor, "N D"]:
    """x + linear(inner), the addition inside the product."""
    x = x if linear.bias is None else x + linear.bias
    return torch.addmm(x, inner, linear.weight.t())


def taken(x: Float[Tensor, "N D"], rows: Int[Tensor, " V"] | None) -> Float[Tensor, "V D"]:
    """Some rows; all of them for None."""
    return x if rows is None else x.index_select(0, rows)


def placed(x: Float[Tensor, "V D"], rows: Int[Tensor, " V"] | None, count: int) -> Float[Tensor, "N D"]:
    """The transpose of `taken`, for rows that differ."""
    return x if rows is None else x.new_zeros(count, x.shape[1]).index_copy_(0, rows, x)


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU as T5 1.1 has it."""
    return F.gelu(x, approximate="tanh")


def gelu_tanh_backward(gradient: Tensor, x: Tensor) -> Tensor:
    """Its gradient."""
    return torch.ops.aten.gelu_backward(gradient, x, approximate="tanh")


def relu_backward(gradient: Tensor, x: Tensor) -> Tensor:
    """The gradient of ReLU, in place. `x` may be its input or its output: both are positive where it passes."""
    return torch.ops.aten.threshold_backward.grad_input(gradient, x, 0, grad_input=gradient)


ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "silu": (F.silu, torch.ops.aten.silu_backward),
    "gelu_new": (gelu_tanh, gelu_tanh_backward),
    "relu": (F.relu, relu_backward),
}


def activated(gate: Float[Tensor, "V F"], up: Float[Tensor, "V F"] | None, activation: str) -> Float[Tensor, "V F"]:
    """What enters the last product of a feed-forward layer, with or without a gate.

    ReLU without a gate overwrites its input, which its gradient can do without.
    """
    if up is None and activation == "relu":
        return gate.relu_()
    inner = ACTIVATIONS[activation][0](gate)
    return inner if up is None else inner.mul_(up)


def activated_backward(
    inner: Float[Tensor, "V F"], gate: Float[Tensor, "V F"], up: Float[Tensor, "V F"], activation: str
) -> tuple[Float[Tensor, "V F"], Float[Tensor, "V F"]]:
    """The gradients of `up` and `gate`."""
    act, act_backward = ACTIVATIONS[activation]
    return act(gate) * inner, act_backward(inner * up, gate)


@dataclass(frozen=True)
class Kernels:
    """The elementwise work between a block's products."""

    rms: Callable[..., tuple[Tensor, Tensor]] = rms
    rms_backward: Callable[..., Tensor] = rms_backward
    activated: Callable[..., Tensor] = activated
    activated_backward: Callable[..., tuple[Tensor, Tensor]] = activated_backward


EAGER = Kernels()


@cache
def compiled(backend: str | Callable[..., Any] = "inductor") -> Kernels:
    """The same, each fused by torch.compile: once for all row counts, since every size is left open."""
    fuse: Callable[..., Any] = partial(torch.compile, dynamic=True, backend=backend)
    return Kernels(fuse(rms), fuse(rms_backward), fuse(activated), fuse(activated_backward))
