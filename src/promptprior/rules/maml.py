"""MAML and its kin: copies adapt to their support, and the params follow the gradient of the query loss.

    order 2   exact (Finn, Abbeel, Levine 2017), through all inner steps, with the memory of one (rules/inner.py)
    order 1   FoMAML: the query gradient at the adapted copy, as it is
    factors   Meta-SGD (Li et al. 2017): params "inner_rate/NAME" multiply the inner rate of every element; also learned
    Implicit  iMAML (Rajeswaran et al. 2019): the gradient of where a pulled-back inner loop converges, by CG

Each has C independent meta-learners, one for every copy of the params. Gradients are averaged over the units.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from promptprior.errors import SpecError
from promptprior.notation import Float, Params, Tensor
from promptprior.objectives.objective import Objective, copies_of, loss_and_gradient
from promptprior.rules.curvature import conjugate_gradients, hessian_product, plus
from promptprior.rules.inner import Inner, Path, check_moved, fanned, followed, gathered, moves, owner_mean
from promptprior.rules.optimiser import Optimiser
from promptprior.rules.rule import Info, State
from promptprior.tasks.sampling.batch import Batch
from promptprior.tasks.sampling.meta_draws import MetaBatch

FACTORS = "inner_rate/"


def apart(params: Params) -> tuple[Params, Params]:
    """The parameterisation's own params, and the learned factors of their inner rates."""
    learned = {name: value for name, value in params.items() if not name.startswith(FACTORS)}
    lr_multipliers = {n.removeprefix(FACTORS): value for n, value in params.items() if n.startswith(FACTORS)}
    return learned, lr_multipliers


def with_factors(params: Params) -> Params:
    """The params with a factor of 1 for every element: Meta-SGD's start."""
    return {**params, **{f"{FACTORS}{name}": torch.ones_like(value) for name, value in params.items()}}


def query_of(batch: MetaBatch) -> Batch:
    """The query of a meta-batch. Raises SpecError without one."""
    if batch.query is None:
        raise SpecError("this rule learns from query losses: query_size must be at least 1")
    return batch.query


@dataclass(frozen=True)
class Maml:
    """One step of the outer optimiser along the gradient of the query loss after the inner steps.

    `clip`: the largest meta-gradient norm of a copy.
    """

    optimiser: Optimiser
    inner: Inner
    order: Literal[1, 2] = 2
    clip: float | None = None

    def init(self, params: Params) -> State:
        """Nothing remembered yet."""
        return State(params, self.optimiser.init(params))

    def step(self, state: State, batch: MetaBatch, objective: Objective) -> tuple[State, Info]:
        """One meta-update. Raises TrainingError when the first one's inner steps move nothing."""
        gradient, info = self.gradient(state, batch, objective)
        return followed(state, gradient, info, self.optimiser, self.clip)

    def gradient(self, state: State, batch: MetaBatch, objective: Objective) -> tuple[Params, Info]:
        """The meta-gradient of every copy, factors included, and what to log."""
        learned, lr_multipliers = (fanned(some, batch.owner) for some in apart(state.params))
        path = self.inner.path(objective, learned, batch.inner, lr_multipliers)
        loss, end = loss_and_gradient(objective, path.end, query_of(batch))
        start, rates = self.inner.way_back(objective, path, end, lr_multipliers, self.order)
        units = start | {f"{FACTORS}{name}": value for name, value in rates.items()}
        copies = copies_of(state.params)
        return gathered(units, batch.owner, copies), report(self.inner, path, loss, batch, state)


@dataclass(frozen=True)
class Implicit:
    """iMAML: inner steps on L(p) + |p - theta|^2 / (2 width^2), width in units of the embedding scale.

    At its minimum the meta-gradient is (1 + width^2 H)^-1 times the query gradient, whatever path led there; it is
    solved by `solve` steps of conjugate gradients on the last inner batch. Exact only where the inner loop has
    converged and every inner batch is the whole support.
    """

    optimiser: Optimiser
    inner: Inner
    width: float = 1.0
    solve: int = 5
    clip: float | None = None

    def init(self, params: Params) -> State:
        """Nothing remembered yet."""
        return State(params, self.optimiser.init(params))

    def step(self, state: State, batch: MetaBatch, objective: Objective) -> tuple[State, Info]:
        """One meta-update. Raises TrainingError when the first one's inner steps move nothing."""
        gradient, info = self.gradient(state, batch, objective)
        return followed(state, gradient, info, self.optimiser, self.clip)

    def gradient(self, state: State, batch: MetaBatch, objective: Objective) -> tuple[Params, Info]:
        """The implicit meta-gradient of every copy, and what to log."""
        if self.inner.names is not None:
            raise SpecError("imaml adapts all params: leave inner_names out, or use maml")
        squared = (self.width * self.inner.optimiser.scale) ** 2
        start = fanned(state.params, batch.owner)
        path = self.inner.path(objective, start, batch.inner, pull=1 / squared)
        loss, end = loss_and_gradient(objective, path.end, query_of(batch))
        one = torch.ones_like(loss)

        def curved(vector: Params) -> Params:
            return plus(vector, hessian_product(objective, path.end, batch.inner[-1], vector), squared * one)

        units, residual = conjugate_gradients(curved, end, self.solve)
        copies = copies_of(state.params)
        info = report(self.inner, path, loss, batch, state)
        return gathered(units, batch.owner, copies), {**info, "residual": owner_mean(residual, batch.owner, copies)}


def report(inner: Inner, path: Path, loss: Float[Tensor, " U"], batch: MetaBatch, state: State) -> dict[str, Tensor]:
    """What a meta-step logs: query loss after the inner steps, support loss before them, and how far they went."""
    move = moves(path, inner.optimiser.scale)
    if state.step == 0:
        check_moved(move, inner.optimiser)
    copies = copies_of(state.params)
    units = {"loss": loss, "support_loss": path.losses[0], "moved": move}
    return {name: owner_mean(value, batch.owner, copies) for name, value in units.items()}
