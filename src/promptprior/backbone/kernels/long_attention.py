"""Attention of long texts to themselves without a table of scores, merged with what they see of their prompts.

A text's queries see two sets of keys: its prompt's (few, with the other texts' queries in dense products) and its own
past (many, by a fused kernel whose memory is linear). Each part p gives an output O_p and the logarithm of its sum of
exponentials, l_p; with l = log(sum of exp(l_p)) the whole is

    O = sum over parts of exp(l_p - l) O_p

exactly (as in ring attention, Liu et al. 2023, arXiv 2310.01889). Backwards each part needs only O and l of the whole:

    W_p = exp(S_p - l)      dS_p = W_p (dO V_p' - rowsum(dO O))

so the fused kernel's own backward pass, given O and l in place of O_p and l_p, gives this part's gradients.
"""

from typing import Any

import torch

from promptprior.backbone.kernels.attention import StagePlan
from promptprior.notation import Float, Tensor

LONG = 384  # slots of a text from which on it is faster on a CPU with AMX (docs/performance.md)
DEVICES = {"cpu"}  # where the kernels below were tested


def attends_long(plan: StagePlan, x: Float[Tensor, "*n"]) -> bool:
    """Whether a stage's own past, the last of its parts, goes through the fused kernel where x lies."""
    return plan.parts[-1].is_past and plan.bias is None and plan.stage.size >= LONG and x.device.type in DEVICES


def causal(
    q: Float[Tensor, "H B S g d"], k: Float[Tensor, "H B S d"], v: Float[Tensor, "H B S d"]
) -> tuple[Float[Tensor, "H B S g d"], Float[Tensor, "H B S g"]]:
    """What each token sees of its own past, and the log of its sum of exponentials; `q` is scaled already."""
    rows, shape = _heads_apart(q), q.shape
    aten: Any = torch.ops.aten
    on_cpu, on_gpu = aten._scaled_dot_product_flash_attention_for_cpu, aten._scaled_dot_product_flash_attention
    flash = on_cpu if q.device.type == "cpu" else on_gpu
    out, log_sum, *_ = flash(rows, _spread(k, shape[3]), _spread(v, shape[3]), 0.0, True, scale=1.0)
    return _blocks(out, shape), _blocks(log_sum[..., None], shape)[..., 0]


def causal_backward(
    gradient: Float[Tensor, "H B S g d"],
    q: Float[Tensor, "H B S g d"],
    k: Float[Tensor, "H B S d"],
    v: Float[Tensor, "H B S d"],
    whole: tuple[Float[Tensor, "H B S g d"], Float[Tensor, "H B S g"]],
) -> tuple[Float[Tensor, "H B S g d"], Float[Tensor, "H B S d"], Float[Tensor, "H B S d"]]:
    """The gradients of q, k and v through what `causal` gave, from that of the whole; `whole` are O and l."""
    (out, log_sum), g, size = whole, q.shape[3], q.shape[2]
    sums = _heads_apart(log_sum[..., None])[..., 0]  # [B, H g, S]
    given = (_heads_apart(gradient), _heads_apart(q), _spread(k, g), _spread(v, g), _heads_apart(out), sums)
    if q.device.type == "cpu":
        back: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        of_q, of_k, of_v = back(*given, 0.0, True, scale=1.0)
    else:
        back, none = torch.ops.aten._scaled_dot_product_flash_attention_backward, torch.zeros((), dtype=torch.long)
        of_q, of_k, of_v = back(*given, None, None, size, size, 0.0, True, none, none, scale=1.0)
    heads = k.shape[0]
    of_k, of_v = (x.unflatten(1, (heads, g)).sum(2).transpose(0, 1) for x in (of_k, of_v))
    return _blocks(of_q, q.shape), of_k, of_v


def _heads_apart(x: Float[Tensor, "H B S g d"]) -> Float[Tensor, "B Hg S d"]:
    """As the kernels want it: every query head by itself."""
    return x.permute(1, 0, 3, 2, 4).flatten(1, 2)


def _blocks(x: Float[Tensor, "B Hg S d"], shape: torch.Size) -> Float[Tensor, "H B S g d"]:
    """The inverse of `_heads_apart`."""
    return x.unflatten(1, (shape[0], shape[3])).permute(1, 0, 3, 2, 4)


def _spread(x: Float[Tensor, "H B S d"], g: int) -> Float[Tensor, "B Hg S d"]:
    """Keys or values, once for every query head that shares them."""
    return x.transpose(0, 1).repeat_interleave(g, dim=1)
