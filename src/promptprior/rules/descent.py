"""Descent: every copy follows the gradient of its own mean loss, plus a penalty where it has a prior.

Prompt tuning, multi-task prompts, independent source prompts and every adaptation move this way.
Cost: one engine call and one backward pass per step, whatever the number of copies.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from promptprior.notation import Float, Params, Tensor
from promptprior.objectives.objective import Objective, loss_and_gradient
from promptprior.rules.optimiser import OptimiserRule, optimiser_step
from promptprior.rules.rule import Info, State
from promptprior.tasks.sampling.batch import Batch

Penalty = Callable[[Params], Float[Tensor, " C"]]
"""Minus the log-prior of each copy's parameters over its number of examples, in nats."""


@dataclass(frozen=True)
class Descent(OptimiserRule):
    """One optimiser step on mean loss + penalty. `clip`: the largest gradient norm of a copy."""

    clip: float | None = None
    penalty: Penalty | None = None

    def step(self, state: State, batch: Batch, objective: Objective) -> tuple[State, Info]:
        """One step of every copy; "loss" is reported without the penalty, both in nats."""
        loss, gradient = loss_and_gradient(objective, state.params, batch)
        info: dict[str, Tensor] = {"loss": loss}
        if self.penalty is not None:
            info["penalty"], gradient = with_penalty(self.penalty, state.params, gradient)
        return optimiser_step(self.optimiser, self.clip, state, gradient, info)


def with_penalty(penalty: Penalty, params: Params, gradient: Params) -> tuple[Float[Tensor, " C"], Params]:
    """The penalty of every copy, and the gradient with the penalty's added."""
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    value = penalty(leaves)  # [C]
    parts = torch.autograd.grad(value.sum(), list(leaves.values()), allow_unused=True)
    total = {n: g if p is None else g + p for (n, g), p in zip(gradient.items(), parts, strict=True)}
    return value.detach(), total
