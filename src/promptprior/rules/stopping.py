"""Copies of one run that each stop after a number of steps of their own, whatever rule moves them.

A refit trains every copy for the steps that cross-validation chose, on the schedule of the whole stage (folds.py).
"""

from dataclasses import dataclass
from typing import Any

import torch

from promptprior.notation import Params
from promptprior.objectives.objective import Objective
from promptprior.rules.rule import Info, Rule, State, answer, pick_copies

STOPPED, WRAPPED = "stopped/", "moving/"  # prefixes of what this wrapper and the wrapped rule remember


@dataclass(frozen=True)
class StopCopies:
    """Any rule, of which copy c takes its first `steps[c]` steps: then its params and what it answers stay."""

    rule: Rule[Any]
    steps: tuple[int, ...]

    def init(self, params: Params) -> State:
        """The wrapped rule's start, and its answer."""
        start = self.rule.init(params)
        memory = {f"{WRAPPED}{name}": value for name, value in start.memory.items()}
        first = {f"{STOPPED}{name}": value.clone() for name, value in answer(self.rule, start).items()}
        return State(start.params, memory | first, start.step)

    def step(self, state: State, batch: Any, objective: Objective) -> tuple[State, Info]:
        """The wrapped rule's step for the copies that still move."""
        wrapped = {n.removeprefix(WRAPPED): v for n, v in state.memory.items() if n.startswith(WRAPPED)}
        after, info = self.rule.step(State(state.params, wrapped, state.step), batch, objective)
        moving = torch.tensor([after.step <= steps for steps in self.steps])  # [C]
        memory = {f"{WRAPPED}{name}": value for name, value in after.memory.items()}
        answers = pick_copies(moving, answer(self.rule, after), self.answer(state))
        memory |= {f"{STOPPED}{name}": value for name, value in answers.items()}
        return State(pick_copies(moving, after.params, state.params), memory, after.step), info

    def answer(self, state: State) -> Params:
        """Each copy's answer after its last step."""
        return {n.removeprefix(STOPPED): v for n, v in state.memory.items() if n.startswith(STOPPED)}
