"""Attention over a packed batch (see layout.py), in plain tensor operations: exact, differentiable twice, any device.

transformers calls it through its attention interface, so one function serves every family that uses the interface.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.modeling_utils import PreTrainedModel

from promptprior.backbone.kernels.packing import Layout, Stage
from promptprior.notation import Bool, Float, Int, Tensor

NAME = "promptprior_packed"
LAYOUT: ContextVar[Layout] = ContextVar("layout")

Keys = tuple[Float[Tensor, "H _ K d"], Float[Tensor, "H _ K d"]]


def packed_attention(
    module: torch.nn.Module,  # noqa: ARG001  the interface passes it
    query: Float[Tensor, "1 heads N d"],
    key: Float[Tensor, "1 H N d"],
    value: Float[Tensor, "1 H N d"],
    attention_mask: Tensor | None,  # noqa: ARG001  the layout says who sees whom
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Float[Tensor, "1 N heads d"], None]:
    """Attention of the packed sequence: each stage over the keys it may see.

    `heads` query heads share H key heads. Raises NotImplementedError for score terms it does not know (attention
    sinks, learned position biases): the engine then falls back to plain concatenation.
    """
    if s_aux is not None or position_bias is not None:
        raise NotImplementedError("attention sinks and position biases have no packed form")
    layout = LAYOUT.get()
    score = Scores(scaling if scaling is not None else query.shape[-1] ** -0.5, softcap, sliding_window)
    heads, kv_heads, width = query.shape[1], key.shape[1], query.shape[-1]
    # [H, N, heads per key head, d]: queries that share a key head stand together
    q = query[0].view(kv_heads, heads // kv_heads, -1, width).transpose(1, 2)
    out = torch.cat(list(stage_outputs(q, key[0], value[0], layout, score)), dim=1)
    return out.permute(1, 0, 2, 3).reshape(1, -1, heads, width), None


class Scores:
    """How a family turns query and key into a score: scale, soft cap, sliding window."""

    def __init__(self, scaling: float, softcap: float | None, window: int | None) -> None:
        self.scaling, self.softcap, self.window = scaling, softcap, window

    def __call__(self, q: Float[Tensor, "H B S g d"], k: Float[Tensor, "H Bk K d"]) -> Float[Tensor, "H B S g K"]:
        """Scores of B query blocks against Bk key blocks; B / Bk neighbouring blocks share their keys."""
        heads, blocks, size, group, width = q.shape
        rows = q.reshape(heads, k.shape[1], -1, width)
        scores = (rows @ k.transpose(-1, -2)).view(heads, blocks, size, group, k.shape[2])
        return scores if self.softcap is None else torch.tanh(scores / self.softcap) * self.softcap

    def hidden(
        self,
        query_at: Int[Tensor, "B S"],
        key_at: Int[Tensor, "B K"] | Int[Tensor, "1 K"],
        hidden: Bool[Tensor, "#B #S K"] | None = None,
    ) -> Bool[Tensor, "#B #S 1 K"] | None:
        """Which keys a query does not see: those named in `hidden`, and those outside the sliding window."""
        if self.window is not None and int(query_at.max()) >= self.window:
            far = query_at[:, :, None] - key_at[:, None, :] >= self.window
            hidden = far if hidden is None else far | hidden
        return None if hidden is None else hidden[:, :, None, :]


def stage_outputs(
    q: Float[Tensor, "H N g d"],
    k: Float[Tensor, "H N d"],
    v: Float[Tensor, "H N d"],
    layout: Layout,
    score: Scores,
) -> Iterator[Float[Tensor, "H n g d"]]:
    """The attention output of each stage's tokens, in packed order."""
    split = layout.prompt_tokens
    prompts = len(layout.used_prompts)
    at = torch.arange(layout.length, device=q.device).expand(max(prompts, 1), -1)
    prompt_keys = None
    if split:
        prompt_keys = (blocked(k[:, :split], prompts), blocked(v[:, :split], prompts))
        own = (*prompt_keys, score.hidden(at, at, causal(at, at)))
        yield attend(blocked(q[:, :split], prompts), [own], score).flatten(1, 2)

    bodies = layout.bodies
    end = split + bodies.tokens
    body_keys = (packed(k[:, split:end], bodies), packed(v[:, split:end], bodies))
    prefix = group_keys(prompt_keys, layout)
    parts = [
        (
            *body_keys,
            score.hidden(bodies.positions, bodies.positions, causal(bodies.positions, bodies.positions)),
        )
    ]
    if prefix:
        parts.insert(0, (*prefix, score.hidden(bodies.positions, at[:1])))
    yield unpacked(attend(packed(q[:, split:end], bodies), parts, score), bodies)

    if layout.suffixes is not None:
        answers = layout.suffixes
        own_keys = (packed(k[:, end:], answers), packed(v[:, end:], answers))
        parts = [
            (*body_keys, text_mask(layout, score)),
            (
                *own_keys,
                score.hidden(answers.positions, answers.positions, causal(answers.positions, answers.positions)),
            ),
        ]
        if prefix:
            parts.insert(0, (*prefix, score.hidden(answers.positions, at[:1])))
        yield unpacked(attend(packed(q[:, end:], answers), parts, score), answers)


def group_keys(keys: Keys | None, layout: Layout) -> Keys | None:
    """The prompts' keys and values as the groups read them; copied only where several groups read one prompt."""
    if keys is None or layout.group_prompt is None:
        return keys
    return keys[0].index_select(1, layout.group_prompt), keys[1].index_select(1, layout.group_prompt)


def causal(query_at: Int[Tensor, "B S"], key_at: Int[Tensor, "B K"]) -> Bool[Tensor, "1 S K"]:
    """What a block must not see of itself: what comes later."""
    later = torch.ones(query_at.shape[1], key_at.shape[1], dtype=torch.bool, device=query_at.device)
    return later.triu(1)[None]


def text_mask(layout: Layout, score: Scores) -> Bool[Tensor, "#B #S 1 K"] | None:
    """What an answer does not see of its text's block: the padding, and what is outside the window."""
    assert layout.suffixes is not None
    bodies, answers = layout.bodies, layout.suffixes
    choices = answers.blocks // bodies.blocks
    padding = torch.arange(bodies.size, device=bodies.slots.device) >= layout.text_lengths[:, None]
    padding = padding.repeat_interleave(choices, dim=0)[:, None, :]
    return score.hidden(answers.positions, bodies.positions.repeat_interleave(choices, dim=0), padding)


def attend(
    q: Float[Tensor, "H B S g d"],
    parts: list[tuple[Float[Tensor, "H _ _ d"], Float[Tensor, "H _ _ d"], Bool[Tensor, "_ _ 1 _"] | None]],
    score: Scores,
) -> Float[Tensor, "H B S g d"]:
    """Softmax attention of query blocks over several parts of keys at once: one softmax over all parts."""
    q = q * score.scaling
    scores = []
    for k, _, hidden in parts:
        part = score(q, k)
        scores.append(part if hidden is None else part.masked_fill(hidden, float("-inf")))
    dtype = torch.promote_types(q.dtype, torch.float32)
    weights = torch.softmax(torch.cat(scores, dim=-1), dim=-1, dtype=dtype).to(q.dtype)
    out = torch.zeros_like(q)
    for part, (_, v, _) in zip(weights.split([k.shape[2] for k, _, _ in parts], dim=-1), parts, strict=True):
        rows = part.reshape(part.shape[0], v.shape[1], -1, v.shape[2])
        out = out + (rows @ v).view(out.shape)
    return out


def blocked(x: Float[Tensor, "H n *g d"], blocks: int) -> Float[Tensor, "H B S *g d"]:
    """Tokens that already stand in full blocks."""
    return x.unflatten(1, (blocks, -1))


def packed(x: Float[Tensor, "H n *g d"], stage: Stage) -> Float[Tensor, "H B S *g d"]:
    """Ragged tokens as padded blocks."""
    flat = x if stage.is_full else Pad.apply(x, stage.slots, stage.places, stage.filled)
    return flat.unflatten(1, (stage.blocks, stage.size))


def unpacked(x: Float[Tensor, "H B S *g d"], stage: Stage) -> Float[Tensor, "H n *g d"]:
    """Padded blocks as ragged tokens."""
    flat = x.flatten(1, 2)
    return flat if stage.is_full else Unpad.apply(flat, stage.slots, stage.places, stage.filled)


class Pad(torch.autograd.Function):
    """Tokens to slots. A token has one slot, so the gradient is a gather too (index_select's own is a scatter)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slots: Tensor, places: Tensor, filled: Tensor) -> Tensor:
        """Gather along axis 1; pads repeat token 0, and no gradient comes back through them."""
        ctx.save_for_backward(slots, places, filled)
        if not x.shape[1]:  # texts that are all empty: nothing but pads, and no token to repeat
            return x.new_zeros(x.shape[0], len(slots), *x.shape[2:])
        return x.index_select(1, slots)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        """The gradient of every token's one slot."""
        return Unpad.apply(grad, *ctx.saved_tensors), None, None, None


class Unpad(torch.autograd.Function):
    """Slots to tokens: the inverse of Pad on filled slots."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slots: Tensor, places: Tensor, filled: Tensor) -> Tensor:
        """Gather along axis 1."""
        ctx.save_for_backward(slots, places, filled)
        return x.index_select(1, places)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        """The gradient of filled slots; pads get none."""
        slots, places, filled = ctx.saved_tensors
        shape = [1, -1] + [1] * (grad.dim() - 2)
        return Pad.apply(grad, slots, places, filled) * filled.view(shape), None, None, None


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, lambda *_, **__: None)


@contextmanager
def packed_model(model: PreTrainedModel, layout: Layout) -> Iterator[None]:
    """Run the model's attention on a packed sequence; the attention it was loaded with is restored after."""
    before = model.config._attn_implementation
    token = LAYOUT.set(layout)
    model.config._attn_implementation = NAME
    try:
        yield
    finally:
        model.config._attn_implementation = before
        LAYOUT.reset(token)
