"""MAML and its kin: copies adapt to their support, and the params follow the gradient of the query loss.

    order 2      exact (Finn, Abbeel, Levine 2017), through all inner steps, with the memory of one (rules/inner.py)
    order 1      FoMAML: the query gradient at the adapted copy, as it is
    multipliers  Meta-SGD (Li et al. 2017): learned params "inner_rate/NAME" multiply the rate of every element
    Implicit     iMAML (Rajeswaran et al. 2019): the gradient of where a pulled-back inner loop converges, by CG

Each has C independent meta-learners, one for every copy of the params. Gradients are averaged over the units.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from promptprior.errors import SpecError
from promptprior.notation import Params, Tensor
from promptprior.objectives.objective import Objective, copies_of, loss_and_gradient
from promptprior.rules.curvature import add_scaled, conjugate_gradients, hessian_product
from promptprior.rules.inner import Inner, Trajectory, broadcast_to_units, mean_over_units
from promptprior.rules.optimiser import OptimiserRule, optimiser_step
from promptprior.rules.rule import Info, State
from promptprior.tasks.sampling.meta_draws import MetaBatch

MULTIPLIER = "inner_rate/"


def split_multipliers(params: Params) -> tuple[Params, Params]:
    """The parameterisation's own params, and the learned multipliers of their inner rates."""
    own = {name: value for name, value in params.items() if not name.startswith(MULTIPLIER)}
    return own, {n.removeprefix(MULTIPLIER): value for n, value in params.items() if n.startswith(MULTIPLIER)}


@dataclass(frozen=True)
class Maml(OptimiserRule):
    """One step of the outer optimiser along the gradient of the query loss after the inner steps.

    `clip`: the largest meta-gradient norm of a copy.
    """

    inner: Inner
    order: Literal[1, 2] = 2
    clip: float | None = None

    def step(self, state: State, batch: MetaBatch, objective: Objective) -> tuple[State, Info]:
        """One meta-update.

        Raises TrainingError when the first one's inner steps move nothing, SpecError for a batch without a query.
        """
        start, lr_multipliers = (broadcast_to_units(p, batch.owner) for p in split_multipliers(state.params))
        trajectory = self.inner.run(objective, start, batch.inner, lr_multipliers)
        end, info = _query_gradient(self.inner, trajectory, state, batch, objective)
        own, rates = self.inner.backward(objective, trajectory, end, lr_multipliers, self.order)
        units = own | {f"{MULTIPLIER}{name}": value for name, value in rates.items()}
        gradient = mean_over_units(units, batch.owner, copies_of(state.params))
        return optimiser_step(self.optimiser, self.clip, state, gradient, info)


@dataclass(frozen=True)
class Implicit(OptimiserRule):
    """iMAML: inner steps on L(p) + |p - theta|^2 / (2 width^2), width in units of the embedding scale.

    At its minimum the meta-gradient is (1 + width^2 H)^-1 times the query gradient, however it was reached; it is
    solved by `solve` steps of conjugate gradients on the last inner batch. Exact only where the inner loop has
    converged and every inner batch is the whole support.
    """

    inner: Inner
    width: float = 1.0
    solve: int = 5
    clip: float | None = None

    def step(self, state: State, batch: MetaBatch, objective: Objective) -> tuple[State, Info]:
        """One meta-update; "residual" is what conjugate gradients left, relative to the query gradient.

        Raises as `Maml.step`, and SpecError where only some params adapt.
        """
        if self.inner.names is not None:
            raise SpecError("imaml adapts all params: leave inner_names out, or use maml")
        squared = (self.width * self.inner.optimiser.scale) ** 2
        start = broadcast_to_units(state.params, batch.owner)
        trajectory = self.inner.run(objective, start, batch.inner, pull=1 / squared)
        end, info = _query_gradient(self.inner, trajectory, state, batch, objective)

        def curved(vector: Params) -> Params:
            """(1 + width^2 H) times a vector."""
            product = hessian_product(objective, trajectory.end, batch.inner[-1], vector)
            return add_scaled(vector, product, torch.full_like(trajectory.losses[0], squared))

        units, residual = conjugate_gradients(curved, end, self.solve)
        copies = copies_of(state.params)
        info |= mean_over_units({"residual": residual}, batch.owner, copies)
        gradient = mean_over_units(units, batch.owner, copies)
        return optimiser_step(self.optimiser, self.clip, state, gradient, info)


def _query_gradient(
    inner: Inner, trajectory: Trajectory, state: State, batch: MetaBatch, objective: Objective
) -> tuple[Params, dict[str, Tensor]]:
    """The gradient of each unit's query loss where its inner steps ended, and what to log.

    Logged for each meta-learner: query loss after the inner steps, support loss before them, and how far they went.
    """
    if batch.query is None:
        raise SpecError("this rule learns from query losses: query_size must be at least 1")
    loss, gradient = loss_and_gradient(objective, trajectory.end, batch.query)
    moved = inner.distance(trajectory, check=state.step == 0)
    units = {"loss": loss, "support_loss": trajectory.losses[0], "moved": moved}
    return gradient, mean_over_units(units, batch.owner, copies_of(state.params))
