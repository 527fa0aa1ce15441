"""Averages of the parameters along training answer in place of the last ones, whatever rule moves them.

    decay d     exponential moving average: average <- d average + (1 - d) params    Kingma & Ba 2015, section 7.2
    decay None  the plain mean of the params after steps `first_step`, …              SWA, Izmailov et al. 2018

Cost: one addition a step. The average never enters the wrapped rule, which moves as it would without.
"""

from dataclasses import dataclass
from typing import Any

import torch

from promptprior.errors import SpecError
from promptprior.notation import Memory, Params
from promptprior.objectives.objective import Objective
from promptprior.rules.rule import Info, Rule, State, answer

AVERAGE, WRAPPED = "average/", "rule/"  # prefixes of what this wrapper and the wrapped rule remember


@dataclass(frozen=True)
class Averaging:
    """Any rule, answered for by an average of what it answers after steps `first_step`, `first_step` + 1, ….

    Up to `first_step` the average is the rule's own answer, so no start needs correcting. Raises SpecError for a decay
    outside [0, 1) and for a first step below 1.
    """

    rule: Rule[Any]
    decay: float | None = None
    first_step: int = 1

    def __post_init__(self) -> None:
        if self.first_step < 1 or not 0 <= (self.decay or 0.0) < 1:
            raise SpecError(
                f"average with decay {self.decay} from step {self.first_step} on (decay, first_step): expected a decay "
                "in [0, 1), or None for the plain mean, and a step of at least 1"
            )

    def init(self, params: Params) -> State:
        """The wrapped rule's start, whose answer is the first average."""
        start = self.rule.init(params)
        return State(start.params, _with_average(start, answer(self.rule, start)), start.step)

    def step(self, state: State, batch: Any, objective: Objective) -> tuple[State, Info]:
        """The wrapped rule's step, and the average moved towards its answer."""
        wrapped = {n.removeprefix(WRAPPED): v for n, v in state.memory.items() if n.startswith(WRAPPED)}
        after, info = self.rule.step(State(state.params, wrapped, state.step), batch, objective)
        average, latest = self.answer(state), answer(self.rule, after)
        count = after.step - self.first_step + 1  # answers in the mean, the latest included
        if count <= 1:
            average = latest
        else:
            weight = 1 / count if self.decay is None else 1 - self.decay
            average = {name: torch.lerp(average[name], value, weight) for name, value in latest.items()}
        return State(after.params, _with_average(after, average), after.step), info

    def answer(self, state: State) -> Params:
        """The average of the params, under their own names."""
        return {n.removeprefix(AVERAGE): v for n, v in state.memory.items() if n.startswith(AVERAGE)}


def _with_average(wrapped: State, average: Params) -> Memory:
    memory = {f"{WRAPPED}{name}": value for name, value in wrapped.memory.items()}
    return memory | {f"{AVERAGE}{name}": value.clone() for name, value in average.items()}
