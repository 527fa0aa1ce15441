"""The contract of a rule: pure steps over a state that fits into one file."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from typing_extensions import TypeVar

from promptprior.notation import Memory, Params, Tensor
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
    """How params move. A rule sees only named tensors with a leading copies axis, what is drawn and an objective."""

    def init(self, params: Params) -> State:
        """The state before the first step."""
        ...

    def step(self, state: State, batch: Drawn, objective: Objective) -> tuple[State, Info]:
        """One step: the next state and what to log. The given state is left as it was."""
        ...
