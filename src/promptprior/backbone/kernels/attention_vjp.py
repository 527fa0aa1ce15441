"""Attention over a packed batch with its gradient written by hand: first order only, nothing copied to be shared.

The same mathematics as attention.py, which stays the definition (any family, differentiable twice). Here the masks are
made once per pass instead of once per layer, and the backward pass is five products and one fused softmax per stage.
"""

from dataclasses import dataclass

import torch

from promptprior.backbone.kernels.attention import Scores, causal, packed, text_mask, unpacked
from promptprior.backbone.kernels.packing import Layout, Stage
from promptprior.notation import Bool, Float, Int, Tensor

Blocks = Float[Tensor, "H _ _ d"]  # of one stage: [H, B, S, d]


@dataclass(frozen=True)
class Part:
    """Keys that a stage's queries see: those of stage `source`, less what is hidden. `prompt_of` copies the keys of
    a prompt to each group where several groups read one prompt."""

    source: int
    hidden: Bool[Tensor, "#B #S 1 K"] | None
    prompt_of: Int[Tensor, " G"] | None = None

    def keys(self, blocks: list[Blocks]) -> Blocks:
        """The part's keys (or values) among those of all stages."""
        own = blocks[self.source]
        return own if self.prompt_of is None else own.index_select(1, self.prompt_of)

    def give(self, gradients: list[Blocks], gradient: Blocks) -> None:
        """Add the gradient of the part's keys to their stage's."""
        own = gradients[self.source]
        if self.prompt_of is None:
            own += gradient
        else:
            own.index_add_(1, self.prompt_of, gradient)


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
        return packed(x[:, self.start : self.end], self.stage)

    def gradient_blocks(self, x: Float[Tensor, "H N *g d"]) -> Float[Tensor, "H B S *g d"]:
        """The same for a gradient: pads have none."""
        blocks = self.blocks(x)
        return blocks if self.stage.is_full else blocks.mul_(self.stage.filled.view(self.stage.blocks, -1, 1, 1))

    def tokens(self, x: Float[Tensor, "H B S *g d"]) -> Float[Tensor, "H n *g d"]:
        """Padded blocks as this stage's tokens."""
        return unpacked(x, self.stage)


@dataclass(frozen=True)
class Attended:
    """What the backward pass needs: blocks of queries, keys and values, and each stage's weights."""

    queries: list[Tensor]
    keys: list[Tensor]
    values: list[Tensor]
    weights: list[Float[Tensor, "H _ _ _"]]

    def tensors(self) -> list[Tensor]:
        """All tensors, stage after stage."""
        return [*self.queries, *self.keys, *self.values, *self.weights]

    @classmethod
    def of(cls, tensors: list[Tensor]) -> "Attended":
        """The inverse of `tensors`."""
        n = len(tensors) // 4
        return cls(tensors[:n], tensors[n : 2 * n], tensors[2 * n : 3 * n], tensors[3 * n :])


def causal_plans(layout: Layout, window: int | None = None) -> list[StagePlan]:
    """The stages of a causal batch (layout.py)."""
    score, length, split = Scores(1.0, None, window), layout.length, layout.prompt_tokens
    bodies, answers = layout.bodies, layout.suffixes
    at = torch.arange(length, device=bodies.slots.device)[None]
    plans: list[StagePlan] = []
    if split:
        prompts = full_stage(len(layout.used_prompts), length, bodies.slots.device)
        plans.append(StagePlan(0, split, prompts, (Part(0, score.hidden(at, at, causal(at, at))),)))

    def prefix(stage: Stage) -> tuple[Part, ...]:
        return (Part(0, score.hidden(stage.positions, at), layout.group_prompt),) if split else ()

    def itself(stage: Stage, source: int) -> Part:
        return Part(source, score.hidden(stage.positions, stage.positions, causal(stage.positions, stage.positions)))

    body = len(plans)
    end = split + bodies.tokens
    plans.append(StagePlan(split, end, bodies, (*prefix(bodies), itself(bodies, body))))
    if answers is not None:
        text = Part(body, text_mask(layout, score))
        plans.append(StagePlan(end, end + answers.tokens, answers, (*prefix(answers), text, itself(answers, body + 1))))
    return plans


def full_stage(blocks: int, size: int, device: torch.device) -> Stage:
    """Blocks without pads."""
    every = torch.arange(blocks * size, device=device)
    positions = torch.arange(size, device=device).expand(blocks, -1)
    return Stage(
        positions=positions,
        slots=every,
        places=every,
        filled=torch.ones_like(every, dtype=torch.bool),
        blocks=blocks,
        size=size,
    )


def attention_forward(
    q: Float[Tensor, "H N g d"], k: Float[Tensor, "H N d"], v: Float[Tensor, "H N d"], plans: list[StagePlan]
) -> tuple[Float[Tensor, "H N g d"], Attended]:
    """Attention of every stage; `q` is scaled already."""
    saved = Attended([p.blocks(q) for p in plans], [p.blocks(k) for p in plans], [p.blocks(v) for p in plans], [])
    outputs = []
    for plan, query in zip(plans, saved.queries, strict=True):
        weights = stage_weights(query, plan, saved.keys)
        saved.weights.append(weights)
        out: Tensor | None = None
        for part, w in zip(plan.parts, split_parts(weights, plan, saved.values), strict=True):
            more = rows_of_keys(w, value := part.keys(saved.values)) @ value
            out = more if out is None else out.add_(more.view(out.shape))
        assert out is not None
        outputs.append(plan.tokens(out.view(query.shape)))
    return torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0], saved


def stage_weights(query: Tensor, plan: StagePlan, keys: list[Blocks]) -> Float[Tensor, "H B Sg K"]:
    """Softmax weights of a stage over all keys it sees."""
    heads, blocks, size, group, _ = query.shape
    scores = []
    for part in plan.parts:
        key = part.keys(keys)
        score = (rows_of_keys(query, key) @ key.transpose(-1, -2)).view(heads, blocks, size, group, -1)
        if plan.bias is not None:
            score += plan.bias
        scores.append(score if part.hidden is None else score.masked_fill_(part.hidden, float("-inf")))
    joined = scores[0] if len(scores) == 1 else torch.cat(scores, dim=-1)
    return torch.softmax(joined.flatten(2, 3), dim=-1)


def attention_backward(
    gradient: Float[Tensor, "H N g d"], saved: Attended, plans: list[StagePlan]
) -> tuple[Float[Tensor, "H N g d"], Float[Tensor, "H N d"], Float[Tensor, "H N d"]]:
    """The gradients of queries, keys and values."""
    key_grads, value_grads = ([torch.zeros_like(x) for x in some] for some in (saved.keys, saved.values))
    query_grads = []
    for plan, query, weights in zip(plans, saved.queries, saved.weights, strict=True):
        out = plan.gradient_blocks(gradient)
        raised = score_gradient(out, weights, plan, saved.values)
        query_grad: Tensor | None = None
        for part, w, s in zip(
            plan.parts,
            split_parts(weights, plan, saved.values),
            split_parts(raised, plan, saved.values),
            strict=True,
        ):
            key = part.keys(saved.keys)
            s = rows_of_keys(s, key)
            more = s @ key
            query_grad = more if query_grad is None else query_grad.add_(more.view(query_grad.shape))
            part.give(key_grads, s.transpose(-1, -2) @ rows_of_keys(query, key))
            part.give(value_grads, rows_of_keys(w, key).transpose(-1, -2) @ rows_of_keys(out, key))
        assert query_grad is not None
        query_grads.append(plan.tokens(query_grad.view(query.shape)))
    return joined_tokens(query_grads), merged(key_grads, plans), merged(value_grads, plans)


def score_gradient(out: Tensor, weights: Tensor, plan: StagePlan, values: list[Blocks]) -> Float[Tensor, "H B Sg K"]:
    """The gradient of the scores, from that of a stage's output."""
    pieces = []
    for part in plan.parts:
        value = part.keys(values)
        pieces.append((rows_of_keys(out, value) @ value.transpose(-1, -2)).view(*weights.shape[:3], -1))
    joined = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1)
    return torch.ops.aten._softmax_backward_data(joined, weights, -1, weights.dtype)


def rows_of_keys(x: Tensor, keys: Blocks) -> Float[Tensor, "H Bk n last"]:
    """Query blocks that share keys as the rows of one product."""
    return x.reshape(x.shape[0], keys.shape[1], -1, x.shape[-1])


def split_parts(weights: Tensor, plan: StagePlan, values: list[Blocks]) -> tuple[Tensor, ...]:
    """Weights cut into the parts of a stage, without a copy."""
    return weights.split([values[part.source].shape[2] for part in plan.parts], dim=-1)


def merged(blocks: list[Blocks], plans: list[StagePlan]) -> Float[Tensor, "H N d"]:
    """The blocks of all stages as tokens."""
    return joined_tokens([plan.tokens(x) for plan, x in zip(plans, blocks, strict=True)])


def joined_tokens(pieces: list[Tensor]) -> Tensor:
    """Stages one after the other."""
    return torch.cat(pieces, dim=1) if len(pieces) > 1 else pieces[0]
