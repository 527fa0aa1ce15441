"""Attention over a packed batch (packing.py): who sees whom, and attention in plain tensor operations.

`attend` is the definition: exact, differentiable twice, on any device. attention_vjp.py computes the same from the same
plans, with its gradient written by hand; packed_model.py hands either to transformers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from promptprior.backbone.kernels.packing import Layout, Stage
from promptprior.notation import Bool, Float, Int, Tensor

LayerPrefix = tuple[
    Float[Tensor, "H prefixes L d"], Float[Tensor, "H prefixes L d"]
]  # keys and values before the texts of one layer
NO_PREFIX: Mapping[int, LayerPrefix] = {}
PREFIX = -1  # the source of keys that are not the batch's own: behind those of all stages


class MoveTokens(torch.autograd.Function):
    """Ragged tokens to padded slots, or back, along axis 1. A token has one slot, so the gradient of either way is a
    gather the other way (index_select's own is a scatter)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stage: Stage, to_slots: bool, zero_pads: bool) -> Tensor:
        """Gather [H, n, ...] to [H, B*S, ...], or back. Pads repeat token 0, or are zero with `zero_pads`: as gradients
        they must be."""
        ctx.stage, ctx.to_slots = stage, to_slots
        if not to_slots:
            return x.index_select(1, stage.slot_of_token)
        if not x.shape[1]:  # texts that are all empty: nothing but pads, and no token to repeat
            return x.new_zeros(x.shape[0], len(stage.token_of_slot), *x.shape[2:])
        slots = x.index_select(1, stage.token_of_slot)
        return slots.mul_(stage.filled.view(1, -1, *[1] * (x.dim() - 2))) if zero_pads else slots

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        """The gradient of every token's one slot, [H, n, ...] or [H, B*S, ...]; pads neither give nor get any."""
        return MoveTokens.apply(gradient, ctx.stage, not ctx.to_slots, True), None, None, None


def pack(x: Float[Tensor, "H n *g d"], stage: Stage) -> Float[Tensor, "H B S *g d"]:
    """Ragged tokens as padded blocks."""
    slots = x if stage.is_full else MoveTokens.apply(x, stage, True, False)
    return slots.unflatten(1, (stage.blocks, stage.size))


def unpack(x: Float[Tensor, "H B S *g d"], stage: Stage) -> Float[Tensor, "H n *g d"]:
    """Padded blocks as ragged tokens."""
    slots = x.flatten(1, 2)
    return slots if stage.is_full else MoveTokens.apply(slots, stage, False, False)


@dataclass(frozen=True)
class Part:
    """Keys that a stage's queries see: those of stage `source` (or PREFIX), less what is hidden. `prompt_of` says which
    prompt's keys each group reads, where several groups read one prompt. `is_past`: they are the stage's own, and those
    of later tokens are hidden."""

    source: int
    hidden: Bool[Tensor, "#B #S 1 K"] | None
    prompt_of: Int[Tensor, " G"] | None = None
    is_past: bool = False


@dataclass(frozen=True)
class StagePlan:
    """One stage of the packed sequence: where its tokens start and end, its blocks, and what it sees."""

    start: int
    end: int
    stage: Stage
    parts: tuple[Part, ...]
    bias: Float[Tensor, "H 1 S 1 S"] | None = None

    def blocks(self, x: Float[Tensor, "H N *g d"]) -> Float[Tensor, "H B S *g d"]:
        """This stage's tokens as padded blocks."""
        return pack(x[:, self.start : self.end], self.stage)


def causal_plans(layout: Layout, window: int | None = None, has_prefix: bool = False) -> list[StagePlan]:
    """The stages of a causal batch, in packed order, with what each sees: its prompt (or the prefix of the layer, where
    it has one), its text, its own past. `window` is the width of a sliding window of attention."""
    bodies, answers, device = layout.bodies, layout.suffixes, layout.bodies.token_of_slot.device
    prompt_at = torch.arange(layout.length, device=device)[None]  # [1, L]

    plans: list[StagePlan] = []
    for stage in (layout.prompts if layout.prompt_tokens else None, bodies, answers):
        if stage is None:
            continue
        # What the stage sees: a stage, where its keys stand, which of them are hidden, which prompt each group reads
        seen: list[tuple[int, Tensor, Tensor | None, Tensor | None]] = []
        if layout.prompt_tokens and plans:
            seen.append((0, prompt_at, None, layout.group_prompt))
        choices = stage.blocks // bodies.blocks
        if has_prefix:
            hidden = layout.hidden
            hidden = None if hidden is None else hidden.repeat_interleave(choices, dim=0)[:, None, :]
            seen.append((PREFIX, torch.arange(layout.prefix, device=device)[None], hidden, layout.group_prompt))
        if stage is answers:  # the text that is answered, less its padding
            padding = torch.arange(bodies.size, device=device) >= layout.text_lengths[:, None]  # [B, T]
            padding = padding.repeat_interleave(choices, dim=0)[:, None, :]
            seen.append((len(plans) - 1, bodies.positions.repeat_interleave(choices, dim=0), padding, None))
        later = torch.ones(stage.size, stage.size, dtype=torch.bool, device=device).triu(1)[None]
        seen.append((len(plans), stage.positions, later, None))

        parts = []
        for source, key_at, hidden, prompt_of in seen:
            is_past = source == len(plans)
            if window is not None and stage.last_position >= window:
                is_past = False
                far = stage.positions[:, :, None] - key_at[:, None, :] >= window  # [B, S, K]
                hidden = far if hidden is None else far | hidden
            parts.append(Part(source, None if hidden is None else hidden[:, :, None, :], prompt_of, is_past))
        start = plans[-1].end if plans else 0
        plans.append(StagePlan(start, start + stage.tokens, stage, tuple(parts)))
    return plans


def attend(
    q: Float[Tensor, "H N g d"],
    k: Float[Tensor, "H N d"],
    v: Float[Tensor, "H N d"],
    plans: list[StagePlan],
    prefix: LayerPrefix | None = None,
    softcap: float | None = None,
) -> Float[Tensor, "H N g d"]:
    """Attention of the packed sequence: each stage over the keys it may see, those of the layer's prefix included. `q`
    is scaled already; scores are bent to within `softcap` where there is one."""
    keys, values = ([plan.blocks(x) for plan in plans] for x in (k, v))  # of each stage [H, B, S, d]
    if prefix is not None:
        keys, values = [*keys, prefix[0]], [*values, prefix[1]]
    shared = next((part for plan in plans for part in plan.parts if part.prompt_of is not None), None)
    if shared is not None and shared.prompt_of is not None:  # copied only where several groups read one prompt
        prompt_keys, prompt_values = (x[shared.source].index_select(1, shared.prompt_of) for x in (keys, values))

    outputs = []
    for plan in plans:
        own = plan.blocks(q)  # [H, B, S, g, d]
        scores, seen = [], []
        for part in plan.parts:
            is_shared = part.prompt_of is not None
            key, value = (prompt_keys, prompt_values) if is_shared else (keys[part.source], values[part.source])
            rows = own.reshape(len(q), key.shape[1], -1, q.shape[-1])  # blocks that share keys: rows of one product
            score = (rows @ key.transpose(-1, -2)).view(*own.shape[:4], -1)  # [H, B, S, g, K]
            score = score if softcap is None else torch.tanh(score / softcap) * softcap
            scores.append(score if part.hidden is None else score.masked_fill(part.hidden, float("-inf")))
            seen.append(value)
        wide = torch.promote_types(q.dtype, torch.float32)
        weights = torch.softmax(torch.cat(scores, dim=-1), dim=-1, dtype=wide).to(q.dtype)  # over all parts at once
        out = torch.zeros_like(own)
        for weight, value in zip(weights.split([x.shape[2] for x in seen], dim=-1), seen, strict=True):
            rows = weight.reshape(len(q), value.shape[1], -1, value.shape[2])
            out = out + (rows @ value).view(out.shape)
        outputs.append(unpack(out, plan.stage))
    return torch.cat(outputs, dim=1)
