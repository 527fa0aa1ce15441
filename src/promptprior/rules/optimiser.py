"""Optimisers as pure functions of params with a leading copies axis: every copy moves as if it trained by itself.

Learning rates are in units of the backbone's embedding scale, `s` below. AdamW and Adafactor, whose steps have the size
of the rate, move an entry by about rate * s, their absolute rate. SGD descends in p / s, so its step is rate * s^2 *
gradient. Weight decay is decoupled, as AdamW's in torch and Adafactor's in transformers: a step takes rate * s * decay
of p away, so that a published decay is the same number here. Memory stays in the params' dtype.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch

from promptprior.config.choices import OptimiserKind, ScheduleKind
from promptprior.config.training import Training
from promptprior.errors import SpecError
from promptprior.notation import Float, Memory, Params, Tensor
from promptprior.rules.rule import Info, State


@dataclass(frozen=True)
class Rate:
    """A learning rate over steps: `base` for each copy (one value serves all), warmed up, then scheduled to zero.

    `lr_multipliers` multiply the rate of single parameters by name (decomposed prompts have two rates), or of every
    element of one, as a tensor of its shape (Meta-SGD); `scale` is the embedding scale.
    """

    base: tuple[float, ...]
    scale: float = 1.0
    schedule: ScheduleKind = "constant"
    steps: int = 1
    warmup: int = 0
    lr_multipliers: Mapping[str, float | Tensor] = field(default_factory=dict)

    def at(self, step: int, name: str, like: Tensor) -> Float[Tensor, "C *s"]:
        """The rate of one parameter at a step, shaped to multiply it; in units of the embedding scale."""
        base = torch.tensor(self.base, dtype=like.dtype, device=like.device) * self.multiplier(step)
        copies = base.expand(like.shape[0]).view(-1, *[1] * (like.dim() - 1))  # [C, 1, …]
        return copies * self.lr_multipliers.get(name, 1.0)

    def multiplier(self, step: int) -> float:
        """What warm-up and schedule leave of the rate at a step.

        >>> [Rate((1.0,), schedule="linear", steps=4).multiplier(s) for s in range(5)]
        [1.0, 0.75, 0.5, 0.25, 0.0]
        """
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        left = max(0.0, 1.0 - done)
        return {"constant": 1.0, "linear": left, "cosine": 0.5 * (1 - math.cos(math.pi * left))}[self.schedule]


def stage_rate(
    stage: Training, base: tuple[float, ...], scale: float, multipliers: Mapping[str, float | Tensor] | None = None
) -> Rate:
    """The rates of copies over a stage's steps; `multipliers` are numbers or tensors of a parameter's shape.

    `base` is in units of `scale`, unless the stage's rates are absolute (`rate_unit`).
    """
    if stage.rate_unit == "absolute":
        base = tuple(rate / scale for rate in base)
    return Rate(base, scale, stage.schedule, stage.steps, stage.warmup, multipliers or {})


class Optimiser(Protocol):
    """Init and update over named tensors, each with a leading copies axis."""

    def init(self, params: Params) -> Memory:
        """What to remember before the first step."""
        ...

    def update(self, gradient: Params, memory: Memory, params: Params, step: int) -> tuple[Params, Memory]:
        """New params and memory; the given ones are left as they were."""
        ...


@dataclass(frozen=True)
class Sgd:
    """Gradient descent in units of the embedding scale, with optional momentum."""

    rate: Rate
    momentum: float = 0.0

    def init(self, params: Params) -> Memory:
        """A velocity of zero with momentum, nothing without."""
        return {f"velocity/{n}": torch.zeros_like(p) for n, p in params.items()} if self.momentum else {}

    def update(self, gradient: Params, memory: Memory, params: Params, step: int) -> tuple[Params, Memory]:
        """p - rate s^2 v with v = momentum v + gradient."""
        velocity = gradient
        if self.momentum:
            velocity = {n: self.momentum * memory[f"velocity/{n}"] + g for n, g in gradient.items()}
        unit = self.rate.scale**2
        updated = {n: p - self.rate.at(step, n, p) * unit * velocity[n] for n, p in params.items()}
        return updated, {f"velocity/{n}": v for n, v in velocity.items()} if self.momentum else {}


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019), as torch.optim.AdamW computes it."""

    rate: Rate
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0

    def init(self, params: Params) -> Memory:
        """Both moments, zero for every entry."""
        return {f"{moment}/{n}": torch.zeros_like(p) for moment in ("mean", "square") for n, p in params.items()}

    def update(self, gradient: Params, memory: Memory, params: Params, step: int) -> tuple[Params, Memory]:
        """p (1 - rate s decay) - rate s m / (sqrt(v) + eps), both moments corrected for their start at zero."""
        updated: Params = {}
        moments: Memory = {}
        for name, p in params.items():
            g = gradient[name]
            mean = torch.lerp(memory[f"mean/{name}"], g, 1 - self.beta1)
            square = torch.lerp(memory[f"square/{name}"], g * g, 1 - self.beta2)
            rate = self.rate.at(step, name, p) * self.rate.scale  # absolute
            root = square.div(1 - self.beta2 ** (step + 1)).sqrt() + self.eps
            direction = mean / (1 - self.beta1 ** (step + 1)) / root
            updated[name] = p * (1 - rate * self.weight_decay) - rate * direction
            moments |= {f"mean/{name}": mean, f"square/{name}": square}
        return updated, moments


@dataclass(frozen=True)
class Adafactor:
    """Adafactor (Shazeer & Stern 2018) as the prompt-tuning papers use it: no relative step, no parameter scaling.

    Second moments of the last two axes are factored; the update is clipped by its root mean square within each copy.
    """

    rate: Rate
    decay: float = 0.8
    clip: float = 1.0
    eps: float = 1e-30
    weight_decay: float = 1e-5

    def init(self, params: Params) -> Memory:
        """Zero row and column means; whole second moments for params of fewer than three axes, copies included."""
        memory: Memory = {}
        for name, p in params.items():
            if p.dim() >= 3:
                memory |= {f"row/{name}": torch.zeros_like(p[..., 0]), f"column/{name}": torch.zeros_like(p[..., 0, :])}
            else:
                memory[f"square/{name}"] = torch.zeros_like(p)
        return memory

    def update(self, gradient: Params, memory: Memory, params: Params, step: int) -> tuple[Params, Memory]:
        """p (1 - rate s decay) - rate s u, with u = g / sqrt(second moment), clipped."""
        updated: Params = {}
        moments: Memory = {}
        keep = 1 - (step + 1) ** -self.decay
        for name, p in params.items():
            g = gradient[name]
            square = g * g + self.eps
            if f"square/{name}" in memory:
                whole = torch.lerp(memory[f"square/{name}"], square, 1 - keep)
                direction = g * whole.rsqrt()
                moments[f"square/{name}"] = whole
            else:
                row = torch.lerp(memory[f"row/{name}"], square.mean(-1), 1 - keep)
                column = torch.lerp(memory[f"column/{name}"], square.mean(-2), 1 - keep)
                relative = (row / row.mean(-1, keepdim=True)).rsqrt()
                direction = g * relative[..., None] * column.rsqrt()[..., None, :]
                moments |= {f"row/{name}": row, f"column/{name}": column}
            axes = tuple(range(1, p.dim()))
            size = direction.square().mean(axes, keepdim=True).sqrt() if axes else direction.abs()
            direction = direction / (size / self.clip).clamp(min=1)
            rate = self.rate.at(step, name, p) * self.rate.scale  # absolute
            updated[name] = p * (1 - rate * self.weight_decay) - rate * direction
        return updated, moments


def optimiser(kind: OptimiserKind, rate: Rate, weight_decay: float) -> Optimiser:
    """The optimiser of a name. Raises SpecError where weight decay would be ignored."""
    if kind == "sgd":
        if weight_decay:
            raise SpecError("weight decay (--weight-decay) has no effect with sgd; set it to 0 or use adamw")
        return Sgd(rate)
    return AdamW(rate, weight_decay=weight_decay) if kind == "adamw" else Adafactor(rate, weight_decay=weight_decay)


@dataclass(frozen=True)
class OptimiserRule:
    """What rules that end with `optimiser_step` share: they remember what their optimiser does, and nothing else."""

    optimiser: Optimiser

    def init(self, params: Params) -> State:
        """The optimiser's memory before its first step."""
        return State(params, self.optimiser.init(params))


def optimiser_step(
    optimiser: Optimiser, clip: float | None, state: State, gradient: Params, info: Info
) -> tuple[State, Info]:
    """What every rule ends with: the optimiser's step along a gradient, scaled down to norm `clip` copy by copy.

    The norm runs over all parameters of a copy; "gradient_norm" reports it before clipping, Float[C].
    """
    norm = torch.stack([g.reshape(len(g), -1).square().sum(1) for g in gradient.values()]).sum(0).sqrt()  # [C]
    if clip is not None:
        factor = (clip / norm.clamp(min=1e-12)).clamp(max=1)
        gradient = {n: g * factor.view(-1, *[1] * (g.dim() - 1)) for n, g in gradient.items()}
    params, memory = optimiser.update(gradient, state.memory, state.params, state.step)
    return State(params, memory, state.step + 1), {**info, "gradient_norm": norm}
