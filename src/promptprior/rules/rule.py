"""The contract of a rule: pure steps over a state that fits into one checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from typing_extensions import TypeVar

from promptprior.notation import Bool, Memory, Params, Tensor
from promptprior.objectives.objective import Objective

Drawn = TypeVar("Drawn", contravariant=True, default=Any)
"""What a rule learns from in one step: a Batch, or a MetaBatch for rules with an inner loop."""

Info = Mapping[str, Tensor]
"""What a step reports, each Float[C] or scalar; "loss" is always there."""


@dataclass(frozen=True)
class State:
    """Where a run stands: the parameters, what rule and optimiser remember, and how many steps were taken."""

    params: Params
    memory: Memory
    step: int = 0


class Rule(Protocol[Drawn]):
    """How params move. A rule sees only named tensors with a leading copies axis, what is drawn and an objective.

    Rules compose by wrapping: a wrapper holds a rule and calls its `init`, `step` and `answer`. `memory` is saved and
    resumed by name, so a wrapper that remembers something puts it under a prefix of its own, and what the wrapped rule
    remembers under another (rules/averaging.py). A wrapper that remembers nothing hands the state through.
    """

    def init(self, params: Params) -> State:
        """The state before the first step."""
        ...

    def step(self, state: State, batch: Drawn, objective: Objective) -> tuple[State, Info]:
        """One step: the next state and what to log. The given state is left as it was."""
        ...


@runtime_checkable
class AnswersApart(Protocol):
    """Optional for a rule: the parameters that dev judges and a run returns are others than those that move."""

    def answer(self, state: State) -> Params:
        """The answering parameters, with the names and shapes of `state.params`."""
        ...


def answer(rule: Rule[Any], state: State) -> Params:
    """The parameters that answer at this state: what the rule says (an average, say), by default `state.params`."""
    return rule.answer(state) if isinstance(rule, AnswersApart) else state.params


def pick_copies(is_new: Bool[Tensor, " C"], new: Params, old: Params) -> Params:
    """The new values of some copies, the old ones of the others: every tensor is [C, *shape]."""
    return {
        name: torch.where(is_new.to(value.device).view(-1, *[1] * (value.dim() - 1)), value, old[name])
        for name, value in new.items()
    }
