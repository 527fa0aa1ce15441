"""What hand-written blocks do between matrix products: norms, rotary positions, activations, each with its gradient.

They run as they are, or each fused by torch.compile into one pass over its activations. Softmax is not among them:
what torch compiles is slower than its own kernel on a CPU.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch.nn import functional as F

from promptprior.notation import Float, Tensor

Rotary = tuple[Float[Tensor, "N half"], Float[Tensor, "N half"]]  # cosines and sines
gelu_tanh = partial(F.gelu, approximate="tanh")  # as T5 1.1 has it
gelu_tanh_backward = partial(torch.ops.aten.gelu_backward, approximate="tanh")


def rms(x: Float[Tensor, "N D"], weight: Float[Tensor, " D"], eps: float) -> tuple[Tensor, Float[Tensor, "N 1"]]:
    """The norm y = x s w with s = 1 / sqrt(mean(x^2) + eps), rounded where transformers rounds; and s."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = torch.linalg.vecdot(wide, wide)[:, None].div_(x.shape[-1]).add_(eps).rsqrt_()  # s [N, 1]
    return (wide * scale).to(x.dtype).mul_(weight), scale


def rms_backward(
    gradient: Float[Tensor, "N D"], x: Tensor, weight: Tensor, scale: Float[Tensor, "N 1"], residual: Tensor
) -> Float[Tensor, "N D"]:
    """The gradient [N, D] of the norm's input, plus the residual's: `s w dy - x s^3 sum(w dy x) / D + residual`."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    weighted = (gradient * weight).to(wide.dtype)  # w dy
    along = torch.linalg.vecdot(weighted, wide)[:, None] * scale.pow(3).div_(-x.shape[-1])
    return weighted.mul_(scale).addcmul_(wide, along).add_(residual).to(x.dtype)


# By name: the activation, and its gradient [*n] from (gradient, input). ReLU's is in place and takes its output as well
# as its input: both are positive where it passes
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "silu": (F.silu, torch.ops.aten.silu_backward),
    "gelu_new": (gelu_tanh, gelu_tanh_backward),
    "relu": (F.relu, lambda dy, x: torch.ops.aten.threshold_backward.grad_input(dy, x, 0, grad_input=dy)),
}


def activate(gate: Float[Tensor, "V F"], up: Float[Tensor, "V F"] | None, activation: str) -> Float[Tensor, "V F"]:
    """What enters the last product of a feed-forward layer: act(gate) * up, or act(gate) without a gate (`up` None).
    ReLU without a gate overwrites its input, which its gradient can do without."""
    if up is None and activation == "relu":
        return gate.relu_()
    inner = ACTIVATIONS[activation][0](gate)
    return inner if up is None else inner.mul_(up)


def activate_backward(
    inner: Float[Tensor, "V F"], gate: Float[Tensor, "V F"], up: Float[Tensor, "V F"], activation: str
) -> tuple[Float[Tensor, "V F"], Float[Tensor, "V F"]]:
    """The gradients of `up` and `gate`: act(gate) * inner and act'(gate) * inner * up."""
    act, act_backward = ACTIVATIONS[activation]
    return act(gate) * inner, act_backward(inner * up, gate)


def rotate(x: Float[Tensor, "H N g d"], rotary: Rotary | None, back: bool = False) -> Float[Tensor, "H N g d"]:
    """Rotary positions: each pair (x_i, x_{i + d/2}) turned by its angle, written in head order in the same pass.
    `back`: the transpose, which turns by the opposite angle and writes token after token."""
    if rotary is None:
        return x if back else x.contiguous()
    cos, sin = rotary[0][:, None], rotary[1][:, None]  # [N, 1, d / 2]
    (a, b), sin = x.chunk(2, dim=-1), -sin if back else sin
    if torch.compiler.is_compiling():  # which fuses best without buffers
        out = torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
        return out.permute(1, 0, 2, 3).contiguous().permute(1, 0, 2, 3) if back else out.contiguous()
    out = torch.empty_like(x.permute(1, 0, 2, 3) if back else x, memory_format=torch.contiguous_format)
    out = out.permute(1, 0, 2, 3) if back else out
    out_a, out_b = out.chunk(2, dim=-1)
    torch.mul(a, cos, out=out_a).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=out_b).addcmul_(a, sin)
    return out


@dataclass(frozen=True)
class Kernels:
    """The elementwise work between a block's products."""

    rms: Callable[..., tuple[Tensor, Tensor]] = rms
    rms_backward: Callable[..., Tensor] = rms_backward
    activate: Callable[..., Tensor] = activate
    activate_backward: Callable[..., tuple[Tensor, Tensor]] = activate_backward
    rotate: Callable[..., Tensor] = rotate


EAGER = Kernels()


@cache
def compile_kernels(backend: str | Callable[..., Any] = "inductor") -> Kernels:
    """The same, each fused by torch.compile: once for all row counts, since every size is left open."""
    fuse: Callable[..., Any] = partial(torch.compile, dynamic=True, backend=backend)
    return Kernels(*map(fuse, vars(EAGER).values()))
